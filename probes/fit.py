"""Fitting probes: capture once, then at every layer cross-validate, shuffle, and fit on everything.

One pass over the corpus gives pooled features and the statistics of single tokens; a second, over a sample, measures how far
tokens spread along each direction. Everything is seeded: the same call gives the same probe set.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from rich.progress import Progress
from scipy.sparse import csr_array
from scipy.stats import false_discovery_control
from torch import Tensor

from emoprobe.activations import Pool
from emoprobe.artefacts import versions
from emoprobe.bars import bars
from emoprobe.checks import check_seed
from emoprobe.corpora import Corpus
from emoprobe.errors import ConfoundWarning, InputError
from emoprobe.layers import Layers
from emoprobe.models.live import LiveModel
from emoprobe.probes import metrics
from emoprobe.probes.confounds import GROUP, candidates, check_confounds, check_values, corrected
from emoprobe.probes.control_task import control_targets
from emoprobe.probes.direction_stability import agreement, halves
from emoprobe.probes.estimators import Fit, Floats, Integers, LinearReadOut
from emoprobe.probes.features import few_threads, read_features
from emoprobe.probes.probe_set import COLUMNS, CONFOUNDS, LABELS, ProbeSet
from emoprobe.probes.random_features import random_features, token_shares
from emoprobe.probes.tasks import Task
from emoprobe.probes.tokens import TokenMeans, sampled, token_spread
from emoprobe.probes.validation import (
    SHUFFLE_TEXTS,
    Validated,
    bag_of_words,
    described,
    expected_range,
    out_of_fold,
    permutation_p,
    subset,
    times,
    validate,
)

if TYPE_CHECKING:
    from emoprobe.workers import RayWorkers

SPLITS = 3
"""How often the groups are dealt into halves."""
SHUFFLES = {"label": 2, "dimension": 10}
"""How often annotations are shuffled for each of these."""


def fit_probes(
    model: LiveModel,
    corpus: Corpus,
    layers: Layers = "all",
    *,
    estimator: str = "auto",
    concepts: Sequence[str] | None = None,
    level: str = "text",
    pool: Pool = "mean",
    start: int = 1,
    folds: int = 5,
    permutations: int = 10,
    bootstrap: int = 500,
    batch_size: int = 32,
    seed: int = 0,
    confounds: Mapping[str, Sequence[object]] | None = None,
    keep: str | os.PathLike[str] | None = None,
    workers: RayWorkers | None = None,
    progress: bool = True,
) -> ProbeSet:
    """Fit a linear probe for each concept at each layer, with cross-validated scores and their controls.

    `estimator` is "mean_difference", "ridge", "logistic" (labels only; dimensions beside them get ridge) or "auto": logistic
    for labels, ridge for dimensions. `concepts` chooses among the corpus's labels and dimensions. `level` says what is probed:
    each "text", or its annotated parts ("sentence", "span", "token"), see `emoprobe.probes.units`. `pool` and `start` say how
    one becomes a vector, see `emoprobe.activations.capture`. No group of the corpus is cut by one of the `folds`. The
    annotations are shuffled `permutations` times (dimensions, where that costs little, at least 100 times) and the groups
    resampled `bootstrap` times; 0 leaves the control or the intervals out. Texts without an annotation for a concept are left
    out for it.

    What else the annotations may go with is looked for too, see `emoprobe.probes.confounds`: the texts' length, punctuation,
    opening, ending and names, the corpus's sources, and `confounds`, names with one value per text (a speaker, a template, a
    number of tokens). A `ConfoundWarning` tells of annotations that are the same all over each group, which no folds can tell
    from it.

    With `keep`, a folder, the texts' vectors are kept there shard by shard while they are read, so that the same fit, broken
    off and called again, goes on behind the last shard, to the same end; see `emoprobe.activation_store`. `workers`, see
    `emoprobe.ray_workers`, read the texts side by side.

    Raises `InputError` for an unknown concept, for "logistic" without labels, and for fewer groups than folds.
    """
    _check_options(permutations, bootstrap)
    check_seed(seed)
    tokens = TokenMeans(pool)
    read = read_features(
        model,
        corpus,
        layers,
        estimator=estimator,
        concepts=concepts,
        level=level,
        pool=tokens,
        start=start,
        folds=folds,
        batch_size=batch_size,
        seed=seed,
        keep=keep,
        workers=workers,
        progress=progress,
    )
    tasks, texts, chosen, units = read.tasks, read.texts, read.chosen, read.units
    options = (bootstrap, permutations, seed)
    shares = token_shares(model, texts, start, batch_size) if units is None else units.shares
    further = {"source": corpus.data["source"][:], **(confounds or {})}
    check_values(further, len(corpus))
    if units is not None:
        further = {name: [values[row] for row in units.text_of] for name, values in further.items()}
    suspects = candidates(texts, further) if permutations and bootstrap else {}
    with bars(progress) as bar, few_threads(read.vectors):
        found = [
            probe_layers(
                task,
                read.fit(task),
                read.vectors[task.rows],
                read.texts_of(task),
                read.layers,
                options,
                bar,
                shares[task.rows],
            )
            for task in tasks
        ]
        kinds = {name: kind for name, kind in corpus.concepts if name in read.concepts}
        scores = tidied(pd.concat([probed.scores for probed in found]), chosen, [LABELS, *kinds])
        best = best_layers(scores, chosen[0])
        checked = [
            check_confounds(
                task,
                best,
                {layer: probed.held_out[read.layers.index(layer)] for layer in set(best.values())},
                {name: z[task.rows] for name, z in suspects.items()},
                options,
            )
            for task, probed in zip(tasks, found, strict=True)
            if suspects
        ]
    directions, scale, offset = _stacked(tasks, [probed.read_outs for probed in found], list(kinds))
    kept = [read.layers.index(layer) for layer in chosen]
    mean, sample = tokens.mean[kept], sampled(corpus.texts, seed)
    return ProbeSet(
        model=model.name,
        n_layers=model.n_layers,
        fingerprint=model.fingerprint(),
        layers=chosen,
        concepts=tuple(kinds),
        kinds=kinds,
        ranges={name: bounds for name, bounds in corpus.dimensions.items() if name in kinds},
        directions=directions[kept],
        scale=scale[kept],
        offset=offset[kept],
        reference_mean=mean,
        reference_std=token_spread(model, sample, chosen, directions[kept], mean, start, batch_size),
        residual_norms=tokens.norm[kept],
        scores=scores,
        metadata={
            "estimators": read.estimators,
            "pool": pool if isinstance(pool, str) else getattr(pool, "__name__", type(pool).__name__),
            "start": start,
            "folds": folds,
            "bootstrap": bootstrap,
            "permutations": {kind: times(kind, permutations) for kind in ("label", "dimension")},
            "shuffled_labels_texts": SHUFFLE_TEXTS,
            "spread_texts": len(sample),
            "seed": seed,
            "corpus": corpus.name,
            "corpus_fingerprint": corpus.fingerprint,
            "texts": len(corpus),
            "level": level,
            "versions": versions(),
        },
        basis=model.basis,
        confounds=_confounds(checked, [LABELS, *kinds], corpus.name),
    )


def _confounds(checked: Sequence[pd.DataFrame], concepts: Sequence[str], corpus: str) -> pd.DataFrame:
    """Return what was found of these concepts, and warn of those that are the same all over each group."""
    if not checked:
        return pd.DataFrame(columns=CONFOUNDS)
    found = pd.concat(checked, ignore_index=True)
    found = corrected(found[found.concept.isin(concepts)].reset_index(drop=True))
    same = found[(found.confound == GROUP) & (found.left == 0) & (found.concept != LABELS)]
    if len(same):
        warnings.warn(
            f"{corpus}: {', '.join(same.concept)} annotated the same all over each group: groups held out cannot tell it from "
            "what a group's texts have in common; annotate more texts of each group, or give groups that vary",
            ConfoundWarning,
            stacklevel=3,
        )
    return found


def best_layers(scores: pd.DataFrame, otherwise: int) -> dict[str, int]:
    """Return each concept's layer with the highest score; `otherwise` where nothing was scored."""
    best = dict.fromkeys(scores.concept, otherwise)
    known = scores.dropna(subset="value")
    rows = known.loc[known.groupby("concept").value.idxmax()]
    return best | dict(zip(rows.concept, rows.layer.tolist(), strict=True))


class Probed(NamedTuple):
    """Hold what `probe_layers` finds: scores, and for each layer the read-outs of all texts and the held-out predictions."""

    scores: pd.DataFrame
    read_outs: list[LinearReadOut]
    held_out: list[Floats]
    """(texts, concepts) each, every text predicted by a fit that has not seen its fold."""


def probe_layers(
    task: Task,
    fit: Fit,
    features: Tensor,
    texts: Sequence[str],
    layers: Sequence[int],
    options: tuple[int, int, int],
    bar: Progress,
    shares: csr_array | None = None,
) -> Probed:
    """Return a task's scores at all layers, with their controls, and the read-outs fitted on all of its texts.

    `features` is (texts, layers, d_model), the first layer being the embedding; `options` are the numbers of resamples and
    permutations, and the seed. The controls are shuffled annotations, the embedding and a bag of words; with the texts' tokens,
    `shares`, also random features of the tokens, a control task and the likeness of directions fitted to halves of the groups.
    """
    bootstrap, permutations, seed = options
    weights = metrics.weighting(task.group, task.fold, bootstrap, seed)
    controls = {"bag_of_words": bag_of_words(task, texts, weights, seed)}
    part = subset(task, SHUFFLE_TEXTS, np.random.default_rng(seed))
    beside = None
    if shares is not None:
        random = random_features(shares, features.shape[-1], seed)
        held_out = out_of_fold(fit, random, task.targets, task.group, task.fold)
        controls["random_features"] = task.score(held_out, task.targets, weights)
        beside = part, control_targets(task, texts, part, seed)
    scores: list[pd.DataFrame] = []
    read_outs: list[LinearReadOut] = []
    null: list[Floats] = []
    predicted: list[Floats] = []
    for position, layer in enumerate(bar.track(layers, description=f"probing for {task.kind}s")):
        here = features[:, position].double().numpy()
        now = validate(task, fit, here, weights, permutations, seed, beside)
        controls.setdefault("layer0", now.scores)  # the first layer is the embedding
        columns: dict[str, Floats] = {}
        for control, other in controls.items():
            columns.update(gain(control, now.scores, other, task.groups))
        if shares is not None:
            columns.update(_selectivity(now, task.groups))
            columns.update(_halves(task, fit, here, part, permutations, seed))
        scores.append(described(task, now).assign(layer=layer, n=len(texts), groups=task.groups, **columns))
        read_outs.append(fit(here, task.targets, task.group))
        null.append(now.null)
        predicted.append(now.predicted)
    # The best of several layers is to be compared with the best that shuffling finds in as many.
    best = np.fmax.reduce(null)
    highest = expected_range(best)[:, 2]
    frame = pd.concat(
        [
            rows.assign(shuffled_best_high=highest, p=permutation_p(rows["value"].to_numpy(), best))
            for rows in scores
        ]
    )
    return Probed(frame, read_outs, predicted)


def _selectivity(found: Validated, groups: int) -> dict[str, Floats]:
    """Return the control task's score, and what the score is above it with its interval, as columns."""
    assert found.control is not None and found.selectivity is not None
    low, high = metrics.interval(found.selectivity, groups)
    named = {"control_task": found.control[0], "selectivity": found.selectivity[0]}
    return {**named, "selectivity_low": low, "selectivity_high": high}


def _halves(
    task: Task, fit: Fit, features: Floats, part: Integers, permutations: int, seed: int
) -> dict[str, Floats]:
    """Return how alike directions are that were fitted to halves of the groups, and to shuffled annotations, as columns.

    The range of shuffled ones is that of one split, over all concepts of the task; for all labels together it is their mean.
    """
    group = np.unique(task.group[part], return_inverse=True)[1]
    same = replace(task, rows=task.rows[part], targets=task.targets[part], group=group, fold=task.fold[part])
    alike, null = np.full(len(task.concepts), np.nan), np.full(3, np.nan)
    if same.groups >= 4:
        shuffles = SHUFFLES[task.kind] if permutations else 0
        found, shuffled = agreement(fit, features[part], same, halves, SPLITS, seed, shuffles)
        alike = metrics.mean_known(found.T)
        null = expected_range(shuffled.reshape(-1, 1))[0]
    if task.kind == "label":
        alike = np.concatenate([metrics.mean_known(alike[None]), alike])
    return {
        "split_half": alike,
        "split_half_shuffled": np.full(len(alike), null[0]),
        "split_half_shuffled_high": np.full(len(alike), null[2]),
    }


def gain(name: str, resampled: Floats, control: Floats, groups: int) -> Iterator[tuple[str, Floats]]:
    """Yield a control's score and the 95% interval of what a score is above it, resample by resample of the same groups."""
    low, high = metrics.interval(resampled - control, groups)
    yield from ((name, control[0]), (f"{name}_gain_low", low), (f"{name}_gain_high", high))


def _stacked(
    tasks: Sequence[Task], read_outs: Sequence[Sequence[LinearReadOut]], concepts: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit directions (layers, concepts, d_model), scales and offsets (layers, concepts) of these concepts."""
    fitted = [name for task in tasks for name in task.concepts]
    columns = [fitted.index(name) for name in concepts]
    by_layer = list(zip(*read_outs, strict=True))
    weights = np.stack([np.concatenate([part.weights for part in layer])[columns] for layer in by_layer])
    offsets = np.stack([np.concatenate([part.offsets for part in layer])[columns] for layer in by_layer])
    scale = np.linalg.norm(weights, axis=-1)
    directions = (
        weights / np.where(scale > 0, scale, 1)[..., None]
    )  # what says nothing has no direction, and keeps zeros
    return tuple(torch.from_numpy(part).float() for part in (directions, scale, offsets))  # type: ignore[return-value]


def _check_options(permutations: int, bootstrap: int) -> None:
    if permutations < 0 or permutations == 1:
        raise InputError(f"permutations={permutations}: give 0, or at least 2, so that they have a range")
    if bootstrap < 0 or 0 < bootstrap < 40:
        raise InputError(
            f"bootstrap={bootstrap}: give 0, or at least 40 resamples, so that a 95% interval exists"
        )


def tidied(scores: pd.DataFrame, layers: Sequence[int], concepts: Sequence[str]) -> pd.DataFrame:
    """Keep the layers and concepts that were asked for, in order."""
    scores = scores[scores.layer.isin(layers) & scores.concept.isin(concepts)]
    rank = {concept: place for place, concept in enumerate(concepts)}
    scores = scores.sort_values("concept", key=lambda names: names.map(rank), kind="stable")
    scores = scores.sort_values("layer", kind="stable").reindex(columns=COLUMNS).reset_index(drop=True)
    return scores.assign(q=corrected_p(scores))


def corrected_p(scores: pd.DataFrame) -> pd.Series:
    """Return for each row the p of its concept's best layer, corrected for all concepts (Benjamini & Hochberg 1995).

    All labels together are no concept, but one test of their own, which needs no correction. NaN where nothing was shuffled.
    """
    best = scores.dropna(subset=["value", "p"]).groupby("concept").p.min()
    concepts = best.drop(index=LABELS, errors="ignore")
    if len(concepts):
        best[concepts.index] = false_discovery_control(concepts)
    return scores.concept.map(best).astype("float64")
