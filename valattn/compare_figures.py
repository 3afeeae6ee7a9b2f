"""Pictures of a comparison, one for each of its questions."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.ticker import MaxNLocator

from emoprobe import drawing
from emoprobe.valattn.compare_directions import LEARNED, RANDOM_START, is_random

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from emoprobe.valattn.compare import Comparison

SIGNED = ("row cosine", "token correlation")
COLOURS = {"probed": drawing.GREEN, LEARNED: drawing.BLUE, RANDOM_START: drawing.RED}


@drawing.styled()
def summary(found: Comparison) -> Figure:
    """Draw row cosines and token correlations by layer, grey where random valuations lie, and the change of the NLL."""
    figure, axes = drawing.panels(1, 3, height=2.8)
    for axis, quantity in zip(axes[0], SIGNED, strict=False):
        _by_layer(axis, found.alignment, quantity)
    _nll(axes[0, 2], found.nll, "change of NLL")
    drawing.legend_below(figure, axes[0, 0])
    return figure


@drawing.styled()
def alignment(found: Comparison) -> Figure:
    """Draw every quantity of how alike probed and learned valuations are, by layer."""
    names = found.alignment.quantity.unique().tolist()
    figure, axes = drawing.tiled(len(names), height=2.6)
    for axis, quantity in zip(axes, names, strict=True):
        _by_layer(axis, found.alignment, quantity)
    drawing.legend_below(figure, axes[0])
    return figure


@drawing.styled()
def annotation(found: Comparison) -> Figure:
    """Draw correlations with people's annotations by layer, one panel for each dimension."""
    table = found.annotation[found.annotation["of"] == "text"]
    names = table.dimension.unique().tolist()
    figure, axes = drawing.tiled(max(1, len(names)), height=2.4, sharey=True)
    for axis, dimension in zip(axes, names, strict=False):
        part = table[table.dimension == dimension]
        _chance(axis, part.groupby("layer").random_high.max())
        _conditions(axis, part.groupby(["condition", "layer"], sort=False)[["r", "low", "high"]].mean(), "r")
        axis.set(title=dimension, ylim=(-1.05, 1.05))
        _blocks(axis)
    axes[0].set_ylabel("r with annotation")
    drawing.legend_below(figure, axes[0])
    return figure


@drawing.styled()
def nll(found: Comparison) -> Figure:
    """Draw the change of the NLL on all, emotional and neutral texts."""
    kinds = found.emotional.texts.unique().tolist()
    figure, axes = drawing.tiled(1 + len(kinds), height=2.8, sharey=True)
    _nll(axes[0], found.nll, "all texts")
    for axis, kind in zip(axes[1:], kinds, strict=True):
        _nll(axis, found.emotional[found.emotional.texts == kind], f"{kind} texts")
    return figure


@drawing.styled()
def strengths(found: Comparison) -> Figure:
    """Draw λ by layer and head, the mean over seeds."""
    names = found.strengths.condition.unique().tolist()
    figure, axes = drawing.tiled(len(names), columns=2, height=2.6)
    for axis, condition in zip(axes, names, strict=True):
        table = found.strengths[found.strengths.condition == condition]
        grid = table.assign(head=table["head"].fillna(0)).pivot_table(
            values="strength", index="head", columns="layer", aggfunc="mean"
        )
        heads = ["all heads"] if table["head"].isna().all() else [str(head) for head in grid.index]
        mesh = drawing.heat(
            axis, grid.to_numpy(float), heads, [str(layer) for layer in grid.columns], numbers="+.2f"
        )
        axis.set(title=f"λ, {condition}", xlabel="block", ylabel="head")
        figure.colorbar(mesh, ax=axis)
    return figure


@drawing.styled()
def attention(found: Comparison) -> Figure:
    """Draw by how much attention changes, by layer, grey where one more random valuation would lie."""
    names = found.attention.quantity.unique().tolist()
    figure, axes = drawing.tiled(len(names), height=2.4)
    for axis, quantity in zip(axes, names, strict=True):
        part = found.attention[found.attention.quantity == quantity]
        grey = part.groupby("layer")[["random_low", "random_high"]].first()
        drawing.control(
            axis,
            list(grey.index),
            low=grey.random_low,
            high=grey.random_high,
            label="one more random valuation",
        )
        _conditions(axis, part.set_index(["condition", "layer"]), "change")
        axis.set_title(quantity if quantity.startswith("on ") else f"change of {quantity}")
        _blocks(axis)
    drawing.legend_below(figure, axes[0])
    return figure


FIGURES = {
    "summary": summary,
    "alignment": alignment,
    "annotation": annotation,
    "nll": nll,
    "strengths": strengths,
    "attention": attention,
}


def _by_layer(axis: Axes, table: pd.DataFrame, quantity: str) -> None:
    table = table[table["quantity"] == quantity]
    grey = table.groupby("layer")[["control_low", "control_high"]].agg(
        {"control_low": "min", "control_high": "max"}
    )
    drawing.control(
        axis, list(grey.index), low=grey["control_low"], high=grey["control_high"], label="random valuations"
    )
    for (dimension, rows), colour in zip(
        table.groupby("dimension", sort=False), cycle(drawing.PALETTE), strict=False
    ):
        drawing.line(
            axis, rows["layer"], rows["value"], rows["low"], rows["high"], label=str(dimension), colour=colour
        )
    if quantity in SIGNED:
        drawing.zero(axis)
    limits = (-3, 93) if quantity == "principal angle" else (-1.05 if quantity in SIGNED else -0.25, 1.05)
    axis.set(title=quantity, ylim=limits)
    _blocks(axis)


def _conditions(axis: Axes, table: pd.DataFrame, value: str) -> None:
    """Draw a value with its interval by layer, a line for each condition; `table` is indexed by condition and layer."""
    for condition, rows in table.groupby(level="condition", sort=False):
        name, rows = str(condition), rows.droplevel("condition").sort_index()
        drawing.line(
            axis, list(rows.index), rows[value], rows.low, rows.high, label=name, colour=COLOURS[name]
        )
    drawing.zero(axis)


def _blocks(axis: Axes) -> None:
    axis.set_xlabel("block")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _nll(axis: Axes, table: pd.DataFrame, title: str) -> None:
    """Draw changes of the NLL with their intervals, controls in grey."""
    table = table[table["condition"] != "untouched"]
    columns = (table[name].tolist() for name in ("condition", "delta", "low", "high"))
    for row, (condition, delta, low, high) in enumerate(zip(*columns, strict=True)):
        colour = drawing.CONTROL if is_random(str(condition)) else drawing.BLUE
        axis.errorbar([delta], [row], xerr=[[delta - low], [high - delta]], fmt="o", color=colour)
    axis.set_yticks(range(len(table)), [str(name) for name in table["condition"]])
    axis.invert_yaxis()
    drawing.zero(axis, vertical=True)
    axis.set(title=title, xlabel="nats per token")


def _chance(axis: Axes, high: pd.Series[float]) -> None:
    drawing.control(axis, list(high.index), low=-high, high=high, label="random valuations")
