"""Train the tokenizer of the prose models and lay texts out as token files that are read without loading them."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Regex, Tokenizer, pre_tokenizers

from emoprobe.models.byte_level import EOS, train_bpe
from emoprobe.models.prose.corpus import Document

VOCABULARY = 8_192
PARAGRAPH = "\n\n"
# GPT-2's pieces, but line breaks stand alone: a paragraph has the same tokens by itself and in its book.
PIECES = r"['’](?:[sdmt]|ll|ve|re)\b| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\n+|[^\S\n]+(?!\S)|\s"


class Tokens(NamedTuple):
    """Token ids of texts one after another, each closed by `</s>`, and where their paragraphs start."""

    ids: np.ndarray[Any, np.dtype[np.uint16]]  # a memory map
    starts: np.ndarray[Any, np.dtype[np.int64]]
    characters: int


def train_tokenizer(documents: Iterable[Document], size: int = VOCABULARY, one_in: int = 9) -> Tokenizer:
    """Train a byte-level BPE tokenizer on every ninth paragraph; it puts `<s>` before a text.

    One paragraph in nine of the corpus is 20 million characters; more of them hardly changes the entries.
    """
    pieces = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    sample = (
        paragraph + PARAGRAPH
        for document in documents
        for paragraph in document.text.split(PARAGRAPH)[::one_in]
    )
    return train_bpe(sample, size, pieces)


def write_tokens(tokenizer: Tokenizer, documents: Iterable[Document], path: Path) -> None:
    """Write the ids of all documents to `path` and, last, the paragraphs' places beside it, a few pages in memory."""
    starts, count, characters = [], 0, 0
    with path.open("wb") as file:
        for document in documents:
            for paragraph_ids in _paragraphs(tokenizer, document.text):
                starts.append(count)
                count += len(paragraph_ids)
                np.array(paragraph_ids, np.uint16).tofile(file)
            characters += len(document.text)
    np.save(path.with_suffix(".starts.npy"), np.array(starts, np.int64))
    path.with_suffix(".json").write_text(json.dumps({"tokens": count, "characters": characters}))


def read_tokens(path: Path) -> Tokens:
    """Open what `write_tokens` wrote, without reading the ids into memory."""
    characters = json.loads(path.with_suffix(".json").read_text())["characters"]
    ids = np.memmap(path, np.uint16, mode="r")
    return Tokens(ids, np.load(path.with_suffix(".starts.npy")), characters)


def _paragraphs(tokenizer: Tokenizer, text: str) -> Iterator[list[int]]:
    paragraphs = text.split(PARAGRAPH)
    closed = [paragraph + PARAGRAPH for paragraph in paragraphs[:-1]] + paragraphs[-1:]
    end = tokenizer.encode(EOS, add_special_tokens=False).ids
    for place in range(0, len(closed), 512):
        encoded = tokenizer.encode_batch_fast(closed[place : place + 512], add_special_tokens=False)
        for i, encoding in enumerate(encoded, place + 1):
            yield encoding.ids + end * (i == len(closed))
