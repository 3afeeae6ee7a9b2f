"""What people type on a command line, read: lists, pairs, points, layers, texts. Nothing heavy is imported for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from emoprobe.errors import InputError
from emoprobe.files import read_text
from emoprobe.layers import Layers


def pairs(option: str, given: str | None, example: str) -> dict[str, str]:
    """Read a=b,c=d."""
    found = [part.partition("=") for part in (given or "").split(",") if part.strip()]
    for key, equals, value in found:
        if not (key.strip() and equals and value.strip()):
            raise InputError(f'{option} "{key}{equals}{value}" is not understood: write {option} {example}')
    return {key.strip(): value.strip() for key, _, value in found}


def columns(given: str | None) -> dict[str, str]:
    """Read which column is what: text=sentence,valence=V."""
    return pairs("--columns", given, "text=sentence,valence=V")


def ranges(given: str | None) -> dict[str, tuple[float, float]]:
    """Read lowest and highest annotations: valence=1:9."""
    return {name: _span(name, ends) for name, ends in pairs("--ranges", given, "valence=1:9").items()}


def _span(name: str, given: str) -> tuple[float, float]:
    ends = numbers(f"--ranges {name}=", given, "1:9", ":")
    if len(ends) != 2:
        raise InputError(f"--ranges {name}={given}: a range has two ends, for example {name}=1:9")
    return ends[0], ends[1]


def split(
    given: str | None, option: str = "--concepts", example: str = "valence,arousal"
) -> list[str] | None:
    """Read a,b."""
    parts = None if given is None else [part.strip() for part in given.split(",") if part.strip()]
    if parts == []:
        raise InputError(f'{option} "{given}" names none: write {option} {example}')
    return parts


def point(given: str | None) -> dict[str, float] | None:
    """Read a point of the valuation space as people type it: valence=1,arousal=-0.5."""
    if given is None:
        return None
    named = pairs("--toward", given, "valence=1,arousal=-0.5")
    try:
        return {name: float(value) for name, value in named.items()}
    except ValueError:
        raise InputError(
            f"--toward {given} is not understood: write --toward valence=1,arousal=-0.5"
        ) from None


def numbers(option: str, given: str, example: str, separator: str = ",") -> list[float]:
    """Read 1,2.5, or 1:9."""
    try:
        return [float(part) for part in given.split(separator)]
    except ValueError:
        raise InputError(f"{option}{given} are no numbers: write {option}{example}") from None


def layers(given: str) -> Layers:
    """Read layers as people type them: 3, 0.66, 2,4, 2:5 or all."""
    if given == "all":
        return given
    try:
        if ":" in given:
            return slice(*(int(part) if part else None for part in given.split(":")))
        found = [float(part) if "." in part else int(part) for part in given.split(",")]
    except (ValueError, TypeError):
        raise InputError(
            f'layers "{given}" are not understood: give an index, a fraction like 0.66, a list 2,4, a slice 2:5 or all'
        ) from None
    return found if len(found) > 1 else found[0]


def words(text: str) -> str:
    """Return a text that was typed, or that of standard input where it is "-"; refuse none, and the name of a file."""
    piped = text == "-"
    try:
        if piped:
            text = sys.stdin.read().rstrip("\n")
        text.encode()  # bytes that are no UTF-8 come as half characters, which no tokenizer reads
    except UnicodeError:
        raise InputError("the text is not UTF-8: give it, or save its file, in that encoding") from None
    if not piped and os.path.isfile(text):
        raise InputError(
            f'"{text}" is a file: to give what is in it, type - for the text and < {text} at the end'
        )
    if not text.strip():
        raise InputError("the text is empty: give some words to read")
    return text


def lines(path: Path) -> list[str]:
    """Read texts, one a line; refuse a file that holds none."""
    found = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not found:
        raise InputError(f'"{path}" holds no text: give a file with one text a line')
    return found
