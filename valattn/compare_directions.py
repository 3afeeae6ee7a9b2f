"""Where valuations look: their rows, the spaces these span, and what they make of tokens and texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import torch

from emoprobe.activations import Residuals, stream_residuals
from emoprobe.corpora import Corpus
from emoprobe.corpora.words import token_targets
from emoprobe.intervals import CORRELATION, Floats, correlation, mean_interval
from emoprobe.models.live import LiveModel
from emoprobe.probes.alignment import LEAST, cka
from emoprobe.valattn.learn import annotated_targets
from emoprobe.valattn.subspaces import matched_cosines, overlaps, principal_angles, row_cosines
from emoprobe.valattn.valuation import Valuation

PROBED, LEARNED, RANDOM_START = "probed", "learned", "learned from random"
Valuations: TypeAlias = Mapping[str, Sequence[Valuation]]
"""Valuations by what they are, several where there are seeds: "probed", "learned", "random 0", …, "learned from random"."""
CONTROLS = ["control", "control_low", "control_high", "from_random", "from_random_low", "from_random_high"]
SEEDS = ["low", "high", "started_low", "started_high"]


def is_random(name: str) -> bool:
    """Say whether these are random valuations, the controls."""
    return name.startswith("random ")


class Valued(NamedTuple):
    """What valuations make of the tokens of the untouched model.

    `values` holds, by name, seed and layer, arrays (tokens, m); `owner` (tokens,) the text of each token; `targets` (tokens, m)
    the annotation of the words that it belongs to, NaN where there is none.
    """

    values: dict[str, list[list[Floats]]]
    owner: np.ndarray
    targets: Floats

    def means(self, name: str, seed: int, row: int) -> Floats:
        """Return the mean over tokens of each text, (texts, m)."""
        count = np.bincount(self.owner)
        columns = self.values[name][seed][row].T
        return np.stack([np.bincount(self.owner, column) / count for column in columns], axis=1)


def value_tokens(model: LiveModel, everyone: Valuations, layers: Sequence[int], corpus: Corpus) -> Valued:
    """Return the valuations of all counted tokens (from a text's second on)."""
    found: dict[str, list[list[list[Floats]]]] = {
        name: [[[] for _ in layers] for _ in seeds] for name, seeds in everyone.items()
    }
    owner, targets = [], []
    dimensions, spans = next(iter(everyone.values()))[0].dimensions, corpus.data["spans"][:]
    for part in stream_residuals(model, corpus.texts, list(layers)):
        counted = part.counted(1)
        ids, rows = part.batch.input_ids[counted], torch.nonzero(counted)[:, 0].cpu()
        owner.append(np.asarray(part.indices)[rows.numpy()])
        targets.append(_annotations(part, counted.cpu(), spans, dimensions))
        for name, seeds in everyone.items():
            for seed, valuation in enumerate(seeds):
                emotions = None if valuation.embedding is None else valuation.embedding.to(ids.device)[ids]
                for row, layer in enumerate(layers):
                    values = valuation.values(part.by_layer[row][counted], layer, emotions)
                    found[name][seed][row].append(values.double().cpu().numpy())
    joined = {
        name: [[np.concatenate(parts) for parts in seed] for seed in seeds] for name, seeds in found.items()
    }
    return Valued(joined, np.concatenate(owner), np.concatenate(targets))


def _annotations(
    part: Residuals, counted: torch.Tensor, spans: Sequence[list[dict[str, float]]], dimensions: Sequence[str]
) -> Floats:
    """Return the annotations of the counted tokens of a batch, (tokens, m)."""
    batch, indices = part.batch, part.indices
    if batch.offsets is None:
        return np.full((int(counted.sum()), len(dimensions)), np.nan)
    columns = [
        np.stack(
            [
                token_targets(spans[text], offsets, name)
                for text, offsets in zip(indices, batch.offsets, strict=True)
            ]
        )
        for name in dimensions
    ]
    targets: Floats = np.stack(columns, axis=-1)[counted.numpy()]
    return targets


def stream_rows(valuation: Valuation, layers: Sequence[int], d_model: int) -> Floats:
    """Return the rows of W that read the stream of these layers, without those for e: (layers, m, d_model)."""
    places = [valuation.layers.index(layer) for layer in layers]
    rows: Floats = valuation.weight[places, :, :d_model].detach().double().cpu().numpy()
    return rows


def alignment_table(
    everyone: Valuations, valued: Valued, layers: Sequence[int], d_model: int
) -> pd.DataFrame:
    """Return how alike valuations are, one row per quantity, layer and dimension; see `Comparison.alignment`."""
    records = []
    for row, layer in enumerate(layers):
        rows = {
            name: [stream_rows(one, [layer], d_model)[0] for one in seeds] for name, seeds in everyone.items()
        }
        tokens = {name: [seed[row] for seed in seeds] for name, seeds in valued.values.items()}
        texts = {
            name: [valued.means(name, seed, row) for seed in range(len(seeds))]
            for name, seeds in everyone.items()
        }
        measures: dict[str, tuple[Callable[[Floats, Floats], Floats], dict[str, list[Floats]]]] = {
            "row cosine": (row_cosines, rows),
            "matched row cosine": (matched_cosines, rows),
            "principal angle": (principal_angles, rows),
            "token correlation": (_correlations, tokens),
            "CKA": (_cka, texts),
        }
        for quantity, (measure, of) in measures.items():
            names = _parts(quantity, everyone[PROBED][0].dimensions)
            for dimension, found in zip(names, _compared(measure, of).T, strict=True):
                records.append((quantity, layer, dimension, *found))
    columns = ["quantity", "layer", "dimension", "value", *CONTROLS, *SEEDS]
    return pd.DataFrame.from_records(records, columns=columns)


def _parts(quantity: str, dimensions: Sequence[str]) -> list[str]:
    if quantity == "CKA":
        return ["all"]
    return [str(k + 1) for k in range(len(dimensions))] if quantity == "principal angle" else list(dimensions)


def _compared(measure: Callable[[Floats, Floats], Floats], of: Mapping[str, list[Floats]]) -> Floats:
    """Return the columns of `alignment_table` after the dimension, (columns, dimensions); means are over seeds."""
    (probed,), learned = of[PROBED], of[LEARNED]
    own = np.stack([measure(probed, other) for other in learned])
    unknown = np.full_like(own[:1], np.nan)
    random = [others[0] for name, others in of.items() if is_random(name)]
    control = np.stack(
        [np.mean([measure(one, other) for other in learned], axis=0) for one in random] or [*unknown]
    )
    chance = np.stack([measure(one, probed) for one in random] or [*unknown])
    started = np.stack([measure(probed, other) for other in of.get(RANDOM_START, [])] or [*unknown])
    return np.stack(
        [
            own.mean(0),
            *(control.mean(0), control.min(0), control.max(0)),
            *(started.mean(0), chance.min(0), chance.max(0)),
            *_over_seeds(own),
            *_over_seeds(started),
        ]
    )


def _over_seeds(values: Floats) -> tuple[Floats, Floats]:
    """Return the bounds of the 95 % interval of the mean of (seeds, k); NaN for one."""
    intervals = np.array([mean_interval(column, CORRELATION) for column in values.T])
    return intervals[:, 1], intervals[:, 2]


def _correlations(a: Floats, b: Floats) -> Floats:
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    result: Floats = np.divide((a * b).sum(0), scale, out=np.full(a.shape[1], np.nan), where=scale > 0)
    return result


def _cka(a: Floats, b: Floats) -> Floats:
    """Return the unbiased alignment of what two valuations make of the same texts (texts, m), (1,)."""
    if len(a) < LEAST:
        return np.array([np.nan])
    first, second = ((x - x.mean(0)) @ (x - x.mean(0)).T for x in (a, b))
    alike: Floats = cka(first[None], second[None])[0]
    return alike


def overlap_table(everyone: Valuations, layers: Sequence[int], d_model: int) -> pd.DataFrame:
    """Return how much of the probed space each other valuation holds at each layer; see `Comparison.overlap`."""
    probed = stream_rows(everyone[PROBED][0], layers, d_model)
    frames = [
        pd.DataFrame(
            {
                "condition": name,
                "seed": seed,
                "layer": layers,
                "overlap": overlaps(stream_rows(one, layers, d_model), probed),
            }
        )
        for name, seeds in everyone.items()
        if name != PROBED
        for seed, one in enumerate(seeds)
    ]
    return pd.concat(frames, ignore_index=True)


def annotation_table(
    everyone: Valuations, valued: Valued, layers: Sequence[int], corpus: Corpus
) -> pd.DataFrame:
    """Return how valuations agree with people, by text and, where words are annotated, by token."""
    columns = ["of", "condition", "seed", "layer", "dimension", "r", "low", "high", "random_high"]
    dimensions = everyone[PROBED][0].dimensions
    if not any(name in corpus.dimensions for name in dimensions):
        return pd.DataFrame(columns=columns)
    by_text = annotated_targets(corpus, everyone[PROBED][0]).double().numpy()
    kinds = {"text": (by_text, corpus.groups), "token": (valued.targets, corpus.groups[valued.owner])}
    records = []
    for kind, (targets, groups) in kinds.items():
        for column, dimension in enumerate(dimensions):
            if np.isfinite(targets[:, column]).sum() < 3:
                continue
            for row, layer in enumerate(layers):

                def read(
                    name: str, seed: int, kind: str = kind, row: int = row, column: int = column
                ) -> Floats:
                    values = (
                        valued.means(name, seed, row) if kind == "text" else valued.values[name][seed][row]
                    )
                    return values[:, column]

                wanted = targets[:, column]
                known = np.isfinite(wanted)
                high = max(
                    (
                        float(np.abs(_correlations(read(name, 0)[known, None], wanted[known, None])[0]))
                        for name in everyone
                        if is_random(name)
                    ),
                    default=np.nan,
                )
                records += [
                    (kind, name, seed, layer, dimension, *correlation(read(name, seed), wanted, groups), high)
                    for name, seeds in everyone.items()
                    if not is_random(name)
                    for seed in range(len(seeds))
                ]
    return pd.DataFrame.from_records(records, columns=columns)
