"""How well a live model predicts text: negative log-likelihoods per token, in nats."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from emoprobe.activations import widened
from emoprobe.models.live import Batch, LiveModel
from emoprobe.texts import check_strings

IGNORED = -100
"""Stands for a token that is not to be predicted."""


def token_nll(logits: Tensor, batch: Batch) -> Tensor:
    """Return -log P of each token given those before it, (batch, position - 1); 0 where there is no such token.

    A text's first token has nothing before it, so it has none. Computed in float32, or in float64 where logits are.
    """
    predicted = batch.real[:, 1:] & batch.real[:, :-1]
    # What the last position predicts is cut off at the end: cutting logits would copy them all.
    targets = pad(batch.input_ids[:, 1:].where(predicted, IGNORED), (0, 1), value=IGNORED)
    wide = widened(logits)
    nll = cross_entropy(wide.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return nll.view_as(targets)[:, :-1]


def text_nll(model: LiveModel, texts: Sequence[str], batch_size: int = 32) -> tuple[Tensor, Tensor]:
    """Return summed -log P (nats) and the number of predicted tokens of each text, both float64 (texts,)."""
    total, count = torch.zeros(len(texts), dtype=torch.float64), torch.zeros(len(texts), dtype=torch.float64)
    with torch.no_grad():
        for rows, batch in batches(model, texts, batch_size):
            nll = token_nll(model.forward(batch), batch)
            total[rows] = nll.sum(-1).cpu().double()
            count[rows] = (batch.real.sum(-1) - 1).cpu().double()
    return total, count


def batches(model: LiveModel, texts: Sequence[str], batch_size: int) -> Iterator[tuple[list[int], Batch]]:
    """Yield (indices, tokenised batch), texts of like length together."""
    check_strings(texts)
    order = model.in_order([len(text) for text in texts])
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        yield rows, model.tokenize([texts[row] for row in rows], truncate=True)
