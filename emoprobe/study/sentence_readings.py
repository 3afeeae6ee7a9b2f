"""The two sentences in a live model: their words among its tokens, and what attention does there under a valuation.

Annotations become emotion embeddings of words, and these of tokens; controls are made the same way, from annotations turned
or dealt out at random. What the readings mean is in `sentences`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from emoprobe.corpora.words import RANGES, VALUATION, annotated_sentence, token_targets
from emoprobe.errors import InputError
from emoprobe.interventions import Span
from emoprobe.models.live import Batch, LiveModel
from emoprobe.study.source_sentences import SENTENCES, Word
from emoprobe.study.word_magnitudes import Floats, Reading, reading, word_spans, word_tokens
from emoprobe.valattn import Valuation, inject

Condition: TypeAlias = "tuple[Valuation, dict[str, Tensor] | None]"
"""A valuation, and the emotion embeddings of each sentence's tokens where it reads them."""


class Bench:
    """The two sentences, tokenised for a model, ready to be read at its blocks under any condition."""

    def __init__(self, model: LiveModel, blocks: tuple[int, ...]) -> None:
        self.model, self.blocks = model, blocks
        self.placed = {name: place(model, words) for name, words in SENTENCES.items()}

    def read(self, condition: Condition | None = None, strength: float = 0.0) -> dict[str, Reading]:
        """Read both sentences, in the untouched model or under a valuation at λ = `strength`."""
        return {name: self._read(name, condition, strength) for name in SENTENCES}

    def _read(self, name: str, condition: Condition | None, strength: float) -> Reading:
        placed = self.placed[name]
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if condition is not None:
                valuation, emotions = condition
                given = None if emotions is None else emotions[name]
                stack.enter_context(inject(self.model, valuation, strength, emotions=given))
            outputs, weights = self.model.attention(placed.batch, self.blocks)
        return reading(
            outputs[:, 0].double().cpu().numpy(), weights[:, 0].double().cpu().numpy(), placed.belongs
        )

    def annotated(self, controls: int, seed: int, mapped: bool) -> list[Condition]:
        """Return the annotated valuation, then its controls: every other one random, the rest shuffled."""
        valuation = Valuation.annotated(self.model.d_model, self.blocks, VALUATION)
        given = {name: emotion_embeddings(words, mapped) for name, words in SENTENCES.items()}
        versions = [given]
        for number in range(controls):
            random = np.random.default_rng([seed, number])
            change = turned if number % 2 == 0 else shuffled
            versions.append({name: change(rows, random) for name, rows in given.items()})
        return [
            (valuation, {name: self.placed[name].spread(rows) for name, rows in version.items()})
            for version in versions
        ]


@dataclass(frozen=True, eq=False)
class Placed:
    """A sentence among a model's tokens: where its words stand, and which tokens belong to which, (words, tokens)."""

    batch: Batch
    spans: list[Span]
    belongs: Floats

    def spread(self, rows: Floats) -> Tensor:
        """Carry values of words (words, 3) over to the tokens, (1, tokens, 3), NaN where there is no word."""
        assert self.batch.offsets is not None
        valued = [
            {"start": start, "end": end, **dict(zip(VALUATION, row, strict=True))}
            for (start, end), row in zip(self.spans, rows.tolist(), strict=True)
        ]
        columns = [token_targets(valued, self.batch.offsets[0], name) for name in VALUATION]
        return torch.from_numpy(np.stack(columns, axis=-1)).float()[None]


def place(model: LiveModel, words: Sequence[Word]) -> Placed:
    batch = model.tokenize(str(annotated_sentence([word[:4] for word in words])["text"]))
    if batch.offsets is None:
        raise InputError(
            f"{model.name} has a slow tokenizer, which does not tell where in the text its tokens are"
        )
    spans = word_spans([word.text for word in words])
    belongs = word_tokens(spans, batch.offsets[0])
    for word, count in zip(words, belongs.sum(-1), strict=True):
        if not count:
            raise InputError(
                f'the tokenizer of {model.name} gives the word "{word.text}" no token of its own'
            )
    return Placed(batch, spans, belongs)


def emotion_embeddings(words: Sequence[Word], mapped: bool = True) -> Floats:
    """Return emotion embeddings of words, (words, 3): annotations mapped from their ranges to [-1, 1], or as they are.

    Mapped, a word of grammar lies at (0, -1, -1), and all such words attract one another; as it is, it lies at 0, and its
    valuation does nothing.
    """
    values: Floats = np.array([word[1:4] for word in words], dtype=float)
    if not mapped:
        return values
    low, high = np.array([RANGES[name] for name in VALUATION]).T
    mapped_values: Floats = 2 * (values - low) / (high - low) - 1
    return mapped_values


def turned(rows: Floats, random: np.random.Generator) -> Floats:
    """Turn every word's embedding into a random direction; its norm stays."""
    noise = random.normal(size=rows.shape)
    norms = [np.linalg.norm(values, axis=-1, keepdims=True) for values in (rows, noise)]
    result: Floats = noise * norms[0] / norms[1]
    return result


def shuffled(rows: Floats, random: np.random.Generator) -> Floats:
    """Deal the embeddings out anew among the words of the sentence."""
    return random.permutation(rows)
