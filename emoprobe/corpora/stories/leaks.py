"""Words that give an emotion away: the word itself, its inflections and its direct synonyms.

A probe that is fitted on texts which name their emotion may have learned the name. The families of words are in
`word_families.json`, by hand: patterns in which a star stands for any ending. A word that is in no family is looked for with
the endings that English puts to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

ENDINGS = ("ness", "ing", "ful", "ous", "ive", "ed", "ly", "e", "y")
"""Endings that are taken off a word of no family before others are allowed for."""
AMBIGUOUS = frozenset(
    "kind kindly kinder kindest content patien* stuck safe safely safer safety alert* tense* dependen* sensitiv* relax* thank* "
    "sorry bore bores tender* hope hoping wary mad vex* composed reflective stress* troubled troubling tired* bitter* "
    "confus* like merry restless* stimulat* upset* self-confiden* confiden* shock* surpris* worr* funny".split()
)
"""Patterns that texts without emotion match too: "a kind of", "web content", "thanks". They give no neutral text away."""
SHORTEST = 4  # letters of what is left, or the word is looked for as it is


def leaks(text: str, emotion: str) -> list[str]:
    """Return the words of a text that name an emotion, as they stand there; empty where none does."""
    return [found.group(0) for found in _pattern(emotion).finditer(text)]


def names_any(text: str) -> list[str]:
    """Return the words of a text that name any emotion there is a family for and that seldom mean anything else."""
    return [found.group(0) for found in _any().finditer(text)]


def family(emotion: str) -> tuple[str, ...]:
    """Return the patterns of an emotion: those of all families that hold it, or of the word alone."""
    held = [patterns for words, patterns in _families() if emotion in words]
    return tuple(dict.fromkeys(pattern for patterns in held for pattern in patterns)) or (_alone(emotion),)


def covered() -> frozenset[str]:
    """Return the emotion words that there is a family for."""
    return frozenset(word for words, _ in _families() for word in words)


def _alone(word: str) -> str:
    for ending in ENDINGS:
        stem = word.removesuffix(ending)
        if stem != word and len(stem) >= SHORTEST:
            return f"{stem}*"
    return f"{word}*" if len(word) >= SHORTEST else word


@cache
def _families() -> tuple[tuple[frozenset[str], tuple[str, ...]], ...]:
    loaded: list[Mapping[str, list[str]]] = json.loads(
        Path(__file__).with_name("word_families.json").read_text(encoding="utf-8")
    )
    return tuple((frozenset(row["words"]), tuple(row["patterns"])) for row in loaded)


@cache
def _pattern(emotion: str) -> re.Pattern[str]:
    return _compiled(family(emotion))


@cache
def _any() -> re.Pattern[str]:
    everything = {pattern for _, patterns in _families() for pattern in patterns}
    return _compiled(tuple(sorted(everything - AMBIGUOUS)))


def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    # A hyphen, a space and a line's end may each part the words of an expression.
    each = [
        re.escape(p).replace(r"\*", r"\w*").replace(r"\ ", r"[\s-]+").replace(r"\-", r"[\s-]+")
        for p in patterns
    ]
    return re.compile(rf"\b(?:{'|'.join(sorted(each, key=len, reverse=True))})\b", re.IGNORECASE)
