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
    """Probes on two samples of generated texts, which share no draw; groups are worlds, whose wording is disjoint."""
    options = {"permutations": 4, "bootstrap": 100, "progress": False}
    corpora = [load_corpus("ground-truth", limit=800, seed=seed) for seed in (0, 1)]
    return [fit_probes(ground_truth, corpus, [LAYER], **options) for corpus in corpora]  # type: ignore[arg-type]


def test_emotions_of_the_ground_truth_are_recovered_in_worlds_never_seen(known: list[ProbeSet]) -> None:
    scores = known[0].scores.set_index("concept")
    assert scores.value["(labels)"] >= 0.9 and scores.value["valence"] >= 0.9
    for concept in ("(labels)", *DIMENSIONS):
        row = scores.loc[concept]
        assert row.groups == 10 and row.low > max(row.shuffled_high, row.bag_of_words)
    assert (
        scores.low["valence"] > scores.layer0["valence"]
    )  # context has told more than the words' embeddings do


def test_shuffled_annotations_of_the_ground_truth_score_at_chance(known: list[ProbeSet]) -> None:
    scores = known[0].scores.set_index("concept")
    labels = [name for name in known[0].concepts if known[0].kinds[name] == "label"]
    assert scores.shuffled["(labels)"] < 2 / len(labels)
    assert scores.shuffled[labels].mean() == pytest.approx(0.5, abs=0.03)
    for dimension in DIMENSIONS:
        assert scores.shuffled_low[dimension] < 0 < scores.shuffled_high[dimension]


def test_other_texts_give_the_same_directions(known: list[ProbeSet]) -> None:
    first, second = known
    for concept in first.concepts:
        cosine = float(first[concept].at(LAYER) @ second[concept].at(LAYER))
        chance = float(first[concept].at(LAYER) @ second[concept].random_like(0).at(LAYER))
        # Relevance is settled less by eight hundred texts, and intensity hardly is in this layer at all.
        assert cosine >= {"relevance": 0.85, "intensity": 0.6}.get(concept, 0.95), concept
        assert abs(chance) < 0.4


def test_the_ground_truth_is_read_aloud_rightly(ground_truth: LiveModel, known: list[ProbeSet]) -> None:
    """Texts of a third sample, token by token: the read-out at the last token follows the annotation."""
    corpus = load_corpus("ground-truth", limit=120, seed=2)
    frame = trace(ground_truth, known[0], corpus.texts, concepts=["valence"]).frame
    last = frame[frame.position >= 1].groupby("text").value.mean().to_numpy()
    annotated = corpus.values("valence")
    assert np.corrcoef(last, annotated)[0, 1] > 0.9


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
    assert scores.high["valence", 4] < scores.bag_of_words["valence", 4] + 0.1
    assert "a bag of words" in probes.report()
    again = load_probes(probes.save(tmp_path / "vad.safetensors"))
    again.check_model(model)
    text = "I am so happy that you came!"
    found = trace(model, again, text)
    part = found.frame[found.frame.concept == "valence"]
    assert "".join(part.token[1:]) == text and part.value.between(1, 5).all()
    assert len(again.logit_lens(model, 0.8, top=5)) == 15
