"""What corpora have in common: concepts that both can be probed for, and texts that are in both."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.probes.tasks import plan


def shared_concepts(
    corpora: Sequence[Corpus], same: Mapping[str, str], concepts: Sequence[str] | None = None
) -> list[dict[str, str]]:
    """Return for each corpus its own names of the concepts that it shares with another one, and the common name of each.

    Only what a probe can be fitted to counts, see `emoprobe.probes.tasks.plan`.
    """
    called = [corpus.name for corpus in corpora]
    if len(set(called)) < max(2, len(called)):
        raise InputError(f"corpora {', '.join(called) or 'none'}: give two or more, of different names")
    known = [_usable(corpus, same) for corpus in corpora]
    counts = Counter(key for own in known for key in own.values())
    shared = {key for key, count in counts.items() if count > 1}
    wanted = {name for name, _ in shared} if concepts is None else set(concepts)
    missing = sorted(wanted - {name for name, _ in shared})
    if missing or not shared:
        there = "; ".join(f"{name} has {', '.join(own)}" for name, own in zip(called, known, strict=True))
        asked = f"no two corpora share {missing[0]!r}" if missing else "no two corpora share a concept"
        raise InputError(f"{asked}: {there}. Say which names mean the same, same={{'happiness': 'joy'}}")
    return [
        {name: key[0] for name, key in own.items() if key in shared and key[0] in wanted} for own in known
    ]


def _usable(corpus: Corpus, same: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return what can be fitted on a corpus: own name -> (common name, kind)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*nothing to learn")
        tasks = plan(corpus, folds=2)
    fitted = {name for task in tasks for name in task.concepts}
    found = {name: (same.get(name, name), kind) for name, kind in corpus.concepts if name in fitted}
    for key in found.values():
        own = [name for name in found if found[name] == key]
        if len(own) > 1:
            raise InputError(f"{corpus.name}: {' and '.join(own)} would both be {key[0]!r}; change same=")
    return found


def fresh_texts(corpora: Sequence[Corpus]) -> dict[tuple[int, int], NDArray[np.bool_]]:
    """Say for each two corpora, by place, which texts of the second the first does not hold; warn of those that it does."""
    plain = [[" ".join(text.casefold().split()) for text in corpus.texts] for corpus in corpora]
    known = [set(texts) for texts in plain]
    fresh = {}
    for here, there in permutations(range(len(corpora)), 2):
        fresh[here, there] = np.array([text not in known[here] for text in plain[there]])
        repeated = int((~fresh[here, there]).sum())
        if repeated and here < there:
            warnings.warn(
                f"{repeated} texts of {corpora[there].name} are in {corpora[here].name} too; they are not tested on",
                stacklevel=3,
            )
    return fresh
