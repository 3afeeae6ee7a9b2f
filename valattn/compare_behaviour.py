"""What valuations do to a model: how well it predicts emotional and neutral text, and where its attention looks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import t
from torch import Tensor

from emoprobe.corpora import Corpus
from emoprobe.intervals import Floats, mean_interval, prediction_interval
from emoprobe.models.live import LiveModel
from emoprobe.scoring import text_nll
from emoprobe.valattn.attention_patterns import attention_patterns, quantities
from emoprobe.valattn.compare_directions import LEARNED, is_random
from emoprobe.valattn.injection import inject
from emoprobe.valattn.valuation import Valuation

Runs: TypeAlias = Mapping[str, Sequence[tuple[Valuation, Tensor]]]
"""Valuations with the λ that they are injected at, by condition; effects of several are averaged."""
UNTOUCHED = "untouched"
NEUTRAL = "neutral"
INTERVAL = ["low", "high"]


def nll_tables(model: LiveModel, runs: Runs, used: Corpus) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return `Comparison.nll` and `Comparison.emotional`."""
    untouched, count = (counted.numpy() for counted in text_nll(model, used.texts))
    totals = {name: np.stack(list(_totals(model, of, used))) for name, of in runs.items()}
    totals = {UNTOUCHED: untouched[None], **totals}
    means = {name: total.mean(0) for name, total in totals.items()}
    sizes = {UNTOUCHED: 0.0} | {
        name: float(np.mean([float(lam.abs().mean()) for _, lam in of])) for name, of in runs.items()
    }
    records = []
    for name, mean in means.items():
        over_seeds = mean_interval(((totals[name] - untouched).sum(-1) / count.sum()).tolist())[1:]
        change = per_token(mean - untouched, count, used.groups)
        excess = per_token(mean - means[LEARNED], count, used.groups)
        records.append((name, sizes[name], float(mean.sum() / count.sum()), *change, *excess, *over_seeds))
    columns = ["condition", "lambda", "nll", "delta", *INTERVAL, "excess", "excess_low", "excess_high"]
    overall = pd.DataFrame.from_records(records, columns=[*columns, "seeds_low", "seeds_high"])
    by_kind = [
        (kind, int(rows.sum()), name, *per_token((mean - untouched)[rows], count[rows], used.groups[rows]))
        for kind, rows in emotional_texts(used).items()
        if rows.any()
        for name, mean in means.items()
        if name != UNTOUCHED
    ]
    return overall, pd.DataFrame.from_records(
        by_kind, columns=["texts", "n", "condition", "delta", *INTERVAL]
    )


def _totals(model: LiveModel, of: Sequence[tuple[Valuation, Tensor]], used: Corpus) -> Iterator[Floats]:
    for valuation, lam in of:
        with inject(model, valuation, lam):
            yield text_nll(model, used.texts)[0].numpy()


def emotional_texts(corpus: Corpus) -> dict[str, NDArray[np.bool_]]:
    """Return which texts are emotional and which neutral, boolean (texts,) each.

    Where texts are labelled "neutral", these are neutral and those with another label emotional. Elsewhere the third whose
    valence lies nearest to the middle of its range is neutral, and the third that lies farthest off is emotional. Without
    either there are none.
    """
    if NEUTRAL in corpus.labels:
        labels = corpus.label_matrix().astype(bool)
        neutral = labels[:, corpus.labels.index(NEUTRAL)]
        others = np.delete(labels, corpus.labels.index(NEUTRAL), axis=1).any(1)
        return {"emotional": others & ~neutral, NEUTRAL: neutral & ~others}
    if "valence" not in corpus.dimensions or np.isnan(corpus.values("valence")).all():
        return {}
    low, high = corpus.dimensions["valence"]
    apart = np.abs(corpus.values("valence") - (low + high) / 2)
    near, far = np.nanquantile(apart, [1 / 3, 2 / 3])
    return {"emotional": (apart >= far) & (apart > near), NEUTRAL: apart <= near}


def strength_table(learned: Mapping[str, Sequence[Valuation]]) -> pd.DataFrame:
    """Return `Comparison.strengths`: one row per condition, seed, layer and head."""
    frames = []
    for name, seeds in learned.items():
        for seed, valuation in enumerate(seeds):
            assert valuation.strength is not None, "a learned valuation has its λ"
            lam = valuation.strength.detach().float().cpu()
            lam = lam.expand(len(valuation.layers)) if lam.dim() == 0 else lam
            heads = lam.shape[1] if lam.dim() == 2 else 1
            frames.append(
                pd.DataFrame(
                    {
                        "condition": name,
                        "seed": seed,
                        "layer": np.repeat(valuation.layers, heads),
                        "head": pd.array(
                            list(range(heads)) * len(lam) if lam.dim() == 2 else [pd.NA] * len(lam),
                            dtype="Int64",
                        ),
                        "strength": lam.flatten().numpy(),
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


def attention_table(
    model: LiveModel,
    runs: Runs,
    layers: Sequence[int],
    used: Corpus,
    words: Mapping[str, Collection[str]],
    progress: bool,
) -> pd.DataFrame:
    """Return `Comparison.attention`: one row per condition, layer and quantity."""
    texts = used.texts
    before = attention_patterns(model, texts, layers, words, progress=progress)
    changes: dict[str, list[Floats]] = {name: [] for name in runs}
    for name, of in runs.items():
        for valuation, lam in of:
            with inject(model, valuation, lam):
                changes[name].append(
                    attention_patterns(model, texts, layers, words, progress=progress) - before
                )
    records = []
    for column, quantity in enumerate(quantities(words)):
        known = np.isfinite(before[:, 0, column])
        if not known.any():
            continue  # no such word in any text
        for row, layer in enumerate(layers):
            here = {name: [change[known, row, column] for change in of] for name, of in changes.items()}
            random = [float(np.mean(of)) for name, of in here.items() if is_random(name)]
            chance = (float(np.mean(random)) if random else np.nan, *prediction_interval(random))
            records += [
                (
                    name,
                    layer,
                    quantity,
                    float(before[known, row, column].mean()),
                    *per_token(np.mean(of, axis=0), np.ones(known.sum()), used.groups[known]),
                    *mean_interval([float(change.mean()) for change in of])[1:],
                    *chance,
                )
                for name, of in here.items()
                if not is_random(name)
            ]
    columns = ["condition", "layer", "quantity", UNTOUCHED, "change", *INTERVAL, "seeds_low", "seeds_high"]
    return pd.DataFrame.from_records(records, columns=[*columns, "random", "random_low", "random_high"])


def at_layers(strength: Tensor, learned: Valuation, other: Valuation) -> Tensor:
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
