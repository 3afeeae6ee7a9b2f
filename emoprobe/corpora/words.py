"""Annotations below the text: a sentence valued word by word, and words' values carried over to a model's
tokens.

Word-level valence, arousal and relevance are what the valuation method was first tried on (J. Marín,
LessWrong, 4 September 2024). This file knows nothing of corpora or tokenizers: spans and offsets are plain
character positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from emoprobe.errors import InputError

VALUATION = ("valence", "arousal", "relevance")
"""The dimensions of a valuation, in the order in which they are written down by hand."""
RANGES = {"valence": (-1.0, 1.0), "arousal": (0.0, 1.0), "relevance": (0.0, 1.0), "dominance": (0.0, 1.0)}
"""Ranges that these dimensions have where nothing else is declared."""


def annotated_sentence(
    words: Sequence[Sequence[object]], dimensions: Sequence[str] = VALUATION
) -> dict[str, object]:
    """Join (word, value of each dimension) by single spaces into a row: `text` and its `spans`.

    A span covers its word's characters, punctuation included; None stands for a value that was not given.
    Raises InputError for an empty sentence, an empty word, or the wrong number of values.
    """
    if not words:
        raise InputError("a sentence without words; give one (word, value, ...) for each word")
    spans, start = [], 0
    for position, (word, *values) in enumerate(words, start=1):
        if not isinstance(word, str) or not word.strip():
            raise InputError(f"word {position} is {word!r}; give a word that is not empty")
        if len(values) != len(dimensions):
            raise InputError(
                f"word {position}, {word!r}, has {len(values)} values; give {', '.join(dimensions)}"
            )
        numbers = {
            d: math.nan if value is None else value for d, value in zip(dimensions, values, strict=True)
        }
        spans.append({"start": start, "end": start + len(word), **numbers})
        start += len(word) + 1
    return {"text": " ".join(str(word) for word, *_ in words), "spans": spans}


def token_targets(
    spans: Sequence[Mapping[str, float]], offsets: Sequence[Sequence[int]] | np.ndarray, dimension: str
) -> np.ndarray:
    """Return the value of each token, shape (tokens,): the mean of the spans it overlaps, by characters
    shared.

    `offsets` are the tokens' (start, end) characters, shape (tokens, 2), as fast tokenizers return them. NaN
    where a token meets no annotated span, so special tokens, whose offsets are empty, stay out by themselves.
    """
    tokens = np.asarray(offsets, dtype=int).reshape(-1, 2)
    valued = [span for span in spans if not math.isnan(span.get(dimension, math.nan))]
    bounds = np.asarray([(span["start"], span["end"]) for span in valued], dtype=int).reshape(-1, 2)
    values = np.asarray([span[dimension] for span in valued], dtype=float)
    ends = np.minimum(tokens[:, None, 1], bounds[None, :, 1])
    shared = np.clip(ends - np.maximum(tokens[:, None, 0], bounds[None, :, 0]), 0, None)
    total = shared.sum(axis=1)
    targets = np.full(len(tokens), np.nan)
    np.divide(shared @ values, total, out=targets, where=total > 0)
    return targets
