"""What an artefact says of itself, from the head of its file alone: none of its tensors is read, and torch is not needed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from emoprobe.errors import InputError
from emoprobe.files import parse_json
from emoprobe.places import LIKE, is_repo

KEY = "emoprobe"  # one metadata entry only: safetensors keeps several in no fixed order
UNREADABLE = (SafetensorError, OSError, KeyError, ValueError)
"""What reading a file that is no whole artefact may raise."""


def read_record(path: str | os.PathLike[str], kind: str, *others: str) -> dict[str, Any]:
    """Return the record of an artefact of this kind, or of one of the others.

    Raises `InputError` for a file that is missing, damaged or of another kind.
    """
    if Path(path).is_dir():
        raise InputError(f'"{path}" is a folder: give the file in it that holds a {kind}')
    if not Path(path).is_file():
        raise InputError(f'no file "{path}": a {kind} was to be read from it; check the path')
    try:
        record = _record(path)
    except UNREADABLE as error:
        raise damaged(path, kind, error) from error
    found = record.get("kind") if isinstance(record, dict) else None
    if not isinstance(record, dict) or found not in (kind, *others):
        raise InputError(
            f'"{path}" holds {f"a {found}" if isinstance(found, str) else "something else"}, not a {kind}'
        )
    return record


def damaged(path: str | os.PathLike[str], kind: str, error: Exception) -> InputError:
    """Return what is said of a file that cannot be read as an artefact of this kind."""
    return InputError(
        f'"{path}" is damaged or was not written by emoprobe ({type(error).__name__}: {error}): write it again, or give '
        f"another file that holds a {kind}"
    )


def recorded(path: str | os.PathLike[str], key: str) -> Any:
    """Return what a file's record has under a key, None for any other file; whoever reads it says what is wrong with it."""
    try:
        return _record(path)[key] if Path(path).is_file() else None
    except (*UNREADABLE, TypeError):
        return None


def recorded_names(path: str | os.PathLike[str], key: str) -> list[str]:
    """Return the names that an artefact has under a key, the "concepts" of a probe set, the "dimensions" of a valuation."""
    names = recorded(path, key)
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _record(path: str | os.PathLike[str]) -> Any:
    with safe_open(path, framework="np") as file:
        return parse_json((file.metadata() or {})[KEY])


def check_probe_set(name: str | os.PathLike[str]) -> None:
    """Raise `InputError` unless a probe set may be read from a file; a repository of the hub may be given instead."""
    if not _on_hub(name):
        read_record(name, "probe set")


def check_probes(name: str | os.PathLike[str]) -> None:
    """Raise `InputError` as `check_probe_set` does, but for what holds a valuation."""
    if not _on_hub(name):
        read_record(name, "probe set", "valuation")


def check_valuation(name: str | os.PathLike[str]) -> None:
    """Raise `InputError` unless a valuation may be read from a file."""
    read_record(name, "valuation")


def check_recorded(path: str | os.PathLike[str], concepts: Iterable[str]) -> None:
    """Raise `InputError` for a concept that a file's probe set does not hold, as far as its head tells."""
    known = recorded_names(path, "concepts")
    for concept in concepts if known else ():
        check_concept(concept, known)


def check_concept(concept: str, known: Sequence[str]) -> None:
    """Raise `InputError` for a concept that is not among those that are probed for."""
    if concept not in known:
        meant = get_close_matches(concept, known, n=1, cutoff=LIKE)
        there = f"there are {', '.join(known)}"
        raise InputError(
            f"no probe for {concept!r}: {f'did you mean {meant[0]!r}? Here {there}' if meant else there}"
        )


def _on_hub(name: str | os.PathLike[str]) -> bool:
    return is_repo(os.fspath(name)) and not Path(name).exists()
