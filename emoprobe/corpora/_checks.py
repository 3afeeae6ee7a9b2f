"""What a corpus must be, column by column; every complaint names the corpus, the row, the column and the
value.

Knows plain lists and arrays, nothing of where they came from.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from emoprobe.errors import UNSHOWN, InputError

FIXED = ("text", "labels", "group", "source", "split", "spans")
RESERVED = {*FIXED, "start", "end", "words"}


def bad_cell(name: str, row: int, column: str, value: object, problem: str, remedy: str) -> InputError:
    """Compose the one line that says where in a corpus something is wrong and what to do; `row` counts from 0."""
    shown = "the cell" if value is None else repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    where = (
        f"row {row + 1} (the first text is row 1), column {column!r}"  # as people count, whatever the header
    )
    return InputError(f"{name}: {where}: {shown} {problem}; {remedy}")


def check_names(name: str, labels: Sequence[str], dimensions: Mapping[str, tuple[float, float]]) -> None:
    """Refuse concepts that could be mixed up or cannot be shown on a line, and ranges that are none."""
    for concept in (*labels, *dimensions):
        if UNSHOWN.search(concept):
            raise InputError(
                f"{name}: the concept {concept[:60]!r} holds control characters; rename the label or the dimension"
            )
    twice = [label for label, count in Counter(labels).items() if count > 1] + [
        d for d in dimensions if d in labels
    ]
    if twice:
        raise InputError(
            f"{name}: the concept {twice[0]!r} is named twice; rename the label or the dimension"
        )
    for dimension, bounds in dimensions.items():
        if dimension in RESERVED:
            raise InputError(f"{name}: a dimension cannot be called {dimension!r}; choose another name")
        if len(bounds) != 2 or not all(map(math.isfinite, bounds)) or not bounds[0] < bounds[1]:
            shown = " to ".join(f"{bound:g}" for bound in bounds)
            raise InputError(
                f"{name}: the range {shown} of {dimension!r} is none; give the lowest value, then the highest"
            )


def check_columns(name: str, columns: Mapping[str, Sequence[object]], expected: Sequence[str]) -> None:
    """Refuse a table without texts, with columns outside the schema, or with columns of unequal length."""
    if "text" not in columns:
        raise InputError(f"{name}: no column 'text'; there are: {', '.join(columns) or 'none'}")
    size = len(columns["text"])
    if not size:
        raise InputError(f"{name}: no texts; give at least one")
    for column, values in columns.items():
        if column not in expected:
            raise InputError(
                f"{name}: column {column!r} is not in the schema; give its range as a dimension, or drop it"
            )
        if len(values) != size:
            raise InputError(
                f"{name}: column {column!r} has {len(values)} rows and 'text' {size}; make them equal"
            )


def check_ranges_known(
    name: str, dimensions: Sequence[str], ranges: Mapping[str, tuple[float, float]]
) -> None:
    """Refuse a dimension whose range nobody declared."""
    for dimension in dimensions:
        if dimension not in ranges:
            raise InputError(
                f"{name}: dimension {dimension!r} has no range; "
                f"pass ranges={{{dimension!r}: (lowest, highest)}}"
            )


def check_texts(name: str, texts: Sequence[str | None]) -> None:
    """Refuse texts with nothing to read in them: empty, blank, or nothing but NUL characters."""
    for row, text in enumerate(texts):
        if text is None or not text.replace("\0", "").strip():
            raise bad_cell(name, row, "text", (text or "").strip() or None, "is empty", "leave the row out")


def check_labels(name: str, rows: Sequence[Sequence[str]], vocabulary: Sequence[str]) -> None:
    """Refuse labels outside the vocabulary and labels given twice."""
    known = set(vocabulary)
    for row, labels in enumerate(rows):
        for label in labels:
            if label not in known:
                listed = ", ".join(vocabulary) or "none"
                raise bad_cell(
                    name, row, "labels", label, "is not a known label", f"the labels are: {listed}"
                )
        if len(set(labels)) < len(labels):
            raise bad_cell(name, row, "labels", labels, "names a label twice", "name it once")


def check_values(name: str, dimension: str, values: np.ndarray, bounds: tuple[float, float]) -> None:
    """Refuse annotations that are infinite or outside their range; NaN means not annotated."""
    outside = np.flatnonzero((values < bounds[0]) | (values > bounds[1]))
    if outside.size:
        row = int(outside[0])
        raise bad_cell(name, row, dimension, float(values[row]), *_outside(dimension, bounds))


def check_spans(
    name: str,
    texts: Sequence[str],
    rows: Sequence[Sequence[Mapping[str, float]]],
    dimensions: Mapping[str, tuple[float, float]],
    vocabulary: Sequence[str],
) -> None:
    """Refuse spans that are empty or outside their text, and annotations outside their vocabulary or range."""
    for row, (text, spans) in enumerate(zip(texts, rows, strict=True)):
        for span in spans:
            if not 0 <= span["start"] < span["end"] <= len(text):
                where = (span["start"], span["end"])
                remedy = f"spans are [start, end) with 0 <= start < end <= {len(text)}, the text's length"
                raise bad_cell(name, row, "spans", where, "lies outside its text", remedy)
            unknown = [label for label in span["labels"] if label not in vocabulary]  # type: ignore[attr-defined]
            if unknown:
                remedy = f"the labels are: {', '.join(vocabulary) or 'none'}"
                raise bad_cell(name, row, "spans: labels", unknown[0], "is not a known label", remedy)
            for dimension, (low, high) in dimensions.items():
                value = span[dimension]
                if not (math.isnan(value) or low <= value <= high):
                    raise bad_cell(name, row, f"spans: {dimension}", value, *_outside(dimension, (low, high)))


def _outside(dimension: str, bounds: tuple[float, float]) -> tuple[str, str]:
    low, high = bounds
    return (
        f"is outside the range {low:g} to {high:g}",
        f"correct it, or declare another range: ranges={{{dimension!r}: (lowest, highest)}}",
    )


def complete_spans(name: str, row: int, spans: object, dimensions: Sequence[str]) -> list[dict[str, object]]:
    """Give each span its labels and all the dimensions there are, NaN where it has no value, and nothing else."""
    try:
        return [
            {
                "start": _whole(span["start"]),
                "end": _whole(span["end"]),
                "labels": _listed(span.get("labels")),
                **{d: _number(span.get(d)) for d in dimensions},
            }
            for span in spans  # type: ignore[attr-defined]  # what is no list of spans is refused below
        ]
    except (TypeError, ValueError, AttributeError, KeyError):
        remedy = "spans are a list of {'start': 0, 'end': 5, 'valence': 0.5}"
        raise bad_cell(name, row, "spans", spans, "is no list of spans", remedy) from None


def _whole(place: object) -> int:
    """Take a whole number, which a gap in a column may have made a float; Arrow would cut a fraction off."""
    whole = int(place)  # type: ignore[call-overload]  # what is no number is refused by the caller
    if isinstance(place, bool | str) or whole != place:
        raise ValueError
    return int(whole)


def _listed(labels: object) -> list[object]:
    if labels is None or isinstance(labels, str):
        return [labels] if labels else []
    return list(labels)  # type: ignore[call-overload, no-any-return]  # what is no list is refused by the caller


def _number(value: object) -> object:
    return math.nan if value is None else value


def arrow_column(name: str, column: str, values: Sequence[object], kind: pa.DataType) -> pa.Array:
    """Turn a column into Arrow; where Arrow refuses, find the row that it refuses."""
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        for row, value in enumerate(values):
            try:
                pa.array([value], kind)
            except (pa.ArrowException, UnicodeEncodeError, OverflowError):
                wanted = {"text": "text", "labels": "a list of labels", "spans": "a list of spans"}.get(
                    column
                )
                wanted = wanted or ("a number" if pa.types.is_floating(kind) else "text")
                raise bad_cell(
                    name, row, column, value, f"is not {wanted}", "correct it, or leave the row out"
                ) from None
        raise


STOCK_PHRASE = 2
"""Words up to which a text may recur by itself, without its document's being a copy."""


def merge_groups(texts: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Give rows of one text one group, and with it all rows of the groups so joined; names by first
    appearance.

    A text that occurs in two documents would be learnt from one and recognised in the other, however
    carefully the documents are kept apart. The smallest change that rules this out joins the groups: the
    connected components of the graph between texts (but for case and spacing) and groups. Stock phrases of
    one or two words ("Sincerely,") do not join groups of several rows: all letters would become one.
    """
    words = [t.casefold().split() for t in texts]
    text = pd.factorize(np.asarray([" ".join(found) for found in words], dtype=object))[0]
    group, names = pd.factorize(np.asarray(groups, dtype=object))
    alone = np.bincount(group)[group] == 1
    joins = np.flatnonzero((np.array([len(found) for found in words]) > STOCK_PHRASE) | alone)
    size = len(texts) + len(names)
    links = coo_matrix((np.ones(len(joins)), (text[joins], len(texts) + group[joins])), shape=(size, size))
    component = connected_components(links, directed=False)[1][len(texts) + group]
    _, first, which = np.unique(component, return_index=True, return_inverse=True)
    return [groups[first[c]] for c in which]
