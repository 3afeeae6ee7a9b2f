"""Text and JSON in files that anybody may have written: what is wrong with one is said with its place in it.

Nothing heavy is imported, so that a command line can look at a file before it loads torch.
"""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from emoprobe.errors import InputError

FIRST = 2**20
"""Bytes of a file of texts that are looked at before all of it is read."""


def check_file(path: Path) -> None:
    """Raise `InputError` for what is no file: a pipe would be waited for, and a device may have no end."""
    try:
        if path.is_file():
            return
        there = path.exists() or path.is_symlink()
        what = (
            "is a folder, not a file" if path.is_dir() else "is no file to read" if there else "no such file"
        )
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    raise InputError(f"{path}: {what}; check the path")


def read_text(path: Path, most: int = -1) -> str:
    """Read a UTF-8 file, with or without a byte order mark; names the line that is not UTF-8 or holds a NUL character.

    With `most`, only so many bytes are read, and a character that is cut there is left out.
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            content = file.read(most)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from None
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(content, final=len(content) != most)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}: line {line} is not UTF-8; save the file in that encoding") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(
            f"{path}: line {line} holds a NUL character, as UTF-16 and files that were not written to their end do; save the "
            "file anew, as UTF-8"
        )
    return text


def check_texts(path: Path) -> None:
    """Raise `InputError` for a file of texts that is not there or cannot be read, as far as its beginning tells."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":  # which is no text, and says what is wrong with it only to those who can read it
        check_file(path)
    elif not read_text(path, FIRST).strip("\r\n \ufeff") and suffix in (".csv", ".tsv"):
        raise empty(path)


def empty(path: Path) -> InputError:
    """Return what is said of a table without a single cell."""
    return InputError(f"{path}: the file is empty; give one with a header and rows")


def parse_json(content: str | bytes) -> Any:
    """Return what JSON from anywhere says.

    Raises `ValueError` for whatever it cannot be: no JSON, nested too deeply, a number too long to be one, and a key that an
    object has twice, of which `json` would quietly take the last.
    """
    try:
        return json.loads(content, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:60]!r} is there twice")
    return found
