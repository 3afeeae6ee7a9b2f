"""What a probe's rows are: whole texts, their sentences, their annotated spans, or their tokens.

A unit is a stretch of a text, read in its text, as the mean over its tokens there. Spans are what the corpus annotates.
Sentences and tokens take the annotations of the spans they overlap: of values the mean, by characters shared, and each label
that one of these carries. Nothing is handed down from a text to its parts, since what a text says is not said by each of them.
A unit's group is its text's, so that no text is ever on both sides of a split. Each unit counts once, and of a text with more
than MOST, so many are drawn at random, so that long texts do not outweigh all others: which ones depends on the text alone, not
on where in the corpus it stands. A unit that the model's context cuts is left out, since its annotation is of the whole.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from emoprobe.activations import Pool, stream_residuals
from emoprobe.corpora import Corpus
from emoprobe.corpora.words import token_targets
from emoprobe.errors import InputError
from emoprobe.interventions import Span, overlapping
from emoprobe.models.live import LiveModel
from emoprobe.probes.estimators import Integers
from emoprobe.probes.random_features import shares_of
from emoprobe.probes.tokens import TokenMeans, drawn_number

LEVELS = ("text", "sentence", "span", "token")
MOST = 32
"""Units of one text that are used at the most."""
SENTENCE = re.compile(r"""\S.*?(?:[.!?…]+["'”’»)\]]*(?=\s|$)|(?=\n)|$)""")


@dataclass(frozen=True, eq=False)
class Units:
    """Hold the units of a corpus's texts, text by text.

    `corpus` has a row for each unit, with its annotations. `groups` (units,) are those of their texts, `text_of` (units,) says
    which text each is of and `tokens` which positions of that text's tokens, padding not counted, it is read at; `shares`
    (units, kinds of token) is as in `random_features.token_shares`.
    """

    corpus: Corpus
    groups: np.ndarray
    text_of: Integers
    tokens: list[Integers]
    shares: csr_array


def read_units(
    model: LiveModel, corpus: Corpus, level: str, *, start: int = 1, batch_size: int = 32, seed: int = 0
) -> Units:
    """Find the units of a corpus that are annotated, and the tokens that they are read at; the model is not run.

    Tokens count from the `start`-th of a text on, see `Batch.counted`. Units without such a token, and those that end
    beyond the model's context, are left out. Raises `InputError` for a level that is not among LEVELS, a corpus without
    annotated spans and a tokenizer that does not say where its tokens lie.
    """
    if level not in LEVELS[1:]:
        known = ", ".join(f'"{name}"' for name in LEVELS)
        raise InputError(f'level="{level}" is not understood: give one of {known}')
    annotated = corpus.data["spans"][:]
    if not any(annotated):
        raise InputError(
            f'{corpus.name}: level="{level}" needs annotated spans, and no text has one; annotate some, or rate words with '
            "emoprobe.corpora.emotion_words.rated_words"
        )
    texts, rows, tokens, kinds = corpus.texts, list[dict[str, Any]](), list[Integers](), list[Integers]()
    text_of: list[int] = []
    for first in range(0, len(texts), batch_size):
        batch = model.tokenize(texts[first : first + batch_size], truncate=True)
        counted, offsets = batch.counted(start).cpu().numpy(), model.token_spans(batch)
        ids, real = batch.input_ids.cpu().numpy(), batch.real.cpu().numpy()
        for row, text in enumerate(batch.texts):
            spans = annotated[first + row]
            lie = [offsets[row][place] for place in np.flatnonzero(real[row])]
            usable = counted[row][real[row]]
            reached = max((end for _, end in lie), default=0)
            found = []
            for unit in _units(text, spans, lie, corpus, level):
                if text[reached : unit["end"]].strip():
                    continue
                own = np.array(overlapping(lie, [(unit["start"], unit["end"])]), dtype=np.int64)
                own = own[usable[own]]
                if len(own):
                    found.append((unit, own))
            order = np.random.default_rng(drawn_number(text, seed))
            for place in np.sort(order.permutation(len(found))[:MOST]):
                unit, own = found[place]
                rows.append({**unit, "text": text[unit["start"] : unit["end"]]})
                tokens.append(own)
                kinds.append(ids[row][real[row]][own])
                text_of.append(first + row)
    if not rows:
        raise InputError(f'{corpus.name}: level="{level}": no annotated {level} holds a token that is read')
    columns = {name: [row[name] for row in rows] for name in ("text", "labels", *corpus.dimensions)}
    own_corpus = Corpus.from_columns(
        columns, name=corpus.name, labels=corpus.labels, dimensions=corpus.dimensions
    )
    owner = np.array(text_of)
    return Units(own_corpus, corpus.groups[owner], owner, tokens, shares_of(kinds))


def _units(
    text: str, spans: Sequence[dict[str, Any]], lie: Sequence[Span], corpus: Corpus, level: str
) -> list[dict[str, Any]]:
    """Return the annotated units of a text: start, end, labels and a value of each dimension, as in a corpus's spans."""
    if level == "span":
        return [dict(span) for span in spans if text[span["start"] : span["end"]].strip()]
    bounds = [found.span() for found in SENTENCE.finditer(text)] if level == "sentence" else lie
    bounds = [(a, b) for a, b in dict.fromkeys(bounds) if text[a:b].strip()]
    values = {name: token_targets(spans, bounds, name) for name in corpus.dimensions}
    units = []
    for place, (a, b) in enumerate(bounds):
        over = [span for span in spans if a < span["end"] and span["start"] < b]
        if over:
            labels = [label for label in corpus.labels if any(label in span["labels"] for span in over)]
            units.append(
                {"start": a, "end": b, "labels": labels, **{name: values[name][place] for name in values}}
            )
    return units


def capture_units(
    model: LiveModel,
    texts: Sequence[str],
    units: Units,
    layers: Sequence[int],
    pool: Pool,
    *,
    start: int = 1,
    batch_size: int = 32,
    progress: bool = False,
) -> Tensor:
    """Return one vector for each unit and layer, float32 (units, layers, d_model), in one pass over the texts.

    `pool` is "mean" or "last", over a unit's tokens; a `TokenMeans` of one of these also sees all that is read. Raises
    `InputError` for another.
    """
    seen = pool if isinstance(pool, TokenMeans) else None
    pool = pool if seen is None else seen.pool
    if pool not in ("mean", "last"):
        raise InputError('pool: parts of texts are pooled by "mean" or "last"; give one of these')
    first = np.searchsorted(units.text_of, np.arange(len(texts) + 1))
    vectors = torch.empty(len(units.tokens), len(layers), model.d_model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* were cut")  # was said when the units were found
        for part in stream_residuals(model, texts, layers, batch_size=batch_size, progress=progress):
            if seen is not None:
                seen(part.by_layer, part.counted(start))
            mine = [np.arange(first[index], first[index + 1]) for index in part.indices]
            begin = part.batch.real.int().argmax(1).tolist()  # padding is on the left
            places, rows, counts = [], [], []
            for row, own in enumerate(mine):
                for unit in own:
                    tokens = units.tokens[unit][-1:] if pool == "last" else units.tokens[unit]
                    places.append(tokens + begin[row])
                    rows += [row] * len(tokens)
                    counts.append(len(tokens))
            if not counts:
                continue
            at = np.concatenate(places)
            picked = torch.stack([stream[rows, at].float() for stream in part.by_layer])
            owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(picked.device)
            sums = picked.new_zeros(len(layers), len(counts), picked.shape[-1]).index_add_(1, owner, picked)
            means = sums / torch.tensor(counts).to(sums)[:, None]
            vectors[torch.from_numpy(np.concatenate(mine))] = means.transpose(0, 1).cpu()
    return vectors
