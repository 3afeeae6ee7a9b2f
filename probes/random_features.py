"""Features that know tokens only apart from each other: what a probe of a model's width reads without any model.

Each kind of token gets a random vector, and a text the mean over its tokens. That is what layer 0 would be were the embedding
drawn at random: random projections of token counts (Johnson & Lindenstrauss 1984), from which any probe of this width can read
what the words tell. What a probe reads of a layer counts only beyond it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

from emoprobe.models.live import LiveModel
from emoprobe.probes.estimators import Floats, Integers

TOKENS_AT_ONCE = 4096
"""Kinds of token that get their random vectors at once, so that a large vocabulary needs no large table."""


def token_shares(model: LiveModel, texts: Sequence[str], start: int = 1, batch_size: int = 32) -> csr_array:
    """Return which share of each text's tokens is of which kind, (texts, kinds of token that occur).

    Tokens count from the `start`-th on, as in `emoprobe.activations.capture`; the model is not run.
    """
    drawn = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* were cut")  # whoever read the texts was told
        for first in range(0, len(texts), batch_size):
            batch = model.tokenize(texts[first : first + batch_size], truncate=True)
            counted = batch.counted(start)
            drawn += [row[mask].cpu().numpy() for row, mask in zip(batch.input_ids, counted, strict=True)]
    return shares_of(drawn)


def shares_of(drawn: Sequence[Integers]) -> csr_array:
    """Return which share of each row's tokens, given by their numbers, is of which kind: (rows, kinds that occur)."""
    lengths = np.array([len(kinds) for kinds in drawn])
    kinds, column = np.unique(np.concatenate(drawn), return_inverse=True)
    row = np.repeat(np.arange(len(drawn)), lengths)
    return csr_array(
        (1 / lengths[row], (row, column)), shape=(len(drawn), len(kinds))
    )  # equal entries add up


def random_features(shares: csr_array, width: int, seed: int = 0) -> Floats:
    """Return each text's mean of its tokens' random vectors, (texts, width); `shares` is that of `token_shares`."""
    generator = np.random.default_rng(seed)
    features = np.zeros((shares.shape[0], width))
    by_kind = shares.tocsc()
    for first in range(0, shares.shape[1], TOKENS_AT_ONCE):
        part = by_kind[:, first : first + TOKENS_AT_ONCE]
        features += part @ generator.standard_normal((part.shape[1], width))
    return features
