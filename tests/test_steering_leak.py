"""The content-leak check: a direction that brings back the fitted texts is told from one that brings back others."""

import pandas as pd
import pytest
import torch
from tiny import tiny_model

from emoprobe.errors import InputError
from emoprobe.models import LiveModel
from emoprobe.steering import ContentLeak, content_leak, generations, overlap, steer

PROMPTS = ["I am so glad that you came", "The dog", "They were afraid of the dark and", "It rained"]
STRENGTH, LENGTH = 2.0, 16
OPTIONS = {"layers": 1, "n": 1, "max_new_tokens": LENGTH, "controls": 8}


def vector(model: LiveModel) -> torch.Tensor:
    return torch.randn(model.d_model, generator=torch.Generator().manual_seed(7))


def written(model: LiveModel, strength: float) -> list[str]:
    """Return what the model writes at a strength, as `generations` hands it to its scores."""
    kept: list[str] = []
    measure = generations({"kept": lambda text: float(kept.append(text) or 0)}, max_new_tokens=LENGTH)
    with steer(model, vector(model), strength, layers=1):
        measure(model, PROMPTS)
    return kept


def test_texts_that_steering_brings_back_are_a_leak_and_those_it_does_not_are_none() -> None:
    model = tiny_model("gpt2")
    own, other = written(model, STRENGTH), written(model, 0.0)
    leaking = content_leak(model, vector(model), own, other, PROMPTS, STRENGTH, **OPTIONS)
    assert leaking.leaks and "their wording comes back>" in repr(leaking)
    assert not content_leak(model, vector(model), other, own, PROMPTS, STRENGTH, **OPTIONS).leaks
    # The same wording on both sides is the concept's, not the fitted texts'.
    shared = content_leak(model, vector(model), own, own, PROMPTS, STRENGTH, **OPTIONS)
    assert not shared.leaks and "no sign" in repr(shared)
    assert shared.frame.change[0] > 0 and shared.frame.change[2] == 0


def test_an_excess_that_a_single_text_makes_is_no_leak() -> None:
    rows = [
        ("fitted texts", 0.1, 0.5, 0.4, 0.6, -0.1, 0.1),
        ("fresh texts", 0.1, 0.0, -0.1, 0.1, -0.1, 0.1),
        ("excess of fitted", 0.0, 0.5, 0.1, 0.9, -0.1, 0.1),
    ]
    columns = ["overlap", "untouched", "change", "low", "high", "random_low", "random_high"]
    frame = pd.DataFrame(rows, columns=columns)
    assert ContentLeak(frame, 0.1, 3, "made up").leaks
    frame.loc[2, "low"] = -0.1  # the interval over prompts
    assert not ContentLeak(frame, 0.1, 3, "made up").leaks
    frame.loc[2, ["low", "random_high"]] = 0.1, 0.6  # random directions do as much
    assert not ContentLeak(frame, 0.1, 3, "made up").leaks


def test_its_numbers_are_those_of_the_texts_that_are_written() -> None:
    model = tiny_model("gpt2")
    own, other = written(model, STRENGTH), written(model, 0.0)
    frame = content_leak(model, vector(model), own, other, PROMPTS, STRENGTH, **OPTIONS).frame.set_index(
        "overlap"
    )
    score = overlap(own, 1)
    before, after = (sum(map(score, texts)) / len(PROMPTS) for texts in (other, own))
    assert after == 1 and frame.untouched["fitted texts"] == pytest.approx(before)
    assert frame.change["fitted texts"] == pytest.approx(after - before)
    assert frame.change["excess of fitted"] == pytest.approx(
        frame.change["fitted texts"] - frame.change["fresh texts"]
    )


def test_as_many_texts_are_taken_of_both_kinds() -> None:
    model = tiny_model("gpt2")
    own, other = written(model, STRENGTH), written(model, 0.0)
    cut = content_leak(model, vector(model), own, other[:1], PROMPTS, STRENGTH, **OPTIONS).frame
    same = content_leak(model, vector(model), own[:1], other[:1], PROMPTS, STRENGTH, **OPTIONS).frame
    assert cut.equals(same)


def test_without_texts_or_with_one_prompt_it_says_what_is_missing() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(InputError, match=r"1 prompts, 8 controls, 1 fitted and 0 fresh"):
        content_leak(model, vector(model), ["a"], [], PROMPTS[:1], **OPTIONS)
