"""What does the valuation do when it enters the attention, and is it more than any valuation of its size would do?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from emoprobe import drawing
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.steering import Sweep, sweep
from emoprobe.study.dose import change, draw_dose
from emoprobe.study.measures import NLL, prediction, read_outs
from emoprobe.study.result import Result
from emoprobe.study.wording import listed, number, span
from emoprobe.valattn import Valuation, inject

STRENGTHS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
CONTROLS = 5
READ = 3
"""Dimensions that are read out."""


def injecting(
    model: LiveModel,
    valuation: Valuation,
    probes: ProbeSet,
    texts: Sequence[str],
    *,
    strengths: Sequence[float] = STRENGTHS,
    controls: int = CONTROLS,
    seed: int = 0,
) -> Result:
    """Add λ·V_Q·V_Kᵀ to the attention of every block that the valuation has, and measure on held-out `texts`."""
    measures = [prediction(texts), read_outs(probes, valuation.dimensions[:READ], model.n_layers)]
    found = sweep(
        model, valuation, strengths, texts, measures, controls=controls, seed=seed + 1, progress=False
    )
    highest = max(strengths)
    cost, chance = change(found, NLL, highest)
    judged = found.summary()
    specific = judged[judged.verdict.str.contains("unlike random")].measure.tolist()
    best = found.frame[(found.frame.condition == "steered") & (found.frame.measure == NLL)]
    lowest = float(best.loc[best.value.idxmin(), "strength"])
    return Result(
        name="injecting",
        title="Putting the valuation into attention",
        question="What does λ·V_Q·V_Kᵀ in the attention scores do to prediction and to what is read out later?",
        method=(
            f"λ from {min(strengths):g} to {highest:g} in all {len(valuation.layers)} blocks at once, on {len(texts)} held-out "
            f"texts; beside it {controls} random valuations of equal norm. Read-outs are those of the last layer."
        ),
        table=found.frame,
        finding=f"ΔNLL at λ = {highest:g}: {span(*cost, digits=3, sign=True)} nats per token",
        controls=f"random valuations {number(min(chance), 3, True)} to {number(max(chance), 3, True)}",
        verdict=(
            f"At λ = {highest:g} the valuation changes the NLL by {span(*cost, digits=3, sign=True)} nats per token, random ones by "
            f"{number(min(chance), 3, True)} to {number(max(chance), 3, True)}: "
            f"{_compared(cost[0], chance)}. The NLL is lowest at λ = {lowest:g}"
            f"{', the untouched model' if lowest == 0 else ''}. "
            + (
                f"Trends with λ that random valuations do not show: {listed(specific)}."
                if specific
                else "No measure has a trend with λ that random valuations do not show as well: a null result."
            )
        ),
        checks=_checks(model, valuation, texts[0]),
        figure=_figure(found),
        alt="NLL, KL to the untouched model and read-outs against λ, for the probed valuation and random ones.",
    )


def _compared(value: float, chance: Sequence[float]) -> str:
    if value < min(chance):
        return "less than any of these"
    return "more than any of these" if value > max(chance) else "no more than these"


def _checks(model: LiveModel, valuation: Valuation, text: str) -> dict[str, bool]:
    """Try what must hold exactly: λ = 0 changes no bit, λ = 1 changes something, and nothing stays behind."""
    before = model.logits(text)
    with inject(model, valuation, 0.0):
        at_zero = model.logits(text)
    with inject(model, valuation, 1.0):
        at_one = model.logits(text)
    after = model.logits(text)
    return {
        "λ = 0 leaves every logit as it was, to the last bit": torch.equal(before, at_zero),
        "λ = 1 changes the logits": not torch.equal(before, at_one),
        "afterwards the model is the one it was": torch.equal(before, after),
    }


@drawing.styled()
def _figure(found: Sweep) -> Any:
    measures = list(found.frame.measure.unique())
    columns = 3
    figure, axes = drawing.panels(-(-len(measures) // columns), columns, height=2.1)
    for axis, measure in zip(axes.flat, measures, strict=False):
        draw_dose(axis, found.frame[found.frame.measure == measure], label="probed, 95 % interval")
        axis.set_title(measure, parse_math=False)
        axis.set_xlabel("λ")
    for axis in axes.flat[len(measures) :]:
        axis.remove()
    drawing.legend_below(figure, axes.flat[0])
    return figure
