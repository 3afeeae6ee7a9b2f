"""A number beside what chance gives, and which of three things it comes to: an effect, its opposite, or nothing shown.

An effect counts only if its interval leaves out where nothing lies, one more set of random directions is not expected to give
as much, and, where there is one, a permutation or sign test agrees. Nothing here knows models or probes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, t

from emoprobe.intervals import (
    SHARE,
    UNBOUNDED,
    Bounds,
    exceedance,
    mean_interval,
    prediction_interval,
)
from emoprobe.study.wording import number, p_value, span

Floats = NDArray[np.float64]
SURE = 0.05


@dataclass(frozen=True, eq=False)
class Evidence:
    """Hold a number, its 95 % interval, and the same number for random directions (controls,).

    `nothing` is what it is where there is nothing to find. `p` is that of a two-sided permutation or sign test, NaN where none
    was made.
    """

    value: float
    low: float
    high: float
    chance: Floats
    nothing: float = 0.0
    p: float = float("nan")
    bounds: Bounds = UNBOUNDED
    """The lowest and the highest that the number can be."""

    @property
    def expected(self) -> tuple[float, float]:
        """Where one more set of random directions would lie, at 95 %; NaN for fewer than two of them."""
        return prediction_interval(self.chance, self.bounds)

    @property
    def sign(self) -> int:
        """1 for an effect, -1 for its opposite, 0 where nothing is shown."""
        low, high = self.expected
        if self.p >= SURE:  # not so for NaN
            return 0
        if self.low > self.nothing and self.value > high:
            return 1
        return -1 if self.high < self.nothing and self.value < low else 0

    @property
    def least(self) -> float:
        """About the least number that would have been shown, its interval being as wide and chance what it is."""
        return max(self.expected[1], self.nothing + self.value - self.low)

    def said(self, digits: int = 2, sign: bool = True) -> str:
        """Write the number with its interval, what random directions give, p, and of a null what would have been shown."""
        low, high = (number(bound, digits, sign) for bound in self.expected)
        test = f", {p_value(self.p)}" if np.isfinite(self.p) else ""
        missed = (
            f"; from about {number(self.least, digits, sign)} on it would be shown" if not self.sign else ""
        )
        return f"{span(self.value, self.low, self.high, digits, sign)} (random directions {low} to {high}{test}{missed})"

    def row(self) -> dict[str, float]:
        """Return the columns of a table: value, low, high, random_low, random_high, least, p."""
        low, high = self.expected
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "random_low": low,
            "random_high": high,
            "least": self.least,
            "p": self.p,
        }


def in_common(signs: Iterable[int]) -> int:
    """Return the sign that all parts of an answer have, 0 where they differ."""
    found = set(signs)
    return found.pop() if len(found) == 1 else 0


def of_mean(
    units: Floats, nothing: float = 0.0, p: float = float("nan"), bounds: Bounds = UNBOUNDED
) -> Evidence:
    """Return the mean over units, with Student's interval over them; `units` is (1 + controls, units), the probes first.

    Intervals are cut off at `bounds`, the lowest and the highest that a unit can be.
    """
    return Evidence(*mean_interval(units[0], bounds), units[1:].mean(1), nothing, p, bounds)


def of_share(units: Floats, nothing: float, p: float = float("nan")) -> Evidence:
    """Return the mean of shares in [0, 1], one for each unit, as `of_mean`, with an interval within [0, 1].

    Where all units agree, Student's interval has no width: then it is that of Clopper and Pearson for so many units, each of
    which counts once.
    """
    found = of_mean(units, nothing, p, SHARE)
    if np.ptp(units[0]) < 1e-12 and len(units[0]) > 1:
        low, high = clopper_pearson(float(units[0].sum()), len(units[0]))
        return replace(found, low=low, high=high)
    return found


def clopper_pearson(hits: float, trials: int) -> tuple[float, float]:
    """Return the exact 95 % interval of a share; hits that ties have made fractional are rounded."""
    exact = binomtest(round(hits), trials).proportion_ci()
    return float(exact.low), float(exact.high)


def sign_test(values: Floats) -> float:
    """Return the two-sided p of the exact sign test; zeros are left out, and 1 is what nothing but zeros gives."""
    moved = values[np.isfinite(values) & (values != 0)]
    return float(binomtest(int((moved > 0).sum()), len(moved)).pvalue) if len(moved) else 1.0


def p_two_sided(value: float, null: Floats) -> float:
    """Return how often a null (permutations,) lies as far from 0 as a value, the value counted among them."""
    return float(exceedance(abs(value), np.abs(null)))


def p_of_all(value: float, everything: Floats) -> float:
    """Return the same where the null is all permutations (n,), the one that was seen among them."""
    return float((np.abs(everything) >= abs(value) - 1e-12).mean())


def fieller(numerator: Floats, denominator: Floats) -> tuple[float, float, float]:
    """Return the ratio of the means of pairs (n,) and Fieller's 95 % interval, exact for normal pairs.

    The bounds are infinite where the denominator's mean is not told from zero: then any ratio is possible. Source: E. C.
    Fieller, "Some problems in interval estimation", 1954.
    """
    n = len(numerator)
    if n < 2:
        return np.nan, np.nan, np.nan
    above, below = numerator.mean(), denominator.mean()
    ratio = float(above / below) if below else np.nan
    (v11, v12), (_, v22) = np.cov(numerator, denominator) / n
    square = t.ppf(0.975, n - 1) ** 2
    # All r for which the mean of numerator - r · denominator is not told from zero: a r² - 2 b r + c <= 0.
    a, b, c = below**2 - square * v22, above * below - square * v12, above**2 - square * v11
    if a <= 0:
        return ratio, -np.inf, np.inf
    reach = np.sqrt(max(b * b - a * c, 0))
    return ratio, float((b - reach) / a), float((b + reach) / a)
