"""Does adding an emotion's direction to the residual stream make the model go on as that emotion would?

By what this is told is in `outcomes`. Two controls stand beside: random directions of equal norm, the same ones for all
concepts, and the other concepts' directions, since any emotion might do what one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from emoprobe import drawing
from emoprobe.corpora import Corpus
from emoprobe.intervals import Floats, mean_interval, prediction_interval
from emoprobe.layers import nearest_to_depth
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.steering import Measure, Sweep, steer, sweep
from emoprobe.study.dose import NLL, change, checks, draw_dose, shared_measures
from emoprobe.study.outcomes import MEASURED, MOST, READ_OUT, called, left_out, outcomes_of
from emoprobe.study.result import Result
from emoprobe.study.texts import counted, readable_part
from emoprobe.study.wording import beside_one_more, listed, number, one_more, plain, ranged, span

STRENGTHS = (-0.1, -0.05, 0.0, 0.05, 0.1)
CONTROLS = 10
TEXTS = 16


Interval = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Steered:
    """One concept's dose–response; `outcome` is the measure that says whether the model goes on as the concept would.

    `others` holds by how much other concepts' directions change that outcome at the highest strength.
    """

    concept: str
    outcome: str
    found: Sweep
    others: pd.Series[float]

    @cached_property
    def changes(self) -> Sweep:
        """The same as changes from the untouched model."""
        return self.found.changes()

    @cached_property
    def judged(self) -> pd.Series[Any]:
        """The outcome's row of the sweep's summary."""
        part = self.found.raw[self.found.raw.measure == self.outcome]
        return Sweep(part, self.concept, self.found.model).summary().iloc[0]

    @property
    def monotone(self) -> bool:
        """Whether the outcome only rises over the whole range of strengths."""
        judged, strengths = self.judged, self.found.raw.strength
        whole = (judged.monotone_from, judged.monotone_to) == (strengths.min(), strengths.max())
        return bool(judged.slope > 0 and whole)

    @property
    def specific(self) -> bool:
        """Whether it rises, and by more than one more random direction may be expected to."""
        judged = self.judged
        return bool(judged.low > 0 and judged.slope > judged.random_high)

    @property
    def wrong(self) -> bool:
        """Whether the outcome falls at the highest strength."""
        (change_by_own, _, _), _ = change(self.changes, self.outcome, self.found.raw.strength.max())
        return bool(change_by_own < 0)

    @property
    def own(self) -> bool:
        """Whether no other concept's direction raises the outcome as much."""
        (change_by_own, _, _), _ = change(self.changes, self.outcome, self.found.raw.strength.max())
        return bool((change_by_own > self.others).all())


def steering(
    model: LiveModel,
    probes: ProbeSet,
    held_out: Corpus,
    *,
    layer: int | None = None,
    strengths: Sequence[float] = STRENGTHS,
    controls: int = CONTROLS,
    recovery: bool = False,
    seed: int = 0,
) -> Result:
    """Steer with each concept at `layer` and measure what follows, what is read later, and what it costs.

    `layer` is by default the one nearest to two thirds of the depth. With `recovery` the emotions' consequences are known to
    be in the model, and that they follow is a check.
    """
    layer = nearest_to_depth(probes.layers, model.n_layers) if layer is None else layer
    chosen = readable_part(model, held_out, TEXTS, seed)
    texts = chosen.texts
    what, outcomes, after = outcomes_of(model, probes, held_out, chosen, seed)
    steered = _sweeps(model, probes, outcomes, texts, layer, strengths, controls, seed)
    highest, names = max(strengths), [part.concept for part in steered]
    changes = [change(part.changes, part.outcome, highest) for part in steered]
    effect = mean_interval([mean for (mean, _, _), _ in changes])
    chance = np.array([random for _, random in changes]).mean(0)
    monotone = [part.concept for part in steered if part.monotone]
    own = [part.concept for part in steered if part.own]
    others = np.concatenate([part.others for part in steered])
    own_less = (
        mean_interval(
            [mean - part.others.mean() for ((mean, _, _), _), part in zip(changes, steered, strict=True)]
        )
        if len(others)
        else None
    )
    first = probes[steered[0].concept]
    held = checks(model, texts[0], lambda strength: steer(model, first, strength, layers=layer), "s", 0.1)
    if recovery:
        wanted = len(steered) - 2
        held[f"{what} become likelier monotonically, for {wanted} emotions or more"] = len(monotone) >= wanted
        beaten = [low > max(random) for (_, low, _), random in changes]
        held[f"and by more than with any random direction, for {wanted} or more"] = sum(beaten) >= wanted
        held[f"and by more than with any other emotion's, for {wanted} or more"] = len(own) >= wanted
    unit = "" if what == READ_OUT else " nats"
    costs = [change(part.changes, NLL, highest) for part in steered]
    cost = mean_interval([mean for (mean, _, _), _ in costs])
    kinds = [probes.kinds[part.concept] for part in steered]
    return Result(
        name="steering",
        title="Steering with directions",
        question=f"Does adding an emotion's direction to the residual stream raise {MEASURED[what]}?",
        method=(
            f"Each direction added at layer {layer} at {listed([plain(s) for s in strengths])} of the mean "
            f"residual norm: {MEASURED[what]} over {after}, read-outs at layer {model.n_layers}, NLL and KL on "
            f"{counted(chosen)}; beside it {controls} random directions of equal norm and, at s = {plain(highest)}, other "
            f"concepts' directions. Steered with are {_steered_with(steered, kinds)}. {left_out(probes, what, names)} Texts "
            "and beginnings are taken for independent."
        ),
        table=pd.concat(
            [part.found.frame.assign(concept=part.concept) for part in steered], ignore_index=True
        ),
        finding=f"{span(*effect, sign=True)}{unit} at s = {highest:g}, {_over(steered)}",
        controls=f"random directions {one_more(chance, unit=unit)}"
        + (
            f"; own direction less the mean of other concepts' {span(*own_less, sign=True)}{unit}"
            if own_less
            else ""
        ),
        sign=_sign(effect, chance, own_less),
        parts=_parts(effect, chance, own_less),
        verdict=f"{_answer(effect, chance, own_less, MEASURED[what], steered)} "
        + _verdict(steered, MEASURED[what], unit, after, effect, chance.tolist(), cost, costs[0][1], kinds),
        checks=held,
        figure=_figure(steered),
        alt=(
            f"How much {MEASURED[what]} changes with strength for each concept, beside the range of random directions and what "
            "other concepts' directions do."
        ),
    )


def _sign(effect: Interval, chance: Floats, own_less: Interval | None) -> int | None:
    """Return 1 where the outcome rises beyond random and other concepts' directions, -1 where it falls beyond random ones.

    None where there is no interval to judge by.
    """
    least, most = prediction_interval(chance)
    if np.isnan([*effect, *(own_less or ()), least, most]).any():
        return None
    value, low, high = effect
    if high < 0 and value < least:
        return -1
    return int(low > 0 and value > most and (own_less is None or own_less[1] > 0))


def _parts(effect: Interval, chance: Floats, own_less: Interval | None) -> dict[str, bool]:
    """Return what is asked, each on average over concepts: that the outcome rises, and beyond which controls."""
    value, low, _ = effect
    parts = {
        "it rises": low > 0,
        "by more than with random directions": value > prediction_interval(chance)[1],
    }
    if own_less is not None:
        parts["by more than with other concepts' directions"] = own_less[1] > 0
    return {part: bool(held and low > 0) for part, held in parts.items()}


def _answer(
    effect: Interval, chance: Floats, own_less: Interval | None, what: str, steered: Sequence[Steered]
) -> str:
    """Say whether concepts' directions raise what they should, and whether random or other concepts' directions do as much.

    What holds on average is followed by how many single concepts it holds for.
    """
    sign = _sign(effect, chance, own_less)
    if sign is None:
        return "Cannot be told: there are too few concepts, or too few random directions to compare with."
    if sign:
        how = "raises" if sign > 0 else "lowers"
        beyond = " and by more than other concepts' do" if sign > 0 and own_less else ""
        average = f"A concept's direction {how} {what} by more than random directions do{beyond}, on average over concepts"
        specific, own = sum(part.specific for part in steered), sum(part.own for part in steered)
        single = f"; taken singly, it rises by more than with one more random direction for {specific} of {len(steered)}"
        best = f", and its own direction raises it most for {own} of {len(steered)}" if own_less else ""
        return f"{average}{single}{best}."
    value, low, _ = effect
    if not low > 0:
        return f"On average over concepts a direction is not shown to raise {what}."
    as_much = [
        name
        for name, beaten in (
            ("random directions", value > prediction_interval(chance)[1]),
            ("other concepts' directions", own_less is None or own_less[1] > 0),
        )
        if not beaten
    ]
    return f"A concept's direction raises {what}, but {listed(as_much)} may do as much."


def _verdict(
    steered: Sequence[Steered],
    what: str,
    unit: str,
    after: str,
    effect: tuple[float, float, float],
    chance: Sequence[float],
    cost: tuple[float, float, float],
    random_costs: Sequence[float],
    kinds: Sequence[str],
) -> str:
    """Say what was found; `effect` and `cost` are means over concepts with their intervals, `chance` has random directions'.

    `random_costs` are random directions' costs, and `kinds` says which concepts are dimensions.
    """
    strengths = steered[0].found.raw.strength
    lowest, highest = plain(strengths.min()), plain(strengths.max())
    others = np.concatenate([part.others for part in steered])
    said = [
        f"At s = {highest} {what} changes by {span(*effect, sign=True)}{unit} ({_over(steered)}), with random directions by "
        f"{ranged(chance, sign=True)} (means over the same concepts): "
        f"{beside_one_more(effect[0], chance, 'random direction')}.",
        *_emotions_alone(steered, kinds, unit),
        f"It rises monotonically with s from {lowest} to {highest} for "
        f"{_which(steered, [part.concept for part in steered if part.monotone])}.",
        "It rises on the whole, by more than one more random direction may be expected to, for "
        f"{_which(steered, [part.concept for part in steered if part.specific])} (slopes over {after}; by chance 1 in 40 "
        "would).",
    ]
    if len(others):
        own = [part.concept for part in steered if part.own]
        said.append(
            f"Other concepts' directions change it by {ranged(others, sign=True)}{unit} (single concepts); the concept's own "
            f"raises it most for {_which(steered, own)} (by chance 1 in {len(steered[0].others) + 1} would)."
        )
    wrong = [part.concept for part in steered if part.wrong]
    if wrong:
        said.append(f"At s = {highest} it falls instead of rising for {_which(steered, wrong)}.")
    said.append(
        f"The price at s = {highest} is {span(*cost, digits=3, sign=True)} nats of NLL per token ({_over(steered)}); random "
        f"directions of equal norm cost {number(float(np.mean(random_costs)), 3, True)} on average "
        f"({ranged(random_costs, 3, True)}). More at equal norm is not more at equal cost, which is not measured here."
    )
    return " ".join(said)


def _steered_with(steered: Sequence[Steered], kinds: Sequence[str]) -> str:
    """Name the concepts, and which of them are dimensions."""
    dimensions = [part.concept for part, kind in zip(steered, kinds, strict=True) if kind == "dimension"]
    emotions = [part.concept for part in steered if part.concept not in dimensions]
    named = [f"the dimensions {listed(dimensions)}"] if len(dimensions) > 1 else dimensions
    return listed([*named, *emotions], MOST)


def _emotions_alone(steered: Sequence[Steered], kinds: Sequence[str], unit: str) -> list[str]:
    """Give the mean over emotions where dimensions, which have two ends to tell apart, are steered with too."""
    emotions = [part for part, kind in zip(steered, kinds, strict=True) if kind != "dimension"]
    if not emotions or len(emotions) == len(steered):
        return []
    highest = steered[0].found.raw.strength.max()
    changes = [change(part.changes, part.outcome, highest)[0][0] for part in emotions]
    mean = span(*mean_interval(changes), sign=True)
    return [f"Over the {len(emotions)} emotions alone, without dimensions, it is {mean}{unit}."]


def _over(steered: Sequence[Steered]) -> str:
    """Name what a mean and its interval are over."""
    return f"mean of {len(steered)} concepts, interval over concepts" if len(steered) > 1 else "one concept"


def _which(steered: Sequence[Steered], concepts: Sequence[str]) -> str:
    """Say how many concepts these are, and which if neither all nor none."""
    if not concepts or len(concepts) == len(steered):
        return f"{'all' if concepts else 'none'} of {len(steered)}"
    return f"{len(concepts)} of {len(steered)} ({listed(concepts, MOST)})"


# Sweeping ------------------------------------------------------------------------------------------------------------


def _sweeps(
    model: LiveModel,
    probes: ProbeSet,
    outcomes: dict[str, Measure | None],
    texts: Sequence[str],
    layer: int,
    strengths: Sequence[float],
    controls: int,
    seed: int,
) -> list[Steered]:
    """Steer with each concept, and with random directions once for all of them."""
    names = list(outcomes)
    shared = shared_measures(probes, names, texts)

    def run(concept: str, measures: Sequence[Measure | None], controls: int) -> pd.DataFrame:
        asked = [*shared, *(measure for measure in measures if measure is not None)]
        options: dict[str, Any] = {"layers": layer, "controls": controls, "seed": seed + 1, "progress": False}
        return sweep(model, probes[concept], strengths, texts, asked, **options).raw

    everything = run(names[0], list(outcomes.values()), controls)
    random = everything[everything.condition == "random"]
    asked = [shared[1], *(measure for measure in outcomes.values() if measure is not None)]
    crossed = _crossed(model, probes, names, asked, texts, layer, max(strengths))
    result = []
    for name, measure in outcomes.items():
        own = run(name, [measure], 0) if name != names[0] else everything[everything.condition == "steered"]
        read_out = f"{name} read-out"
        outcome = read_out if measure is None else called(name)
        raw = pd.concat([own, random], ignore_index=True)
        raw = raw[raw.measure.isin([outcome, read_out]) | raw.measure.str.contains("nats per token")]
        result.append(Steered(name, outcome, Sweep(raw, name, model.name), crossed[outcome].drop(name)))
    return result


def _crossed(
    model: LiveModel,
    probes: ProbeSet,
    concepts: Sequence[str],
    measures: Sequence[Measure],
    texts: Sequence[str],
    layer: int,
    strength: float,
) -> pd.DataFrame:
    """Return by how much each concept's direction (rows) changes each outcome (columns), on average over prompts."""

    def means() -> pd.Series[float]:
        found = {name: values for measure in measures for name, values in measure(model, texts).items()}
        return pd.Series({name: float(values.mean()) for name, values in found.items()})

    untouched, changes = means(), {}
    for name in concepts:
        with steer(model, probes[name], strength, layers=layer):
            changes[name] = means() - untouched
    return pd.DataFrame.from_dict(changes, orient="index")


@drawing.styled()
def _figure(steered: Sequence[Steered]) -> Any:
    columns = min(4, len(steered))
    rows = -(-len(steered) // columns)
    figure, axes = drawing.panels(rows, columns, height=1.75, sharex=True, sharey=True)
    for axis, part in zip(axes.flat, steered, strict=False):
        frame = part.changes.frame
        draw_dose(axis, frame[frame.measure == part.outcome], label="steered, 95 % interval")
        if len(part.others):
            highest = [frame.strength.max()] * len(part.others)
            axis.plot(highest, part.others, "_", color=drawing.CONTROL, label="other concepts' directions")
        axis.set_title(part.concept)
    for axis in axes.flat[len(steered) :]:
        axis.remove()
    for axis in axes[:, 0]:
        axis.set_ylabel("Δ log P, nats" if steered[0].outcome.startswith("log P") else "Δ read-out")
    for axis in axes[-1, : len(steered) - (rows - 1) * columns]:
        axis.set_xlabel("strength s")
    drawing.legend_below(figure, axes.flat[0])
    return figure
