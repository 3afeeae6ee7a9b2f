"""How figures look: one palette, one way to draw a control, one way to write a picture down.

Colours are Okabe and Ito's, which the colour-blind tell apart (2008, "Color Universal Design"). What is measured has a
colour, its control is always grey, and bands are 95 % intervals. Text and axes are of one middling grey that can be
read on white and on black; a page may replace it by its own. Figures are made without pyplot, so that nothing is left
open behind anybody's back. This file knows nothing of what is drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure

BLUE, RED, GREEN, PINK, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
PALETTE = (BLUE, RED, GREEN, PINK, ORANGE, SKY)
CONTROL = "#8C8C8C"
"""Controls: a dashed line, or a band of the same grey."""
INK = "#6b7280"
"""Text, axes and ticks."""
WIDTH = 7.2  # inches, of every figure: the text column of the report


def _diverging() -> ListedColormap:
    depth = np.linspace(-1, 1, 255)
    colours = np.array([(*to_rgb(RED if value > 0 else BLUE), 0.85 * abs(value)) for value in depth])
    return ListedColormap(colours, name="emoprobe")


DIVERGING = _diverging()
"""From blue below zero to red above, and nothing at zero, so that it serves on any ground."""

STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.prop_cycle": cycler(color=PALETTE),
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.parse_math": False,  # names come from users, and a $ is a dollar
    "svg.fonttype": "none",
    "svg.hashsalt": "emoprobe",  # equal figures become equal files
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the package's style inside the block; serves as a decorator too."""
    with matplotlib.rc_context(STYLE):
        yield


class Picture(Figure):
    """A figure that a notebook shows, though pyplot does not know of it: on the notebook's own ground, light or dark."""

    def _repr_png_(self) -> bytes:
        return png(self, dpi=110, ground="none")


def panels(
    rows: int = 1, columns: int = 1, height: float = 2.6, **options: Any
) -> tuple[Figure, np.ndarray[Any, Any]]:
    """Return a figure of the common width and its axes (rows, columns); `height` is that of one row, in inches."""
    figure = Picture(figsize=(WIDTH, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def tiled(count: int, columns: int = 3, **options: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure and so many axes, row by row; options are those of `panels`."""
    columns = min(columns, count)
    figure, grid = panels(-(-count // columns), columns, **options)
    axes: list[Axes] = grid.ravel().tolist()
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def line(
    axis: Axes,
    x: Sequence[float] | pd.Series,
    y: Sequence[float] | pd.Series,
    low: Sequence[float] | pd.Series | None = None,
    high: Sequence[float] | pd.Series | None = None,
    *,
    label: str | None = None,
    colour: str = BLUE,
) -> None:
    """Draw what was measured, with the band of its interval where there is one."""
    axis.plot(np.asarray(x), np.asarray(y, dtype=float), "o-", color=colour, label=label)
    if low is not None and high is not None:
        bounds = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
        axis.fill_between(np.asarray(x), *bounds, color=colour, alpha=0.18, linewidth=0)


def control(
    axis: Axes,
    x: Sequence[float] | pd.Series,
    y: Sequence[float] | pd.Series | None = None,
    low: Sequence[float] | pd.Series | None = None,
    high: Sequence[float] | pd.Series | None = None,
    *,
    label: str | None = None,
    style: str = "--",
) -> None:
    """Draw a control: a grey line, a grey band, or both."""
    if y is not None:
        axis.plot(np.asarray(x), np.asarray(y, dtype=float), style, color=CONTROL, linewidth=1.2, label=label)
        label = None
    if low is not None and high is not None:
        bounds = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
        axis.fill_between(np.asarray(x), *bounds, color=CONTROL, alpha=0.25, linewidth=0, label=label)


def zero(axis: Axes, *, vertical: bool = False) -> None:
    """Draw where nothing is: a thin line at 0."""
    (axis.axvline if vertical else axis.axhline)(0, color=INK, linewidth=0.6, alpha=0.6, zorder=0)


def heat(
    axis: Axes,
    values: np.ndarray[Any, np.dtype[np.floating[Any]]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    limit: float | None = None,
    numbers: str | None = None,
) -> Any:
    """Draw a matrix (rows, columns), red above zero and blue below; `numbers` is the format to write values in.

    Returns what a colour bar can be made of.
    """
    limit = limit or float(np.nanmax(np.abs(values), initial=1e-12))
    # Cells are centred on whole numbers, as those of imshow are, but stay sharp at any size.
    edges = [np.arange(size + 1) - 0.5 for size in values.shape]
    mesh = axis.pcolormesh(edges[1], edges[0], values, cmap=DIVERGING, vmin=-limit, vmax=limit)
    axis.set_ylim(edges[0][-1], edges[0][0])
    slanted = max(map(len, columns), default=0) > 3
    axis.set_xticks(
        range(len(columns)), columns, rotation=45 if slanted else 0, ha="right" if slanted else "center"
    )
    axis.set_yticks(range(len(rows)), rows)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    if numbers is not None:
        for (row, column), value in np.ndenumerate(values):
            if np.isnan(value):
                continue
            axis.text(
                column, row, format(value, numbers).replace("-", "−"), ha="center", va="center", fontsize=7
            )
    return mesh


def legend_below(figure: Figure, axis: Axes, columns: int = 4) -> None:
    """Put one legend for the whole figure below it, from one of its axes."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def svg(figure: Figure) -> str:
    """Return a figure as SVG on a transparent ground; text stays text, and equal figures give equal strings."""
    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def inline(drawn: str, what: str) -> str:
    """Return an SVG as part of an HTML page, no wider than its place; `what` is read to those who cannot see it."""
    # A style sheet inside a figure would hold for all of the page.
    drawn = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", drawn, flags=re.DOTALL)
    shape = f'<svg role="img" aria-label="{escape(what)}" style="max-width:100%;height:auto"'
    return drawn[drawn.find("<svg") :].replace("<svg", shape, 1)


def png(figure: Figure, dpi: int = 160, ground: str = "white") -> bytes:
    """Return a figure as PNG; on white it serves slides and mails."""
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format="png", dpi=dpi, facecolor=ground, metadata={"Software": None})
    return buffer.getvalue()
