"""Does a direction bring back the texts that it was fitted on, rather than a feeling?

A steered model that writes more about rain after a direction that was fitted on stories of rain has been given a topic. Runs
of words that stand in the fitted texts are counted in what it writes, beside runs of other texts of the same emotion, which a
direction of the feeling makes as much more frequent, and beside random directions of equal norm (the question of Sofroniew et
al. 2026, arXiv 2604.07729, table 8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from emoprobe.errors import InputError
from emoprobe.intervals import mean_interval, prediction_interval
from emoprobe.interventions import Positions
from emoprobe.layers import Layers
from emoprobe.models import LiveModel
from emoprobe.steering.edits import add
from emoprobe.steering.generated_text import generations, overlap
from emoprobe.steering.vectors import Vector, random_like

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FITTED, FRESH, EXCESS = "fitted texts", "fresh texts", "excess of fitted"


def content_leak(
    model: LiveModel,
    direction: Vector,
    fitted: Sequence[str],
    fresh: Sequence[str],
    prompts: Sequence[str],
    strength: float = 0.1,
    *,
    layers: Layers = 0.66,
    positions: Positions = "all",
    n: int = 3,
    max_new_tokens: int = 40,
    controls: int = 5,
    seed: int = 0,
) -> ContentLeak:
    """Say whether steering makes the model write more of the wording of `fitted` than of `fresh` texts of the same concept.

    `fitted` are texts that the direction was fitted on, `fresh` others like them, of other groups, that it was not; as many of
    each are taken as the shorter list has. Behind each prompt one text is sampled, untouched, with the direction added, and
    with each of `controls` random ones; of its runs of `n` words the share that stands in either is counted (see `overlap`).
    Raises `InputError` for fewer than two prompts or random directions, for a list without texts and what `add` refuses.
    """
    if len(prompts) < 2 or controls < 2 or not fitted or not fresh:
        raise InputError(
            f"{len(prompts)} prompts, {controls} controls, {len(fitted)} fitted and {len(fresh)} fresh texts: give two or more "
            "of the first two, and one or more of the others"
        )
    count = min(len(fitted), len(fresh))
    scores = {FITTED: overlap(fitted[:count], n), FRESH: overlap(fresh[:count], n)}
    measure = generations(scores, max_new_tokens=max_new_tokens, seed=seed)

    def measured() -> pd.DataFrame:
        shares = measure(model, prompts)
        found = pd.DataFrame({name: shares[name].numpy() for name in scores})
        return found.assign(**{EXCESS: found[FITTED] - found[FRESH]})

    untouched, changes = measured(), []
    for vector in (direction, *(random_like(direction, number) for number in range(seed, seed + controls))):
        with model.intervene(*add(model, vector, strength, layers, positions)):
            changes.append(measured() - untouched)
    rows = []
    for name in untouched:
        by_random = np.array([change[name].mean() for change in changes[1:]])
        rows.append(
            (
                name,
                untouched[name].mean(),
                *mean_interval(changes[0][name].to_numpy()),
                *prediction_interval(by_random),
            )
        )
    columns = ["overlap", "untouched", "change", "low", "high", "random_low", "random_high"]
    return ContentLeak(pd.DataFrame(rows, columns=columns), strength, n, model.name)


@dataclass(frozen=True, eq=False)
class ContentLeak:
    """What a steered model repeats of the texts that its direction was fitted on.

    `frame` has a row for the "fitted texts", for "fresh texts" of the same concept, and for the "excess of fitted" over fresh:
    overlap, untouched (mean share of runs, 0 to 1), change under the direction with its 95 % interval over prompts (low, high),
    and random_low and random_high, where the change under one more random direction would lie.
    """

    frame: pd.DataFrame
    strength: float
    n: int
    model: str

    @property
    def leaks(self) -> bool:
        """Whether the excess rises: by its interval, and by more than one more random direction may be expected to."""
        excess = self.frame.set_index("overlap").loc[EXCESS]
        return bool(excess.low > 0 and excess.change > excess.random_high)

    def plot(self) -> Figure:
        """Draw the change of each overlap with its interval, beside where one more random direction's would lie."""
        from emoprobe import drawing

        rows = self.frame.reset_index(drop=True)
        with drawing.styled():
            figure, axes = drawing.panels(height=2.2)
            axis = axes[0, 0]
            axis.hlines(
                rows.index, rows.random_low, rows.random_high, color=drawing.CONTROL, linewidth=6, alpha=0.5,
                label="one more random direction, 95 %",
            )  # fmt: skip
            axis.hlines(rows.index, rows.low, rows.high, color=drawing.BLUE, linewidth=1)
            axis.plot(rows.change, rows.index, "o", label="direction, 95 % interval")
            axis.set_yticks(rows.index, rows.overlap)
            axis.margins(y=0.2)
            axis.invert_yaxis()
            axis.set_xlabel(
                f"change of the share of repeated runs of {self.n} words at s = {self.strength:g}"
            )
            drawing.zero(axis, vertical=True)
            drawing.legend_below(figure, axis)
        return figure

    def _repr_html_(self) -> str:
        from emoprobe.notebook import shown

        return shown(repr(self), self.plot(), self.frame)

    def __repr__(self) -> str:
        said = [
            f"  {row.overlap}: {row.untouched:.4f}, change {row.change:+.4f} [{row.low:+.4f}, {row.high:+.4f}], one more "
            f"random direction {row.random_low:+.4f} to {row.random_high:+.4f}"
            for row in self.frame.itertuples()
        ]
        verdict = "their wording comes back" if self.leaks else "no sign that their wording comes back"
        head = f"<Content leak in {self.model} at s = {self.strength:g}, runs of {self.n} words: {verdict}>"
        return "\n".join([head, *said])
