"""Pooled activations on disk: shards with checksums and an index, written one after another and read back lazily.

    index.json            what was asked, how many bytes that takes, and which texts lie in which shard
    000000.safetensors …  for each layer `layer.L` (texts, d_model), and the sums of the pool, where it keeps some

Every file is written whole or not at all, so that what was broken off goes on behind the last shard that is there, to the same
end, whichever shards are there. Nothing here holds more than one shard in memory, but for `vectors` and `layer`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from rich.filesize import decimal
from torch import Tensor

from emoprobe.activations import Pool, capture, room
from emoprobe.artefacts import (
    holds_nothing,
    only_writer,
    read_artefact,
    versions,
    write_artefact,
    write_bytes,
)
from emoprobe.checks import check_record, reading
from emoprobe.errors import InputError
from emoprobe.files import parse_json
from emoprobe.layers import Layers, resolve_layers
from emoprobe.progress import track
from emoprobe.texts import check_strings

if TYPE_CHECKING:
    from emoprobe.models.live import LiveModel
    from emoprobe.workers import RayWorkers

KIND, VERSION = "shard of activations", 1
INDEX = "index.json"
SHARD = 1024
"""Texts of a shard: few enough to lose little, many enough to sort by length."""
MOST = 1_000_000
"""Shards of a store; an index that speaks of more is damaged."""


@runtime_checkable
class Adding(Protocol):
    """A pool that adds up more on the way than it returns, and whose sums over parts of the texts add up."""

    def __call__(self, stream: Tensor, counted: Tensor) -> Tensor:
        """Pool, as any pool does."""
        ...

    def anew(self) -> Adding:
        """Return one like it that has seen nothing."""
        ...

    def sums(self) -> dict[str, Tensor]:
        """Return what was added up."""
        ...

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Add what another one has added up."""
        ...


@dataclass(frozen=True)
class ActivationStore:
    """Vectors of texts at some layers, in a folder. `store_activations` writes one, `load_activations` opens one.

    `texts` is their number, `layers` says which residual streams, `dtype` how numbers lie on disk, `shard` how many texts a
    shard holds, and `size` how many bytes all vectors take there.
    """

    folder: Path
    texts: int
    layers: tuple[int, ...]
    d_model: int
    dtype: torch.dtype
    shard: int
    asked: str

    @property
    def size(self) -> int:
        """Bytes of all vectors."""
        return self.texts * len(self.layers) * self.d_model * self.dtype.itemsize

    @property
    def rows(self) -> list[slice]:
        """Which texts each shard holds."""
        return [
            slice(first, min(first + self.shard, self.texts)) for first in range(0, self.texts, self.shard)
        ]

    def has(self, number: int) -> bool:
        """Whether a shard is there."""
        return self._path(number).is_file()

    def shards(self, layers: Sequence[int] | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield which texts and their vectors, float32 (texts, layers, d_model), reading these layers only (default: all).

        Raises `InputError` for a layer that is not kept, and for a shard that is missing, damaged or of another store.
        """
        for number, rows in enumerate(self.rows):
            found = self._read(number, [self._name(layer) for layer in layers or self.layers])
            yield rows, torch.stack([part.float() for part in found.values()], 1)

    def layer(self, layer: int) -> Tensor:
        """Return the vectors at one layer, float32 (texts, d_model)."""
        return torch.cat([vectors[:, 0] for _, vectors in self.shards([layer])])

    def vectors(self) -> Tensor:
        """Return all vectors, float32 (texts, layers, d_model), as `emoprobe.activations.capture` does."""
        filled = room(self.texts, len(self.layers), self.d_model)
        for rows, vectors in self.shards():
            filled[rows] = vectors
        return filled

    def sums(self, number: int) -> dict[str, Tensor]:
        """Return what the pool had added up when a shard was written."""
        names = [name for name in self._record(number)["sha256"] if not name.startswith("layer.")]
        return self._read(number, names)

    def write(self, number: int, vectors: Tensor, sums: dict[str, Tensor]) -> None:
        """Keep a shard: vectors (texts, layers, d_model) and the sums of the pool."""
        by_layer = vectors.to(self.dtype).unbind(1)
        tensors = {self._name(layer): part for layer, part in zip(self.layers, by_layer, strict=True)} | sums
        record = {"asked": self.asked, "sha256": {name: _sha256(part) for name, part in tensors.items()}}
        write_artefact(self._path(number), KIND, VERSION, tensors, record)

    def _read(self, number: int, names: Sequence[str]) -> dict[str, Tensor]:
        path, record = self._path(number), self._record(number)
        found, _ = read_artefact(path, KIND, VERSION, names)
        shape = (min(self.shard, self.texts - number * self.shard), self.d_model)
        sound = all(
            _sha256(part) == record["sha256"].get(name)
            and (part.shape == shape or not name.startswith("layer."))
            for name, part in found.items()
        )
        if record["asked"] != self.asked or not sound:
            raise InputError(
                f'"{path}" is damaged or of other activations: delete it, and those behind it, and make them again'
            )
        return found

    def _record(self, number: int) -> dict[str, Any]:
        """Return what a shard says of itself, without its tensors."""
        path = self._path(number)
        record = read_artefact(path, KIND, VERSION, ())[1]
        with reading(path, KIND):
            check_record(record, {"asked": str, "sha256": {...: str}})
        return record

    def _name(self, layer: int) -> str:
        if layer not in self.layers:
            raise InputError(f'layer {layer} is not kept in "{self.folder}": there are {list(self.layers)}')
        return f"layer.{layer}"

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}.safetensors"


def store_activations(
    model: LiveModel,
    texts: Sequence[str],
    folder: str | os.PathLike[str],
    layers: Layers = "all",
    pool: Pool = "mean",
    *,
    start: int = 1,
    dtype: torch.dtype = torch.float32,
    shard: int | None = None,
    batch_size: int = 32,
    workers: RayWorkers | None = None,
    progress: bool = False,
) -> ActivationStore:
    """Write one vector per text and layer to a folder, `shard` texts (default: SHARD) at a time; return the store of them.

    `pool`, `start` and `batch_size` are as in `emoprobe.activations.capture`; what an `Adding` pool adds up is kept with each
    shard. `dtype` is float32 or bfloat16. The same call goes on where an earlier one was broken off, and both give the same
    bytes. The space that is needed is looked for first. `workers`, see `emoprobe.ray_workers`, read shards side by side.

    Raises `InputError` for a folder that holds something else or that another process is writing to, another dtype, no texts,
    and a disk without room.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise InputError(f"dtype={dtype}: activations are kept as torch.float32 or torch.bfloat16")
    shard = SHARD if shard is None else shard
    if not texts or shard < 1:
        raise InputError(f"{len(texts)} texts in shards of {shard}: give at least one of both")
    chosen = tuple(resolve_layers(layers, model.n_layers))
    asked = {
        "model": model.fingerprint(),
        "model_dtype": str(model.dtype),
        "texts": len(texts),
        "sha256": _sha256_of(texts),
        "layers": list(chosen),
        "d_model": model.d_model,
        "pool": _named(pool),
        "start": start,
        "dtype": str(dtype).removeprefix("torch."),
        "shard": shard,
        "batch_size": batch_size,
    }
    folder = Path(folder)
    with only_writer(folder):
        about = _index_for(folder, asked)
        check_strings(texts)  # a shard would count from its own first
        store = _store(folder, about)
        missing = [number for number in range(len(store.rows)) if not store.has(number)]
        _check_room(store, len(missing))
        if workers is not None:
            workers.check_model(model)
        read = partial(read_shard, layers=chosen, pool=pool, start=start, batch_size=batch_size)
        pieces = (list(texts[store.rows[number]]) for number in missing)
        found = (read(model, piece) for piece in pieces) if workers is None else workers.map(read, pieces)
        title = f"reading {model.name}, {decimal(store.size)} to {store.folder}"
        kept = len(store.rows) - len(missing)
        for number in track(missing, title, wanted=progress, total=len(store.rows), completed=kept):
            vectors, sums = next(found)
            # Only now: what fails before its first shard leaves nothing in the way.
            if not (store.folder / INDEX).is_file():
                write_bytes(store.folder / INDEX, (json.dumps(about, indent=1) + "\n").encode())
            store.write(number, vectors, sums)
    if isinstance(pool, Adding):
        for number in range(len(store.rows)):
            pool.add(store.sums(number))
    return store


def read_shard(
    model: LiveModel, texts: Sequence[str], layers: Sequence[int], pool: Pool, start: int, batch_size: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the vectors of some texts, float32 (texts, layers, d_model), and what a pool of their own has added up."""
    own = pool.anew() if isinstance(pool, Adding) else pool
    vectors = capture(model, texts, layers, own, start=start, batch_size=batch_size)
    return vectors, own.sums() if isinstance(own, Adding) else {}


def load_activations(folder: str | os.PathLike[str]) -> ActivationStore:
    """Open activations that `store_activations` wrote. Raises `InputError` where there are none, or not all of them."""
    store = _store(Path(folder), _index(Path(folder)))
    there = sum(store.has(number) for number in range(len(store.rows)))
    if there < len(store.rows):
        raise InputError(
            f'"{folder}" holds {there} of {len(store.rows)} shards: call store_activations once more, it goes on there'
        )
    return store


def _index_for(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the index in a folder, where it is of what is asked for, or the one to write there."""
    if not (folder / INDEX).is_file():
        if folder.exists() and not (folder.is_dir() and holds_nothing(folder)):
            raise InputError(f'"{folder}" holds something else: give a folder that is new or empty')
        return {**asked, "versions": versions()}
    found = _index(folder)
    other = [name for name in asked if found.get(name) != asked[name]]
    if other:
        raise InputError(
            f'"{folder}" holds other activations ({", ".join(other)} differ): give another folder, or delete it'
        )
    return found


def _index(folder: Path) -> dict[str, Any]:
    try:
        found = parse_json((folder / INDEX).read_bytes())
        _store(folder, found)
    except FileNotFoundError:
        raise InputError(f'"{folder}" holds no activations: there is no {INDEX} in it') from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f'"{folder / INDEX}" is damaged ({type(error).__name__}): delete the folder'
        ) from error
    return dict(found)


def _store(folder: Path, asked: dict[str, Any]) -> ActivationStore:
    layers = tuple(int(layer) for layer in asked["layers"])
    texts, d_model, shard = (int(asked[name]) for name in ("texts", "d_model", "shard"))
    dtype: torch.dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[asked["dtype"]]
    if min(texts, d_model, shard) < 1 or texts > MOST * shard:
        raise ValueError("numbers below one, or too many shards")
    identity = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return ActivationStore(folder, texts, layers, d_model, dtype, shard, identity)


def _check_room(store: ActivationStore, missing: int) -> None:
    rest = store.size * missing // len(store.rows)
    there = next(place for place in (store.folder, *store.folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if rest > free:
        raise InputError(
            f'{decimal(rest)} of activations do not fit into "{store.folder}", which has {decimal(free)} left: capture fewer '
            "layers or texts, give dtype=torch.bfloat16, or a folder with more room"
        )


def _named(pool: Pool) -> str:
    inner = getattr(pool, "pool", pool)
    return inner if isinstance(inner, str) else str(getattr(inner, "__qualname__", type(inner).__name__))


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()


def _sha256_of(texts: Sequence[str]) -> str:
    whole = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        whole.update(len(content).to_bytes(8, "big") + content)
    return whole.hexdigest()
