"""A sweep's finished runs in a folder, so that an interrupted sweep goes on where it was.

The folder holds `asked.json`, what was swept, and one Parquet file for each run, with a checksum, written whole or not at all.
Measures and edits are functions, and are compared by what `described` says of them; what measures say of the untouched model is
compared too, before anything is taken from a folder.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from emoprobe.artefacts import digest, only_writer, versions, write_bytes
from emoprobe.checks import check_record, read_parquet, reading
from emoprobe.errors import InputError
from emoprobe.files import parse_json
from emoprobe.steering.row_wise import RowWise

Values = dict[str, NDArray[np.float64]]
"""Measure -> one number for each text."""
UNTOUCHED = "untouched"
CHECKSUM = b"emoprobe"
"""Under what name a run's file has it among its metadata."""


def described(thing: Any, ours: bool = True) -> str:
    """Say what decides what a function, its arguments or what they hold do, so that two that differ are told apart.

    Of the package's own functions that is all that they hold; of a user's, whose state may change from call to call, their
    code, the numbers, words, tensors and functions that they hold, and the numbers, words and tensors that they name in their
    module.
    """
    again = partial(described, ours=ours)
    if isinstance(thing, Tensor):
        return digest({"": thing})
    if isinstance(thing, RowWise):
        return again(thing.passes)
    if isinstance(thing, partial):
        return again((thing.func, thing.args, tuple(sorted(thing.keywords.items()))))
    if isinstance(thing, FunctionType):
        own = thing.__module__.startswith("emoprobe.")
        held = tuple(cell.cell_contents for cell in thing.__closure__ or ())
        code = None if own else thing.__code__
        given = (thing.__defaults__, tuple(sorted((thing.__kwdefaults__ or {}).items())))
        names = () if own else thing.__code__.co_names
        around = [(name, thing.__globals__.get(name)) for name in names]
        named = tuple(pair for pair in around if isinstance(pair[1], str | int | float | Tensor))
        return described((thing.__qualname__, code, given, held, named), own)
    if isinstance(thing, CodeType):
        return again((thing.co_code.hex(), thing.co_names, thing.co_consts))
    if isinstance(thing, tuple) or (ours and isinstance(thing, list)):
        return f"({', '.join(map(again, thing))})"
    if isinstance(thing, dict) and ours:
        return again(sorted(thing.items()))
    if is_dataclass(thing) and ours:
        return again([getattr(thing, field.name) for field in fields(thing)])
    if thing is None or isinstance(thing, str | int | float):
        return repr(thing)
    return type(thing).__qualname__


class KeptRuns:
    """The runs of one sweep, in a folder or, without one, nowhere.

    Raises `InputError` for a folder of a sweep that asked for something else, or whose measures say something else of the
    untouched model.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None, asked: Mapping[str, Any], untouched: Values
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        record = self.folder / "asked.json"
        if not record.is_file():
            about = {**asked, "versions": versions()}
            write_bytes(record, (json.dumps(about, indent=1, sort_keys=True) + "\n").encode())
        with reading(record, "account of a sweep"):
            before = parse_json(record.read_bytes())
            check_record(before, {})
            before.pop("versions", None)  # those that it was begun with
        other = sorted(name for name in {*asked, *before} if asked.get(name) != before.get(name))
        if other:
            raise InputError(
                f'"{self.folder}" holds another sweep ({", ".join(other)} differ): give another out='
            )
        self._asked = digest(before)
        found = self.run(UNTOUCHED, lambda: untouched)
        if found.keys() != untouched.keys() or not all(map(_agree, found.values(), untouched.values())):
            raise InputError(
                f'"{self.folder}" holds a sweep whose measures say something else of the untouched model: give another out='
            )

    @classmethod
    @contextmanager
    def alone(
        cls, folder: str | os.PathLike[str] | None, asked: Mapping[str, Any], untouched: Values
    ) -> Iterator[KeptRuns]:
        """Hand them out while no other process may write there. Raises `InputError` where one is doing so."""
        with nullcontext() if folder is None else only_writer(folder):
            yield cls(folder, asked, untouched)

    def __contains__(self, name: str) -> bool:
        return self.folder is not None and self._file(name).is_file()

    def run(self, name: str, make: Callable[[], Values]) -> Values:
        """Return the values of a run: as they were kept, or else newly made and kept.

        Raises `InputError` for a file that is damaged, or of another run.
        """
        if self.folder is None:
            return make()
        if name in self:
            return self._read(name)
        values = make()
        table = pa.table(
            {
                "measure": [measure for measure, found in values.items() for _ in found],
                "value": np.concatenate([*values.values()]),
            },
            metadata={CHECKSUM: self._checksum(name, values)},
        )
        content = io.BytesIO()
        pq.write_table(table, content)
        write_bytes(self._file(name), content.getvalue())
        return values

    def _read(self, name: str) -> Values:
        path = self._file(name)
        with reading(path, "run of a sweep", "delete it, and the same call makes it again"):
            table = read_parquet(path)
            groups = table.to_pandas().groupby("measure", sort=False)["value"]
            found = {str(measure): values.to_numpy(float) for measure, values in groups}
            if (table.schema.metadata or {}).get(CHECKSUM) != self._checksum(name, found).encode():
                raise InputError("its checksum is not that of these numbers, in this run of this sweep")
        return found

    def _checksum(self, name: str, values: Values) -> str:
        tensors = {f"values of {measure}": torch.tensor(found) for measure, found in values.items()}
        return digest({"asked": self._asked, "run": name, **tensors})

    def _file(self, name: str) -> Path:
        assert self.folder is not None, "runs are kept in a folder or nowhere"
        return self.folder / f"{name}.parquet"


def _agree(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    # Two runs of one model on another number of threads differ in the last digits.
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True))
