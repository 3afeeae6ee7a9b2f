"""Interventions of several runs side by side: each acts on its own block of the rows of one batch.

The texts of a batch, repeated once for each run, go through a model in one pass, and each repetition meets the interventions
of its run alone. No row looks at another, so that each comes out as it would by itself, up to the rounding of larger products.
Backends place what is made here like any other intervention, and know nothing of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor
from torch.nn.functional import pad

from emoprobe.interventions import AttentionBias, Forward, Intervention, ResidualEdit


def side_by_side(runs: Sequence[Sequence[Intervention]]) -> list[Intervention]:
    """Return interventions under which the k-th of `len(runs)` equal blocks of rows of a batch meets those of `runs[k]` alone.

    A pass of another number of rows, or with a KV cache, raises `InputError`.
    """
    if len(runs) == 1:
        return [*runs[0]]
    return [
        item for layer in sorted({item.layer for run in runs for item in run}) for item in _at(layer, runs)
    ]


def _at(layer: int, runs: Sequence[Sequence[Intervention]]) -> Iterator[Intervention]:
    here = [[item for item in run if item.layer == layer] for run in runs]
    edits = [tuple(item for item in run if isinstance(item, ResidualEdit)) for run in here]
    if any(edits):
        yield _Edits(layer, torch.clone, runs=tuple(edits))
    biases = [[item for item in run if isinstance(item, AttentionBias) and not item.is_zero] for run in here]
    for row in zip_longest(*biases, fillvalue=AttentionBias(layer, _nothing, 0.0)):
        yield _Biases(layer, _nothing, runs=row)


@dataclass(frozen=True, eq=False)
class _Edits(ResidualEdit):
    runs: tuple[tuple[ResidualEdit, ...], ...] = ()

    def apply(self, stream: Tensor, forward: Forward) -> Tensor:
        parts = zip(self.runs, forward.blocks(len(self.runs)), stream.chunk(len(self.runs)), strict=True)
        return torch.cat([_edited(rows, edits, part) for edits, part, rows in parts])


def _edited(stream: Tensor, edits: Sequence[ResidualEdit], forward: Forward) -> Tensor:
    for edit in edits:
        stream = edit.apply(stream, forward)
    return stream


@dataclass(frozen=True, eq=False)
class _Biases(AttentionBias):
    runs: tuple[AttentionBias, ...] = ()

    def sides(self, stream: Tensor, forward: Forward) -> tuple[Tensor, Tensor]:
        parts = zip(self.runs, forward.blocks(len(self.runs)), stream.chunk(len(self.runs)), strict=True)
        queries, keys = zip(*(bias.sides(rows, part) for bias, part, rows in parts), strict=True)
        heads = max(side.shape[1] for side in queries)
        return _stacked([side.expand(-1, heads, -1, -1) for side in queries]), _stacked(keys)


def _nothing(stream: Tensor, forward: Forward) -> Tensor:
    return stream.new_zeros(*stream.shape[:2], 1, dtype=torch.promote_types(stream.dtype, torch.float32))


def _stacked(sides: Sequence[Tensor]) -> Tensor:
    """Put sides (batch, …, m) of several widths m below each other; zeros in what is missing of a width add nothing."""
    width = max(side.shape[-1] for side in sides)
    return torch.cat([pad(side, (0, width - side.shape[-1])) for side in sides])
