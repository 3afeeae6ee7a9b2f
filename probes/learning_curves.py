"""How many texts are enough? A probe's score on texts held back, against the number of texts that it was fitted to.

Each fold's texts are held back in turn, and read by probes fitted to texts of the other folds. From these, whole groups are
drawn in random order, several times; a smaller number of texts is the beginning of the same order as a larger one, so that what
more texts add is paired. The model reads the texts once. Beside the probe stand the embedding, a bag of words and shuffled
annotations, fitted to the same texts.

Intervals come from resampling the groups read and, along with them, the draws. They hold for this pool of texts: how a curve
over other texts would run, they do not say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
from rich.progress import Progress

from emoprobe import drawing
from emoprobe.activations import Pool
from emoprobe.bars import bars
from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.layers import Layers
from emoprobe.models.live import LiveModel
from emoprobe.notebook import shown
from emoprobe.probes import metrics
from emoprobe.probes.estimators import Floats, Integers
from emoprobe.probes.features import Features, few_threads, read_features
from emoprobe.probes.probe_set import LABELS
from emoprobe.probes.summary import METRICS, draw_scores, two
from emoprobe.probes.tasks import Task
from emoprobe.probes.validation import expected_range, fit_words, shuffle, subset

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALLEST, MOST_SIZES = 32, 6
MARGIN = 0.02
"""A curve is flat from where all texts still to come add no more than this to the score."""
PANELS = 6
COLUMNS = "concept metric size value low high chance shuffled shuffled_low shuffled_high".split()
COLUMNS += [
    f"{control}{end}" for control in ("layer0", "bag_of_words") for end in ("", "_gain_low", "_gain_high")
]
COLUMNS += ["missing", "missing_low", "missing_high"]
VERDICTS = ("flat", "rises", "open", "unread")
Reader: TypeAlias = Callable[[Integers, Integers], Floats]
"""From positions of texts to fit to and of texts held back, to predictions for the latter (texts, concepts)."""


def learning_curve(
    model: LiveModel,
    corpus: Corpus,
    layers: Layers,
    *,
    sizes: Sequence[int] | None = None,
    folds: int = 4,
    repeats: int = 4,
    estimator: str = "auto",
    concepts: Sequence[str] | str | None = None,
    pool: Pool = "mean",
    start: int = 1,
    bootstrap: int = 500,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> LearningCurve:
    """Score probes that were fitted to ever more texts, on groups held back from them.

    `sizes` are numbers of texts to fit to, in whole groups and so at most as many; by default half of the texts that are not
    held back, half of that, and so on down to 32. Each is drawn `repeats` times for each of the `folds`; all texts that are
    there come last. `layers`, `estimator`, `concepts`, `pool` and `start` are as in `fit_probes`; the groups are resampled
    `bootstrap` times.

    Raises `InputError` for sizes and repeats below 2, fewer than 40 resamples, and what `fit_probes` refuses.
    """
    if sizes is not None and (not len(sizes) or min(sizes) < 2):
        raise InputError(f"sizes={list(sizes)}: give numbers of texts, at least 2 each")
    if repeats < 2:
        raise InputError(f"repeats={repeats}: draw at least 2 sets of texts of each size")
    if bootstrap < 40:
        raise InputError(f"bootstrap={bootstrap}: give at least 40 resamples, so that a 95% interval exists")
    read = read_features(
        model,
        corpus,
        layers,
        estimator=estimator,
        concepts=concepts,
        pool=pool,
        start=start,
        folds=folds,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    with bars(progress) as bar, few_threads(read.vectors):
        parts = [_curves(read, task, sizes, repeats, bootstrap, seed, bar) for task in read.tasks]
    frame = pd.concat(parts)
    frame = frame[frame.concept.isin([LABELS, *read.concepts])]
    frame.insert(0, "layer", frame.pop("layer"))
    return LearningCurve(model.name, corpus.name, repeats, frame.reset_index(drop=True))


def sizes_for(texts: int, sizes: Sequence[int] | None = None) -> list[int]:
    """Return the numbers of texts to fit to, ascending, of which the last is all of them."""
    if sizes is None:
        sizes = [texts >> halved for halved in range(MOST_SIZES) if texts >> halved >= SMALLEST]
    return sorted({size for size in sizes if size < texts} | {texts})


def beginnings(task: Task, sizes: Sequence[int], seed: Sequence[int]) -> list[list[Integers]]:
    """Draw texts of each size for each fold, from the other folds: positions by size and fold.

    They are whole groups in random order, which for each fold is the same at all sizes.
    """
    drawn: list[list[Integers]] = [[] for _ in sizes]
    for number in range(int(task.fold.max()) + 1):
        rest = np.flatnonzero(task.fold != number)
        group = np.unique(task.group[rest], return_inverse=True)[1]
        others = replace(
            task, rows=task.rows[rest], targets=task.targets[rest], group=group, fold=task.fold[rest]
        )
        for size, place in zip(sizes, drawn, strict=True):
            place.append(rest[subset(others, size, np.random.default_rng([*seed, number]))])
    return drawn


def _curves(
    read: Features,
    task: Task,
    sizes: Sequence[int] | None,
    repeats: int,
    bootstrap: int,
    seed: int,
    bar: Progress,
) -> pd.DataFrame:
    """Return a task's scores at every size and layer asked for, with their controls."""
    numbers = sizes_for(len(task.rows) - int(np.bincount(task.fold).min()), sizes)
    # By draw, size and fold; turned to go through them by size.
    draws = list(zip(*(beginnings(task, numbers, [seed, draw]) for draw in range(repeats)), strict=True))
    weights = metrics.weighting(task.group, task.fold, bootstrap, seed)
    shares = _resampled_shares(repeats, bootstrap, seed)

    def predicted(reader: Reader, samples: Sequence[Integers]) -> Floats:
        result = np.empty(task.targets.shape)
        for number, rows in enumerate(samples):
            held_out = np.flatnonzero(task.fold == number)
            result[held_out] = reader(rows, held_out)
        return result

    def averaged(reader: Reader) -> Floats:
        """Return the mean scores over draws, resampled along with the groups: (1 + resamples, sizes, measures)."""
        scores = [
            [task.score(predicted(reader, samples), task.targets, weights) for samples in same]
            for same in (*draws[:-1], draws[-1][:1])  # all draws of all texts are the same
        ]
        scores[-1] *= repeats
        mean: Floats = np.einsum("br,srbm->bsm", shares, np.array(scores))
        return mean

    def by_chance(reader: Reader) -> Floats:
        """Return the expected range of scores of probes fitted to shuffled annotations, (sizes, measures, 3)."""
        scores = [
            [task.score(predicted(reader, samples), task.targets, task.plain)[0] for samples in same]
            for same in draws
        ]
        return np.array([expected_range(np.array(same)) for same in scores])

    controls = {"bag_of_words": averaged(_words_reader(read, task, seed))}
    frames = []
    for layer in bar.track(read.layers, description=f"learning {task.kind}s from more and more texts"):
        found = averaged(_probe_reader(read, task, layer))
        controls.setdefault("layer0", found)  # the first layer is the embedding
        if layer in read.chosen:
            null = by_chance(_probe_reader(read, task, layer, np.random.default_rng(seed)))
            frames.append(_frame(task, numbers, found, controls, null).assign(layer=layer))
    texts = [np.mean([len(rows) for samples in same for rows in samples]) for same in draws]
    frame = pd.concat(frames)
    return frame.assign(
        texts=frame["size"].map(dict(zip(numbers, texts, strict=True))), n=len(task.rows), groups=task.groups
    )


def _resampled_shares(repeats: int, resamples: int, seed: int) -> Floats:
    """Return the share that each draw has in the mean over draws, (1 + resamples, repeats): equal in the first row.

    Resampling few draws makes their mean vary too little, by a factor that the shares are freed of.
    """
    drawn = np.random.default_rng(seed).multinomial(repeats, [1 / repeats] * repeats, 1 + resamples) / repeats
    shares: Floats = 1 / repeats + (drawn - 1 / repeats) * np.sqrt(repeats / (repeats - 1))
    shares[0] = 1 / repeats
    return shares


def _probe_reader(read: Features, task: Task, layer: int, order: np.random.Generator | None = None) -> Reader:
    """Return what fits a probe at a layer; with `order`, to annotations that it shuffles over groups."""
    fit, features = read.fit(task), read.at(layer, task)

    def reader(rows: Integers, held_out: Integers) -> Floats:
        targets, group = task.targets[rows], np.unique(task.group[rows], return_inverse=True)[1]
        if task.exclusive and len(np.unique(targets.argmax(1))) == 1:  # nothing to tell apart
            return np.tile(targets[0], (len(held_out), 1))
        if order is not None:
            targets = targets[shuffle(group, order)]
        return fit(features[rows], targets, group)(features[held_out])

    return reader


def _words_reader(read: Features, task: Task, seed: int) -> Reader:
    texts = np.array(read.texts_of(task), dtype=object)

    def reader(rows: Integers, held_out: Integers) -> Floats:
        fitted = fit_words(task, texts[rows].tolist(), task.targets[rows], task.group[rows], seed)
        return fitted(texts[held_out].tolist())

    return reader


def _frame(
    task: Task, sizes: Sequence[int], found: Floats, controls: Mapping[str, Floats], null: Floats
) -> pd.DataFrame:
    """Tabulate scores (1 + resamples, sizes, measures) beside controls of the same shape and shuffled ranges."""
    concepts, names = zip(*task.measures, strict=True)
    columns: dict[str, Any] = {
        "size": np.repeat(sizes, len(names)),
        "concept": concepts * len(sizes),
        "metric": names * len(sizes),
        "value": found[0].ravel(),
        "chance": task.chance * len(sizes),
    }
    bounds = (-1, 1) if task.kind == "dimension" else (0, 1)
    shuffled = np.clip(null.reshape(-1, 3).T, *bounds)
    columns |= dict(zip(("shuffled", "shuffled_low", "shuffled_high"), shuffled, strict=True))
    for control, scores in controls.items():
        columns[control] = scores[0].ravel()
    compared = {"": found, "missing_": found[:, -1:] - found}
    compared |= {f"{control}_gain_": found - scores for control, scores in controls.items()}
    for name, scores in compared.items():
        low, high = (end.ravel() for end in metrics.interval(scores, task.groups))
        columns |= {f"{name}low": low, f"{name}high": high}
    columns |= {end: np.clip(columns[end], *bounds) for end in ("low", "high")}
    columns["missing"] = compared["missing_"][0].ravel()
    return pd.DataFrame(columns)[[column for column in COLUMNS if column in columns]]


# What came of it -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class LearningCurve:
    """Hold scores on texts held back, by the number of texts that were fitted to."""

    model: str
    corpus: str
    repeats: int
    frame: pd.DataFrame
    """One row per layer, concept, metric and size: layer, concept, metric, size (texts asked for), texts (mean number drawn, in
    whole groups), value (mean over draws), low, high (95% interval over resampled groups and draws), chance, shuffled,
    shuffled_low, shuffled_high (mean and 95% range with shuffled annotations), layer0, layer0_gain_low, layer0_gain_high (the
    embedding's score, and the 95% interval of value − layer0), bag_of_words and its gain likewise, missing, missing_low,
    missing_high (what all texts score above this size, and its 95% interval), n, groups (texts and groups that are scored)."""

    def verdicts(self, margin: float = MARGIN) -> pd.DataFrame:
        """Say of each curve whether it is flat, still rises, or cannot be told: one row per layer, concept and metric.

        `enough` is the smallest size from which on, at every size, all texts score above it by no more than `margin` at the
        upper end of the 95% interval; NaN where only all texts will do. `verdict` is "flat" where there is one, "rises" where
        all texts score above the next smaller size at the lower end of that interval, "unread" where all texts do not read
        better than shuffled annotations may, and otherwise "open".
        """
        rows = []
        for key, curve in self.frame.groupby(["layer", "concept", "metric"], sort=False):
            curve = curve.sort_values("size")
            short = curve.iloc[:-1]
            within = (short.missing_high <= margin)[::-1].cumprod().astype(bool)[::-1]
            last, whole = short.iloc[-1] if len(short) else None, curve.iloc[-1]
            verdict = "open"
            if not whole.value > whole.shuffled_high:
                verdict = "unread"
            elif within.any():
                verdict = "flat"
            elif last is not None and last.missing_low > 0:
                verdict = "rises"
            enough = short["size"][within].min() if verdict == "flat" else np.nan
            rows.append(
                {
                    **dict(zip(("layer", "concept", "metric"), key, strict=True)),
                    "verdict": verdict,
                    "enough": enough,
                }
            )
        return pd.DataFrame(rows)

    def report(self, margin: float = MARGIN) -> str:
        """Say how many texts are enough at each layer for each dimension and all labels, beside the controls; see `verdicts`.

        Single labels are counted.
        """
        first = self.frame.iloc[0]
        lines = [
            f"Learning curves of {self.model} on {self.corpus}, {first.n} texts of {first.groups} groups, each read by probes "
            f"fitted to others; {self.repeats} draws of each size, and 95% intervals over groups and draws."
        ]
        curves = self.frame.groupby(["layer", "concept", "metric"], sort=False)
        verdicts = self.verdicts(margin)
        single = verdicts.metric == "auc"
        for row in verdicts[~single].to_dict("records"):
            curve = curves.get_group((row["layer"], row["concept"], row["metric"])).sort_values("size")
            lines.append(_sentence(row, curve, margin))
        for layer, labels in verdicts[single].groupby("layer"):
            counts = labels.verdict.value_counts()
            said = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in VERDICTS)
            lines.append(f"Single labels, layer {layer}, {len(labels)} curves: {said}.")
        return "\n".join(lines)

    def plot(self, concepts: Sequence[str] | None = None, layer: int | None = None) -> Figure:
        """Draw score by number of texts at one layer (by default the deepest), one panel per concept, beside its controls.

        By default the concepts are the dimensions and, for labels, "(labels)". Raises `InputError` for a concept or layer that
        is not there.
        """
        layer = int(self.frame.layer.max()) if layer is None else layer
        frame = self.frame[self.frame.layer == layer]
        if frame.empty:
            raise InputError(f"no curve at layer {layer}: there are {sorted(set(self.frame.layer))}")
        known = list(dict.fromkeys(frame.concept))
        if concepts is None:
            concepts = [name for name in known if not (frame.metric[frame.concept == name] == "auc").all()][
                :PANELS
            ]
        for name in concepts:
            if name not in known:
                raise InputError(f"no curve of {name!r}: there are {', '.join(known)}")
        with drawing.styled():
            figure, axes = drawing.tiled(len(concepts), height=2.3)
            for axis, concept in zip(axes, concepts, strict=True):
                _panel(axis, frame[frame.concept == concept].sort_values("size"))
            drawing.legend_below(figure, axes[0])
        return figure

    def __repr__(self) -> str:
        return f"<LearningCurve of {self.model} on {self.corpus}: {', '.join(map(str, sorted(set(self.frame['size']))))} texts>"

    def _repr_html_(self) -> str:
        return shown(self.report(), self.plot(), self.frame)


def _sentence(row: Mapping[Any, Any], curve: pd.DataFrame, margin: float) -> str:
    whole = curve.iloc[-1]
    name = "All labels" if row["concept"] == LABELS else row["concept"]
    said = (
        f"{name}, layer {row['layer']}: {METRICS[row['metric']]} {two(whole.value)} [{two(whole.low)}, {two(whole.high)}] "
        f"from {whole['size']} texts (embedding {two(whole.layer0)}, bag of words {two(whole.bag_of_words)}, shuffled up to "
        f"{two(whole.shuffled_high)})"
    )
    if row["verdict"] == "unread":
        return f"{said}: not shown to be above shuffled annotations, so that its curve says nothing."
    if row["verdict"] == "flat":
        enough = curve[curve["size"] == row["enough"]].iloc[0]
        return (
            f"{said}; {enough['size']} texts are enough: all of them add {_span(enough)}, no more than {margin:g}, to their "
            f"{two(enough.value)}."
        )
    if len(curve) < 2:
        return f"{said}; of fewer nothing is known."
    last = curve.iloc[-2]
    step = f"from {last['size']} to {whole['size']} texts it gained {_span(last)}"
    if row["verdict"] == "rises":
        return f"{said}; the curve still rises: {step}."
    return f"{said}; whether it still rises cannot be told: {step}."


def _span(row: pd.Series[Any]) -> str:
    return f"{row.missing:+.3f} [{row.missing_low:+.3f}, {row.missing_high:+.3f}]"


def _panel(axis: Axes, curve: pd.DataFrame) -> None:
    draw_scores(axis, curve.texts, curve)
    axis.set(xlabel="texts fitted to", xscale="log")
    axis.set_xticks(curve.texts.tolist(), [f"{texts:.0f}" for texts in curve.texts], minor=False)
    axis.minorticks_off()
