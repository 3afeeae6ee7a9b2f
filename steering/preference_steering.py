"""Do directions change what a model would rather do: steering on the words of one option, scored in two ways.

Half of the activities are steered, on their own tokens, wherever they stand; the other half never are. Published effects are
changes of the Elo ratings of the steered half (Sofroniew et al. 2026, arXiv 2604.07729, figure 4). But steering that does
nothing more than blur the choice draws all ratings together: what was liked falls, what was not rises, and the sum depends
on which activities were chosen; in an open replication it explained most of the effect. So each direction is scored against
the half that stays what it was as well: a steered choice is taken apart into what remains of the old preference (`gain`, 1
where all of it does) and what is added where neither was preferred before (`shift`), which blurring leaves at zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from emoprobe.errors import InputError
from emoprobe.intervals import correlation, jackknife, prediction_interval
from emoprobe.interventions import Intervention, Span
from emoprobe.layers import Layers
from emoprobe.models import LiveModel
from emoprobe.progress import track
from emoprobe.steering.choices import Preferences, answers, question
from emoprobe.steering.edits import add
from emoprobe.steering.pairwise import ELO_PER_NAT, bradley_terry
from emoprobe.steering.sweeping import Edit
from emoprobe.steering.vectors import Vector, random_like

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats: TypeAlias = NDArray[np.float64]
STEERED, RANDOM = "steered", "random"
STRADDLING = 0.1
"""Share of pairs in which the steered option was better liked before, or worse, below which a shift would be extrapolated."""
ROUNDING = 1e-3
"""Gains that are this near to 1 are 1: log-odds are read in single precision or less."""


def steer_preferences(
    model: LiveModel,
    directions: Mapping[str, Vector],
    untouched: Preferences,
    strength: float = 0.5,
    *,
    layers: Layers = 0.66,
    edit: Edit = add,
    controls: int = 5,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> PreferenceShift:
    """Ask again with `strength` of each of `directions` on the tokens of half of the activities, and beside random ones.

    `untouched` is what `preferences` found on the same model. Which half of each category is steered is drawn with `seed`.
    `controls` directions turned at random from the first are asked too. `edit`, `strength` and `layers` are as in `sweep`; the
    source's strength is 0.5. Raises `InputError` for no direction, fewer than four activities, and what `edit` refuses.
    """
    n = len(untouched.activities)
    if not directions or n < 4:
        raise InputError(
            f"{len(directions)} directions and {n} activities: give at least one, and four activities"
        )
    steered = half_of(untouched.activities.category, seed)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j and (steered[i] or steered[j])]
    questions = [question(model, untouched.activities, i, j) for i, j in pairs]
    spans = [
        _steered_spans(one.places, bool(steered[i]), bool(steered[j]))
        for one, (i, j) in zip(questions, pairs, strict=True)
    ]
    first = next(iter(directions.values()))
    turned = {f"random {number}": random_like(first, number) for number in range(seed, seed + controls)}
    rows, columns = np.transpose(pairs)
    found = []
    for direction in track([*directions.values(), *turned.values()], "steering", wanted=progress):

        def place(where: list[list[Span]], direction: Vector = direction) -> Sequence[Intervention]:
            return edit(model, direction, strength, layers, where)

        log_odds = untouched.log_odds.copy()  # a pair without a steered option is read as it was
        log_odds[rows, columns] = answers(model, questions, batch_size, place, spans)[0]
        found.append(log_odds)
    names = (*directions, *turned)
    conditions = (STEERED,) * len(directions) + (RANDOM,) * len(turned)
    return PreferenceShift(names, conditions, untouched, steered, np.stack(found), strength)


@dataclass(frozen=True, eq=False)
class PreferenceShift:
    """What steering did to choices: `log_odds` (directions, n, n), as in `Preferences`.

    `steered` (n,) says which activities were; `names` and `conditions` ("steered", "random") are of the directions.
    """

    names: tuple[str, ...]
    conditions: tuple[str, ...]
    untouched: Preferences
    steered: NDArray[np.bool_]
    log_odds: Floats
    strength: float

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per direction: name, condition, its scores and a verdict.

        Against the fixed reference: `shift` in nats, by how much likelier steered activities become where neither was preferred
        before (× 173.7 in Elo points: `shift_elo`), and `gain`, the slope of new preferences on old ones; each with its 95 %
        interval over steered activities (jackknife). As published: `elo_change`, the mean change of Bradley–Terry ratings of
        steered activities on the Elo scale, all pairs taken together; `from_baseline`, the correlation of these changes with
        the ratings before, near −1 for mere compression; and `within`, the spread of ratings among steered activities alone as
        a share of what it was. `random_low` and `random_high` are the 95 % prediction interval for the shift of one more random
        direction, `random_gain_low` and `random_gain_high` that for the gain. `compressed` says that the gain's interval lies
        below 1 and the gain below random directions'; `moved`, that the shift's interval excludes 0 and the shift lies outside
        of random directions', where `straddling`, the share of steered–reference pairs on the rarer side of even, is large
        enough to know what happens there. Neither is ever said where untouched preferences are not `measurable`: changes of
        choices that do not hold in both orders cannot be told from those of noise.
        """
        rows = [self._row(number) for number in range(len(self.names))]
        table = pd.DataFrame(rows)
        random = table[table.condition == RANDOM]
        low, high = prediction_interval(random["shift"].to_numpy())
        gain_low, gain_high = prediction_interval(random.gain.to_numpy())
        table["random_low"], table["random_high"] = low, high
        table["random_gain_low"], table["random_gain_high"] = gain_low, gain_high
        measurable = self.untouched.measurable
        apart = (table.low > 0) | (table.high < 0)
        table["compressed"] = measurable & (table.gain_high < 1 - ROUNDING) & (table.gain < gain_low)
        told = table.straddling >= STRADDLING
        table["moved"] = measurable & told & apart & ~table["shift"].between(low, high) & np.isfinite(low)
        table["verdict"] = [
            _verdict(measurable, *flags) for flags in zip(told, table.moved, table.compressed, strict=True)
        ]
        return table

    def coupling(self, correlations: pd.DataFrame) -> tuple[float, float, float]:
        """Return r over concepts between a probe's correlation with preferences and the shift by its direction, with interval.

        `correlations` is what `probe_correlation` returned. The source reports r = 0.85 over 35 concepts, between correlations
        and changes of Elo. Raises `InputError` for fewer than three shared concepts.
        """
        shared = self.frame.merge(correlations[["concept", "r"]], left_on="name", right_on="concept")
        if len(shared) < 3:
            raise InputError(
                f"{len(shared)} concepts were both steered and correlated: at least three are needed"
            )
        return correlation(shared.r.to_numpy(), shared["shift"].to_numpy(), np.arange(len(shared)))

    def plot(self) -> Figure:
        """Draw the shift by each direction beside the published score, with random directions' range in grey."""
        from emoprobe import drawing

        table = self.frame[self.frame.condition == STEERED].sort_values("shift", ignore_index=True)
        random = self.frame[self.frame.condition == RANDOM]
        with drawing.styled():
            figure, axes = drawing.panels(columns=2, height=1.0 + 0.22 * len(table), sharey=True)
            panels = (
                ("shift", "low", "high", "shift where neither was preferred, nats", 0),
                ("gain", "gain_low", "gain_high", "what remains of old preferences", 1),
            )
            for axis, (value, low, high, label, nothing) in zip(axes[0], panels, strict=True):
                axis.hlines(table.index, table[low], table[high], color=drawing.BLUE, linewidth=1)
                axis.plot(table[value], table.index, "o", color=drawing.BLUE)
                axis.axvspan(
                    *prediction_interval(random[value].to_numpy()),
                    color=drawing.CONTROL,
                    alpha=0.25,
                    linewidth=0,
                )
                axis.axvline(nothing, color=drawing.INK, linewidth=0.6)
                axis.set_xlabel(label)
            axes[0, 0].set_yticks(range(len(table)), table.name)
        return figure

    def _repr_html_(self) -> str:
        from emoprobe.notebook import shown

        return shown(repr(self), self.plot(), self.frame)

    def __repr__(self) -> str:
        own = self.frame[self.frame.condition == STEERED]
        warned = (
            ""
            if self.untouched.measurable
            else "; the untouched model has NO preferences that hold in both orders"
        )
        return (
            f"<PreferenceShift in {self.untouched.model} at s = {self.strength:g}: {int(own.moved.sum())} of {len(own)} "
            f"directions shift choices beyond random ones, {int(own.compressed.sum())} compress them "
            f"(median gain {own.gain.median():.2f}){warned}>"
        )

    def _row(self, number: int) -> dict[str, object]:
        before, after = _preference(self.untouched.log_odds), _preference(self.log_odds[number])
        x, y = before[self.steered][:, ~self.steered], after[self.steered][:, ~self.steered]
        fitted = _shift_and_gain(x, y)
        without = np.stack([_shift_and_gain(np.delete(x, i, 0), np.delete(y, i, 0)) for i in range(len(x))])
        (low, gain_low), (high, gain_high) = (
            jackknife(fitted, without) if len(x) > 2 else np.full((2, 2), np.nan)
        )
        own = np.ix_(self.steered, self.steered)
        elo_before = ELO_PER_NAT * self.untouched.scores[self.steered]
        elo_after = ELO_PER_NAT * bradley_terry(expit(self.log_odds[number]))[0][self.steered]
        spread = [
            bradley_terry(expit(odds[own]))[0].std()
            for odds in (self.untouched.log_odds, self.log_odds[number])
        ]
        everyone = np.arange(len(elo_before))
        return {
            **{"name": self.names[number], "condition": self.conditions[number]},
            **{"shift": fitted[0], "low": low, "high": high, "shift_elo": ELO_PER_NAT * fitted[0]},
            **{"gain": fitted[1], "gain_low": gain_low, "gain_high": gain_high},
            "elo_change": float((elo_after - elo_before).mean()),
            "from_baseline": correlation(elo_before, elo_after - elo_before, everyone)[0],
            "straddling": float(min((x > 0).mean(), (x < 0).mean())),
            "within": spread[1] / spread[0] if spread[0] > 0 else np.nan,
        }


def half_of(categories: pd.Series, seed: int) -> NDArray[np.bool_]:
    """Return which activities are steered: half of each category, drawn at random (of odd ones, more or less in turn)."""
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(categories), dtype=bool)
    order = generator.permutation(len(categories))
    ranked = order[np.argsort(pd.factorize(categories.iloc[order], sort=True)[0], kind="stable")]
    chosen[ranked[::2]] = True
    return chosen


def _steered_spans(places: Mapping[str, Span], first: bool, second: bool) -> list[Span]:
    return [places[name] for name, wanted in (("first", first), ("second", second)) if wanted]


def _preference(log_odds: Floats) -> Floats:
    """Return how much the row is preferred over the column in nats, the mean of both orders: antisymmetric, (n, n)."""
    both: Floats = (log_odds - log_odds.T) / 2
    return both


def _shift_and_gain(before: Floats, after: Floats) -> Floats:
    """Return the shift and the gain of preferences (steered, reference), see `PreferenceShift.frame`.

    What blurring does is odd: it treats liking and disliking alike. So new preferences are fitted by a constant, the shift, and
    an odd function of the old ones, which may be straight (all log-odds shrink by a factor) or saturate (all probabilities do);
    the gain is that of a straight line.
    """
    x, y = before.ravel(), after.ravel()
    odd = np.stack([np.ones_like(x), x, np.tanh(x / 2)], axis=1)
    shift = np.linalg.lstsq(odd, y, rcond=None)[0][0]
    gain = np.linalg.lstsq(odd[:, :2], y, rcond=None)[0][1]
    return np.array([shift, gain])


def _verdict(measurable: bool, told: bool, moved: bool, compressed: bool) -> str:
    if not measurable:
        return "cannot be told: untouched choices do not hold in both orders"
    if not told:
        return "cannot be told: nearly all steered activities were better liked before, or worse, than all others"
    if moved:
        return "choices shift" + (", and are compressed" if compressed else "")
    if compressed:
        return "compression only: changed ratings are no evidence of a changed preference"
    return "no shift beyond random directions"
