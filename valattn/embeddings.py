"""Emotion embeddings e of tokens: from a lexicon of words, from annotations of spans, from a table.

A table (vocab, d_e) says e of every token wherever it stands, in generated text too, but a word that is split over several
tokens is none of them. Annotations (batch, position, d_e) say it of the tokens of given texts, split words included, and of
no token that is generated. Given together, annotations come first and the table says the rest. A lexicon gives both.

Numbers are on [-1, 1]; NaN stands for no annotation. Nothing here knows of valuations' weights or of attention.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emoprobe.corpora.words import token_targets
from emoprobe.errors import InputError
from emoprobe.interventions import Forward, Span
from emoprobe.layers import Layers, resolve_layers
from emoprobe.models.live import LiveModel
from emoprobe.valattn.valuation import Valuation

if TYPE_CHECKING:
    import pandas as pd

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
Emotions: TypeAlias = Callable[[Forward], Tensor | None]


def lexicon_valuation(
    model: LiveModel,
    lexicon: pd.DataFrame,
    layers: Layers = "all",
    *,
    scale: tuple[float, float],
    gain: float = 1.0,
) -> Valuation:
    """Return a valuation that knows tokens only by a lexicon: v = tanh(gain·e), whatever the context.

    Its table is `lexicon_table`'s; `inject(..., emotions=lexicon_annotations(...))` adds the words of the prompts that are
    split over several tokens. `layers` are blocks.
    """
    blocks = resolve_layers(layers, model.n_layers, blocks=True)
    names = [str(name) for name in lexicon.columns]
    plain = Valuation.annotated(model.d_model, blocks, names, gain=gain)
    table = lexicon_table(model, lexicon, scale=scale)
    return replace(plain, embedding=table, metadata={"source": "lexicon", "scale": list(scale), "gain": gain})


def lexicon_table(model: LiveModel, lexicon: pd.DataFrame, *, scale: tuple[float, float]) -> Tensor:
    """Return e of each token of the vocabulary, float32 (vocab, d_e): what the lexicon says of the word that it spells.

    `lexicon` has one row per word (its index, lower case) and one column per dimension, as `load_word_norms` returns it.
    `scale` holds the ends of its ratings, (1, 9) for Warriner et al., which become -1 and 1. Words are found as `rate` finds
    them, by regular inflections too. A token spells a word where it begins one; what is found within words is 0, and so are
    words that the lexicon does not have: the middle of the scale. Of a word that is split, the first token counts if it is a
    word by itself, "hope" of "hope·less", since a model that reads from left to right has seen no more.
    """
    spelled = _words_of_vocabulary(model.tokenizer)
    ratings = _ratings(spelled.values(), lexicon, scale)
    table = torch.zeros(len(model.tokenizer), lexicon.shape[1])
    for token, text in spelled.items():
        table[token] = torch.as_tensor(ratings[text.lower()]).nan_to_num(0.0)
    return table


def _words_of_vocabulary(tokenizer: Any) -> dict[int, str]:
    """Return what is spelled by each token that begins a word and reads like one: behind another word a space precedes it."""
    before = tokenizer("a", add_special_tokens=False)["input_ids"][-1]
    written = (tokenizer.decode([before, token]).rpartition(" ") for token in range(len(tokenizer)))
    return {
        token: text
        for token, (left, _, text) in enumerate(written)
        if left.strip() == "a" and WORD.fullmatch(text)
    }


def lexicon_annotations(
    model: LiveModel,
    texts: str | Sequence[str],
    lexicon: pd.DataFrame,
    *,
    scale: tuple[float, float],
    causal: bool = False,
) -> Tensor:
    """Return e of the tokens of `model.tokenize(texts)`, float32 (batch, position, d_e); NaN off the lexicon's words.

    `lexicon` and `scale` are those of `lexicon_table`. All tokens of a word get what the lexicon says of it. The first of them
    then knows what is to follow, so that the NLL of the text means nothing; with `causal` each token gets what the lexicon
    says of the word as far as it has been read, "hope" at the first token of "hope·less".
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    spans = model.token_spans(model.tokenize(texts))
    pieces = [
        [piece for word in WORD.finditer(text) for piece in _pieces(word, tokens if causal else None)]
        for text, tokens in zip(texts, spans, strict=True)
    ]
    ratings = _ratings((word for text in pieces for *_, word in text), lexicon, scale)
    names = [str(name) for name in lexicon.columns]
    rated = [
        [
            {"start": start, "end": end, **dict(zip(names, ratings[word.lower()], strict=True))}
            for start, end, word in text
        ]
        for text in pieces
    ]
    return span_annotations(model, texts, rated, names)


def _pieces(word: re.Match[str], tokens: Sequence[Span] | None) -> list[tuple[int, int, str]]:
    """Return (start, end, what is read there): the whole word or, given its tokens, each one's part and the word so far."""
    if tokens is None:
        return [(*word.span(), word.group())]
    inside = [(max(a, word.start()), min(b, word.end())) for a, b in tokens]
    return [(a, b, word.string[word.start() : b]) for a, b in inside if a < b]


def _ratings(
    words: Iterable[str], lexicon: pd.DataFrame, scale: tuple[float, float]
) -> dict[str, NDArray[np.float64]]:
    """Return what the lexicon says of each word (in lower case) on [-1, 1], (d_e,); NaN where it has none."""
    from emoprobe.corpora.emotion_words import rate

    low, high = scale
    numbers = lexicon.to_numpy(float)
    if not lexicon.index.is_unique:
        raise InputError(f'the lexicon has "{lexicon.index[lexicon.index.duplicated()][0]}" twice')
    if not low <= np.nanmin(numbers) <= np.nanmax(numbers) <= high:
        raise InputError(
            f"the lexicon's ratings, {np.nanmin(numbers):g} to {np.nanmax(numbers):g}, do not lie on scale={scale}"
        )
    distinct = sorted({word.lower() for word in words})
    rated = rate(distinct, lexicon)[list(lexicon.columns)].to_numpy(float)
    return dict(zip(distinct, 2 * (rated - low) / (high - low) - 1, strict=True))


def span_annotations(
    model: LiveModel,
    texts: str | Sequence[str],
    spans: Sequence[Sequence[Mapping[str, float]]],
    dimensions: Sequence[str],
) -> Tensor:
    """Return e of the tokens of `model.tokenize(texts)` from annotated spans, float32 (batch, position, d_e).

    `spans` holds for each text {"start", "end", and a number for each dimension}, the rows of a corpus annotated by word (see
    `emoprobe.corpora.annotated_sentence`). A token gets the mean of the spans that it overlaps; NaN where it meets none.
    """
    lie = model.token_spans(model.tokenize(texts))
    if len(spans) != len(lie):
        raise InputError(f"spans of {len(spans)} texts were given for {len(lie)} texts")
    rows = [
        np.stack([token_targets(of_text, tokens, name) for name in dimensions], axis=-1)
        for of_text, tokens in zip(spans, lie, strict=True)
    ]
    return torch.as_tensor(np.stack(rows), dtype=torch.float32)


def emotions_of_pass(table: Tensor | None, annotations: Tensor | None) -> Emotions:
    """Return the function that says e of a pass, (batch, position, d_e): annotations, then the table, then 0.

    Without either it is None. It holds tensors alone, so that it can be sent to where a model runs without emoprobe.
    """

    def emotions(forward: Forward) -> Tensor | None:
        given = None if annotations is None else _window(annotations, forward)
        if table is None:
            return given if given is None else given.nan_to_num(0.0)
        if forward.input_ids is None:
            raise InputError("this valuation looks up token ids, but the model was called with inputs_embeds")
        found = table.to(forward.input_ids.device)[forward.input_ids]
        return found if given is None else torch.where(given.isnan(), found, given.to(found))

    return emotions


def _window(annotations: Tensor, forward: Forward) -> Tensor:
    """Cut annotations of the prompts to this pass; behind the prompts nothing is annotated."""
    batch, length = forward.real.shape
    if batch % annotations.shape[0] or annotations.shape[1] != forward.prompt_length:
        raise InputError(
            f"emotions of shape {tuple(annotations.shape)} do not fit {batch} prompts of {forward.prompt_length} positions: "
            "annotate the positions of model.tokenize(prompts)"
        )
    end = forward.start + length
    behind = max(0, end - annotations.shape[1])
    padded = torch.nn.functional.pad(annotations, (0, 0, 0, behind), value=torch.nan)
    here = padded[:, forward.start : end].to(forward.real.device)
    # Beam search and num_return_sequences repeat each prompt's row.
    return here.repeat_interleave(batch // annotations.shape[0], dim=0)
