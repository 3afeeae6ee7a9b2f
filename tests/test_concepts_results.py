"""Whatever the experiment: its result is whole, goes into a table file, and the same seed gives the same; chat models too."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted_probes import planted_probes
from tiny import tiny_model

from emoprobe import InputError
from emoprobe.models import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.study.concepts.binding import binding
from emoprobe.study.concepts.dissociation import dissociation
from emoprobe.study.concepts.intensity import intensity
from emoprobe.study.concepts.negation import negation
from emoprobe.study.concepts.persistence import persistence
from emoprobe.study.concepts.reply import reply
from emoprobe.study.concepts.scenarios import scenarios
from emoprobe.study.result import Result

EXPERIMENTS = (scenarios, intensity, dissociation, reply, persistence, negation, binding)
CONCEPTS = ("fear", "anger", "sadness", "contentment", "joy", "love")
TEMPLATE = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<reply>{% endif %}"


@pytest.fixture(scope="module")
def chat() -> LiveModel:
    model = tiny_model("gpt_neox")
    model.tokenizer.chat_template = TEMPLATE
    return model


@pytest.fixture(scope="module")
def probes(chat: LiveModel) -> ProbeSet:
    return planted_probes(chat, np.random.default_rng(0).normal(size=(6, 32)), CONCEPTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda one: one.__name__)
def test_results_are_whole(
    chat: LiveModel, probes: ProbeSet, experiment: Callable[..., Result], tmp_path: Path
) -> None:
    found = experiment(chat, probes, layer=1, controls=4)
    assert found.name == experiment.__name__ and found.question.endswith("?")
    for words in (
        found.title,
        found.method,
        found.finding,
        found.controls,
        found.verdict,
        found.alt,
        found.published,
    ):
        assert words and "nan" not in words.lower().split() and " -" not in words.replace(" - ", "")
    assert "not shown" in found.verdict or "cannot be said" in found.verdict  # of random weights
    assert found.sign in (0, -1) and -found.sign == int(
        "against what" in found.verdict or "not resolved" in found.verdict
    )
    assert "2604.07729" in found.published and found.svg.strip().endswith("</svg>") and found.passed
    found.table.to_parquet(tmp_path / "table.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "table.parquet"), found.table)
    assert "layer 1 of 3" in found.method


@pytest.mark.parametrize("experiment", [scenarios, dissociation])
def test_seeds_draw_the_controls(
    chat: LiveModel, probes: ProbeSet, experiment: Callable[..., Result]
) -> None:
    one, same, other = (experiment(chat, probes, controls=2, seed=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(one.table, same.table)
    assert one.verdict == same.verdict and one.table.value.equals(other.table.value)
    assert not np.allclose(one.table.random_low, other.table.random_low, equal_nan=True)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda one: one.__name__)
def test_probes_that_know_no_emotion_are_refused(chat: LiveModel, experiment: Callable[..., Result]) -> None:
    dimensions = planted_probes(chat, np.eye(2, 32), ["valence", "arousal"])
    with pytest.raises(InputError, match="they have valence, arousal"):
        experiment(chat, dimensions)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda one: one.__name__)
def test_the_layer_must_have_probes(chat: LiveModel, experiment: Callable[..., Result]) -> None:
    some = planted_probes(chat, np.random.default_rng(0).normal(size=(6, 32)), CONCEPTS, layers=[3])
    with pytest.raises(InputError, match="no probe was fitted at layer 1"):
        experiment(chat, some, layer=1)
