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


def correlation(
    x: Floats, y: Floats, groups: np.ndarray[Any, Any], seed: int = 0
) -> tuple[float, float, float]:
    """Return Pearson's r of x and y (n,) and its 95 % interval over resamples of whole groups; pairs with NaN are left out."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    member = np.unique(groups[known], return_inverse=True)[1]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan, np.nan, np.nan
    x, y = x - x.mean(), y - y.mean()
    moments = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y])
    per_group = np.stack([np.bincount(member, weights=row) for row in moments], axis=1)  # (groups, moments)
    groups_drawn = np.random.default_rng(seed).integers(len(per_group), size=(RESAMPLES, len(per_group)))
    counts = np.stack([np.bincount(row, minlength=len(per_group)) for row in groups_drawn]).astype(float)
    r = float(_r(per_group.sum(0, keepdims=True))[0])
    if len(per_group) < 2:
        return r, np.nan, np.nan
    low, high = np.nanquantile(_r(counts @ per_group), [0.025, 0.975])
    return r, float(low), float(high)


def _r(sums: Floats) -> Floats:
    n, x, y, xy, xx, yy = sums.T
    spread = np.sqrt(np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0))
    result: Floats = np.divide(xy - x * y / n, spread, out=np.full_like(spread, np.nan), where=spread > 1e-12)
    return result
