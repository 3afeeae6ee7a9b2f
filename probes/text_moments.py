"""Moments of the residual streams of texts: a corpus read once, batch by batch, and no activation kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emoprobe.activations import Pool, pooling, stream_residuals, stretches
from emoprobe.corpora import Corpus
from emoprobe.layers import Layers, resolve_layers
from emoprobe.models.live import LiveModel
from emoprobe.probes.moments import ROWS, Moments
from emoprobe.probes.tasks import Task

if TYPE_CHECKING:
    from emoprobe.workers import RayWorkers

SHARES = 128
"""Parts of a corpus for workers, however many they are: the moments of each move once, and a worker that dies loses one."""


def corpus_moments(
    model: LiveModel,
    corpus: Corpus,
    tasks: Sequence[Task],
    layers: Layers = "all",
    pool: Pool = "mean",
    *,
    start: int = 1,
    batch_size: int = 32,
    progress: bool = False,
    device: torch.device | str = "cpu",
    workers: RayWorkers | None = None,
) -> list[Moments]:
    """Return for each task the moments of its texts by fold, in one pass over the corpus and without storing activations.

    Labels that exclude each other are classes; other labels, as 0 and 1, and dimensions are targets. `pool` and `start` are as
    in `emoprobe.activations.capture`; with `pool="tokens"` every token from the `start`-th on counts as one vector.
    `device` is where moments are kept; it needs float64. `workers`, see `emoprobe.ray_workers`, read SHARES parts of the texts
    side by side, and hand over the moments of each; these add up to the same numbers whatever the number of workers.
    """
    read = partial(
        _task_moments,
        tasks=tasks,
        n_texts=len(corpus.texts),
        layers=resolve_layers(layers, model.n_layers),
        options=(pool, start, batch_size, progress and workers is None),
        device=device,
    )
    if workers is None:
        return read(model, (0, corpus.texts))
    workers.check_model(model)
    shares = stretches(corpus.texts, batch_size, SHARES)
    return workers.total(read, shares, lambda a, b: [x + y for x, y in zip(a, b, strict=True)])


def _task_moments(
    model: LiveModel,
    piece: tuple[int, Sequence[str]],
    tasks: Sequence[Task],
    n_texts: int,
    layers: Sequence[int],
    options: tuple[Pool, int, int, bool],
    device: torch.device | str,
) -> list[Moments]:
    """Return the moments of a stretch of a corpus, given as the number of its first text and its texts."""
    first, texts = piece
    gathered, place = [], []
    for task in tasks:
        sizes = {"n_classes": len(task.concepts)} if task.exclusive else {"n_targets": len(task.concepts)}
        folds = int(task.fold.max()) + 1
        gathered.append(Moments.zeros(len(layers), model.d_model, n_folds=folds, device=device, **sizes))
        place.append(torch.full((n_texts,), -1))
        place[-1][torch.from_numpy(task.rows)] = torch.arange(len(task.rows))
    for indices, vectors in _vectors(model, texts, layers, *options):
        for task, moments, position in zip(tasks, gathered, place, strict=True):
            rows = position[first + indices]
            mine = rows >= 0
            rows, fold = rows[mine], torch.from_numpy(task.fold)[rows[mine]]
            targets = torch.from_numpy(task.targets)[rows]
            given = {"classes": targets.argmax(1)} if task.exclusive else {"targets": targets}
            moments.add(vectors[mine.to(vectors.device)], fold=fold, **given)
    return gathered


def text_moments(
    model: LiveModel,
    texts: Iterable[str],
    layers: Layers = "all",
    pool: Pool = "mean",
    *,
    start: int = 1,
    batch_size: int = 32,
    progress: bool = False,
    device: torch.device | str = "cpu",
) -> Moments:
    """Return the moments of texts without annotations, such as neutral ones; options are as in `corpus_moments`."""
    chosen = resolve_layers(layers, model.n_layers)
    moments = Moments.zeros(len(chosen), model.d_model, device=device)
    for _, vectors in _vectors(model, texts, chosen, pool, start, batch_size, progress):
        moments.add(vectors)
    return moments


def _vectors(
    model: LiveModel,
    texts: Iterable[str],
    layers: Sequence[int],
    pool: Pool,
    start: int,
    batch_size: int,
    progress: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield numbers of texts and their vectors (texts, layers, d_model), many batches at once."""
    pooled_by = None if pool == "tokens" else pooling(pool)
    indices: list[Tensor] = []
    vectors: list[Tensor] = []
    for part in stream_residuals(model, texts, layers, batch_size=batch_size, progress=progress):
        counted, numbers = part.counted(start), torch.tensor(part.indices)
        if pooled_by is None:
            found = part.tokens(counted).float()
            numbers = numbers[counted.nonzero()[:, 0].cpu()]
        else:
            found = pooled_by(part, counted)
        indices.append(numbers)
        vectors.append(found.transpose(0, 1))
        if sum(map(len, indices)) >= ROWS:
            yield torch.cat(indices), torch.cat(vectors)
            indices, vectors = [], []
    if indices:
        yield torch.cat(indices), torch.cat(vectors)
