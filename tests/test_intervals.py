"""How often a null reaches a value, where some of it could not be measured."""

import numpy as np
import pytest

from emoprobe.intervals import CORRELATION, SHARE, exceedance, mean_interval, prediction_interval


def test_draws_that_are_not_finite_count_as_reaching_the_value() -> None:
    null = np.array([[0.0, 0.0], [3.0, np.nan], [1.0, -np.inf], [0.5, np.inf]])
    assert exceedance(np.array([2.0, 2.0]), null) == pytest.approx([2 / 5, 4 / 5])
    assert exceedance(2.0, np.full(20, np.nan)) == 1
    assert np.isnan(exceedance(np.nan, null[:, 0]))


def test_an_interval_of_what_is_bounded_does_not_pass_its_bounds() -> None:
    values = [0.99, 0.6, 0.95, 1.0]
    mean, low, high = mean_interval(values)
    assert high > 1 and mean_interval(values, SHARE) == (mean, low, 1.0)
    least, most = prediction_interval([-value for value in values])
    assert least < -1 < most and prediction_interval([-value for value in values], CORRELATION) == (
        -1.0,
        most,
    )
    assert (
        np.isnan(mean_interval([0.5], SHARE)[1:]).all() and np.isnan(prediction_interval([0.5], SHARE)).all()
    )
