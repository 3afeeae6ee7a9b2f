"""How what concepts read at every layer and token differs between two texts that differ in a few words.

A difference that was put into a text is seen where the texts differ, from layer 0 on; that a model carries it on is seen at the
tokens after that, which both texts share. So tokens are aligned from both ends, and each difference stands beside those along
random directions of equal norm: any two texts differ along any direction (Sofroniew et al. 2026, arXiv 2604.07729, figures 12
to 15, shows such maps without that control). A direction fitted to activations may differ more than those whatever the texts
say, so other concepts belong beside it. One pair of texts illustrates; a claim needs many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from emoprobe.activations import stream_residuals
from emoprobe.errors import InputError
from emoprobe.layers import Layers
from emoprobe.models.live import LiveModel
from emoprobe.probes.heat_maps import Floats, Panel, draw_panels, panels_html
from emoprobe.probes.probe_set import ProbeSet
from emoprobe.probes.readout import (
    OWN_CORPUS,
    check_kind,
    concepts_and_layers,
    random_probes,
    read_stream,
    tokens_of,
    unit_of,
    visible,
)
from emoprobe.probes.reference_corpus import Reference

Alignment = list[tuple["int | None", "int | None"]]
RANDOMS = 200
"""Random directions beside each concept's."""
SAME, REPLACED, ONLY_A, ONLY_B = "same", "replaced", "only a", "only b"
COLUMNS = [
    *("concept", "layer", "kind", "place", "relation", "position_a", "token_a", "position_b", "token_b"),
    *("value_a", "value_b", "difference", "random_low", "random_high", "z"),
]


@dataclass(frozen=True, eq=False, repr=False)
class DifferenceMap:
    """Hold what concepts read in one text less what they read in another, token by token; `difference_map` makes one."""

    texts: tuple[str, str]
    kind: str
    frame: pd.DataFrame
    """One row per concept, layer and place: concept, layer, kind, place (from 0), relation ("same" token in both texts,
    "replaced" by one other, "only a", "only b"), position_a, token_a, position_b, token_b (-1 and "" in a text that lacks it),
    value_a, value_b, difference (a - b), random_low, random_high (95 % of random directions of equal norm), z (in their
    standard deviations). NaN where there is nothing to subtract, z also where the texts have not come to differ."""
    tests: pd.DataFrame
    """One row per concept, over the cells with tokens that both texts share after their first difference: concept, cells,
    layer, place, token, difference and z where |z| is largest, and p, how often a random direction's largest is as large."""
    randoms: int
    reference: str = OWN_CORPUS

    @property
    def concepts(self) -> list[str]:
        """The concepts, each of which has a panel."""
        return self.tests.concept.tolist()

    @property
    def unit(self) -> str:
        """What the differences are in, in words."""
        return f"a − b in {unit_of(self.kind, self.reference)}"

    def matrix(self, concept: str, column: str = "difference") -> pd.DataFrame:
        """Return a column of a concept's values, layers × places. Raises `InputError` for a concept that was not read."""
        if concept not in self.concepts:
            raise InputError(f"no difference map of {concept!r}: there are {', '.join(self.concepts)}")
        part = self.frame[self.frame.concept == concept]
        return part.pivot(index="layer", columns="place", values=column)

    def report(self) -> str:
        """Say for each concept where the shared tokens differ most, and whether random directions differ as much."""
        lines = [_sentence(test, self.randoms) for test in self.tests.to_dict("records")]
        if len(lines) > 1:
            lines.append(
                f"Each p allows for all cells of its concept, none for there being {len(lines)} concepts."
            )
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Draw one panel per concept; gaps are hatched, and dots mark what lies outside 95 % of random directions."""
        return draw_panels(self.panels(), self.unit, self.kind)

    def __repr__(self) -> str:
        layers, places = self.matrix(self.concepts[0]).shape
        return (
            f"<DifferenceMap of {layers} layers × {places} places: {', '.join(self.concepts)}; {self.unit}>"
        )

    def _repr_html_(self) -> str:
        caption = (
            f"{self.unit}. Orange: above, blue: below 0; empty: one text only; underlined: outside 95 % of {self.randoms} "
            f"random directions of equal norm. {self.report()}"
        )
        return panels_html(self.panels(), caption, self.kind)

    def panels(self) -> list[Panel]:
        """Return the cells of each concept."""
        places = self.frame.drop_duplicates("place").sort_values("place")
        names = [_column(*pair) for pair in zip(places.relation, places.token_a, places.token_b, strict=True)]
        panels = []
        for concept in self.concepts:
            values = self.matrix(concept)
            low, high = (self.matrix(concept, column).to_numpy() for column in ("random_low", "random_high"))
            cells = values.to_numpy()
            known = self.matrix(concept, "z").notna().to_numpy()
            outside = known & ((cells < low) | (cells > high))
            away = np.abs(cells[np.isfinite(cells)])
            reach = float(np.quantile(away, 0.99)) if away.size else 0.0
            panels.append(Panel(concept, values.index.tolist(), names, cells, cells, reach, outside))
        return panels


def difference_map(
    model: LiveModel,
    probes: ProbeSet,
    text_a: str,
    text_b: str,
    concepts: str | Sequence[str],
    *,
    layers: Layers = "all",
    kind: str = "centred_cosine",
    reference: Reference | None = None,
    randoms: int = RANDOMS,
    seed: int = 0,
) -> DifferenceMap:
    """Subtract what concepts read in `text_b` from what they read in `text_a`, at every layer and aligned token.

    Tokens are aligned by `align`. Each concept is read along `randoms` random directions too (its own turned at random, all
    layers together; in the same unit, at the same scale). `p` of a concept is that of its largest |z| among the shared
    tokens' cells, corrected for having looked at all of them. `kind` and `reference` are as in `trace`. Raises `InputError`
    as `trace` does, and for fewer than 20 random directions, which have no 95 % range.
    """
    check_kind(kind)
    probes.check_model(model)
    if randoms < 20:
        raise InputError(f"randoms={randoms}: give at least 20, so that a 95 % range exists")
    named = OWN_CORPUS if reference is None else reference.name
    probes = probes if reference is None else reference.applied_to(probes)
    names = [concepts] if isinstance(concepts, str) else concepts
    pairs = concepts_and_layers(probes, names, layers)
    chosen = list(dict.fromkeys(layer for _, layer in pairs))
    read = [_read(model, text, chosen) for text in (text_a, text_b)]
    places = _places(read[0][0], read[1][0], [ids for _, ids, _ in read])
    # Before the first difference a model that looks back only reads the same, but for rounding.
    places["reached"] = getattr(model, "is_encoder", False) | (places.relation != SAME).cummax()
    streams = [stream for _, _, stream in read]
    frames, tests = [], []
    for name in dict.fromkeys(concept for concept, _ in pairs):
        differences = _Differences(probes, name, chosen, kind, streams, places, randoms, seed)
        frames.append(differences.frame())
        tests.append(differences.test())
    frame = pd.concat(frames, ignore_index=True)
    return DifferenceMap((text_a, text_b), kind, frame, pd.DataFrame(tests), randoms, named)


class _Differences:
    """One concept's values in two texts, and their differences along it and along random directions."""

    def __init__(
        self,
        probes: ProbeSet,
        name: str,
        layers: Sequence[int],
        kind: str,
        streams: Sequence[Tensor],
        places: pd.DataFrame,
        randoms: int,
        seed: int,
    ) -> None:
        self.name, self.layers, self.kind, self.places = name, layers, kind, places
        at = [places[f"position_{side}"].to_numpy() for side in "ab"]
        self.both = np.flatnonzero((at[0] >= 0) & (at[1] >= 0))
        own = [_values(probes, stream, layers, kind, [name])[..., 0] for stream in streams]
        self.values = [
            np.where(there >= 0, read[:, there], np.nan) for read, there in zip(own, at, strict=True)
        ]
        self.difference = self.values[0] - self.values[1]  # (layers, places)
        turned = random_probes(probes, name, randoms, seed)
        x, y = (stream[:, there[self.both]] for stream, there in zip(streams, at, strict=True))
        self.chance = _values(turned, x, layers, kind) - _values(
            turned, y, layers, kind
        )  # (layers, both, randoms)
        self.spread = np.sqrt((self.chance**2).mean(2))  # about 0, around which they lie by symmetry
        reached = places.reached.to_numpy()[self.both]
        self.comparable = _differ(x, y) & reached & (self.spread > 0)  # (layers, both)

    def frame(self) -> pd.DataFrame:
        """Return one row per layer and place."""
        low, high, z = (np.full(self.difference.shape, np.nan) for _ in range(3))
        low[:, self.both], high[:, self.both] = np.quantile(self.chance, [0.025, 0.975], axis=2)
        z[:, self.both] = np.divide(
            self.difference[:, self.both],
            self.spread,
            out=np.full(self.spread.shape, np.nan),
            where=self.comparable,
        )
        columns = {"value_a": self.values[0], "value_b": self.values[1], "difference": self.difference}
        columns |= {"random_low": low, "random_high": high, "z": z}
        rows = self.places.loc[np.tile(self.places.index, len(self.layers))].reset_index(drop=True)
        return rows.assign(
            concept=self.name,
            layer=np.repeat(self.layers, len(self.places)),
            kind=self.kind,
            **{column: values.ravel() for column, values in columns.items()},
        )[COLUMNS]

    def test(self) -> dict[str, object]:
        """Return where shared tokens differ most, and how often a random direction's do as much somewhere."""
        shared = (self.places.relation == SAME).to_numpy()[self.both]
        rows, columns = np.nonzero(self.comparable & shared)
        found: dict[str, object] = {"concept": self.name, "cells": len(rows)}
        if not len(rows):
            nowhere = {"layer": -1, "place": -1, "token": ""}
            return {**found, **nowhere, "difference": np.nan, "z": np.nan, "p": np.nan}
        observed = self.difference[:, self.both][rows, columns]
        z = observed / self.spread[rows, columns]
        most = int(np.abs(z).argmax())
        place = int(self.both[columns[most]])
        # The concept's own direction is one of those compared, so that p holds for any number of them.
        compared = np.column_stack([observed, self.chance[rows, columns]])
        largest = (np.abs(compared) / np.sqrt((compared**2).mean(1, keepdims=True))).max(0)
        return {
            **found,
            "layer": self.layers[rows[most]],
            "place": place,
            "token": self.places.token_a[place],
            "difference": float(observed[most]),
            "z": float(z[most]),
            "p": float((largest >= largest[0]).mean()),
        }


def _differ(x: Tensor, y: Tensor) -> NDArray[np.bool_]:
    """Say which of two texts' tokens (layers, tokens, d_model) differ by more than rounding: (layers, tokens)."""
    apart, size = (x - y).float().norm(dim=-1), x.float().norm(dim=-1)
    found: NDArray[np.bool_] = (apart > 1e-5 * size).cpu().numpy()
    return found


def _values(
    probes: ProbeSet, stream: Tensor, layers: Sequence[int], kind: str, concepts: Sequence[str] | None = None
) -> Floats:
    """Read a stream (layers, tokens, d_model) out at each layer: (layers, tokens, concepts)."""
    read = [read_stream(probes, at, layer, kind, concepts) for at, layer in zip(stream, layers, strict=True)]
    values: Floats = torch.stack(read).double().cpu().numpy()
    return values


def _read(
    model: LiveModel, text: str, layers: Sequence[int]
) -> tuple[list[tuple[str, int, int]], list[int], Tensor]:
    """Return a text's tokens, their ids and its residual streams (layers, tokens, d_model)."""
    (part,) = stream_residuals(model, [text], layers)
    return tokens_of(model, part.batch, 0), part.batch.input_ids[0].tolist(), part.stream[:, 0]


# Alignment -----------------------------------------------------------------------------------------------------------


def align(first: Sequence[int], second: Sequence[int]) -> Alignment:
    """Pair the tokens of two texts in order: (place in the first, place in the second), None where one has no partner.

    What both begin and end with is paired first; between, longest common stretches (difflib's SequenceMatcher). Stretches of
    equal length between these are paired token by token, though they differ; others are left without partners.
    """
    shorter = min(len(first), len(second))
    head = next((n for n in range(shorter) if first[n] != second[n]), shorter)
    tail = next((n for n in range(shorter - head) if first[-1 - n] != second[-1 - n]), shorter - head)
    middle = [list(ids[head : len(ids) - tail]) for ids in (first, second)]
    pairs: Alignment = [(place, place) for place in range(head)]
    for _, a, a_end, b, b_end in SequenceMatcher(None, middle[0], middle[1], autojunk=False).get_opcodes():
        if a_end - a == b_end - b:
            pairs += [(head + a + n, head + b + n) for n in range(a_end - a)]
        else:
            pairs += [(head + place, None) for place in range(a, a_end)]
            pairs += [(None, head + place) for place in range(b, b_end)]
    return pairs + [(len(first) - n, len(second) - n) for n in range(tail, 0, -1)]


def _places(
    tokens_a: list[tuple[str, int, int]], tokens_b: list[tuple[str, int, int]], ids: Sequence[Sequence[int]]
) -> pd.DataFrame:
    """Return one row per aligned place: place, relation, and position and token in either text."""
    rows = []
    for place, (a, b) in enumerate(align(*ids)):
        if a is None or b is None:
            relation = ONLY_A if b is None else ONLY_B
        else:
            relation = SAME if ids[0][a] == ids[1][b] else REPLACED
        in_a = (-1, "") if a is None else (a, tokens_a[a][0])
        in_b = (-1, "") if b is None else (b, tokens_b[b][0])
        rows.append((place, relation, *in_a, *in_b))
    return pd.DataFrame(rows, columns=COLUMNS[3:9])


# In words -------------------------------------------------------------------------------------------------------------


def _column(relation: str, token_a: str, token_b: str) -> str:
    """Name a place by its token, or by both where they differ."""
    return token_a if relation == SAME else f"{visible(token_a or '–')} / {visible(token_b or '–')}"


def _sentence(test: dict[Any, Any], randoms: int) -> str:
    if not test["cells"]:
        return f"{test['concept']}: after their first difference the texts share no token that could differ."
    found = "more than" if test["p"] <= 0.05 else "not shown to be more than what"
    return (
        f"{test['concept']}: the shared token that differs most is “{visible(test['token'])}” at layer {test['layer']}, a − b "
        f"{test['difference']:+.3g} (z {test['z']:+.1f}); p = {test['p']:.3f} over {test['cells']} cells: {found} {randoms} "
        "random directions of equal norm give."
    )
