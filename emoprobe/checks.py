"""What comes out of a file is looked at before it is believed: records, names, layers, tensors.

Whoever reads a file says what it has to hold; what is then said names the place in it, and `reading` adds the file.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import torch
from rich.filesize import decimal
from torch import Tensor

from emoprobe.errors import UNSHOWN, InputError

UNPACKED, RATIO = 2**31, 20
"""Bytes, and times its size on disk, that a Parquet file may unpack to; real tables are packed to a tenth or so."""
ROWS = 4096
"""Rows of a Parquet file that are unpacked at once."""


def read_parquet(path: str | Path) -> pa.Table:
    """Return a table in which all that is text is UTF-8; Arrow looks for that only when asked, and later fails at it.

    A value that is written once may stand in any number of rows, so that a small file may unpack to more than any memory: it is
    read piece by piece, and refused as soon as it takes more than UNPACKED bytes and RATIO times its own size. Raises
    `OSError` or `ValueError` for that and anything else.
    """
    most, batches, size = max(UNPACKED, RATIO * Path(path).stat().st_size), [], 0
    with pyarrow.parquet.ParquetFile(path) as file:
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        # No value takes more than its column does in the file, unpacked.
        largest = max((group.total_byte_size for group in groups), default=0)
        rows = min(ROWS, max(1, most // max(1, largest)))
        for batch in file.iter_batches(batch_size=rows, use_threads=False):
            batches.append(batch)
            size += sum(map(_unpacked, batch.columns))
            if size > most:
                raise ValueError(f"it unpacks to more than {decimal(most)}")
        table = pa.Table.from_batches(batches, file.schema_arrow)
    table.validate(full=True)
    return table


def _unpacked(column: pa.Array) -> int:
    """Return the bytes that a column takes where each row has its value; Arrow may keep numbers of values instead."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return 8 * len(column) + _unpacked(column.flatten())
    if pa.types.is_struct(column.type):
        return sum(map(_unpacked, column.flatten()))
    return int((column.dictionary_decode() if pa.types.is_dictionary(column.type) else column).nbytes)


@contextmanager
def reading(path: str | Path, kind: str, mend: str = "give another file") -> Iterator[None]:
    """Say of which file it is, and what to do, where what was read from it makes no artefact of this kind."""
    try:
        yield
    except (
        OSError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
    ) as error:
        reason = " ".join(
            (str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}").split()
        )
        raise InputError(f'"{path}" is damaged, it holds no whole {kind} ({reason[:300]}): {mend}') from error


def check_record(record: object, wanted: Mapping[Any, Any], where: str = "") -> None:
    """Raise `InputError` unless `record` is an object with these keys, each with a value as it is `wanted`.

    That is a type or several, a list of one type for a list of such values, or again such a mapping; in one, the key ... stands
    for all keys that there are.
    """
    if not isinstance(record, Mapping):
        raise InputError(f"{where or 'its record'} is no object")
    keys = record if ... in wanted else wanted
    for key in keys:
        kind, name, value = (
            wanted.get(key, wanted.get(...)),
            f"{where}{'.' if where else ''}{key}",
            record.get(key),
        )
        if isinstance(kind, Mapping):
            check_record(value, kind, name)
        elif isinstance(kind, list):
            if not isinstance(value, list) or not all(is_a(item, kind[0]) for item in value):
                raise InputError(f"{name} is {_short(value)}, not such a list")
        elif key not in record or not is_a(value, kind):
            raise InputError(f"{name} is {_short(value)}" if key in record else f"it has no {name}")


def is_a(value: object, kind: Any) -> bool:
    """Say whether a value is of a type, or of one of several; True is no whole number here, though it is one to Python."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def check_names(names: Iterable[str]) -> None:
    """Raise `InputError` for a name that is there twice, or cannot be shown on one line as it is."""
    listed = list(names)
    for name in listed:
        if UNSHOWN.search(name):
            raise InputError(f"the name {name[:60]!r} holds control characters")
        if listed.count(name) > 1:
            raise InputError(f"the name {name[:60]!r} is there twice")


def check_layers(layers: Iterable[int], last: int) -> None:
    """Raise `InputError` unless layers rise from 0 or more to `last` or less."""
    listed = list(layers)
    if not listed or any(a >= b for a, b in zip([-1, *listed], [*listed, last + 1], strict=True)):
        raise InputError(f"layers {_short(listed)} do not rise within 0 to {last}")


def check_seed(seed: int) -> None:
    """Raise `InputError` for a seed that some generator does not take: numpy's legacy ones take 32 bits, without a sign."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed={seed} is out of range: give a whole number from 0 to {2**32 - 1}")


def check_finite(**numbers: float) -> None:
    """Raise `InputError` for a number that is infinite or none, or would be in float32."""
    for name, number in numbers.items():
        if not torch.isfinite(torch.tensor(number, dtype=torch.float32)):
            raise InputError(f"{name}={number} is not a finite number in float32")


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Raise `InputError` for a tensor that holds anything but finite real numbers."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise InputError(f"{name} holds {str(tensor.dtype).removeprefix('torch.')}, no real numbers")
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise InputError(f"{name} holds numbers that are not finite ({bad} of {tensor.numel()})")
