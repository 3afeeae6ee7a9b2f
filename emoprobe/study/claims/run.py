"""All claims of the method's source on one model, in a folder that keeps what is done.

    study = emoprobe.run_claims("gpt2", "emobank")

Probes are fitted on groups of the corpus; words are read in the groups that were kept back, or in another corpus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd

from emoprobe.corpora import Corpus
from emoprobe.corpora.emotion_words import load_word_norms
from emoprobe.models import LiveModel
from emoprobe.probes import load_probes
from emoprobe.study.claims.cost import cost
from emoprobe.study.claims.cues import generated_pairs, written_pairs
from emoprobe.study.claims.distance import distance
from emoprobe.study.claims.magnitudes import magnitudes
from emoprobe.study.claims.turning import turning_and_emotional
from emoprobe.study.claims.word_classes import turning, word_places
from emoprobe.study.claims.word_readings import WordReadings, read_words
from emoprobe.study.conduct import Step, Study
from emoprobe.study.folder import RunFolder
from emoprobe.study.run import GROUND_TRUTH, PROBES, begun, content_of, probing_step, written_call
from emoprobe.study.texts import readable_part, valuation_dimensions
from emoprobe.valattn import Valuation

CONTROLS = 20
"""Random valuations: the fewest of which an exact test can come to less than 0.05."""
TEXTS = 120
SHORTEST = 12  # tokens of a text that is read
GLAD = ("valence", "joy")
"""Concepts that are higher with glad cues than with sad ones; the first that is probed is followed."""


def run_claims(
    model: str | Path | LiveModel = "bundled",
    corpus: str | Path | Corpus = "bundled",
    out: str | Path | None = None,
    *,
    texts: Corpus | None = None,
    norms: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    resume: bool = True,
    progress: bool = True,
    command: str | None = None,
) -> Study:
    """Put the claims of valuation attention's source to the test on a model, and leave a report in `out`.

    Arguments are those of `run_study`; `out` is by default runs/<model>-<corpus>-claims. Words are read in `texts`, by default
    the groups of `corpus` that no probe was fitted on. `norms` is a file of human word norms (see
    `emoprobe.corpora.emotion_words`), by which emotional words are told; without it they are those of a list. Where neither
    valence nor joy is annotated, the claim about long distances is left out. Raises `InputError` as `run_study` does.
    """
    ratings = None if norms is None else load_word_norms(norms)
    return begun(
        model,
        corpus,
        out,
        partial(_steps, texts, ratings),
        {
            "experiments": "claims",
            "texts": texts and texts.fingerprint,
            "norms": content_of(ratings),
        },
        limit=limit,
        seed=seed,
        resume=resume,
        progress=progress,
        command=command or written_call("run_claims", model, corpus, out, limit, seed),
        suffix="-claims",
    )


def _steps(
    texts: Corpus | None,
    norms: pd.DataFrame | None,
    folder: RunFolder,
    model: LiveModel,
    fitted: Corpus,
    kept_back: Corpus,
    seed: int,
) -> Iterator[tuple[str, Step]]:
    """Yield the claims in order; the probes of the first step make the valuation that all are tried with."""
    yield "probing", probing_step(folder, model, fitted, seed)
    probes = load_probes(folder.path / PROBES)
    valuation = Valuation.from_probes(
        probes, [name for name in valuation_dimensions(fitted) if name in probes]
    )
    corpus = kept_back if texts is None else texts

    @cache
    def read() -> WordReadings:
        return read_words(model, valuation, chosen(model, corpus, seed), controls=CONTROLS, seed=seed)

    yield "magnitudes", lambda: magnitudes(read())
    yield "words", lambda: turning_and_emotional(read(), frequencies(corpus), norms)
    followed = next((name for name in GLAD if name in probes), None)
    if followed is not None:
        worlds = np.unique(kept_back.groups).tolist()
        pairs = generated_pairs(worlds, seed) if model.name == GROUND_TRUTH else written_pairs(seed)
        yield (
            "distance",
            lambda: distance(model, valuation, probes, pairs, followed, controls=CONTROLS, seed=seed),
        )
    yield "cost", lambda: cost(model, valuation)


def chosen(model: LiveModel, corpus: Corpus, seed: int = 0) -> Corpus:
    """Return the texts whose words are read: half of them with a word that turns a sentence, where there are such texts."""
    turns = np.array([turning(words).any() for words in map(_words, corpus.texts)])
    parts = [
        readable_part(model, corpus.select(mask=mask), TEXTS // 2, seed, shortest=SHORTEST)
        for mask in (turns, ~turns)
        if mask.any()
    ]
    columns: dict[str, list[object]] = {
        "text": [text for part in parts for text in part.texts],
        "group": [group for part in parts for group in part.groups.tolist()],
    }
    return Corpus.from_columns(columns, name=corpus.name)


def frequencies(corpus: Corpus) -> pd.Series:
    """Return how often each word, in lower case, stands in a corpus."""
    return pd.Series(Counter(word.lower() for text in corpus.texts for word in _words(text)))


def _words(text: str) -> list[str]:
    return [text[start:end] for start, end in word_places(text)]
