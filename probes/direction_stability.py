"""Does the same direction come out of other texts? Cosines of directions fitted to halves, and to resamples, of the groups.

A probe may read well along a direction that another sample of texts would not give again; what is steered or compared with
other directions has to come back. Two fits on disjoint halves of the groups share no text, so that what their directions share
is not the texts' doing. Two resamples of the groups, which is what another seed of a bootstrap gives, share most of theirs
and agree more for it. Beside both stand directions fitted to the same draws of texts with annotations shuffled over groups,
which for resamples agree as well; and what random directions of this width have, a cosine of 0 ± 1/√d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from emoprobe import drawing
from emoprobe.activations import Pool
from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.layers import Layers
from emoprobe.models.live import LiveModel
from emoprobe.notebook import shown
from emoprobe.probes.estimators import Fit, Floats, Integers, Standardised
from emoprobe.probes.features import few_threads, read_features
from emoprobe.probes.summary import two
from emoprobe.probes.tasks import Task
from emoprobe.probes.validation import expected_range, shuffle
from emoprobe.progress import track

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw: TypeAlias = Callable[[Integers, np.random.Generator], tuple[Integers, Integers]]
"""From the group of each text (texts,), two samples of texts by their positions."""
HALVES, RESAMPLES = "halves", "resamples"
PANELS = 6


def stability(
    model: LiveModel,
    corpus: Corpus,
    layers: Layers = "all",
    *,
    estimator: str = "auto",
    concepts: Sequence[str] | str | None = None,
    pool: Pool = "mean",
    start: int = 1,
    draws: int = 10,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> Stability:
    """Say for each concept and layer how alike directions are that were fitted to different texts of one corpus.

    The texts are read once. In each of `draws` draws, the groups are dealt into two halves, and resampled twice with
    replacement; a direction is fitted to each, once to the annotations and once to annotations that were shuffled over groups.
    `layers`, `estimator`, `concepts`, `pool` and `start` are as in `fit_probes`.

    Raises `InputError` for fewer than four draws or four groups, and what `fit_probes` refuses.
    """
    if draws < 4:
        raise InputError(f"draws={draws}: give at least 4, so that they have a range")
    read = read_features(
        model,
        corpus,
        layers,
        estimator=estimator,
        concepts=concepts,
        pool=pool,
        start=start,
        folds=2,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    for task in read.tasks:
        if task.groups < 4:
            raise InputError(
                f"{corpus.name}: {task.groups} groups of texts annotated for {', '.join(task.concepts)}: halves of "
                "fewer than four say nothing of other groups; give more groups"
            )
    work = [(task, layer) for task in read.tasks for layer in read.chosen]
    parts = []
    with few_threads(read.vectors):
        for task, layer in track(work, "comparing directions", wanted=progress):
            features = read.at(layer, task)
            for name, draw in ((HALVES, halves), (RESAMPLES, resamples)):
                found = agreement(read.fit(task), features, task, draw, draws, seed)
                parts.append((task, layer, name, *found))
    frame = _frame(parts, model.d_model)
    return Stability(
        model.name, corpus.name, draws, frame[frame.concept.isin(read.concepts)].reset_index(drop=True)
    )


# Directions of different texts ---------------------------------------------------------------------------------------


def agreement(
    fit: Fit, features: Floats, task: Task, draw: Draw, draws: int, seed: int = 0, shuffles: int = 1
) -> tuple[Floats, Floats]:
    """Return the cosines of directions fitted to both samples of each draw, and the same with annotations shuffled.

    They are (draws, concepts) and (draws, shuffles × concepts), on the same samples of texts; `features` is (texts, d_model).
    """
    order = np.random.default_rng(seed)
    found, null = [], []
    for _ in range(draws):
        samples = draw(task.group, order)
        targets = [task.targets, *(task.targets[shuffle(task.group, order)] for _ in range(shuffles))]
        # Dimensions do not influence each other, so the shuffled ones are fitted along.
        together = [np.hstack(targets)] if task.kind == "dimension" else targets
        cosine = np.concatenate(cosines(fit, features, together, task.group, *samples))
        found.append(cosine[: len(task.concepts)])
        null.append(cosine[len(task.concepts) :])
    return np.stack(found), np.stack(null)


def cosines(
    fit: Fit,
    features: Floats,
    targets: Sequence[Floats],
    group: Integers,
    first: Integers,
    second: Integers,
) -> list[Floats]:
    """Return for each of several targets the cosine of the directions fitted to two samples of texts, by position: (concepts,).

    NaN where a sample says nothing of a concept.
    """

    def directions(rows: Integers) -> list[Floats]:
        texts, group_of = Standardised(features[rows]), np.unique(group[rows], return_inverse=True)[1]
        return [fit(texts, each[rows], group_of).weights for each in targets]

    return [_cosine(a, b) for a, b in zip(directions(first), directions(second), strict=True)]


def _cosine(one: Floats, other: Floats) -> Floats:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    result: Floats = np.divide(
        (one * other).sum(1), lengths, out=np.full(len(one), np.nan), where=lengths > 0
    )
    return result


def halves(group: Integers, order: np.random.Generator) -> tuple[Integers, Integers]:
    """Deal whole groups at random into two halves that hold as nearly the same number of texts as that order allows."""
    drawn = order.permutation(int(group.max()) + 1)
    sizes = np.bincount(group)[drawn].cumsum()
    cut = int(np.abs(sizes[:-1] - len(group) / 2).argmin()) + 1
    first = np.isin(group, drawn[:cut])
    return np.flatnonzero(first), np.flatnonzero(~first)


def resamples(group: Integers, order: np.random.Generator) -> tuple[Integers, Integers]:
    """Draw twice as many groups as there are, with replacement; each text is there as often as its group was drawn."""
    groups = int(group.max()) + 1
    counts = [np.bincount(order.integers(groups, size=groups), minlength=groups)[group] for _ in range(2)]
    first, second = (np.repeat(np.arange(len(group)), count) for count in counts)
    return first, second


# What came of it -----------------------------------------------------------------------------------------------------


def _frame(parts: Sequence[tuple[Task, int, str, Floats, Floats]], width: int) -> pd.DataFrame:
    rows = []
    for task, layer, name, found, shuffled in parts:
        others = [s for t, _, n, _, s in parts if t is task and n == name]
        # The most stable of several layers is to be compared with the most stable that shuffling gives in as many.
        highest = expected_range(np.fmax.reduce(others))[:, 2]
        null = expected_range(shuffled)
        for column, concept in enumerate(task.concepts):
            known = found[:, column][~np.isnan(found[:, column])]
            low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
            rows.append(
                {
                    "layer": layer,
                    "concept": concept,
                    "kind": task.kind,
                    "draw": name,
                    "cosine": known.mean() if len(known) else np.nan,
                    "low": low,
                    "high": high,
                    **dict(zip(("shuffled", "shuffled_low", "shuffled_high"), null[column], strict=True)),
                    "shuffled_best_high": highest[column],
                    "random": width**-0.5,
                    "n": len(task.rows),
                    "groups": task.groups,
                }
            )
    return pd.DataFrame(rows)


@dataclass(frozen=True, eq=False, repr=False)
class Stability:
    """Hold how alike directions of different texts are."""

    model: str
    corpus: str
    draws: int
    frame: pd.DataFrame
    """One row per layer, concept and draw: layer, concept, kind ("label" or "dimension"), draw ("halves" or "resamples"),
    cosine (mean over draws), low, high (where 95% of the draws lie: draws share texts, and no interval of the mean follows),
    shuffled, shuffled_low, shuffled_high (mean and 95% range with shuffled annotations), shuffled_best_high (upper end of that
    range for the best of all layers), random (1/√d_model, the standard deviation of the cosine of two random directions), n
    (texts), groups."""

    def best(self, draw: str = HALVES) -> pd.DataFrame:
        """Return the rows of each concept's most stable layer, with a column `above`: whether it exceeds shuffled annotations.

        That is their upper end for the best of as many layers.
        """
        part = self.frame[(self.frame.draw == draw) & self.frame.cosine.notna()]
        best = part.loc[part.groupby("concept", sort=False)["cosine"].idxmax()]
        return best.assign(above=best.cosine > best.shuffled_best_high)

    def report(self) -> str:
        """Say for each concept how stable its direction is, beside shuffled annotations and random directions."""
        about = self.frame.iloc[0]
        lines = [
            f"Directions of {self.model} on {self.corpus}: cosines between fits on different texts, means over {self.draws} "
            f"draws; two random directions of this width have a cosine of 0 ± {about.random:.2f}."
        ]
        resampled = self.frame[self.frame.draw == RESAMPLES].set_index(["layer", "concept"])
        for row in self.best().to_dict("records"):
            other = resampled.loc[(row["layer"], row["concept"])]
            verdict = "comes back" if row["above"] else "is not shown to come back"
            lines.append(
                f"{row['concept']}: {_said(row)} between halves at layer {row['layer']}, its most stable (shuffled annotations "
                f"up to {two(row['shuffled_best_high'])} at their best layer); between resamples {_said(other)}, shuffled "
                f"{two(other.shuffled)}. The direction {verdict} from other texts."
            )
        kept = self.best().above
        lines.append(
            f"{int(kept.sum())} of {len(kept)} directions are more alike between halves than shuffled annotations make them "
            f"({0.025 * len(kept):.1f} would be by chance). Brackets hold 95% of the draws; a half has half the texts, and "
            "more texts may be expected to give more alike directions."
        )
        return "\n".join(lines)

    def plot(self, concepts: Sequence[str] | None = None) -> Figure:
        """Draw the cosine by layer, one panel per concept (by default the first six), with shuffled annotations beside it.

        Raises `InputError` for a concept that is not there.
        """
        known = list(dict.fromkeys(self.frame.concept))
        concepts = known[:PANELS] if concepts is None else list(concepts)
        for name in concepts:
            if name not in known:
                raise InputError(f"no directions of {name!r}: there are {', '.join(known)}")
        with drawing.styled():
            figure, axes = drawing.tiled(len(concepts), height=2.3, sharey=True)
            for axis, concept in zip(axes, concepts, strict=True):
                _panel(axis, self.frame[self.frame.concept == concept])
                axis.set_title(concept)
            axes[0].set_ylabel("cosine")
            drawing.legend_below(figure, axes[0], 3)
        return figure

    def __repr__(self) -> str:
        return f"<Stability of {self.frame.concept.nunique()} directions of {self.model} on {self.corpus}>"

    def _repr_html_(self) -> str:
        return shown(self.report(), self.plot(), self.frame)


def _said(row: Any) -> str:
    return f"{two(row['cosine'])} [{two(row['low'])}, {two(row['high'])}]"


def _panel(axis: Any, frame: pd.DataFrame) -> None:
    for name, colour, style in ((HALVES, drawing.BLUE, "--"), (RESAMPLES, drawing.GREEN, ":")):
        part = frame[frame.draw == name]
        # One grey band is enough: the other would lie across it.
        bounds = (part.shuffled_low, part.shuffled_high) if name == HALVES else (None, None)
        drawing.control(axis, part.layer, part.shuffled, *bounds, label=f"{name}, shuffled", style=style)
        drawing.line(axis, part.layer, part.cosine, part.low, part.high, label=name, colour=colour)
    random = frame.random.iloc[0]
    axis.axhspan(
        -random, random, color=drawing.INK, alpha=0.12, linewidth=0, label="random directions ± 1 sd"
    )
    axis.set_xlabel("layer")
    axis.xaxis.get_major_locator().set_params(integer=True)
