"""The texts that the bundled language model reads: public-domain fiction, split by author, and TinyStories."""

import csv
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from emoprobe.errors import InputError

LAST_DEATH = 1954  # whoever died by then is out of copyright where it lasts seventy years
STORIES = ("tinystories_train_first1000.json", "tinystories_tail1910.json")


class Document(NamedTuple):
    """A book or a story: blank lines part its paragraphs."""

    author: str
    text: str


def train_documents(data: Path) -> Iterator[Document]:
    """Yield the training books, by authors who died before 1955, then the stories, in the order of the files.

    Raises `InputError` where a file is not there.
    """
    yield from _books(data, "train", LAST_DEATH)
    for name in STORIES:
        path = _found(data / "tinystories" / name)
        yield from (Document("TinyStories", text.strip()) for text in json.loads(path.read_text("utf-8")))


def held_out_documents(data: Path, split: str = "validation") -> Iterator[Document]:
    """Yield the books of the `validation` or the `test` authors, none of whom is in training.

    Raises `InputError` where a file is not there or `split` is neither.
    """
    if split not in ("validation", "test"):
        raise InputError(f"split {split!r} is not held out: give 'validation' or 'test'")
    yield from _books(data, split)


def _books(data: Path, split: str, last_death: int | None = None) -> Iterator[Document]:
    with _found(data / "fiction" / "manifest.csv").open(encoding="utf-8", newline="") as lines:
        wanted = {
            row["id"]
            for row in csv.DictReader(lines)
            if row["split"] == split and (last_death is None or int(row["author_died"]) <= last_death)
        }
    with lzma.open(_found(data / "fiction" / "books.jsonl.xz"), "rt", encoding="utf-8") as books:
        for line in books:
            book = json.loads(line)
            if book["id"] in wanted:
                yield Document(book["author"], book["text"])


def _found(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"no file {path}: --data is the folder that holds fiction/ and tinystories/")
    return path
