"""How often a null reaches a value, where some of it could not be measured."""

import numpy as np
import pytest

from emoprobe.intervals import exceedance


def test_draws_that_are_not_finite_count_as_reaching_the_value() -> None:
    null = np.array([[0.0, 0.0], [3.0, np.nan], [1.0, -np.inf], [0.5, np.inf]])
    assert exceedance(np.array([2.0, 2.0]), null) == pytest.approx([2 / 5, 4 / 5])
    assert exceedance(2.0, np.full(20, np.nan)) == 1
    assert np.isnan(exceedance(np.nan, null[:, 0]))
