"""What a steered model writes, and whether it is still language: repetition, variety, likelihood under the untouched model.

`generations` is a measure like those of `emoprobe.steering.measures`, and gives the coherence gate of a sweep: a strength at
which the model repeats itself, or writes what the untouched model finds unlikely, is not usable, whatever else it does
there. `lexicon` and `overlap` score what was written: by word norms, and by what it repeats of given texts (the check that a
direction does not bring back the stories it was fitted on).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.scoring import token_nll

if TYPE_CHECKING:
    import pandas as pd

    from emoprobe.models import Batch, LiveModel
    from emoprobe.steering.measures import Measure

REPETITION, DISTINCT, OWN_NLL = "repetition", "distinct-2", "NLL of what is written"
COHERENT: Mapping[str, float] = {REPETITION: 0.1, DISTINCT: -0.1, OWN_NLL: 0.5}
"""The coherence gate: how far the means of `generations` may go from the untouched model's, up (> 0) or down (< 0).

Repetition and variety are shares; the likelihood is in nats per token, so that 0.5 is a perplexity 1.65 times as high.
"""
SAMPLED: Mapping[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0}
"""Sampling from the whole distribution, whatever a model's generation config says."""
NGRAM = 4
"""Tokens of a run whose return counts as repetition."""


def generations(
    scores: Mapping[str, Callable[[str], float]] | None = None,
    *,
    max_new_tokens: int = 40,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
) -> Measure:
    """Measure what the model writes behind each prompt, one text for each, sampled with `seed` at `temperature` (0: greedy).

    "repetition" is the share of runs of four tokens that came before in the same text, "distinct-2" the share of pairs of
    tokens that did not, both from 0 to 1 (0 and 1 where there are none), and "NLL of what is written" the mean negative
    log-likelihood of its tokens under the untouched model, in nats, an end of text included: the logarithm of its perplexity.
    `scores` maps further names to functions of a written text, such as `lexicon(norms)`.
    """
    scores = {} if scores is None else dict(scores)
    sampling = {**SAMPLED, "temperature": temperature} if temperature > 0 else {"do_sample": False}

    def measure(model: LiveModel, prompts: Sequence[str]) -> dict[str, Tensor]:
        rows: list[list[float]] = []
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            for first in range(0, len(prompts), batch_size):
                ids, written, likelihoods = _written(
                    model, prompts[first : first + batch_size], max_new_tokens=max_new_tokens, **sampling
                )
                for own, text, likelihood in zip(ids, written, likelihoods, strict=True):
                    shares = [1 - _distinct(own, NGRAM), _distinct(own, 2), likelihood]
                    rows.append([*shares, *(score(text) for score in scores.values())])
        columns = torch.tensor(rows, dtype=torch.float64).T
        return dict(zip((REPETITION, DISTINCT, OWN_NLL, *scores), columns, strict=True))

    return measure


def lexicon(norms: pd.DataFrame, dimension: str = "valence") -> Callable[[str], float]:
    """Return the score of a text by word norms: the mean over its words of their rating less the lexicon's mean.

    `norms` is what `emoprobe.corpora.emotion_words.load_word_norms` returns, one row per word. Words that it does not have
    count as its mean, so that a text without any scores 0; the unit is that of the norms. Raises `InputError` for a dimension
    that it does not rate.
    """
    if dimension not in norms.columns:
        raise InputError(
            f"the norms do not rate {dimension!r}: they have {', '.join(map(str, norms.columns))}"
        )
    known = norms[dimension].dropna()
    ratings: dict[Any, float] = (known - known.mean()).to_dict()

    def score(text: str) -> float:
        words = _words(text)
        return sum(ratings.get(word, 0.0) for word in words) / max(1, len(words))

    return score


def overlap(texts: Sequence[str], n: int = 4) -> Callable[[str], float]:
    """Return the score of a text by what it repeats of `texts`: the share of its runs of n words that stand there too.

    It is 0 for a text of fewer words. With the texts that a direction was fitted on it tells whether steering brings back their
    content rather than a feeling (Sofroniew et al. 2026, arXiv 2604.07729, table 8).
    """
    known = {run for text in texts for run in _runs(_words(text), n)}

    def score(text: str) -> float:
        runs = _runs(_words(text), n)
        return sum(run in known for run in runs) / max(1, len(runs))

    return score


def _written(
    model: LiveModel, prompts: Sequence[str], **options: Any
) -> tuple[list[list[int]], list[str], list[float]]:
    """Return what is written behind prompts: its tokens, its text, and its mean NLL under the untouched model."""
    batch = continued(model, prompts, **options)
    start = batch.prompt_length
    assert start is not None, "what was continued knows where its prompts end"
    counted = batch.real[:, start:]
    with model.suspended():
        nll = token_nll(model.forward(batch), batch)[:, start - 1 :]
    likelihoods = (nll.sum(-1) / counted.sum(-1)).tolist()
    own = [row[kept].tolist() for row, kept in zip(batch.input_ids[:, start:], counted, strict=True)]
    return own, model.tokenizer.batch_decode(own, skip_special_tokens=True), likelihoods


def continued(model: LiveModel, prompts: Sequence[str], **options: Any) -> Batch:
    """Return prompts with what the model writes behind them, an end of text included; options are those of `generate`."""
    batch = model.tokenize(prompts)
    ids = model.generate_ids(batch, **options)
    start = batch.input_ids.shape[1]
    written = up_to_end(ids[:, start:], model.tokenizer.eos_token_id)
    return replace(
        batch, input_ids=ids, real=torch.cat([batch.real, written], dim=-1), offsets=None, prompt_length=start
    )


def up_to_end(ids: Tensor, end: int | None) -> Tensor:
    """Return which of the generated tokens (batch, position) were written: all up to the first end of text, it included."""
    ended = (ids == (-1 if end is None else end)).long()
    written: Tensor = ended.cumsum(-1) - ended == 0
    return written


def _distinct(items: Sequence[Any], n: int) -> float:
    """Return the share of runs of n that are the first of their kind; 1 where there are none."""
    runs = _runs(items, n)
    return len(set(runs)) / len(runs) if runs else 1.0


def _runs(items: Sequence[Any], n: int) -> list[tuple[Any, ...]]:
    return list(zip(*(items[start:] for start in range(n)), strict=False))


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'’-]+", text.lower())
