"""How directions lie to each other: cosines, principal components, and what people say of the same words.

The components are those of the unit directions (Sofroniew et al. 2026, arXiv 2604.07729, find valence on the first and arousal
on the second): without unit length, the loudest concepts would make the axes. Their signs are arbitrary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from emoprobe.errors import InputError
from emoprobe.probes.estimators import Floats

if TYPE_CHECKING:
    from emoprobe.probes.probe_set import ProbeSet

COMPARED = 5
"""Components that are compared with human norms, at most."""
PERMUTATIONS = 2000


@dataclass(frozen=True, eq=False)
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
    """One row per component and norm: component, norm, r (Pearson), p (of an |r| as large when concepts are permuted), n."""


def geometry(
    probes: ProbeSet, layer: int | float, norms: Mapping[str, Mapping[str, float]] | None = None
) -> Geometry:
    """Return cosines and principal components of the directions at `layer`.

    `norms` may give concepts their human ratings, {"joy": {"valence": 0.9, "arousal": 0.6}, …}; concepts without one are left
    out of its correlations. Raises `InputError` for fewer than two concepts, and fewer than three with a norm.
    """
    names = list(probes.concepts)
    if len(names) < 2:
        raise InputError(f"the geometry of {len(names)} concept says nothing: fit probes for two or more")
    row = probes.layer_index(layer)
    unit = probes.directions[row].double().numpy()
    centred = unit - unit.mean(0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    keep = len(names) - 1
    coordinates = (left * singular)[:, :keep]
    # The sign of a component means nothing; this one makes it the same on every machine.
    coordinates *= np.sign(
        coordinates[np.abs(coordinates).argmax(0), np.arange(coordinates.shape[1])] + 1e-300
    )
    components = [f"PC{number + 1}" for number in range(coordinates.shape[1])]
    frame = pd.DataFrame(coordinates, index=names, columns=components)
    spread = (coordinates**2).sum(0)
    return Geometry(
        probes.layers[row],
        pd.DataFrame(unit @ unit.T, index=names, columns=names),
        frame,
        pd.Series(spread / max(spread.sum(), np.finfo(float).tiny), index=components, name="share"),
        None if norms is None else _against_norms(frame, norms),
    )


def _against_norms(coordinates: pd.DataFrame, norms: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    ratings = pd.DataFrame(norms).T.reindex(coordinates.index)
    rows = []
    for norm in ratings.columns:
        rated = ratings[norm].notna()
        if rated.sum() < 3:
            raise InputError(
                f"only {int(rated.sum())} of these concepts have a {norm}: a correlation needs three or more"
            )
        for component in coordinates.columns[:COMPARED]:
            r, p = permutation_test(
                coordinates.loc[rated, component].to_numpy(float), ratings.loc[rated, norm].to_numpy(float)
            )
            rows.append({"component": component, "norm": norm, "r": r, "p": p, "n": int(rated.sum())})
    return pd.DataFrame(rows)


def permutation_test(
    x: Floats, y: Floats, permutations: int = PERMUTATIONS, seed: int = 0
) -> tuple[float, float]:
    """Return Pearson's r of x and y (n,), and how often an |r| as large comes about when y is permuted."""
    generator = np.random.default_rng(seed)
    a, b = x - x.mean(), y - y.mean()
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    if norm == 0:
        return float("nan"), float("nan")
    r = float(a @ b / norm)
    permuted = generator.permuted(np.tile(b, (permutations, 1)), axis=1) @ a / norm
    return r, float((1 + (np.abs(permuted) >= abs(r) - 1e-12).sum()) / (1 + permutations))
