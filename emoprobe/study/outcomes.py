"""What says that a model goes on as a concept would: what an emotion leads to, words for it, or else its read-out.

On generated texts what an emotion leads to is known: its aftermaths. Elsewhere plain feeling words after a neutral beginning
have to do, and where there are none, the read-out of the last layer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from torch import Tensor

from emoprobe.corpora import Corpus
from emoprobe.corpora.generator import EMOTIONS, aftermaths
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.steering import Measure, RowWise, continuation
from emoprobe.steering.row_wise import Passes
from emoprobe.study import feelings
from emoprobe.study.texts import counted, readable_part, targets
from emoprobe.study.wording import listed

MOST = 12
"""Concepts that are steered at most."""
AFTERMATHS = 3
SITUATIONS = 6
"""Generated beginnings that are gone on with; what is said of one concept holds over these."""
AFTERMATH, WORDS, READ_OUT = "its aftermaths", "words for it", "its read-out"
MEASURED = {
    AFTERMATH: "the log-probability of what the emotion leads to",
    WORDS: "the log-probability of words for it",
    READ_OUT: "its read-out at the last layer",
}


def outcomes_of(
    model: LiveModel, probes: ProbeSet, corpus: Corpus, texts: Corpus, seed: int
) -> tuple[str, dict[str, Measure | None], str]:
    """Return what is measured, for each concept how, and after what; None stands for a read-out of `texts`, measured anyway."""
    neutral = _neutral_beginnings(corpus)
    if neutral is not None:
        chosen = readable_part(model, neutral, SITUATIONS, seed)
        emotions = [name for name in EMOTIONS if name != "neutral" and name in probes][:MOST]
        sentences = {name: [f" {text}" for text in aftermaths(name)[:AFTERMATHS]] for name in emotions}
        measures: dict[str, Measure | None] = {
            name: leaning(called(name), follow, (), chosen.texts) for name, follow in sentences.items()
        }
        return AFTERMATH, measures, counted(chosen)
    best = probes.scores[probes.scores.metric.isin(["pearson_r", "auc"])].groupby("concept").value.max()
    # Dimensions come first: they have two ends to tell apart.
    order = sorted(
        probes.concepts, key=lambda name: (probes.kinds[name] != "dimension", -best.get(name, 0.0))
    )
    adjectives = {name: found for name in order if (found := feelings.words(name))}
    if not adjectives:
        return READ_OUT, dict.fromkeys(order[:MOST]), counted(texts)
    measures = {
        name: leaning(called(name), toward, against, feelings.PROMPTS)
        for name, (toward, against) in list(adjectives.items())[:MOST]
    }
    return WORDS, measures, f"{len(feelings.PROMPTS)} beginnings"


def leaning(name: str, toward: Sequence[str], against: Sequence[str], prompts: Sequence[str]) -> Measure:
    """Measure log P of any of `toward` after each prompt, less that of `against` where there are any: nats."""
    sides: Mapping[str, Sequence[str]] = {"toward": toward, **({"against": against} if against else {})}
    inner = continuation(sides)

    @RowWise
    def measure(model: LiveModel, ignored: Sequence[str]) -> Passes[dict[str, Tensor]]:
        found = yield from inner.passes(model, prompts)
        return {name: found["toward"] - found["against"] if against else found["toward"]}

    return measure


def called(concept: str) -> str:
    """Name the outcome of a concept."""
    return f"log P of {concept}"


def _neutral_beginnings(corpus: Corpus) -> Corpus | None:
    """Return the generated texts whose teller feels nothing in particular; none from any other corpus."""
    if corpus.name != "ground-truth" or "neutral" not in corpus.labels:
        return None
    mask = (np.asarray(corpus.data["source"][:]) == "first") & (targets(corpus, "neutral") > 0)
    return corpus.select(mask=mask) if mask.any() else None


def left_out(probes: ProbeSet, what: str, steered: Collection[str]) -> str:
    """Say which concepts are not steered with, and why; empty where all are."""
    rest = [name for name in probes.concepts if name not in steered]
    reasons = {
        AFTERMATH: [("texts tell nothing that it leads to", rest)],
        WORDS: [
            ("no plain words", [name for name in rest if not feelings.words(name)]),
            (f"read less well than these {MOST}", [name for name in rest if feelings.words(name)]),
        ],
        READ_OUT: [(f"read less well than these {MOST}", rest)],
    }[what]
    said = [f"{listed(names, MOST)} ({why})" for why, names in reasons if names]
    return f"Left out: {'; '.join(said)}." if said else ""
