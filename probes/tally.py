"""Running mean, spread and quantiles of many columns at once, in memory that does not grow.

Quantiles come from a histogram whose bins were fixed beforehand, so that they depend neither on the order of the values nor on
the batches they came in, and two histograms add up. Bins are equal steps of asinh((value - centre) / unit): 0.005 units wide
near the centre and 0.5 % of the distance far from it, which bounds the error. Values beyond 10,000 units share the outermost
bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.probes.moments import Moments

STEP = 0.005
FAR = math.asinh(1e4)
BINS = math.ceil(2 * FAR / STEP)


@dataclass(eq=False)
class Tally:
    """Hold what is known of values in columns: `centres` and `units` (columns,) fix the bins, see the file's head.

    `moments` has one layer and a feature for each column; `counts` is (columns, bins), `lowest` and `highest` (columns,).
    Tallies with the same bins add up with `+`.
    """

    centres: Tensor
    units: Tensor
    moments: Moments
    counts: Tensor
    lowest: Tensor
    highest: Tensor

    @classmethod
    def zeros(cls, centres: Tensor, units: Tensor) -> Tally:
        """Return the tally of no value; a unit of 0 is taken as 1."""
        columns = len(centres)
        units = units.double().where(units > 0, 1.0)
        infinite = torch.full((columns,), torch.inf, dtype=torch.float64)
        counts = torch.zeros(columns, BINS, dtype=torch.long)
        return cls(centres.double(), units, Moments.zeros(1, columns), counts, infinite, -infinite)

    def add(self, values: Tensor) -> None:
        """Add values (n, columns), float64. Raises `InputError` for values that are not finite; then nothing is added."""
        if not len(values):
            return
        self.moments.add(values[:, None])
        steps = (torch.asinh((values - self.centres) / self.units) + FAR) / STEP
        bins = steps.floor().clamp(0, BINS - 1).long().T.contiguous()
        self.counts.scatter_add_(1, bins, torch.ones_like(bins))
        lowest, highest = torch.aminmax(values, dim=0)
        self.lowest, self.highest = (
            torch.minimum(self.lowest, lowest),
            torch.maximum(self.highest, highest),
        )

    def __add__(self, other: Tally) -> Tally:
        """Return the tally of both sets of values. Raises `InputError` where their bins differ."""
        if not (torch.equal(self.centres, other.centres) and torch.equal(self.units, other.units)):
            raise InputError(
                "tallies with other bins do not add up: gather them with the same probes and options"
            )
        return Tally(
            self.centres,
            self.units,
            self.moments + other.moments,
            self.counts + other.counts,
            torch.minimum(self.lowest, other.lowest),
            torch.maximum(self.highest, other.highest),
        )

    @property
    def count(self) -> int:
        """Values in each column."""
        return int(self.moments.count.sum())

    @property
    def mean(self) -> Tensor:
        """Mean of each column."""
        return self.moments.mean[0, 0, 0]

    @property
    def std(self) -> Tensor:
        """Standard deviation of each column (divisor: the count)."""
        return (self.moments.pooled().within[0].diagonal() / max(1, self.count)).clamp(min=0).sqrt()

    def quantile(self, share: float) -> Tensor:
        """Return the value that a share of each column's values lie below, interpolated within its bin."""
        below = self.counts.cumsum(1)
        wanted = torch.full((len(below), 1), share * self.count, dtype=torch.float64)
        place = torch.searchsorted(below.double(), wanted).clamp(max=BINS - 1)
        inside = self.counts.gather(1, place).double()
        missing = wanted - (below.gather(1, place).double() - inside)
        steps = place + (missing / inside.clamp(min=1)).clamp(0, 1)
        values = torch.sinh(steps[:, 0] * STEP - FAR) * self.units + self.centres
        return torch.minimum(torch.maximum(values, self.lowest), self.highest)
