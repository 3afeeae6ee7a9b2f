"""Numbers in words: the same in every result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emoprobe.intervals import UNBOUNDED, Bounds, prediction_interval
from emoprobe.intervals import correlation as correlation

Floats = NDArray[np.float64]


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


def p_value(p: float, name: str = "p") -> str:
    """Write p = 0.003, from 0.1 on with two digits, and below 0.001 as no more than that."""
    if not np.isfinite(p):
        return f"{name} not measured"
    return f"{name} < 0.001" if p < 0.001 else f"{name} = {p:.{3 if p < 0.1 else 2}f}"


def one_more(chance: Sequence[float] | Floats, digits: int = 2, unit: str = "") -> str:
    """Write the range that judges: where one more control like those of `chance` (n,) would lie, at 95 %."""
    interval = prediction_interval(chance)
    if np.isnan(interval).any():
        return "too few of them to compare with"
    return f"{ranged(interval, digits, True)}{unit} (95 % prediction interval of one more)"


def beside_one_more(
    value: float, chance: Sequence[float], control: str, digits: int = 2, bounds: Bounds = UNBOUNDED
) -> str:
    """Say how a value lies to the 95 % prediction interval of one more `control`; `chance` has the values of those run."""
    interval = prediction_interval(chance, bounds)
    if np.isnan(interval).any():
        return "too few of them to compare with"
    which = "less than" if value < interval[0] else "more than" if value > interval[1] else "within what"
    return f"{which} one more {control} may be expected to give ({ranged(interval, digits, True)}, 95 %)"


def spans(names: Iterable[Any], *columns: Iterable[float]) -> list[str]:
    """Write each name with its number and interval; `columns` are the values, their lows and their highs."""
    return [f"{name} {span(*row)}" for name, *row in zip(names, *columns, strict=True)]


def several(parts: Sequence[str], most: int = 4) -> str:
    """Write results side by side, the first ones in their own order, and how many more there are."""
    more = len(parts) - most
    return ", ".join([*parts[:most], *([f"{more} more below"] if more > 0 else [])]) or "none"


def listed(names: Sequence[Any], most: int = 8) -> str:
    """Write a list as people do; what is too much becomes a count."""
    shown = [str(name) for name in names]
    if len(shown) > most:
        return f"{', '.join(shown[:most])} and {len(shown) - most} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else "none"
