"""What a model would rather do: choices between two activities at a time, in both orders, and the scores behind them.

The model reads a question that names two activities, and the start of an answer; its choice is how much likelier "A" is than
"B" as the next word. Every pair is asked in both orders, since models lean towards one letter, often further than towards any
activity. Scores are Bradley–Terry's with that lean as a term of its own, and Elo's beside them (Sofroniew et al. 2026, arXiv
2604.07729, table 9; the activities and the wording here are our own). `probe_correlation` asks whether probes foresee them,
`emoprobe.steering.preference_steering` whether directions change them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from itertools import permutations
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import false_discovery_control, spearmanr

from emoprobe.activations import stream_residuals
from emoprobe.controls import turned_at_random
from emoprobe.errors import InputError
from emoprobe.intervals import CORRELATION, correlation, exceedance, prediction_interval
from emoprobe.interventions import Intervention, Span, overlapping
from emoprobe.layers import nearest_to_depth
from emoprobe.models import LiveModel
from emoprobe.progress import track
from emoprobe.steering.asking import Asked, asked
from emoprobe.steering.measures import log_probabilities
from emoprobe.steering.pairwise import bradley_terry, elo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from emoprobe.probes import ProbeSet

Floats: TypeAlias = NDArray[np.float64]
RESAMPLES, PERMUTATIONS = 400, 2000
FEWEST_CATEGORIES = 4
"""Categories below which no order of them is rarer than 1 in 20."""
ALL_ORDERS_UP_TO = 8
"""Categories up to which every order of them is tried (8! = 40320), instead of `PERMUTATIONS` drawn ones."""


@cache
def _data() -> dict[str, Any]:
    text = resources.files("emoprobe.steering").joinpath("activities.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


def activities(per_category: int | None = None) -> pd.DataFrame:
    """Return the package's activities, one row each: activity, category. Eight categories of six, or of the first so many."""
    listed = _data()["activities"].items()
    rows = [(name, category) for category, names in listed for name in names[:per_category]]
    return pd.DataFrame(rows, columns=["activity", "category"])


def preferences(
    model: LiveModel,
    choices: pd.DataFrame | Sequence[str] | None = None,
    *,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> Preferences:
    """Ask a model which of two activities it would rather do, for each pair in both orders: n · (n − 1) questions.

    `choices` are activities as verb phrases ("read a book"), three or more, or a frame with the columns activity and category;
    by default the package's own (see `activities`). Raises `InputError` for fewer, and for one that is given twice.
    """
    table = checked(choices)
    n = len(table)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    log_odds, answered = np.full((2, n, n), np.nan)
    rows, columns = np.transpose(pairs)
    found = answers(model, [question(model, table, i, j) for i, j in pairs], batch_size, progress=progress)
    log_odds[rows, columns], answered[rows, columns] = found
    return Preferences(table, log_odds, answered, model.name, seed)


@dataclass(frozen=True, eq=False)
class Preferences:
    """What was chosen: `log_odds` (n, n) of the activity shown first (row) against the second (column), in nats.

    `activities` has a row for each: activity, category. `answered` (n, n) is the probability that the next word is one of the
    two letters at all. Diagonals are NaN. All else is computed from these, so that a made-up scorer's log-odds serve as well.
    """

    activities: pd.DataFrame
    log_odds: Floats
    answered: Floats | None = None
    model: str = ""
    seed: int = 0

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per activity, the best liked first: activity, category and its scores.

        `score` is Bradley–Terry's from probabilities, in nats with the mean 0, `low` and `high` its 95 % interval over
        resamples of pairs (both orders of a pair together); `hard_score` the same from choices alone. `elo` and `hard_elo`
        are Elo ratings with the mean 1500, `chosen` the mean probability of being chosen, `wins` the share of choices, ties
        halved.
        """
        soft, hard = expit(self.log_odds), hard_outcomes(self.log_odds)
        low, high = np.quantile(self._resampled, [0.025, 0.975], axis=0)
        columns = {
            "score": bradley_terry(soft)[0],
            "low": low,
            "high": high,
            "hard_score": bradley_terry(hard)[0],
            "elo": elo(soft, seed=self.seed),
            "hard_elo": elo(hard, seed=self.seed),
            "chosen": _chosen(soft),
            "wins": _chosen(hard),
        }
        return self.activities.assign(**columns).sort_values("score", ascending=False, ignore_index=True)

    @cached_property
    def scores(self) -> Floats:
        """Bradley–Terry scores (n,) in nats, in the order of `activities`."""
        return bradley_terry(expit(self.log_odds))[0]

    @cached_property
    def position(self) -> dict[str, float]:
        """How far the model leans towards what is shown first.

        `advantage` is Bradley–Terry's term in nats, `first` the share of choices of the first, and `kept` the share of pairs in
        which the same activity is chosen in both orders, ties counted as half; ½ and less is no better than chance.
        """
        hard = hard_outcomes(self.log_odds)
        upper = np.triu_indices(len(hard), 1)
        same = 1 - np.abs(hard[upper] - (1 - hard.T[upper]))
        advantage = float(bradley_terry(expit(self.log_odds))[1])
        return {"advantage": advantage, "first": float(np.nanmean(hard)), "kept": float(same.mean())}

    @cached_property
    def consistency(self) -> tuple[float, float]:
        """Spearman's ρ between what activities score when shown first and when shown second, and its p value (one-sided).

        The two are the actor and (negated) partner effects of a round robin, the least-squares fit of log-odds by rows and
        columns (Warner, Kenny and Stoto 1979); plain means over rows and columns would agree by the diagonal that they both
        lack. Preferences that depend on the place of an activity, and not on the activity, do not agree.
        """
        rows, columns = np.nansum(self.log_odds, axis=1), np.nansum(self.log_odds, axis=0)
        off = len(rows) - 1
        first, second = off * rows + columns, -(off * columns + rows)
        size = 1e-9 * off * np.nanmax(np.abs(self.log_odds))
        if min(np.ptp(first), np.ptp(second)) <= off * size:
            return float("nan"), 1.0
        found = spearmanr(first, second, alternative="greater")
        return float(found.statistic), float(found.pvalue)

    @property
    def measurable(self) -> bool:
        """Whether the model has preferences that hold in both orders (p < 0.05); without, scores are scores of noise."""
        return self.consistency[1] < 0.05

    def plot(self) -> Figure:
        """Draw scores with their intervals, the best liked on top, each category in its own colour."""
        from emoprobe import drawing

        table = self.frame[::-1].reset_index(drop=True)
        with drawing.styled():
            figure, axes = drawing.panels(height=0.8 + 0.17 * len(table))
            axis = axes[0, 0]
            for number, (category, part) in enumerate(table.groupby("category", sort=False)):
                colour = drawing.PALETTE[number % len(drawing.PALETTE)]
                marker = "os^D"[number // len(drawing.PALETTE) % 4]
                axis.hlines(part.index, part.low, part.high, color=colour, linewidth=1)
                axis.plot(part.score, part.index, marker, color=colour, label=category)
            axis.set_yticks(range(len(table)), table.activity, fontsize=7)
            axis.set_xlabel("Bradley–Terry score, nats")
            drawing.zero(axis, vertical=True)
            drawing.legend_below(figure, axis)
        return figure

    def _repr_html_(self) -> str:
        from emoprobe.notebook import shown

        return shown(repr(self), self.plot(), self.frame)

    def __repr__(self) -> str:
        rho, p = self.consistency
        said = "" if self.measurable else "; NO preferences that hold in both orders: nothing can be measured"
        mass = "" if self.answered is None else f", P(A or B) {np.nanmean(self.answered):.2g}"
        return (
            f"<Preferences of {self.model} over {len(self.activities)} activities: orders agree ρ = {rho:.2f} (p = {p:.2g}), "
            f"leans to the first by {self.position['advantage']:.2f} nats, same choice in both orders "
            f"{self.position['kept']:.0%}{mass}{said}>"
        )

    @cached_property
    def _resampled(self) -> Floats:
        """Scores over resamples of unordered pairs, (resamples, n)."""
        n = len(self.log_odds)
        rows, columns = np.triu_indices(n, 1)
        generator = np.random.default_rng(self.seed)
        weights = np.zeros((RESAMPLES, n, n))
        weights[:, rows, columns] = generator.multinomial(
            len(rows), np.full(len(rows), 1 / len(rows)), RESAMPLES
        )
        return bradley_terry(expit(self.log_odds), weights + np.swapaxes(weights, 1, 2))[0]


def probe_correlation(
    model: LiveModel,
    probes: ProbeSet,
    found: Preferences,
    layer: int | float | None = None,
    *,
    controls: int = 20,
    seed: int = 0,
    batch_size: int = 32,
) -> pd.DataFrame:
    """Correlate each probe's read-out of an activity with the model's preference for it; one row per concept, by r.

    Read-outs are means over the tokens of the activity in a question about it alone, at `layer` (by default the fitted one
    nearest to two thirds of the depth). `r` is Pearson's with the Bradley–Terry scores, `low` and `high` its 95 % interval over
    whole categories; `within` is r after each category's mean is taken out, since categories differ in much else, and `between`
    r of the categories' means. `p` is that of `between` (two-sided), from permutations of which category has which mean score:
    read-outs and scores are alike within a category, so that single activities are not exchangeable. All orders are tried of
    eight categories or fewer, else 2000 drawn ones; with fewer than four categories p is NaN. `q` is p with false discoveries
    controlled over concepts (Benjamini and Hochberg 1995), `p_any` the chance that any of the concepts reaches as far (Westfall
    and Young's maximum). `random_low` and `random_high` are the 95 % prediction interval for r of one more random direction.
    Raises `InputError` for a layer without probes, fewer than two controls, and a tokenizer that does not say where its tokens
    lie.
    """
    if controls < 2:
        raise InputError(f"controls={controls}: give at least 2, so that their range is known")
    probes.check_model(model)
    at = nearest_to_depth(probes.layers, probes.n_layers) if layer is None else layer
    row = probes.layer_index(at)
    at = probes.layers[row]
    streams = _streams_of_activities(model, list(found.activities.activity), at, batch_size)
    read = probes.read_out(streams, at).double().numpy()
    turned = [turned_at_random(torch.ones(model.d_model), seed + number) for number in range(controls)]
    random = (streams.double() @ torch.stack(turned).double().T).numpy()
    scores, categories = found.scores, found.activities.category.to_numpy()
    r = _correlations(read, scores)
    low, high = np.transpose([correlation(column, scores, categories, seed)[1:] for column in read.T])
    between, p, p_any = _over_categories(read, scores, categories, seed)
    known = np.isfinite(p)
    q = np.full(len(p), np.nan)
    q[known] = false_discovery_control(p[known]) if known.any() else []
    random_low, random_high = prediction_interval(_correlations(random, scores), CORRELATION)
    table = pd.DataFrame(
        {
            **{"concept": probes.concepts, "layer": at, "r": r, "low": low, "high": high},
            "within": _correlations(_centred(read, categories), _centred(scores[:, None], categories)[:, 0]),
            **{"between": between, "p": p, "q": q, "p_any": p_any},
            **{"random_low": random_low, "random_high": random_high},
        }
    )
    return table.sort_values("r", ascending=False, ignore_index=True)


# Asking --------------------------------------------------------------------------------------------------------------


def checked(choices: pd.DataFrame | Sequence[str] | None) -> pd.DataFrame:
    """Return activities as a frame: activity, category. Raises `InputError` for what cannot be asked about."""
    if choices is None:
        return activities()
    if isinstance(choices, pd.DataFrame):
        missing = {"activity", "category"} - set(choices.columns)
        if missing:
            raise InputError(f"the activities have no column {', '.join(sorted(missing))}")
        table = choices[["activity", "category"]].reset_index(drop=True)
    else:
        table = pd.DataFrame({"activity": list(choices), "category": "activity"})
    if len(table) < 3 or table.activity.duplicated().any():
        raise InputError(f"give three or more different activities, not {table.activity.tolist()[:8]}")
    return table


def question(model: LiveModel, table: pd.DataFrame, first: int, second: int) -> Asked:
    """Return the question about two activities; its places are "first" and "second"."""
    names = table.activity.to_numpy()
    filled = {"first": names[first], "second": names[second]}
    return asked(model, _data()["question"], filled, _data()["opening"])


def answers(
    model: LiveModel,
    questions: Sequence[Asked],
    batch_size: int,
    place: Callable[[list[list[Span]]], Sequence[Intervention]] | None = None,
    spans: Sequence[list[Span]] = (),
    *,
    progress: bool = False,
) -> Floats:
    """Return the log-odds of the first answer against the second, and the chance of either: (2, questions).

    `place` makes interventions out of the spans of each question in a batch, where there are any.
    """
    parts = []
    starts = range(0, len(questions), batch_size)
    for start in track(starts, "asking", wanted=progress):
        texts = [one.text for one in questions[start : start + batch_size]]
        pairs = [(text, answer) for text in texts for answer in _data()["answers"]]
        edits = () if place is None else place([*spans[start : start + batch_size]])
        with model.intervene(*edits):
            parts.append(log_probabilities(model, pairs, len(texts)).view(-1, 2).numpy())
    log_p = np.concatenate(parts)
    return np.stack([log_p[:, 0] - log_p[:, 1], np.exp(log_p).sum(1)])


def hard_outcomes(log_odds: Floats) -> Floats:
    """Return who is chosen: 1 for the first, 0 for the second, ½ for neither; NaN stays."""
    outcome: Floats = (np.sign(log_odds) + 1) / 2
    return outcome


def _chosen(outcomes: Floats) -> Floats:
    """Return how often each is chosen, shown first or second."""
    mean: Floats = (np.nanmean(outcomes, axis=1) + 1 - np.nanmean(outcomes, axis=0)) / 2
    return mean


# Reading -------------------------------------------------------------------------------------------------------------


def _streams_of_activities(
    model: LiveModel, names: Sequence[str], layer: int, batch_size: int
) -> torch.Tensor:
    """Return the mean stream over the tokens of each activity in a question about it, float32 (activities, d_model)."""
    prompts = [asked(model, _data()["feeling"], {"activity": name}) for name in names]
    means = torch.empty(len(names), model.d_model)
    for part in stream_residuals(model, [one.text for one in prompts], [layer], batch_size=batch_size):
        lie = model.token_spans(part.batch)
        for row, index in enumerate(part.indices):
            held = overlapping(lie[row], [prompts[index].places["activity"]])
            means[index] = part.by_layer[0][row, held].float().mean(0)
    return means


def _correlations(columns: Floats, y: Floats) -> Floats:
    """Return Pearson's r of each column (n, m) with y (n,); NaN where there is nothing to correlate."""
    x, y = columns - columns.mean(0), y - y.mean()
    sizes = np.linalg.norm(x, axis=0) * np.linalg.norm(y)
    r: Floats = np.divide(y @ x, sizes, out=np.full(sizes.shape, np.nan), where=sizes > 1e-12)
    return r


def _over_categories(
    columns: Floats, y: Floats, groups: NDArray[np.object_], seed: int
) -> tuple[Floats, Floats, Floats]:
    """Return r of each column's category means with those of y, its p and that of the furthest of all columns, each (m,).

    The null permutes which category has which mean of y; p values are NaN for fewer than four categories.
    """
    means = pd.DataFrame(np.column_stack([y, columns])).groupby(groups).mean().to_numpy()
    of_y, of_columns = means[:, 0], means[:, 1:]
    r = _correlations(of_columns, of_y)
    if len(means) < FEWEST_CATEGORIES:
        return r, np.full(r.shape, np.nan), np.full(r.shape, np.nan)
    permuted = of_y[_orders(len(means), seed)].T
    null = np.abs(np.stack([_correlations(permuted, column) for column in of_columns.T], axis=1))
    return r, exceedance(np.abs(r), null), exceedance(np.abs(r), null.max(1, keepdims=True))


def _orders(n: int, seed: int) -> NDArray[np.int64]:
    """Return orders of n other than the given one, all of them where they are few (orders, n)."""
    if n <= ALL_ORDERS_UP_TO:
        return np.array(list(permutations(range(n)))[1:])
    return np.random.default_rng(seed).permuted(np.tile(np.arange(n), (PERMUTATIONS, 1)), axis=1)


def _centred(columns: Floats, groups: NDArray[np.object_]) -> Floats:
    """Return columns (n, m) less each group's mean."""
    frame = pd.DataFrame(columns)
    centred: Floats = (frame - frame.groupby(groups).transform("mean")).to_numpy()
    return centred
