"""Two ways of intervening at the same price: what each does where both cost the model as much.

Strengths of edits and λ of valuations have different units, so that dose–response curves of the two cannot be laid over each
other. What they cost can: KL to the untouched model, or NLL on neutral text. `at_equal_cost` reads the effect of each sweep at
the strength at which its cost is first reached, random controls at the strength at which theirs is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t

from emoprobe.errors import InputError
from emoprobe.intervals import prediction_interval
from emoprobe.steering.dose_response import RANDOM, STEERED, Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats: TypeAlias = NDArray[np.float64]
POINTS = 5
"""Costs that are compared at unless they are given."""


def at_equal_cost(
    sweeps: Mapping[str, Sweep],
    effect: str,
    cost: str,
    costs: Sequence[float] | None = None,
    *,
    sign: int = 1,
) -> EqualCost:
    """Compare sweeps of one model at equal cost: the mean change of `effect` where that of `cost` has reached a given one.

    `sweeps` are named as they shall be shown, were run on the same prompts and measures, and are read at strengths ≥ 0, or
    with `sign=-1` ≤ 0. Between strengths both curves are taken for straight. `costs` are in the measure's units, by default
    five up to nine tenths of the most that all sweeps reach. Raises `InputError` for measures that a sweep lacks, other
    numbers of texts, and costs that are not positive.
    """
    arms = {name: _arms(name, found, effect, cost, sign) for name, found in sweeps.items()}
    if len({(own.steered.effect.shape[1], own.steered.cost.shape[1]) for own in arms.values()}) > 1:
        raise InputError("the sweeps were run on other numbers of texts: sweep the same prompts and measures")
    most = min(own.steered.highest for own in arms.values())
    chosen = [float(c) for c in (np.linspace(0, 0.9 * most, POINTS + 1)[1:] if costs is None else costs)]
    if not chosen or not all(0 < c for c in chosen) or most <= 0:
        raise InputError(
            f"costs {chosen} cannot be compared: they have to be positive, and the least costly sweep reaches {most:g}"
        )
    rows = [_row(name, own, c) for c in chosen for name, own in arms.items()]
    pairs = [
        _difference(one, other, arms[one].steered, arms[other].steered, c)
        for c in chosen
        for one, other in combinations(arms, 2)
    ]
    return EqualCost(pd.DataFrame(rows), pd.DataFrame(pairs), effect, cost)


@dataclass(frozen=True, eq=False)
class EqualCost:
    """Effects of interventions at equal cost.

    `frame` has one row per cost and sweep: cost, name, strength (at which it is reached), effect (mean change), low, high, and
    random_low, random_high, the 95 % prediction interval for one more of its random controls at the same cost. `differences`
    has one row per cost and pair: cost, one, other, difference (effect of one − of the other), low, high. Intervals are from
    the jackknife over the texts of the effect and over those of the cost, whose variances add up (Student's t). NaN where a
    cost is not reached, or not with some text left out.
    """

    frame: pd.DataFrame
    differences: pd.DataFrame
    effect: str
    cost: str

    def plot(self) -> Figure:
        """Draw effect against cost for each sweep, with its interval and the range of its random controls."""
        from emoprobe import drawing

        with drawing.styled():
            figure, axes = drawing.panels()
            axis = axes[0, 0]
            for (name, part), colour in zip(
                self.frame.groupby("name", sort=False), drawing.PALETTE, strict=False
            ):
                label = f"{name}: one more random control"
                drawing.control(axis, part.cost, low=part.random_low, high=part.random_high, label=label)
                drawing.line(
                    axis, part.cost, part.effect, part.low, part.high, label=str(name), colour=colour
                )
            drawing.zero(axis)
            axis.set_xlabel(f"cost: change of {self.cost}", parse_math=False)
            axis.set_ylabel(f"change of {self.effect}", parse_math=False)
            drawing.legend_below(figure, axis)
        return figure

    def _repr_html_(self) -> str:
        from emoprobe.notebook import shown

        return shown(repr(self), self.plot(), self.frame)

    def __repr__(self) -> str:
        said = [
            "  at {:.3g}: {} − {} {:+.3g} [{:+.3g}, {:+.3g}]".format(*row)
            for row in self.differences.itertuples(index=False)
        ]
        return "\n".join([f"<Effect on {self.effect} at equal {self.cost}>", *said])


@dataclass(frozen=True, eq=False)
class _Curves:
    """Changes with strength of one arm, each (strengths, texts), from strength 0 outward; `sizes` are |strength|."""

    sizes: Floats
    sign: int
    effect: Floats
    cost: Floats

    @property
    def highest(self) -> float:
        return float(self.cost.mean(1).max())

    def size_at(self, cost: float, weights: Floats | None = None) -> float:
        """Return |strength| at which the mean cost is first reached, or NaN; `weights` (texts,) say which texts count."""
        curve = np.maximum.accumulate(np.average(self.cost, axis=1, weights=weights))
        return float(np.interp(cost, curve, self.sizes)) if cost <= curve[-1] else math.nan

    def effect_at(self, cost: float, texts: Floats | None = None, cost_texts: Floats | None = None) -> float:
        """Return the mean effect at a cost; weights say which texts of the effect and of the cost count."""
        curve = np.average(self.effect, axis=1, weights=texts)
        return float(np.interp(self.size_at(cost, cost_texts), self.sizes, curve))


class _Arms(NamedTuple):
    """The curves of a sweep: of what was swept, and of each of its random controls."""

    steered: _Curves
    random: list[_Curves]


def _arms(name: str, found: Sweep, effect: str, cost: str, sign: int) -> _Arms:
    raw = found.changes().raw
    lacking = {effect, cost} - set(raw.measure)
    if lacking:
        raise InputError(f'the sweep "{name}" did not measure {", ".join(sorted(lacking))}')
    raw = raw[raw.strength * sign >= 0]

    def curves(part: pd.DataFrame) -> _Curves:
        of_effect, of_cost = (
            part[part.measure == measure].pivot(index="strength", columns="text", values="value").dropna()
            for measure in (effect, cost)
        )
        # Strengths pushed too hard for either are not there.
        both = of_effect.index.intersection(of_cost.index)
        both = both[np.argsort(np.abs(both))]
        sizes = np.abs(both.to_numpy(float))
        return _Curves(sizes, sign, of_effect.loc[both].to_numpy(), of_cost.loc[both].to_numpy())

    random = [curves(part) for _, part in raw[raw.condition == RANDOM].groupby("seed")]
    return _Arms(curves(raw[raw.condition == STEERED]), random)


def _row(name: str, own: _Arms, cost: float) -> dict[str, object]:
    steered = own.steered
    effect = steered.effect_at(cost)
    reach = _reach(steered.effect_at, cost, effect, steered)
    random = [curves.effect_at(cost) for curves in own.random]
    chance = prediction_interval([value for value in random if math.isfinite(value)])
    return {
        "cost": cost,
        "name": name,
        "strength": steered.sign * steered.size_at(cost),
        **{"effect": effect, "low": effect - reach, "high": effect + reach},
        **dict(zip(("random_low", "random_high"), chance, strict=True)),
    }


def _difference(one: str, other: str, a: _Curves, b: _Curves, cost: float) -> dict[str, object]:
    def apart(cost: float, texts: Floats | None = None, cost_texts: Floats | None = None) -> float:
        return a.effect_at(cost, texts, cost_texts) - b.effect_at(cost, texts, cost_texts)

    value = apart(cost)
    reach = _reach(apart, cost, value, a)
    return {
        "cost": cost,
        **{"one": one, "other": other, "difference": value, "low": value - reach, "high": value + reach},
    }


def _reach(statistic: Callable[..., float], cost: float, value: float, like: _Curves) -> float:
    """Return half the width of the 95 % interval: the jackknife's over both kinds of texts, variances added."""
    counts = like.effect.shape[1], like.cost.shape[1]
    if min(counts) < 2:
        return math.nan
    variance = 0.0
    for name, count in zip(("texts", "cost_texts"), counts, strict=True):
        without = [statistic(cost, **{name: row}) for row in 1.0 - np.eye(count)]
        variance += (count - 1) / count * float(((np.array(without) - value) ** 2).sum())
    return float(t.ppf(0.975, min(counts) - 1)) * math.sqrt(variance)
