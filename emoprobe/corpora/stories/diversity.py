"""How different texts are from each other: near-duplicates, and what too many of them share.

A writer asked a thousand times writes much the same a hundred times (one replication of Sofroniew et al. 2026 found one name in
98 % of its stories). Near-duplicates on both sides of a split would make a probe look better than it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b

import pandas as pd

SHINGLE = 4  # words
SAMPLED = 2  # one shingle in so many, by its hash, is kept: enough to compare texts, and bounded memory
SHARED = 0.5
"""Share of a text's shingles that one earlier text must have for it to be a duplicate of that."""
NAME = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]+\b")


class Duplicates:
    """Remember texts, and say of each new one which earlier one it repeats."""

    def __init__(self) -> None:
        self._owners: dict[int, list[int]] = {}
        self._count = 0

    def of(self, text: str) -> int | None:
        """Return the number of the first text that this one repeats for the most part; remember it where there is none.

        Numbers count the texts that were remembered, from 0.
        """
        shingles = _shingles(text)
        shared = Counter(owner for shingle in shingles for owner in self._owners.get(shingle, ()))
        for owner, count in sorted(shared.items()):
            if count >= SHARED * len(shingles):
                return owner
        for shingle in shingles:
            self._owners.setdefault(shingle, []).append(self._count)
        self._count += 1
        return None


def _shingles(text: str) -> set[int]:
    words = re.findall(r"\w+", text.lower())
    pieces = {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}
    hashed = {int.from_bytes(blake2b(piece.encode(), digest_size=8).digest(), "big") for piece in pieces}
    return {number for number in hashed if number % SAMPLED == 0} or {min(hashed)}


def diversity(texts: Sequence[str]) -> pd.Series:
    """Return how different texts are: texts, words (mean), distinct_words (share of all), openings (share of texts whose first
    three words are their own), name (the commonest) and name_share (of texts that have it)."""
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    openings = Counter(" ".join(row[:3]) for row in words)
    names = Counter(name for text in texts for name in set(NAME.findall(text)))
    name, carried = names.most_common(1)[0] if names else ("", 0)
    total = sum(map(len, words))
    return pd.Series(
        {
            "texts": len(texts),
            "words": total / max(1, len(texts)),
            "distinct_words": len({word for row in words for word in row}) / max(1, total),
            "openings": sum(1 for count in openings.values() if count == 1) / max(1, len(texts)),
            "name": name,
            "name_share": carried / max(1, len(texts)),
        },
        dtype=object,
    )
