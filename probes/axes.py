"""Do human valence and arousal lie on leading components, and would they without the model, or without the emotions?

A component that goes with human ratings may do so by chance, more so the more components and layers are looked at; it may lie
in the embedding already, words being what they are; and vectors of any labels have leading components. So beside the best of
the first components at each layer stand the same search with concepts permuted, at that layer and over all layers, the
embedding, and vectors of the same texts with shuffled labels. What the variance of raw vectors' components owes to their
lengths is said by their correlation with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Tensor

from emoprobe import drawing
from emoprobe.intervals import correlation, exceedance
from emoprobe.notebook import shown
from emoprobe.probes.estimators import Floats
from emoprobe.probes.geometry import (
    COMPARED,
    PERMUTATIONS,
    Norms,
    components,
    pearson,
    permuted,
    ratings_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from emoprobe.probes.probe_set import ProbeSet

FEWEST_SETS = 20
"""Sets of shuffled labels with which p, of which none can be less than one in sets + 1, may be less than 0.05."""


@dataclass(frozen=True, eq=False, repr=False)
class Axes:
    """Hold where human norms lie among the first components, layer by layer; `leading_axes` makes one."""

    frame: pd.DataFrame
    """One row per layer and norm: layer, norm, component (that of the first few with the highest |r|), share (of the variance
    that it holds), r (its |Pearson r|), low, high (95 % interval over concepts), p (of as high an |r| on any of these
    components when concepts are permuted), p_layers (on any of them at any layer), layer0 (the highest |r| at the embedding),
    shuffled_high (the highest in any set of shuffled labels), p_shuffled (of as high an |r| in such a set),
    p_shuffled_layers (of as high an |r| at any layer of such a set), length_r (r of that component with the lengths of the raw
    vectors), n."""
    shares: pd.DataFrame
    """One row per layer: layer, PC1, PC2, … (shares of the variance), shuffled_PC1 (the mean share of the first component in
    sets of shuffled labels)."""
    sets: int
    """Sets of shuffled labels that it was held to. Fewer than FEWEST_SETS cannot show that a norm is an axis."""
    alpha: float = 0.05

    def __repr__(self) -> str:
        return f"<Axes at {len(self.shares)} layers: {self.report()}>"

    def _repr_html_(self) -> str:
        return shown(self.report(), self.plot(), self.frame)

    def report(self) -> str:
        """Say for each norm whether it is found among the leading components, on which, and how it stands to the controls."""
        return " ".join(
            _sentence(rows, self.sets, self.alpha) for _, rows in self.frame.groupby("norm", sort=False)
        )

    def plot(self) -> Figure:
        """Draw |r| of each norm's best component by layer, with its interval, the embedding and shuffled labels."""
        norms = list(dict.fromkeys(self.frame.norm))
        with drawing.styled():
            figure, grid = drawing.panels(1, len(norms), sharey=True)
            for axis, norm in zip(grid[0], norms, strict=True):
                rows = self.frame[self.frame.norm == norm]
                drawing.line(
                    axis, rows.layer, rows.r, rows.low, rows.high, label="best component, 95 % interval"
                )
                drawing.control(axis, rows.layer, rows.layer0, label="embedding")
                if rows.shuffled_high.notna().all():
                    drawing.control(
                        axis, rows.layer, rows.shuffled_high, label="highest of shuffled labels", style=":"
                    )
                for row in rows.itertuples():
                    axis.annotate(
                        str(row.component)[2:], (row.layer, row.r), (0, 5), textcoords="offset points"
                    )
                axis.set(xlabel="layer", title=str(norm), ylim=(0, 1.05))
            grid[0, 0].set_ylabel("|r| with human ratings")
            drawing.legend_below(figure, grid[0, 0], 3)
        return figure


def leading_axes(
    probes: ProbeSet,
    norms: Norms,
    shuffled: Tensor | None = None,
    *,
    compared: int = COMPARED,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Axes:
    """Look for human norms among the first `compared` components of the unit directions at every layer.

    `norms` are as in `emoprobe.probes.geometry.geometry`. `shuffled` (sets, layers, concepts, d_model) are vectors of shuffled
    labels at the same layers, as `EmotionVectors.shuffled` holds them. Raises `InputError` where fewer than three concepts have
    a norm.
    """
    ratings = ratings_of(norms, pd.Index(probes.concepts))
    unit, lengths = probes.directions.double().numpy(), probes.scale.double().numpy()
    points, shares = zip(*(components(vectors) for vectors in unit), strict=True)
    drawn = (
        None if shuffled is None else [[components(_unit(part)) for part in of] for of in _by_layer(shuffled)]
    )
    rows: list[dict[str, Any]] = []
    for norm in ratings.columns:
        rated = ratings[norm].notna().to_numpy()
        values = ratings[norm].to_numpy()[rated]
        found = [permuted(part[rated, :compared], values, permutations, seed) for part in points]
        # The same permutations at every layer: their highest |r| is that of a search through layers too.
        nulls = np.nan_to_num(np.stack([null for _, null in found])).max(2)  # (layers, permutations)
        chance = np.stack([_highest(of, rated, values, compared) for of in drawn]) if drawn else None
        for row, layer in enumerate(probes.layers):
            sizes = np.nan_to_num(np.abs(found[row][0]))
            place = int(sizes.argmax())
            low, high = _interval(points[row][rated, place], values, seed)
            rows.append(
                {
                    "layer": layer,
                    "norm": norm,
                    "component": f"PC{place + 1}",
                    "share": shares[row][place],
                    "r": sizes[place],
                    "low": low,
                    "high": high,
                    "p": exceedance(sizes[place], nulls[row]),
                    "p_layers": exceedance(sizes[place], nulls.max(0)),
                    "layer0": _at_embedding(probes, found),
                    "shuffled_high": np.nan if chance is None else chance[row].max(),
                    "p_shuffled": np.nan if chance is None else exceedance(sizes[place], chance[row]),
                    "p_shuffled_layers": np.nan
                    if chance is None
                    else exceedance(sizes[place], chance.max(0)),
                    "length_r": pearson(points[row][:, place], lengths[row]),
                    "n": len(values),
                }
            )
    return Axes(
        pd.DataFrame(rows).sort_values(["layer"], kind="stable", ignore_index=True),
        _shares(probes, shares, drawn),
        0 if shuffled is None else len(shuffled),
    )


def _at_embedding(probes: ProbeSet, found: list[tuple[Floats, Floats]]) -> float:
    if 0 not in probes.layers:
        return float("nan")
    return float(np.nan_to_num(np.abs(found[probes.layers.index(0)][0])).max())


def _interval(x: Floats, y: Floats, seed: int) -> tuple[float, float]:
    """Return the 95 % interval of |r|, the component being turned so that its r is positive."""
    r, low, high = correlation(x, y, np.arange(len(x)), seed)
    return (low, high) if r >= 0 else (-high, -low)


def _highest(drawn: list[tuple[Floats, Floats]], rated: Any, values: Floats, compared: int) -> Floats:
    """Return the highest |r| among the first components of each set of shuffled labels, (sets,)."""
    found = [np.abs(permuted(points[rated, :compared], values, 0)[0]) for points, _ in drawn]
    return np.array([np.nan_to_num(sizes).max() for sizes in found])


def _by_layer(shuffled: Tensor) -> Iterator[Floats]:
    yield from shuffled.transpose(0, 1).double().numpy()


def _unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    result: Floats = vectors / np.where(lengths > 0, lengths, 1)
    return result


def _shares(probes: ProbeSet, shares: tuple[Floats, ...], drawn: Any) -> pd.DataFrame:
    kept = min(COMPARED, len(shares[0]))
    frame = pd.DataFrame(
        [part[:kept] for part in shares], columns=[f"PC{place + 1}" for place in range(kept)]
    )
    frame.insert(0, "layer", probes.layers)
    frame["shuffled_PC1"] = [np.mean([part[0] for _, part in of]) for of in drawn] if drawn else np.nan
    return frame


def _sentence(rows: pd.DataFrame, sets: int, alpha: float) -> str:
    best = rows.iloc[int(rows.r.argmax())]
    said = (
        f"{str(best.norm).capitalize()}: |r| {best.r:.2f} [{best.low:.2f}, {best.high:.2f}] on {best.component} at layer "
        f"{best.layer}, the best of {len(rows)} layers ({best.n} concepts; p = {best.p_layers:.3g} allowing for the search"
    )
    if np.isfinite(best.p_shuffled_layers):
        said += f"; shuffled labels up to {rows.shuffled_high.max():.2f}, p = {best.p_shuffled_layers:.3g}"
    said += f"; embedding {best.layer0:.2f})." if np.isfinite(best.layer0) else ")."
    if not (best.p_layers < alpha and best.p_shuffled_layers < alpha):
        return f"{said} Not shown to be an axis{too_few(sets)}."
    if best.layer != 0 and best.layer0 >= best.low:
        return f"{said} An axis, but not shown to be more of one than in the embedding."
    return f"{said} An axis."


def too_few(sets: int) -> str:
    """Say that there are too few sets of shuffled labels to show anything; nothing where there are enough."""
    if sets >= FEWEST_SETS:
        return ""
    return f": {sets or 'no'} sets of shuffled labels, where {FEWEST_SETS} are the fewest that can show it"
