"""What people type on a command line, read: lists, pairs, points, layers. Nothing heavy is imported for it."""

from __future__ import annotations

from emoprobe.errors import InputError
from emoprobe.layers import Layers


def span(name: str, given: str) -> tuple[float, float]:
    ends = numbers(f"--ranges {name}=", given, "1:9", ":")
    if len(ends) != 2:
        raise InputError(f"--ranges {name}={given}: a range has two ends, for example {name}=1:9")
    return ends[0], ends[1]


def pairs(option: str, given: str | None, example: str) -> dict[str, str]:
    """Read a=b,c=d."""
    found = [part.partition("=") for part in (given or "").split(",") if part.strip()]
    for key, equals, value in found:
        if not (key.strip() and equals and value.strip()):
            raise InputError(f'{option} "{key}{equals}{value}" is not understood: write {option} {example}')
    return {key.strip(): value.strip() for key, _, value in found}


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
