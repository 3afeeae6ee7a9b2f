"""Patching a neutral run into an emotional one, and adding up what is written at the last token, for pairs of aligned texts.

Pairs of one length are read together, so that nothing is padded. What is measured, and why, stands in `sources`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from emoprobe.controls import turned_at_random
from emoprobe.interventions import ResidualEdit
from emoprobe.models.live import Batch, LiveModel
from emoprobe.models.transformers_parts import Parts, patched, read_parts
from emoprobe.probes import ProbeSet
from emoprobe.progress import track
from emoprobe.study.concepts.effects import Floats
from emoprobe.study.concepts.source_pairs import Aligned, by_length, partners

STREAM, ATTENTION, MLP = "stream, patched", "attention, patched", "MLP, patched"
UNRELATED, ELSEWHERE = "stream, patched from another pair", "stream, patched at random other words"
WRITTEN = {"attention": "attention, written", "mlp": "MLP, written"}
EMBEDDING = "embedding, written"
PLACES = ("changed words", "other words", "last token")


@dataclass(eq=False)
class Traced:
    """Hold what was measured of each pair, in standard deviations of the read-out; the first of `directions` is the probe's.

    `total` is (directions, pairs); `cells` maps (kind, block) to (directions, pairs, places) for what was patched, and to
    (directions, pairs, 1) for what was written; `heads` maps a block to (directions, pairs, heads, places).
    """

    total: Floats
    cells: dict[tuple[str, int], Floats]
    heads: dict[int, Floats]


def traced(
    model: LiveModel,
    probes: ProbeSet,
    known: Sequence[Aligned],
    layer: int,
    controls: int,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = False,
) -> Traced:
    """Patch and add up all pairs; each group of pairs of one length is read without padding."""
    row = probes.layer_index(layer)
    columns = [probes.concept_index(pair.concept) for pair in known]
    own = probes.directions[row]
    sets = [own, *(turned_at_random(own, 1000 * seed + control) for control in range(controls))]
    spread = probes.reference_std[row][columns].double().clamp(min=torch.finfo(torch.float64).tiny)
    directions = torch.stack([part[columns].double() for part in sets]) / spread[:, None]
    total: Floats = np.empty((1 + controls, len(known)))
    cells: dict[tuple[str, int], Floats] = {}
    heads: dict[int, Floats] = {}
    generator, partner = np.random.default_rng(seed), partners(known)
    groups = list(by_length(known, batch_size))
    for group in track(groups, "tracing", wanted=progress):
        pairs, others = (
            [known[index] for index in rows] for rows in (group, [partner[index] for index in group])
        )
        part = _Group(model, pairs, others, directions[:, group], layer, generator)
        total[:, group] = part.total
        for key, values in part.cells():
            cells.setdefault(key, np.full((*total.shape, values.shape[-1]), np.nan))[:, group] = values
        for block, values in enumerate(part.heads()):
            heads.setdefault(block, np.full((*total.shape, *values.shape[2:]), np.nan))[:, group] = values
    return Traced(total, cells, heads)


class _Group:
    """Pairs of one length, read together: both runs, their parts, and the emotional run with parts of the neutral one."""

    def __init__(
        self,
        model: LiveModel,
        pairs: Sequence[Aligned],
        others: Sequence[Aligned],
        directions: Tensor,
        layer: int,
        generator: np.random.Generator,
    ) -> None:
        self.model, self.layer, self.directions = model, layer, directions
        self.batch: Batch = model.tokenize([pair.emotional for pair in pairs])
        self.emotional: Parts = read_parts(model, self.batch, layer)
        self.neutral: Parts = read_parts(model, model.tokenize([pair.neutral for pair in pairs]), layer)
        self.other: Tensor | None = None
        if pairs[0] is not others[0]:  # they are not the only ones of their length
            with torch.no_grad():
                self.other = model.streams(model.tokenize([pair.neutral for pair in others]), range(layer))
        changed = torch.stack([pair.changed for pair in pairs]).to(self.batch.real.device)
        last = torch.zeros_like(changed)
        last[:, -1] = True
        self.places = (changed, ~changed & ~last, last)
        self.random = _random_words(changed, self.places[1], generator)
        self.before = self._last()
        self.total = self._along(self.before - self.neutral.streams[layer][:, -1])

    def cells(self) -> Iterator[tuple[tuple[str, int], Floats]]:
        """Yield what the read-out loses by each patch, and what each part has written of the difference."""
        donor = self.neutral
        for block in range(self.layer):
            modules = self.emotional.blocks[block]
            yield (STREAM, block), self._patched(self._stream(block, donor.streams[block]))
            yield (ATTENTION, block), self._patched(_module(modules.attention, donor.attention[block]))
            yield (MLP, block), self._patched(_module(modules.mlp, donor.mlp[block]))
            stream = self._stream(block, donor.streams[block])
            yield (ELSEWHERE, block), self._losses([stream(self.random)])
            if self.other is not None:
                yield (
                    (UNRELATED, block),
                    self._losses([self._stream(block, self.other[block])(self.places[0])]),
                )
            for part, kind in WRITTEN.items():
                both = (getattr(parts, part)[block][:, -1] for parts in (self.emotional, donor))
                yield (kind, block), self._difference(*both)
        yield (
            (EMBEDDING, 0),
            self._difference(*(parts.streams[0][:, -1] for parts in (self.emotional, donor))),
        )

    def heads(self) -> Iterator[Floats]:
        """Yield for each block what heads write of the difference, by where they look: (directions, pairs, heads, places)."""
        masks = torch.stack(self.places).double()
        by_direction = []
        for direction in self.directions:
            given = direction.to(self.emotional.attention)
            apart = self.emotional.heads(given)[0] - self.neutral.heads(given)[0]
            by_direction.append(torch.einsum("lbhk,pbk->lbhp", apart.double(), masks.to(apart.device)))
        yield from torch.stack(by_direction, dim=1).cpu().numpy()

    def _patched(self, patch: Callable[[Tensor], AbstractContextManager[object]]) -> Floats:
        return self._losses([patch(place) for place in self.places])

    def _losses(self, patches: Sequence[AbstractContextManager[object]]) -> Floats:
        """Return by how much each patch lowers the read-out: (directions, pairs, patches)."""
        found = []
        for patch in patches:
            with patch:
                found.append(self._along(self.before - self._last()))
        return np.stack(found, axis=-1)

    def _stream(self, block: int, values: Tensor) -> Callable[[Tensor], AbstractContextManager[object]]:
        def patch(positions: Tensor) -> AbstractContextManager[object]:
            return self.model.intervene(ResidualEdit(block, lambda stream: values.to(stream), positions))

        return patch

    def _last(self) -> Tensor:
        with torch.no_grad():
            return self.model.streams(self.batch, [self.layer])[0][:, -1]

    def _difference(self, one: Tensor, other: Tensor) -> Floats:
        return self._along(one - other)[..., None]

    def _along(self, vectors: Tensor) -> Floats:
        """Return vectors (pairs, d_model) along each set of directions, (directions, pairs)."""
        along: Floats = torch.einsum("cbd,bd->cb", self.directions, vectors.double().cpu()).numpy()
        return along


def _module(module: torch.nn.Module, values: Tensor) -> Callable[[Tensor], AbstractContextManager[object]]:
    return lambda positions: patched(module, values, positions)


def _random_words(changed: Tensor, others: Tensor, generator: np.random.Generator) -> Tensor:
    """Return as many other positions as were changed, drawn at random from those that come after the change."""
    after = others & (changed.long().cumsum(1) > 0)
    drawn = torch.zeros_like(changed)
    for row, allowed in enumerate(after):
        from_here = allowed.nonzero()[:, 0].cpu().numpy()
        count = min(int(changed[row].sum()), len(from_here))
        drawn[row, generator.choice(from_here, count, replace=False)] = True
    return drawn
