"""What dose–response experiments share: measures, changes from the untouched model, checks, one panel of the picture.

Texts differ far more from each other than strengths do, so that everything is shown as each text's own change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pandas as pd
import torch

from emoprobe import drawing
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.steering import Measure, Sweep, coherence, read_out
from emoprobe.study.wording import plain

NLL, KL = "NLL, nats per token", "KL, nats per token"


def shared_measures(probes: ProbeSet, concepts: Sequence[str], texts: Sequence[str]) -> list[Measure]:
    """Return what every dose–response measures: NLL and KL of held-out texts, and concepts' read-outs at the last layer."""
    return [
        coherence(texts, names=(NLL, KL)),
        read_out(probes, concepts, probes.n_layers, name="read-out"),
    ]


def checks(
    model: LiveModel,
    text: str,
    apply: Callable[[float], AbstractContextManager[object]],
    symbol: str,
    strength: float,
) -> dict[str, bool]:
    """Try what must hold exactly: strength 0 changes no bit, another changes something, and nothing stays behind."""
    before = model.logits(text)
    with apply(0.0):
        at_zero = model.logits(text)
    with apply(strength):
        changed = model.logits(text)
    after = model.logits(text)
    return {
        f"{symbol} = 0 leaves every logit as it was, to the last bit": torch.equal(before, at_zero),
        f"{symbol} = {plain(strength)} changes the logits": not torch.equal(before, changed),
        "afterwards the model is the one it was": torch.equal(before, after),
    }


def change(changes: Sweep, measure: str, strength: float) -> tuple[tuple[float, float, float], list[float]]:
    """Return a measure's mean change at a strength with its interval over texts, and the mean change of each control."""
    frame = changes.frame
    here = frame[(frame.measure == measure) & (frame.strength == strength)]
    steered = here[here.condition == "steered"].iloc[0]
    random = here[here.condition == "random"].value.tolist()
    return (steered.value, steered.low, steered.high), random or [float("nan")]


def draw_dose(axis: Any, frame: pd.DataFrame, label: str) -> None:
    """Draw one measure of a sweep against strength, with the range of its random controls."""
    random = frame[frame.condition == "random"].groupby("strength").value.agg(["min", "max"])
    if len(random):
        drawing.control(
            axis, random.index.tolist(), low=random["min"], high=random["max"], label="random, range"
        )
    steered = frame[frame.condition == "steered"].sort_values("strength")
    drawing.line(axis, steered.strength, steered.value, steered.low, steered.high, label=label)
    drawing.zero(axis)
    drawing.zero(axis, vertical=True)
