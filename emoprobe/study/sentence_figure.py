"""The picture of the two sentences: word magnitudes and word-to-word attention, standard against valuation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from emoprobe import drawing
from emoprobe.study.source_sentences import SENTENCES, Word
from emoprobe.study.word_magnitudes import Floats, Reading, gains

if TYPE_CHECKING:
    from emoprobe.study.sentences import SentenceComparison

SEQUENTIAL = "cividis"  # made for the colour-blind (Nuñez et al. 2018)
PERCENTILE = 98  # where colours end: a few large weights would leave all others alike
ALT = (
    "For each of the two sentences, four heat maps over its words: their magnitudes under standard and valuation attention; "
    "the change in percent; the attention of each word to each word before it in the untouched model; and how valuation "
    "attention changes that. The turning words and the plainly emotional ones are in colour."
)


def draw(comparison: SentenceComparison) -> Figure:
    """Draw four heat maps for each sentence; turning words are blue and plainly emotional ones red on every axis."""
    with drawing.styled():
        return _draw(comparison)


def _draw(comparison: SentenceComparison) -> Figure:
    figure = drawing.Picture(figsize=(drawing.WIDTH, 7.6), layout="constrained")
    conditions = list(comparison.readings)
    widths = [0.32 * len(conditions), 0.32 * (len(conditions) - 1), 2.0, 2.0]
    axes = figure.subplots(len(SENTENCES), 4, width_ratios=widths)
    for row, (name, words) in zip(axes, SENTENCES.items(), strict=True):
        readings = {condition: comparison.readings[condition][name] for condition in conditions}
        _magnitudes(row[0], row[1], readings, words)
        _attention(figure, row[2], row[3], readings["standard"], readings["annotated"], words)
        row[0].set_title(name.capitalize())
        row[0].set_xlabel("magnitude")
        row[1].set_xlabel("change, %")
        row[2].set_title("attention, standard")
        row[3].set_title(f"its change at λ = {comparison.strength:g}")
    return figure


def _magnitudes(left: Axes, right: Axes, readings: dict[str, Reading], words: Sequence[Word]) -> None:
    """Draw magnitudes over the sentence's mean, and by how many percent valuations change them; means over layers."""
    relative = [part.magnitudes / part.magnitudes.mean(-1, keepdims=True) for part in readings.values()]
    values = np.stack([part.mean(0) for part in relative], axis=-1)
    low, high = float(values.min()), float(values.max())
    _sequential(left, values, low, high)
    for (row, column), value in np.ndenumerate(values):
        colour = "black" if value > (low + high) / 2 else "white"
        left.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    standard, *others = readings.items()
    change = np.stack(
        [gains(standard[1].magnitudes, other.magnitudes).mean(0) for _, other in others], axis=-1
    )
    pale = 180 * float(np.abs(change).max()) or None  # so that numbers can be read on every colour
    drawing.heat(right, 100 * change, [""] * len(words), [""] * len(others), limit=pale, numbers="+.1f")
    for axis, names in ((left, list(readings)), (right, [name for name, _ in others])):
        axis.set_xticks(range(len(names)), names, rotation=90, ha="center")
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    right.set_yticks([])
    _name_words(left.yaxis, words)


def _attention(
    figure: Figure, left: Axes, right: Axes, standard: Reading, other: Reading, words: Sequence[Word]
) -> None:
    """Draw attention from each word (row) to itself and the words before it (columns), and its change."""
    ahead = np.triu(np.ones_like(standard.attention, dtype=bool), 1)
    pattern, change = (
        np.where(ahead, np.nan, values)
        for values in (standard.attention, other.attention - standard.attention)
    )
    shown = _sequential(left, pattern, 0.0, _limit(pattern))
    figure.colorbar(shown, ax=left, location="bottom", aspect=30, extend="max")
    shown = drawing.heat(right, change, [""] * len(words), [""] * len(words), limit=_limit(change))
    figure.colorbar(shown, ax=right, location="bottom", aspect=30, extend="both")
    for axis in (left, right):
        _name_words(axis.xaxis, words)
        axis.tick_params(axis="x", length=0)
        for label in axis.get_xticklabels():
            label.set(rotation=90, ha="center")
        axis.set_yticks([])
        axis.spines[:].set_visible(False)


def _sequential(axis: Axes, values: Floats, low: float, high: float) -> QuadMesh:
    edges = [np.arange(size + 1) - 0.5 for size in values.shape]
    mesh = axis.pcolormesh(edges[1], edges[0], values, cmap=SEQUENTIAL, vmin=low, vmax=high)
    axis.set_ylim(edges[0][-1], edges[0][0])
    return mesh


def _limit(values: Floats) -> float:
    return float(np.nanpercentile(np.abs(values), PERCENTILE)) or 1e-12


def _name_words(axis: Axis, words: Sequence[Word]) -> None:
    """Write the words along an axis, those that the claims are about in colour."""
    axis.set_ticks(range(len(words)), [word.text for word in words])
    for label, word in zip(axis.get_ticklabels(), words, strict=True):
        label.set_fontsize(7.5)
        if "turning" in word.groups:
            label.set(color=drawing.BLUE, fontweight="bold")
        if "emotional" in word.groups:
            label.set(color=drawing.RED, fontweight="bold")
