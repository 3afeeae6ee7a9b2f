"""How does a valuation made from probes value tokens: spread or saturated, and in line with annotations?

tanh bounds a valuation; where it sits at the bound, it has stopped telling tokens apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from emoprobe import drawing
from emoprobe.activations import stream_residuals
from emoprobe.corpora import Corpus
from emoprobe.models.live import LiveModel
from emoprobe.study.result import Result
from emoprobe.study.texts import counted, targets
from emoprobe.study.wording import Floats, correlation, listed, number, several, spans
from emoprobe.valattn import Valuation

TEXTS = 300
CONTROLS = 10
SATURATED = 0.95
"""|v| above which a token counts as saturated."""
BINS = np.linspace(-1, 1, 21)
SHOWN = 4  # dimensions in the figure


def valuing(model: LiveModel, valuation: Valuation, held_out: Corpus, *, seed: int = 0) -> Result:
    """Value the tokens of held-out texts in every block, beside random valuations of equal norm."""
    corpus = held_out if len(held_out) <= TEXTS else held_out.sample(TEXTS, seed)
    everyone = [valuation, *(valuation.random_like(seed + 1 + k) for k in range(CONTROLS))]
    means, moments, histogram = _valuations(model, everyone, corpus.texts)
    table = _table(valuation, corpus, means, moments, seed)
    known = table.dropna(subset="r")  # a rare label may be carried by none of these texts
    best = table.loc[known.groupby("dimension", sort=False)["r"].idxmax()]
    above, chance = _above_random(table, best), _chance(table)
    return Result(
        name="valuing",
        title="Valuing tokens",
        question="Do the values of tokens agree with the annotations, in each dimension, by more than random valuations' do?",
        method=(
            f"v = tanh(W·x + b), W the probes' directions for {listed(valuation.dimensions)}, standardised over the tokens of "
            f"their corpus; every token of {counted(corpus)} in {len(valuation.layers)} blocks, beside {CONTROLS} random "
            "valuations of equal norm. Of each valuation the best block counts, chosen on the same texts; intervals are over "
            "groups."
        ),
        table=table,
        finding=(
            f"{len(above)} of {len(best)} dimensions beyond random valuations; r "
            + several(spans(best.dimension, best.r, best.low, best.high))
        ),
        controls=(
            f"highest |r| of {CONTROLS} random valuations in their best block: "
            + several([f"{name} {number(chance[name])}" for name in best.dimension])
        ),
        verdict=f"{_answer(best, above)} {_saturation(table)}",
        sign=int(len(above) == len(best)) if len(best) else None,
        parts={str(name): name in above for name in best.dimension},
        checks={"no dimension is saturated for half of all tokens": bool((table.saturated < 0.5).all())},
        figure=_figure(valuation, table, histogram),
        alt="Above, how token valuations are distributed in each block; below, their correlation with annotations by block.",
    )


def _valuations(
    model: LiveModel, everyone: list[Valuation], texts: list[str]
) -> tuple[Floats, Floats, Floats]:
    """Return means per text (valuations, layers, texts, m), and of the first valuation the moments over tokens (layers, m, 3)
    (mean, standard deviation, saturated share) and histograms (layers, m, bins)."""
    first = everyone[0]
    means = np.zeros((len(everyone), len(first.layers), len(texts), first.m))
    sums = np.zeros((len(first.layers), first.m, 3))
    histogram = np.zeros((len(first.layers), first.m, len(BINS) - 1))
    count = 0
    for part in stream_residuals(model, texts, list(first.layers)):
        told = part.counted(1)
        owner = torch.nonzero(told)[:, 0].cpu().numpy()
        size = np.bincount(owner, minlength=len(part.indices))
        for row, layer in enumerate(first.layers):
            stream = part.by_layer[row][told]
            for which, valuation in enumerate(everyone):
                v = valuation.values(stream, layer).double().cpu().numpy()
                total = np.stack([np.bincount(owner, column, len(part.indices)) for column in v.T], axis=1)
                means[which, row, list(part.indices)] = total / size[:, None]
                if which == 0:
                    sums[row] += np.stack([v.sum(0), (v**2).sum(0), (np.abs(v) > SATURATED).sum(0)], axis=1)
                    histogram[row] += np.stack([np.histogram(column, BINS)[0] for column in v.T])
        count += int(size.sum())
    moments = sums / count
    moments[..., 1] = np.sqrt(np.maximum(moments[..., 1] - moments[..., 0] ** 2, 0))
    return means, moments, histogram / count


def _table(valuation: Valuation, corpus: Corpus, means: Floats, moments: Floats, seed: int) -> pd.DataFrame:
    rows = []
    for row, layer in enumerate(valuation.layers):
        for column, dimension in enumerate(valuation.dimensions):
            annotated = targets(corpus, dimension)
            found = correlation(means[0, row, :, column], annotated, corpus.groups, seed)
            chance = [
                abs(correlation(other[row, :, column], annotated, corpus.groups)[0]) for other in means[1:]
            ]
            rows.append((layer, dimension, *moments[row, column], *found, max(chance, default=np.nan)))
    columns = ["layer", "dimension", "mean", "deviation", "saturated", "r", "low", "high", "random_high"]
    return pd.DataFrame(rows, columns=columns)


def _chance(table: pd.DataFrame) -> dict[str, float]:
    """Return, per dimension, the highest |r| of random valuations in any block, as the valuation's own best is of any."""
    return {str(name): float(value) for name, value in table.groupby("dimension").random_high.max().items()}


def _above_random(table: pd.DataFrame, best: pd.DataFrame) -> list[str]:
    """Return the dimensions whose interval of r, in their best block, lies above all of that."""
    return [str(name) for name in best.dimension[best.low > best.dimension.map(_chance(table))]]


def _answer(best: pd.DataFrame, above: Sequence[str]) -> str:
    """Say which dimensions agree with their annotations by more than every random valuation, and which are not shown to."""
    if best.empty:
        return "Cannot be told: no dimension is annotated in these texts."
    missed = [name for name in best.dimension if name not in above]
    held = f"{listed(above)} agree{'s' * (len(above) == 1)}" if above else "no dimension agrees"
    said = f"Averaged over a text's tokens, {held} with annotations by more than every random valuation"
    return f"{said}{f'; of {listed(missed)} this is not shown' if above and missed else ''}."


def _saturation(table: pd.DataFrame) -> str:
    worst = table.sort_values("saturated").iloc[-1]
    return (
        f"Of all tokens {table.saturated.mean():.1%} lie beyond ±{SATURATED}, at most {worst.saturated:.1%} "
        f"({worst.dimension}, block {worst.layer})."
    )


@drawing.styled()
def _figure(valuation: Valuation, table: pd.DataFrame, histogram: Floats) -> Any:
    shown = list(valuation.dimensions[:SHOWN])
    figure, axes = drawing.panels(2, max(2, len(shown)), height=2.0, sharey="row")
    centres = (BINS[1:] + BINS[:-1]) / 2
    blocks = sorted({0, len(valuation.layers) // 2, len(valuation.layers) - 1})
    for column, dimension in enumerate(shown):
        above, below = axes[:, column]
        for row, colour in zip(blocks, drawing.PALETTE, strict=False):
            share = histogram[row, column]
            above.plot(centres, share, color=colour, label=f"block {valuation.layers[row]}", linewidth=1.3)
        above.set_title(dimension, parse_math=False)
        above.set(xlabel="valuation of a token", xlim=(-1, 1))
        part = table[table.dimension == dimension]
        drawing.control(
            below, part.layer, low=-part.random_high, high=part.random_high, label="random valuations"
        )
        drawing.line(below, part.layer, part.r, part.low, part.high, label="probed, 95 % interval")
        drawing.zero(below)
        below.set(xlabel="block")
        below.xaxis.get_major_locator().set_params(integer=True)
    # Last: a limit that is set before cuts what is drawn after.
    axes[0, 0].set(ylabel="share of tokens", ylim=(0, None))
    axes[1, 0].set_ylabel("r with annotation")
    handles = [axis.get_legend_handles_labels() for axis in axes[:, 0]]
    figure.legend(
        *([*above, *below] for above, below in zip(*handles, strict=True)),
        loc="outside lower center",
        ncols=5,
    )
    for axis in axes[:, len(shown) :].flat:
        axis.remove()
    return figure
