"""Does a direction do what its name says, and only that: which concept's words become likelier under which direction.

`specificity` steers with each concept's direction and measures how much likelier each concept's continuations become after
neutral beginnings: a matrix, steered concept × measured concept. Its diagonal is the effect that was meant. Random directions
of equal norm stand beside it, and columns shuffled against rows, since words that any push makes likelier are no evidence
for any concept. The check is that of Sofroniew et al. 2026 (arXiv 2604.07729, figures 52 and 53), which shows a picture without
numbers, intervals or controls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emoprobe.errors import InputError
from emoprobe.intervals import exceedance, jackknife, mean_interval, prediction_interval
from emoprobe.interventions import Positions
from emoprobe.layers import Layers
from emoprobe.models import LiveModel
from emoprobe.progress import track
from emoprobe.steering.edits import add
from emoprobe.steering.measures import continuation
from emoprobe.steering.sweeping import Edit
from emoprobe.steering.vectors import Vector, random_like

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats: TypeAlias = NDArray[np.float64]
SHUFFLES = 2000


def specificity(
    model: LiveModel,
    directions: Mapping[str, Vector],
    continuations: Mapping[str, Sequence[str]],
    prompts: Sequence[str],
    strength: float = 0.1,
    *,
    layers: Layers = 0.66,
    positions: Positions = "all",
    edit: Edit = add,
    controls: int = 10,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> Specificity:
    """Steer with each of `directions` and measure the log-probability of each concept's continuations after `prompts`.

    Both map the same two or more concepts, to a direction and to texts that are said by those who feel it (see
    `continuation`). `controls` directions turned at random from the first stand beside. `edit`, `strength`, `layers` and
    `positions` are as in `sweep`. Raises `InputError` for concepts that have only one of the two, and what `edit` and
    `continuation` refuse.
    """
    concepts = list(directions)
    if set(concepts) != set(continuations) or len(concepts) < 2:
        raise InputError(
            f"directions are of {', '.join(concepts)} and continuations of {', '.join(continuations)}: give both for the same "
            "two or more concepts"
        )
    prompts = list(prompts)
    measure = continuation({name: continuations[name] for name in concepts}, batch_size=batch_size)

    def measured() -> Floats:
        found = measure(model, prompts)
        return np.stack([found[name].numpy() for name in concepts])

    untouched = measured()
    turned = [random_like(directions[concepts[0]], number) for number in range(seed, seed + controls)]
    changes = []
    for direction in track([*directions.values(), *turned], "steering", wanted=progress):
        with model.intervene(*edit(model, direction, strength, layers, positions)):
            changes.append(measured() - untouched)
    return Specificity(tuple(concepts), np.stack(changes), strength, model.name, seed)


@dataclass(frozen=True, eq=False)
class Specificity:
    """By how much each direction changes each concept's log-probability: `changes` (directions, concepts, prompts), in nats.

    The first directions are the concepts' own, in order, the others random ones. Prompts are taken for independent.
    """

    concepts: tuple[str, ...]
    changes: Floats
    strength: float
    model: str
    seed: int = 0

    @cached_property
    def matrix(self) -> pd.DataFrame:
        """Mean change in nats: rows are steered concepts, columns measured ones."""
        return pd.DataFrame(self._own.mean(-1), index=self.concepts, columns=self.concepts)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per direction and measured concept: steered (a concept, or "random 0" …), measured, change, low, high.

        The 95 % interval is Student's t over prompts, in nats.
        """
        names = [
            *self.concepts,
            *(f"random {number}" for number in range(self.seed, self.seed + len(self._random))),
        ]
        rows = [
            (steered, measured, *mean_interval(values))
            for steered, block in zip(names, self.changes, strict=True)
            for measured, values in zip(self.concepts, block, strict=True)
        ]
        return pd.DataFrame(rows, columns=["steered", "measured", "change", "low", "high"])

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per concept: what its own direction does to it, what others' and random ones do, and the index.

        `own` (with `low` and `high` over prompts) is the diagonal, `others` the mean change of the other concepts under the
        same direction, `random` the mean change of the concept under random directions with its 95 % interval over them, and
        `random_next_low` and `random_next_high` the 95 % prediction interval for one more. `index` is (own − mean of others) /
        (|own| + mean of |others|): 1 where nothing else becomes likelier, 0 where all go alike, −1 where all others rise and it
        does not; its interval is the jackknife's over prompts. `chance_low` and `chance_high` are the prediction interval of
        the index for one more random direction.
        """
        return pd.DataFrame([self._row(k) for k in range(len(self.concepts))])

    @cached_property
    def index(self) -> dict[str, float]:
        """The mean index over concepts with its 95 % interval over them, chance for random directions, and a p value.

        `p` is one-sided: how often columns shuffled against rows give as high a mean index.
        """
        own = self._own.mean(-1)
        mean, low, high = mean_interval(index_of(own).diagonal())
        chance = prediction_interval(index_of(self._random.mean(-1)).mean(-1))
        order = np.random.default_rng(self.seed)
        indices = index_of(own)
        rows = np.arange(len(own))
        null = np.array([indices[rows, order.permutation(len(own))].mean() for _ in range(SHUFFLES)])
        keys = ("index", "low", "high", "chance_low", "chance_high", "p")
        return dict(zip(keys, (mean, low, high, *chance, float(exceedance(mean, null))), strict=True))

    def plot(self) -> Figure:
        """Draw the matrix as a heat map, steered concepts down, measured ones across."""
        from emoprobe import drawing

        with drawing.styled():
            figure, axes = drawing.panels(height=0.9 + 0.32 * len(self.concepts))
            mesh = drawing.heat(
                axes[0, 0], self.matrix.to_numpy(), self.concepts, self.concepts, numbers=".1f"
            )
            figure.colorbar(mesh, ax=axes[0, 0])
            axes[0, 0].set_ylabel("steered with")
            axes[0, 0].set_xlabel(f"change of log P at s = {self.strength:g}, nats")
        return figure

    def _repr_html_(self) -> str:
        from emoprobe.notebook import shown

        return shown(repr(self), self.plot(), self.table)

    def __repr__(self) -> str:
        found = self.index
        own = int(((self.table.own > self.table.random_next_high) & (self.table.low > 0)).sum())
        return (
            f"<Specificity in {self.model} at s = {self.strength:g}: index {found['index']:.2f} [{found['low']:.2f}, "
            f"{found['high']:.2f}] over {len(self.concepts)} concepts (random directions {found['chance_low']:.2f} to "
            f"{found['chance_high']:.2f}, columns shuffled p = {found['p']:.3g}); {own} of {len(self.concepts)} rise by more "
            "than one more random direction may>"
        )

    @property
    def _own(self) -> Floats:
        return self.changes[: len(self.concepts)]

    @property
    def _random(self) -> Floats:
        return self.changes[len(self.concepts) :]

    def _row(self, k: int) -> dict[str, object]:
        block = self._own[k]
        own, low, high = mean_interval(block[k])
        value = index_of(block.mean(-1))[k]
        without = np.array([index_of(means)[k] for means in _left_out(block)])
        lowest, highest = jackknife(value, without) if len(without) > 1 else (np.nan, np.nan)
        random = self._random.mean(-1)
        by_random = mean_interval(random[:, k])
        following = prediction_interval(random[:, k])
        chance = prediction_interval(index_of(random)[:, k])
        return {
            "concept": self.concepts[k],
            **{"own": own, "low": low, "high": high},
            "others": np.delete(block.mean(-1), k).mean(),
            **dict(zip(("random", "random_low", "random_high"), by_random, strict=True)),
            **dict(zip(("random_next_low", "random_next_high"), following, strict=True)),
            **{"index": value, "index_low": float(lowest), "index_high": float(highest)},
            **dict(zip(("chance_low", "chance_high"), chance, strict=True)),
        }


def index_of(changes: Floats) -> Floats:
    """Return for changes (…, concepts) how specific they are to each of the concepts, see `Specificity.table`."""
    others = changes.shape[-1] - 1
    rest = (changes.sum(-1, keepdims=True) - changes) / others
    size = np.abs(changes)
    extent = size + (size.sum(-1, keepdims=True) - size) / others
    index: Floats = np.divide(changes - rest, extent, out=np.full_like(changes, np.nan), where=extent > 0)
    return index


def _left_out(block: Floats) -> Iterator[Floats]:
    """Yield the means (concepts,) of a block (concepts, prompts) without each prompt."""
    total, count = block.sum(-1), block.shape[-1]
    for prompt in range(count if count > 1 else 0):
        yield (total - block[:, prompt]) / (count - 1)
