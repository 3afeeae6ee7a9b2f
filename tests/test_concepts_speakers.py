"""Present and other speaker: planted families are told apart, and directions are those of ordinary least squares."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from parts import shown
from planted_probes import planted_probes
from tiny import tiny_model

from emoprobe import InputError
from emoprobe.models import LiveModel
from emoprobe.study.concepts import effects
from emoprobe.study.concepts import speakers as module
from emoprobe.study.concepts.dialogues import Dialogue, Turn
from emoprobe.study.concepts.speakers import speaker_directions, speakers

WORDS = {
    "joy": ("The sun came up.", "The music was good!"),
    "fear": ("It was dark.", "We were not sure."),
    "anger": ("He had run away!", "She felt it again."),
}
TOPICS = ("morning", "evening", "night", "noon")


def spoken(topic: str, felt: tuple[str, str], texts: Sequence[str]) -> Dialogue:
    text, turns = "", []
    for who, words in zip("ABAB", texts, strict=True):
        text += f"{who}: "
        turns.append(Turn(who, len(text), len(text) + len(words)))
        text += words + "\n"
    return Dialogue(text.strip(), topic, ("A", "B"), felt, tuple(turns))


def small_dialogues(diagonal: bool) -> list[Dialogue]:
    made = []
    for topic, mine, theirs in product(TOPICS, WORDS, WORDS):
        if diagonal or mine != theirs:
            (a1, a2), (b1, b2) = WORDS[mine], WORDS[theirs]
            made.append(spoken(topic, (mine, theirs), (f"{topic}. {a1}", b1, a2, f"{b2} {topic}")))
    return made


def answers(model: LiveModel, one: Dialogue, who: int, layers: list[int]) -> np.ndarray:
    """Return the mean stream over a speaker's words after the other has spoken, of one text by itself."""
    batch = model.tokenize(one.text)
    assert batch.offsets is not None
    stream = model.streams(batch, layers)[:, 0].detach().double().numpy()
    counted = [one.turns[2]] if who == 0 else [one.turns[1], one.turns[3]]
    held = [
        position
        for position, (start, end) in enumerate(batch.offsets[0])
        if any(start < turn.end and turn.start < end for turn in counted)
    ]
    mean: np.ndarray = stream[:, held].mean(1)
    return mean


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_directions_are_those_of_least_squares(family: str, batch_size: int) -> None:
    model, made, layers = tiny_model(family), small_dialogues(diagonal=False), [0, 2]
    emotions, found = speaker_directions(model, made, layers, batch_size=batch_size)
    assert emotions == ["anger", "fear", "joy"] and found.shape == (4, 4, 3, 2, 32)
    for topic, who in product(sorted(TOPICS), (0, 1)):
        here = [one for one in made if one.topic == topic]
        rows = np.array(
            [
                [
                    1.0,
                    *(float(one.emotions[who] == emotion) for emotion in emotions),
                    *(float(one.emotions[1 - who] == emotion) for emotion in emotions),
                ]
                for one in here
            ]
        )
        values = np.stack([answers(model, one, who, layers).ravel() for one in here])
        weights = np.linalg.lstsq(rows, values, rcond=None)[0].reshape(7, 2, 32)
        for block, number in ((weights[1:4], who), (weights[4:], 2 + who)):
            expected = block - block.mean(0)
            expected[np.linalg.norm(expected, axis=-1) < 1e-6] = 0.0
            assert np.allclose(found[number, sorted(TOPICS).index(topic)], expected, atol=1e-8)


def test_where_all_emotions_meet_they_are_differences_of_means() -> None:
    model, made, layers = tiny_model("llama"), small_dialogues(diagonal=True), [1, 3]
    emotions, found = speaker_directions(model, made, layers)
    here = [one for one in made if one.topic == "noon"]
    values = np.stack([answers(model, one, 1, layers) for one in here])
    for place, emotion in enumerate(emotions):
        own = np.array([one.emotions[1] == emotion for one in here])
        others = np.array([one.emotions[0] == emotion for one in here])
        row = sorted(TOPICS).index("noon")
        assert np.allclose(found[1, row, place], values[own].mean(0) - values.mean(0), atol=1e-8)
        assert np.allclose(found[3, row, place], values[others].mean(0) - values.mean(0), atol=1e-8)


def test_at_the_embedding_nothing_depends_on_what_the_other_feels() -> None:
    result = speakers(
        tiny_model("llama", dtype=torch.float32), dialogues=small_dialogues(True), shuffles=19, layer=3
    )
    lowest = result.table[result.table.layer == 0].set_index("comparison").cosine
    assert np.isnan(lowest["other speaker, with itself"])
    assert np.isfinite(lowest["present speaker, across owners"])
    assert set(result.table.layer) == {0, 1, 2, 3}
    assert result.svg and "shuffled" in result.controls and result.published


# Planted families ----------------------------------------------------------------------------------------------------

EMOTIONS = [f"emotion {number}" for number in range(6)]


def planted(monkeypatch: pytest.MonkeyPatch, own: Any, other: Any, spread: float = 0.3) -> list[Dialogue]:
    """Let the mean stream of speaker w's words be own(w)[emotion] + other(w)[the other's] + the topic's + noise."""
    made = [
        spoken(topic, (mine, theirs), ("a", "b", "c", "d"))
        for topic in ("t1", "t2", "t3", "t4", "t5")
        for mine, theirs in product(EMOTIONS, EMOTIONS)
        if mine != theirs
    ]
    topics = {f"t{number}": np.random.default_rng(number).normal(size=32) for number in range(1, 6)}
    generator = np.random.default_rng(12)

    def means(*args: object, **kwargs: object) -> Iterator[tuple[int, torch.Tensor]]:
        for index, one in enumerate(made):
            mine, theirs = (EMOTIONS.index(emotion) for emotion in one.emotions)
            rows = [
                own[0][mine] + other[0][theirs] + 5 * topics[one.topic],
                own[1][theirs] + other[1][mine] + 3 * topics[one.topic],
            ]
            yield index, torch.from_numpy(np.stack(rows) + spread * generator.normal(size=(2, 32)))[:, None]

    monkeypatch.setattr(effects, "span_means", means)
    return made


def families(seed: int) -> np.ndarray:
    drawn = np.linalg.qr(np.random.default_rng(seed).normal(size=(32, 6)))[0].T
    return drawn - drawn.mean(0)


def found(monkeypatch: pytest.MonkeyPatch, own: Any, other: Any) -> tuple[Any, str]:
    made = planted(monkeypatch, own, other)
    result = speakers(tiny_model("llama"), dialogues=made, layer=2, layers=[2], shuffles=199)
    return result.table.set_index("comparison").assign(shown=sum(shown(result))), result.verdict


SPACE = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 32)))[0]
P1, P2, P3, P4 = ((rows - rows.mean(0)) for rows in (SPACE[:6], SPACE[6:12], SPACE[12:18], SPACE[18:24]))


def test_two_orthogonal_families_alike_across_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    table, verdict = found(monkeypatch, (P1, P1), (P2, P2))
    assert table.cosine["present speaker, across owners"] > 0.5
    assert table.cosine["other speaker, across owners"] > 0.5
    for kind in ("same words", "same person's emotion"):
        assert table.p[f"present against other, {kind}"] > 0.05
    assert verdict.count("alike whoever speaks") == 2 and (table.shown == 4).all()
    assert verdict.count("not shown to be other than orthogonal") == 2


def test_one_family_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    table, verdict = found(monkeypatch, (P1, P1), (P1, P1))
    assert table.cosine["present against other, same words"] > 0.5
    assert verdict.count("they share a part") == 2 and "not orthogonal" in verdict


def test_families_that_point_away_from_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    table, verdict = found(monkeypatch, (P1, P1), (-P1, -P1))
    assert table.cosine["present against other, same words"] < -0.5
    assert verdict.count("point away from each other") == 2


def test_families_of_each_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    table, verdict = found(monkeypatch, (P1, P2), (P3, P4))
    assert table.p["present speaker, across owners"] > 0.05
    assert table.cosine["present speaker, with itself"] > 0.5
    assert verdict.count("not shown to from speaker to speaker") == 2 and (table.shown == 2).all()


def test_nothing_of_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    table, verdict = found(monkeypatch, (P1, P1), (0 * P1, 0 * P1))
    assert table.p["other speaker, with itself"] > 0.05
    assert "cannot be asked where one of them is not there" in verdict
    assert "orthogonal family" not in verdict and "they share" not in verdict


def test_what_the_speaker_feels_does_not_pass_for_what_the_other_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without their diagonal, plain means over the other's emotion would hold minus a fifth of the own one."""
    made = planted(monkeypatch, (P1, P1), (0 * P1, 0 * P1), spread=0.0)
    _, directions = speaker_directions(tiny_model("llama"), made, [1])
    assert np.allclose(directions[0, :, :, 0], P1, atol=1e-8)
    assert np.allclose(directions[2:], 0)


def test_the_verdict_names_the_words_where_the_embedding_does_as_well() -> None:
    import pandas as pd

    names = [*module.COMPARISONS, *module.ITSELF]
    row = {"cosine": 0.5, "low": 0.4, "high": 0.6, "p": 0.005, "ceiling": 0.5}
    at = pd.DataFrame([row] * len(names), index=names)
    lowest = at.assign(cosine=0.45, low=0.35)
    assert "words may be all" in module.verdict(at, lowest)
    assert "words may be all" not in module.verdict(at, lowest.assign(cosine=0.1))
    assert list(module._parts(at, lowest).values()) == [True, True, True, True, False]
    assert all(module._parts(at, lowest.assign(cosine=0.1)).values()) and len(module._parts(at, None)) == 4


def test_probes_are_compared_by_name(monkeypatch: pytest.MonkeyPatch) -> None:

    made = planted(monkeypatch, (P1, P1), (P2, P2))
    model = tiny_model("gpt2")
    fitted = planted_probes(model, P1, EMOTIONS)
    result = speakers(model, fitted, dialogues=made, layer=2, layers=[2], shuffles=99)
    table = result.table.set_index("comparison")
    assert (
        table.p["present speaker, with probes"] <= 0.02 and table.cosine["present speaker, with probes"] > 0.5
    )
    assert table.p["other speaker, with probes"] > 0.05
    with pytest.raises(InputError, match="at least 3"):
        speakers(model, planted_probes(model, P1[:2], EMOTIONS[:2]), dialogues=made, layer=2, layers=[2])


def test_what_cannot_be_told_apart_is_refused() -> None:
    model = tiny_model("llama")
    made = small_dialogues(True)
    with pytest.raises(InputError, match="at least 3"):
        speaker_directions(model, [one for one in made if one.topic in TOPICS[:2]], [1])
    tied = [one for one in made if one.emotions[0] == one.emotions[1]]
    with pytest.raises(InputError, match="do not tell"):
        speaker_directions(model, tied, [1])
