"""The forms in which people write down labels, numbers, spans and words in the cells of a table.

Knows columns of cells, and the name of the corpus for its complaints; nothing of files.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

import numpy as np
import pandas as pd

from emoprobe.corpora._checks import bad_cell
from emoprobe.corpora.words import annotated_sentence
from emoprobe.errors import InputError
from emoprobe.files import parse_json

MISSING = {"", "na", "n/a", "nan", "null", "none"}
"""What stands for a number that is not there. Texts and labels are never compared with these."""


LABELS = "write labels as a, b or ['a', 'b']"
NO_NAMES = (dict, list, tuple, set, bytes, np.ndarray)


def is_missing(cell: object) -> bool:
    """Whether a cell holds nothing: None, NaN or the empty string."""
    return cell is None or cell is pd.NA or (isinstance(cell, float) and cell != cell) or cell == ""


def labels(name: str, column: str, cells: Sequence[object]) -> list[list[str]]:
    """Read labels: one, several separated by commas, or a list (also a list written out, as CSV files have
    it)."""
    return [_labels(name, row, column, cell) for row, cell in enumerate(cells)]


def _labels(name: str, row: int, column: str, cell: object) -> list[str]:
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = ast.literal_eval(cell.strip())
        except (
            ValueError,
            SyntaxError,
            RecursionError,
            MemoryError,
        ):  # the last of them where brackets nest too deeply
            raise bad_cell(name, row, column, cell, "is no list", LABELS) from None
    if isinstance(cell, np.ndarray | list | tuple):
        if any(isinstance(label, NO_NAMES) for label in cell):
            raise bad_cell(name, row, column, cell, "is no list of names", LABELS)
        found = [_label(label) for label in cell]
    elif isinstance(cell, NO_NAMES):
        raise bad_cell(name, row, column, cell, "is no name", LABELS)
    elif is_missing(cell):
        found = []
    else:
        found = cell.split(",") if isinstance(cell, str) else [_label(cell)]
    return list(dict.fromkeys(label.strip() for label in found if label.strip()))


def _label(label: object) -> str:
    """Write out a name; a gap in a column of class numbers makes floats of them, so 2.0 is 2 again."""
    if isinstance(label, list):  # a class number that became the list of its names
        return ", ".join(map(str, label))
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def one_hot(name: str, columns: Sequence[str], frame: pd.DataFrame) -> list[list[str]]:
    """Read labels from one column of 0 and 1, or of False and True, for each."""
    marks = {
        column: numbers(name, column, [int(c) if isinstance(c, bool) else c for c in frame[column].tolist()])
        for column in columns
    }
    return [[column for column in columns if marks[column][row] > 0] for row in range(len(frame))]


def numbers(name: str, column: str, cells: Sequence[object]) -> list[float]:
    """Read numbers; what is missing becomes NaN."""
    found = []
    for row, cell in enumerate(cells):
        missing = is_missing(cell) or (isinstance(cell, str) and cell.strip().lower() in MISSING)
        try:
            found.append(float("nan") if missing else _number(cell))
        except (TypeError, ValueError, OverflowError):
            raise bad_cell(
                name, row, column, cell, "is not a number", "correct it, or leave the cell empty"
            ) from None
    return found


def _number(cell: object) -> float:
    """Take a number, or text that people write for one: to Python True is one too, and 1_0 is ten."""
    if isinstance(cell, bool) or (isinstance(cell, str) and "_" in cell):
        raise ValueError
    return float(cell)  # type: ignore[arg-type]  # refused by the caller


def strings(cells: Sequence[object]) -> list[object]:
    """Read names (of groups, sources, splits): numbers are written out, what is missing becomes None."""
    return [None if is_missing(cell) else _label(cell) for cell in cells]


def spans(name: str, column: str, cells: Sequence[object]) -> list[list[dict[str, object]]]:
    """Read character spans: a list of {"start": 0, "end": 5, "valence": 0.5}, or the same as JSON."""
    rows = []
    for row, cell in enumerate(cells):
        found = _structure(name, row, column, cell)
        if not all(isinstance(span, dict) and {"start", "end"} <= span.keys() for span in found):
            remedy = 'spans are a list of {"start": 0, "end": 5, "valence": 0.5}'
            raise bad_cell(name, row, column, cell, "is no list of spans", remedy)
        rows.append([dict(span) for span in found if isinstance(span, dict)])
    return rows


def words(name: str, column: str, cells: Sequence[object]) -> tuple[list[object], list[object]]:
    """Read words with their valence, arousal and relevance, as lists or JSON; return texts and spans."""
    rows = []
    for row, cell in enumerate(cells):
        try:
            rows.append(annotated_sentence([list(word) for word in _structure(name, row, column, cell)]))  # type: ignore[call-overload]
        except (InputError, TypeError) as error:
            remedy = 'words are a list of ["word", valence, arousal, relevance]'
            raise bad_cell(name, row, column, cell, f"is no annotated sentence ({error})", remedy) from None
    return [row["text"] for row in rows], [row["spans"] for row in rows]


def _structure(name: str, row: int, column: str, cell: object) -> list[object]:
    if isinstance(cell, str) and cell.strip():
        try:
            cell = parse_json(cell)
        except ValueError as error:
            raise bad_cell(name, row, column, cell, f"is not JSON ({error})", "correct it") from None
    if isinstance(cell, np.ndarray | list | tuple):
        return list(cell)
    if is_missing(cell):
        return []
    raise bad_cell(name, row, column, cell, "is no list", "give a list, or a list written as JSON")
