"""Numbers in words: intervals, bootstraps and lists, the same in every result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def span(value: float, low: float, high: float, digits: int = 2, sign: bool = False) -> str:
    """Write a number with its interval, 0.94 [0.92, 0.96]."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return number(value, digits, sign)
    return f"{number(value, digits, sign)} [{number(low, digits, sign)}, {number(high, digits, sign)}]"


def listed(names: Sequence[Any], most: int = 8) -> str:
    """Write a list as people do; what is too much becomes a count."""
    shown = [str(name) for name in names]
    if len(shown) > most:
        return f"{', '.join(shown[:most])} and {len(shown) - most} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else "none"


def bootstrap(values: Sequence[float] | Floats, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean of values and its 95 % interval over resamples of them; NaN bounds for fewer than two."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values.mean()) if len(values) else np.nan, np.nan, np.nan
    drawn = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def correlation(x: Floats, y: Floats, groups: Sequence[str] | np.ndarray[Any, Any], seed: int = 0) -> tuple[float, float, float]:
    """Return Pearson's r of x and y (n,) and its 95 % interval over resamples of whole groups; pairs with NaN are left out."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    member = np.unique(np.asarray(groups)[known], return_inverse=True)[1]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan, np.nan, np.nan
    x, y = x - x.mean(), y - y.mean()
    moments = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y])
    per_group = np.stack([np.bincount(member, weights=row) for row in moments], axis=1)  # (groups, moments)
    count = len(per_group)
    drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    sums = np.stack([np.bincount(row, minlength=count) for row in drawn]) @ per_group
    if count < 2:
        return float(_r(per_group.sum(0)[None])[0]), np.nan, np.nan
    low, high = np.nanquantile(_r(sums), [0.025, 0.975])
    return float(_r(per_group.sum(0)[None])[0]), float(low), float(high)


def _r(sums: Floats) -> Floats:
    n, x, y, xy, xx, yy = sums.T
    spread = np.sqrt(np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0))
    result: Floats = np.divide(xy - x * y / n, spread, out=np.full_like(spread, np.nan), where=spread > 1e-12)
    return result
