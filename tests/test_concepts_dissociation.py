"""The user's emotion and the reply's: correlations are numpy's, fading is not turning, and every outcome can come out."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from parts import shown
from planted_probes import planted_probes
from tiny import tiny_model

from emoprobe import InputError
from emoprobe.models import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.study.concepts import dissociation as module
from emoprobe.study.concepts import reply as reply_module
from emoprobe.study.concepts.dissociation import dissociation, toward_reply
from emoprobe.study.concepts.places import Prompt, turn
from emoprobe.study.concepts.reply import continued, difference, reply
from emoprobe.study.concepts.stimuli import load
from emoprobe.study.concepts.two_places import across

CONCEPTS = ("fear", "anger", "sadness", "contentment", "joy", "love")
EMOTIONS = ("afraid", "angry", "sad", "calm", "happy", "loving")
PROMPTS = load("dissociation")["prompts"]
COUNT = len(PROMPTS)


@pytest.fixture(scope="module")
def model() -> LiveModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def probes(model: LiveModel) -> ProbeSet:
    return planted_probes(model, np.random.default_rng(0).normal(size=(6, 32)), CONCEPTS)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def which(side: str) -> np.ndarray:
    """Return which emotion each prompt's user or reply has, one-hot (prompts, concepts)."""
    return np.array([[float(prompt[side] == emotion) for emotion in EMOTIONS] for prompt in PROMPTS])


def reading(*arrays: np.ndarray) -> Callable[..., np.ndarray]:
    """Return what stands in for the reading of a model: these arrays, one for each call."""
    left = list(arrays)

    def read(
        model: Any, probes: Any, prompts: Sequence[Prompt], places: Sequence[str], *_: Any, **__: Any
    ) -> np.ndarray:
        values = left.pop(0)
        assert values.shape[1:3] == (len(prompts), len(places))
        return values[:, :, :, None]

    return read


# Read apart ----------------------------------------------------------------------------------------------------------


def places(
    shared: float, random_shared: float, user: float = 0.0, answer: float = 0.0, fading: float = 1.0
) -> np.ndarray:
    """Return read-outs at two places, (21, prompts, 2, concepts), with so much in common for probes and for random directions.

    The user's emotion stands out at the user's end and, times `fading`, before the reply, where the reply's is added.
    """
    own, common = noise(21, COUNT, 2, 6), noise(21, COUNT, 1, 6, seed=1)
    values = own + common * np.r_[shared, np.full(20, random_shared)][:, None, None, None]
    values[0, :, 0] += user * which("user")
    values[0, :, 1] += fading * user * which("user") + answer * which("reply")
    return values


@pytest.mark.parametrize(
    ("shared", "random_shared", "said"),
    [
        (0.0, 3.0, "The two places are read apart"),
        (1.0, 1.0, "Emotions are not shown to be more or less alike"),
        (4.0, 0.3, "What is read at the user's end is carried over"),
    ],
)
def test_all_outcomes_of_being_apart(
    monkeypatch: pytest.MonkeyPatch,
    model: LiveModel,
    probes: ProbeSet,
    shared: float,
    random_shared: float,
    said: str,
) -> None:
    monkeypatch.setattr(module, "read_beside_random", reading(places(shared, random_shared)))
    found = dissociation(model, probes)
    assert found.verdict.startswith(said)
    row = found.table[found.table.measure == "r across places, probes' means taken out"].iloc[0]
    assert row.low <= row.value <= row.high and -1 <= row.random_low <= row.random_high <= 1


@pytest.mark.parametrize(
    ("user", "answer", "fading", "said", "parts"),
    [
        (4.0, 4.0, 0.0, "the reply's emotion is read above the user's,", [True, True]),
        (
            0.0,
            0.0,
            1.0,
            "It is not shown that before the reply the reply's emotion is read above",
            [False, False],
        ),
        (4.0, 0.0, 0.0, "although the user's fades", [False, False]),  # which is no emotion of the reply's
        (4.0, 0.0, 1.0, "the user's emotion is still read above the reply's", [False, False]),
    ],
)
def test_all_outcomes_of_leaning(
    monkeypatch: pytest.MonkeyPatch,
    model: LiveModel,
    probes: ProbeSet,
    user: float,
    answer: float,
    fading: float,
    said: str,
    parts: list[bool],
) -> None:
    monkeypatch.setattr(module, "read_beside_random", reading(places(0.3, 0.3, user, answer, fading)))
    found = dissociation(model, probes)
    assert said in found.verdict and shown(found) == parts


def test_which_probe_rises_most_is_said(
    monkeypatch: pytest.MonkeyPatch, model: LiveModel, probes: ProbeSet
) -> None:
    values = places(0.3, 0.3)
    values[:, :, 1, EMOTIONS.index("loving")] += 5
    monkeypatch.setattr(module, "read_beside_random", reading(values))
    assert "Of all probes loving rises most" in dissociation(model, probes).verdict


def test_a_random_model_in_any_batch(model: LiveModel, probes: ProbeSet) -> None:
    one, many = (dissociation(model, probes, shuffles=99, batch_size=size) for size in (1, 32))
    numbers = ["value", "low", "high", "random_low", "random_high", "p"]
    assert np.allclose(one.table[numbers], many.table[numbers], atol=1e-5)
    assert "16 prompts" in one.method and one.published and one.svg
    assert "not shown" in one.verdict


def test_too_little_is_refused(model: LiveModel, probes: ProbeSet) -> None:
    with pytest.raises(InputError, match="5 prompts are too few"):
        dissociation(model, probes, stimuli={"question": "So?", "prompts": PROMPTS[:5]})
    with pytest.raises(InputError, match="know 1 of the emotions"):
        dissociation(model, planted_probes(model, noise(1, 32), ["fear"]))


# The reply -----------------------------------------------------------------------------------------------------------

TEXTS = [f"Number {n} is here." for n in range(30)]


def replies(end: float, before: float, random_end: float, random_before: float) -> list[np.ndarray]:
    """Return read-outs at both places and over a reply that goes with them so much."""
    values = noise(21, 30, 2, 6)
    weights = np.stack(
        [np.r_[end, np.full(20, random_end)], np.r_[before, np.full(20, random_before)]], axis=1
    )
    over = (values * weights[:, None, :, None]).sum(2) + noise(21, 30, 6, seed=1)
    return [values, over[:, :, None]]


@pytest.mark.parametrize(
    ("planted", "tells", "better"),
    [
        (
            (0.0, 2.0, 0.0, 0.2),
            "The place before the reply tells",
            "It tells it better than the user's end does",
        ),
        ((0.0, 0.0, 0.0, 0.0), "It is not shown that the place before", "is not shown"),
        (
            (0.0, 1.0, 0.0, 1.0),
            "It is not shown that the place before",
            "is not shown",
        ),  # as random directions do
        ((2.0, 0.0, 0.2, 0.0), "It is not shown that the place before", "The user's end tells it better"),
    ],
)
def test_all_outcomes_of_telling(
    monkeypatch: pytest.MonkeyPatch,
    model: LiveModel,
    probes: ProbeSet,
    planted: tuple[float, float, float, float],
    tells: str,
    better: str,
) -> None:
    monkeypatch.setattr(reply_module, "continued", lambda *_: [[" yes"]] * 30)
    monkeypatch.setattr(reply_module, "read_beside_random", reading(*replies(*planted)))
    found = reply(model, probes, prompts=TEXTS)
    assert found.verdict.startswith(tells) and better in found.verdict
    assert shown(found) == [tells.startswith("The place"), better.startswith("It tells it better")]


def test_means_of_probes_alone_would_tell_everything(
    monkeypatch: pytest.MonkeyPatch, model: LiveModel, probes: ProbeSet
) -> None:
    values, over = replies(0.0, 0.0, 0.0, 0.0)
    offset = 10 * noise(6, seed=3)
    values[:, :, 1] += offset
    monkeypatch.setattr(reply_module, "continued", lambda *_: [[" yes"]] * 30)
    monkeypatch.setattr(reply_module, "read_beside_random", reading(values, over + offset))
    found = reply(model, probes, prompts=TEXTS)
    rows = found.table.set_index("measure").value
    assert rows["r of before the reply with the reply, as published"] > 0.9
    assert rows["difference, as published"] > 0.8
    assert abs(rows["difference, probes' means taken out"]) < 0.3 and "is not shown" in found.verdict


def test_a_random_model_replies(model: LiveModel, probes: ProbeSet) -> None:
    one, many = (reply(model, probes, tokens=5, shuffles=99, batch_size=size) for size in (1, 32))
    numbers = ["value", "low", "high", "random_low", "random_high"]
    assert np.allclose(one.table[numbers], many.table[numbers], atol=1e-5)
    assert "28 prompts, continued by 5 tokens (greedily)" in one.method  # 16, and 2 topics of 6 emotions


def test_continuations_are_the_models_own_and_samples_follow_the_seed(model: LiveModel) -> None:
    prompts = [turn(model, text) for text in TEXTS[:3]]
    greedy = continued(model, prompts, 6, 0, 0, 2)
    assert greedy == [[model.generate(prompt.text, max_new_tokens=6, do_sample=False)] for prompt in prompts]
    sampled = continued(model, prompts, 6, 2, 0, 2)
    assert [len(texts) for texts in sampled] == [2, 2, 2] and sampled[0][0] != sampled[0][1]
    assert continued(model, prompts, 6, 2, 0, 2) == sampled != continued(model, prompts, 6, 2, 1, 2)


def test_prompts_without_a_reply_are_left_out(
    monkeypatch: pytest.MonkeyPatch, model: LiveModel, probes: ProbeSet
) -> None:
    generate = type(model).generate
    silent = lambda self, texts, **options: [  # noqa: E731
        "  " if "Number 1" in text else said
        for text, said in zip(texts, generate(self, texts, **options), strict=True)
    ]
    monkeypatch.setattr(type(model), "generate", silent)
    assert reply(model, probes, prompts=TEXTS[:14], tokens=3).method.startswith("9 prompts")
    with pytest.raises(InputError, match="replied to 0 of 3 prompts"):
        reply(model, probes, prompts=TEXTS[10:13], tokens=3)


# Measures ------------------------------------------------------------------------------------------------------------


def test_correlations_are_numpys() -> None:
    x, y = noise(3, 12, 4), noise(3, 12, 4, seed=1)
    y += 0.5 * x + np.array([0.0, 3.0, -3.0, 1.0])
    x += np.array([0.0, 3.0, -3.0, 1.0])
    pooled = across(x, y, centred=False, shuffles=19)
    assert pooled.value == pytest.approx(np.corrcoef(x[0].ravel(), y[0].ravel())[0, 1])
    a, b = (values - values.mean(1, keepdims=True) for values in (x, y))
    alike = across(x, y, centred=True, shuffles=19)
    assert alike.value == pytest.approx(np.corrcoef(a[0].ravel(), b[0].ravel())[0, 1])
    assert alike.chance == pytest.approx([np.corrcoef(a[k].ravel(), b[k].ravel())[0, 1] for k in (1, 2)])


def test_p_is_uniform_where_nothing_is_whatever_the_means() -> None:
    offset = np.array([0.0, 4.0, -4.0])
    for centred in (True, False):
        p = [
            across(
                noise(2, 10, 3, seed=n) + offset,
                noise(2, 10, 3, seed=1000 + n) + offset,
                centred=centred,
                shuffles=99,
                seed=n,
            ).p
            for n in range(200)
        ]
        assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.1


def test_the_difference_is_that_of_two_correlations() -> None:
    values, over = noise(3, 15, 2, 4), noise(3, 15, 4, seed=1)
    found = difference(values, over, centred=False)

    def r(k: int, place: int) -> float:
        return float(np.corrcoef(values[k, :, place].ravel(), over[k].ravel())[0, 1])

    assert found.value == pytest.approx(r(0, 1) - r(0, 0))
    assert found.chance == pytest.approx([r(k, 1) - r(k, 0) for k in (1, 2)])
    assert found.low < found.value < found.high


def test_leaning_is_reply_less_user_less_what_all_prompts_share() -> None:
    values = noise(3, 8, 2, 5)
    user, answer = [0, 1, 2, 3, 4, 0, 1, 2], [1, 2, 3, 4, 0, 4, 3, 1]
    found = toward_reply(values, user, answer)
    for k, n, place in np.ndindex(found.shape):
        apart = values[k, n, place] - values[k, :, place].mean(0)
        assert found[k, n, place] == pytest.approx(apart[answer[n]] - apart[user[n]])
