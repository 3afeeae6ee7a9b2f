"""What dose–response experiments share: how much changed, and one panel of the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from emoprobe import drawing
from emoprobe.steering import Sweep
from emoprobe.study.wording import Floats, bootstrap


def change(found: Sweep, measure: str, strength: float) -> tuple[tuple[float, float, float], list[float]]:
    """Return how much a measure changes from strength 0 to `strength`: mean with interval over texts, and each control's."""
    raw = found.raw[found.raw.measure == measure]

    def difference(part: pd.DataFrame) -> Floats:
        values = part.pivot(index="strength", columns="text", values="value")
        return np.asarray(values.loc[strength] - values.loc[0.0], dtype=float)

    steered = bootstrap(difference(raw[raw.condition == "steered"]))
    random = [float(difference(part).mean()) for _, part in raw[raw.condition == "random"].groupby("seed")]
    return steered, random or [float("nan")]


def draw_dose(axis: Any, frame: pd.DataFrame, label: str) -> None:
    """Draw one measure of a sweep against strength, with the range of its random controls."""
    random = frame[frame.condition == "random"].groupby("strength").value.agg(["min", "max"])
    if len(random):
        drawing.control(axis, random.index.tolist(), low=random["min"], high=random["max"], label="random, range")
    steered = frame[frame.condition == "steered"].sort_values("strength")
    drawing.line(axis, steered.strength, steered.value, steered.low, steered.high, label=label)
    drawing.zero(axis, vertical=True)
