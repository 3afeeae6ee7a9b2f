"""How directions lie to each other: cosines, principal components, and what people say of the same words.

Sofroniew et al. 2026 (arXiv 2604.07729, figures 5 to 8) find human valence on the first component of 171 emotion vectors and
arousal on the second. Components are here those of the unit directions, for without unit length the loudest concepts make the
axes; those of raw vectors can be had beside them, and how each component goes with the vectors' lengths is always said. Signs
of components are arbitrary. Whoever looks for a norm among several components finds one by chance more often, so that a second
p value allows for the search. Controls, which every geometry needs, are in `emoprobe.probes.axes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage

from emoprobe import drawing
from emoprobe.errors import InputError
from emoprobe.intervals import correlation, exceedance
from emoprobe.notebook import shown
from emoprobe.probes.estimators import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from emoprobe.probes.probe_set import ProbeSet

Norms: TypeAlias = "Mapping[str, Mapping[str, float]] | pd.DataFrame"
COMPARED = 5
"""Components that are compared with human norms, at most."""
PERMUTATIONS = 2000
VECTORS = ("unit", "raw")


@dataclass(frozen=True, eq=False, repr=False)
class Geometry:
    """Hold the geometry of a probe set's directions at one layer."""

    layer: int
    cosines: pd.DataFrame
    """Cosine between each two directions, concepts × concepts."""
    coordinates: pd.DataFrame
    """Each concept on the principal components PC1, PC2, …, which are centred over concepts."""
    shares: pd.Series[float]
    """Share of the variance over concepts on each component."""
    norms: pd.DataFrame | None
    """One row per component and norm: component, norm, r (Pearson; its sign is as arbitrary as the component's), low, high
    (95 % interval over concepts, the components being as they are), p (of an |r| as large when concepts are permuted),
    p_searched (of one as large on any of the components compared), n."""
    vectors: str
    """What the components are of: "unit" directions, or "raw" vectors with their lengths."""
    length_r: pd.Series[float]
    """Pearson's r of each component with the lengths of the raw vectors; NaN where these are all the same."""

    def __repr__(self) -> str:
        shares = ", ".join(f"{share:.0%}" for share in self.shares[:3])
        return (
            f"<Geometry of {len(self.cosines)} concepts at layer {self.layer}: {shares} of the variance of {self.vectors} "
            f"vectors on the first components; r of PC1 with their lengths {self.length_r.iloc[0]:.2f}>"
        )

    def _repr_html_(self) -> str:
        return shown(repr(self), self.plot(), self.frame)

    @property
    def frame(self) -> pd.DataFrame:
        """The cosines, concepts × concepts."""
        return self.cosines

    @property
    def order(self) -> list[str]:
        """The concepts, like beside like: the leaves of average linkage on 1 - cosine, in the order of least distances."""
        return ordered(self.cosines)

    def plot(self) -> Figure:
        """Draw the cosines, like concepts beside like."""
        order = self.order
        field = self.cosines.loc[order, order].to_numpy(copy=True)
        np.fill_diagonal(field, np.nan)
        size = min(7.0, 1.5 + 0.19 * len(order))
        with drawing.styled():
            figure, axes = drawing.panels(height=size)
            shown = order if len(order) <= 60 else [""] * len(order)  # more names cannot be read
            mesh = drawing.heat(axes[0, 0], field, shown, shown, numbers="+.2f" if len(order) <= 8 else None)
            figure.colorbar(mesh, ax=axes[0, 0], label="cosine")
            axes[0, 0].set_title(f"cosines of directions at layer {self.layer}")
        return figure


def geometry(
    probes: ProbeSet, layer: int | float, norms: Norms | None = None, *, vectors: str = "unit", seed: int = 0
) -> Geometry:
    """Return cosines and principal components of the directions at `layer`.

    `norms` may give concepts their human ratings, {"joy": {"valence": 0.9, "arousal": 0.6}, …} or what
    `emoprobe.corpora.emotion_words.rate` returns; concepts without one are left out of its correlations. With `vectors="raw"`
    the components are of the directions times their scale, which is the vectors' own length for emotion vectors and that of
    the read-out's weights for other probes. Raises `InputError` for fewer than two concepts, fewer than three with a norm, and
    raw vectors whose lengths were not kept.
    """
    names = list(probes.concepts)
    if len(names) < 2:
        raise InputError(f"the geometry of {len(names)} concept says nothing: fit probes for two or more")
    if vectors not in VECTORS:
        raise InputError(f'vectors="{vectors}" is not understood: give "unit" or "raw"')
    row = probes.layer_index(layer)
    unit, lengths = probes.directions[row].double().numpy(), probes.scale[row].double().numpy()
    if vectors == "raw" and probes.metadata.get("recipe", {}).get("norm") == "unit":
        raise InputError('the lengths of these vectors were not kept: make them with norm="raw"')
    coordinates, shares = components(unit if vectors == "unit" else unit * lengths[:, None])
    labels = [f"PC{number + 1}" for number in range(coordinates.shape[1])]
    frame = pd.DataFrame(coordinates, index=names, columns=labels)
    apart = np.ptp(lengths) > 1e-6 * np.abs(lengths).max()
    return Geometry(
        layer=probes.layers[row],
        cosines=pd.DataFrame(unit @ unit.T, index=names, columns=names),
        coordinates=frame,
        shares=pd.Series(shares, index=labels, name="share"),
        norms=None if norms is None else against_norms(frame, norms, seed=seed),
        vectors=vectors,
        length_r=pd.Series(
            [pearson(column, lengths) if apart else np.nan for column in coordinates.T],
            index=labels,
            name="r",
        ),
    )


def components(vectors: Floats) -> tuple[Floats, Floats]:
    """Return vectors (concepts, d_model) on their principal components (concepts, components), and the components' shares."""
    centred = vectors - vectors.mean(0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    coordinates = (left * singular)[:, : len(vectors) - 1]
    # The sign of a component means nothing; this one makes it the same on every machine.
    largest = coordinates[np.abs(coordinates).argmax(0), np.arange(coordinates.shape[1])]
    coordinates = coordinates * np.sign(largest + 1e-300)
    spread = (coordinates**2).sum(0)
    return coordinates, spread / max(spread.sum(), np.finfo(float).tiny)


def ordered(cosines: pd.DataFrame) -> list[str]:
    """Return concepts so that like ones lie side by side (average linkage, optimal order of leaves: Bar-Joseph et al. 2001)."""
    names = list(cosines.index)
    if len(names) < 3:
        return names
    distances = 1 - cosines.to_numpy()[np.triu_indices(len(names), 1)].clip(-1, 1)
    return [names[place] for place in leaves_list(linkage(distances, "average", optimal_ordering=True))]


# Human norms ---------------------------------------------------------------------------------------------------------


def ratings_of(norms: Norms, concepts: pd.Index[str]) -> pd.DataFrame:
    """Return the numbers of `norms` for these concepts, NaN where there is none: one row per concept, a column per norm.

    Raises `InputError` where fewer than three concepts have a norm.
    """
    table = norms if isinstance(norms, pd.DataFrame) else pd.DataFrame(norms).T
    table = table.apply(pd.to_numeric, errors="coerce") if not isinstance(norms, pd.DataFrame) else table
    ratings = table.select_dtypes("number").reindex(concepts).astype(float)
    for norm in ratings.columns:
        if ratings[norm].notna().sum() < 3:
            raise InputError(
                f"only {int(ratings[norm].notna().sum())} of these concepts have a {norm}: a correlation needs three or more"
            )
    return ratings


def against_norms(
    coordinates: pd.DataFrame, norms: Norms, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> pd.DataFrame:
    """Correlate the first components with human ratings; see `Geometry.norms` for the columns."""
    ratings = ratings_of(norms, coordinates.index)
    rows = []
    for norm in ratings.columns:
        rated = ratings[norm].notna().to_numpy()
        points, values = coordinates.to_numpy()[rated, :COMPARED], ratings[norm].to_numpy()[rated]
        found, null = permuted(points, values, permutations, seed)
        for place, r in enumerate(found):
            _, low, high = correlation(points[:, place], values, np.arange(len(values)), seed)
            rows.append(
                {
                    "component": coordinates.columns[place],
                    "norm": norm,
                    "r": r,
                    "low": low,
                    "high": high,
                    "p": exceedance(abs(r), null[:, place]),
                    "p_searched": exceedance(abs(r), np.nan_to_num(null).max(1)),
                    "n": len(values),
                }
            )
    return pd.DataFrame(rows)


def permuted(
    points: Floats, values: Floats, permutations: int = PERMUTATIONS, seed: int = 0
) -> tuple[Floats, Floats]:
    """Return Pearson's r of each column of points (n, columns) with values (n,), and |r| with the values permuted.

    The latter is (permutations, columns): all columns see the same permutation, so that its largest |r| over columns is that
    of a search. NaN for what does not vary.
    """
    x, y = points - points.mean(0), values - values.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        x = x / np.linalg.norm(x, axis=0)
        y = y / np.linalg.norm(y)
    generator = np.random.default_rng(seed)
    null = np.abs(generator.permuted(np.tile(y, (permutations, 1)), axis=1) @ x)
    return y @ x, null


def pearson(x: Floats, y: Floats) -> float:
    """Return Pearson's r of x and y (n,); NaN where one does not vary."""
    return float(permuted(x[:, None], y, 0)[0][0])


def permutation_test(
    x: Floats, y: Floats, permutations: int = PERMUTATIONS, seed: int = 0
) -> tuple[float, float]:
    """Return Pearson's r of x and y (n,), and how often an |r| as large comes about when y is permuted."""
    found, null = permuted(x[:, None], y, permutations, seed)
    return float(found[0]), float(exceedance(abs(float(found[0])), null[:, 0]))
