"""Statistics of single tokens, gathered while texts are read: what probes are centred on, and their units.

Which tokens count is said by `emoprobe.models.live.Batch.counted`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from emoprobe.activations import Pool, mean_over, named_pool, stream_residuals, widened
from emoprobe.models.live import LiveModel

SPREAD_TEXTS = 128
"""Texts on whose tokens the spread along each direction is measured, which they tell to 1 or 2 %."""


class TokenMeans:
    """Pool texts as `capture` would, and add up over single tokens on the way."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._named = named_pool(pool) if isinstance(pool, str) else None
        self._vectors = self._norms = torch.zeros(1, dtype=torch.float64)
        self._count = 0

    @property
    def by_layer(self) -> bool:
        """Whether layers may come one by one, see `emoprobe.activations.pooling`."""
        return self._named is not None

    def __call__(self, streams: Iterable[Tensor], counted: Tensor) -> Tensor:
        """Pool a batch; layers are (batch, position, d_model)."""
        streams = streams if isinstance(streams, Tensor) else list(streams)
        means = mean_over(streams, counted)
        norms = torch.stack([widened(stream).norm(dim=-1).where(counted, 0).sum() for stream in streams])
        self._vectors = self._vectors + (means.double() * counted.sum(-1)[:, None]).sum(1).cpu()
        self._norms = self._norms + norms.double().cpu()
        self._count += int(counted.sum())
        if self._named is mean_over:
            return means
        if self._named is not None:
            return self._named(streams, counted)
        return self.pool(streams, counted)  # type: ignore[operator,arg-type]  # a function of the user's, which gets a tensor

    def anew(self) -> TokenMeans:
        """Return one that pools alike and has seen nothing."""
        return TokenMeans(self.pool)

    def sums(self) -> dict[str, Tensor]:
        """Return what was added up so far."""
        return {"vectors": self._vectors, "norms": self._norms, "count": torch.tensor(self._count)}

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Add what was added up over other texts."""
        self._vectors, self._norms = self._vectors + sums["vectors"], self._norms + sums["norms"]
        self._count += int(sums["count"])

    @property
    def mean(self) -> Tensor:
        """Mean residual vector over tokens, float32 (layers, d_model)."""
        return (self._vectors / self._count).float()

    @property
    def norm(self) -> Tensor:
        """Mean norm of the residual stream over tokens, float32 (layers,)."""
        return (self._norms / self._count).float()


def token_spread(
    model: LiveModel,
    texts: Sequence[str],
    layers: Sequence[int],
    directions: Tensor,
    mean: Tensor,
    start: int,
    batch_size: int,
) -> Tensor:
    """Return the standard deviation over tokens along each direction, float32 (layers, concepts)."""
    first = second = torch.zeros(1, dtype=torch.float64)
    count = 0
    for part in stream_residuals(model, texts, layers, batch_size=batch_size):
        counted = part.counted(start)
        vectors = part.tokens(counted).float()
        # Far from the origin a variance loses its digits, so it is taken around the corpus mean.
        centred = vectors - mean.to(vectors)[:, None]
        along = torch.einsum("ltd,lcd->ltc", centred, directions.to(vectors)).double().cpu()
        first, second = first + along.sum(1), second + (along**2).sum(1)
        count += int(counted.sum())
    return (second / count - (first / count) ** 2).clamp(min=0).sqrt().float()


def sampled(texts: Sequence[str], seed: int) -> list[str]:
    """Return at most SPREAD_TEXTS of the texts, drawn at random and kept in order.

    Which texts these are does not depend on their order.
    """
    order = np.argsort([drawn_number(text, seed) for text in texts], kind="stable")
    return [texts[row] for row in np.sort(order[:SPREAD_TEXTS])]


def drawn_number(text: str, seed: int) -> int:
    """Return a number as good as drawn at random, below 2^63, which depends on nothing but a text and a seed."""
    return int.from_bytes(blake2b(f"{seed} {text}".encode(), digest_size=8).digest(), "big") >> 1
