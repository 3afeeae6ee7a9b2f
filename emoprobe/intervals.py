"""Intervals for few values, from Student's t: of a mean, and of one more value of the same kind.

Both hold for as few as two values where these are independent and about normally distributed. Resampling would not: the
percentiles of resampled means of three values are hardly more than the lowest and the highest of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

Floats = NDArray[np.float64]
FEW_GROUPS = 15
"""Groups below which resamples of them are too alike for percentiles: Student's t takes over."""


def mean_interval(values: Sequence[float] | Floats) -> tuple[float, float, float]:
    """Return the mean of independent values (n,) and its 95 % interval, in their unit; NaN bounds for fewer than two."""
    return _around_mean(values, 0.0)


def prediction_interval(values: Sequence[float] | Floats) -> tuple[float, float]:
    """Return where one more value of the same normal distribution would lie, at 95 %; NaN for fewer than two values (n,)."""
    _, low, high = _around_mean(values, 1.0)
    return low, high


def _around_mean(values: Sequence[float] | Floats, more: float) -> tuple[float, float, float]:
    """Return the mean and an interval that allows for its own error and for that of `more` further values."""
    known = np.asarray(values, dtype=float)
    n = len(known)
    if n < 2:
        return float(known[0]) if n else math.nan, math.nan, math.nan
    mean = float(known.mean())
    reach = float(t.ppf(0.975, n - 1) * known.std(ddof=1) * math.sqrt(more + 1 / n))
    return mean, mean - reach, mean + reach
