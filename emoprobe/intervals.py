"""Intervals and p values: of a mean, of one more value of the same kind, of a correlation, and what else these need.

Those of a mean and of one more value are from Student's t and hold for as few as two values where these are independent and
about normally distributed. Resampling would not: the percentiles of resampled means of three values are hardly more than the
lowest and the highest of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

Floats = NDArray[np.float64]
FEW_GROUPS = 15
"""Groups below which resamples of them are too alike for percentiles: Student's t takes over."""
RESAMPLES = 2000


Bounds = tuple[float, float]
UNBOUNDED: Bounds = (-math.inf, math.inf)
CORRELATION: Bounds = (-1.0, 1.0)
SHARE: Bounds = (0.0, 1.0)


def mean_interval(values: Sequence[float] | Floats, bounds: Bounds = UNBOUNDED) -> tuple[float, float, float]:
    """Return the mean of independent values (n,) and its 95 % interval, in their unit; NaN bounds for fewer than two.

    Student's interval knows of no bounds. Where values have them (a share, a correlation, a cosine), it is cut off at `bounds`.
    """
    return _around_mean(values, 0.0, bounds)


def prediction_interval(values: Sequence[float] | Floats, bounds: Bounds = UNBOUNDED) -> tuple[float, float]:
    """Return where one more value of the same normal distribution would lie, at 95 %; NaN for fewer than two values (n,).

    It is cut off at `bounds`, as in `mean_interval`.
    """
    _, low, high = _around_mean(values, 1.0, bounds)
    return low, high


def _around_mean(values: Sequence[float] | Floats, more: float, bounds: Bounds) -> tuple[float, float, float]:
    """Return the mean and an interval that allows for its own error and for that of `more` further values."""
    known = np.asarray(values, dtype=float)
    n = len(known)
    if n < 2:
        return float(known[0]) if n else math.nan, math.nan, math.nan
    mean = float(known.mean())
    reach = float(t.ppf(0.975, n - 1) * known.std(ddof=1) * math.sqrt(more + 1 / n))
    return mean, max(mean - reach, bounds[0]), min(mean + reach, bounds[1])


def jackknife(value: Floats, without: Floats) -> tuple[Floats, Floats]:
    """Return the 95 % interval of a value (…) from what it is without each of the groups (groups, …).

    Tukey's standard error, Student's t with groups − 1 degrees of freedom.
    """
    groups = len(without)
    error = np.sqrt((groups - 1) / groups * ((without - without.mean(0)) ** 2).sum(0))
    reach = t.ppf(0.975, groups - 1) * error
    return value - reach, value + reach


def exceedance(value: float | Floats, null: Floats) -> Any:
    """Return how often a null (draws, …) reaches a value (…), the value itself counted among them; NaN for NaN.

    A draw that is not finite counts as reaching it: what could not be measured is no evidence that the value is rare.
    """
    reached = (null >= value - 1e-12) | ~np.isfinite(null)
    p = (1 + reached.sum(0)) / (1 + len(null))
    return np.where(np.isfinite(value), p, np.nan)[()]


def distance_of_one_more(value: float | Floats, others: Floats) -> Any:
    """Return how far a value (…) lies from others of one normal distribution (n, …), n ≥ 2: Student's t with n − 1 degrees.

    It allows for their mean's own error, as `prediction_interval` does; NaN where they are all the same.
    """
    spread = others.std(0, ddof=1) * np.sqrt(1 + 1 / len(others))
    apart = value - others.mean(0)
    return np.divide(apart, spread, out=np.full(np.shape(apart), np.nan), where=spread > 0)[()]


def fisher_z(r: float | Floats) -> Floats:
    """Return Fisher's z of a correlation, finite for a perfect one as well."""
    z: Floats = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    return z


def correlation(
    x: Floats, y: Floats, groups: np.ndarray[Any, Any], seed: int = 0
) -> tuple[float, float, float]:
    """Return Pearson's r of x and y (n,) and its 95 % interval over whole groups; pairs with NaN are left out.

    The interval is that of the percentiles of r over resamples of groups, and with fewer than 15 groups the jackknife's (each
    group left out once), on Fisher's z with Student's t. NaN bounds for one group, all NaN where there is nothing to correlate.
    """
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    member = np.unique(groups[known], return_inverse=True)[1]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan, np.nan, np.nan
    x, y = x - x.mean(), y - y.mean()
    moments = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y])
    sums = [np.bincount(member, weights=row).astype(float) for row in moments]
    per_group: Floats = np.stack(sums, axis=1)  # (groups, moments)
    r = float(_r(per_group.sum(0, keepdims=True))[0])
    if len(per_group) < 2:
        return r, np.nan, np.nan
    low, high = _jackknifed(r, per_group) if len(per_group) < FEW_GROUPS else _resampled(per_group, seed)
    return r, low, high


def _jackknifed(r: float, per_group: Floats) -> tuple[float, float]:
    """Return the interval of r from what it is without each group's sums (groups, moments)."""
    left_out = _r(per_group.sum(0) - per_group)
    low, high = np.tanh(jackknife(fisher_z(r), fisher_z(left_out)))
    return float(low), float(high)


def _resampled(per_group: Floats, seed: int) -> tuple[float, float]:
    """Return the interval of r over resamples of groups, each given by its sums (groups, moments)."""
    drawn = np.random.default_rng(seed).integers(len(per_group), size=(RESAMPLES, len(per_group)))
    counts = np.stack([np.bincount(row, minlength=len(per_group)) for row in drawn]).astype(float)
    low, high = np.nanquantile(_r(counts @ per_group), [0.025, 0.975])
    return float(low), float(high)


def _r(sums: Floats) -> Floats:
    n, x, y, xy, xx, yy = sums.T
    spread = np.sqrt(np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0))
    result: Floats = np.divide(xy - x * y / n, spread, out=np.full_like(spread, np.nan), where=spread > 1e-12)
    return result
