"""Tensors with their record in one `.safetensors` file: written whole or not at all, never pickled."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from emoprobe.checks import is_a, parse_json
from emoprobe.errors import InputError

PACKAGES = ("emoprobe", "torch", "transformers", "scikit-learn", "numpy")
"""What numbers may depend on."""
KEY = "emoprobe"  # one metadata entry only: safetensors keeps several in no fixed order


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the installed version of each package, for the record."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a checkout that is not installed
            found[package] = "not installed"
    return found


def digest(parts: Mapping[str, Any]) -> str:
    """Return a short hash of what is named: of tensors their shape and numbers, of all else how it shows itself."""
    whole = hashlib.sha256()
    for name, part in sorted(parts.items()):
        if isinstance(part, Tensor):
            whole.update(f"{name} {tuple(part.shape)} ".encode())
            whole.update(part.detach().cpu().double().numpy().tobytes())
        else:
            whole.update(f"{name} {part!r} ".encode())
    return whole.hexdigest()[:16]


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file under its final name only once all of it is on disk.

    Raises `InputError` where it cannot be written, as on a full disk; what was under that name is still there.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner may read
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InputError(
                f'cannot write to "{path}" ({error.strerror}): make room there, or give another place; what was written before '
                "is kept"
            ) from error
        raise
    return path


def write_artefact(
    path: str | Path, kind: str, version: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> Path:
    """Write tensors and a JSON record of what they are and of package versions; equal content gives equal bytes."""
    described = {"kind": kind, "version": version, "versions": versions(), **record}
    metadata = {KEY: json.dumps(described, sort_keys=True, allow_nan=False)}
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_bytes(path, save(content, metadata))


def read_artefact(
    path: str | Path, kind: str, version: int, names: Sequence[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, or those of these names only, and the record of an artefact of this kind.

    Raises `InputError` for a file that is missing, damaged, of another kind or written by a later version.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f'no file "{path}": a {kind} was to be read from it; check the path')
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
        record = parse_json(metadata[KEY])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(
            f'"{path}" is damaged or was not written by emoprobe ({type(error).__name__}: {error}): write it again, or give '
            f"another file that holds a {kind}"
        ) from error
    if not isinstance(record, dict) or record.get("kind") != kind:
        other = record.get("kind") if isinstance(record, dict) else None
        raise InputError(
            f'"{path}" holds {f"a {other}" if isinstance(other, str) else "something else"}, not a {kind}'
        )
    if not is_a(record.get("version"), int) or not 1 <= record["version"] <= version:
        raise InputError(
            f'"{path}" has format {record.get("version")}: this emoprobe reads up to {version}; upgrade it'
        )
    return tensors, record
