"""The forms in which people write down labels, numbers, spans and words in the cells of a table.

Knows columns of cells, and the name of the corpus for its complaints; nothing of files.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence

import numpy as np
import pandas as pd

from emoprobe.corpora._checks import bad_cell
from emoprobe.corpora.words import annotated_sentence
from emoprobe.errors import InputError

MISSING = {"", "na", "n/a", "nan", "null", "none"}
"""What stands for a number that is not there. Texts and labels are never compared with these."""


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
        except (ValueError, SyntaxError):
            raise bad_cell(
                name, row, column, cell, "is no list", "write labels as a, b or ['a', 'b']"
            ) from None
    if isinstance(cell, np.ndarray | list | tuple):
        found = [_label(label) for label in cell]
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
    """Read labels from one column of 0 and 1 for each."""
    marks = {column: numbers(name, column, frame[column].tolist()) for column in columns}
    return [[column for column in columns if marks[column][row] > 0] for row in range(len(frame))]


def numbers(name: str, column: str, cells: Sequence[object]) -> list[float]:
    """Read numbers; what is missing becomes NaN."""
    found = []
    for row, cell in enumerate(cells):
        missing = is_missing(cell) or (isinstance(cell, str) and cell.strip().lower() in MISSING)
        try:
            found.append(float("nan") if missing else float(cell))  # type: ignore[arg-type]  # refused just below
        except (TypeError, ValueError):
            raise bad_cell(
                name, row, column, cell, "is not a number", "correct it, or leave the cell empty"
            ) from None
    return found


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
            cell = json.loads(cell)
        except json.JSONDecodeError as error:
            raise bad_cell(name, row, column, cell, f"is not JSON ({error.msg})", "correct it") from None
    if isinstance(cell, np.ndarray | list | tuple):
        return list(cell)
    if is_missing(cell):
        return []
    raise bad_cell(name, row, column, cell, "is no list", "give a list, or a list written as JSON")
