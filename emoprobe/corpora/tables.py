"""Tables from files and from `datasets`, as pandas frames: what is there, before anybody says what it means.

Knows file formats and what goes wrong with them; nothing of the corpus schema. Nothing is written to any
cache.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict
from datasets.table import InMemoryTable

from emoprobe.checks import read_parquet
from emoprobe.errors import InputError
from emoprobe.files import check_file, empty, parse_json, read_text
from emoprobe.places import check_suffix


@dataclass(frozen=True)
class Table:
    """Hold a table and, for columns of class numbers, the classes' names: the numbers are resolved
    already."""

    frame: pd.DataFrame
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)


def read_table(path: Path) -> Table:
    """Read a CSV, TSV, JSON, JSON lines or Parquet file; raises InputError with the line at which that
    fails."""
    check_suffix(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path)
    if suffix in (".csv", ".tsv"):
        return Table(read_delimited(path, "\t" if suffix == ".tsv" else ","))
    return Table(_json(path))


def read_delimited(
    path: Path, separator: str, *, names: Sequence[str] | None = None, quoting: int = csv.QUOTE_MINIMAL
) -> pd.DataFrame:
    """Read separated values, every cell as the text it is; `names` are the columns of a file without a
    header.

    Nothing is taken for a missing value here: "None" and "NA" are perfectly good sentences.
    """
    content = read_text(path)
    try:
        frame = pd.read_csv(
            io.StringIO(content),
            sep=separator,
            header=None,
            dtype=str,
            keep_default_na=False,
            quoting=quoting,  # type: ignore[call-overload]
        )
    except pd.errors.EmptyDataError:
        raise empty(path) from None
    except pd.errors.ParserError as error:
        reason = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ")
        raise InputError(
            f"{path}: {reason}; put texts that contain {separator!r} or line breaks in quotes"
        ) from None
    _check_width(path, content, frame, separator, quoting)
    if names is None:  # the header is read as a row, lest pandas quietly rename a column that is there twice
        names = frame.iloc[0].tolist()
        frame = frame.iloc[1:]
    if len(names) != frame.shape[1]:
        raise InputError(
            f"{path}: {frame.shape[1]} columns, not the {len(names)} of {', '.join(names)}; check the file"
        )
    frame.columns = pd.Index(names)
    tidy: pd.DataFrame = frame.reset_index(drop=True)
    return tidy


def _check_width(path: Path, content: str, frame: pd.DataFrame, separator: str, quoting: int) -> None:
    """Refuse a row with too few cells, as in a file that was not written to its end; pandas fills it up."""
    if not (frame.iloc[:, -1] == "").any():
        return
    csv.field_size_limit(max(csv.field_size_limit(), len(content)))
    rows = csv.reader(io.StringIO(content, newline=""), delimiter=separator, quoting=quoting)  # type: ignore[arg-type]
    for number, row in enumerate((row for row in rows if row), start=1):
        if len(row) < frame.shape[1]:
            raise InputError(
                f"{path}: row {number} of the file has {len(row)} of {frame.shape[1]} cells; complete or remove it"
            )


def _json(path: Path) -> pd.DataFrame:
    """Read a list of objects, or one object a line."""
    content = read_text(path)
    if content.lstrip().startswith("["):
        try:
            rows = parse_json(content)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: line {error.lineno} is not JSON ({error.msg}); correct it") from None
        except ValueError as error:
            raise InputError(f"{path}: is no JSON that can be read ({error}); correct it") from None
    else:
        rows = list(_json_lines(path, content))
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(f"{path}: entry {number} is no JSON object; give one object for each text")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return pd.DataFrame({key: pd.Series([row.get(key) for row in rows], dtype=object) for key in keys})


def _json_lines(path: Path, content: str) -> Iterable[object]:
    for number, line in enumerate(
        content.split("\n"), start=1
    ):  # splitlines would also break at U+2028 inside a text
        if line.strip():
            try:
                yield parse_json(line)
            except ValueError as error:
                reason = getattr(error, "msg", error)
                raise InputError(
                    f"{path}: line {number} is not JSON ({reason}); correct or remove it"
                ) from None


def _parquet(path: Path) -> Table:
    check_file(path)
    try:
        table = read_parquet(path)
        data = Dataset(InMemoryTable(table))  # which finds the class names that the hub's files carry
    except (
        OSError,
        pa.ArrowException,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: is no readable Parquet file ({reason}); write it again") from None
    try:
        return from_dataset(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def from_dataset(data: Dataset | DatasetDict) -> Table:
    """Take a dataset, or all the splits of one, out of `datasets`, with class numbers resolved to their
    names."""
    if isinstance(data, DatasetDict):
        parts = {name: from_dataset(part) for name, part in data.items()}
        frames = [part.frame.assign(**_split_column(part.frame, name)) for name, part in parts.items()]
        classes = {column: names for part in parts.values() for column, names in part.classes.items()}
        return Table(pd.concat(frames, ignore_index=True), classes)
    frame, classes = data.to_pandas(), {}
    for column, feature in data.features.items():
        inner = getattr(feature, "feature", feature)  # of a list
        if isinstance(inner, ClassLabel) and inner.names:
            classes[column] = tuple(inner.names)
            frame[column] = pd.Series([_resolved(cell, inner.names) for cell in frame[column]], dtype=object)
    return Table(frame, classes)


def _split_column(frame: pd.DataFrame, name: str) -> dict[str, str]:
    return {} if "split" in frame.columns else {"split": name}


def _resolved(cell: Any, names: Sequence[str]) -> list[str]:
    """Turn class numbers into names; the hub's -1 (not labelled) and null into no label."""
    numbers = cell if isinstance(cell, np.ndarray | list) else [cell]
    known = [int(n) for n in numbers if n is not None and n == n and n >= 0]
    if known and max(known) >= len(names):
        raise InputError(
            f"class number {max(known)} has no name: there are {len(names)} ({', '.join(names)}); name all"
        )
    return [names[n] for n in known]
