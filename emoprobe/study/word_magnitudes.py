"""Word magnitudes: how much attention writes at a word, and where it looks from there.

The magnitude of a word at a block is the L2 norm of the attention's output (after the output projection) at its tokens,
summed in quadrature over its sub-word tokens. Plain arrays in, plain arrays out: this file knows nothing of models,
valuations or claims.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from emoprobe.interventions import Span

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Reading:
    """One sentence in one model.

    `magnitudes` is (layers, words); `attention` (words, words) from word to word, the mean over layers and heads; `evenness`
    (layers,) the entropy of the attention weights over that of equal weights, in [0, 1].
    """

    magnitudes: Floats
    attention: Floats
    evenness: Floats


def word_spans(words: Sequence[str]) -> list[Span]:
    """Return where words joined by single spaces stand, without the punctuation around them."""
    spans, start = [], 0
    for word in words:
        core = word.strip(string.punctuation)
        left = start + word.index(core)
        spans.append((left, left + len(core)))
        start += len(word) + 1
    return spans


def word_tokens(words: Sequence[Span], tokens: Sequence[Span]) -> Floats:
    """Say which tokens belong to which word, 0 or 1, (words, tokens).

    A token belongs to the word with which it shares most characters, and to none where it shares none.
    """
    word, token = np.array(words).reshape(-1, 2), np.array(tokens).reshape(-1, 2)
    ends = np.minimum(word[:, None, 1], token[None, :, 1])
    shared = np.clip(ends - np.maximum(word[:, None, 0], token[None, :, 0]), 0, None)
    best = np.arange(len(word))[:, None] == shared.argmax(axis=0)
    belongs: Floats = (best & (shared > 0)).astype(float)
    return belongs


def reading(outputs: Floats, weights: Floats, belongs: Floats) -> Reading:
    """Sum up what attention did with one sentence.

    `outputs` is (layers, tokens, d_model), `weights` (layers, heads, tokens, tokens), `belongs` (words, tokens). Attention
    from word to word is the sum over the other word's tokens and the mean over the word's own.
    """
    magnitudes = np.sqrt((outputs**2).sum(-1) @ belongs.T)
    own = belongs / belongs.sum(-1, keepdims=True)
    attention = own @ weights.mean(axis=(0, 1)) @ belongs.T
    # The first token sees itself only: there is nothing to be even about.
    seen = np.log(np.arange(2, weights.shape[-1] + 1))
    # What cannot be seen has weight 0, and adds nothing.
    entropy = -np.einsum("...k,...k->...", weights, np.log(np.maximum(weights, np.finfo(weights.dtype).tiny)))
    evenness = (entropy[..., 1:] / seen).mean(axis=(1, 2))
    return Reading(magnitudes, attention, evenness)


def variation(magnitudes: Floats) -> Floats:
    """Return the coefficient of variation (standard deviation over mean) of words' magnitudes, one per layer."""
    coefficient: Floats = magnitudes.std(-1) / magnitudes.mean(-1)
    return coefficient


def gains(before: Floats, after: Floats) -> Floats:
    """Return by how much a word's magnitude changed relative to its sentence's mean, as a fraction, (layers, words)."""
    shares = [magnitudes / magnitudes.mean(-1, keepdims=True) for magnitudes in (before, after)]
    gain: Floats = shares[1] / shares[0] - 1
    return gain


def rank_shifts(before: Floats, after: Floats) -> Floats:
    """Return by how many ranks a word rose within its sentence (rank 1: the largest magnitude), (layers, words)."""
    ranks = [magnitudes.argsort(-1).argsort(-1) for magnitudes in (before, after)]
    return (ranks[1] - ranks[0]).astype(float)
