"""Scenarios: measures are those computed one by one; the planted is found, its opposite too, and nothing where nothing is."""

from collections.abc import Mapping

import numpy as np
import pytest
from parts import shown
from planted_probes import planted_probes
from planted_reader import directions, reader
from small_study import small_corpus
from tiny import tiny_model

from emoprobe import InputError
from emoprobe.models import LiveModel
from emoprobe.probes import ProbeSet, fit_probes
from emoprobe.study.concepts import scenarios as module
from emoprobe.study.concepts.scenarios import (
    by_emotion,
    others_below,
    recall,
    scenarios,
    within_topics,
    words_read,
)

EMOTIONS = {"happy": "joy", "afraid": "fear", "angry": "anger", "sad": "sadness", "calm": "contentment"}
TOPICS = {"home": "in the kitchen", "work": "at the desk", "road": "by the bridge", "sea": "on the boat"}
STIMULI = {
    emotion: {topic: f"The {emotion}thing came to us {where} at noon." for topic, where in TOPICS.items()}
    for emotion in EMOTIONS
}
TEXTS = [text for texts in STIMULI.values() for text in texts.values()]


def planted(strength: float) -> tuple[LiveModel, ProbeSet]:
    """Return a model in which the word for each emotion's thing carries its direction, so many times its own length."""
    rows = directions(len(EMOTIONS))
    words = dict(zip((f"{emotion}thing" for emotion in EMOTIONS), rows, strict=True))
    model = reader(TEXTS, words, strength=abs(strength))
    return model, planted_probes(model, rows * np.sign(strength or 1.0), list(EMOTIONS.values()))


def run(
    model: LiveModel, probes: ProbeSet, stimuli: Mapping[str, Mapping[str, str]] = STIMULI, **options: int
):
    return scenarios(model, probes, stimuli=stimuli, shuffles=199, **options)


@pytest.mark.parametrize(
    ("strength", "said", "sign"),
    [
        (3.0, "the own emotion stands out", 1),
        (0.0, "it is not shown that", 0),
        (-3.0, "the own emotion is read lower than others", -1),
    ],
)
def test_all_three_outcomes(strength: float, said: str, sign: int) -> None:
    found = run(*planted(strength))
    assert all(f"{where}: {said}" in found.verdict for where in ("Before the reply", "End of the plain text"))
    assert shown(found)[0] == (sign > 0)
    rows = found.table[found.table.measure == "stands out"]
    assert (np.sign(rows.value) == sign).all() or sign == 0
    at_colon = found.table[found.table.place == "before the reply"].set_index("measure")
    below = at_colon.value["others below"]
    assert {1: below > 0.95, 0: 0.2 < below < 0.8, -1: below < 0.05}[sign]
    assert at_colon.chance["top-1"] == pytest.approx(1 / 5) and at_colon.chance["top-3"] == pytest.approx(
        3 / 5
    )
    if sign > 0:  # words are all there is
        assert "by rank not shown to be above the embedding" in found.verdict


def test_the_whole_is_the_same_in_any_batch() -> None:
    model, probes = planted(1.0)
    one, many = (run(model, probes, batch_size=size).table for size in (1, 32))
    assert (
        one.drop(columns=["place", "measure"]).sub(many.drop(columns=["place", "measure"])).abs().max().max()
        < 1e-6
    )


def test_a_random_model_shows_nothing_before_the_reply() -> None:
    model = tiny_model("llama")
    probes = planted_probes(model, np.random.default_rng(1).normal(size=(5, 32)), list(EMOTIONS.values()))
    found = scenarios(model, probes, shuffles=199)
    assert found.verdict.startswith("Before the reply: it is not shown")
    assert "20 scenarios of 5 emotions on 4 topics" in found.method and "left out: loving" in found.method
    assert found.svg and found.published and not found.checks


# Measures ------------------------------------------------------------------------------------------------------------


def test_standing_out_is_own_less_others_after_both_means() -> None:
    generator = np.random.default_rng(0)
    own = np.array([0, 1, 2, 0, 1, 2, 2])
    scores = generator.normal(size=(4, 7, 3)) + generator.normal(size=3)
    found = by_emotion(scores, own)
    for which, values in enumerate(scores):
        apart = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
        for concept in range(3):
            each = [row[concept] - np.delete(row, concept).mean() for row in apart[own == concept]]
            assert found[which, concept] == pytest.approx(np.mean(each))
    assert np.allclose(
        by_emotion(scores + generator.normal(size=(4, 7, 1)) + generator.normal(size=3), own), found
    )


def test_recall_is_that_of_a_sorted_list() -> None:
    scores = np.random.default_rng(1).normal(size=(50, 6))
    own = np.arange(50) % 6
    for most in (1, 3):
        expected = [own[row] in np.argsort(-values)[:most] for row, values in enumerate(scores)]
        assert recall(scores, own, most).tolist() == expected
    same = np.zeros((6, 6))
    assert recall(same, own[:6], 1).tolist() == pytest.approx([1 / 6] * 6)
    assert recall(same, own[:6], 3).tolist() == pytest.approx([1 / 2] * 6)
    assert (others_below(same, own[:6]) == 0.5).all()


def test_others_below_is_a_rank() -> None:
    scores = np.random.default_rng(2).normal(size=(30, 5)) + np.arange(5)
    own = np.arange(30) % 5
    apart = scores - scores.mean(0)
    expected = [np.mean(np.delete(row, mine) < row[mine]) for row, mine in zip(apart, own, strict=True)]
    assert others_below(scores, own) == pytest.approx(np.array(expected))


def test_shuffles_stay_within_topics() -> None:
    own, topics = np.array([0, 1, 2, 0, 1, 2]), np.array([0, 0, 0, 1, 1, 1])
    orders = within_topics(own, topics, 60, 0)
    for topic in (0, 1):
        assert (np.sort(orders[:, topics == topic]) == [0, 1, 2]).all()
    assert len(np.unique(orders, axis=0)) > 20


def test_p_is_uniform_where_nothing_is() -> None:
    generator = np.random.default_rng(3)
    own, topics = np.repeat(np.arange(4), 4), np.tile(np.arange(4), 4)
    orders = within_topics(own, topics, 99, 0)
    p = [module.stands_out(generator.normal(size=(3, 16, 4)), own, orders, 1).p for _ in range(200)]
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.1 and 0.4 < np.mean(p) < 0.6


# Words ---------------------------------------------------------------------------------------------------------------


def test_words_of_the_corpus_stand_beside_the_probes() -> None:
    corpus = small_corpus(labels=True)
    glad, mixed = "the music was good, and she came home at last", "she came home, and it was dark and cold"
    read = words_read(corpus, ["glad", "<b>sad</b>", "$mixed$"], [glad, mixed])
    assert read.shape == (2, 3) and read[0, 0] > read[1, 0] and read[0, 1] < read[1, 1]
    model = tiny_model("llama")
    probes = fit_probes(model, corpus, permutations=0, bootstrap=0, progress=False)
    stimuli = {
        "glad": {"a": glad, "b": "the sun came up"},
        "<b>sad</b>": {"a": "it was dark and cold", "b": "they had lost the house"},
        "$mixed$": {"a": mixed, "b": "the sun came up, and the letter never came"},
    }
    found = scenarios(model, probes, corpus=corpus, stimuli=stimuli, shuffles=19)
    rows = found.table[(found.table.place == "bag of words") & (found.table.measure == "others below")]
    assert len(rows) == 1 and f"bag of words {rows.value.iloc[0]:.2f}" in found.controls
    with pytest.raises(InputError, match="has no label"):
        words_read(corpus, ["fear"], ["a"])


def test_too_few_emotions_are_refused() -> None:
    model, probes = planted(1.0)
    with pytest.raises(InputError, match="know 2 of the emotions that this needs 3 of"):
        scenarios(model, probes, stimuli={name: STIMULI["sad"] for name in ("happy", "sad", "bored")})
