"""Which texts a study works on: what is fitted on, what is held out, what is read aloud.

Texts of one group (a document, a writer, a world) never fall on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, zip_longest
from typing import Any

import numpy as np
from sklearn.model_selection import GroupShuffleSplit

from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.models.live import LiveModel

TEXTS = 3000
"""Texts that a study uses at most unless it is told otherwise."""
HELD_OUT = 0.25
"""Share of the groups that nothing is fitted on."""
MOST_DIMENSIONS = 32
METHOD = ("valence", "arousal", "relevance")
"""The dimensions of the method's source."""


def divide(corpus: Corpus, limit: int | None = None, seed: int = 0) -> tuple[Corpus, Corpus]:
    """Return the texts to fit on and those held out, whole groups each, at most `limit` (3,000) texts together.

    Raises `InputError` for a corpus of fewer than four groups.
    """
    limit = TEXTS if limit is None else limit
    if len(corpus) > limit:
        corpus = corpus.sample(limit, seed)
    groups = len(np.unique(corpus.groups))
    if groups < 4:
        raise InputError(
            f"{corpus.name}: {len(corpus)} texts in {groups} groups are too few for a study, which fits on some groups and "
            "tests on others: give at least 4 groups"
        )
    splitter = GroupShuffleSplit(1, test_size=HELD_OUT, random_state=seed)
    fitted, held_out = next(splitter.split(corpus.groups, groups=corpus.groups))
    return corpus.select(indices=np.sort(fitted)), corpus.select(indices=np.sort(held_out))


def valuation_dimensions(corpus: Corpus) -> tuple[str, ...]:
    """Choose what to value by: valence, arousal and relevance where all three are annotated, else all dimensions that are.

    A corpus without dimensions is valued by its labels. There are at most 32, the most often annotated ones.
    """
    if all(name in corpus.dimensions for name in METHOD):
        return METHOD
    if corpus.dimensions:
        counts = {name: int(np.isfinite(corpus.values(name)).sum()) for name in corpus.dimensions}
    else:
        counts = dict(zip(corpus.labels, corpus.label_matrix().sum(0).tolist(), strict=True))
    kept = sorted((name for name in counts if counts[name]), key=lambda name: -counts[name])[:MOST_DIMENSIONS]
    return tuple(name for name in counts if name in kept)


def targets(corpus: Corpus, concept: str) -> np.ndarray:
    """Return a concept's annotations, float (texts,): a dimension's values, or 1 where a label is carried and 0 elsewhere."""
    if concept in corpus.dimensions:
        return corpus.values(concept)
    return corpus.label_matrix()[:, corpus.labels.index(concept)].astype(float)


def readable(
    model: LiveModel, texts: Sequence[str], most: int, seed: int = 0, shortest: int = 4
) -> list[str]:
    """Draw at most `most` texts that the model can read whole and that have at least `shortest` tokens.

    Raises `InputError` where there is none.
    """
    return [texts[row] for row in _drawn(model, texts, np.zeros(len(texts)), most, seed, shortest)]


def readable_part(model: LiveModel, corpus: Corpus, most: int, seed: int = 0, shortest: int = 4) -> Corpus:
    """Draw at most `most` such texts of a corpus, from as many different groups as can be.

    Texts of one group go alike: what is averaged over texts is surer, the more groups they are of. Raises `InputError` where
    no text is readable.
    """
    return corpus.select(indices=_drawn(model, corpus.texts, corpus.groups, most, seed, shortest))


def counted(texts: Corpus) -> str:
    """Say how many held-out texts these are, and of how many groups."""
    groups = len(np.unique(texts.groups))
    return f"{len(texts)} held-out text{'s' * (len(texts) > 1)} of {groups} group{'s' * (groups > 1)}"


def _drawn(
    model: LiveModel,
    texts: Sequence[str],
    groups: np.ndarray[Any, Any],
    most: int,
    seed: int,
    shortest: int,
) -> list[int]:
    """Return the rows of readable texts: one of each group in random order, then a second of each, and so on."""

    def fits(row: int) -> bool:
        length = len(model.tokenizer(texts[row])["input_ids"])
        return shortest <= length <= (model.context_length or length)

    generator = np.random.default_rng(seed)
    rows = generator.permutation(len(texts))
    member = np.unique(groups, return_inverse=True)[1][rows]
    by_group = np.split(rows[np.argsort(member, kind="stable")], np.bincount(member).cumsum()[:-1])
    queues = [filter(fits, by_group[group].tolist()) for group in generator.permutation(len(by_group))]
    turns = (row for turn in zip_longest(*queues) for row in turn if row is not None)
    chosen = list(islice(turns, most))
    if not chosen:
        raise InputError(
            f"no held-out text has between {shortest} and {model.context_length} tokens for {model.name}: give another corpus"
        )
    return chosen
