"""How the tokens of a corpus lie along probes: what z-scores and centred cosines are about.

Probes come with the mean token and the spreads of the corpus that they were fitted on. A claim about other texts (a transcript
among thousands, say) wants those of texts like them; this file gathers them in one pass, without storing activations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from emoprobe.activations import stream_residuals
from emoprobe.errors import InputError
from emoprobe.models.live import LiveModel
from emoprobe.probes.moments import Moments
from emoprobe.probes.probe_set import ProbeSet
from emoprobe.probes.readout import first_counted


@dataclass(frozen=True, eq=False, repr=False)
class Reference:
    """Hold how the tokens of a corpus lie along probes, for z-scores and centred cosines; `reference` makes one.

    `mean` (layers, d_model) is the mean residual vector over tokens, `along` the moments of u·x (one column per concept), both
    float64. References of one probe set add up with `+`, gathered in any order or on any machine.
    """

    name: str
    layers: tuple[int, ...]
    concepts: tuple[str, ...]
    texts: int
    mean: Tensor
    along: Moments

    @property
    def tokens(self) -> int:
        """Tokens that were counted."""
        return int(self.along.count.sum())

    @property
    def std(self) -> Tensor:
        """Standard deviation of u·x over tokens (layers, concepts), float64."""
        square = self.along.pooled().within.diagonal(dim1=1, dim2=2)
        return (square / max(1, self.tokens)).clamp(min=0).sqrt()

    def __add__(self, other: Reference) -> Reference:
        """Return the reference that both corpora give together. Raises `InputError` where they are of other probes."""
        if (self.layers, self.concepts) != (other.layers, other.concepts):
            raise InputError(f"{self!r} and {other!r} are of other layers or concepts, and do not add up")
        share = other.tokens / (self.tokens + other.tokens)
        return Reference(
            self.name if self.name == other.name else f"{self.name} and {other.name}",
            self.layers,
            self.concepts,
            self.texts + other.texts,
            self.mean + share * (other.mean - self.mean),
            self.along + other.along,
        )

    def applied_to(self, probes: ProbeSet) -> ProbeSet:
        """Return the probes with this corpus's mean token and spreads in place of their own corpus's.

        Raises `InputError` for other probes than those it was gathered along.
        """
        along = torch.einsum("lcd,ld->lc", probes.directions.double(), self.mean)
        same = (self.layers, self.concepts) == (probes.layers, probes.concepts)
        if not same or not torch.allclose(along, self.along.mean[0, :, 0], rtol=1e-3, atol=1e-3):
            raise InputError(
                f"{self!r} was gathered along other probes than {probes!r}: call reference(model, probes, texts) with these"
            )
        return replace(probes, reference_mean=self.mean.float(), reference_std=self.std.float())

    def __repr__(self) -> str:
        return (
            f"<Reference {self.name}: {self.tokens} tokens of {self.texts} texts, layers {list(self.layers)}>"
        )


def reference(
    model: LiveModel,
    probes: ProbeSet,
    texts: Iterable[str],
    *,
    name: str = "the reference texts",
    batch_size: int = 32,
    progress: bool = False,
) -> Reference:
    """Return mean and spread of u·x over the tokens of `texts`, for `trace` and others to take z-scores about.

    One pass for all layers and concepts; memory does not grow with the number of texts, which may be a generator. Tokens are
    those that the probes' own statistics count: from the first that is no attention sink on. Raises `InputError` where there
    is no text, and as `ProbeSet.check_model` does.
    """
    probes.check_model(model)
    along = Moments.zeros(len(probes.layers), len(probes.concepts))
    mean = torch.zeros(len(probes.layers), probes.d_model, dtype=torch.float64)
    read = 0
    for part in stream_residuals(model, texts, probes.layers, batch_size=batch_size, progress=progress):
        vectors = part.tokens(part.counted(first_counted(probes))).cpu().double()
        along.add(torch.einsum("ltd,lcd->tlc", vectors, probes.directions.double()))
        mean += (vectors - mean[:, None]).sum(1) / along.count.sum()
        read += len(part.indices)
    if not read:
        raise InputError("no text was given")
    return Reference(name, probes.layers, probes.concepts, read, mean, along)
