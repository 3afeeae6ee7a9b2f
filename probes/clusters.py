"""Do directions fall into the groups that people, or another model's vectors, put the emotions in?

K-means of the unit directions is set against given clusters, by default those published for the paper's model (Sofroniew et
al. 2026, arXiv 2604.07729, table 12, k = 10), by the adjusted Rand index (Hubert & Arabie 1985): 1 where both are the same, 0
on average where they have nothing to do with each other. Chance is shown three ways: the given clusters permuted over concepts,
random directions in place of the real ones, and directions of shuffled labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from emoprobe import drawing
from emoprobe.corpora.emotion_words import emotion_clusters
from emoprobe.errors import InputError
from emoprobe.intervals import exceedance
from emoprobe.notebook import shown
from emoprobe.probes.axes import FEWEST_SETS, too_few
from emoprobe.probes.estimators import Floats, Integers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from emoprobe.probes.probe_set import ProbeSet

K = 10
STARTS = 10
"""Starts of k-means, of which the best is kept."""
PERMUTATIONS = 1000
RANDOM = 20


@dataclass(frozen=True, eq=False, repr=False)
class Clusters:
    """Hold k-means clusters of directions at one layer and how they agree with given ones; `clusters` makes one."""

    layer: int
    k: int
    frame: pd.DataFrame
    """One row per concept: concept, cluster (its number, the largest's being 0), given (the given cluster; "" where none)."""
    agreement: float
    """Adjusted Rand index over concepts with a given cluster; NaN where these are fewer than three or all of one."""
    p: float
    """How often permuting the given clusters over concepts gives as high an index."""
    random: tuple[float, ...]
    """The index of random directions, independent of each other."""
    shuffled: tuple[float, ...]
    """That of directions of shuffled labels; empty where none were given."""
    embedding: float
    """That of the directions at layer 0; NaN where there are none."""

    def __repr__(self) -> str:
        return f"<Clusters: {self.report()}>"

    def _repr_html_(self) -> str:
        return shown(self.report(), self.plot(), self.frame)

    def plot(self) -> Figure:
        """Draw the agreement with the given clusters, beside that of random directions, shuffled labels and the embedding."""
        controls = {
            "random directions": self.random,
            "shuffled labels": self.shuffled,
            "embedding": (self.embedding,),
        }
        known = {name: values for name, values in controls.items() if np.isfinite(values).any()}
        with drawing.styled():
            figure, axes = drawing.panels(height=0.9 + 0.3 * len(known))
            axis = axes[0, 0]
            for row, values in enumerate(known.values()):
                axis.plot(values, [row] * len(values), "|", color=drawing.CONTROL, markersize=10)
            axis.plot([self.agreement], [len(known)], "o", color=drawing.BLUE)
            axis.set_yticks(range(len(known) + 1), [*known, "directions"])
            axis.set(
                xlabel="adjusted Rand index with the given clusters",
                title=f"{self.k} clusters, layer {self.layer}",
            )
            drawing.zero(axis, vertical=True)
        return figure

    @property
    def more_than_chance(self) -> bool:
        """Whether both agree by more than permuted clusters, and more than all random directions and shuffled labels do.

        Not so with fewer than FEWEST_SETS sets of shuffled labels: a control that was not run is not passed.
        """
        enough = len(self.shuffled) >= FEWEST_SETS
        return bool(enough and self.p < 0.05 and self.agreement > max((*self.random, *self.shuffled)))

    def report(self) -> str:
        """Say how well both agree, beside the controls."""
        rated = int((self.frame.given != "").sum())
        said = f"{self.k} clusters of {len(self.frame)} directions at layer {self.layer}"
        if not np.isfinite(self.agreement):
            return f"{said}; nothing to compare them with ({rated} concepts have a given cluster)."
        controls = f"random directions {min(self.random):.2f} to {max(self.random):.2f}"
        if self.shuffled:
            controls += f", shuffled labels {min(self.shuffled):.2f} to {max(self.shuffled):.2f}"
        if np.isfinite(self.embedding):
            controls += f", embedding {self.embedding:.2f}"
        verdict = (
            "More than chance"
            if self.more_than_chance
            else f"Not shown to be more than chance{too_few(len(self.shuffled))}"
        )
        if (
            self.more_than_chance
            and self.layer
            and np.isfinite(self.embedding)
            and self.embedding >= self.agreement
        ):
            verdict += ", and no more than in the embedding"
        return (
            f"{said} agree with the given ones of {rated} concepts by an adjusted Rand index of {self.agreement:.2f} (p = "
            f"{self.p:.3g}; {controls}). {verdict}."
        )


def clusters(
    probes: ProbeSet,
    layer: int | float,
    given: Mapping[str, str] | None = None,
    *,
    k: int | None = None,
    shuffled: Tensor | None = None,
    permutations: int = PERMUTATIONS,
    random: int = RANDOM,
    seed: int = 0,
) -> Clusters:
    """Cluster the unit directions at `layer` by k-means and compare the clusters with given ones.

    `given` says which cluster a concept belongs to (default: the published ones); concepts without one are clustered, and left
    out of the comparison. `k` is by default 10, the paper's, or half the number of concepts where there are fewer than 20.
    `shuffled` are as in `emoprobe.probes.axes.leading_axes`. Raises `InputError` for a k that is not from 2 to the number of
    concepts.
    """
    names, row = list(probes.concepts), probes.layer_index(layer)
    k = max(2, min(K, len(names) // 2)) if k is None else k
    if not 2 <= k <= len(names):
        raise InputError(f"k={k}: {len(names)} directions fall into 2 to {len(names)} clusters")
    if given is None:
        given = {word: name for name, words in emotion_clusters().items() for word in words}
    labels = np.array([given.get(name, "") for name in names], dtype=object)
    rated = labels != ""
    compared = rated.sum() >= 3 and len(set(labels[rated])) > 1
    unit = probes.directions.double().numpy()

    def agreement(vectors: Floats) -> float:
        return _rand(labels[rated], _k_means(vectors, k, seed)[rated]) if compared else float("nan")

    found = _k_means(unit[row], k, seed)
    order, generator = (np.random.default_rng((seed, stream)) for stream in range(2))
    value = _rand(labels[rated], found[rated]) if compared else float("nan")
    permuted = [_rand(order.permutation(labels[rated]), found[rated]) for _ in range(permutations * compared)]
    return Clusters(
        layer=probes.layers[row],
        k=k,
        frame=pd.DataFrame({"concept": names, "cluster": found, "given": labels.astype(str)}),
        agreement=value,
        p=exceedance(value, np.array(permuted)),
        random=tuple(agreement(generator.normal(size=unit[row].shape)) for _ in range(random)),
        shuffled=()
        if shuffled is None
        else tuple(agreement(part[row].double().numpy()) for part in shuffled),
        embedding=agreement(unit[probes.layers.index(0)]) if 0 in probes.layers else float("nan"),
    )


def _k_means(vectors: Floats, k: int, seed: int) -> Integers:
    """Return the cluster of each vector, made unit, numbered from the largest on."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    found = KMeans(k, n_init=STARTS, random_state=seed).fit_predict(
        vectors / np.where(lengths > 0, lengths, 1)
    )
    rank = np.argsort(np.argsort(-np.bincount(found, minlength=k), kind="stable"), kind="stable")
    numbered: Integers = rank[found]
    return numbered


def _rand(given: np.ndarray[Any, Any], found: Integers) -> float:
    return float(adjusted_rand_score(given.astype(str), found))
