"""Negated emotions: contrasts are those computed one by one, ratios need a divisor, and every outcome can come out."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from parts import shown
from planted_probes import planted_probes
from planted_reader import directions, reader
from tiny import tiny_model

from emoprobe import InputError
from emoprobe.models import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.study.concepts import negation as module
from emoprobe.study.concepts.evidence import Evidence, fieller
from emoprobe.study.concepts.negation import CONDITIONS, PLACES, contrast, negation, placed, ratio, verdict
from emoprobe.study.concepts.places import read_at
from emoprobe.study.concepts.stimuli import load
from emoprobe.study.result import Result

EMOTIONS = {"happy": "joy", "afraid": "fear", "angry": "anger", "sad": "sadness"}
FRAMES, PHRASES = load("negation")["frames"], load("negation")["phrases"]
LATER = 1  # the place that outcomes are planted at


def sentences() -> list[str]:
    return [
        frame["text"].format(phrase=phrase.format(name=frame["name"], w=emotion))
        for phrase in PHRASES.values()
        for frame in FRAMES
        for emotion in EMOTIONS
    ]


@pytest.fixture(scope="module")
def spreading() -> tuple[LiveModel, ProbeSet]:
    """Return a model that carries what words say and knows nothing of negation."""
    rows = dict(zip(EMOTIONS, directions(4), strict=True))
    model = reader(sentences(), rows, strength=4.0, spread=2.0)
    return model, planted_probes(model, np.stack(list(rows.values())), list(EMOTIONS.values()))


def planted(monkeypatch: pytest.MonkeyPatch, left: Mapping[str, float], affirmed: float = 1.0) -> Result:
    """Return what is found where each condition has such a part of the affirmed contrast at the later word."""
    generator = np.random.default_rng(0)

    def read(*_: Any, **__: Any) -> np.ndarray:
        values = 0.02 * generator.normal(
            size=(21, 4, 8, 4, 3, 4, 4)
        )  # conditions, frames, words, places, layers, concepts
        for number, condition in enumerate(CONDITIONS):
            values[0, number, :, :, LATER] += affirmed * left[condition] * np.eye(4)[None, :, None]
        return values.reshape(21, -1, 3, 4, 4)

    monkeypatch.setattr(module, "read_beside_random", read)
    model = tiny_model("llama")
    probes = planted_probes(model, np.random.default_rng(1).normal(size=(4, 32)), list(EMOTIONS.values()))
    return negation(model, probes)


@pytest.mark.parametrize(
    ("left", "affirmed", "said"),
    [
        ((0.9, 0.0, 0.0), 1.0, "At the later word “does not feel” is resolved"),
        ((0.9, -0.5, 0.0), 1.0, "At the later word “does not feel” is turned into its opposite"),
        ((0.9, 0.8, 0.0), 1.0, "At the later word “does not feel” is not resolved"),
        ((0.9, 0.5, 0.0), 1.0, "It is not shown whether “does not feel” is resolved at the later word"),
        ((0.3, 0.3, 0.0), 1.0, "the negation need not be what does it"),  # length alone does the same
        ((0.9, 0.9, 0.1), 1.0, "At the later word “no one feels” is resolved"),
        ((0.9, 0.0, 0.0), 0.0, "Whether “does not feel” is resolved at the later word cannot be said"),
        ((0.9, 0.0, 0.0), -1.0, "Whether “does not feel” is resolved at the later word cannot be said"),
    ],
)
def test_all_outcomes(
    monkeypatch: pytest.MonkeyPatch, left: tuple[float, float, float], affirmed: float, said: str
) -> None:
    found = planted(monkeypatch, dict(zip(CONDITIONS, (1.0, *left), strict=True)), affirmed)
    assert said in found.verdict
    assert "Whether “does not feel” is resolved at the place before the reply cannot be said" in found.verdict
    resolved = any(
        f"At the later word “does not feel” is {how}" in found.verdict for how in ("resolved", "turned into")
    )
    assert shown(found) == [resolved, affirmed > 0, False, False]


def test_carrying_words_is_not_resolving_negation(spreading: tuple[LiveModel, ProbeSet]) -> None:
    found = negation(*spreading)
    for place in ("later word", "place before the reply"):
        assert f"At the {place} “does not feel” is not resolved" in found.verdict
        assert f"At the {place} “no one feels” is not resolved" in found.verdict
    along = negation(*spreading, kind="dot").table
    rows = along[(along.layer == 2) & (along.place == "later word")].set_index("condition")
    # As many words more thin the mean by as much, whatever they say.
    assert rows.ratio["negated"] == pytest.approx(rows.ratio["longer"], abs=1e-6)
    assert rows.ratio["negated"] < rows.ratio["nobody"] - 0.02
    at_zero = found.table[(found.table.layer == 0) & (found.table.place == "word")]
    assert np.allclose(at_zero.ratio, 1)
    assert found.svg and found.published and "sad" not in found.method.split("left out")[0]


def test_the_table_is_what_sentences_read_alone_give() -> None:
    model = tiny_model("llama")
    probes = planted_probes(model, np.random.default_rng(2).normal(size=(4, 32)), list(EMOTIONS.values()))
    found = negation(model, probes, batch_size=1).table
    assert np.allclose(found.contrast, negation(model, probes, batch_size=32).table.contrast, atol=1e-6)
    for condition in ("affirmed", "nobody"):
        each = []
        for frame in FRAMES:
            read = {
                emotion: read_at(
                    model, probes, [placed(model, frame, PHRASES[condition], emotion)], PLACES, [2]
                )[0, :, 0]
                for emotion in EMOTIONS
            }  # (places, concepts)
            for concept, emotion in enumerate(EMOTIONS):
                others = [read[other][:, concept] for other in EMOTIONS if other != emotion]
                each.append(read[emotion][:, concept] - np.mean(others, axis=0))
        rows = found[(found.condition == condition) & (found.layer == 2)]
        assert np.allclose(rows.contrast, np.mean(each, axis=0), atol=1e-6)


def test_places_are_where_they_should_be() -> None:
    model = tiny_model("gpt2")
    for frame in FRAMES:
        for condition, phrase in PHRASES.items():
            prompt = placed(model, frame, phrase, "sad")
            at = [prompt.text[slice(*prompt.span(place))] for place in PLACES]
            assert at == ["sad", frame["later"], ":"]
            assert (frame["name"] in prompt.text) == (condition != "nobody")


def test_too_little_is_refused(spreading: tuple[LiveModel, ProbeSet]) -> None:
    model, probes = spreading
    with pytest.raises(InputError, match="2 frames are too few"):
        negation(model, probes, stimuli={"phrases": PHRASES, "frames": FRAMES[:2]})
    with pytest.raises(InputError, match="know 2 of the emotions"):
        negation(model, planted_probes(model, directions(2), ["joy", "fear"]))


# Measures ------------------------------------------------------------------------------------------------------------


def test_contrasts_are_own_less_other_words() -> None:
    values = np.random.default_rng(3).normal(size=(2, 4, 3, 5, 2, 2, 5))
    found = contrast(values)
    assert found.shape == (2, 4, 3, 5, 2, 2)
    for which, condition, frame, emotion, place, layer in np.ndindex(found.shape):
        column = values[which, condition, frame, :, place, layer, emotion]
        expected = column[emotion] - np.delete(column, emotion).mean()
        assert found[which, condition, frame, emotion, place, layer] == pytest.approx(expected)
    # What a condition does to all sentences, and where a probe lies, cancels.
    moved = values + np.random.default_rng(4).normal(size=(2, 4, 3, 1, 2, 2, 5))
    assert np.allclose(contrast(moved), found)


def test_a_ratio_has_the_wider_interval() -> None:
    generator = np.random.default_rng(5)
    values = 1 + 0.1 * generator.normal(size=(4, 6, 5)) + 0.3 * generator.normal(size=5)
    values[2] *= 0.4
    left, low, high = ratio(values, 2)
    over_frames = fieller(values[2].mean(1), values[0].mean(1))
    over_emotions = fieller(values[2].mean(0), values[0].mean(0))
    assert left == pytest.approx(values[2].mean() / values[0].mean())
    assert low == min(over_frames[1], over_emotions[1]) and high == max(over_frames[2], over_emotions[2])


def test_without_a_bounded_ratio_nothing_is_said() -> None:
    affirmed = Evidence(1.0, 0.5, 1.5, np.array([0.0, 0.1, -0.1]))
    open_ended = SimpleNamespace(ratio=0.1, low=-np.inf, high=np.inf)
    assert "cannot be said" in verdict("later word", "negated", affirmed, open_ended, open_ended)
    resolved = SimpleNamespace(ratio=0.1, low=0.0, high=0.2)
    assert "need not be what does it" in verdict("later word", "negated", affirmed, resolved, open_ended)
