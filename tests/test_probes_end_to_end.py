"""Probes on trained models: what is known to be there is found, and what is not there is not."""

from pathlib import Path

import numpy as np
import pytest

from emoprobe.corpora import load_corpus
from emoprobe.models import LiveModel, load_model
from emoprobe.probes import ProbeSet, fit_probes, load_probes, trace

LAYER = 6  # where valence is read best
DIMENSIONS = ("valence", "arousal", "relevance")


@pytest.fixture(scope="module")
def ground_truth() -> LiveModel:
    return load_model("ground-truth")


@pytest.fixture(scope="module")
def known(ground_truth: LiveModel) -> list[ProbeSet]:
    """Probes on two samples of generated texts; groups are worlds, whose wording is disjoint."""
    options = {"permutations": 8, "bootstrap": 100, "progress": False}
    corpora = [load_corpus("ground-truth", limit=2400, seed=seed) for seed in (0, 1)]
    assert len(set(corpora[0].texts) & set(corpora[1].texts)) < 0.02 * 2400
    return [fit_probes(ground_truth, corpus, [LAYER], **options) for corpus in corpora]  # type: ignore[arg-type]


def test_emotions_of_the_ground_truth_are_recovered_in_worlds_never_seen(known: list[ProbeSet]) -> None:
    scores = known[0].scores.set_index("concept")
    assert scores.value["(labels)"] >= 0.9 and scores.value["valence"] >= 0.9
    for concept in ("(labels)", *DIMENSIONS):
        row = scores.loc[concept]
        assert row.groups == 10 and row.low > row.shuffled_high and row.bag_of_words_gain_low > 0
    # The embedding of this model is random: what is read above it the layers have worked out.
    assert (scores.layer0_gain_low[["(labels)", *DIMENSIONS]] > 0).all() and scores.layer0["(labels)"] < 0.3


def test_shuffled_annotations_of_the_ground_truth_score_at_chance(known: list[ProbeSet]) -> None:
    scores = known[0].scores.set_index("concept")
    labels = [name for name in known[0].concepts if known[0].kinds[name] == "label"]
    assert scores.shuffled["(labels)"] == pytest.approx(1 / len(labels), abs=0.02)
    assert scores.shuffled[labels].mean() == pytest.approx(0.5, abs=0.02)
    for dimension in DIMENSIONS:
        assert scores.shuffled[dimension] == pytest.approx(0, abs=0.05)
        assert scores.shuffled_low[dimension] < 0 < scores.shuffled_high[dimension]


def test_other_texts_give_the_same_directions(known: list[ProbeSet]) -> None:
    first, second = known
    for concept in first.concepts:
        one, other = first[concept], second[concept]
        chance = [abs(float(one.at(LAYER) @ other.random_like(seed).at(LAYER))) for seed in range(20)]
        # Intensity gave 0.96 on this checkpoint, the least of all.
        least = 0.9 if concept == "intensity" else 0.95
        assert float(one.at(LAYER) @ other.at(LAYER)) >= max(least, *chance), concept


def test_the_ground_truth_is_read_aloud_rightly(ground_truth: LiveModel, known: list[ProbeSet]) -> None:
    """Texts of a third sample, token by token: the read-out averaged over a text's tokens follows its annotation."""
    corpus = load_corpus("ground-truth", limit=120, seed=2)
    frame = trace(ground_truth, known[0], corpus.texts, concepts=["valence"]).frame
    read = frame[frame.position >= 1].groupby("text").value.mean().to_numpy()
    assert np.corrcoef(read, corpus.values("valence"))[0, 1] > 0.9


@pytest.mark.shared
def test_a_small_story_model_on_emobank(shared: Path, tmp_path: Path) -> None:
    model = load_model(shared / "models" / "stories260K")
    corpus = load_corpus("emobank", folder=shared / "data" / "emobank", limit=1500)
    probes = fit_probes(model, corpus, [0, 4], permutations=6, bootstrap=200, progress=False)
    scores = probes.scores.set_index(["concept", "layer"])
    assert set(probes.concepts) == {"valence", "arousal", "dominance"}
    assert (scores.shuffled.abs() < 0.08).all() and (scores.n == 1500).all()
    assert scores.low["arousal", 0] > scores.shuffled_high["arousal", 0]
    # A quarter of a million parameters know less of valence than the words do, and the report says so.
    assert scores.bag_of_words_gain_high["valence", 4] < 0
    assert "a bag of words" in probes.report()
    again = load_probes(probes.save(tmp_path / "vad.safetensors"))
    again.check_model(model)
    text = "I am so happy that you came!"
    found = trace(model, again, text)
    part = found.frame[found.frame.concept == "valence"]
    assert "".join(part.token[1:]) == text and part.value.between(1, 5).all()
    assert len(again.logit_lens(model, 0.8, top=5)) == 15
