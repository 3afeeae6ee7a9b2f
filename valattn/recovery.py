"""Does learning find what probing found? Valuations learned from random starts, set beside the probed one.

A learned valuation is judged by the space that its rows span at each layer: the bias does not change with the rows' order or
signs. How much of the probed space it holds is compared with three things, each an average over the same seeds and layers:
its own start; itself turned at random (random spaces, as many of them); and, because learning moves rows to where the stream
varies most, and annotated directions lie there too, how much it holds of the directions of shuffled annotations, beside those
of the true ones, both made by the same rule (the covariance with a text's mean stream).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from emoprobe import drawing
from emoprobe.activations import capture
from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.intervals import Floats, correlation, exceedance, mean_interval
from emoprobe.models.live import LiveModel
from emoprobe.notebook import shown
from emoprobe.valattn.compare_directions import stream_rows
from emoprobe.valattn.injection import inject
from emoprobe.valattn.learn import Objective, annotated_targets, learn_valuation
from emoprobe.valattn.subspaces import overlaps, overlaps_by_chance
from emoprobe.valattn.valuation import Valuation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STARTS = 1000
"""Seed of the first random start; random spaces are drawn with those that follow the last one."""
OBJECTIVES = {
    "next_token": "the next token",
    "annotations": "annotations",
    "both": "the next token and annotations",
}
DRAWS = 999
SHUFFLES = 199


@dataclass(frozen=True, eq=False)
class Recovery:
    """What became of valuations learned from random starts.

    `seeds` has one row per seed: overlap of its start and of what was learned with the probed space (mean squared cosine of
    principal angles, averaged over layers; 0 to 1), that expected of it turned at random (`chance`), its overlap with the
    directions of annotations and the mean over shuffled ones, mean |λ|, and the change of the held-out NLL in nats per token.
    `layers` has the mean over seeds at each layer, and the 99th percentile of such means of random spaces. `readings` has, per
    seed and dimension, the correlation of held-out texts' mean valuations with their annotation, its 95 % interval over groups,
    and the block, which was chosen on the texts that were learned from. `p` is how often random spaces hold as much of the
    probed one on average over seeds, `p_shuffled` how often the directions of shuffled annotations are held as much as the
    true ones.
    """

    objective: Objective
    seeds: pd.DataFrame
    layers: pd.DataFrame
    readings: pd.DataFrame
    p: float
    p_shuffled: float

    @property
    def frame(self) -> pd.DataFrame:
        """The table of seeds."""
        return self.seeds

    def plot(self) -> Figure:
        """Draw the share of the probed space that learned valuations and their starts hold, seed by seed and by layer."""
        with drawing.styled():
            figure, axes = drawing.panels(columns=2, sharey=True)
            seeds, layers = self.seeds, self.layers
            drawing.control(axes[0, 0], seeds.seed, seeds.chance, label="random spaces")
            drawing.control(axes[0, 0], seeds.seed, seeds.start, label="starts", style=":")
            axes[0, 0].plot(seeds.seed, seeds.learned, "o", label="learned")
            axes[0, 0].set(xlabel="seed", ylabel="share of the probed space")
            drawing.control(
                axes[0, 1], layers.layer, layers.chance, low=layers.chance, high=layers.chance_high
            )
            drawing.line(axes[0, 1], layers.layer, layers.overlap)
            axes[0, 1].set(xlabel="block", ylim=(0, None))
            for axis in axes[0]:
                axis.xaxis.get_major_locator().set_params(integer=True)
            drawing.legend_below(figure, axes[0, 0])
        return figure

    def _repr_html_(self) -> str:
        return shown(self.report(), self.plot(), self.frame)

    def report(self) -> str:
        """Say what was found, and whether it is more than chance."""
        table = self.seeds
        mean, low, high = mean_interval(table.learned.tolist())
        gain, gain_low, gain_high = mean_interval((table.learned - table.start).tolist())
        more = "more than random spaces do" if self.p < 0.01 else "not shown to be more than random spaces do"
        true = "held more" if self.p_shuffled < 0.01 else "not shown to be held more"
        gained = f"{gain:+.3f} [{gain_low:+.3f}, {gain_high:+.3f}] beside their own starts"
        return (
            f"Learned from {len(table)} random starts on {OBJECTIVES[self.objective]}, valuations hold {mean:.3f} "
            f"[{low:.3f}, {high:.3f}] of the probed space, {more} ({table.chance.mean():.3f} expected, p = {self.p:.3g}); "
            f"that is {gained}. The directions of annotations are {true} than those of shuffled annotations "
            f"({table.annotated.mean():.3f} against {table.shuffled.mean():.3f}, p = {self.p_shuffled:.3g}). Intervals are "
            "Student's over seeds."
        )


def recovery(
    model: LiveModel,
    corpus: Corpus,
    held_out: Corpus,
    probed: Valuation,
    *,
    objective: Objective = "next_token",
    seeds: int = 5,
    steps: int = 150,
    batch_size: int = 16,
    learning_rate: float = 0.03,
    draws: int = DRAWS,
    shuffles: int = SHUFFLES,
    progress: bool = True,
) -> Recovery:
    """Learn from `seeds` random starts on `corpus`, and see how much of the probed space comes out.

    On annotations, a learned valuation and the probes have been shown the same ones: that they meet says that learning works,
    not that the model has what both were asked for. `held_out` should share no group with `corpus`. Raises `InputError` for a
    single seed, from which nothing about others follows, and for a corpus that annotates none of the valuation's dimensions.
    """
    if seeds < 2:
        raise InputError(f"seeds={seeds}: give 2 or more, because one start tells nothing about others")
    d_model, layers = model.d_model, list(probed.layers)
    space = stream_rows(probed, layers, d_model)
    streams = capture(model, corpus.texts, layers).double().numpy()
    true, shuffled = _annotated_directions(
        streams, annotated_targets(corpus, probed).double().numpy(), shuffles
    )
    seen, unseen = (annotated_targets(part, probed).double().numpy() for part in (corpus, held_out))
    rows, readings, found, chance = [], [], [], []
    for seed in range(seeds):
        start = probed.random_like(STARTS + seed)
        learned = learn_valuation(
            model,
            corpus,
            start,
            objective=objective,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            progress=progress,
        )
        own = stream_rows(learned, layers, d_model)
        found.append(own)
        chance.append(overlaps_by_chance(own, space, draws, STARTS + seeds + seed * draws))
        record = learned.metadata
        assert learned.strength is not None, "a learned valuation has its λ"
        rows.append(
            {
                "seed": seed,
                "start": overlaps(stream_rows(start, layers, d_model), space).mean(),
                "learned": overlaps(own, space).mean(),
                "chance": chance[-1].mean(),
                "annotated": overlaps(own, true).mean(),
                "shuffled": np.mean([overlaps(own, other).mean() for other in shuffled]),
                "lambda": float(learned.strength.abs().mean()),
                "delta_nll": record["held_out_nll_learned"] - record["held_out_nll_untouched"],
            }
        )
        readings += _readings(model, learned, (corpus, seen), (held_out, unseen), seed)
    by_layer = np.mean([overlaps(own, space) for own in found], axis=0)
    by_chance = np.mean(
        chance, axis=0
    )  # (draws, layers): means over as many random spaces as there are seeds
    table = pd.DataFrame(rows)
    held = np.array([np.mean([overlaps(own, other).mean() for own in found]) for other in shuffled])
    per_layer = {"layer": layers, "overlap": by_layer, "chance": by_chance.mean(0)}
    return Recovery(
        objective,
        table,
        pd.DataFrame({**per_layer, "chance_high": np.quantile(by_chance, 0.99, axis=0)}),
        pd.DataFrame(readings),
        float(exceedance(float(by_layer.mean()), by_chance.mean(-1))),
        float(exceedance(float(table.annotated.mean()), held)),
    )


def _annotated_directions(streams: Floats, targets: Floats, shuffles: int) -> tuple[Floats, list[Floats]]:
    """Return covariances (layers, m, d_model) of streams (texts, layers, d_model) with targets (texts, m): true, shuffled."""
    known = np.isfinite(targets).all(-1)
    centred = streams[known] - streams[known].mean(0)
    wanted = targets[known] - targets[known].mean(0)
    order = np.random.default_rng(0)
    orders = [np.arange(len(wanted)), *(order.permutation(len(wanted)) for _ in range(shuffles))]
    true, *shuffled = [np.einsum("nm,nld->lmd", wanted[one], centred, optimize=True) for one in orders]
    return true, shuffled


def _readings(
    model: LiveModel,
    learned: Valuation,
    seen: tuple[Corpus, Floats],
    unseen: tuple[Corpus, Floats],
    seed: int,
) -> list[dict[str, object]]:
    """Correlate mean valuations with annotations: held out, at the block that is best on the texts learned from."""

    def mean_valuations(stream: Tensor, counted: Tensor) -> Tensor:
        values = [learned.values(part, layer) for part, layer in zip(stream, learned.layers, strict=True)]
        return torch.stack(values).where(counted[..., None], 0.0).sum(-2) / counted.sum(-1)[:, None]

    with inject(model, learned):
        known, new = (
            capture(model, part.texts, list(learned.layers), mean_valuations).double().numpy()
            for part, _ in (seen, unseen)
        )  # (texts, layers, m)
    rows: list[dict[str, object]] = []
    for column, dimension in enumerate(learned.dimensions):
        fits = [
            correlation(known[:, row, column], seen[1][:, column], seen[0].groups)[0]
            for row in range(len(learned.layers))
        ]
        if np.isnan(fits).all():
            continue  # not annotated
        best = int(np.nanargmax(fits))
        r, low, high = correlation(new[:, best, column], unseen[1][:, column], unseen[0].groups)
        rows.append(
            {
                "seed": seed,
                "dimension": dimension,
                "layer": learned.layers[best],
                "r": r,
                "low": low,
                "high": high,
            }
        )
    return rows
