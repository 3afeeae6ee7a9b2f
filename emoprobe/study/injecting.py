"""What does the valuation do when it enters the attention, and is it more than any valuation of its size would do?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from emoprobe import drawing
from emoprobe.corpora import Corpus
from emoprobe.intervals import prediction_interval
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.steering import Sweep, sweep
from emoprobe.study.dose import KL, NLL, change, checks, draw_dose, shared_measures
from emoprobe.study.result import Result
from emoprobe.study.texts import counted, readable_part
from emoprobe.study.wording import beside_one_more, listed, number, one_more, plain, ranged, span
from emoprobe.valattn import Valuation, inject

STRENGTHS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
CONTROLS = 10
TEXTS = 16
READ = 3
"""Dimensions that are read out."""


def injecting(
    model: LiveModel,
    valuation: Valuation,
    probes: ProbeSet,
    held_out: Corpus,
    *,
    strengths: Sequence[float] = STRENGTHS,
    controls: int = CONTROLS,
    seed: int = 0,
) -> Result:
    """Add λ·V_Q·V_Kᵀ to the attention of every block that the valuation has, and measure on held-out texts."""
    part = readable_part(model, held_out, TEXTS, seed)
    read = valuation.dimensions[:READ]
    measures = shared_measures(probes, read, part.texts)
    found = sweep(
        model, valuation, strengths, part.texts, measures, controls=controls, seed=seed + 1, progress=False
    )
    highest = max(strengths)
    changes = found.changes()
    cost, chance = change(changes, NLL, highest)
    read_outs = found.summary().set_index("measure").beside_random.drop([NLL, KL])
    steered = found.frame[(found.frame.condition == "steered") & (found.frame.measure == NLL)]
    lowest = float(steered.sort_values("value").strength.iloc[0])
    return Result(
        name="injecting",
        title="Putting the valuation into attention",
        question=(
            "Does λ·V_Q·V_Kᵀ in the attention scores change prediction, and what is read out later, by more than any valuation "
            "of its size would?"
        ),
        method=(
            f"λ from {plain(min(strengths))} to {plain(highest)} in all {len(valuation.layers)} blocks at once, on "
            f"{counted(part)}, taken for independent; beside it {controls} random valuations of equal norm, and the 95 % "
            f"prediction interval of one more. The NLL is judged at λ = {plain(highest)} alone (the figure has it at every "
            "λ), read-outs, those of the last layer, by their trends."
        ),
        table=found.frame,
        finding=f"ΔNLL at λ = {plain(highest)}: {span(*cost, digits=3, sign=True)} nats per token, interval over texts",
        controls=f"{controls} random valuations {one_more(chance, 3)}",
        sign=_sign(cost, chance, read_outs),
        parts={
            f"the change of prediction at λ = {plain(highest)}": bool(_beyond(cost, chance)),
            **{f"the trend of the {measure}": bool(how) for measure, how in read_outs.items()},
        },
        verdict=(
            f"{_answer(cost, chance, read_outs, highest)} {_price(cost, chance, highest)} "
            f"Of the λ tried the NLL is lowest at λ = {plain(lowest)}"
            f"{', the untouched model' if lowest == 0 else ''}. "
            f"{_trends(read_outs, controls)}"
        ),
        checks=checks(model, part.texts[0], lambda strength: inject(model, valuation, strength), "λ", 1.0),
        figure=_figure(changes),
        alt="How NLL, KL and read-outs change from the untouched model as λ changes, for the probed valuation and random ones.",
    )


def _beyond(cost: tuple[float, float, float], chance: Sequence[float]) -> int:
    """Return 1 where the NLL rises by more than one more random valuation may make it, -1 where it falls so, 0 otherwise."""
    value, low, high = cost
    least, most = prediction_interval(chance)
    return int(low > 0 and value > most) - int(high < 0 and value < least)


def _sign(
    cost: tuple[float, float, float], chance: Sequence[float], beside_random: pd.Series[str]
) -> int | None:
    """Return 1 where prediction and all read-outs change unlike under random valuations; None where it cannot be told."""
    if np.isnan([*cost, *prediction_interval(chance)]).any():
        return None
    return int(bool(_beyond(cost, chance)) and bool((beside_random != "").all()))


def _answer(
    cost: tuple[float, float, float], chance: Sequence[float], beside_random: pd.Series[str], strength: float
) -> str:
    """Say whether prediction, at one λ, and read-outs, over all, change otherwise than under random valuations."""
    if _sign(cost, chance, beside_random) is None:
        return "Cannot be told: there are too few texts, or too few random valuations to compare with."
    nll = {
        1: "Prediction becomes worse by more than random valuations make it",
        -1: "Prediction becomes better than random valuations make it",
        0: "Prediction is not shown to change otherwise than under random valuations",
    }[_beyond(cost, chance)]
    unlike = int((beside_random != "").sum())
    how = f"follow{'s' * (unlike < 2)} λ otherwise than under random valuations"
    return f"{nll}, which is told at λ = {plain(strength)} alone; of {len(beside_random)} read-outs {unlike or 'none'} {how}."


def _price(cost: tuple[float, float, float], chance: Sequence[float], strength: float) -> str:
    """Say how the change of the NLL, with its interval over texts, lies to those that random valuations bring about."""
    return (
        f"At λ = {plain(strength)} the valuation changes the NLL by {span(*cost, digits=3, sign=True)} nats per token (mean "
        f"and interval over texts), random ones by {ranged(chance, 3, True)}: "
        f"{beside_one_more(cost[0], chance, 'random valuation', 3)}."
    )


def _trends(beside_random: pd.Series[str], controls: int) -> str:
    """Say which read-outs go with λ as random valuations' do not; `beside_random` is that of the sweep's summary."""
    if controls < 2:
        return "With so few random valuations no trend can be judged."
    unlike = beside_random[beside_random != ""]
    many = len(beside_random)
    by_chance = f"by chance {number(0.05 * many)} of {many} would differ"
    if unlike.empty:
        return f"Trends of read-outs with λ differ from those of random valuations in 0 of {many}: a null result ({by_chance})."
    which = [f"{measure} ({how} random ones)" for measure, how in unlike.items()]
    return (
        f"Trends of read-outs with λ differ from those of random valuations in {len(unlike)} of {many}, {by_chance}: "
        f"{listed(which)}."
    )


@drawing.styled()
def _figure(changes: Sweep) -> Any:
    measures = list(changes.frame.measure.unique())
    columns = 3
    figure, axes = drawing.panels(-(-len(measures) // columns), columns, height=2.1)
    for axis, measure in zip(axes.flat, measures, strict=False):
        draw_dose(axis, changes.frame[changes.frame.measure == measure], label="probed, 95 % interval")
        axis.set_title(f"Δ {measure}")
        axis.set_xlabel("λ")
    for axis in axes.flat[len(measures) :]:
        axis.remove()
    drawing.legend_below(figure, axes.flat[0])
    return figure
