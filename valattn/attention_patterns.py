"""Where attention looks, and how a valuation changes that: how even it is, how far back, and on what kinds of words.

Exact attention weights are summed up batch by batch, so that no more than one batch of them is ever held.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from emoprobe.corpora.emotion_words import emotion_words
from emoprobe.intervals import Floats
from emoprobe.interventions import Span, overlapping
from emoprobe.models.live import Batch, LiveModel
from emoprobe.progress import track
from emoprobe.scoring import batches

NEGATING = frozenset(
    "not no never none nobody nothing neither nor nowhere without cannot hardly scarcely barely".split()
)
CONNECTIVE = frozenset(
    "but though although however because since so therefore yet despite unless if whereas while until except still".split()
)
EMOTION_NOUNS = frozenset(
    "anger boredom contentment disgust fear joy love pride relief sadness shame surprise grief hope hate happiness".split()
)
WORDS: Mapping[str, Collection[str]] = MappingProxyType(
    {
        "emotional": frozenset(emotion_words()) | EMOTION_NOUNS,
        "negating": NEGATING,
        "connective": CONNECTIVE,
    }
)
"""Words in lower case, by kind; contractions with n't are negating ones too."""
ENTROPY, DISTANCE = "entropy", "distance"
_WORD = re.compile(r"[^\W\d_]+(?:[’'-][^\W\d_]+)*")


def quantities(words: Mapping[str, Collection[str]] = WORDS) -> list[str]:
    """Return the names of what `attention_patterns` measures, in order."""
    return [ENTROPY, DISTANCE, *(f"on {kind} words" for kind in words)]


def attention_patterns(
    model: LiveModel,
    texts: Sequence[str],
    layers: Sequence[int],
    words: Mapping[str, Collection[str]] = WORDS,
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> Floats:
    """Return what attention looks at under the active interventions: (texts, layers, quantities).

    Averaged over heads and over a text's tokens from the second on: the entropy of the weights (nats), the mean distance
    (tokens), and the share of attention on each kind of word (NaN where a text has no such word).
    """
    batch_size = 1 if model.dtype == torch.float64 else batch_size  # which is not read with padding
    found = np.full((len(texts), len(layers), 2 + len(words)), np.nan)
    parts = track(
        batches(model, texts, batch_size),
        "reading attention",
        total=-(-len(texts) // batch_size),
        wanted=progress,
    )
    with torch.no_grad():
        for rows, batch in parts:
            _, weights = model.attention(batch, list(layers))
            found[rows] = _summary(weights.double(), batch, _kinds(model, batch, words)).cpu().numpy()
    return found


def word_spans(text: str, words: Collection[str]) -> list[Span]:
    """Return where these words (lower case) stand in a text, (start, end) in characters."""
    found = ((match.span(), match.group().lower().replace("’", "'")) for match in _WORD.finditer(text))
    return [span for span, word in found if word in words or ("not" in words and word.endswith("n't"))]


def _kinds(model: LiveModel, batch: Batch, words: Mapping[str, Collection[str]]) -> Tensor:
    """Return which tokens belong to words of each kind, 0 or 1: (kinds, batch, position)."""
    kinds = torch.zeros(len(words), *batch.real.shape, dtype=torch.float64)
    for row, (text, tokens) in enumerate(zip(batch.texts, model.token_spans(batch), strict=True)):
        for kind, members in zip(kinds, words.values(), strict=True):
            kind[row, overlapping(tokens, word_spans(text, members))] = 1
    return kinds.to(batch.real.device)


def _summary(weights: Tensor, batch: Batch, kinds: Tensor) -> Tensor:
    """Sum up weights (layers, batch, heads, queries, keys): (batch, layers, quantities)."""
    counted = batch.counted(1).to(weights)
    position = torch.arange(weights.shape[-1], device=weights.device)
    apart = (position[:, None] - position).abs().to(weights)
    # What a model computes at padding is no weight.
    weights = weights.where(batch.real[None, :, None, None] & batch.real[None, :, None, :, None], 0.0)
    on = torch.einsum("lbhqk,nbk->nlbhq", weights, kinds)
    on = on.where(kinds.any(-1)[:, None, :, None, None], torch.nan)
    each = torch.stack([torch.special.entr(weights).sum(-1), (weights * apart).sum(-1), *on])
    mean = (each.mean(3) * counted).sum(-1) / counted.sum(-1)  # over heads, then over queries
    return mean.permute(2, 1, 0)
