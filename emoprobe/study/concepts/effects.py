"""Directions that emotions leave in the mean stream over some words, topic by topic, and whether they hold from topic to topic.

A direction that was fitted is there whatever it was fitted to; what shows that it means something is that it comes out alike
on topics that had no part in it. So directions are estimated for each topic by itself, and a cosine is always that of one
topic's direction with the mean direction of all the other topics. Two families of directions are compared in the same way:
one on a topic, the other on the rest. The null hands the emotions of each topic on among themselves.

Everything is computed from products of directions, so that shuffling costs the same in a model of any width. Nothing here
knows dialogues.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from emoprobe.activations import stream_residuals
from emoprobe.errors import InputError
from emoprobe.intervals import exceedance
from emoprobe.interventions import Span, overlapping
from emoprobe.models.live import LiveModel

Floats = NDArray[np.float64]
SHUFFLES = 199
MOST_HALVINGS = 10
FLOOR = 1e-5
"""Share of the stream's norm below which a direction is rounding, and none."""


def span_means(
    model: LiveModel,
    texts: Sequence[str],
    places: Sequence[Sequence[Sequence[Span]]],
    layers: Sequence[int],
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> Iterator[tuple[int, Tensor]]:
    """Yield a text's number and its mean streams over each of its places, float64 (places, layers, d_model), on the CPU.

    A place is a list of spans of characters; its tokens are all that overlap it, but for the text's first one, which in most
    models is an attention sink. An empty place gives NaN. Raises `InputError` for a tokenizer that does not say where tokens
    lie, and a place that they do not reach.
    """
    for part in stream_residuals(model, texts, layers, batch_size=batch_size, progress=progress):
        lie = model.token_spans(part.batch)
        counted = part.counted(1).cpu()
        for row, index in enumerate(part.indices):
            means = torch.full(
                (len(places[index]), len(layers), model.d_model), torch.nan, dtype=torch.float64
            )
            for number, spans in enumerate(places[index]):
                if spans:
                    held = _held(lie[row], counted[row], spans, texts[index])
                    means[number] = torch.stack([s[row, held].double().mean(0).cpu() for s in part.by_layer])
            yield index, means


def _held(tokens: Sequence[Span], counted: Tensor, spans: Sequence[Span], text: str) -> list[int]:
    chosen = [position for position in overlapping(tokens, spans) if counted[position]]
    if not chosen or text[max(end for _, end in tokens) : spans[-1][1]].strip():
        raise InputError(
            f"the tokens of {text[:60]!r} … do not reach all the words asked for: too long for the model"
        )
    return chosen


# Holding from topic to topic -----------------------------------------------------------------------------------------


def products(directions: Floats) -> Floats:
    """Return all dot products of directions (families, topics, emotions, d): (families, topics, emotions, and these again)."""
    flat = directions.reshape(-1, directions.shape[-1])
    dots: Floats = (flat @ flat.T).reshape(directions.shape[:3] * 2)
    return dots


def same_emotion(dots: Floats, order: NDArray[np.int64] | None = None) -> Floats:
    """Return the products of directions of one emotion, (families, topics, families, topics, emotions), out of `products`.

    `order` (topics, emotions) says whose direction stands for an emotion on each topic, the same for all families.
    """
    families, topics, count = dots.shape[:3]
    order = np.tile(np.arange(count), (topics, 1)) if order is None else order
    f, t, g, s, e = np.ix_(range(families), range(topics), range(families), range(topics), range(count))
    same: Floats = dots[f, t, order[t, e], g, s, order[s, e]]
    return same


def held_out_cosines(same: Floats) -> Floats:
    """Return the cosine of one family's direction on a topic with the other's on the rest: (families, families, topics).

    `same` comes from `same_emotion`. Means over emotions, and over which of the two families is on the one topic. NaN where
    there is no direction.
    """
    topics = same.shape[1]
    others = 1 - np.eye(topics)
    shared = np.einsum("ftgse,ts->fgte", same, others / (topics - 1))
    alone = np.einsum("ftfte->fte", same)
    rest = np.einsum("fsfre,ts,tr->fte", same, others, others, optimize=True) / (topics - 1) ** 2
    lengths = np.sqrt(np.maximum(alone, 0))[:, None] * np.sqrt(np.maximum(rest, 0))[None]
    cosines = np.divide(shared, lengths, out=np.full_like(shared, np.nan), where=lengths > 0)
    both: Floats = ((cosines + cosines.transpose(1, 0, 2, 3)) / 2).mean(-1)
    return both


def pooled_cosines(same: Floats) -> Floats:
    """Return the cosines of directions that are means over all topics, (families, families): those that papers report."""
    sums = same.sum((1, 3))  # (families, families, emotions)
    lengths = np.sqrt(np.maximum(np.einsum("ffe->fe", sums), 0))
    products_of = lengths[:, None] * lengths[None]
    cosines = np.divide(sums, products_of, out=np.full_like(sums, np.nan), where=products_of > 0)
    mean: Floats = cosines.mean(-1)
    return mean


def reliability(same: Floats) -> Floats:
    """Return which share of the squared norm of directions that are means over topics is no noise, (families,).

    What directions of different topics have in common has no noise in it. A cosine with such a mean direction is lowered by
    the square root of its reliability. NaN where nothing is in common.
    """
    topics = same.shape[1]
    within = np.einsum("ftfse->fts", same)
    common = (within.sum((1, 2)) - np.trace(within, axis1=1, axis2=2)) / (topics * (topics - 1))
    whole = within.mean((1, 2))
    share: Floats = np.divide(common, whole, out=np.full_like(whole, np.nan), where=common > 0)
    return share


def left_out(same: Floats) -> Floats:
    """Return the mean held-out cosines with each topic left out altogether, (topics, families, families)."""
    return np.stack([held_out_cosines(part).mean(-1) for part in each_left_out(same)])


def each_left_out(same: Floats) -> Iterator[Floats]:
    """Yield `same_emotion`'s products with each topic left out."""
    topics = same.shape[1]
    for topic in range(topics):
        rows = np.delete(np.arange(topics), topic)
        yield same[:, rows][:, :, :, rows]


def shuffled(dots: Floats, shuffles: int = SHUFFLES, seed: int = 0) -> Floats:
    """Return the mean held-out cosines with the emotions of each topic shuffled, (shuffles, families, families)."""
    generator = np.random.default_rng(seed)
    topics, count = dots.shape[1:3]
    plain = np.tile(np.arange(count), (topics, 1))
    orders = (generator.permuted(plain, axis=1) for _ in range(shuffles))
    return np.stack([held_out_cosines(same_emotion(dots, order)).mean(-1) for order in orders])


def p_apart(value: Floats, null: Floats) -> Floats:
    """Return how often a null (shuffles, …) lies as far from its mean as a value (…), on either side."""
    centre = null.mean(0)
    p: Floats = exceedance(np.abs(value - centre), np.abs(null - centre))
    return p


# Beside directions that were found elsewhere -------------------------------------------------------------------------


def with_named(
    directions: Floats, named: Floats, shuffles: int = SHUFFLES, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """Compare families (families, topics, emotions, d) with directions of the same emotions found elsewhere, (emotions, d).

    Returns the mean cosine of a family's mean over topics with its namesake (families,), the same with names handed on at
    random (shuffles, families), and without each topic (topics, families); NaN where there is no direction. The directions
    found elsewhere are centred over the emotions, as families are.
    """
    theirs = unit(named - named.mean(0))
    generator = np.random.default_rng(seed)
    count = len(theirs)

    def cosines(part: Floats) -> Floats:
        means = unit(part.mean(1))
        means[~means.any(-1)] = np.nan
        return means @ theirs.T

    found = cosines(directions)
    null = np.stack(
        [found[:, np.arange(count), generator.permutation(count)].mean(-1) for _ in range(shuffles)]
    )
    without = np.stack(
        [_traces(cosines(np.delete(directions, topic, 1))) for topic in range(directions.shape[1])]
    )
    return _traces(found), null, without


def _traces(cosines: Floats) -> Floats:
    mean: Floats = np.trace(cosines, axis1=1, axis2=2) / cosines.shape[-1]
    return mean


def unit(vectors: Floats) -> Floats:
    """Return vectors (…, d) at length 1; what is zero stays zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    units: Floats = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return units


def row_of(table: pd.DataFrame, name: Hashable) -> pd.Series[Any]:
    """Return the one row of a table that has this name in its index."""
    found = table.loc[name]  # type: ignore[call-overload]
    assert isinstance(found, pd.Series), f"{name} names one row"
    return found


# The same geometry ---------------------------------------------------------------------------------------------------


def rdm_correlations(dots: Floats, shuffles: int = SHUFFLES, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Compare how emotions lie to each other in two families: Spearman's ρ (families, families), its null, and without topics.

    The cosines between emotions (all pairs) in one family on half of the topics are set against those in the other family on
    the other half, over at most ten halvings. The null (shuffles, families, families) renames the emotions of one side
    (Mantel's test); the last, (topics, families, families), leaves each topic out.
    """
    generator = np.random.default_rng(seed)
    topics, count = dots.shape[1:3]
    plain = [np.arange(count)]
    found = _halved(dots, [*plain, *(generator.permutation(count) for _ in range(shuffles))])
    kept = [np.delete(np.arange(topics), topic) for topic in range(topics)]
    without = np.stack([_halved(dots[:, rows][:, :, :, :, rows], plain)[0] for rows in kept])
    return found[0], found[1:], without


def _halved(dots: Floats, orders: Sequence[NDArray[np.int64]]) -> Floats:
    """Return the mean rank correlation over halvings, with one side renamed by each order: (orders, families, families)."""
    topics, count = dots.shape[1:3]
    pairs = (slice(None), *np.triu_indices(count, 1))
    halvings = list(combinations(range(topics), topics // 2))
    halvings = halvings[:: -(-len(halvings) // MOST_HALVINGS)]
    total: Floats = np.zeros((len(orders), len(dots), len(dots)))
    for half in halvings:
        rest = [topic for topic in range(topics) if topic not in half]
        left, right = _ranked(dots, list(half)), _ranked(dots, rest)
        renamed = np.stack([left[:, order][:, :, order][pairs] for order in orders])
        total += np.einsum("ofp,gp->ofg", _standardised(renamed), _standardised(right[pairs]))
    mean = total / len(halvings)
    result: Floats = (mean + mean.transpose(0, 2, 1)) / 2
    return result


def _ranked(dots: Floats, rows: Sequence[int]) -> Floats:
    """Return the ranks of the cosines between emotions in each family, over some topics: (families, emotions, emotions)."""
    count = dots.shape[2]
    pairs = np.triu_indices(count, 1)
    ranks = np.zeros((len(dots), count, count))
    for family, found in enumerate(ranks):
        between = dots[family, :, :, family][np.ix_(rows, range(count), rows, range(count))].sum((0, 2))
        lengths = np.sqrt(np.maximum(between.diagonal(), 0))
        products_of = np.outer(lengths, lengths)
        cosines = np.divide(between, products_of, out=np.full_like(between, np.nan), where=products_of > 0)
        found[pairs] = rankdata(cosines[pairs], nan_policy="propagate")
        found += found.T
    return ranks


def _standardised(values: Floats) -> Floats:
    centred = values - values.mean(-1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=-1, keepdims=True)
    result: Floats = np.divide(centred, lengths, out=np.full_like(centred, np.nan), where=lengths > 0)
    return result
