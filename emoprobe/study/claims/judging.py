"""An effect of injection at several λ, beside random valuations and the other sign of λ, and what it comes to.

The λ are chosen in advance. A claim is judged by one number, the mean of the effect over the positive ones, so that no λ is
picked and nothing has to be corrected for it; single λ are reported, and judge nothing. Where the effect cannot be had at one
of them there is no mean: one over fewer λ would be compared with others over more. A claim is

- "supported" where that mean has the claimed sign (95 % interval over clusters), lies beyond the same mean of random
  valuations (p < 0.05), and lies beyond the mean over the negative λ (interval of the difference);
- "not supported" where it is shown to have the other sign;
- "not shown" in all other cases.

The test against random valuations is exact: were the probed one of their kind, each of all ranks would be as likely. With 20 of
them, p < 0.05 means beyond all 20 (p = 1/21). One that could not be measured counts as reaching the probed one, so that it can
only keep a claim from being supported. Nothing here knows models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emoprobe.intervals import Floats, exceedance, jackknife, prediction_interval
from emoprobe.study.wording import p_value, plain, ranged, span

Integers = NDArray[np.int64]
STRENGTHS = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)
"""λ at which a probed valuation is injected; random ones only at the positive of these."""
POSITIVE = tuple(strength for strength in STRENGTHS if strength > 0)
_CLAIMED = np.array(STRENGTHS) > 0
SURE = 0.05
SUPPORTED, NOT_SUPPORTED, NOT_SHOWN = "supported", "not supported", "not shown"
SIGNS = {SUPPORTED: 1, NOT_SUPPORTED: -1, NOT_SHOWN: 0}

Statistic: TypeAlias = Callable[[Floats], tuple[Floats, Floats]]
"""From the weight of each cluster (clusters,) to an effect: the probed valuation's at each of STRENGTHS (strengths,), and
random ones' at each of POSITIVE (controls, positive). NaN where it cannot be had."""


@dataclass(frozen=True, eq=False)
class Effect:
    """What injection changes in one measure, from λ = 0.

    `sign` is the sign that the claim gives it. `probed` is (strengths, 3): value and 95 % interval at each of STRENGTHS;
    `random` (controls,) the means of random valuations over POSITIVE and `random_each` (controls, positive) what they are means
    of. `mean` and `beyond_negative` are value and interval of the mean over POSITIVE, and of that less the mean over the
    negative λ. A mean is NaN where one of its λ is.
    """

    claim: str
    measure: str
    sign: int
    probed: Floats
    random: Floats
    random_each: Floats
    mean: tuple[float, float, float]
    beyond_negative: tuple[float, float, float]
    clusters: int

    @property
    def p(self) -> float:
        """How often one of the valuations, random or probed, lies as far on the claimed side as the probed one.

        A random one that is NaN counts as doing so.
        """
        return float(exceedance(self.sign * self.mean[0], self.sign * self.random))

    @property
    def p_differs(self) -> float:
        """The same on either side: how often one lies as far from the mean of all as the probed one."""
        if not np.isfinite(self.mean[0]):
            return np.nan
        everything = np.append(self.random, self.mean[0])
        apart = np.abs(everything - everything[np.isfinite(everything)].mean())
        return float(exceedance(apart[-1], apart[:-1]))

    @property
    def verdict(self) -> str:
        """One of SUPPORTED, NOT_SUPPORTED and NOT_SHOWN, see above."""
        if _side(self.mean, -self.sign):
            return NOT_SUPPORTED
        held = _side(self.mean, self.sign) and self.p < SURE and _side(self.beyond_negative, self.sign)
        return SUPPORTED if held else NOT_SHOWN

    @property
    def outcome(self) -> int:
        """The verdict as the sign of a result: 1, -1 and 0."""
        return SIGNS[self.verdict]

    @property
    def lacking(self) -> list[str]:
        """What keeps a claim that is not supported from being so."""
        if not np.isfinite(self.mean[0]):
            return ["it could not be measured"]
        if self.verdict == NOT_SUPPORTED:
            return ["the effect has the other sign"]
        chance = "do as much" if np.isfinite(self.random).all() else "do as much or could not be measured"
        negative = "do as much" if np.isfinite(self.beyond_negative[0]) else "could not be measured"
        lacks = {
            "no effect of this sign is shown": not _side(self.mean, self.sign),
            f"random valuations {chance}": not self.p < SURE,
            f"negative λ {negative}": not _side(self.beyond_negative, self.sign),
        }
        return [why for why, holds in lacks.items() if holds]

    def said(self) -> str:
        """Write the mean effect with its interval, random valuations', and the difference from negative λ."""
        return (
            f"{span(*self.mean, 2, True)} {self.measure} (random valuations {self.by_chance()}, {p_value(self.p)}; "
            f"less that at negative λ {span(*self.beyond_negative, 2, True)})"
        )

    def by_chance(self, digits: int = 2) -> str:
        """Write where the means of random valuations lie, and how many of these could not be measured."""
        known = self.random[np.isfinite(self.random)]
        missing = len(self.random) - len(known)
        said = [ranged(known, digits, True)] if len(known) else []
        return ", ".join([*said, *([f"{missing} of {len(self.random)} not measured"] if missing else [])])

    def judged(self) -> str:
        """Write the verdict, what it lacks to be "supported", and what it rests on."""
        why = f" ({'; '.join(self.lacking)})" if self.lacking else ""
        return f"{self.verdict}{why}{f': {self.said()}' if np.isfinite(self.mean[0]) else ''}."

    def rows(self) -> pd.DataFrame:
        """Return one row for each λ, and a last one, without λ, for what is judged."""
        each = pd.DataFrame(self.probed, columns=["value", "low", "high"]).assign(strength=STRENGTHS)
        chance = {
            strength: prediction_interval(column[np.isfinite(column)])
            for strength, column in zip(POSITIVE, self.random_each.T, strict=True)
        }
        missing = (np.nan, np.nan)
        each[["random_low", "random_high"]] = [chance.get(strength, missing) for strength in STRENGTHS]
        low, high = prediction_interval(self.random[np.isfinite(self.random)])
        judged = {
            **dict(zip(("value", "low", "high"), self.mean, strict=True)),
            **{"strength": np.nan, "random_low": low, "random_high": high},
            **dict(zip(("beyond_negative", "beyond_low", "beyond_high"), self.beyond_negative, strict=True)),
            **{"p": self.p, "p_differs": self.p_differs, "verdict": self.verdict},
        }
        both = pd.concat([each, pd.DataFrame([judged])], ignore_index=True)
        both.insert(0, "claim", self.claim)
        both.insert(1, "measure", self.measure)
        return both.assign(verdict=both.verdict.fillna(""), clusters=self.clusters)


def effect(claim: str, measure: str, sign: int, statistic: Statistic, clusters: int) -> Effect:
    """Return what a statistic comes to, with jackknife intervals over its clusters (none for fewer than two)."""
    weights = np.ones((1 + clusters, clusters)) - np.eye(
        1 + clusters, clusters, -1
    )  # of all, and without each
    found = [statistic(row) for row in (weights if clusters > 1 else weights[:1])]
    random = found[0][1]
    judged = np.stack([_summary(probed) for probed, _ in found])
    nothing = np.full_like(judged[0], np.nan)
    low, high = jackknife(judged[0], judged[1:]) if clusters > 1 else (nothing, nothing)
    spans = np.stack([judged[0], low, high], axis=1)
    return Effect(
        claim,
        measure,
        sign,
        spans[:-2],
        random.mean(-1),
        random,
        _three(spans[-2]),
        _three(spans[-1]),
        clusters,
    )


def effect_of_mean(
    claim: str, measure: str, sign: int, probed: Floats, random: Floats, groups: Integers
) -> Effect:
    """Return the effect that is a mean over units, `groups` (units,) being their clusters.

    `probed` is (strengths, units), `random` (controls, positive, units); units that are not finite under all are left out.
    """
    known = np.isfinite(probed).all(0) & np.isfinite(random).all((0, 1))
    if not known.any():
        nothing = np.full((len(random), len(POSITIVE)), np.nan)
        return effect(claim, measure, sign, lambda weights: (np.full(len(STRENGTHS), np.nan), nothing), 1)
    probed, random = probed[:, known], random[..., known]
    cluster = np.unique(groups[known], return_inverse=True)[1]

    def statistic(weights: Floats) -> tuple[Floats, Floats]:
        share = weights[cluster] / weights[cluster].sum()
        return probed @ share, random @ share

    return effect(claim, measure, sign, statistic, int(cluster.max()) + 1)


def overall(effects: list[Effect]) -> str:
    """Write how many of several claims came out how."""
    counts = {
        name: sum(found.verdict == name for found in effects)
        for name in (SUPPORTED, NOT_SUPPORTED, NOT_SHOWN)
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def stated() -> str:
    """Write which λ are meant, and how several of them are allowed for."""
    return (
        f"λ from {plain(min(STRENGTHS))} to {plain(max(STRENGTHS))}; judged by the mean over λ = "
        f"{', '.join(map(plain, POSITIVE))}, beside that of random valuations of equal norm (exact test) and that over −λ"
    )


def _side(interval: tuple[float, float, float], sign: int) -> bool:
    """Say whether an interval lies on one side of zero."""
    _, low, high = interval
    return low > 0 if sign > 0 else high < 0


def _summary(probed: Floats) -> Floats:
    """Return the effects (strengths,), their mean over the positive λ, and that less the mean over the negative ones."""
    mean = probed[_CLAIMED].mean()
    return np.concatenate([probed, [mean, mean - probed[~_CLAIMED].mean()]])


def _three(values: Floats) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])
