"""What dose–response experiments share: changes from the untouched model, and one panel of the picture.

Texts differ far more from each other than strengths do, so that everything is shown as each text's own change.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from emoprobe import drawing
from emoprobe.steering import Sweep


def from_untouched(found: Sweep) -> Sweep:
    """Return the sweep of each text's change from its value at strength 0, which has to be among the strengths."""
    raw = found.raw
    keys = ["condition", "measure", "text"]
    untouched = raw[raw.strength == 0].drop_duplicates(keys).set_index(keys).value
    before = untouched.reindex(pd.MultiIndex.from_frame(raw[keys])).to_numpy()
    return Sweep(raw.assign(value=raw.value - before), found.subject, found.model)


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
