"""Which words turn a sentence, and which are plainly emotional.

Turning words are the negating, excepting and contrasting words of English grammars, and were not chosen by looking at any
model. A word is plainly emotional if people rate its valence among the most extreme tenth of a list of norms, or, without
norms, if it is one of the package's emotion words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emoprobe.corpora.emotion_words import rate
from emoprobe.interventions import Span
from emoprobe.study.feelings import ADJECTIVES, POLES
from emoprobe.valattn.attention_patterns import NEGATING, WORDS

CONTRASTING = (
    "but though although however yet still nevertheless nonetheless despite instead except unless whereas otherwise "
    "rather".split()
)
TURNING = NEGATING | frozenset(CONTRASTING)
EXTREME = 0.9
"""Quantile of the distance from the mean valence of all words, from which on a word is plainly emotional."""
_WORD = re.compile(r"\w+(?:['’-]\w+)*")


def word_places(text: str) -> list[Span]:
    """Return where words stand in a text, without the punctuation around them; "don't" and "ill-lit" are one word."""
    return [found.span() for found in _WORD.finditer(text)]


def turning(words: Sequence[str]) -> NDArray[np.bool_]:
    """Say which words turn a sentence: those of the list, and contracted negations ("don't")."""
    plain = [word.lower().replace("’", "'") for word in words]
    return np.array([word in TURNING or word.endswith("n't") for word in plain], dtype=bool)


def emotional(words: Sequence[str], norms: pd.DataFrame | None = None) -> NDArray[np.bool_]:
    """Say which words are plainly emotional; `norms` is what `load_word_norms` returns. Turning words never are."""
    distinct = sorted({word.lower() for word in words})
    if norms is None:
        listed = (*ADJECTIVES.values(), *(pole for poles in POLES.values() for pole in poles))
        named = {*WORDS["emotional"], *(word for group in listed for word in group)}
    else:
        away = (norms["valence"] - norms["valence"].mean()).abs()
        least = away.quantile(EXTREME)
        rated = (rate(distinct, norms)["valence"] - norms["valence"].mean()).abs() >= least
        named = {word for word, extreme in zip(distinct, rated, strict=True) if extreme}
    chosen = np.array([word.lower() in named for word in words], dtype=bool)
    return chosen & ~turning(words)
