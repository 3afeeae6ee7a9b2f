"""Steering vectors in other tools' formats: what `add` adds, written to a file, and such a file read as a `Direction`.

Two formats are known. A **control vector** is a GGUF file of one-dimensional float32 tensors `direction.N` beside
`general.architecture` ("controlvector"), `controlvector.model_hint` and `controlvector.layer_count`, as repeng
(`ControlVector.export_gguf`) and llama.cpp (`tools/cvector-generator`) write it and llama.cpp reads it
(`common_control_vector_load`). **steering-vectors** has no format of its own: its users keep a `SteeringVector`, or its dict
from N to tensors, with `torch.save`. That is a pickle, which is read here without running what is in it and is never written:
what is written is a safetensors file of tensors named `N`.

All three add to what leaves block N, counted from 0, at all positions. So **N is layer N + 1 here**, the stream that enters
the next block or leaves the last one: our layer l is N = l - 1, and layer 0, the embedding, has no number. llama.cpp refuses
`direction.0`, so that layer 1 cannot be written to a control vector; repeng's own are read.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from emoprobe.artefacts import versions, write_bytes
from emoprobe.checks import check_tensors, reading
from emoprobe.errors import InputError
from emoprobe.layers import Layers
from emoprobe.probes import Direction
from emoprobe.records import KEY
from emoprobe.steering.edits import add
from emoprobe.steering.vectors import Vector

if TYPE_CHECKING:
    from emoprobe.models import LiveModel

ARCHITECTURE, TENSOR = "controlvector", "direction."
BLOCKS = 10_000
"""More than any model has."""


def export_gguf(
    model: LiveModel,
    direction: Vector,
    path: str | Path,
    strength: float = 0.05,
    layers: Layers = 0.66,
    unit: str = "norm",
    *,
    norms: Tensor | None = None,
) -> Path:
    """Write what `steer(model, direction, strength, layers, unit=unit)` adds to a control vector for repeng and llama.cpp.

    In either, factor 1 (`--control-vector`, `set_control(vector)`) then steers as `steer` does, and factor 2 as twice the
    strength. Needs the package gguf: `pip install "emoprobe[interchange]"`. Raises `InputError` where it is missing, for layers
    0 and 1, for strength 0, for a model whose residual stream was processed, and as `add` does.
    """
    gguf = _gguf()
    vectors = _added(model, direction, strength, layers, unit, norms)
    if 0 in vectors:
        raise InputError(
            "layer 1 cannot be written to a control vector, since llama.cpp refuses direction.0: give layers from 2 on"
        )
    config = getattr(model.underlying, "config", None)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "vector.gguf"
        writer = gguf.GGUFWriter(written, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", str(getattr(config, "model_type", model.name)))
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vectors))
        writer.add_string(KEY, _account(model))
        for block, vector in vectors.items():
            writer.add_tensor(f"{TENSOR}{block}", vector.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return write_bytes(path, written.read_bytes())


def import_gguf(path: str | Path) -> Direction:
    """Read a control vector of repeng or llama.cpp; its concept is the file's name.

    `steer(model, read, 1.0, read.layers, unit="raw")` adds what factor 1 adds there. Raises `InputError` for a file that is
    missing, damaged or of another kind, and where gguf is missing.
    """
    gguf, path = _gguf(), _existing(path)
    try:
        reader = gguf.GGUFReader(path)
        field = reader.get_field("general.architecture")
        architecture = None if field is None else field.contents()
        tensors = list(reader.tensors)
    except (ValueError, KeyError, IndexError, OSError, TypeError) as error:
        raise InputError(f'"{path}" is no GGUF file that can be read: {error}') from error
    if architecture != ARCHITECTURE:
        raise InputError(f'"{path}" has architecture {architecture!r}: a control vector has {ARCHITECTURE!r}')
    floats = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
    vectors = {}
    for tensor in tensors:
        number = tensor.name.removeprefix(TENSOR)
        if not tensor.name.startswith(TENSOR) or not number.isdecimal():
            raise InputError(f'"{path}" holds {tensor.name!r}: a control vector holds {TENSOR}N only')
        if tensor.tensor_type not in floats:
            raise InputError(
                f'"{path}": {tensor.name} is {tensor.tensor_type.name}, where F32 is what tools take'
            )
        if int(number) in vectors:
            raise InputError(f'"{path}" holds direction.{int(number)} twice')
        vectors[int(number)] = torch.tensor(tensor.data)
    return _direction(path, vectors)


def export_steering_vectors(
    model: LiveModel,
    direction: Vector,
    path: str | Path,
    strength: float = 0.05,
    layers: Layers = 0.66,
    unit: str = "norm",
    *,
    norms: Tensor | None = None,
) -> Path:
    """Write what `steer(model, direction, strength, layers, unit=unit)` adds for the package steering-vectors.

    It has no reader of its own; these lines are one, and `vector.apply(model)` with multiplier 1 then steers as `steer` does:

        from safetensors.torch import load_file
        from steering_vectors import SteeringVector
        vector = SteeringVector({int(block): added for block, added in load_file(path).items()})

    Raises `InputError` for layer 0, for strength 0, for a model whose residual stream was processed, and as `add` does.
    """
    vectors = _added(model, direction, strength, layers, unit, norms)
    named = {str(block): vector for block, vector in vectors.items()}
    return write_bytes(path, save(named, {KEY: _account(model)}))


def import_steering_vectors(path: str | Path) -> Direction:
    """Read what `export_steering_vectors` wrote, or a `SteeringVector` or its `layer_activations` kept with `torch.save`.

    No code in the file is run, and steering-vectors need not be installed. `steer(model, read, 1.0, read.layers, unit="raw")`
    adds what `apply` with multiplier 1 adds. The concept is the file's name. Raises `InputError` for a file that is missing,
    damaged or holds anything else, and for vectors of other places than what leaves a block.
    """
    path = _existing(path)
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"  # what torch.save writes; zipfile.is_zipfile raises for some files
    if not zipped:
        try:
            named = load(path.read_bytes())
            vectors = {int(block): vector for block, vector in named.items()}
            if len(vectors) < len(named):
                raise InputError(f'"{path}" holds a block twice')
            return _direction(path, vectors)
        except (SafetensorError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f'"{path}" holds no steering vectors: it is neither of torch.save nor tensors 0, 1, … in safetensors ({error})'
            ) from error
    found = _unpickled(path)
    if isinstance(found, _SteeringVector):
        place = getattr(found, "layer_type", "decoder_block")
        if place != "decoder_block":
            raise InputError(
                f'"{path}" holds vectors for {place!r}: only those of decoder_block are added to the residual stream'
            )
        found = getattr(found, "layer_activations", None)
    if not isinstance(found, dict) or not all(
        isinstance(block, int) and isinstance(vector, Tensor) for block, vector in found.items()
    ):
        raise InputError(f'"{path}" holds no SteeringVector, nor a dict from numbers of blocks to tensors')
    return _direction(path, found)


def _account(model: LiveModel) -> str:
    """Return what is written beside vectors for whoever asks where they come from; other tools pass over it."""
    return json.dumps({"fingerprint": model.fingerprint(), "versions": versions()}, sort_keys=True)


@dataclass
class _SteeringVector:
    """Stand in for `steering_vectors.SteeringVector` where a file names it: fields, and nothing that could run."""

    layer_activations: dict[int, Tensor]
    layer_type: str = "decoder_block"


def _unpickled(path: Path) -> object:
    known = (_SteeringVector, "steering_vectors.steering_vector.SteeringVector")
    try:
        with torch.serialization.safe_globals([known]):
            found: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises anything; whatever it is, nothing was run
        raise InputError(
            f'"{path}" cannot be read safely: it is damaged, or holds more than tensors and a SteeringVector. Keep '
            "vector.layer_activations with torch.save instead"
        ) from error
    return found


def _added(
    model: LiveModel, direction: Vector, strength: float, layers: Layers, unit: str, norms: Tensor | None
) -> dict[int, Tensor]:
    """Return what is added to the output of each block, float32 on the CPU."""
    model.check_basis("raw", "a file for other tools")
    edits = add(model, direction, strength, layers, unit=unit, norms=norms)
    if not edits:
        raise InputError("strength=0 adds nothing, so there is nothing to write: give another strength")
    if any(edit.layer == 0 for edit in edits):
        raise InputError(
            "layer 0 cannot be written: other tools add to what leaves a block, and the embedding leaves none"
        )
    nothing = torch.zeros(model.d_model)
    return {edit.layer - 1: edit.edit(nothing) for edit in edits}


def _direction(path: Path, vectors: Mapping[int, Tensor]) -> Direction:
    if not vectors:
        raise InputError(f'"{path}" holds no vectors')
    if max(vectors) >= BLOCKS:
        raise InputError(f'"{path}" has a vector for block {str(max(vectors))[:20]}: no model has so many')
    if min(vectors) < 0:
        raise InputError(
            f'"{path}" counts blocks from the last ({min(vectors)}): give numbers from the first, 0'
        )
    with reading(path, "vectors"):
        check_tensors({f"the vector of block {block}": vector for block, vector in vectors.items()})
        rows = {block: vectors[block].detach().float().reshape(-1) for block in sorted(vectors)}
    if not all(len(row) for row in rows.values()):
        raise InputError(f'"{path}" holds vectors without numbers')
    widths = {len(row) for row in rows.values()}
    if len(widths) > 1:
        raise InputError(f'"{path}" holds vectors of several widths: {", ".join(map(str, sorted(widths)))}')
    return Direction(path.stem, tuple(block + 1 for block in rows), torch.stack(list(rows.values())))


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise InputError(f'no file "{path}": steering vectors were to be read from it; check the path')
    return path


def _gguf() -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise InputError(
            'control vectors need the package gguf: pip install "emoprobe[interchange]"'
        ) from error
    module: ModuleType = gguf
    return module
