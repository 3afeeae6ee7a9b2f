"""What is fitted together, on which texts, and how the groups are dealt into folds.

A corpus falls into tasks: its labels are one, and dimensions that are annotated on the same texts are one. This file knows
corpora, nothing of models, features or estimators.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.probes import metrics
from emoprobe.probes.estimators import Floats, Integers
from emoprobe.probes.folds import grouped_folds
from emoprobe.probes.probe_set import LABELS

Columns: TypeAlias = tuple[str, bool, dict[str, Floats], Integers]
"""Of a task: kind, exclusive, concept -> annotation of every text of the corpus, and the texts to use."""


@dataclass(frozen=True, eq=False)
class Task:
    """Hold concepts that are fitted together, and the texts annotated for them.

    `kind` is "label" or "dimension"; `exclusive` labels are those of which a text carries exactly one. `rows` (texts,) are
    positions in the corpus, `targets` (texts, concepts) annotations or 0 and 1, `group` (texts,) numbers the groups and
    `fold` (texts,) the folds.
    """

    kind: str
    exclusive: bool
    concepts: tuple[str, ...]
    rows: Integers
    targets: Floats
    group: Integers
    fold: Integers

    @property
    def groups(self) -> int:
        """The number of groups."""
        return int(self.group.max()) + 1

    @property
    def measures(self) -> list[tuple[str, str]]:
        """What `score` gives, in its order, as (concept, metric)."""
        if self.kind == "dimension":
            return [(concept, "pearson_r") for concept in self.concepts]
        overall = (LABELS, "accuracy" if self.exclusive else "macro_auc")
        return [overall, *((concept, "auc") for concept in self.concepts)]

    @property
    def chance(self) -> list[float]:
        """What each measure gives where nothing is known; for accuracy, where the commonest label is always said."""
        if self.kind == "dimension":
            return [0.0] * len(self.concepts)
        overall = float(self.targets.mean(0).max()) if self.exclusive else 0.5
        return [overall] + [0.5] * len(self.concepts)

    @property
    def bounds(self) -> tuple[int, int]:
        """The lowest and the highest that a measure can be."""
        return (-1, 1) if self.kind == "dimension" else (0, 1)

    @cached_property
    def plain(self) -> metrics.Weighting:
        """Weights that count each group once."""
        return metrics.weighting(self.group, self.fold)

    def score(self, predicted: Floats, targets: Floats, weights: metrics.Weighting) -> Floats:
        """Score predictions (texts, concepts) against targets: (1 + resamples, measures)."""
        if self.kind == "dimension":
            return metrics.correlation(predicted, targets, weights)
        areas = metrics.auc(predicted, targets, weights)
        overall = (
            metrics.accuracy(predicted, targets, weights) if self.exclusive else metrics.mean_known(areas)
        )
        return np.column_stack([overall, areas])


def plan(
    corpus: Corpus,
    concepts: Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> list[Task]:
    """Return the tasks that a corpus gives for these concepts (default: all whose texts can be told apart).

    Labels exclude each other where no text carries two; then texts without a label are left out, and all labels are fitted
    whichever are wanted. Otherwise each label is told from its absence. `groups` (texts,) may stand for the corpus's own.
    Raises `InputError` for an unknown concept, one that is wanted but the same in all groups but one, and fewer groups than
    folds.
    """
    known = [name for name, _ in corpus.concepts]
    wanted = set(known if concepts is None else concepts)
    unknown = sorted(wanted - set(known))
    if unknown or not wanted:
        asked = f"no concept {unknown[0]!r}" if unknown else "nothing to probe for"
        raise InputError(
            f"{corpus.name}: {asked}; its labels and dimensions are {', '.join(known) or 'none'}"
        )
    group = np.unique(corpus.groups if groups is None else groups, return_inverse=True)[1]
    tasks = [
        _task(kind, exclusive, columns, rows, group[rows], folds, seed)
        for kind, exclusive, columns, rows in (
            *_labels(corpus, group, wanted),
            *_dimensions(corpus, group, wanted),
        )
    ]
    found = {name for task in tasks for name in task.concepts}
    missing = [name for name in known if name in wanted and name not in found]
    if missing:
        problem = f"{corpus.name}: nothing to learn {', '.join(missing)} from: the same in all groups but one"
        if concepts is not None or not found:
            raise InputError(f"{problem}; annotate more texts, or choose other concepts")
        warnings.warn(f"{problem}; left out", stacklevel=4)
    return tasks


def _labels(corpus: Corpus, group: Integers, wanted: set[str]) -> Iterator[Columns]:
    carried = dict(zip(corpus.labels, corpus.label_matrix().T.astype(np.float64), strict=True))
    exclusive = corpus.single_label
    usable = {
        name: column
        for name, column in carried.items()
        if _varies(column, group) and (exclusive or name in wanted)
    }
    exclusive = exclusive and len(usable) > 1
    if usable.keys() & wanted:
        there = np.any(list(usable.values()), axis=0) if exclusive else np.ones(len(group), dtype=bool)
        yield "label", exclusive, usable, np.flatnonzero(there)


def _dimensions(corpus: Corpus, group: Integers, wanted: set[str]) -> Iterator[Columns]:
    alike: dict[bytes, dict[str, Floats]] = {}  # dimensions annotated on the same texts
    for name in corpus.dimensions:
        values = corpus.values(name)
        there = ~np.isnan(values)
        if name in wanted and _varies(values[there], group[there]):
            alike.setdefault(there.tobytes(), {})[name] = values
    for columns in alike.values():
        yield "dimension", False, columns, np.flatnonzero(~np.isnan(next(iter(columns.values()))))


def _varies(values: Floats, group: Integers) -> bool:
    """Say whether two groups at least hold something other than the commonest value."""
    if not len(values):
        return False
    kinds, counts = np.unique(values, return_counts=True)
    return len(np.unique(group[values != kinds[counts.argmax()]])) > 1


def _task(
    kind: str,
    exclusive: bool,
    columns: dict[str, Floats],
    rows: Integers,
    group: Integers,
    folds: int,
    seed: int,
) -> Task:
    targets = np.stack([column[rows] for column in columns.values()], axis=1)
    group = np.unique(group, return_inverse=True)[1]
    fold = grouped_folds(group, folds, targets.argmax(1) if exclusive else None, seed)
    return Task(kind, exclusive, tuple(columns), rows, targets, group, fold)
