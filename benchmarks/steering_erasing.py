"""Take concepts away from a model, and say what that leaves of them and what it costs: a part of benchmarks/steering.py."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emoprobe.corpora import Corpus
from emoprobe.interventions import Intervention
from emoprobe.layers import resolve_layers
from emoprobe.models import LiveModel
from emoprobe.probes import Direction, ProbeSet
from emoprobe.steering import clamp, nll, project_out
from emoprobe.study.texts import readable_part, targets
from emoprobe.study.wording import number, ranged

DEPTH = 0.66
"""Share of the depth at which is steered: the library's default."""


def from_neutral(direction: Direction, streams: Tensor) -> Direction:
    """Return a direction made orthogonal to neutral texts' mean streams (layers, d_model): they lie at 0 along it."""
    mean = torch.nn.functional.normalize(streams[list(direction.layers)], dim=-1)
    vectors = direction.vectors - (direction.vectors * mean).sum(-1, keepdim=True) * mean
    return replace(direction, vectors=torch.nn.functional.normalize(vectors, dim=-1))


WAYS = {
    "plain": "projected out as it is, at all layers but the last",
    "neutral": "made orthogonal to the mean stream of the neutral texts of the fit (0 along it is where they lie) and "
    "projected out from {first} up",
    "clamped": "its read-out clamped from above, at the mean of those neutral texts, from {first} up",
}
"""How a concept is taken away, in words."""


def erased(
    model: LiveModel,
    probes: ProbeSet,
    concepts: Sequence[str],
    corpus: Corpus,
    neutral: Sequence[str],
    fitted_neutral: Sequence[str],
) -> dict[str, Any]:
    """Take each concept away below the last layer; read it there, and price it on neutral text, beside random directions."""
    last, (first,) = model.n_layers, resolve_layers(DEPTH, model.n_layers)
    upper = range(first, last)
    streams = model.capture(fitted_neutral, "all")
    price = nll(neutral)
    before = price(model, neutral)["nll"].numpy()

    def read(texts: Sequence[str], column: int) -> np.ndarray[Any, Any]:
        stream = model.capture(texts, [last])[:, 0]
        found: np.ndarray[Any, Any] = probes.read_out(stream, last)[:, column].numpy()
        return found

    def clamped(concept: str, column: int) -> list[Intervention]:
        levels = [float(probes.read_out(streams[:, layer], layer)[:, column].mean()) for layer in upper]
        pairs = zip(upper, levels, strict=True)
        return [edit for at, level in pairs for edit in clamp(model, probes, concept, -math.inf, level, at)]

    rows = []
    for concept in concepts:
        column, plain = probes.concept_index(concept), probes[concept]
        own = readable_part(model, corpus.select(mask=targets(corpus, concept) > 0), 12).texts
        calm = read(neutral, column)
        ways: dict[str, Sequence[Intervention]] = {
            "plain": project_out(model, plain, list(range(last))),
            "neutral": project_out(model, from_neutral(plain, streams.mean(0)), list(upper)),
            "clamped": clamped(concept, column),
            **{f"random {n}": project_out(model, plain.random_like(n), list(range(last))) for n in range(3)},
        }
        found = {}
        for name, interventions in ways.items():
            with model.intervene(*interventions):
                cost = (price(model, neutral)["nll"].numpy() - before).mean() / before.mean()
                found[name] = {"read": float(read(own, column).mean()), "cost": float(cost)}
        row = {"concept": concept, "untouched": read(own, column).mean(), "calm": calm.mean(), "ways": found}
        rows.append({**row, "calm_range": [calm.min(), calm.max()]})
    return {"texts": len(neutral), "first": first, "rows": rows}


def told_erased(found: dict[str, Any]) -> list[str]:
    """Return the table of `erased` and what it says."""
    rows = found["rows"]
    first = f"layer {found['first']}"
    named = "; ".join(f"{name}: {how.format(first=first)}" for name, how in WAYS.items())
    lines = [
        f"Each concept taken away, and then read at the last layer from its own held-out texts; in brackets the change of NLL "
        f"of {found['texts']} held-out neutral texts. {named[:1].upper()}{named[1:]}. Random directions: projected out at all "
        "layers but the last. That the upper layers alone cost less was seen on five of the concepts and these texts first.",
        "",
        f"| concept | untouched | {' | '.join(WAYS)} | three random directions | held-out neutral texts: mean, range |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ways = row["ways"]
        cells = [
            f"{number(ways[name]['read'], sign=True)} ({100 * ways[name]['cost']:+.2f} %)" for name in WAYS
        ]
        random = [one for name, one in ways.items() if name not in WAYS]
        by_random = ranged([extreme(one["read"] for one in random) for extreme in (min, max)], sign=True)
        dearest = 100 * max(one["cost"] for one in random)
        lines.append(
            f"| {row['concept']} | {number(row['untouched'], sign=True)} | {' | '.join(cells)} | {by_random} (up to "
            f"{dearest:+.2f} %) | {number(row['calm'], sign=True)}, {ranged(row['calm_range'], sign=True)} |"
        )
    lines.append("")
    for name in WAYS:
        low = sum(row["ways"][name]["read"] <= row["calm_range"][1] for row in rows)
        cheap = sum(row["ways"][name]["cost"] <= 0.01 for row in rows)
        shares = [
            (row["untouched"] - row["ways"][name]["read"]) / (row["untouched"] - row["calm"]) for row in rows
        ]
        lines.append(
            f"- {name}: {100 * float(np.mean(shares)):.0f} % of the way to neutral texts' mean on average (least "
            f"{100 * min(shares):.0f} %), no higher than the highest of them for {low} of {len(rows)}; NLL raised by at most "
            f"1 % for {cheap}."
        )
    return [*lines, ""]
