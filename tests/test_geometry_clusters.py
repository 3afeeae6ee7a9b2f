"""Clusters of directions against given ones, and against chance in three shapes."""

from typing import Any

import numpy as np
import pytest
import torch
from crafted import probe_set
from sklearn.metrics import adjusted_rand_score

from emoprobe.corpora.emotion_words import emotion_clusters, emotion_words
from emoprobe.errors import InputError
from emoprobe.probes.clusters import clusters

WIDTH = 40


def planted(spread: float, layers: int = 2) -> Any:
    """Return directions of the 171 words: noise at layer 0, around one point for each published cluster at the others."""
    generator = np.random.default_rng(0)
    points = dict(zip(emotion_clusters(), generator.normal(size=(10, WIDTH)), strict=True))
    of = {word: name for name, words in emotion_clusters().items() for word in words}
    given = np.stack([points[of[word]] for word in emotion_words()])
    noise = generator.normal(size=(layers, 171, WIDTH))
    return probe_set(np.concatenate([noise[:1], given + spread * noise[1:]]), emotion_words())


def test_published_clusters_are_found_where_they_are_planted() -> None:
    shuffled = torch.randn(20, 2, 171, WIDTH, generator=torch.Generator().manual_seed(0))
    found = clusters(planted(0.3), 1, shuffled=shuffled)
    assert found.k == 10 and found.agreement > 0.9 and found.p == pytest.approx(1 / 1001)
    assert max((*found.random, *found.shuffled, found.embedding)) < 0.1
    assert len(found.random) == 20 and len(found.shuffled) == 20
    index = adjusted_rand_score(found.frame.given, found.frame.cluster)
    assert found.agreement == pytest.approx(index)
    sizes = found.frame.cluster.value_counts().sort_index()
    assert sizes.is_monotonic_decreasing and "More than chance." in repr(found)


def test_noise_agrees_by_chance_only() -> None:
    found = clusters(planted(0.3), 0, permutations=200, random=5)
    assert (
        found.p > 0.01 and abs(found.agreement) < 0.1 and "Not shown to be more than chance" in found.report()
    )


def test_what_the_embedding_has_too_is_said() -> None:
    generator = np.random.default_rng(3)
    kinds = np.arange(24) % 3
    points = generator.normal(size=(3, WIDTH))[kinds]
    both = np.stack([points, points]) + 0.1 * generator.normal(size=(2, 24, WIDTH))
    names = tuple(f"concept {number}" for number in range(24))
    given = {name: "abc"[kind] for name, kind in zip(names, kinds, strict=True)}
    shuffled = torch.randn(20, 2, 24, WIDTH, generator=torch.Generator().manual_seed(0))
    for few, said in ((None, "no sets"), (shuffled[:5], "5 sets")):  # what was not run is not passed
        found = clusters(probe_set(both, names), 1, given, k=3, shuffled=few)
        assert not found.more_than_chance and f"more than chance: {said} of shuffled labels" in found.report()
    found = clusters(probe_set(both, names), 1, given, k=3, shuffled=shuffled)
    assert found.agreement == 1 == found.embedding and "no more than in the embedding" in found.report()


def test_concepts_without_a_given_cluster_are_not_compared() -> None:
    probes = probe_set(np.random.default_rng(0).normal(size=(1, 12, WIDTH)))
    found = clusters(probes, 0)
    assert found.k == 6 and np.isnan(found.agreement) and np.isnan(found.p)
    assert "nothing to compare them with (0 concepts" in found.report()
    given = {f"concept {number}": "ab"[number % 2] for number in range(8)}
    some = clusters(probes, 0, given, k=2)
    assert np.isfinite(some.agreement) and (some.frame.given == "").sum() == 4
    with pytest.raises(InputError, match="k=13: 12 directions"):
        clusters(probes, 0, k=13)
