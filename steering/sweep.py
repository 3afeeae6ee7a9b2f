"""Dose–response: what happens as the strength of an intervention grows, beside random ones of equal norm.

`sweep` runs measures (see `emoprobe.steering.measures`) at each strength, under the intervention and under random
directions or valuations, and keeps every text's value; tables, intervals and the picture all come from those. It knows
nothing of what is measured. The random controls are there because any push of the same size might do as much.

Intervals over texts are Student's t and take the texts for independent: give one text per document (writer, world, thread),
or few of each, since texts of one document go alike and intervals would come out too narrow.
"""

from __future__ import annotations

import base64
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from itertools import product
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.progress import track
from scipy.stats import spearmanr
from torch import Tensor

from emoprobe.controls import turned_at_random
from emoprobe.errors import InputError
from emoprobe.intervals import mean_interval, prediction_interval
from emoprobe.interventions import Intervention, Positions
from emoprobe.layers import Layers
from emoprobe.models import LiveModel
from emoprobe.steering.edits import add
from emoprobe.steering.measures import Measure
from emoprobe.steering.vectors import Vector
from emoprobe.valattn import Valuation, biases

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats: TypeAlias = NDArray[np.float64]
STEERED, RANDOM = "steered", "random"


class NonFiniteWarning(UserWarning):
    """A measure gave numbers that are not finite, and they were recorded as NaN."""


def sweep(
    model: LiveModel,
    intervention: Vector | Valuation,
    strengths: Sequence[float],
    prompts: Sequence[str],
    measures: Sequence[Measure],
    *,
    layers: Layers | None = None,
    positions: Positions = "all",
    controls: int = 5,
    seed: int = 0,
    progress: bool = True,
) -> Sweep:
    """Measure a model at each strength of an intervention, and of `controls` random ones of equal norm.

    `intervention` is a direction or bare tensor, which is added to the residual stream (strengths are fractions of the mean
    residual norm, see `emoprobe.steering.add`), or a valuation, which biases attention (strengths are λ). `layers` is 0.66
    by default for the former and all that it has for the latter. `measures` read `prompts`, or texts of their own; each is
    first taken of the untouched model, and those are the values at strength 0. `positions` is a name or character spans
    that fit every text; a valuation has none. Controls are `intervention.random_like(seed)` and the seeds that follow.

    Raises `InputError` for strengths that are not finite, measures of the same name, and what `add` and `inject` refuse.
    Numbers that are not finite, as a model pushed too hard gives, become NaN with a `NonFiniteWarning`.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    _interventions(model, intervention, 0.0, layers, positions)  # what cannot be placed is refused at once
    arms: list[tuple[str, int | None, Vector | Valuation]] = [(STEERED, None, intervention)]
    arms += [(RANDOM, number, _random_like(intervention, number)) for number in range(seed, seed + controls)]
    runs = [
        (strength, condition, number, _interventions(model, item, strength, layers, positions))
        for strength, (condition, number, item) in product(_checked(strengths), arms)
    ]
    untouched = _measured(model, prompts, measures)
    rows: list[tuple[object, ...]] = []
    for strength, condition, number, interventions in track(
        runs, "sweeping", disable=not progress, transient=True
    ):
        values = untouched
        if strength != 0:
            with model.intervene(*interventions):
                values = _measured(model, prompts, measures)
        for measure, found in values.items():
            _warn_unless_finite(found, measure, strength, condition)
            kept = np.where(np.isfinite(found), found, np.nan)
            rows += [(strength, condition, number, measure, text, value) for text, value in enumerate(kept)]
    raw = pd.DataFrame(rows, columns=["strength", "condition", "seed", "measure", "text", "value"])
    return Sweep(raw.astype({"seed": "Int64"}), _subject(intervention), model.name)


@dataclass(frozen=True, eq=False)
class Sweep:
    """A dose–response experiment.

    `raw` has one row per strength, condition ("steered" or "random"), seed (of a random control, else missing), measure and
    text (its number among the prompts, or among the measure's own texts), and its `value`. All else is computed from it.
    """

    raw: pd.DataFrame
    subject: str
    model: str

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per strength, condition, seed and measure: the mean over texts and its 95 % interval.

        The interval is Student's t over texts that are taken for independent; NaN for a single text.
        """
        keys = ["strength", "condition", "seed", "measure"]
        rows = [
            (*key, *mean_interval(group["value"].to_numpy()))
            for key, group in self.raw.groupby(keys, sort=False, dropna=False)
        ]
        return pd.DataFrame(rows, columns=[*keys, "value", "low", "high"]).astype({"seed": "Int64"})

    def summary(self) -> pd.DataFrame:
        """Return one row per measure: how it goes with strength, and whether random controls do the same.

        `slope` is that of the least-squares line through the means, per unit of strength, `low` and `high` its 95 % interval
        over texts (Student's t; texts are taken for independent; NaN for one text). `spearman` correlates means with
        strengths; `monotone_from` and `monotone_to` bound the widest range of strengths over which the mean only rises or
        only falls. `random_low` and `random_high` are the 95 % prediction interval for the slope of one more random control,
        from those that were run. `beside_random` says how a slope outside of it lies: "steeper than", "flatter than" or "the
        other way from" random controls'; it is empty within, and where that cannot be told. Strengths with NaN are left out.
        """
        return pd.DataFrame(
            [_judge(measure, part) for measure, part in self.raw.groupby("measure", sort=False)]
        )

    def plot(self) -> Figure:
        """Draw each measure against strength: mean and interval, and the random controls with their range."""
        from emoprobe import drawing

        measures = list(self.frame["measure"].unique())
        with drawing.styled():
            figure, axes = drawing.tiled(len(measures))
            for measure, axis in zip(measures, axes, strict=True):
                _draw(axis, self.frame[self.frame["measure"] == measure])
                axis.set_title(measure, parse_math=False)
            figure.suptitle(f"{self.subject} in {self.model}", parse_math=False)
            drawing.legend_below(figure, figure.axes[0])
        return figure

    def __repr__(self) -> str:
        verdicts = [
            f"  {row.measure}: {self._at_highest(row.measure)}; {row.verdict}"
            for row in self.summary().itertuples()
        ]
        return "\n".join([f"<Sweep of {self.subject} in {self.model}>", *verdicts])

    def _at_highest(self, measure: object) -> str:
        """Say what the measure is at the highest strength, beside the untouched model and the random controls."""
        rows = self.frame[self.frame["measure"] == measure]
        highest = rows["strength"].max()
        here, before = rows[rows["strength"] == highest], rows[rows["strength"] == 0]
        steered = here[here["condition"] == STEERED].iloc[0]
        random = here[here["condition"] == RANDOM]["value"]
        said = f"{steered['value']:.4g} [{steered['low']:.4g}, {steered['high']:.4g}] at {highest:g}"
        if len(before):
            said += f", untouched {before['value'].iloc[0]:.4g}"
        return said + (f", random {random.min():.4g} to {random.max():.4g}" if len(random) else "")

    def _repr_html_(self) -> str:
        from emoprobe import drawing

        image = base64.b64encode(drawing.png(self.plot())).decode()
        title = escape(f"Sweep of {self.subject} in {self.model}")
        table = self.summary().to_html(index=False, float_format="{:.3g}".format)
        return f'<p>{title}</p>{table}<img alt="{title}" src="data:image/png;base64,{image}">'


# Running -------------------------------------------------------------------------------------------------------------


def _interventions(
    model: LiveModel,
    intervention: Vector | Valuation,
    strength: float,
    layers: Layers | None,
    positions: Positions,
) -> list[Intervention]:
    if not isinstance(intervention, Valuation):
        return [*add(model, intervention, strength, 0.66 if layers is None else layers, positions)]
    if not (isinstance(positions, str) and positions == "all"):
        raise InputError('a valuation weighs every token against every other: leave positions at "all"')
    return [*biases(model, intervention, strength, layers)]


def _random_like(intervention: Vector | Valuation, seed: int) -> Vector | Valuation:
    return (
        turned_at_random(intervention, seed)
        if isinstance(intervention, Tensor)
        else intervention.random_like(seed)
    )


def _measured(model: LiveModel, prompts: Sequence[str], measures: Sequence[Measure]) -> dict[str, Floats]:
    if not prompts or not measures:
        raise InputError("a sweep needs at least one prompt and one measure")
    found: dict[str, Floats] = {}
    for measure in measures:
        for name, values in measure(model, prompts).items():
            if name in found:
                raise InputError(f'two measures are called "{name}": give one of them another name=')
            found[name] = torch.as_tensor(values).detach().cpu().double().numpy()
            if found[name].ndim != 1:
                raise InputError(
                    f'"{name}" is of shape {found[name].shape}: a measure gives one number per text'
                )
    return found


def _warn_unless_finite(values: Floats, measure: str, strength: float, condition: str) -> None:
    bad = int((~np.isfinite(values)).sum())
    if bad:
        warnings.warn(
            f"at strength {strength:g} ({condition}), {measure} was not finite for {bad} of {len(values)} texts, recorded "
            "as NaN",
            NonFiniteWarning,
            stacklevel=3,
        )


def _checked(strengths: Sequence[float]) -> list[float]:
    doses = sorted({float(strength) for strength in strengths})
    if not doses or not all(map(math.isfinite, doses)):
        raise InputError(f"strengths={list(strengths)} is not a list of finite numbers")
    return doses


def _subject(intervention: Vector | Valuation) -> str:
    if isinstance(intervention, Valuation):
        return f"valuation ({', '.join(intervention.dimensions)})"
    return "vector" if isinstance(intervention, Tensor) else intervention.concept


# Judging -------------------------------------------------------------------------------------------------------------


def _slopes(curve: pd.DataFrame) -> Floats:
    """Return each text's least-squares slope; their mean is the slope of the means. `curve` is strength × text."""
    centred = curve.index.to_numpy() - curve.index.to_numpy().mean()
    slopes: Floats = centred @ curve.to_numpy() / (centred @ centred)
    return slopes


def _monotone_range(strengths: Floats, means: Floats) -> tuple[float, float]:
    """Return the ends of the widest range of strengths over which the means go one way only; NaN if there is none."""
    signs = np.sign(np.diff(means))
    widest = (math.nan, math.nan)
    start = 0
    for step, sign in enumerate(signs):
        if step and sign != signs[step - 1]:
            start = step
        width = strengths[step + 1] - strengths[start]
        if sign != 0 and not width <= widest[1] - widest[0]:  # NaN to begin with
            widest = (float(strengths[start]), float(strengths[step + 1]))
    return widest


def _curve(part: pd.DataFrame) -> pd.DataFrame:
    """Return the values of one measure and run, strength × text, without strengths that have NaN."""
    return part.pivot(index="strength", columns="text", values="value").sort_index().dropna()


def _judge(measure: object, part: pd.DataFrame) -> dict[str, object]:
    """Return the row of the summary for one measure."""
    steered = _curve(part[part["condition"] == STEERED])
    strengths, means = steered.index.to_numpy(float), steered.to_numpy().mean(axis=1)
    enough = len(strengths) > 1
    slopes = _slopes(steered) if enough else np.array([math.nan])
    random = part[(part["condition"] == RANDOM) & part["strength"].isin(strengths)]
    curves = [_curve(group) for _, group in random.groupby("seed")]
    chance = prediction_interval([_slopes(curve).mean() for curve in curves if len(curve) > 1])
    slope, *bounds = mean_interval(slopes)
    interval, span = (bounds[0], bounds[1]), _monotone_range(strengths, means)
    beside = _beside_random(slope, interval, chance)
    return {
        "measure": measure,
        "slope": slope,
        **dict(zip(("low", "high"), interval, strict=True)),
        "spearman": float(spearmanr(strengths, means).statistic) if enough and np.ptp(means) else math.nan,
        **dict(zip(("monotone_from", "monotone_to"), span, strict=True)),
        **dict(zip(("random_low", "random_high"), chance, strict=True)),
        "beside_random": beside,
        "verdict": _verdict(slope, interval, span, chance, beside, strengths) + _lost(part, strengths),
    }


def _beside_random(slope: float, interval: tuple[float, float], chance: tuple[float, float]) -> str:
    """Return how a slope lies to those of random controls where it is outside of their prediction interval `chance`."""
    if any(map(math.isnan, (*interval, *chance))) or chance[0] <= slope <= chance[1]:
        return ""
    nearest, furthest = sorted(map(abs, chance))
    together = chance[0] > 0 or chance[1] < 0  # controls have a trend of their own
    if interval[0] <= 0 <= interval[1]:  # no trend: all that can be told is that controls have one
        return "flatter than" if together and max(map(abs, interval)) < nearest else ""
    if abs(slope) > furthest and not (together and slope * chance[0] < 0):
        return "steeper than"
    return "flatter than" if together and slope * chance[0] > 0 else "the other way from"


def _verdict(
    slope: float,
    interval: tuple[float, float],
    span: tuple[float, float],
    chance: tuple[float, float],
    beside: str,
    strengths: Floats,
) -> str:
    if len(strengths) < 2:
        return "cannot be judged: fewer than two strengths gave finite numbers"
    if math.isnan(span[0]):
        return "does not change"
    stretch = f"from {span[0]:g} to {span[1]:g}"
    compared = f", {beside} random controls" if beside else ""
    if interval[0] <= 0 <= interval[1]:
        return f"no overall trend: the slope's interval includes 0 (one way only {stretch}){compared}"
    whole = span == (strengths[0], strengths[-1])
    course = f"monotonically {stretch}" if whole else f"on the whole (one way only {stretch})"
    trend = f"{'rises' if slope > 0 else 'falls'} with strength {course}"
    if math.isnan(interval[0]):
        return f"{trend}; one text is too few to tell whether others would"
    if math.isnan(chance[0]):
        return f"{trend}; too few random controls to tell whether that is specific"
    return trend + (compared or ", but no more than random controls may")


def _lost(part: pd.DataFrame, strengths: Floats) -> str:
    lost = sorted(set(part["strength"]) - set(strengths))
    return f"; not finite at {', '.join(f'{strength:g}' for strength in lost)}" if lost else ""


# Drawing -------------------------------------------------------------------------------------------------------------


def _draw(axis: Axes, frame: pd.DataFrame) -> None:
    """Draw one measure: random controls as lines in their range, the intervention with its interval."""
    from emoprobe import drawing

    random = frame[frame["condition"] == RANDOM].pivot(index="strength", columns="seed", values="value")
    strengths = list(random.index)
    for _, curve in random.items():
        drawing.control(axis, strengths, curve)
    if len(random.columns):
        low, high = random.min(axis=1, skipna=False), random.max(axis=1, skipna=False)
        label = f"{len(random.columns)} random controls and their range"
        drawing.control(axis, strengths, low=low, high=high, label=label)
    steered = frame[frame["condition"] == STEERED]
    columns = (steered[name] for name in ("strength", "value", "low", "high"))
    drawing.line(axis, *columns, label="steered, 95 % interval over texts")
    drawing.zero(axis, vertical=True)
    axis.set_xlabel("strength")
