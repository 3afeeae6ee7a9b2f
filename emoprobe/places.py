"""Where models, corpora and probe sets are looked for: under a name of the package, on this machine, on the hub.

What is misspelt or missing is refused here, and nothing heavy is imported, so that a command line can do so before it loads
torch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from emoprobe.errors import InputError

MODELS = {"bundled": "prose", "ground-truth": "ground_truth", "prose": "prose"}
"""Names of the models inside the package, and the folders they lie in."""
CORPORA: dict[str, tuple[str, ...]] = {
    "passages": ("bundled",),
    "ground_truth": (),
    "emobank": (),
    "goemotions": ("go_emotions", "google_research_datasets/go_emotions"),
    "carer": ("emotion", "dair_ai/emotion", "carer_emotion"),
    "isear": (),
    "crowd_envent": ("crowdenvent",),
}
"""Names of the corpora, and other ways to call them; for - stands _ in both."""
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
"""Files that hold a corpus."""
REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""Form of a repository's name on the hub, "user/name"."""
LIKE = 0.75
"""How like a name of the package, of 1, another one has to be to be taken for it misspelt."""
FIRST = 2**20
"""Bytes of an artefact's record that are read at the most, where it is only looked at."""
PATIENCE = 3.0
"""Seconds in which the hub has to answer."""


def canonical(name: str) -> str:
    """Return the name of a corpus that a user's spelling stands for, or the spelling itself."""
    plain = name.strip().lower().replace("-", "_")
    return next((known for known, others in CORPORA.items() if plain in (known, *others)), plain)


def is_repo(name: str) -> bool:
    """Say whether a name has the form of a repository's, "user/name", and not of a file's."""
    return REPO.fullmatch(name) is not None and not name.endswith(".safetensors")


def check_model(name: str | os.PathLike[str]) -> None:
    """Raise `InputError` for what is no model's name: a file, a path that leads nowhere, a name of the package misspelt."""
    path = Path(name)
    if str(name) in MODELS or path.is_dir():
        return
    if path.is_file():
        raise InputError(f'"{name}" is a file: give the folder that the model lies in')
    path_like = not isinstance(name, str) or name.startswith((".", "~")) or "\\" in name or name.endswith("/")
    if path_like or path.is_absolute() or len(path.parts) > 2:
        raise InputError(f'no folder "{name}": check the path to the model, or give a hub name or "bundled"')
    _check_spelling("model", str(name), MODELS)


def check_corpus(name: str | os.PathLike[str]) -> None:
    """Raise `InputError` for a file of texts that is not there, and for a corpus of the package misspelt."""
    path, spelt = Path(name), os.fspath(name)
    if canonical(spelt) in CORPORA or path.is_dir():
        return
    if path.suffix.lower() in SUFFIXES:
        check_file(path)
    elif not path.exists():
        _check_spelling("corpus", spelt, [known.replace("_", "-") for known in _spellings()])


def check_probes(name: str | os.PathLike[str], kind: str = "probe set") -> None:
    """Raise `InputError` for a file that is not there; a repository of the hub may be given instead."""
    if not is_repo(os.fspath(name)) or Path(name).exists():
        check_artefact(name, kind)


def check_artefact(path: str | os.PathLike[str], kind: str = "probe set") -> None:
    """Raise `InputError` unless there is a file that an artefact of this kind may be read from."""
    if Path(path).is_dir():
        raise InputError(f'"{path}" is a folder: give the file in it that holds a {kind}')
    if not Path(path).is_file():
        raise InputError(f'no file "{path}": a {kind} was to be read from it; check the path')


def recorded_names(path: str | os.PathLike[str], key: str) -> list[str]:
    """Return the names that an artefact has under a key, from the head of its file alone; of any other file, none.

    That is the "concepts" of a probe set, the "dimensions" of a valuation. Whoever reads the file says what is wrong with it.
    """
    try:
        with Path(path).open("rb") as file:
            head = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), FIRST)))
        names = json.loads(head["__metadata__"]["emoprobe"])[key]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


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


def check_folder(path: Path) -> None:
    """Raise `InputError` for what is no folder."""
    if not path.is_dir():
        raise InputError(f'no folder "{path}": check the path')


def check_study(path: Path) -> None:
    """Raise `InputError` for what is no folder of a study."""
    if not (path / "manifest.json").is_file():
        raise InputError(f'"{path}" holds no study: there is no manifest.json in it')


def check_out(path: Path) -> None:
    """Raise `InputError` for a file where a study's folder is to be, and where none can be made."""
    if path.exists() and not path.is_dir():
        raise InputError(f'"{path}" is a file, not a folder: give another one for the study')
    if not path.exists():
        check_writable(path)


def check_writable(path: Path) -> None:
    """Refuse now what could not be written after an hour of work."""
    parent = path.parent
    if path.is_dir() or (parent.exists() and not (parent.is_dir() and os.access(parent, os.W_OK))):
        raise InputError(f'cannot write "{path}": give a file in a folder that you may write to')


def _spellings() -> list[str]:
    return [spelling for known, others in CORPORA.items() for spelling in (known, *others)]


def _check_spelling(kind: str, name: str, known: Iterable[str]) -> None:
    """Refuse a name that is nearly one of the package; the hub has none of its own that are."""
    meant = get_close_matches(name.lower().replace("_", "-"), known, n=1, cutoff=LIKE)
    if meant and "/" not in name:
        raise InputError(f'no {kind} "{name}": did you mean "{meant[0]}"?')


@contextmanager
def hub() -> Iterator[None]:
    """Run the block with the hub's clients set offline where the hub does not answer now.

    They then take what was downloaded before, or fail at once; of themselves they would ask for it again and again, for most
    of a minute. One request tells, made as they make theirs, through whatever proxy.
    """
    from huggingface_hub import constants, get_session

    before = constants.HF_HUB_OFFLINE
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # whatever the client raises: its classes change with its versions
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
