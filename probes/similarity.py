"""Is the geometry the same elsewhere: at another layer, in another model, in a base model and its tuned one?

What is compared is how concepts lie to each other, which needs no common basis. Representational similarity analysis
(Kriegeskorte et al. 2008; Sofroniew et al. 2026, arXiv 2604.07729, figure 9) correlates the cosines of all pairs of concepts.
Centred kernel alignment (Kornblith et al. 2019) compares the matrices of cosines, or of products of activations, as wholes; it
is taken in its unbiased form (Song et al. 2012), because with fewer vectors than dimensions the plain one is near 1 for noise.

Chance is shown by permuting concepts and, where they are given, by vectors of shuffled labels: what the residual stream
carries from layer to layer, and what two models make of the same texts, is alike whatever the labels say. Resampled concepts
would meet themselves, whose cosine is 1, so that intervals leave each concept out once (jackknife, Student's t on Fisher's z).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from torch import Tensor

from emoprobe import drawing
from emoprobe.activations import Pool
from emoprobe.errors import InputError
from emoprobe.intervals import fisher_z, jackknife
from emoprobe.layers import Layers, resolve_layers
from emoprobe.models.live import LiveModel
from emoprobe.notebook import shown
from emoprobe.probes.alignment import LEAST, aligned, cka, criterion, kernels, own_criterion, permuted
from emoprobe.probes.estimators import Floats
from emoprobe.progress import track

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from emoprobe.probes.probe_set import ProbeSet

MEASURES = {
    "rsa": "Spearman's ρ of the cosines of all pairs",
    "rsa_cosine": "cosine of the cosines of all pairs",
    "cka": "unbiased centred kernel alignment",
}
PERMUTATIONS = 500
CHUNK = 256
"""Texts whose products with each other are formed at once."""


@dataclass(frozen=True, eq=False, repr=False)
class Similarity:
    """Hold how alike the layers of two sets of probes, or of two models, are."""

    names: tuple[str, str]
    frame: pd.DataFrame
    """One row per pair of layers and measure: layer_a, layer_b, measure, value, low, high (95 % interval), p (of as high a
    value when the concepts, or texts, of one side are permuted), shuffled, shuffled_high (mean and highest of vectors of
    shuffled labels; NaN where none were given)."""
    n: int
    """Concepts, or texts, that are compared."""
    within: bool = False
    """Whether both sides are the same, so that a layer's likeness to itself says nothing."""

    def __repr__(self) -> str:
        return f"<Similarity of {self.names[0]} and {self.names[1]}: {self.report()}>"

    def _repr_html_(self) -> str:
        return shown(self.report(), self.plot(self.frame.measure.iloc[0]), self.frame)

    def matrix(self, measure: str = "rsa") -> pd.DataFrame:
        """Return a measure's values, layers of the first × layers of the second. Raises `InputError` for an unknown one."""
        part = self.frame[self.frame.measure == measure]
        if part.empty:
            raise InputError(
                f"no measure {measure!r}: there are {', '.join(dict.fromkeys(self.frame.measure))}"
            )
        return part.pivot(index="layer_a", columns="layer_b", values="value")

    def report(self) -> str:
        """Say where each measure is highest and lowest, and how it stands to chance, layers not being set beside themselves."""
        return " ".join(self._sentence(rows) for _, rows in self.frame.groupby("measure", sort=False))

    def _sentence(self, rows: pd.DataFrame) -> str:
        name = MEASURES[str(rows.measure.iloc[0])]
        if self.within:
            rows = rows[rows.layer_a < rows.layer_b]
        known = rows.dropna(subset="value")
        if known.empty:
            return f"{name} cannot be told."
        high, low = known.iloc[int(known.value.argmax())], known.iloc[int(known.value.argmin())]
        said = (
            f"{name[0].upper()}{name[1:]}, {self.n} compared: {_span(high)} at layers {high.layer_a} and {high.layer_b}, the "
            f"highest, and {_span(low)} at {low.layer_a} and {low.layer_b}; p < 0.05 for {int((known.p < 0.05).sum())} of "
            f"{len(known)} pairs of layers"
        )
        if known.shuffled_high.notna().any():
            above = int((known.low > known.shuffled_high).sum())
            said += f"; above all vectors of shuffled labels for {above} (these: {known.shuffled.mean():.2f} on average)"
        return f"{said}."

    def plot(self, measure: str = "rsa") -> Figure:
        """Draw one measure over pairs of layers."""
        values = self.matrix(measure)
        with drawing.styled():
            figure, axes = drawing.panels(height=1.6 + min(5.0, 0.24 * len(values)))
            rows, columns = ([str(layer) for layer in index] for index in (values.index, values.columns))
            numbers = "+.2f" if max(values.shape) <= 14 else None
            mesh = drawing.heat(axes[0, 0], values.to_numpy(), rows, columns, limit=1.0, numbers=numbers)
            axes[0, 0].set(
                xlabel=f"layer of {self.names[1]}",
                ylabel=f"layer of {self.names[0]}",
                title=MEASURES[measure],
            )
            figure.colorbar(mesh, ax=axes[0, 0])
        return figure


def _span(row: pd.Series[Any]) -> str:
    return f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]"


# Of directions -------------------------------------------------------------------------------------------------------


def layer_similarity(
    probes: ProbeSet, *, shuffled: Tensor | None = None, permutations: int = PERMUTATIONS, seed: int = 0
) -> Similarity:
    """Compare how concepts lie at each two layers of one probe set.

    `shuffled` (sets, layers, concepts, d_model) are vectors of shuffled labels at the same layers, see `EmotionVectors`. Raises
    `InputError` for fewer than four concepts.
    """
    both = None if shuffled is None else (shuffled, shuffled)
    return _compared(probes, probes, list(probes.concepts), both, permutations, seed)


def model_similarity(
    first: ProbeSet,
    second: ProbeSet,
    *,
    shuffled: tuple[Tensor, Tensor] | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Similarity:
    """Compare how the concepts that two probe sets share lie at each layer of the one and each of the other.

    The models may differ in everything. `shuffled` are vectors of shuffled labels of both, drawn alike: `emotion_vectors` of
    the same corpus with the same seed hands the same labels on in both. Raises `InputError` for fewer than four common
    concepts.
    """
    common = [name for name in first.concepts if name in second.concepts]
    return _compared(first, second, common, shuffled, permutations, seed)


def _compared(
    first: ProbeSet,
    second: ProbeSet,
    concepts: Sequence[str],
    shuffled: tuple[Tensor, Tensor] | None,
    permutations: int,
    seed: int,
) -> Similarity:
    n = len(concepts)
    if n < LEAST:
        raise InputError(f"{n} common concepts: how they lie can be compared for {LEAST} or more")
    columns = [[probes.concept_index(name) for name in concepts] for probes in (first, second)]
    a, b = (
        _cosines(probes.directions[:, column].double().numpy())
        for probes, column in zip((first, second), columns, strict=True)
    )
    values = _measures(a, b)
    left_out = np.stack(
        [np.stack(list(_measures(_without(a, i), _without(b, i)).values())) for i in range(n)]
    )  # (concepts, measures, layers, layers)
    p = _by_permutation(a, b, values, permutations, seed)
    chance = None
    if shuffled is not None:
        sides = zip(shuffled, columns, strict=True)
        sets = [[_cosines(part[:, column].double().numpy()) for part in side] for side, column in sides]
        chance = np.stack([np.stack(list(_measures(*pair).values())) for pair in zip(*sets, strict=True)])
    frames = []
    for place, (measure, value) in enumerate(values.items()):
        low, high = _jackknifed(value, left_out[:, place])
        frame = _tabulated(first.layers, second.layers, measure, value, low, high, p[measure])
        frame["shuffled"] = np.nan if chance is None else chance[:, place].mean(0).ravel()
        frame["shuffled_high"] = np.nan if chance is None else chance[:, place].max(0).ravel()
        frames.append(frame)
    return Similarity((first.model, second.model), pd.concat(frames, ignore_index=True), n, first is second)


def _tabulated(
    rows: Sequence[int],
    columns: Sequence[int],
    measure: str,
    value: Floats,
    low: Floats,
    high: Floats,
    p: Floats,
) -> pd.DataFrame:
    pairs = pd.MultiIndex.from_product([rows, columns], names=["layer_a", "layer_b"]).to_frame(index=False)
    return pairs.assign(measure=measure, value=value.ravel(), low=low.ravel(), high=high.ravel(), p=p.ravel())


def _cosines(vectors: Floats) -> Floats:
    """Return the cosines (layers, concepts, concepts) of vectors (layers, concepts, d_model); 0 with what has no direction."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1)
    cosines: Floats = unit @ unit.swapaxes(1, 2)
    return cosines


def _without(matrices: Floats, concept: int) -> Floats:
    return np.delete(np.delete(matrices, concept, 1), concept, 2)


def _measures(a: Floats, b: Floats) -> dict[str, Floats]:
    """Return each measure of matrices of cosines (layers, concepts, concepts) with others: (layers of a, layers of b)."""
    pairs = np.triu_indices(a.shape[1], 1)
    x, y = a[:, pairs[0], pairs[1]], b[:, pairs[0], pairs[1]]
    return {
        "rsa": _unit(_ranks(x)) @ _unit(_ranks(y)).T,
        "rsa_cosine": _unit(x) @ _unit(y).T,
        "cka": cka(a, b),
    }


def _ranks(pairs: Floats) -> Floats:
    ranks: Floats = rankdata(pairs, axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    return ranks


def _unit(rows: Floats) -> Floats:
    """Return rows of length 1; NaN where a row is zero."""
    with np.errstate(invalid="ignore"):
        result: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return result


def _by_permutation(
    a: Floats, b: Floats, values: dict[str, Floats], permutations: int, seed: int
) -> dict[str, Floats]:
    """Return how often a permutation of b's concepts gives as high a value, for each measure and pair of layers."""
    order, pairs = np.random.default_rng(seed), np.triu_indices(a.shape[1], 1)
    x = a[:, pairs[0], pairs[1]]
    flat, ranked = _unit(x), _unit(_ranks(x))
    own = b[:, pairs[0], pairs[1]]
    ranks = np.zeros_like(b)
    ranks[:, pairs[0], pairs[1]] = _unit(
        _ranks(own)
    )  # ranks are permuted with their pairs, and need no sorting anew
    ranks += ranks.swapaxes(1, 2)
    plain = np.zeros_like(b)
    plain[:, pairs[0], pairs[1]] = _unit(own)
    plain += plain.swapaxes(1, 2)
    first, second = kernels(a), kernels(b)
    own_of_both = own_criterion(first), own_criterion(second)
    exceeded = {measure: np.ones_like(value) for measure, value in values.items()}
    for _ in range(permutations):
        drawn = order.permutation(a.shape[1])
        rows, columns = drawn[pairs[0]], drawn[pairs[1]]
        found = {
            "rsa": ranked @ ranks[:, rows, columns].T,
            "rsa_cosine": flat @ plain[:, rows, columns].T,
            "cka": aligned(criterion(first, permuted(second, drawn)), *own_of_both),
        }
        for measure, value in found.items():
            exceeded[measure] += value >= values[measure] - 1e-12
    return {
        measure: np.where(np.isfinite(values[measure]), count / (1 + permutations), np.nan)
        for measure, count in exceeded.items()
    }


def _jackknifed(value: Floats, left_out: Floats) -> tuple[Floats, Floats]:
    """Return the 95 % interval of values (layers, layers) from what they are without each of n parts, (n, layers, layers)."""
    low, high = jackknife(fisher_z(value), fisher_z(left_out))
    return np.tanh(low), np.tanh(high)


# Of activations ------------------------------------------------------------------------------------------------------


def activation_similarity(
    first: LiveModel,
    second: LiveModel,
    texts: Sequence[str],
    layers: Layers = "all",
    second_layers: Layers | None = None,
    *,
    pool: Pool = "mean",
    start: int = 1,
    chunk: int | None = None,
    permutations: int = 100,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> Similarity:
    """Compare the activations of two models on the same texts by centred kernel alignment, at each layer of each.

    Texts are pooled to one vector, see `emoprobe.activations.capture`, so that tokenizers may differ. They are taken in random
    order, by `chunk` (at most 256, and so that there are about 20 chunks where texts allow it); the criterion is unbiased
    within a chunk and is added up over chunks (Nguyen, Raghu & Kornblith 2021), so that no matrix over all texts is formed and
    memory does not grow with their number. Intervals leave out one chunk at a time and take texts for independent; p is that
    of pairing each text with another of its chunk. `second_layers` are by default those of `layers` in the second model.
    Raises `InputError` for fewer than four texts.
    """
    texts = list(texts)
    if len(texts) < LEAST:
        raise InputError(f"{len(texts)} texts: activations can be compared on {LEAST} or more")
    size = chunk or max(min(32, len(texts)), min(CHUNK, len(texts) // 20))
    if size < LEAST:
        raise InputError(f"chunk={size}: give {LEAST} or more")
    order = np.random.default_rng(seed)
    mixed = [texts[place] for place in order.permutation(len(texts))]
    parts = [mixed[begin : begin + size] for begin in range(0, len(mixed), size)]
    parts = [part for part in parts if len(part) >= max(LEAST, size // 2)]  # what is left over would be noise
    chosen = [
        resolve_layers(layers, first.n_layers),
        resolve_layers(layers if second_layers is None else second_layers, second.n_layers),
    ]
    sums: list[tuple[Floats, Floats, Floats]] = []
    chance = np.zeros((permutations, len(chosen[0]), len(chosen[1])))
    for part in track(parts, "comparing activations", wanted=progress):
        both = []
        for model, wanted in zip((first, second), chosen, strict=True):
            vectors = model.capture(part, wanted, pool, start=start, batch_size=batch_size).double().numpy()
            vectors = (vectors - vectors.mean(0)).swapaxes(0, 1)  # what is shared by all only costs digits
            both.append(kernels(vectors @ vectors.swapaxes(1, 2)))
        x, y = both
        sums.append((criterion(x, y), own_criterion(x), own_criterion(y)))
        for row in chance:
            row += criterion(x, permuted(y, order.permutation(len(part))))
    joint, own_a, own_b = (np.stack(found) for found in zip(*sums, strict=True))
    own = own_a.sum(0), own_b.sum(0)
    value = aligned(joint.sum(0), *own)
    low = high = np.full_like(value, np.nan)
    if len(parts) > 1:
        rest = (whole.sum(0) - whole for whole in (joint, own_a, own_b))
        low, high = _jackknifed(value, np.stack([aligned(*left) for left in zip(*rest, strict=True)]))
    exceeded = sum((aligned(row, *own) >= value - 1e-12 for row in chance), np.ones_like(value))
    p = np.where(np.isfinite(value), exceeded / (1 + permutations), np.nan)
    frame = _tabulated(chosen[0], chosen[1], "cka", value, low, high, p).assign(
        shuffled=np.nan, shuffled_high=np.nan
    )
    return Similarity((first.name, second.name), frame, sum(map(len, parts)), first is second)
