"""Emotion vectors of the ground-truth model on texts whose emotion is known, of worlds held out.

Its language makes valence and arousal count, so that they lie on leading components; that they are found where they are there
is tested by adding them to the vectors too.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

import emoprobe as ep
from emoprobe.corpora.generator import EMOTIONS, generate
from emoprobe.probes import ProbeSet
from emoprobe.probes.axes import leading_axes
from emoprobe.probes.emotion_vector_recipe import EmotionVectors, emotion_vectors
from emoprobe.probes.probe_set import LABELS
from emoprobe.probes.similarity import layer_similarity

NORMS = {name: {"valence": place.valence, "arousal": place.arousal} for name, place in EMOTIONS.items()}


@cache
def vectors() -> EmotionVectors:
    model, corpus = ep.load_model("ground-truth"), ep.load_corpus("ground-truth", limit=520)
    neutral = [text.text for text in generate(80, 1, forms=("first", "third"), emotions=["neutral"])]
    options: dict[str, Any] = {
        "layers": [0, 2, 4, 5],
        "start": 5,
        "shuffles": 39,
        "permutations": 3,
        "bootstrap": 60,
    }
    return emotion_vectors(model, corpus, neutral, **options, progress=False)


@pytest.mark.parametrize("version", ["raw", "denoised"])
def test_the_emotion_of_texts_of_unseen_worlds_is_that_of_the_nearest_vector(version: str) -> None:
    probes = getattr(vectors(), version)
    scores = probes.scores[probes.scores.concept == LABELS].set_index("layer")
    assert scores.value[4] > 0.8 and scores.shuffled_best_high[4] < 0.25 and scores.bag_of_words[4] < 0.4
    assert probes.best_layer() > 0


def planted(probes: ProbeSet, strength: float) -> ProbeSet:
    """Return the vectors with valence and arousal added along two directions, `strength` in their mean length."""
    ratings = torch.tensor([list(NORMS[name].values()) for name in probes.concepts])
    ratings = (ratings - ratings.mean(0)) / ratings.std(0)
    noise = torch.randn(probes.d_model, 2, generator=torch.Generator().manual_seed(0))
    added = ratings @ torch.linalg.qr(noise)[0].T * probes.scale.mean(-1)[:, None, None]
    whole = probes.directions * probes.scale[..., None] + strength * added
    return replace(probes, directions=whole / whole.norm(dim=-1, keepdim=True), scale=whole.norm(dim=-1))


def test_axes_are_found_when_they_are_there_and_the_verdict_follows_the_numbers() -> None:
    own = leading_axes(vectors().raw, NORMS, vectors().shuffled["raw"])
    added = leading_axes(planted(vectors().raw, 1.0), NORMS, vectors().shuffled["raw"])
    best = added.frame.loc[added.frame.groupby("norm").r.idxmax()].set_index("norm")
    assert (best.p_layers < 0.01).all() and (best.p_shuffled_layers < 0.05).all() and (best.r > 0.85).all()
    assert set(best.component) <= {"PC1", "PC2"}
    found = {norm: rows.loc[rows.r.idxmax()] for norm, rows in own.frame.groupby("norm")}
    missed = sum(top.p_layers >= 0.05 or top.p_shuffled_layers >= 0.05 for top in found.values())
    assert own.report().count("Not shown to be an axis.") == missed


def test_valence_and_arousal_lie_on_the_models_own_leading_components() -> None:
    found = leading_axes(vectors().raw, NORMS, vectors().shuffled["raw"]).frame
    for norm, rows in found.groupby("norm"):
        best = rows.loc[rows.r.idxmax()]
        assert best.p_layers < 0.05 and best.p_shuffled < 0.05 and best.r > best.layer0, norm
        assert best.component in {"PC1", "PC2", "PC3"} and best.layer > 0, norm


def test_layers_are_alike_and_shuffled_labels_say_how_much_that_is_worth() -> None:
    found = layer_similarity(vectors().raw, shuffled=vectors().shuffled["raw"], permutations=99)
    rows = found.frame[
        (found.frame.measure == "rsa") & (found.frame.layer_a == 2) & (found.frame.layer_b == 4)
    ].iloc[0]
    assert rows.value > 0.3 and rows.p < 0.05 and rows.shuffled > 0.2  # alike, whatever the labels were
