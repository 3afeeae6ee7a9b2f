"""Fitting probes: capture once, then at every layer cross-validate, shuffle, and fit on everything.

One pass over the corpus gives pooled features and the statistics of single tokens; a second, over a sample, measures how far
tokens spread along each direction. Everything is seeded: the same call gives the same probe set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from rich.progress import Progress
from torch import Tensor

from emoprobe.activations import Pool
from emoprobe.artefacts import versions
from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.layers import Layers
from emoprobe.models.live import LiveModel
from emoprobe.probes import metrics
from emoprobe.probes.estimators import Fit, Floats, LinearReadOut
from emoprobe.probes.features import few_threads, read_features
from emoprobe.probes.probe_set import ProbeSet
from emoprobe.probes.tasks import LABELS, Task
from emoprobe.probes.tokens import TokenMeans, sampled, token_spread
from emoprobe.probes.validation import SHUFFLE_TEXTS, bag_of_words, cross_validate, expected_range, times

PACKAGES = ("emoprobe", "torch", "transformers", "scikit-learn", "numpy")
MEASURED = [
    "value",
    "low",
    "high",
    "chance",
    "shuffled",
    "shuffled_low",
    "shuffled_high",
    "shuffled_best_high",
]
MEASURED += [
    f"{control}{end}" for control in ("layer0", "bag_of_words") for end in ("", "_gain_low", "_gain_high")
]


def fit_probes(
    model: LiveModel,
    corpus: Corpus,
    layers: Layers = "all",
    *,
    estimator: str = "auto",
    concepts: Sequence[str] | None = None,
    pool: Pool = "mean",
    start: int = 1,
    folds: int = 5,
    permutations: int = 10,
    bootstrap: int = 500,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> ProbeSet:
    """Fit a linear probe for each concept at each layer, with cross-validated scores and their controls.

    `estimator` is "mean_difference", "ridge", "logistic" (labels only; dimensions beside them get ridge) or "auto": logistic
    for labels, ridge for dimensions. `concepts` chooses among the corpus's labels and dimensions. `pool` and `start` say how a
    text becomes one vector, see `emoprobe.activations.capture`. No group of the corpus is cut by one of the `folds`. The
    annotations are shuffled `permutations` times (dimensions, where that costs little, at least 100 times) and the groups
    resampled `bootstrap` times; 0 leaves the control or the intervals out. Texts without an annotation for a concept are left
    out for it.

    Raises `InputError` for an unknown concept, for "logistic" without labels, and for fewer groups than folds.
    """
    _check_options(permutations, bootstrap)
    tokens = TokenMeans(pool)
    read = read_features(
        model,
        corpus,
        layers,
        estimator=estimator,
        concepts=concepts,
        pool=tokens,
        start=start,
        folds=folds,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    tasks, texts, chosen = read.tasks, read.texts, read.chosen
    options = (bootstrap, permutations, seed)
    with Progress(transient=True, disable=not progress) as bar, few_threads(read.vectors):
        found = [
            probe_layers(
                task,
                read.fit(task),
                read.vectors[task.rows],
                read.texts_of(task),
                read.layers,
                options,
                bar,
            )
            for task in tasks
        ]
    kinds = {name: kind for name, kind in corpus.concepts if name in read.concepts}
    directions, scale, offset = _stacked(tasks, [read_outs for _, read_outs in found], list(kinds))
    kept = [read.layers.index(layer) for layer in chosen]
    mean, sample = tokens.mean[kept], sampled(texts, seed)
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
        scores=tidied(pd.concat([scores for scores, _ in found]), chosen, [LABELS, *kinds]),
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
            "texts": len(texts),
            "versions": versions(PACKAGES),
        },
        basis=model.basis,
    )


def probe_layers(
    task: Task,
    fit: Fit,
    features: Tensor,
    texts: Sequence[str],
    layers: Sequence[int],
    options: tuple[int, int, int],
    bar: Progress,
) -> tuple[pd.DataFrame, list[LinearReadOut]]:
    """Return a task's scores at all layers, with their controls, and the read-outs fitted on all of its texts.

    `features` is (texts, layers, d_model), the first layer being the embedding; `options` are the numbers of resamples and
    permutations, and the seed.
    """
    bootstrap, permutations, seed = options
    weights = metrics.weighting(task.group, task.fold, bootstrap, seed)
    controls = {"bag_of_words": bag_of_words(task, texts, weights, seed)}
    scores: list[pd.DataFrame] = []
    read_outs: list[LinearReadOut] = []
    shuffled: list[Floats] = []
    for position, layer in enumerate(bar.track(layers, description=f"probing for {task.kind}s")):
        here = features[:, position].double().numpy()
        scored, resampled, null = cross_validate(task, fit, here, weights, permutations, seed)
        shuffled.append(null)
        controls.setdefault("layer0", resampled)  # the first layer is the embedding
        gains = {
            name: value
            for control, other in controls.items()
            for name, value in _gain(control, resampled, other, task.groups)
        }
        scores.append(scored.assign(layer=layer, n=len(texts), groups=task.groups, **gains))
        read_outs.append(fit(here, task.targets, task.group))
    # The best of several layers is to be compared with the best that shuffling finds in as many.
    highest = expected_range(np.fmax.reduce(shuffled))[:, 2]
    return pd.concat([part.assign(shuffled_best_high=highest) for part in scores]), read_outs


def _gain(name: str, resampled: Floats, control: Floats, groups: int) -> Iterator[tuple[str, Floats]]:
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
    columns = ["layer", "concept", "metric", *MEASURED, "n", "groups"]
    return scores.sort_values("layer", kind="stable")[columns].reset_index(drop=True)
