"""Where models, corpora and studies are looked for: under a name of the package, on this machine, on the hub.

What is misspelt or missing is refused here, and nothing heavy is imported, so that a command line can do so before it loads
torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from emoprobe.errors import InputError
from emoprobe.files import check_texts

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
    """Raise `InputError` for a corpus of the package misspelt, and for a file of texts that is not there or cannot be read.

    Of the file no more than its beginning is looked at.
    """
    path, spelt = Path(name), os.fspath(name)
    if canonical(spelt) in CORPORA or path.is_dir():
        return
    if path.is_file() or path.suffix.lower() in SUFFIXES:
        check_suffix(path)
        check_texts(path)
    elif not path.exists():
        _check_spelling("corpus", spelt, [known.replace("_", "-") for known in _spellings()])


def check_suffix(path: Path) -> None:
    """Raise `InputError` for a file whose name ends as no corpus's does."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: cannot read {suffix or 'this'!r} files; give one of {', '.join(SUFFIXES)}")


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
    from tempfile import TemporaryFile

    refused = InputError(f'cannot write "{path}": give a file in a folder that you may write to')
    if path.is_dir():
        raise refused
    there = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        TemporaryFile(dir=there).close()  # what rights say is not all: a file system may be read only
    except OSError:
        raise refused from None


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
