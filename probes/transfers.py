"""Do probes of one corpus read another? Fitted on A, tested on B, for all pairs of corpora and the concepts that they share.

What a probe has learned of its corpus alone (its topics, its style, its annotators) does not help it on another. The layer at
which A's probe reads B is chosen on A, by cross-validation, so that no choice was made on what is tested. Beside each score
stand the embedding, a bag of words and shuffled annotations, all fitted on A and tested on the same texts of B, and what A's
probe reads in texts of its own corpus that it has not seen. Texts of B that A holds too are not tested on.

Scores are correlations and areas under the ROC curve, which do not ask that two corpora measure in the same units or have the
same share of a label: a probe that transfers so may still have to be calibrated anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.progress import Progress
from scipy.stats import false_discovery_control
from scipy.stats import t as student

from emoprobe import drawing
from emoprobe.activations import Pool
from emoprobe.bars import bars
from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.intervals import distance_of_one_more, fisher_z
from emoprobe.layers import Layers
from emoprobe.models.live import LiveModel
from emoprobe.notebook import shown
from emoprobe.probes import metrics
from emoprobe.probes.estimators import Fit, Floats, LinearReadOut, Standardised
from emoprobe.probes.features import Features, few_threads, read_features
from emoprobe.probes.fit import gain, probe_layers
from emoprobe.probes.shared import fresh_texts, shared_concepts
from emoprobe.probes.summary import CONTROLS, METRICS, joined, two
from emoprobe.probes.tasks import Task
from emoprobe.probes.validation import SHUFFLE_TEXTS, expected_range, fit_words, shuffle, subset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = 4
FALSE_DISCOVERIES = 0.05
"""Share of the pairs called better than shuffled annotations that may be so by chance."""
NULL = ("shuffled", "shuffled_low", "shuffled_high")
COLUMNS = ["train", "test", "layer", "concept", "metric", "value", "low", "high", "chance", *NULL, "p"]
COLUMNS += [
    f"{control}{end}" for control in ("layer0", "bag_of_words") for end in ("", "_gain_low", "_gain_high")
]
COLUMNS += ["within", "within_low", "within_high", "chosen", "n", "groups", "left_out"]
KEPT = ["metric", "chance", "within", "within_low", "within_high", "chosen"]


def transfer(
    model: LiveModel,
    corpora: Sequence[Corpus],
    layers: Layers = "all",
    *,
    same: Mapping[str, str] | None = None,
    concepts: Sequence[str] | str | None = None,
    estimator: str = "auto",
    pool: Pool = "mean",
    start: int = 1,
    folds: int = 5,
    permutations: int = 20,
    bootstrap: int = 500,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> Transfer:
    """Fit probes on each corpus and test them on each other one, for every concept that two of them share at the least.

    Labels and dimensions are the same concept where they are of one kind and one name; `same` says which name means which
    other, {"happiness": "joy"}. `concepts` chooses among those shared. `layers`, `estimator`, `pool` and `start` are as in
    `fit_probes`, and so are `folds`, by which the layer is chosen on the corpus that is fitted on. The annotations fitted on
    are shuffled `permutations` times, the groups tested on resampled `bootstrap` times. Texts that two corpora share are warned
    of, and not tested on. Each corpus is read once, and all of their vectors are held, float32 (texts, layers, d_model).

    Raises `InputError` for fewer than two corpora, two of one name, concepts that are not shared, fewer than 4 permutations or
    40 resamples, and what `fit_probes` refuses.
    """
    if permutations < 4 or bootstrap < 40:
        raise InputError(
            f"permutations={permutations}, bootstrap={bootstrap}: give at least 4 and 40, so that both have a range"
        )
    names = shared_concepts(corpora, same or {}, [concepts] if isinstance(concepts, str) else concepts)
    reads = [
        read_features(
            model,
            corpus,
            layers,
            estimator=estimator,
            concepts=list(own),
            pool=pool,
            start=start,
            folds=folds,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
        for corpus, own in zip(corpora, names, strict=True)
    ]
    fresh = fresh_texts(corpora)
    parts = []
    with bars(progress) as bar:
        for here, source in enumerate(corpora):
            for task in reads[here].tasks:
                with few_threads(reads[here].vectors):
                    probe = _fitted(reads[here], task, names[here], (bootstrap, permutations, seed), bar)
                parts.append(probe.within.assign(train=source.name, test=source.name, left_out=0))
                for there, target in enumerate(corpora):
                    for other in reads[there].tasks if there != here else ():
                        found = probe.on(
                            reads[there], other, names[there], fresh[here, there], bootstrap, seed
                        )
                        parts.append(found.assign(train=source.name, test=target.name))
    order = list(dict.fromkeys(name for own in names for name in own.values()))
    frame = pd.concat([part for part in parts if len(part)])[COLUMNS]
    frame = frame.sort_values("concept", key=lambda column: column.map(order.index), kind="stable")
    return Transfer(model.name, tuple(corpus.name for corpus in corpora), frame.reset_index(drop=True))


# Fitted on one corpus, tested on another -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Probe:
    """Hold all that was fitted to one task of a corpus, at each of `layers`.

    `names` gives its shared concepts their common names; `null` has read-outs fitted to shuffled annotations, `words` reads
    texts out by a bag of words. `within` are the scores on held-out texts of the same corpus.
    """

    task: Task
    names: Mapping[str, str]
    layers: tuple[int, ...]
    read_outs: Sequence[LinearReadOut]
    null: Sequence[Sequence[LinearReadOut]]
    words: Callable[[Sequence[str]], Floats]
    within: pd.DataFrame

    def on(
        self,
        other: Features,
        target: Task,
        names: Mapping[str, str],
        fresh: NDArray[np.bool_],
        bootstrap: int,
        seed: int,
    ) -> pd.DataFrame:
        """Return the scores on a task of another corpus, on those of its texts that are `fresh`."""
        pairs = [
            (column, place, name)
            for column, name in _columns(self.task, self.names)
            for place, called in _columns(target, names)
            if called == name and target.kind == self.task.kind
        ]
        tested = np.flatnonzero(fresh[target.rows])
        if not pairs or not len(tested):
            return pd.DataFrame()
        columns, places, concepts = map(list, zip(*pairs, strict=True))
        group = np.unique(target.group[tested], return_inverse=True)[1]
        one_fold = np.zeros_like(group)
        weights = metrics.weighting(group, one_fold, bootstrap, seed)
        plain = metrics.weighting(group, one_fold)
        measure = metrics.correlation if target.kind == "dimension" else metrics.auc
        truth, groups = target.targets[tested][:, places], int(group.max()) + 1

        def score(predicted: Floats, by: metrics.Weighting) -> Floats:
            return measure(predicted[:, columns], truth, by)

        texts = other.texts_of(target)
        controls = {"bag_of_words": score(self.words([texts[row] for row in tested]), weights)}
        within = self.within.set_index(["layer", "concept"])
        parts = []
        for layer, read_out, null in zip(self.layers, self.read_outs, self.null, strict=True):
            features = other.at(layer, target)[tested]
            found = score(read_out(features), weights)
            controls.setdefault("layer0", found)  # the first layer is the embedding
            if layer not in other.chosen:
                continue
            shuffled = np.stack([score(one(features), plain)[0] for one in null])
            frame = within[KEPT].reindex([(layer, name) for name in concepts]).reset_index()
            frame["value"], (frame["low"], frame["high"]) = found[0], metrics.interval(found, groups)
            frame[list(NULL)] = expected_range(shuffled)
            frame["p"] = one_more(*(fisher(scores, target.kind) for scores in (found[0], shuffled)))
            for control, scores in controls.items():
                for name, values in gain(control, found, scores, groups):
                    frame[name] = values
            parts.append(frame)
        return pd.concat(parts).assign(
            n=len(tested), groups=groups, left_out=int(len(target.rows) - len(tested))
        )


def _fitted(
    read: Features, task: Task, names: Mapping[str, str], options: tuple[int, int, int], bar: Progress
) -> _Probe:
    """Fit a task's probes and its controls; `options` are the numbers of resamples and permutations, and the seed."""
    bootstrap, permutations, seed = options
    fit, texts = read.fit(task), read.texts_of(task)
    vectors = read.vectors[task.rows]
    scores, read_outs, _ = probe_layers(task, fit, vectors, texts, read.layers, (bootstrap, 0, seed), bar)
    null = [
        shuffled_fits(task, fit, read.at(layer, task), permutations, np.random.default_rng(seed))
        for layer in read.layers
    ]
    mine = {task.concepts[column]: name for column, name in _columns(task, names)}
    within = scores[scores.layer.isin(read.chosen) & scores.concept.isin(mine)]
    within = within.assign(concept=within.concept.map(mine), p=np.nan).reset_index(drop=True)
    for end in ("", "_low", "_high"):
        within[f"within{end}"] = within[end[1:] or "value"]
    best = within.value.fillna(-1).groupby(within.concept).idxmax()
    within["chosen"] = within.index.isin(best)
    words = fit_words(task, texts, task.targets, task.group, seed)
    return _Probe(task, names, read.layers, read_outs, null, words, within)


def _columns(task: Task, names: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Yield the columns of a task that are shared, with their common names."""
    yield from ((column, names[name]) for column, name in enumerate(task.concepts) if name in names)


def shuffled_fits(
    task: Task, fit: Fit, features: Floats, permutations: int, order: np.random.Generator
) -> list[LinearReadOut]:
    """Fit a task's probes to annotations that are shuffled over groups, so many times; on a part of very many texts."""
    some = subset(task, SHUFFLE_TEXTS, order)
    group = np.unique(task.group[some], return_inverse=True)[1]
    targets = [task.targets[some][shuffle(group, order)] for _ in range(permutations)]
    if task.kind != "dimension":
        texts = Standardised(features[some])
        return [fit(texts, one, group) for one in targets]
    together = fit(features[some], np.hstack(targets), group)  # columns do not influence each other
    parts = (np.split(part, permutations) for part in (together.weights, together.offsets))
    return [LinearReadOut(weights, offsets) for weights, offsets in zip(*parts, strict=True)]


def fisher(scores: Floats, kind: str) -> Floats:
    """Return Fisher's z of correlations, or for labels of 2·AUC − 1: near their bounds scores are far from normal."""
    return fisher_z(scores if kind == "dimension" else 2 * scores - 1)


def one_more(values: Floats, null: Floats) -> Floats:
    """Return the probability that one more of the normal values `null` (times, columns) is as high as `values` (columns,)."""
    p: Floats = student.sf(distance_of_one_more(values, null), len(null) - 1)
    return p


# What came of it -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Transfer:
    """Hold how well probes of each corpus read each other one."""

    model: str
    corpora: tuple[str, ...]
    frame: pd.DataFrame
    """One row per corpus fitted on (train), corpus tested on (test), layer and shared concept: train, test, layer, concept,
    metric, value, low, high (95% interval over resampled groups tested on), chance, shuffled, shuffled_low, shuffled_high (mean
    and 95% range of probes fitted to shuffled annotations), p (that one more of these is as high, from Fisher's z), layer0,
    layer0_gain_low, layer0_gain_high (the embedding's score, and the 95% interval of value − layer0), bag_of_words and its gain
    likewise, within, within_low, within_high (what the probe reads in held-out texts of its own corpus), chosen (whether the
    layer is that at which it reads these best), n, groups (texts and groups tested on), left_out (texts that train holds too).
    Where train is test, the scores are those of cross-validation, without shuffling."""

    def pairs(self) -> pd.DataFrame:
        """Return the rows of different corpora at the layer chosen on the one fitted on, with columns `q` and `fails`.

        `q` is p with the false discovery rate over all these rows controlled (Benjamini & Hochberg 1995), and `fails` lists the
        controls that are not passed: shuffled annotations at q ≤ 0.05, the others by a gain whose interval lies above 0.
        """
        found = self.frame[self.frame.chosen & (self.frame.train != self.frame.test)]
        known = found.p.notna()
        q = pd.Series(np.nan, index=found.index)
        q[known] = false_discovery_control(found.p[known])
        found = found.assign(q=q)
        return found.assign(
            fails=pd.Series([_fails(row) for row in found.to_dict("records")], found.index, dtype=object)
        )

    def matrix(self, concept: str, column: str = "value") -> pd.DataFrame:
        """Return a column of `frame` for a concept, corpora fitted on × corpora tested on, at the layer chosen on the former.

        Raises `InputError` for a concept that is not shared.
        """
        found = self.frame[(self.frame.concept == concept) & self.frame.chosen]
        if found.empty:
            raise InputError(
                f"no {concept!r} is shared: there are {', '.join(dict.fromkeys(self.frame.concept))}"
            )
        there = [name for name in self.corpora if name in set(found.train)]
        return found.pivot(index="train", columns="test", values=column).loc[there, there]

    def report(self) -> str:
        """Say for each concept how well probes read other corpora, beside their own and beside the controls."""
        pairs = self.pairs()
        lines = [
            f"Probes of {self.model} fitted on one corpus and tested on another ({', '.join(self.corpora)}), at the layer that "
            "reads best in held-out texts of the former."
        ]
        for concept, found in pairs.groupby("concept", sort=False):
            lines.append(_sentence(str(concept), found.sort_values("value")))
        passed = int((pairs.fails.str.len() == 0).sum())
        lines.append(
            f"{passed} of {len(pairs)} pairs are above all controls: shuffled annotations (of those above, at most "
            f"{FALSE_DISCOVERIES:.0%} by chance), the embedding and a bag of words (95% intervals over groups tested on, each "
            "pair by itself)."
        )
        return "\n".join(lines)

    def plot(self, concepts: Sequence[str] | None = None) -> Figure:
        """Draw a matrix for each concept (by default the first four), corpora fitted on by corpora tested on, and one of words.

        On the diagonal are cross-validated scores. For labels 2·AUC − 1 is drawn, which like r is 0 at chance.
        """
        known = list(dict.fromkeys(self.frame.concept))
        concepts = known[:PANELS] if concepts is None else list(concepts)
        shown = [
            [self._effect(concept, column) for column in ("value", "bag_of_words")] for concept in concepts
        ]
        with drawing.styled():
            height = 1.3 + 0.34 * max(len(values) for values, _ in shown)
            figure, grid = drawing.panels(len(concepts), 2, height=height, sharey="row")
            for axes, concept, found in zip(grid, concepts, shown, strict=True):
                for axis, what, (matrix, measure) in zip(axes, ("probe", "bag of words"), found, strict=True):
                    corpora = matrix.index.tolist()
                    drawing.heat(axis, matrix.to_numpy(), corpora, corpora, limit=1, numbers="+.2f")
                    axis.set_title(f"{concept}, {what}: {measure}")
                axes[0].set_ylabel("fitted on")
            for axis in grid[-1]:
                axis.set_xlabel("tested on")
        return figure

    def _effect(self, concept: str, column: str) -> tuple[pd.DataFrame, str]:
        matrix = self.matrix(concept, column)
        if (self.frame.metric[self.frame.concept == concept] == "auc").all():
            return 2 * matrix - 1, "2·AUC − 1"
        return matrix, METRICS["pearson_r"]

    def __repr__(self) -> str:
        return f"<Transfer of {self.model} between {', '.join(self.corpora)}: {self.frame.concept.nunique()} concepts>"

    def _repr_html_(self) -> str:
        return shown(self.report(), self.plot(), self.pairs().drop(columns="fails").reset_index(drop=True))


def _fails(row: Mapping[Any, Any]) -> list[str]:
    """List the controls that a pair does not pass; one that could not be measured is not passed."""
    passed = {
        "shuffled": row["q"] <= FALSE_DISCOVERIES,
        **{control: row[f"{control}_gain_low"] > 0 for control in ("layer0", "bag_of_words")},
    }
    return [CONTROLS[control] for control, held in passed.items() if not held]


def _sentence(concept: str, found: pd.DataFrame) -> str:
    """Say what came of one concept, over its pairs of corpora in order of their scores."""
    worst, middle, best = found.value.iloc[0], found.value.median(), found.value.iloc[-1]
    within = found.drop_duplicates("train").within
    passed = [f"{row['train']} on {row['test']}" for row in found.to_dict("records") if not row["fails"]]
    named = f" ({joined(passed)})" if 0 < len(passed) <= 6 else ""
    return (
        f"{concept}: {METRICS[found.metric.iloc[0]]} {two(worst)} to {two(best)} over {len(found)} pairs, median "
        f"{two(middle)}, beside {two(within.min())} to {two(within.max())} within the corpora fitted on; medians of the "
        f"embedding {two(found.layer0.median())}, a bag of words {two(found.bag_of_words.median())}, shuffled annotations "
        f"{two(found.shuffled.median())}. Above all controls: {len(passed)}{named}."
    )
