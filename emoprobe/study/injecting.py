"""What does the valuation do when it enters the attention, and is it more than any valuation of its size would do?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emoprobe import drawing
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.steering import Sweep, sweep
from emoprobe.study.dose import NLL, change, checks, draw_dose, from_untouched, shared_measures
from emoprobe.study.result import Result
from emoprobe.study.wording import listed, plain, ranged, span
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
    measures = shared_measures(probes, valuation.dimensions[:READ], texts)
    found = sweep(
        model, valuation, strengths, texts, measures, controls=controls, seed=seed + 1, progress=False
    )
    highest = max(strengths)
    changes = from_untouched(found)
    cost, chance = change(changes, NLL, highest)
    judged = found.summary()
    specific = judged[judged.verdict.str.contains("unlike random")].measure.tolist()
    best = found.frame[(found.frame.condition == "steered") & (found.frame.measure == NLL)]
    lowest = float(best.sort_values("value").strength.iloc[0])
    return Result(
        name="injecting",
        title="Putting the valuation into attention",
        question="What does λ·V_Q·V_Kᵀ in the attention scores do to prediction and to what is read out later?",
        method=(
            f"λ from {plain(min(strengths))} to {plain(highest)} in all {len(valuation.layers)} blocks at once, on "
            f"{len(texts)} held-out texts; beside it {controls} random valuations of equal norm. Read-outs are those of the "
            "last layer."
        ),
        table=found.frame,
        finding=f"ΔNLL at λ = {plain(highest)}: {span(*cost, digits=3, sign=True)} nats per token",
        controls=f"random valuations {ranged(chance, 3, True)}",
        verdict=(
            f"At λ = {plain(highest)} the valuation changes the NLL by {span(*cost, digits=3, sign=True)} nats per token, "
            f"random ones by {ranged(chance, 3, True)}: {_compared(cost[0], chance)}. The NLL is lowest at λ = {plain(lowest)}"
            f"{', the untouched model' if lowest == 0 else ''}. "
            + (
                f"Trends with λ that random valuations do not show: {listed(specific)}."
                if specific
                else "No measure has a trend with λ that random valuations do not show as well: a null result."
            )
        ),
        checks=checks(model, texts[0], lambda strength: inject(model, valuation, strength), "λ", 1.0),
        figure=_figure(changes),
        alt="How NLL, KL and read-outs change from the untouched model as λ changes, for the probed valuation and random ones.",
    )


def _compared(value: float, chance: Sequence[float]) -> str:
    if value < min(chance):
        return "less than any of these"
    return "more than any of these" if value > max(chance) else "no more than these"


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
