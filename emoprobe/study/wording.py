"""Numbers in words, and correlations with intervals: the same in every result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from emoprobe.intervals import FEW_GROUPS, prediction_interval

Floats = NDArray[np.float64]
RESAMPLES = 2000


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    """Write a number with so many digits behind the point, and a true minus."""
    if not np.isfinite(value):
        return "not measured"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:
        text = f"{0:.{digits}f}"
    return text.replace("-", "−")


def plain(value: float) -> str:
    """Write a number as short as it goes, with a true minus."""
    return f"{value:g}".replace("-", "−")


def span(value: float, low: float, high: float, digits: int = 2, sign: bool = False) -> str:
    """Write a number with its interval, 0.94 [0.92, 0.96], in one piece: its spaces do not break."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return number(value, digits, sign)
    middle, lower, upper = (number(item, digits, sign) for item in (value, low, high))
    return f"{middle} [{lower}, {upper}]".replace(" ", "\N{NO-BREAK SPACE}")


def ranged(values: Sequence[float] | Floats, digits: int = 2, sign: bool = False) -> str:
    """Write where numbers lie, from the lowest to the highest."""
    low, high = float(np.min(values)), float(np.max(values))
    return f"{number(low, digits, sign)} to {number(high, digits, sign)}"


def beside_one_more(value: float, chance: Sequence[float], control: str, digits: int = 2) -> str:
    """Say how a value lies to the 95 % prediction interval of one more `control`; `chance` has the values of those run."""
    interval = prediction_interval(chance)
    if np.isnan(interval).any():
        return "too few of them to compare with"
    which = "less than" if value < interval[0] else "more than" if value > interval[1] else "within what"
    return f"{which} one more {control} may be expected to give ({ranged(interval, digits, True)}, 95 %)"


def listed(names: Sequence[Any], most: int = 8) -> str:
    """Write a list as people do; what is too much becomes a count."""
    shown = [str(name) for name in names]
    if len(shown) > most:
        return f"{', '.join(shown[:most])} and {len(shown) - most} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else "none"


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
    """Return the interval of r from how much it changes as each group's sums (groups, moments) are left out."""
    count = len(per_group)
    left_out = _z(_r(per_group.sum(0) - per_group))
    error = np.sqrt((count - 1) * left_out.var())  # Tukey's: (G − 1) / G times the sum of squares
    low, high = np.tanh(_z(r) + np.array([-1, 1]) * t.ppf(0.975, count - 1) * error)
    return float(low), float(high)


def _resampled(per_group: Floats, seed: int) -> tuple[float, float]:
    """Return the interval of r over resamples of groups, each given by its sums (groups, moments)."""
    drawn = np.random.default_rng(seed).integers(len(per_group), size=(RESAMPLES, len(per_group)))
    counts = np.stack([np.bincount(row, minlength=len(per_group)) for row in drawn]).astype(float)
    low, high = np.nanquantile(_r(counts @ per_group), [0.025, 0.975])
    return float(low), float(high)


def _z(r: float | Floats) -> Floats:
    """Return Fisher's z of a correlation, finite for a perfect one as well."""
    z: Floats = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    return z


def _r(sums: Floats) -> Floats:
    n, x, y, xy, xx, yy = sums.T
    spread = np.sqrt(np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0))
    result: Floats = np.divide(xy - x * y / n, spread, out=np.full_like(spread, np.nan), where=spread > 1e-12)
    return result
