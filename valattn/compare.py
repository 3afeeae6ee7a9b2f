"""Probed against learned valuations: do they look the same way, and what does each do to the model?

Directions are compared by the cosine of rows and by the principal angles between row spaces, behaviour by the correlation of
token valuations and by the change of the negative log-likelihood. Beside each stands what random valuations of equal norm
give, and, where there is one, a valuation learned from a random start: only if that one ends up near the probes too has
learning found what probing found.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.linalg import subspace_angles
from scipy.stats import t
from torch import Tensor

from emoprobe import drawing
from emoprobe.activations import stream_residuals
from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.models.live import LiveModel
from emoprobe.scoring import text_nll
from emoprobe.valattn.inject import inject
from emoprobe.valattn.valuation import Valuation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
RANDOM_START = "learned from random"
CONTROLS = ["control", "control_low", "control_high", "from_random", "from_random_low", "from_random_high"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Probed and learned valuations side by side.

    `alignment` has one row per quantity ("row cosine", "principal angle" in degrees, "token correlation"), layer and
    dimension: `value` is probed against learned, `control`, `control_low`, `control_high` the mean and the range of random
    valuations against the learned one; `from_random` is probed against the one learned from a random start (NaN without one),
    `from_random_low`, `from_random_high` the range of random valuations against the probed one, where it would be by chance.
    `nll` has one row per condition: mean |λ|, NLL in nats per token, its difference `delta` from the untouched model with its
    95 % interval (`low`, `high`), and its difference `excess` from the learned valuation with its own (`excess_low`,
    `excess_high`). Both are paired by text, per token; intervals are Student's over `groups` groups of the corpus, the texts
    of one group not being independent (`per_token`), and NaN where there is one group.
    """

    alignment: pd.DataFrame
    nll: pd.DataFrame
    name: str
    texts: int
    groups: int

    def summary(self) -> pd.DataFrame:
        """Return the alignment averaged over layers, one row per quantity and dimension."""
        columns = ["value", *CONTROLS]
        return self.alignment.groupby(["quantity", "dimension"], sort=False)[columns].mean().reset_index()

    def plot(self) -> Figure:
        """Draw row cosines and token correlations by layer, grey where random valuations lie, and the change of the NLL."""
        with drawing.styled():
            figure, axes = drawing.panels(1, 3, height=2.8)
            for axis, quantity in zip(axes[0], ("row cosine", "token correlation"), strict=False):
                self._draw_by_layer(axis, quantity)
            self._draw_nll(axes[0, 2])
            drawing.legend_below(figure, axes[0, 0])
        return figure

    def _draw_by_layer(self, axis: Axes, quantity: str) -> None:
        table = self.alignment[self.alignment["quantity"] == quantity]
        grey = table.groupby("layer")[["control_low", "control_high"]].agg(
            {"control_low": "min", "control_high": "max"}
        )
        drawing.control(
            axis,
            list(grey.index),
            low=grey["control_low"],
            high=grey["control_high"],
            label="random valuations",
        )
        for (dimension, rows), colour in zip(
            table.groupby("dimension", sort=False), cycle(drawing.PALETTE), strict=False
        ):
            drawing.line(axis, rows["layer"], rows["value"], label=str(dimension), colour=colour)
        drawing.zero(axis)
        axis.set(title=quantity, xlabel="block", ylim=(-1.05, 1.05))

    def _draw_nll(self, axis: Axes) -> None:
        table = self.nll[self.nll["condition"] != "untouched"]
        columns = (table[name].tolist() for name in ("condition", "delta", "low", "high"))
        for row, (condition, delta, low, high) in enumerate(zip(*columns, strict=True)):
            colour = drawing.CONTROL if str(condition).startswith("random") else drawing.BLUE
            axis.errorbar([delta], [row], xerr=[[delta - low], [high - delta]], fmt="o", color=colour)
        axis.set_yticks(range(len(table)), [str(name) for name in table["condition"]])
        axis.invert_yaxis()
        drawing.zero(axis, vertical=True)
        axis.set(title="change of NLL", xlabel="nats per token")

    def __repr__(self) -> str:
        known = self.summary().dropna(axis=1, how="all")
        return (
            f"<Comparison on {self.name}>\n{known.to_string(index=False)}\n{self.nll.to_string(index=False)}"
        )

    def _repr_html_(self) -> str:
        tables = (self.summary().round(3).to_html(index=False), self.nll.round(4).to_html(index=False))
        return f"<p>Probed against learned valuations on {escape(self.name)}</p>" + "".join(tables)


def compare_valuations(
    model: LiveModel,
    probed: Valuation,
    learned: Valuation,
    corpus: Corpus,
    *,
    learned_from_random: Valuation | None = None,
    controls: int = 5,
    limit: int = 200,
    seed: int = 0,
) -> Comparison:
    """Set a probed beside a learned valuation, on texts that neither should have been fitted on.

    The NLL is measured at the learned λ for all but a valuation learned from a random start, which has its own. At most
    `limit` texts of the corpus are used, drawn with `seed`; random valuations are `probed.random_like` of the seeds that
    follow it, so that a random start of `probed.random_like(seed)` is none of them. Raises `InputError` if the two have no
    layer or not the same dimensions in common.
    """
    layers = [layer for layer in probed.layers if layer in learned.layers]
    if not layers or probed.dimensions != learned.dimensions:
        raise InputError(
            f"the valuations cannot be compared: {list(probed.dimensions)} in blocks {list(probed.layers)} against "
            f"{list(learned.dimensions)} in blocks {list(learned.layers)}"
        )
    for item in (learned, learned_from_random):
        if item is not None and item.strength is None:
            raise InputError(
                "a learned valuation has no λ: make it with learn_valuation, or set its strength"
            )
    assert learned.strength is not None
    used = corpus.select(indices=np.random.default_rng(seed).permutation(len(corpus))[:limit])
    randoms = [probed.random_like(seed + 1 + k) for k in range(controls)]
    everyone = {
        "probed": probed,
        "learned": learned,
        **{f"random {k}": item for k, item in enumerate(randoms)},
    }
    if learned_from_random is not None:
        everyone[RANDOM_START] = learned_from_random
    values = _token_valuations(model, everyone, layers, used.texts)
    return Comparison(
        _alignment(everyone, values, layers, model.d_model),
        _nll(model, everyone, learned.strength, used),
        f"{model.name}, {corpus.name}",
        texts=len(used),
        groups=len(np.unique(used.groups)),
    )


def _token_valuations(
    model: LiveModel, everyone: dict[str, Valuation], layers: list[int], texts: list[str]
) -> dict[str, list[Floats]]:
    """Return, per valuation and layer, its values at all counted tokens of the untouched model: (tokens, m)."""
    found: dict[str, list[list[Tensor]]] = {name: [[] for _ in layers] for name in everyone}
    for part in stream_residuals(model, texts, layers):
        counted = part.counted(1)
        ids = part.batch.input_ids[counted]
        for name, valuation in everyone.items():
            emotions = None if valuation.embedding is None else valuation.embedding.to(ids.device)[ids]
            for row, layer in enumerate(layers):
                found[name][row].append(valuation.values(part.stream[row][counted], layer, emotions).cpu())
    return {name: [torch.cat(parts).double().numpy() for parts in rows] for name, rows in found.items()}


def _alignment(
    everyone: dict[str, Valuation], values: dict[str, list[Floats]], layers: list[int], d_model: int
) -> pd.DataFrame:
    randoms = [name for name in everyone if name.startswith("random ")]

    def rows_of(name: str, layer: int) -> Floats:
        valuation = everyone[name]
        weight = valuation.weight[valuation.layers.index(layer), :, :d_model]
        return weight.detach().double().cpu().numpy()

    records = []
    for row, layer in enumerate(layers):
        rows = {name: rows_of(name, layer) for name in everyone}
        tokens = {name: values[name][row] for name in everyone}
        measures = {
            "row cosine": (_row_cosines, rows),
            "principal angle": (_angles, rows),
            "token correlation": (_correlations, tokens),
        }
        for quantity, (measure, of) in measures.items():
            value = measure(of["probed"], of["learned"])
            unknown = value * np.nan
            control = np.array([measure(of[name], of["learned"]) for name in randoms] or [unknown])
            chance = np.array([measure(of[name], of["probed"]) for name in randoms] or [unknown])
            other = measure(of["probed"], of[RANDOM_START]) if RANDOM_START in of else unknown
            names = (
                everyone["probed"].dimensions if quantity != "principal angle" else range(1, len(value) + 1)
            )
            for k, dimension in enumerate(names):
                against, by_chance = control[:, k], chance[:, k]
                learned = (value[k], against.mean(), against.min(), against.max())
                from_random = (other[k], by_chance.min(), by_chance.max())
                records.append((quantity, layer, str(dimension), *learned, *from_random))
    return pd.DataFrame.from_records(records, columns=["quantity", "layer", "dimension", "value", *CONTROLS])


def _row_cosines(a: Floats, b: Floats) -> Floats:
    scale = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosines: Floats = np.divide((a * b).sum(-1), scale, out=np.full(len(a), np.nan), where=scale > 0)
    return cosines


def _angles(a: Floats, b: Floats) -> Floats:
    angles: Floats = np.rad2deg(subspace_angles(a.T, b.T))[::-1]  # smallest first
    return angles


def _correlations(a: Floats, b: Floats) -> Floats:
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    result: Floats = np.divide((a * b).sum(0), scale, out=np.full(a.shape[1], np.nan), where=scale > 0)
    return result


def _nll(model: LiveModel, everyone: dict[str, Valuation], strength: Tensor, used: Corpus) -> pd.DataFrame:
    """Return the NLL per token of each condition at the same λ, and how it differs from two: untouched and learned."""
    untouched, count = (counted.numpy() for counted in text_nll(model, used.texts))
    own = {"learned", RANDOM_START}
    sizes, totals = {"untouched": 0.0}, {"untouched": untouched}
    for name, valuation in everyone.items():
        lam = valuation.strength if name in own else _at_layers(strength, everyone["learned"], valuation)
        assert lam is not None, "a learned valuation has its λ"
        with inject(model, valuation, lam):
            totals[name] = text_nll(model, used.texts)[0].numpy()
        sizes[name] = float(lam.abs().mean())
    records = [
        (
            name,
            sizes[name],
            float(total.sum() / count.sum()),
            *per_token(total - untouched, count, used.groups),
            *per_token(total - totals["learned"], count, used.groups),
        )
        for name, total in totals.items()
    ]
    columns = ["condition", "lambda", "nll", "delta", "low", "high", "excess", "excess_low", "excess_high"]
    return pd.DataFrame.from_records(records, columns=columns)


def _at_layers(strength: Tensor, learned: Valuation, other: Valuation) -> Tensor:
    """Return the learned λ for another valuation's layers; a layer that was not learned gets none."""
    if strength.dim() == 0:
        return strength
    zero = torch.zeros_like(strength[0])
    return torch.stack(
        [strength[learned.layers.index(n)] if n in learned.layers else zero for n in other.layers]
    )


def per_token(total: Floats, count: Floats, groups: NDArray[Any]) -> tuple[float, float, float]:
    """Return R = Σ total / Σ count of texts, `total` and `count` (texts,), with its 95 % interval over G whole `groups`.

    With uₕ the sum of total − R · count over the texts of group h, the residual of the linearised ratio, the interval is
    R ± t(0.975, G − 1) · √(G / (G − 1) · Σ uₕ²) / Σ count: the variance of a ratio estimate (Cochran, Sampling Techniques,
    1977, chapter 6) with groups for units. It presumes groups that are drawn independently and alike in size, and is
    narrower than it should be where one outweighs the rest. NaN bounds for one group.
    """
    ratio = float(total.sum() / count.sum())
    member = np.unique(groups, return_inverse=True)[1]
    residuals = np.bincount(member, weights=total - ratio * count)
    size = len(residuals)
    if size < 2:
        return ratio, np.nan, np.nan
    error = np.sqrt(size / (size - 1) * (residuals**2).sum()) / count.sum()
    reach = float(t.ppf(0.975, size - 1) * error)
    return ratio, ratio - reach, ratio + reach
