"""Words of many texts under valuation attention: how their magnitudes, and the attention that they get, change.

Each text is read in the untouched model, with a probed valuation at every λ, and with random valuations of equal norm. The
magnitude of a word is that of `emoprobe.study.word_magnitudes`; all changes are means over the blocks that are injected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.intervals import Floats
from emoprobe.models.live import LiveModel
from emoprobe.scoring import batches
from emoprobe.study.claims.judging import POSITIVE, STRENGTHS, Integers
from emoprobe.study.claims.word_classes import word_places
from emoprobe.study.word_magnitudes import Reading, gains, rank_shifts, reading, variation, word_tokens
from emoprobe.valattn import Valuation, inject

OF_TEXTS = ("variation", "evenness")
OF_WORDS = ("gain", "rank", "attention")
LEAST_WORDS = 5


@dataclass(frozen=True, eq=False)
class Changes:
    """One measure under injection: `probed` (strengths, units), `random` (controls, positive, units); units: texts or words."""

    probed: Floats
    random: Floats


@dataclass(frozen=True, eq=False)
class WordReadings:
    """The words of some texts, and what injection changes of them.

    `words`, `text` (the index of a word's text), `place` (in its text, from 0) and `tokens` (of how many it consists) are of
    each word; `groups` (texts,) numbers the clusters that texts belong to. `changes` holds, of texts, "variation" (of the
    coefficient of variation of word magnitudes, in percent) and "evenness" (of attention weights, in percentage points); of
    words "gain" (of the magnitude over the text's mean, in percent), "rank" (ranks risen, in percent of the text's words) and
    "attention" (of what later words give it, in percent; NaN for a text's last word). `coefficients` (texts,) are the
    coefficients of variation in the untouched model, `untouched` says whether λ = 0 left every magnitude as it was.
    """

    words: tuple[str, ...]
    text: Integers
    place: Integers
    tokens: Floats
    groups: Integers
    changes: dict[str, Changes]
    coefficients: Floats
    untouched: bool

    @property
    def controls(self) -> int:
        """How many random valuations were read."""
        return len(self.changes["gain"].random)


def read_words(
    model: LiveModel,
    valuation: Valuation,
    corpus: Corpus,
    *,
    controls: int,
    seed: int = 0,
    batch_size: int = 8,
) -> WordReadings:
    """Read the words of texts at each λ, beside `controls` random valuations. Texts of fewer than five words are left out.

    Raises `InputError` where no text is left, and for a tokenizer that does not say where its tokens lie.
    """
    everyone = [valuation, *(valuation.random_like(seed + 1 + k) for k in range(controls))]
    texts = [text for text in corpus.texts if len(word_places(text)) >= LEAST_WORDS]
    kept = np.array([len(word_places(text)) >= LEAST_WORDS for text in corpus.texts])
    if not texts:
        raise InputError(f"{corpus.name}: no text has {LEAST_WORDS} words or more: give another corpus")
    held = [_belonging(model, text) for text in texts]
    places = [np.flatnonzero(belongs.any(-1)) for belongs in held]
    held = [belongs[there] for belongs, there in zip(held, places, strict=True)]
    named = [[text[start:end] for start, end in word_places(text)] for text in texts]

    def read(condition: Valuation | None = None, strength: float = 0.0) -> list[Reading]:
        return _read(model, texts, held, valuation.layers, condition, strength, batch_size)

    standard = read()
    probed = [_changes(standard, read(valuation, strength)) for strength in STRENGTHS]
    random = [[_changes(standard, read(other, strength)) for strength in POSITIVE] for other in everyone[1:]]
    changes = {
        name: Changes(
            np.array([row[name] for row in probed]),
            np.array([[row[name] for row in rows] for rows in random]).reshape(
                controls, len(POSITIVE), len(probed[0][name])
            ),
        )
        for name in (*OF_TEXTS, *OF_WORDS)
    }
    again = read(valuation, 0.0)
    return WordReadings(
        tuple(words[place] for words, there in zip(named, places, strict=True) for place in there),
        np.repeat(np.arange(len(texts)), [len(there) for there in places]),
        np.concatenate(places),
        np.concatenate([belongs.sum(-1) for belongs in held]),
        np.unique(np.asarray(corpus.groups)[kept], return_inverse=True)[1],
        changes,
        np.array([variation(one.magnitudes).mean() for one in standard]),
        all(np.array_equal(a.magnitudes, b.magnitudes) for a, b in zip(standard, again, strict=True)),
    )


def _belonging(model: LiveModel, text: str) -> Floats:
    """Return which of a text's own tokens belong to which of its words, (words, tokens)."""
    batch = model.tokenize(text)
    return word_tokens(word_places(text), model.token_spans(batch)[0])


def _read(
    model: LiveModel,
    texts: Sequence[str],
    held: Sequence[Floats],
    blocks: Sequence[int],
    valuation: Valuation | None,
    strength: float,
    batch_size: int,
) -> list[Reading]:
    """Return the readings of texts in one condition."""
    found: dict[int, Reading] = {}
    placed = nullcontext() if valuation is None else inject(model, valuation, strength)
    with torch.no_grad(), placed:
        for rows, batch in batches(model, texts, batch_size):
            both = model.attention(batch, blocks)
            outputs, weights = both[0].double().cpu().numpy(), both[1].cpu().numpy()
            for place, row in enumerate(rows):
                real = batch.real[place].cpu().numpy()
                seen = weights[:, place][:, :, real][..., real]
                found[row] = reading(outputs[:, place, real], seen, held[row])
    return [found[row] for row in range(len(texts))]


def _changes(standard: Sequence[Reading], after: Sequence[Reading]) -> dict[str, Floats]:
    """Return the changes of each measure: of texts (texts,), of words (words,)."""
    found = [dict(_change(*pair)) for pair in zip(standard, after, strict=True)]
    return {
        name: np.array([row[name] for row in found])
        if name in OF_TEXTS
        else np.concatenate([row[name] for row in found])
        for name in (*OF_TEXTS, *OF_WORDS)
    }


def _change(before: Reading, after: Reading) -> Iterator[tuple[str, Floats]]:
    ratio = variation(after.magnitudes) / variation(before.magnitudes)
    yield "variation", 100 * (ratio.mean() - 1)
    yield "evenness", 100 * (after.evenness - before.evenness).mean()
    yield "gain", 100 * gains(before.magnitudes, after.magnitudes).mean(0)
    yield "rank", 100 * rank_shifts(before.magnitudes, after.magnitudes).mean(0) / before.magnitudes.shape[1]
    given = [_from_later(one.attention) for one in (before, after)]
    yield "attention", 100 * (given[1] / given[0] - 1)


def _from_later(attention: Floats) -> Floats:
    """Return the mean attention that each word gets from the words after it, NaN for the last: (words,)."""
    later = np.tril(attention, -1).sum(0)
    count = np.arange(len(attention))[::-1].astype(float)
    result: Floats = np.divide(later, count, out=np.full(len(later), np.nan), where=count > 0)
    return result
