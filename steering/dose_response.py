"""What a dose–response experiment found: tables, intervals, verdicts and the picture, all from every text's own value.

Texts differ far more from each other than strengths do, so that effects are each text's own change from the untouched model.
Intervals over texts are Student's t and take the texts for independent: give one text per document (writer, world, thread),
or few of each, since texts of one document go alike and intervals would come out too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from emoprobe.errors import InputError
from emoprobe.intervals import mean_interval, prediction_interval
from emoprobe.steering.generated_text import COHERENT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats: TypeAlias = NDArray[np.float64]
STEERED, RANDOM, NEGATED, UNRELATED = "steered", "random", "negated", "unrelated"
FLATTER = "flatter than"


@dataclass(frozen=True, eq=False)
class Sweep:
    """A dose–response experiment.

    `raw` has one row per strength, condition ("steered", "random", "negated", "unrelated"), seed (of a random control, else
    missing), measure and text (its number among the prompts, or among the measure's own texts), and its `value`. All else is
    computed from it.
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

    def changes(self) -> Sweep:
        """Return the sweep of each text's change from its value at strength 0."""
        keys = ["condition", "measure", "text"]
        untouched = self.raw[self.raw.strength == 0].drop_duplicates(keys).set_index(keys).value
        before = untouched.reindex(pd.MultiIndex.from_frame(self.raw[keys])).to_numpy()
        return replace(self, raw=self.raw.assign(value=self.raw.value - before))

    def effects(self) -> pd.DataFrame:
        """Return one row per measure and strength but 0: what the intervention changes, beside what controls do.

        `change` is the mean over texts of each one's change from the untouched model, in the measure's units, `low` and `high`
        its 95 % interval (Student's t), and `d` the change in standard deviations of the texts' changes (Cohen's d_z; NaN for
        one text). `random` is the mean change by random controls, `random_low` and `random_high` the 95 % prediction interval
        for one more; `negated` and `unrelated` are the mean changes by the opposite strength and by the unrelated concept, NaN
        where they were not run. `beyond_random` says whether the change lies outside of the prediction interval.
        """
        raw = self.changes().raw
        raw = raw[raw.strength != 0]
        rows = [
            {"measure": measure, "strength": strength, **_effect(part, raw[raw.measure == measure])}
            for (measure, strength), part in raw.groupby(["measure", "strength"], sort=False)
        ]
        return pd.DataFrame(rows)

    def usable(self, limits: Mapping[str, float] | None = None) -> tuple[float, float]:
        """Return the ends of the usable window: the strengths around 0 at which the steered model stays coherent.

        `limits` says for each measure of the gate how far its mean may go from the untouched model's: up by at most a positive
        number, down by at most a negative one. By default it is `COHERENT`, as far as it was measured (see `generations`).
        Each strength within the window keeps to all limits. Raises `InputError` where nothing of the gate was measured.
        """
        measured = set(self.raw.measure)
        gate = {
            name: limit
            for name, limit in (COHERENT if limits is None else limits).items()
            if name in measured
        }
        if not gate or (limits and set(limits) - measured):
            raise InputError(
                f"no coherence gate: the sweep measured {', '.join(sorted(measured))}; sweep with generations() too, or give "
                "limits= for these"
            )
        raw = self.changes().raw
        means = raw[raw.condition == STEERED].pivot_table(index="strength", columns="measure", values="value")
        # What was not finite is not there, and so not held.
        held = [
            all(_within(row.get(name, math.nan), limit) for name, limit in gate.items())
            for _, row in means.iterrows()
        ]
        strengths = means.index.to_numpy(float)
        return _around_zero(strengths, np.array(held))

    def plot(self) -> Figure:
        """Draw each measure against strength: mean and interval, the controls, and the usable window where it is known."""
        from emoprobe import drawing

        measures = list(self.frame["measure"].unique())
        window = self.usable() if set(COHERENT) & set(measures) else None
        with drawing.styled():
            figure, axes = drawing.tiled(len(measures))
            for measure, axis in zip(measures, axes, strict=True):
                _draw(axis, self.frame[self.frame["measure"] == measure])
                axis.set_title(measure, parse_math=False)
                if window is not None:
                    axis.axvspan(*window, color=drawing.CONTROL, alpha=0.12, lw=0)
            figure.suptitle(f"{self.subject} in {self.model}", parse_math=False)
            drawing.legend_below(figure, figure.axes[0])
        return figure

    def __repr__(self) -> str:
        verdicts = [
            f"  {row.measure}: {self._at_highest(row.measure)}; {row.verdict}"
            for row in self.summary().itertuples()
        ]
        if set(COHERENT) & set(self.raw.measure):
            verdicts.append("  coherent for strengths from {:g} to {:g}".format(*self.usable()))
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
        from emoprobe.notebook import shown

        return shown(f"Sweep of {self.subject} in {self.model}", self.plot(), self.summary())


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


def _effect(part: pd.DataFrame, measured: pd.DataFrame) -> dict[str, object]:
    """Return what one measure (all strengths of it: `measured`) makes of one strength: changes beside those of controls."""
    steered = part[part.condition == STEERED]["value"].to_numpy()
    strength = part.strength.iloc[0]
    change, low, high = mean_interval(steered)
    spread = steered.std(ddof=1) if len(steered) > 1 else math.nan
    random = part[part.condition == RANDOM].groupby("seed")["value"].mean().to_numpy()
    lowest, highest = prediction_interval(random)
    opposite = measured[
        ((measured.condition == STEERED) & (measured.strength == -strength))
        | ((measured.condition == NEGATED) & (measured.strength == strength))
    ]
    return {
        "change": change,
        "low": low,
        "high": high,
        "d": change / spread if spread > 0 else math.nan,
        "random": random.mean() if len(random) else math.nan,
        "random_low": lowest,
        "random_high": highest,
        "negated": opposite["value"].mean(),
        "unrelated": part[part.condition == UNRELATED]["value"].mean(),
        "beyond_random": bool(change < lowest or change > highest),
    }


def _within(change: float, limit: float) -> bool:
    return change <= limit if limit >= 0 else change >= limit


def _around_zero(strengths: Floats, held: NDArray[np.bool_]) -> tuple[float, float]:
    """Return how far from 0 down and up all of `strengths`, in order, are held; strength 0 is among them."""
    zero = int(np.flatnonzero(strengths == 0)[0])
    down, up = zero, zero
    while down > 0 and held[down - 1]:
        down -= 1
    while up + 1 < len(strengths) and held[up + 1]:
        up += 1
    return float(strengths[down]), float(strengths[up])


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
        return FLATTER if together and max(map(abs, interval)) < nearest else ""
    if abs(slope) > furthest and not (together and slope * chance[0] < 0):
        return "steeper than"
    return FLATTER if together and slope * chance[0] > 0 else "the other way from"


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


MARKS = {NEGATED: "v", UNRELATED: "s"}


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
    others = frame[frame["condition"].isin([NEGATED, UNRELATED]) & (frame["strength"] != 0)]
    for condition, part in others.groupby("condition"):
        drawing.control(
            axis, part["strength"], part["value"], style=MARKS[str(condition)], label=str(condition)
        )
    steered = frame[frame["condition"] == STEERED]
    columns = (steered[name] for name in ("strength", "value", "low", "high"))
    drawing.line(axis, *columns, label="steered, 95 % interval over texts")
    drawing.zero(axis, vertical=True)
    axis.set_xlabel("strength")
