"""What probes are fitted to: the pooled residual streams of a corpus at some layers, and the tasks that the corpus gives.

One pass over the texts serves all layers and concepts, and every fit on some of the texts. Layer 0, the embedding, is always
among the layers: it is a control, asked for or not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from emoprobe.activation_store import store_activations
from emoprobe.activations import Pool
from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.layers import Layers, resolve_layers
from emoprobe.models.live import LiveModel
from emoprobe.probes.estimators import Fit, Floats, fit_for
from emoprobe.probes.tasks import Task, plan
from emoprobe.probes.units import Units, capture_units, read_units

if TYPE_CHECKING:
    from emoprobe.workers import RayWorkers

ESTIMATORS = ("auto", "mean_difference", "ridge", "logistic")
SMALL = 2**24
"""Features of a layer, texts × d_model, below which probes are fitted on one thread."""


@dataclass(frozen=True, eq=False)
class Features:
    """Hold a corpus's texts as vectors: `vectors` is float32 (texts, layers, d_model), its layers those of `layers`.

    `chosen` are the layers that were asked for, and `concepts` those that the tasks fit and that were asked for; `estimators`
    says which estimator each kind of concept gets. Where the rows are parts of texts, `units` says which, and `texts` are
    these.
    """

    tasks: list[Task]
    concepts: tuple[str, ...]
    estimators: dict[str, str]
    chosen: tuple[int, ...]
    layers: tuple[int, ...]
    texts: list[str]
    vectors: Tensor
    units: Units | None = None

    def fit(self, task: Task) -> Fit:
        """Return the function that fits a task's probes."""
        return fit_for(self.estimators[task.kind], task.kind, task.exclusive)

    def at(self, layer: int, task: Task) -> Floats:
        """Return the vectors of a task's texts at a layer, float64 (texts, d_model)."""
        found: Floats = self.vectors[task.rows, self.layers.index(layer)].double().numpy()
        return found

    def texts_of(self, task: Task) -> list[str]:
        """Return a task's texts."""
        return [self.texts[row] for row in task.rows]


def read_features(
    model: LiveModel,
    corpus: Corpus,
    layers: Layers = "all",
    *,
    estimator: str = "auto",
    concepts: Sequence[str] | str | None = None,
    pool: Pool = "mean",
    start: int = 1,
    folds: int = 5,
    batch_size: int = 32,
    seed: int = 0,
    level: str = "text",
    keep: str | os.PathLike[str] | None = None,
    workers: RayWorkers | None = None,
    progress: bool = False,
) -> Features:
    """Read a corpus once, at layer 0 and `layers`; options are as in `fit_probes`, and so is what is refused."""
    check_estimator(estimator)
    if level != "text" and (keep, workers) != (None, None):
        raise InputError(
            f'keep= and workers= are for whole texts, not for level="{level}": leave one of both out'
        )
    concepts = [concepts] if isinstance(concepts, str) else concepts
    chosen = tuple(sorted(resolve_layers(layers, model.n_layers)))
    captured = tuple(sorted({0, *chosen}))
    read: dict[str, Any] = {"start": start, "batch_size": batch_size, "progress": progress}
    units = None
    if level != "text":
        units = read_units(model, corpus, level, start=start, batch_size=batch_size, seed=seed)
    rows, groups = (corpus, None) if units is None else (units.corpus, units.groups)
    tasks = plan(rows, concepts, folds, seed, groups)
    estimators = estimators_for(estimator, tasks)
    if units is not None:
        vectors = capture_units(model, corpus.texts, units, captured, pool, **read)
    elif keep is None and workers is None:
        vectors = model.capture(corpus.texts, captured, pool, **read)
    else:
        with nullcontext(keep) if keep is not None else TemporaryDirectory(prefix="emoprobe-") as folder:
            store = store_activations(model, corpus.texts, folder, captured, pool, workers=workers, **read)
            vectors = store.vectors()
    fitted = {name for task in tasks for name in task.concepts}
    asked = tuple(
        name for name, _ in corpus.concepts if name in fitted and (not concepts or name in concepts)
    )
    return Features(tasks, asked, estimators, chosen, captured, rows.texts, vectors, units)


def check_estimator(estimator: str) -> None:
    """Raise `InputError` for an estimator that is not among ESTIMATORS."""
    if estimator not in ESTIMATORS:
        known = ", ".join(f'"{name}"' for name in ESTIMATORS)
        raise InputError(f'estimator="{estimator}" is not understood: give one of {known}')


def estimators_for(estimator: str, tasks: Sequence[Task]) -> dict[str, str]:
    """Say which estimator each kind of concept gets.

    Raises `InputError` for one that is not among ESTIMATORS, and for "logistic" without labels.
    """
    check_estimator(estimator)
    auto = {"label": "logistic", "dimension": "ridge"}
    kinds = {task.kind for task in tasks}
    if estimator == "logistic" and kinds == {"dimension"}:
        raise InputError('estimator="logistic" is for labels, and these concepts are dimensions: use "ridge"')
    both = estimator in ("ridge", "mean_difference")
    return {kind: estimator if both else auto[kind] for kind in sorted(kinds)}


@contextmanager
def few_threads(vectors: Tensor) -> Iterator[None]:
    """Fit probes of vectors (texts, layers, d_model) on one thread inside the block, where these are few.

    A solver of many small steps spends its time starting threads, many times over where cores are shared.
    """
    if len(vectors) * vectors.shape[-1] >= SMALL:
        yield
        return
    before = torch.get_num_threads()
    with threadpool_limits(1):
        # Torch does not heed that limit once it has been told a number of its own.
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
