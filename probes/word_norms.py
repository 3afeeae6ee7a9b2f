"""Do probes of valence, arousal and dominance say of single words what people say of them?

Human word norms are a check from outside: they were asked for word by word, of other people, about no text that a probe was
fitted on. Each word is read in several plain sentences that say nothing of it, as the mean over its tokens, and correlated
with its rating over words. Beside every r stand random directions of the same length, the embedding, permuted ratings, and the
r that is left when the word's length (and its frequency, where the user brings it) are held constant, since pleasant words are
short and common (Warriner, Kuperman & Brysbaert 2013).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from emoprobe import drawing
from emoprobe.activations import mean_over, stream_residuals
from emoprobe.controls import turned_at_random
from emoprobe.corpora.emotion_words import NORMS, load_word_norms
from emoprobe.errors import InputError
from emoprobe.intervals import CORRELATION, exceedance, prediction_interval
from emoprobe.interventions import overlapping
from emoprobe.models.live import LiveModel
from emoprobe.notebook import shown
from emoprobe.probes.estimators import Floats
from emoprobe.probes.geometry import permuted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from emoprobe.probes.probe_set import ProbeSet

CARRIERS = (
    "The next word on the list was {word}, and then came another.",
    "Somebody had written {word} at the top of the page.",
    "They were asked to copy {word} with a pencil.",
    "In the third line it says {word} in small letters.",
)
"""Sentences that words are read in, which go with any word and any feeling."""
LIMIT = 2000
RANDOM = 20
PERMUTATIONS = 1000
RESAMPLES = 1000
LEAST = 20
"""Words that a correlation is worth making of."""


@dataclass(frozen=True, eq=False, repr=False)
class WordNorms:
    """Hold how probes' read-outs of single words go with human ratings; `against_word_norms` makes one."""

    frame: pd.DataFrame
    """One row per layer and concept: layer, concept, norm, r (Pearson, over words), low, high (95 % interval over resampled
    words), p (of an |r| as large when ratings are permuted over words), p_layers (of one as large at any layer), layer0 (r at
    the embedding), gain_low, gain_high (95 % interval of |r| less the embedding's, on the same resamples), random_low,
    random_high (where r of one more random direction lies, 95 %), held, held_low, held_high (r with the covariates held
    constant, and its interval), n."""
    words: pd.DataFrame
    """One row per word (the index): its ratings, characters, tokens (mean number over sentences) and other covariates."""
    read: Floats
    """What was read: (words, layers, concepts), u·x in the mean over the word's tokens and over sentences."""

    def __repr__(self) -> str:
        return f"<WordNorms of {len(self.words)} words: {self.report()}>"

    def _repr_html_(self) -> str:
        return shown(self.report(), self.plot(), self.frame)

    def report(self) -> str:
        """Say for each concept how well its best layer goes with people's ratings, beside the controls."""
        return " ".join(_sentence(rows) for _, rows in self.frame.groupby("concept", sort=False))

    def plot(self) -> Figure:
        """Draw r by layer for each concept, with its interval, random directions and the embedding."""
        concepts = list(dict.fromkeys(self.frame.concept))
        with drawing.styled():
            figure, grid = drawing.panels(1, len(concepts), sharey=True)
            for axis, concept in zip(grid[0], concepts, strict=True):
                rows = self.frame[self.frame.concept == concept]
                drawing.control(
                    axis,
                    rows.layer,
                    low=rows.random_low,
                    high=rows.random_high,
                    label="one more random direction, 95 %",
                )
                drawing.control(axis, rows.layer, rows.layer0, label="embedding")
                drawing.control(axis, rows.layer, rows.held, label="length held constant", style=":")
                drawing.line(axis, rows.layer, rows.r, rows.low, rows.high, label="read-out, 95 % interval")
                axis.set_title(f"{concept} and human {rows.norm.iloc[0]}", parse_math=False)
                axis.set(xlabel="layer")
                axis.xaxis.get_major_locator().set_params(integer=True)
            grid[0, 0].set_ylabel("Pearson r over words")
            drawing.legend_below(figure, grid[0, 0], 2)
        return figure


def against_word_norms(
    model: LiveModel,
    probes: ProbeSet,
    norms: str | os.PathLike[str] | pd.DataFrame,
    *,
    concepts: Mapping[str, str] | None = None,
    covariates: pd.DataFrame | None = None,
    carriers: Sequence[str] = CARRIERS,
    limit: int | None = LIMIT,
    permutations: int = PERMUTATIONS,
    random: int = RANDOM,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> WordNorms:
    """Correlate read-outs of single words with human ratings of them, at every layer of the probes.

    `norms` is what `emoprobe.corpora.emotion_words.load_word_norms` takes. `concepts` says which concept goes with which norm,
    {"joy": "valence"}; by default valence, arousal and dominance go with themselves. `covariates` may give words (the index)
    further numbers to hold constant beside their characters and tokens, such as log frequency; words without them are left out.
    At most `limit` words are drawn. The embedding is a control where the probes have layer 0. Words are taken for independent,
    so that intervals are too narrow where many are of one stem.

    Raises `InputError` for concepts or norms that are not there, fewer than 20 words, a sentence that does not hold {word}
    once, and a tokenizer that does not say where its tokens lie.
    """
    probes.check_model(model)
    for carrier in carriers:
        if carrier.count("{word}") != 1:
            raise InputError(f"{carrier!r} does not hold {{word}} once: words could not be put into it")
    if not carriers or random < 2:
        raise InputError("give one sentence at the least, and random=2 or more, so that they have a range")
    ratings = load_word_norms(norms)
    pairs = _pairs(probes, ratings, concepts)
    table = _words(ratings[list(dict.fromkeys(pairs.values()))], covariates, limit, seed)
    columns = [probes.concept_index(name) for name in pairs]
    own = probes.directions[:, columns]
    stacked = torch.cat([own, *(turned_at_random(own, seed * random + draw) for draw in range(random))], 1)
    read, tokens = _read(model, probes.layers, stacked, list(table.index), carriers, batch_size, progress)
    table = table.assign(characters=[float(len(word)) for word in table.index], tokens=tokens)
    held = table[[name for name in table if name not in ratings]].to_numpy(float)
    frames, counts = [], _drawn(len(table), seed)
    for place, (concept, norm) in enumerate(pairs.items()):
        along = read[:, :, place]
        chance = read[:, :, place + len(pairs) :: len(pairs)]  # (words, layers, random)
        values = table[norm].to_numpy(float)
        frames.append(
            _correlated(probes, along, chance, values, held, permutations, counts, seed).assign(
                concept=concept, norm=norm
            )
        )
    frame = pd.concat(frames, ignore_index=True)
    first = ["layer", "concept", "norm"]
    frame = frame[first + [name for name in frame if name not in first]]
    return WordNorms(frame, table, read[:, :, : len(pairs)])


def _pairs(probes: ProbeSet, ratings: pd.DataFrame, concepts: Mapping[str, str] | None) -> dict[str, str]:
    if concepts is None:
        concepts = {name: name for name in NORMS if name in probes and name in ratings}
        if not concepts:
            raise InputError(
                f"no probe is of a norm ({', '.join(map(str, ratings))}): say which goes with which, as in "
                "concepts={'joy': 'valence'}"
            )
    for concept, norm in concepts.items():
        probes.concept_index(concept)
        if norm not in ratings:
            raise InputError(f"no norm {norm!r}: there are {', '.join(map(str, ratings))}")
    return dict(concepts)


def _words(
    ratings: pd.DataFrame, covariates: pd.DataFrame | None, limit: int | None, seed: int
) -> pd.DataFrame:
    """Return the words to read with their ratings and covariates, drawn at random, in the order of the list."""
    table = ratings
    if covariates is not None:
        table = table.join(
            covariates.select_dtypes("number").rename(index=lambda word: str(word).lower()), how="inner"
        )
    table = table[~table.index.duplicated() & (table.index != "")].dropna()
    if len(table) < LEAST:
        raise InputError(
            f"{len(table)} words have all ratings and covariates: a correlation needs {LEAST} or more"
        )
    drawn = np.random.default_rng(seed).permutation(len(table))[:limit]
    return table.iloc[np.sort(drawn)]


def _read(
    model: LiveModel,
    layers: Sequence[int],
    directions: Tensor,
    words: Sequence[str],
    carriers: Sequence[str],
    batch_size: int,
    progress: bool,
) -> tuple[Floats, Floats]:
    """Return u·x (words, layers, directions) in the mean over a word's tokens and over sentences, and its number of tokens."""
    begins = [carrier.index("{word}") for carrier in carriers]
    texts = [carrier.replace("{word}", word) for word in words for carrier in carriers]
    read = np.zeros((len(words), len(layers), directions.shape[1]))
    tokens = np.zeros(len(words))
    for part in stream_residuals(model, texts, layers, batch_size=batch_size, progress=progress):
        lie = model.token_spans(part.batch)
        inside = torch.zeros(part.batch.real.shape, dtype=torch.bool)
        for row, index in enumerate(part.indices):
            word, start = words[index // len(carriers)], begins[index % len(carriers)]
            inside[row, overlapping(lie[row], [(start, start + len(word))])] = True
        counts = inside.sum(1)
        if not counts.all():
            raise InputError(
                f"no token of {texts[part.indices[int(counts.argmin())]]!r} is of its word: the text is too long"
            )
        means = mean_over(part.by_layer, inside.to(part.by_layer[0].device))
        along = (
            torch.einsum("lbd,lkd->blk", means.double(), directions.to(means.device, torch.float64))
            .cpu()
            .numpy()
        )
        places = np.array(part.indices) // len(carriers)
        np.add.at(read, places, along / len(carriers))
        np.add.at(tokens, places, counts.numpy() / len(carriers))
    return read, tokens


def _correlated(
    probes: ProbeSet,
    along: Floats,
    chance: Floats,
    values: Floats,
    held: Floats,
    permutations: int,
    counts: Floats,
    seed: int,
) -> pd.DataFrame:
    """Correlate read-outs (words, layers) and those of random directions (words, layers, random) with ratings (words,)."""
    found, null = permuted(along, values, permutations, seed)
    null, random = np.nan_to_num(null), [permuted(part, values, 0)[0] for part in chance.swapaxes(0, 1)]
    rest, left = _residual(values[:, None], held)[:, 0], _residual(along, held)
    resampled, partial = _resampled(along, values, counts), _resampled(left, rest, counts)
    bounds = np.array([prediction_interval(np.nan_to_num(part), CORRELATION) for part in random])
    frame = pd.DataFrame({"layer": probes.layers, "r": found})
    frame["low"], frame["high"] = _range(resampled)
    frame["p"] = [exceedance(abs(r), null[:, row]) for row, r in enumerate(found)]
    frame["p_layers"] = [exceedance(abs(r), null.max(1)) for r in found]
    embedding = probes.layers.index(0) if 0 in probes.layers else None
    frame["layer0"] = np.nan if embedding is None else found[embedding]
    gain = np.full_like(resampled, np.nan)
    if embedding is not None:
        gain = np.abs(resampled) - np.abs(resampled[:, [embedding]])
    frame["gain_low"], frame["gain_high"] = _range(gain)
    frame["random_low"], frame["random_high"] = bounds.T
    frame["held"] = permuted(left, rest, 0)[0]
    frame["held_low"], frame["held_high"] = _range(partial)
    return frame.assign(n=len(values))


def _residual(columns: Floats, held: Floats) -> Floats:
    """Return columns (words, columns) less what a linear regression on the covariates (words, covariates) predicts of them."""
    design = np.column_stack([np.ones(len(held)), held - held.mean(0)])
    result: Floats = columns - design @ np.linalg.lstsq(design, columns, rcond=None)[0]
    return result


def _drawn(words: int, seed: int) -> Floats:
    """Return how often each word is drawn in each of RESAMPLES resamples, (resamples, words)."""
    order = np.random.default_rng(seed)
    drawn = (np.bincount(order.integers(words, size=words), minlength=words) for _ in range(RESAMPLES))
    return np.stack(list(drawn)).astype(float)


def _resampled(columns: Floats, values: Floats, counts: Floats) -> Floats:
    """Return Pearson's r of columns (words, columns) with values (words,) in each resample: (resamples, columns)."""
    x, y, n = columns - columns.mean(0), values - values.mean(), len(values)
    mean_x, mean_y = counts @ x / n, (counts @ y / n)[:, None]
    spread = (counts @ x**2 / n - mean_x**2) * ((counts @ y**2 / n)[:, None] - mean_y**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        r: Floats = (counts @ (x * y[:, None]) / n - mean_x * mean_y) / np.sqrt(spread)
    return r


def _range(resampled: Floats) -> tuple[Floats, Floats]:
    """Return the 95 % range of resamples (resamples, columns)."""
    if np.isnan(resampled).all():
        return (np.full(resampled.shape[1], np.nan),) * 2
    low, high = np.nanquantile(resampled, [0.025, 0.975], axis=0)
    return low, high


def _sentence(rows: pd.DataFrame) -> str:
    best = rows.iloc[int(rows.r.abs().fillna(-1).argmax())]
    said = (
        f"{str(best.concept).capitalize()} and people's {best.norm}: r {best.r:.2f} [{best.low:.2f}, {best.high:.2f}] over "
        f"{best.n} words at layer {best.layer}, the best of {len(rows)} (p = {best.p_layers:.3g} allowing for that; random "
        f"directions {best.random_low:.2f} to {best.random_high:.2f}; with length and other covariates held constant "
        f"{best.held:.2f} [{best.held_low:.2f}, {best.held_high:.2f}]"
    )
    if np.isfinite(best.layer0):
        said += f"; embedding {best.layer0:.2f}, gain {best.gain_low:+.2f} to {best.gain_high:+.2f}"
    within = best.random_low <= best.r <= best.random_high
    if best.p_layers >= 0.05 or within or best.held_low <= 0 <= best.held_high:
        return f"{said}). Not shown to go with them."
    if np.isfinite(best.layer0) and not best.gain_low > 0:
        return f"{said}). It goes with them, and is not shown to do so more than the embedding."
    return f"{said}). It goes with them."
