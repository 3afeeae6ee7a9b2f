"""What concepts read at every layer and token of a text, as a picture.

`difference_maps` draws its pictures by this file too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emoprobe import drawing
from emoprobe.errors import InputError
from emoprobe.layers import Layers
from emoprobe.models.live import LiveModel
from emoprobe.probes.probe_set import ProbeSet
from emoprobe.probes.readout import Trace, shade, trace, visible
from emoprobe.probes.reference_corpus import Reference

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class HeatMap:
    """Hold what concepts read at each layer and token of one text; `heat_map` makes one.

    `HeatMap(trace.smoothed(3))` shows any trace of one text so, a smoothed one too.
    """

    trace: Trace

    @property
    def frame(self) -> pd.DataFrame:
        """One row per token, concept and layer, see `Trace.frame`."""
        return self.trace.frame

    @property
    def concepts(self) -> list[str]:
        """The concepts, each of which has a panel."""
        return list(dict.fromkeys(concept for concept, _ in self.trace.centres))

    def matrix(self, concept: str) -> pd.DataFrame:
        """Return a concept's values, layers × positions. Raises `InputError` for a concept that was not read."""
        if concept not in self.concepts:
            raise InputError(f"no heat map of {concept!r}: there are {', '.join(self.concepts)}")
        part = self.frame[self.frame.concept == concept]
        return part.pivot(index="layer", columns="position", values="value")

    def plot(self) -> Figure:
        """Draw one panel per concept, layers from bottom to top."""
        return draw_panels(self.panels(), self.trace.unit, self.trace.kind)

    def __repr__(self) -> str:
        layers, tokens = self.matrix(self.concepts[0]).shape
        return (
            f"<HeatMap of {layers} layers × {tokens} tokens: {', '.join(self.concepts)}; {self.trace.unit}>"
        )

    def _repr_html_(self) -> str:
        caption = f"{self.trace.unit}. Orange: above, blue: below {self.trace.centre_in_words}."
        return panels_html(self.panels(), caption, self.trace.kind)

    def panels(self) -> list[Panel]:
        """Return the cells of each concept."""
        tokens = self.frame.drop_duplicates("position").sort_values("position").token.tolist()
        panels = []
        for concept in self.concepts:
            values = self.matrix(concept)
            centres = np.array([self.trace.centres[concept, layer] for layer in values.index])
            away = values.to_numpy() - centres[:, None]
            counted = away[:, self.trace.start :] if away.shape[1] > self.trace.start else away
            reach = float(np.nanquantile(np.abs(counted), 0.99))
            layers = values.index.tolist()
            panels.append(Panel(concept, layers, tokens, values.to_numpy(), away, reach))
        return panels


def heat_map(
    model: LiveModel,
    probes: ProbeSet,
    text: str,
    concepts: str | Sequence[str],
    *,
    layers: Layers = "all",
    kind: str = "z",
    reference: Reference | None = None,
) -> HeatMap:
    """Read one concept or several at every layer that was probed and every token of a text, in one pass.

    `kind` and `reference` are as in `trace`; z-scores are comparable between layers, u·x is not. Raises `InputError` as
    `trace` does.
    """
    names = [concepts] if isinstance(concepts, str) else concepts
    return HeatMap(trace(model, probes, text, concepts=names, layers=layers, kind=kind, reference=reference))


# Showing -------------------------------------------------------------------------------------------------------------


class Panel(NamedTuple):
    """One concept's cells (layers × columns): what they are, how far from uncoloured, and which are marked."""

    title: str
    layers: list[int]
    columns: list[str]
    values: Floats
    away: Floats
    reach: float
    marked: NDArray[np.bool_] | None = None


def _reaches(panels: Sequence[Panel], kind: str) -> list[float]:
    """Return what the strongest colour of each panel stands for: the same in all, where they have one unit."""
    if kind == "read_out":
        return [panel.reach or 1.0 for panel in panels]
    return [max(panel.reach for panel in panels) or 1.0] * len(panels)


def draw_panels(panels: Sequence[Panel], unit: str, kind: str) -> Figure:
    """Draw panels below each other; columns without any value are hatched, marked cells have a dot."""
    columns = [visible(name) for name in panels[0].columns]
    with drawing.styled():
        size = max(drawing.WIDTH, 0.2 * len(columns) + 2), (0.2 * len(panels[0].layers) + 1.2) * len(panels)
        figure = drawing.Picture(figsize=size, layout="constrained")
        axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for axis, panel, reach in zip(axes, panels, _reaches(panels, kind), strict=True):
            # The deepest layer on top, as the stream rises through them.
            rows = [str(layer) for layer in panel.layers[::-1]]
            mesh = drawing.heat(axis, panel.away[::-1], rows, columns, limit=reach)
            for gap in np.flatnonzero(np.isnan(panel.away).all(0)):
                axis.axvspan(
                    gap - 0.5,
                    gap + 0.5,
                    facecolor="none",
                    edgecolor=drawing.CONTROL,
                    hatch="////",
                    linewidth=0,
                )
            if panel.marked is not None:
                y, x = np.nonzero(panel.marked[::-1])
                axis.plot(x, y, ".", color=drawing.INK, markersize=2)
            axis.set_title(panel.title)
            axis.set_ylabel("layer")
            figure.colorbar(mesh, ax=axis)
        figure.suptitle(unit, fontsize=9)
    return figure


def panels_html(panels: Sequence[Panel], caption: str, kind: str) -> str:
    """Return panels as HTML tables with their values, marked cells underlined; all that is written is escaped."""
    tables = []
    for panel, reach in zip(panels, _reaches(panels, kind), strict=True):
        head = "".join(f"<th>{escape(visible(name))}</th>" for name in panel.columns)
        rows = []
        for row, layer in reversed(list(enumerate(panel.layers))):
            marked = np.zeros(len(panel.columns), bool) if panel.marked is None else panel.marked[row]
            cells = zip(panel.values[row], panel.away[row] / reach, marked, strict=True)
            rows.append(f"<tr><th>{layer}</th>{''.join(_cell(*cell) for cell in cells)}</tr>")
        tables.append(
            f'<p><b>{escape(panel.title)}</b></p><table style="border-collapse:collapse"><thead><tr><th>layer</th>{head}</tr>'
            f"</thead><tbody>{''.join(rows)}</tbody></table>"
        )
    return f'<div style="overflow-x:auto">{"".join(tables)}<p><small>{escape(caption)}</small></p></div>'


def _cell(value: float, colour: float, marked: bool) -> str:
    if np.isnan(value):
        return "<td></td>"
    shown = f"<u>{value:.2g}</u>" if marked else f"{value:.2g}"
    return f'<td style="{shade(float(np.clip(colour, -1, 1)))}">{shown}</td>'
