"""One schema for every labelled text: what a corpus is, whoever annotated it.

A `Corpus` is a frozen value over a `datasets.Dataset` with fixed columns. It is checked once, when it is
made, so that nothing behind it has to ask again. This file knows nothing of files, hubs, published corpora or
models.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, Features, List, Value

from emoprobe.corpora import _checks as checks
from emoprobe.corpora.words import RANGES, VALUATION, annotated_sentence
from emoprobe.errors import InputError

SPLITS = {"dev": "validation", "val": "validation", "valid": "validation"}
"""What corpora variously call the split that settings are chosen on, and what it is called here."""


def features(dimensions: Sequence[str]) -> Features:
    """List the columns of a corpus and their types, given the names of its dimensions."""
    number = Value("float64")
    labels = List(Value("string"))
    span = {"start": Value("int64"), "end": Value("int64"), "labels": labels}
    span |= dict.fromkeys(dimensions, number)
    return Features(
        {
            "text": Value("string"),
            "labels": labels,
            **dict.fromkeys(dimensions, number),
            "group": Value("string"),
            "source": Value("string"),
            "split": Value("string"),
            "spans": List(span),
        }
    )


@dataclass(frozen=True, eq=False, repr=False)
class Corpus:
    """Hold labelled texts in one schema; `Corpus.from_columns` and `load_corpus` make one.

    Raises InputError, with the row (counted from 1), the column and the value, for an empty text, an
    annotation that is infinite or outside its range, a label outside the vocabulary and a span outside its
    text. Texts that are the same but for case and spacing come to share a group, and so do their groups: a
    text seen in training must not be tested on.
    """

    data: Dataset
    """Columns: text (str), labels (list of str), one float per dimension (NaN: not annotated), group (str:
    document, writer, topic; what no split may cut through), source (str), split (str, "" where there is
    none), and spans (list of {start, end, labels, dimension: float}: annotations of characters [start, end),
    NaN likewise)."""
    name: str
    labels: tuple[str, ...]
    """The label vocabulary, used or not."""
    dimensions: dict[str, tuple[float, float]]
    """Dimension -> (lowest, highest) value, in the units of the annotators."""

    def __post_init__(self) -> None:
        """Check the contents and merge the groups that share a text."""
        checks.check_names(self.name, self.labels, self.dimensions)
        expected = features(list(self.dimensions))
        if self.data.features != expected:
            raise InputError(
                f"{self.name}: columns {self.data.column_names} are not the schema's, {list(expected)}, "
                "with its types; make corpora with load_corpus or Corpus.from_columns"
            )
        columns = self.data[:]
        checks.check_texts(self.name, columns["text"])
        checks.check_labels(self.name, columns["labels"], self.labels)
        checks.check_spans(self.name, columns["text"], columns["spans"], self.dimensions, self.labels)
        for dimension, bounds in self.dimensions.items():
            checks.check_values(self.name, dimension, np.asarray(columns[dimension], dtype=float), bounds)
        merged = checks.merge_groups(columns["text"], columns["group"])
        if merged != columns["group"]:
            data = Dataset.from_dict({**columns, "group": merged}, features=expected)
            object.__setattr__(self, "data", data)

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, Sequence[object]],
        *,
        name: str = "corpus",
        labels: Sequence[str] | None = None,
        dimensions: Mapping[str, tuple[float, float]] | None = None,
    ) -> Corpus:
        """Build a corpus from columns in memory: `text`, and whichever others of the schema there are.

        Missing columns, and None in one, mean: no labels, not annotated (NaN), a group of its own, source
        `name`, split "", no spans. `labels` is the vocabulary (default: all that occur, sorted); `dimensions`
        are the annotated dimensions and their ranges. Raises InputError as the class does, and for columns
        that are unknown or of unequal length.
        """
        ranges = dict(dimensions or {})
        schema = features(list(ranges))
        checks.check_columns(name, columns, list(schema))
        filled = _filled(columns, name, list(ranges))
        if labels is None:
            of_spans = (span["labels"] for row in filled["spans"] for span in row)
            labels = sorted({label for row in (*filled["labels"], *of_spans) for label in row})
        types = schema.arrow_schema
        arrays = {c: checks.arrow_column(name, c, filled[c], types.field(c).type) for c in schema}
        return cls(Dataset.from_dict(arrays, features=schema), name, tuple(labels), ranges)

    @classmethod
    def from_words(
        cls,
        sentences: Mapping[str, Sequence[Sequence[object]]] | Sequence[Sequence[Sequence[object]]],
        *,
        dimensions: Sequence[str] = VALUATION,
        ranges: Mapping[str, tuple[float, float]] | None = None,
        name: str = "words",
    ) -> Corpus:
        """Build a corpus from sentences annotated by hand, word by word.

        Each sentence is a list of (word, value of each of `dimensions`), None where a value is open. The keys
        of a mapping become the groups. Ranges default to valence [-1, 1], arousal and relevance [0, 1]. No
        value is made up for the sentence as a whole: its dimensions stay NaN.
        """
        named = dict(sentences) if isinstance(sentences, Mapping) else dict(enumerate(sentences))
        rows = [annotated_sentence(words, dimensions) for words in named.values()]
        columns: dict[str, list[object]] = {key: [row[key] for row in rows] for key in ("text", "spans")}
        if isinstance(sentences, Mapping):
            columns["group"] = list(named)
        known = {**RANGES, **(ranges or {})}
        checks.check_ranges_known(name, dimensions, known)
        return cls.from_columns(columns, name=name, dimensions={d: known[d] for d in dimensions})

    def __len__(self) -> int:
        return len(self.data)

    @property
    def texts(self) -> list[str]:
        """The texts, in order."""
        return list(self.data["text"][:])

    @property
    def groups(self) -> np.ndarray:
        """What must not straddle a split, as strings of shape (texts,)."""
        return np.asarray(self.data["group"][:], dtype=str)

    @property
    def concepts(self) -> list[tuple[str, str]]:
        """What can be probed for: (name, "label") for each label, then (name, "dimension") for each
        dimension."""
        return [(label, "label") for label in self.labels] + [(d, "dimension") for d in self.dimensions]

    @property
    def single_label(self) -> bool:
        """Whether there are labels and no text carries more than one."""
        return bool(self.labels) and all(len(row) <= 1 for row in self.data["labels"][:])

    @property
    def splits(self) -> dict[str, int]:
        """The splits that the corpus comes with and their sizes; empty where it comes with none."""
        return dict(Counter(split for split in self.data["split"][:] if split))

    @property
    def frame(self) -> pd.DataFrame:
        """The same columns as a pandas DataFrame; `load_corpus` takes it back."""
        return pd.DataFrame(dict(self.data[:]))

    def label_matrix(self) -> np.ndarray:
        """Say which text carries which label, as booleans of shape (texts, labels)."""
        column = {label: j for j, label in enumerate(self.labels)}
        matrix = np.zeros((len(self), len(self.labels)), dtype=bool)
        for i, row in enumerate(self.data["labels"][:]):
            matrix[i, [column[label] for label in row]] = True
        return matrix

    def values(self, dimension: str) -> np.ndarray:
        """Return a dimension's annotations in their own units, shape (texts,), NaN where not annotated."""
        if dimension not in self.dimensions:
            raise InputError(
                f"{self.name}: no dimension {dimension!r}; there are: {_listed(self.dimensions)}"
            )
        return np.asarray(self.data[dimension][:], dtype=float)

    def select(
        self,
        split: str | None = None,
        *,
        indices: Sequence[int] | np.ndarray | None = None,
        mask: Sequence[bool] | np.ndarray | None = None,
    ) -> Corpus:
        """Return the texts of a split, at some indices, or under a boolean mask of shape (texts,): give one
        of the three.

        Labels, dimensions and groups stay as they are. Raises InputError when nothing is selected.
        """
        if sum(choice is not None for choice in (split, indices, mask)) != 1:
            raise InputError("select wants exactly one of split=, indices= and mask=")
        if split is not None:
            rows = self._split_rows(split)
        elif mask is not None:
            chosen = np.asarray(mask)
            if chosen.dtype != bool or chosen.shape != (len(self),):
                raise InputError(
                    f"{self.name}: a mask wants {len(self)} booleans, not {chosen.dtype} {chosen.shape}"
                )
            rows = np.flatnonzero(chosen)
        else:
            rows = np.asarray(indices)
            if rows.size and (rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= len(self)):
                raise InputError(f"{self.name}: indices are whole numbers from 0 to {len(self) - 1}")
        if not rows.size:
            raise InputError(f"{self.name}: nothing is selected; choose at least one text")
        return Corpus(self.data.select(rows.tolist()), self.name, self.labels, self.dimensions)

    def _split_rows(self, split: str) -> np.ndarray:
        present = np.asarray(self.data["split"][:], dtype=str)
        wanted = split if split in present else SPLITS.get(split, split)
        if not split or wanted not in present:
            raise InputError(f"{self.name}: no split {split!r}; there are: {_listed(self.splits)}")
        return np.flatnonzero(present == wanted)

    def sample(self, n: int, seed: int = 0, balanced: bool = False) -> Corpus:
        """Draw at most `n` texts without replacement, kept in order.

        With `balanced`, each is drawn for the label that has the fewest so far, until that label's texts run
        out; texts without a label are left out.
        """
        if n < 1:
            raise InputError(f"{self.name}: a sample of {n} texts; ask for at least one")
        rows = np.random.default_rng(seed).permutation(len(self))
        if balanced:
            rows = _balanced(self.label_matrix(), rows, n)
        return self.select(indices=np.sort(rows[:n]))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that can change a result, the same on every machine.

        Names (of the corpus, its sources, its groups) do not enter: only which texts share a group does. Nor does
        the order of labels and dimensions.
        """
        columns = self.data[:]
        ranges = [[name, float(low), float(high)] for name, (low, high) in sorted(self.dimensions.items())]
        # Spans had no labels once: those without are hashed as then.
        columns["spans"] = [
            [{key: value for key, value in span.items() if key != "labels" or value} for span in row]
            for row in columns["spans"]
        ]
        columns["group"] = pd.factorize(np.asarray(columns["group"], dtype=object))[0].tolist()
        digest = hashlib.sha256(json.dumps([sorted(self.labels), ranges]).encode())
        for column in ("text", "labels", *sorted(self.dimensions), "group", "split", "spans"):
            digest.update(json.dumps(columns[column], sort_keys=True).encode())
        return digest.hexdigest()[:32]

    def __repr__(self) -> str:
        parts = [f"{len(self):,} texts", f"{len(set(self.groups.tolist())):,} groups"]
        if self.labels:
            shown = ", ".join(self.labels[:8]) + (", …" if len(self.labels) > 8 else "")
            parts.append(f"{len(self.labels)} label{'s' * (len(self.labels) > 1)} ({shown})")
        ranges = [f"{name} [{low:g}, {high:g}]" for name, (low, high) in self.dimensions.items()]
        parts += ranges[:8] + ["…"] * (len(ranges) > 8)
        parts += [f"{split} {size:,}" for split, size in self.splits.items()]
        return f"Corpus({self.name!r}: {'; '.join(parts)})"

    def _repr_html_(self) -> str:
        first = self.select(indices=range(min(5, len(self)))).frame.drop(columns="spans")
        return f"<p>{html.escape(repr(self))}</p>{first.to_html(escape=True, max_cols=12)}"


def _filled(
    columns: Mapping[str, Sequence[object]], name: str, dimensions: Sequence[str]
) -> dict[str, list[Any]]:
    """Put in what a column leaves open, in the way `Corpus.from_columns` promises."""
    nan, size = float("nan"), len(columns["text"])
    default: dict[str, object] = {
        "labels": [],
        "source": name,
        "split": "",
        "spans": [],
        **dict.fromkeys(dimensions, nan),
    }
    filled: dict[str, list[Any]] = {
        column: [default[column] if value is None else value for value in columns.get(column, [None] * size)]
        for column in default
    }
    filled["text"] = list(columns["text"])
    groups = columns.get("group", [None] * size)
    filled["group"] = [f"row {row}" if group is None else group for row, group in enumerate(groups)]
    filled["spans"] = [
        checks.complete_spans(name, row, spans, dimensions) for row, spans in enumerate(filled["spans"])
    ]
    return filled


def _balanced(matrix: np.ndarray, order: np.ndarray, n: int) -> np.ndarray:
    """Choose up to `n` rows of a label matrix, each the next in order of the label with the fewest so far."""
    queues = {label: iter(order[matrix[order, label]].tolist()) for label in range(matrix.shape[1])}
    counts = np.zeros(matrix.shape[1], dtype=int)
    drawn: set[int] = set()
    while queues and len(drawn) < n:
        scarcest = min(queues, key=counts.__getitem__)
        row = next((row for row in queues[scarcest] if row not in drawn), None)
        if row is None:
            del queues[scarcest]
        else:
            drawn.add(row)
            counts += matrix[row]
    return np.fromiter(drawn, dtype=int)


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(names) or "none"
