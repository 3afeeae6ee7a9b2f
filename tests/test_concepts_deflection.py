"""Hidden emotions: what is planted in the preamble's part or the words' part is found there, and noise is called noise."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from parts import shown
from planted_probes import planted_probes
from tiny import tiny_model

from emoprobe import InputError
from emoprobe.study.concepts import dialogues as bank
from emoprobe.study.concepts import effects
from emoprobe.study.concepts.deflection import FAMILIES, deflection, hidden_directions, norm_kept, story_space

SPACE = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 32)))[0].T
TARGETS = bank.targets()
STORIES, APART, WORDS = (rows - rows.mean(0) for rows in (SPACE[:6], SPACE[6:12], SPACE[12:18]))
NOTHING = np.zeros((6, 32))


def planted(
    monkeypatch: pytest.MonkeyPatch,
    context: np.ndarray,
    words: np.ndarray,
    openly: np.ndarray,
    preamble: np.ndarray = NOTHING,
    noise: float = 0.15,
) -> tuple[pd.DataFrame, str]:
    known = {one.text: one for one in [*bank.deflections(False), *bank.by_condition(bank.EXPRESSED)]}
    known |= {one.text: one for one in bank.deflections()}
    generator = np.random.default_rng(3)
    by_topic = {topic: generator.normal(size=32) for topic in bank.topics()}

    def means(
        model: object, texts: Sequence[str], places: Any, layers: Sequence[int], **_: object
    ) -> Iterator[tuple[int, torch.Tensor]]:
        for index, text in enumerate(texts):
            one = known[text]
            row = TARGETS.index(one.target)
            vector = by_topic[one.topic] + noise * generator.normal(size=32)
            if places[index][0][0] == one.preamble:
                vector = vector + preamble[row]
            elif one.displayed == one.target:
                vector = vector + openly[row]
            else:
                vector = vector + words[row] + (context[row] if one.preamble[1] else 0)
            yield index, torch.from_numpy(np.tile(vector, (1, len(layers), 1)))

    monkeypatch.setattr(effects, "span_means", means)
    model = tiny_model("gpt2")
    result = deflection(model, planted_probes(model, SPACE[:6], TARGETS), layers=[2], layer=2)
    return result.table.set_index("measure").assign(shown=sum(shown(result))), result.verdict


def test_a_family_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    table, verdict = planted(monkeypatch, APART, NOTHING, STORIES)
    assert table.value["context part, with itself"] > 0.5 and table.p["words part, with itself"] > 0.05
    assert "what is felt is there while it is not shown" in verdict
    assert "no more along the probes of their names" in verdict
    assert table.value["norm kept, deflection"] > 0.95 > table.expected["norm kept, deflection"]
    assert "more than what a random vector would keep" in verdict and (table.shown == 3).all()


def test_the_same_directions_as_those_of_stories(monkeypatch: pytest.MonkeyPatch) -> None:
    table, verdict = planted(monkeypatch, STORIES, NOTHING, STORIES, noise=0.3)
    assert table.value["context part, with probes"] > 0.7
    assert "lies along the probes of their names, not shown to be less" in verdict
    assert table.value["norm kept, deflection"] < 0.6 and "a part lies inside" in verdict


def test_a_part_along_stories_and_a_part_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    _, verdict = planted(monkeypatch, 0.5 * STORIES + APART, NOTHING, STORIES)
    assert "less than emotions said openly do" in verdict


def test_the_opposite_of_stories(monkeypatch: pytest.MonkeyPatch) -> None:
    table, verdict = planted(monkeypatch, -STORIES, NOTHING, STORIES)
    assert table.value["context part, with probes"] < -0.7 and "lies against the probes" in verdict


def test_words_are_not_taken_for_what_is_felt(monkeypatch: pytest.MonkeyPatch) -> None:
    table, verdict = planted(monkeypatch, NOTHING, WORDS, STORIES)
    assert table.value["words part, with itself"] > 0.5 and table.p["context part, with itself"] > 0.05
    assert "directions of the words that people hide things with" in verdict
    assert "what is felt is there" not in verdict and (table.shown == 1).all()


def test_an_echo_of_the_preamble_is_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    table, verdict = planted(monkeypatch, APART, NOTHING, STORIES, preamble=APART)
    assert "it may be an echo of these" in verdict and "what is felt is there" not in verdict
    assert (table.shown == 2).all()


def test_noise_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    table, verdict = planted(monkeypatch, NOTHING, NOTHING, STORIES)
    assert verdict.startswith("Directions of hidden emotions are not shown to hold")
    assert (table.shown == 0).all()
    assert table.value["norm kept, deflection"] == pytest.approx(np.sqrt(1 - 5 / 32), abs=0.06)


def test_without_a_positive_control_a_low_cosine_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, verdict = planted(monkeypatch, APART, NOTHING, WORDS)
    assert "low cosines would prove nothing" in verdict


# Directions and the space of the stories -----------------------------------------------------------------------------


def test_directions_are_differences_of_means_over_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a few turns of the bank, cut short; both batch sizes, a padding on the left of most."""
    model = tiny_model("llama")

    def short(one: bank.Hidden) -> bank.Hidden:
        start = max(0, one.span[0] - 40)
        text = (
            f"{one.target[:2]} " * bool(one.preamble[1]) + one.text[start : one.span[0] + 25 + len(one.topic)]
        )
        moved = len(text) - (one.span[0] + 25 + len(one.topic) - start)
        span = (one.span[0] - start + moved, len(text))
        return replace(one, text=text, span=span, preamble=(0, moved))

    told, untold = [short(o) for o in bank.deflections()], [short(o) for o in bank.deflections(False)]
    openly = [short(one) for one in bank.by_condition(bank.EXPRESSED)]
    module = "emoprobe.study.concepts.deflection."
    monkeypatch.setattr(module + "deflections", lambda preamble=True: told if preamble else untold)
    monkeypatch.setattr(module + "by_condition", lambda _: openly)
    targets, found = hidden_directions(model, [0, 2])
    _, again = hidden_directions(model, [0, 2], batch_size=1)
    assert np.allclose(found, again, atol=1e-9)
    assert found.shape == (len(FAMILIES), 6, 6, 2, 32) and targets == list(TARGETS)
    assert np.allclose(found[0], found[1] + found[2], atol=1e-9)

    def mean(given: Sequence[bank.Hidden], target: str, topic: str) -> np.ndarray:
        rows = []
        for one in given:
            if (one.target, one.topic) == (target, topic):
                batch = model.tokenize(one.text)
                assert batch.offsets is not None
                held = [k for k, (a, b) in enumerate(batch.offsets[0]) if a < one.span[1] and one.span[0] < b]
                rows.append(model.streams(batch, [0, 2])[:, 0, held].detach().mean(1).numpy())
        return np.mean(rows, axis=0)

    topic = sorted(bank.topics())[3]
    for family, given in ((0, told), (2, untold), (3, openly)):
        cells = np.stack([mean(given, target, topic) for target in targets])
        assert np.allclose(found[family, 3], cells - cells.mean(0), atol=1e-9)


def test_a_random_vector_keeps_its_share() -> None:
    space = SPACE[:9]
    drawn = np.random.default_rng(1).normal(size=(4000, 32))
    left = drawn - drawn @ space.T @ space
    assert ((left**2).sum(1) / (drawn**2).sum(1)).mean() == pytest.approx(1 - 9 / 32, abs=0.005)
    assert norm_kept(drawn, space) == pytest.approx(np.sqrt(1 - 9 / 32), abs=0.01)
    assert norm_kept(space[:3], space) == pytest.approx(0, abs=1e-7)
    assert norm_kept(SPACE[9:12], space) == pytest.approx(1)
    assert np.isnan(norm_kept(NOTHING, space))


def test_the_space_of_stories_holds_the_share_with_the_fewest_axes() -> None:
    drawn = np.random.default_rng(2).normal(size=(10, 32)) * np.geomspace(1, 0.001, 32)
    units = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    variances = np.linalg.svd(units - units.mean(0))[1] ** 2
    for share in (0.5, 0.9, 0.99, 1.0):
        space = story_space(drawn, share)
        k = len(space)
        assert variances[:k].sum() >= (share - 1e-9) * variances.sum()
        assert variances[: k - 1].sum() < share * variances.sum()
        assert np.allclose(space @ space.T, np.eye(k))
    assert len(story_space(SPACE[:6], 0.99)) == 5  # six directions about their mean


def test_probes_without_the_emotions_are_refused() -> None:
    model = tiny_model("gpt2")
    few = planted_probes(model, SPACE[:3], ["joy", "fear", "anger"])
    with pytest.raises(InputError, match="have 2 of the hidden emotions"):
        deflection(model, few, layers=[2], layer=2)
