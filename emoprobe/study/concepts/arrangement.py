"""How emotion vectors lie to each other: axes of valence and arousal, the circumplex, clusters, and whether layers agree.

The measures and their controls are those of `emoprobe.probes`; here each becomes an experiment with its verdict and what was
published of it. All are of emotion vectors, which bring vectors of shuffled labels along: any vectors have leading components
and clusters, and lie alike from layer to layer. What would have been found is shown by adding valence and arousal to the very
same vectors.

Source: Sofroniew et al. 2026 (arXiv 2604.07729), figures 5 to 9, table 12.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from emoprobe.corpora.emotion_words import emotion_clusters
from emoprobe.errors import InputError
from emoprobe.intervals import exceedance
from emoprobe.probes.axes import leading_axes
from emoprobe.probes.circumplex import circumplex as in_the_plane
from emoprobe.probes.clusters import clusters as by_k_means
from emoprobe.probes.emotion_vector_recipe import EmotionVectors
from emoprobe.probes.geometry import Norms, components, ratings_of
from emoprobe.probes.probe_set import ProbeSet
from emoprobe.probes.similarity import layer_similarity
from emoprobe.study.concepts.places import chosen_layer
from emoprobe.study.concepts.tuning_prompts import WORDS
from emoprobe.study.result import Result
from emoprobe.study.wording import listed, number, p_value, ranged, span

VERSIONS = ("denoised", "raw")
"""Emotion vectors with and without the components of neutral text projected out; what is found is stated of the first."""
PLACED = ("valence", "arousal")
PLANTED = (0.25, 0.5, 1.0)
"""Strengths at which valence and arousal are added to the vectors, to see whether they would be found."""
SURE = 0.05
MODEL = "Claude Sonnet 4.5"
PUBLISHED_AXES = (
    f"Sofroniew et al. 2026 (arXiv 2604.07729, figures 7 and 8; {MODEL}): 26 % and 15 % of the variance on the first "
    "two of 171 words' components; r of the first with people's valence 0.81, of the second with arousal 0.66 (45 words), no "
    "interval, no null."
)
PUBLISHED_PLANE = (
    f"Sofroniew et al. 2026 (arXiv 2604.07729, figure 7; {MODEL}): 171 words in the plane of the first two components, likened "
    "to the affective circumplex; how well it fits is not said."
)
PUBLISHED_CLUSTERS = (
    f"Sofroniew et al. 2026 (arXiv 2604.07729, figures 5 and 6, table 12; {MODEL}): k-means of 171 vectors, ten clusters that "
    "are called interpretable; how sure they are is not said."
)
PUBLISHED_LAYERS = (
    f"Sofroniew et al. 2026 (arXiv 2604.07729, figure 9; {MODEL}): how vectors lie is stable from early-middle to late layers, "
    "cosine of the cosines about 0.8 to 1.0; no null."
)


def axes(vectors: EmotionVectors, norms: Norms, *, seed: int = 0) -> Result:
    """Look for human ratings of the emotions on leading components of their vectors, at all layers.

    `norms` are as in `emoprobe.probes.geometry.geometry`: emotion -> rating -> number. The p values allow for the search
    through components and layers. Raises `InputError` for fewer than three emotions with a rating.
    """
    found = {
        version: leading_axes(getattr(vectors, version), norms, _shuffled(vectors, version), seed=seed)
        for version in VERSIONS
    }
    main = found[VERSIONS[0]]
    best = {version: _best(one.frame) for version, one in found.items()}
    first = best[VERSIONS[0]]
    held = _shown(first) & ~(first.layer0 >= first.low)
    at = main.shares.set_index("layer").loc[chosen_layer(vectors.denoised)]
    return Result(
        name="axes",
        title="Valence and arousal as axes",
        question="Do people's valence and arousal lie on leading components of the emotion vectors, as the model's own doing?",
        method=(
            f"{len(vectors.denoised)} vectors, {_made(vectors)}; for each rating the component, of the first five of unit "
            f"vectors, that goes with it most, at each of {len(main.shares)} layers. |r| is Pearson's, its "
            f"interval over emotions; p from permuted emotions allows for the search. {_sets(vectors)}."
        ),
        table=pd.concat(
            [one.frame.assign(vectors=version) for version, one in found.items()], ignore_index=True
        ),
        finding="; ".join(
            f"{row.norm} |r| {span(row.r, row.low, row.high)} on {row.component}, layer {row.layer}"
            for _, row in first.iterrows()
        )
        + f"; first components {at.PC1:.0%}, {at.PC2:.0%} of the variance at layer {at.name}",
        controls="; ".join(
            f"{row.norm}: search {p_value(row.p_layers)}, shuffled labels {p_value(row.p_shuffled_layers)}, embedding "
            f"{number(row.layer0)}, raw vectors {number(raw.r)}"
            for (_, row), (_, raw) in zip(first.iterrows(), best["raw"].iterrows(), strict=True)
        ),
        verdict=f"{_lead(first)} {_printed(main.report())} {_would_have_been_found(vectors.denoised, norms, main.frame, seed)}",
        sign=int(bool(held.all())),
        parts={str(norm): bool(one) for norm, one in zip(first.norm, held, strict=True)},
        figure=main.plot(),
        alt="For each rating |r| of its best component by layer, with intervals, the embedding and shuffled labels.",
        published=PUBLISHED_AXES,
    )


def circumplex(
    vectors: EmotionVectors, norms: Norms, *, layer: int | float | None = None, seed: int = 0
) -> Result:
    """Turn the plane of the first two components to people's valence and arousal, and say how well it fits.

    `layer` is by default the one nearest to two thirds of the depth. Raises `InputError` for fewer than three emotions with
    both ratings.
    """
    probes = vectors.denoised
    geometry = probes.geometry(chosen_layer(probes, layer))
    found = in_the_plane(geometry, norms, seed=seed)
    row = probes.layer_index(geometry.layer)
    chance = []
    for drawn in vectors.shuffled[VERSIONS[0]][:, row].double().numpy():
        points, shares = components(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))
        other = replace(
            geometry,
            coordinates=pd.DataFrame(points, geometry.coordinates.index, geometry.coordinates.columns),
            shares=pd.Series(shares, geometry.shares.index),
        )
        chance.append(in_the_plane(other, norms, permutations=0).fit)
    p = float(exceedance(found.fit, np.array(chance))) if chance else 1.0
    shown = found.p < SURE and p < SURE
    value = (
        f"{number(found.fit)} ({p_value(found.p)} with ratings permuted, {p_value(p)} among shuffled labels)"
    )
    return Result(
        name="circumplex",
        title="The circumplex",
        question="Do emotions lie in the plane of the first two components as people place them by valence and arousal?",
        method=(
            f"The plane at layer {geometry.layer} of {probes.n_layers}, {_made(vectors)}, turned and mirrored to ratings by "
            f"Procrustes' method. The fit is the share of the ratings' variance, 0 to 1. {_sets(vectors)}."
        ),
        table=found.frame.assign(layer=geometry.layer, fit=found.fit, p=found.p, p_shuffled=p),
        finding=(
            f"fit {value}; {found.share:.0%} of the variance in the plane; r with valence {number(found.r[0])}, with arousal "
            f"{number(found.r[1])} once turned"
        ),
        controls=f"fit of shuffled labels {ranged(chance)}"
        if chance
        else "no vectors of shuffled labels were made",
        verdict=(
            f"Emotions lie in this plane as people place them, fit {value}."
            if shown
            else f"It is not shown that emotions lie in this plane as people place them, fit {value}; of shuffled labels 95 % "
            f"stay below {number(float(np.quantile(chance or [np.nan], 0.95)))}."
        ),
        figure=found.plot(),
        sign=int(shown),
        alt="Emotions in the plane of the first two components, turned to valence and arousal.",
        published=PUBLISHED_PLANE,
    )


def clusters(
    vectors: EmotionVectors,
    given: Mapping[str, str] | None = None,
    *,
    k: int | None = None,
    layer: int | float | None = None,
    seed: int = 0,
) -> Result:
    """Cluster emotion vectors by k-means and say how far the clusters are those that are `given`: emotion -> its cluster.

    By default the ten published clusters, by the published name of each emotion, and a `k` of ten at most. `layer` is by
    default the one nearest to two thirds of the depth. Raises `InputError` for a `k` that is not from 2 to the number of
    emotions.
    """
    probes = vectors.denoised
    if given is None:
        published = {word: name for name, words in emotion_clusters().items() for word in words}
        called = {name: WORDS.get(name, name) for name in probes.concepts}
        given = {name: published[word] for name, word in called.items() if word in published}
    read = chosen_layer(probes, layer)
    found = by_k_means(probes, read, given, k=k, shuffled=_shuffled(vectors, VERSIONS[0]), seed=seed)
    geometry = probes.geometry(read)
    groups = [rows.concept.tolist() for _, rows in found.frame.groupby("cluster")]
    together = "; ".join(listed(group) for group in groups if len(group) > 1)
    compared = bool(np.isfinite(found.agreement))
    lead = f"The published clusters are {'found' if found.more_than_chance else 'not shown to be found'} among these vectors."
    return Result(
        name="clusters",
        title="Clusters of emotions",
        question="Do emotion vectors fall into the clusters that were published for another model's?",
        method=(
            f"K-means, k = {found.k}, of {len(probes)} unit vectors at layer {read} of {probes.n_layers}, {_made(vectors)}. "
            "Adjusted Rand index with the published clusters, 0 where they have nothing to do with each other; p from permuted "
            f"clusters. {_sets(vectors)}."
        ),
        table=found.frame.assign(layer=read, agreement=found.agreement, p=found.p),
        finding=(
            f"adjusted Rand index {number(found.agreement)}" + (f" ({p_value(found.p)})" if compared else "")
        ),
        controls=(
            f"random directions {ranged(found.random)}, shuffled labels "
            + (ranged(found.shuffled) if found.shuffled else "not made")
            + f", embedding {number(found.embedding)}"
            if compared
            else "nothing to compare with"
        ),
        verdict=f"{lead} {_printed(found.report())} Together are {together}.",
        figure=geometry.plot(),
        sign=int(found.more_than_chance and not found.embedding >= found.agreement),
        alt=f"Cosines of the emotion vectors at layer {read}, like beside like; orange above zero, blue below.",
        published=PUBLISHED_CLUSTERS,
    )


def layers(vectors: EmotionVectors, *, seed: int = 0) -> Result:
    """Compare how emotions lie to each other at each two layers, by representational similarity analysis.

    Raises `InputError` for fewer than four emotions.
    """
    found = layer_similarity(vectors.denoised, shuffled=_shuffled(vectors, VERSIONS[0]), seed=seed)
    rows = found.frame[found.frame.layer_a < found.frame.layer_b]
    third = vectors.denoised.n_layers / 3
    late = rows[(rows.layer_a >= third) & rows.value.notna()].groupby("measure", sort=False)
    if not late.ngroups:
        raise InputError("fewer than two layers above the first third have vectors: make them at more layers")
    low, high, chance = late.value.min(), late.value.max(), late.shuffled.mean()
    above = {str(name): int((part.low > part.shuffled_high).sum()) for name, part in late}
    pairs = len(late.get_group("rsa"))
    shared = "any texts' vectors are as alike, and it says nothing of emotions"
    return Result(
        name="layers",
        title="The same arrangement at all layers",
        question="Do emotions lie to each other alike from layer to layer, by more than the stream's being carried on?",
        method=(
            f"Cosines of all pairs of {len(vectors.denoised)} vectors, {_made(vectors)}, at each two layers: Spearman's ρ, the "
            f"cosine that was published, and unbiased centred kernel alignment. Intervals by jackknife over emotions. Stated "
            f"for the {pairs} pairs of layers above the first third. {_sets(vectors)}."
        ),
        table=found.frame,
        finding=(
            f"ρ {number(low['rsa'])} to {number(high['rsa'])}, cosine {number(low['rsa_cosine'])} to "
            f"{number(high['rsa_cosine'])}, alignment {number(low['cka'])} to {number(high['cka'])}"
        ),
        controls=(
            f"shuffled labels on average ρ {number(chance['rsa'])}, cosine {number(chance['rsa_cosine'])}, alignment "
            f"{number(chance['cka'])}"
        ),
        verdict=(
            f"How emotions lie goes on from layer to layer, ρ from {number(low['rsa'])} on; "
            + (
                f"more than in all vectors of shuffled labels in {above['rsa']} of {pairs} pairs of layers."
                + (
                    f" In the other {pairs - above['rsa']} it is not shown to be."
                    if above["rsa"] < pairs
                    else ""
                )
                if above["rsa"]
                else f"in none of {pairs} pairs of layers shown to be more than in all vectors of shuffled labels: {shared}."
            )
        ),
        figure=found.plot(),
        sign=int(above["rsa"] == pairs),
        alt="Spearman's ρ of the cosines of all pairs of emotions, layers by layers.",
        published=PUBLISHED_LAYERS,
    )


# What would have been found ------------------------------------------------------------------------------------------


def planted(probes: ProbeSet, norms: Norms, strength: float, seed: int = 0) -> ProbeSet:
    """Return the same vectors with each rating added along a random direction of its own.

    Over emotions their standard deviation along each is `strength` times the vectors' mean length. An emotion without a rating
    counts as the mean one.
    """
    ratings = ratings_of(norms, pd.Index(probes.concepts))
    numbers = torch.tensor(((ratings - ratings.mean()) / ratings.std()).fillna(0.0).to_numpy())
    noise = torch.randn(
        probes.d_model, numbers.shape[1], generator=torch.Generator().manual_seed(seed)
    ).double()
    vectors = (probes.directions * probes.scale[..., None]).double()
    plane = numbers @ torch.linalg.qr(noise)[0].T
    vectors = vectors + strength * vectors.norm(dim=-1).mean(-1)[:, None, None] * plane
    lengths = vectors.norm(dim=-1)
    return replace(probes, directions=(vectors / lengths[..., None]).float(), scale=lengths.float())


def _would_have_been_found(probes: ProbeSet, norms: Norms, own: pd.DataFrame, seed: int) -> str:
    """Say at which strength each rating would have been found, above all vectors of shuffled labels in `own` too."""
    highest = own.groupby("norm", sort=False).shuffled_high.max()
    least: dict[str, float] = {}
    for strength in PLANTED[::-1]:
        best = _best(leading_axes(planted(probes, norms, strength, seed), norms, seed=seed).frame)
        found = (best.p_layers < SURE) & (best.r > best.norm.map(highest))
        least |= dict.fromkeys(best.norm[found], strength)
    said = [
        f"{norm} added at {least[norm]:g} of the vectors' length"
        for norm in ratings_of(norms, pd.Index(probes.concepts))
        if norm in least
    ]
    return (
        f"{' and '.join(said)} would have been found.".capitalize()
        if said
        else "Even what is added would not be found."
    )


def _lead(best: pd.DataFrame) -> str:
    """Say in one sentence which ratings lie on a leading component, allowing for the search, and beyond shuffled labels."""
    shown = best.norm[_shown(best)].tolist()
    if not shown:
        return f"Neither {' nor '.join(best.norm)} is shown to lie on a leading component."
    missing = [norm for norm in best.norm if norm not in shown]
    rest = f"; {listed(missing)} not shown to" if missing else ""
    return f"On a leading component {'lies' if len(shown) == 1 else 'lie'} {listed(shown)}{rest}."


def _shown(best: pd.DataFrame) -> pd.Series[bool]:
    return (best.p_layers < SURE) & (best.p_shuffled_layers < SURE)


def _best(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the row of each rating's best layer, in the order of the ratings."""
    return frame.loc[frame.groupby("norm", sort=False).r.idxmax()]


def _shuffled(vectors: EmotionVectors, version: str) -> torch.Tensor | None:
    drawn = vectors.shuffled[version]
    return drawn if len(drawn) else None


def _printed(report: str) -> str:
    """Return a report with true minuses."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", report)


def _made(vectors: EmotionVectors) -> str:
    about = vectors.raw.metadata
    return f"denoised, from token {about['start']} of {about['texts']} texts of {about['corpus']} on"


def _sets(vectors: EmotionVectors) -> str:
    return f"{len(vectors.shuffled['raw'])} sets of vectors of shuffled labels"
