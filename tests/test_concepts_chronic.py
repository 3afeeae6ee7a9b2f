"""A state that is kept: planted in what is not said it is found there, and running text can bear it out or not."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from parts import shown
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tiny import tiny_model

from emoprobe import InputError
from emoprobe.corpora import Corpus
from emoprobe.study.concepts import chronic as module
from emoprobe.study.concepts import dialogues as bank
from emoprobe.study.concepts.chronic import (
    by_topic,
    chronic,
    on_running_text,
    read_turns,
    shuffled_within,
    verdict,
)

WIDTH, COUNT = 12, 6
AXES = np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, WIDTH)))[0][:COUNT]


@pytest.fixture(scope="module")
def blank() -> module.Turns:
    """Return the turns of the bank with features of pure noise, each topic about a place of its own."""
    given = [one for condition in bank.CONDITIONS for one in bank.by_condition(condition)]
    condition = np.repeat([0, 1, 2], [144, 144, 72])
    topic = np.unique([one.topic for one in given], return_inverse=True)[1]
    carried = np.array([[float(one.target == name) for name in bank.targets()] for one in given])
    task = module.Task("label", True, bank.targets(), np.arange(len(given)), carried, topic, topic)
    generator = np.random.default_rng(5)
    noise = generator.normal(size=(len(given), WIDTH)) + 0.5 * generator.normal(size=(6, WIDTH))[topic]
    return module.Turns(given, condition, task, noise, generator.normal(size=noise.shape))


def planted(blank: module.Turns, strengths: tuple[float, float, float]) -> module.Turns:
    along = np.array(strengths)[blank.condition, None] * (blank.task.targets @ AXES)
    return replace(blank, features=blank.features + along)


@pytest.fixture(scope="module")
def words(blank: module.Turns) -> dict[str, np.ndarray]:
    return {}


@pytest.fixture(autouse=True)
def quick_words(monkeypatch: pytest.MonkeyPatch, words: dict[str, np.ndarray]) -> None:
    """Fit the bags of words once: features do not enter them."""
    original = module.words_out_of_fold

    def once(task: Any, texts: list[str], seed: int = 0) -> np.ndarray:
        key = texts[-1]
        if key not in words:
            words[key] = original(task, texts, seed)
        return words[key]

    monkeypatch.setattr(module, "words_out_of_fold", once)


def test_a_state_is_found_in_the_conditions_that_it_is_planted_in(blank: module.Turns) -> None:
    found = by_topic(planted(blank, (4, 4, 4)), 20).set_index("where")
    assert (found.accuracy > 0.8).all() and (found.p < 0.05).all()
    assert (found.all_words_gain_low > 0).all() and (found.low > found.chance).all()
    openly = by_topic(planted(blank, (4, 4, 0)), 20).set_index("where")
    assert openly.accuracy["expressed"] > 0.8 and openly.p["hidden"] < 0.05
    assert openly.low["neutral topic"] <= 1 / 6 <= openly.high["neutral topic"]
    nothing = by_topic(blank, 20)
    assert not ((nothing.low > 1 / 6) & (nothing.p < 0.05)).any()


def test_words_of_neutral_talk_tell_nothing_at_all(blank: module.Turns) -> None:
    found = by_topic(blank, 20).set_index("where")
    assert found.turn_words["neutral topic"] == pytest.approx(1 / 6)
    assert found.turn_words["expressed"] > 0.4


def test_accuracies_are_those_of_scikit_learn(blank: module.Turns) -> None:
    turns = planted(blank, (2, 2, 2))
    found = by_topic(turns, 20).set_index("where")
    truth = turns.task.targets.argmax(1)
    right = np.empty(len(truth), dtype=bool)
    for topic in range(6):
        test = turns.task.group == topic
        scaler = StandardScaler().fit(turns.features[~test])
        model = LogisticRegression(C=10 / WIDTH, max_iter=10_000, tol=1e-8)
        model.fit(scaler.transform(turns.features[~test]), truth[~test])
        right[test] = model.predict(scaler.transform(turns.features[test])) == truth[test]
    for place, name in enumerate(bank.CONDITIONS):
        assert found.accuracy[name] == pytest.approx(right[turns.condition == place].mean(), abs=0.01)


def test_shuffling_renames_the_emotions_of_a_topic_alike_in_all_conditions(blank: module.Turns) -> None:
    dealt = shuffled_within(blank.task, np.random.default_rng(5))
    before, after = blank.task.targets.argmax(1), dealt.argmax(1)
    orders = []
    for topic in range(6):
        rows = blank.task.group == topic
        pairs = set(zip(before[rows].tolist(), after[rows].tolist(), strict=True))
        assert len(pairs) == COUNT
        orders.append(tuple(sorted(pairs)))
    assert len(set(orders)) > 1


# Running text --------------------------------------------------------------------------------------------------------


def running(turns: module.Turns, strength: float, labels: list[str] | None = None) -> dict[str, Any]:
    generator = np.random.default_rng(2)
    names = [bank.targets()[row % COUNT] for row in range(120)] if labels is None else labels
    features = generator.normal(size=(120, WIDTH))
    features += (
        strength * AXES[[bank.targets().index(name) if name in bank.targets() else 0 for name in names]]
    )
    corpus = Corpus.from_columns(
        {
            "text": [f"text {row}" for row in range(120)],
            "labels": [[name] for name in names],
            "group": [f"group {row // 6}" for row in range(120)],
        },
        name="running",
    )
    stub: Any = SimpleNamespace(capture=lambda texts, layers, **_: torch.from_numpy(features)[:, None])
    return on_running_text(stub, turns, corpus, 1)


def test_running_text_bears_a_state_out_or_does_not(blank: module.Turns) -> None:
    turns = planted(blank, (4, 4, 4))
    fully = running(turns, 4)
    assert fully["accuracy"] > 0.8 and fully["low"] > fully["chance"] and fully["turn_words_gain_low"] > 0
    assert fully["activation"] == pytest.approx(1, abs=0.25) and fully["top"] > 0.8
    assert fully["top_chance"] == pytest.approx(1 / 6) and (fully["n"], fully["groups"]) == (120, 20)
    not_at_all = running(turns, 0)
    assert not_at_all["low"] <= not_at_all["chance"] and not_at_all["activation"] < 0.5
    assert "accuracy" not in running(turns, 0, ["other"] * 120)


ROW = {"accuracy": 0.6, "low": 0.5, "high": 0.7, "chance": 1 / 6, "shuffled": 0.17, "p": 0.025, "layer0": 0.2}
ROW |= {"turn_words": 0.2, "all_words": 0.2, "layer0_gain_low": 0.1, "turn_words_gain_low": 0.1}
ROW |= {"all_words_gain_low": 0.1, "activation": 1.0}


def parts(neutral: dict[str, float] | None = None, text: dict[str, float] | None = None) -> list[bool]:
    return list(module._parts(rows(neutral, text)).values())


def said(neutral: dict[str, float] | None = None, text: dict[str, float] | None = None) -> str:
    return verdict(rows(neutral, text))


def rows(neutral: dict[str, float] | None, text: dict[str, float] | None) -> pd.DataFrame:
    """Return what is shown where all is read well, but for what is given."""
    made = {name: dict(ROW) for name in (*bank.CONDITIONS, module.RUNNING)}
    made["neutral topic"] |= neutral or {}
    made[module.RUNNING] |= text or {}
    return pd.DataFrame(made).T.astype(float)


def test_every_verdict_can_come_out() -> None:
    assert "A state is kept in neutral talk" in said()
    assert "not shown" in said({"low": 0.1}) and "is not shown." in said({"low": 0.1})
    assert "may be an echo" in said({"all_words_gain_low": -0.1})
    for text in ({"low": 0.1}, {"activation": 0.2}, {"turn_words_gain_low": -0.1}, {"accuracy": np.nan}):
        assert "not borne out by running text" in said(text=text)
    assert parts() == [True, True, True] and parts({"low": 0.1}) == [False, False, False]
    assert parts({"all_words_gain_low": -0.1}) == [True, False, True]
    assert parts(text={"low": 0.1}) == [True, True, False]
    assert "small" in said(text={"activation": 0.2})
    assert "not shown to be above the embedding" in said({"layer0_gain_low": -0.1})


def test_features_are_means_over_the_last_turn_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")

    def few(condition: str) -> list[bank.Hidden]:
        """Return a few dialogues of a condition, without all but the end of what comes before the turn."""
        found = []
        for one in bank.by_condition(condition)[:: 37 if condition == bank.NEUTRAL_TOPIC else 71]:
            start = one.span[0] - 20
            span = (20, one.span[1] - start - 60)
            found.append(replace(one, text=one.text[start : one.span[1] - 60], span=span))
        return found

    monkeypatch.setattr(module, "by_condition", few)
    turns = read_turns(model, 2)
    again = read_turns(model, 2, batch_size=1)
    assert np.allclose(turns.features, again.features, atol=1e-9)
    for row in (0, 3):
        one = turns.given[row]
        batch = model.tokenize(one.text)
        assert batch.offsets is not None
        held = [k for k, (a, b) in enumerate(batch.offsets[0]) if a < one.span[1] and one.span[0] < b]
        stream = model.streams(batch, [0, 2])[:, 0, held].detach().mean(1).numpy()
        assert np.allclose(turns.embedding[row], stream[0]) and np.allclose(turns.features[row], stream[1])
    assert turns.condition.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


def test_all_of_it_on_a_random_model(blank: module.Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", dtype=torch.float32)
    narrow = planted(blank, (4, 4, 0))
    monkeypatch.setattr(module, "read_turns", lambda *_, **__: narrow)
    monkeypatch.setattr(
        module, "on_running_text", lambda *_, **__: {"where": module.RUNNING, **running(narrow, 0)}
    )
    corpus = Corpus.from_columns({"text": ["a day", "a night"]}, name="days")
    result = chronic(model, corpus, shuffles=20)
    assert "neutral topic" in result.finding and "is not shown." in result.verdict
    assert result.svg and result.published and len(result.table) == 4 and not any(shown(result))
    with pytest.raises(InputError, match="at least 20"):
        chronic(model, corpus, shuffles=10)
