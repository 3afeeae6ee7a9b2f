"""Emotion vectors: what stories of one emotion have in common that those of others have not, cleaned of neutral text.

The recipe of "Emotion Concepts and their Function in a Large Language Model" (Sofroniew, Kauvar, Saunders, Chen et al. 2026,
arXiv 2604.07729, appendix): a story is the mean of its tokens from the 50th on; an emotion's vector is the mean of its stories
less the mean over emotions; the leading principal components of neutral text, up to half of its variance, are projected out.
Raw and denoised vectors stand side by side, each as a probe set with its scores on topics kept back, and beside them vectors
of the same stories with their labels shuffled, which is what any geometry of the vectors has to differ from.

Where the paper leaves a choice open it is an option here, and what was chosen is in the metadata. Nothing is stored of the
stories but class sums, and the vectors of the sample on which scores are measured.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from emoprobe import drawing
from emoprobe.activations import pooling, stream_residuals
from emoprobe.artefacts import versions
from emoprobe.bars import bars
from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.layers import Layers, resolve_layers
from emoprobe.models.live import LiveModel
from emoprobe.notebook import shown
from emoprobe.probes.closed_form import Components, principal_components, without_components
from emoprobe.probes.estimators import Fit, Floats, Integers, LinearReadOut, Standardised, sharing
from emoprobe.probes.features import few_threads
from emoprobe.probes.fit import probe_layers, tidied
from emoprobe.probes.probe_set import LABELS, ProbeSet
from emoprobe.probes.tasks import plan
from emoprobe.probes.text_moments import text_moments
from emoprobe.probes.tokens import TokenMeans, sampled, token_spread
from emoprobe.probes.validation import shuffle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECIPE = "Sofroniew et al. 2026, arXiv 2604.07729"
START = 50
SCORED = 2000
"""Stories, in whole groups, whose vectors are kept to score on."""
MANY = 0.1
"""Share of stories shorter than `start` above which a warning is due."""
COLUMNS = ("layer", "concept", "metric", "value", "low", "high", "n", "groups")
"""Of a table of scores, where none were measured."""
Centre = Literal["classes", "texts"]


@dataclass(frozen=True, eq=False, repr=False)
class EmotionVectors:
    """Hold emotion vectors before and after neutral text was projected out; `emotion_vectors` makes one."""

    raw: ProbeSet
    denoised: ProbeSet
    frame: pd.DataFrame
    """One row per layer and concept: layer, concept, texts, norm (of the raw vector), relative (norm over the mean norm of the
    residual stream), k (components projected out), kept (norm of the denoised over that of the raw vector, which is also the
    cosine between the two), kept_by_chance (what a random vector would keep, √(1 - k/d_model))."""
    shuffled: dict[str, Tensor]
    """"raw" and "denoised": vectors of shuffled labels, float32 (shuffles, layers, concepts, d_model), of any length."""

    def _repr_html_(self) -> str:
        return shown(repr(self), self.plot(), self.frame)

    def plot(self) -> Figure:
        """Draw the vectors' lengths by layer, and what of them is left when neutral text is projected out, beside chance."""
        by_layer = (
            self.frame.groupby("layer")[["relative", "kept", "kept_by_chance"]]
            .quantile(np.array([0, 0.5, 1]))
            .unstack()
        )
        layers = by_layer.index.to_series()
        with drawing.styled():
            figure, axes = drawing.panels(columns=2)
            labels = {"relative": "norm ÷ residual norm", "kept": "norm kept"}
            for axis, (name, label) in zip(axes[0], labels.items(), strict=True):
                low, median, high = (by_layer[name, share] for share in (0, 0.5, 1))
                drawing.line(axis, layers, median, low, high, label="median and range over emotions")
                axis.set(xlabel="layer", ylabel=label, ylim=(0, None))
                axis.xaxis.get_major_locator().set_params(integer=True)
            drawing.control(axes[0, 1], layers, by_layer["kept_by_chance", 0.5], label="of a random vector")
            drawing.legend_below(figure, axes[0, 1])
        return figure

    def __repr__(self) -> str:
        about, recipe = self.raw.metadata, self.raw.metadata["recipe"]
        layers = ", ".join(map(str, self.raw.layers))
        return (
            f"<EmotionVectors of {self.raw.model}: {len(self.raw)} emotions at layers {layers}; {about['texts']} stories of "
            f"{about['corpus']} from token {about['start']} on ({recipe['shorter']} shorter); {min(recipe['k'])} to "
            f"{max(recipe['k'])} components of {recipe['neutral']} projected out>"
        )


def emotion_vectors(
    model: LiveModel,
    corpus: Corpus,
    neutral: Corpus | Sequence[str],
    *,
    layers: Layers = "all",
    start: int = START,
    centre: Centre = "classes",
    share: float = 0.5,
    components_over: Literal["texts", "tokens"] = "texts",
    norm: Literal["raw", "unit"] = "raw",
    shuffles: int = 20,
    folds: int = 5,
    permutations: int = 10,
    bootstrap: int = 500,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> EmotionVectors:
    """Return a vector for each label of `corpus` at each layer, raw and with neutral text's components projected out.

    A story is the mean of its tokens from the `start`-th on; one with no more tokens than that counts by its last, and how
    many did is kept. From an emotion's mean is taken the mean over emotions (`centre="classes"`) or over stories ("texts"; the
    same where emotions have equally many). `share` is the part of the variance of `neutral`, over its texts or its tokens, that
    the fewest leading components projected out hold. A probe reads v·(x - m) with `norm="raw"`, v being the vector and m that
    mean, and u·(x - m) with "unit", u being v of unit length; geometry wants the lengths, so that it can say what they do.

    Scores are those of nearest vectors on held-out groups (topics, for generated stories): a text is of the emotion whose unit
    vector it lies most along. They are measured on at most 2,000 stories, with shuffled labels, the embedding (not denoised)
    and a bag of words beside them; `folds=0` leaves them out. `shuffles` says how many sets of vectors of shuffled labels are
    kept, labels being handed on from group to group; each takes as much memory as the vectors.

    Raises `InputError` for fewer than two labels with texts, texts with several labels, fewer than two neutral texts, fewer
    groups than folds, and options that are not understood. Warns where more than a tenth of the stories are shorter than
    `start`.
    """
    _check_options(start, centre, components_over, norm, shuffles)
    chosen = tuple(sorted(resolve_layers(layers, model.n_layers)))
    stories, plain = _labelled(corpus), _neutral(neutral)
    shorter = _shorter(model, stories.texts, start)
    if shorter > MANY * len(stories):
        warnings.warn(
            f"{shorter} of {len(stories)} stories have no more than start={start} tokens and count by their last token alone: "
            "give longer ones, or a lower start",
            stacklevel=2,
        )
    captured = tuple(sorted({0, *chosen})) if folds else chosen
    labels = _shuffled_labels(stories, shuffles, seed)
    reading: dict[str, Any] = {"start": start, "batch_size": batch_size, "progress": progress}
    read = _read(model, stories, captured, labels, folds, seed, **reading)
    vectors = read.vectors(centre)
    pool = "tokens" if components_over == "tokens" else "mean"
    components = principal_components(text_moments(model, plain.texts, captured, pool, **reading))
    cleaned, k = without_components(vectors.transpose(0, 1), components, share)
    kept = [captured.index(layer) for layer in chosen]
    found = {"raw": vectors[:, kept], "denoised": cleaned.transpose(0, 1)[:, kept]}
    scores = dict.fromkeys(found, pd.DataFrame({column: [] for column in COLUMNS}))
    if folds:
        options = (bootstrap, permutations, seed)
        scores = _scores(read, components, k, centre, captured, chosen, options, progress)
    sample = sampled(stories.texts, seed)
    recipe = {
        "source": RECIPE,
        "centre": centre,
        "share": share,
        "components_over": components_over,
        "norm": norm,
        "k": k[kept].tolist(),
        "neutral": plain.name,
        "neutral_fingerprint": plain.fingerprint,
        "neutral_texts": len(plain),
        "neutral_shorter": _shorter(model, plain.texts, start),
        "texts": dict(zip(stories.labels, read.counts.int().tolist(), strict=True)),
        "shorter": shorter,
        "shuffles": shuffles,
    }
    metadata = {
        "estimators": {"label": "mean_difference"},
        "pool": "mean",
        "start": start,
        "folds": folds,
        "bootstrap": bootstrap,
        "permutations": {"label": permutations},
        "scored_texts": len(read.scored),
        "spread_texts": len(sample),
        "seed": seed,
        "corpus": corpus.name,
        "corpus_fingerprint": corpus.fingerprint,
        "texts": len(stories),
        "versions": versions(),
    }
    mean, norms = read.tokens.mean[kept], read.tokens.norm[kept]

    def probe_set(version: str) -> ProbeSet:
        own = found[version][0]
        lengths = own.norm(dim=-1)
        unit = own / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)[..., None]
        scale = lengths if norm == "raw" else (lengths > 0).to(lengths)
        return ProbeSet(
            model=model.name,
            n_layers=model.n_layers,
            fingerprint=model.fingerprint(),
            layers=chosen,
            concepts=stories.labels,
            kinds=dict.fromkeys(stories.labels, "label"),
            ranges={},
            directions=unit.float(),
            scale=scale.float(),
            offset=(-scale * torch.einsum("lcd,ld->lc", unit, read.centre(centre)[kept])).float(),
            reference_mean=mean,
            reference_std=token_spread(model, sample, chosen, unit.float(), mean, start, batch_size),
            residual_norms=norms,
            scores=scores[version],
            metadata={**metadata, "recipe": {**recipe, "vectors": version}},
            basis=model.basis,
        )

    raw = probe_set("raw")
    shuffled = {version: both[1:].float() for version, both in found.items()}
    return EmotionVectors(raw, probe_set("denoised"), _frame(raw, found, recipe, norms), shuffled)


# What goes in ----------------------------------------------------------------------------------------------------


def _check_options(start: int, centre: str, components_over: str, norm: str, shuffles: int) -> None:
    for name, given, known in (
        ("centre", centre, ("classes", "texts")),
        ("components_over", components_over, ("texts", "tokens")),
        ("norm", norm, ("raw", "unit")),
    ):
        if given not in known:
            raise InputError(f'{name}="{given}" is not understood: give "{known[0]}" or "{known[1]}"')
    if start < 0 or shuffles < 0:
        raise InputError(f"start={start}, shuffles={shuffles}: neither may be negative")


def _labelled(corpus: Corpus) -> Corpus:
    """Return the texts that carry a label, with the labels that are carried, and without dimensions."""
    carried = corpus.label_matrix()
    if not corpus.single_label or (carried.any(0).sum() < 2):
        raise InputError(
            f"{corpus.name}: emotion vectors need texts of two or more labels, one label a text; it has "
            f"{int(carried.any(0).sum())} labels with texts, and at most {int(carried.sum(1).max(initial=0))} a text"
        )
    rows = np.flatnonzero(carried.any(1))
    columns = corpus.data[rows.tolist()]
    return Corpus.from_columns(
        {name: columns[name] for name in ("text", "labels", "group")},
        name=corpus.name,
        labels=[label for label, column in zip(corpus.labels, carried.T, strict=True) if column.any()],
    )


def _neutral(neutral: Corpus | Sequence[str]) -> Corpus:
    if not isinstance(neutral, Corpus):
        neutral = Corpus.from_columns({"text": list(neutral)}, name="neutral texts")
    if len(neutral) < 2:
        raise InputError(
            f"{neutral.name}: {len(neutral)} text has no components: give two neutral texts or more"
        )
    return neutral


def _shorter(model: LiveModel, texts: Sequence[str], start: int) -> int:
    """Count the texts that have no more than `start` tokens."""
    parts = (list(texts[first : first + SCORED]) for first in range(0, len(texts), SCORED))
    return sum(len(ids) <= start for part in parts for ids in model.tokenizer(part)["input_ids"])


def _shuffled_labels(stories: Corpus, shuffles: int, seed: int) -> Tensor:
    """Return label numbers (1 + shuffles, texts): the first row as they are, each further one handed on between groups."""
    label = stories.label_matrix().argmax(1)
    group: Integers = np.unique(stories.groups, return_inverse=True)[1]
    order = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([label, *(label[shuffle(group, order)] for _ in range(shuffles))]))


# One pass over the stories ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Read:
    """What one pass over the stories leaves: sums over classes, statistics of tokens, and the vectors to score on.

    `sums` is float64 (1 + shuffles, layers, concepts, d_model), `counts` (concepts,), the same for all shuffles; `features`
    float32 (texts, layers, d_model) are the pooled texts of `scored`.
    """

    sums: Tensor
    counts: Tensor
    tokens: TokenMeans
    scored: Corpus | tuple[()]
    features: Tensor
    folds: int

    def centre(self, centre: Centre) -> Tensor:
        """Return what is taken from an emotion's mean, (layers, d_model)."""
        if centre == "texts":
            return self.sums[0].sum(1) / self.counts.sum()
        return (self.sums[0] / self.counts[:, None]).mean(1)

    def vectors(self, centre: Centre) -> Tensor:
        """Return each class's mean less the centre, of all shuffles, shaped as the sums."""
        means = self.sums / self.counts[:, None]
        if centre == "texts":
            return means - self.centre(centre)[:, None]  # all texts together are the same, however labelled
        return means - means.mean(2, keepdim=True)


def _read(
    model: LiveModel,
    stories: Corpus,
    layers: Sequence[int],
    labels: Tensor,
    folds: int,
    seed: int,
    *,
    start: int,
    batch_size: int,
    progress: bool,
) -> _Read:
    sample = _to_score(stories, seed) if folds else np.empty(0, dtype=np.int64)
    place = torch.full((len(stories),), -1)
    place[torch.from_numpy(sample)] = torch.arange(len(sample))
    features = torch.empty(len(sample), len(layers), model.d_model)
    concepts = len(stories.labels)
    sums = torch.zeros(len(labels), concepts, len(layers), model.d_model, dtype=torch.float64)
    tokens = TokenMeans("mean")
    pooled_by = pooling(tokens)
    for part in stream_residuals(model, stories.texts, layers, batch_size=batch_size, progress=progress):
        pooled = pooled_by(part, part.counted(start)).transpose(0, 1).cpu()
        rows = torch.tensor(part.indices)
        for total, label in zip(sums, labels[:, rows], strict=True):
            total.index_add_(0, label, pooled.double())
        mine = place[rows] >= 0
        features[place[rows][mine]] = pooled[mine].float()
    counts = torch.bincount(labels[0], minlength=concepts).double()
    scored = stories.select(indices=sample) if folds else ()
    return _Read(sums.transpose(1, 2).contiguous(), counts, tokens, scored, features, folds)


def _to_score(stories: Corpus, seed: int) -> Integers:
    """Draw whole groups, at random, of no more than SCORED texts together; two groups at the least."""
    member = np.unique(stories.groups, return_inverse=True)[1]
    sizes = np.bincount(member)
    drawn = np.random.default_rng(seed).permutation(len(sizes))
    most = max(2, int(np.searchsorted(sizes[drawn].cumsum(), SCORED, side="right")))
    found: Integers = np.flatnonzero(np.isin(member, drawn[:most]))
    return found


# Scores ----------------------------------------------------------------------------------------------------------


def _scores(
    read: _Read,
    components: Components,
    k: Tensor,
    centre: Centre,
    captured: Sequence[int],
    chosen: Sequence[int],
    options: tuple[int, int, int],
    progress: bool,
) -> dict[str, pd.DataFrame]:
    """Score nearest vectors, raw and denoised, on held-out groups of the sample."""
    assert isinstance(read.scored, Corpus)
    (task,) = plan(read.scored, None, read.folds, options[2])
    # Vectors of projected texts are the projected vectors, so that denoised ones need no fit of their own.
    bases = components.vectors * (torch.arange(components.vectors.shape[1]) < k[:, None])[..., None]
    along = torch.einsum("tld,lkd->tlk", read.features.double(), bases)
    denoised = read.features - torch.einsum("tlk,lkd->tld", along, bases).float()
    both = torch.cat([read.features, denoised], 1)[task.rows]
    texts = [read.scored.texts[row] for row in task.rows]
    numbers = range(2 * len(captured))
    with bars(progress) as bar, few_threads(both):
        scores = probe_layers(task, nearest_vectors(centre), both, texts, numbers, options, bar).scores
    found = {}
    for version, first in (("raw", 0), ("denoised", len(captured))):
        mine = scores[scores.layer.between(first, first + len(captured) - 1)]
        mine = mine.assign(layer=[captured[number - first] for number in mine.layer])
        found[version] = tidied(mine, chosen, [LABELS, *read.scored.labels])
    return found


def nearest_vectors(centre: Centre = "classes") -> Fit:
    """Return a fit whose read-out is highest for the emotion vector that a text's cosine, about the centre, is highest with.

    All vectors have unit length, and so the highest cosine is the highest u·(x - m). An emotion without a text is never the
    highest.
    """

    @sharing
    def fit(scaled: Standardised, carried: Floats, group: Integers) -> LinearReadOut:
        features = scaled.features
        counts = carried.sum(0)
        there = counts > 0
        means = carried.T @ features / np.maximum(counts, 1)[:, None]
        middle = means[there].mean(0) if centre == "classes" else features.mean(0)
        vectors = np.where(there[:, None], means - middle, 0.0)
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1), np.finfo(float).tiny)[:, None]
        return LinearReadOut(unit, np.where(there, -unit @ middle, -np.inf))

    return fit


def _frame(raw: ProbeSet, found: dict[str, Tensor], recipe: dict[str, Any], norms: Tensor) -> pd.DataFrame:
    lengths, left = (found[version][0].norm(dim=-1) for version in ("raw", "denoised"))

    def rows() -> Iterator[dict[str, object]]:
        for row, layer in enumerate(raw.layers):
            k = recipe["k"][row]
            for column, concept in enumerate(raw.concepts):
                length = float(lengths[row, column])
                yield {
                    "layer": layer,
                    "concept": concept,
                    "texts": int(recipe["texts"][concept]),
                    "norm": length,
                    "relative": length / float(norms[row]),
                    "k": k,
                    "kept": float(left[row, column]) / length if length else np.nan,
                    "kept_by_chance": float(np.sqrt(1 - k / raw.d_model)),
                }

    return pd.DataFrame(rows())
