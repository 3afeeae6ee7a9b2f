"""Base and tuned: a planted shift is found to the last digit, a model is as itself, and random changes are called random."""

import copy
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from planted_probes import planted_probes
from scipy.stats import ttest_1samp
from tiny import tiny_model

from emoprobe import InputError
from emoprobe.models import LiveModel, wrap
from emoprobe.probes import ProbeSet, trace
from emoprobe.study.concepts import tuning as module
from emoprobe.study.concepts.places import turn
from emoprobe.study.concepts.tuning import CHALLENGING, NEUTRAL, compare, tuning, verdict
from emoprobe.study.concepts.weight_changes import perturbations

NAMES = ("joy", "sadness", "anger", "fear", "pride", "shame")
AXES = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 32)))[0][:6]
SHORT = slice(0, 5)


@pytest.fixture(autouse=True)
def fewer_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NEUTRAL", tuple(text[:40] for text in NEUTRAL[SHORT]))
    monkeypatch.setattr(module, "CHALLENGING", tuple(text[:40] for text in CHALLENGING[SHORT]))


@pytest.fixture(scope="module")
def base() -> LiveModel:
    return tiny_model("gpt2")


@pytest.fixture(scope="module")
def probes(base: LiveModel) -> ProbeSet:
    return planted_probes(base, AXES, NAMES)


def changed(base: LiveModel, shift: np.ndarray) -> LiveModel:
    """Return a copy that adds a vector to the stream of every token from layer 2 on."""
    other = copy.deepcopy(base.underlying)
    with torch.no_grad():
        other.transformer.h[1].mlp.c_proj.bias += torch.from_numpy(shift)
    return wrap(other, base.tokenizer, name="tuned")


def test_a_planted_shift_is_found_exactly(base: LiveModel, probes: ProbeSet) -> None:
    tuned = changed(base, 0.7 * AXES[1] - 0.6 * AXES[3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the probes are of one of the two: nothing to warn of
        result = tuning(base, tuned, probes, layer=2, kind="dot", perturbed=15)
    table = result.table
    at = table[(table.layer == 2) & (table.measure == "shift")].set_index(["concept", "set"])
    for name in ("neutral", "challenging"):
        for concept, expected in zip(NAMES, (0, 0.7, 0, -0.6, 0, 0), strict=True):
            assert at.value[concept, name] == pytest.approx(expected, abs=1e-6)
            assert at.tuned[concept, name] - at.base[concept, name] == pytest.approx(expected, abs=1e-6)
    before = table[(table.layer == 1) & (table.measure == "shift")]
    assert (before.value.abs() < 1e-9).all()
    assert (
        "Up, beyond all controls: sadness" in result.verdict
        and "Down, beyond all controls: fear" in result.verdict
    )
    assert "joy" not in result.verdict
    alike = table[(table.layer == 2) & (table.measure == "neutral and challenging shifts, r")].iloc[0]
    assert alike.value == pytest.approx(1) and "it says nothing of the tuning" in result.verdict
    assert result.svg and result.published and set(table.layer) == {0, 1, 2, 3}


def test_a_model_is_as_itself(base: LiveModel, probes: ProbeSet) -> None:
    result = tuning(base, base, probes, layer=2, layers=[2], perturbed=2)
    shifts = result.table[result.table.measure == "shift"]
    assert (shifts.value == 0).all() and (shifts.q == 1).all() and (shifts.perturbed_high.abs() == 0).all()
    assert result.verdict.startswith("The two models read alike: every shift is exactly zero")
    alike = result.table[result.table.measure == "base and tuned, r"].value
    assert np.allclose(alike, 1)


def test_a_random_change_is_no_more_than_a_random_change(base: LiveModel, probes: ProbeSet) -> None:
    noise = np.random.default_rng(4).normal(size=32)
    result = tuning(
        base, changed(base, 0.5 * noise / np.linalg.norm(noise)), probes, layer=2, layers=[2], perturbed=8
    )
    assert result.verdict.startswith("No concept is shown to shift")


def test_read_outs_are_those_of_a_trace(base: LiveModel, probes: ProbeSet) -> None:
    tuned = changed(base, AXES[0])
    result = tuning(base, tuned, probes, layer=2, layers=[2], perturbed=0)
    again = tuning(base, tuned, probes, layer=2, layers=[2], perturbed=0, batch_size=1)
    assert np.allclose(result.table.value, again.table.value, atol=1e-9)
    read = {"base": [], "tuned": []}
    for name, model in (("base", base), ("tuned", tuned)):
        for user in module.NEUTRAL:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                frame = trace(
                    model, probes, turn(tuned, user).text, concepts=["fear"], layers=2, kind="centred_cosine"
                ).frame
            read[name].append(frame.value.iloc[-1])
    shift = np.array(read["tuned"]) - np.array(read["base"])
    row = result.table.set_index(["measure", "set", "concept"]).loc["shift", "neutral", "fear"]
    assert row.base == pytest.approx(np.mean(read["base"]), abs=1e-6)
    assert row.value == pytest.approx(shift.mean(), abs=1e-6)
    assert "No random changes of the weights were made" in result.verdict


def test_random_changes_are_as_large_as_tuning_and_leave_the_base_alone(base: LiveModel) -> None:
    tuned = changed(base, 0.3 * AXES[2])
    before = {name: weight.detach().clone() for name, weight in base.named_weights()}
    drawn = []
    for other in perturbations(base, tuned, 3):
        for name, weight in other.named_weights():
            apart = float((weight.detach() - before[name]).norm())
            assert apart == pytest.approx(0.3 if name.endswith("h.1.mlp.c_proj.bias") else 0, abs=1e-6)
            if apart > 0:
                drawn.append((weight - before[name]).detach().clone())
    assert len(drawn) == 3 and not torch.allclose(drawn[0], drawn[1])
    assert all(torch.equal(weight, before[name]) for name, weight in base.named_weights())
    assert list(perturbations(base, tuned, 0)) == []


# Words ---------------------------------------------------------------------------------------------------------------


def frame(
    value: float, q: float, consistent: float = 0.9, by_chance: tuple[float, float] = (0.2, 0.8)
) -> pd.DataFrame:
    common = {"layer": 2, "low": value - 0.01, "high": value + 0.01}
    shift = {**common, "measure": "shift", "set": "neutral", "concept": "fear", "value": value, "q": q}
    shift |= {"perturbed_low": by_chance[0], "perturbed_high": by_chance[1]}
    whole = {
        **common,
        "measure": module.CONSISTENT,
        "set": module.ALL,
        "concept": module.ALL,
        "value": consistent,
    }
    whole |= {"perturbed_low": by_chance[0], "perturbed_high": by_chance[1]}
    return pd.DataFrame([shift, whole])


def test_every_verdict_can_come_out() -> None:
    assert "Up, beyond all controls: fear on neutral prompts" in verdict(frame(0.1, 0.01))
    assert "Down, beyond all controls: fear" in verdict(frame(-0.1, 0.01))
    assert verdict(frame(0.1, 0.2)).startswith("No concept is shown to shift")
    assert "it says something of the tuning" in verdict(frame(0.1, 0.01))
    assert "it says nothing of the tuning" in verdict(frame(0.1, 0.01, 0.5))
    assert "less than those of random changes" in verdict(frame(0.1, 0.01, 0.1))
    assert "No random changes" in verdict(frame(0.1, 0.01, by_chance=(np.nan, np.nan)))


def test_a_shift_has_to_stand_up_to_prompts_directions_and_changes() -> None:
    generator = np.random.default_rng(0)
    quiet, loud = 0.01 * generator.normal(size=(20, 10)), generator.normal(size=(20, 1)) + np.zeros(10)
    steady = 0.3 + 0.01 * generator.normal(size=10)
    unsteady = 0.3 + 2 * generator.normal(size=10)

    def p(own: np.ndarray, random: np.ndarray, changes: np.ndarray) -> float:
        return float(module._shift(np.vstack([own[None], random]), changes)["p"])  # type: ignore[arg-type]

    assert p(steady, quiet, quiet[:10]) < 0.001
    assert p(unsteady, quiet, quiet[:10]) > 0.05
    assert p(unsteady, 1e-9 * quiet, quiet[:0]) == pytest.approx(ttest_1samp(unsteady, 0).pvalue)
    assert p(steady, loud, quiet[:10]) > 0.05
    assert p(steady, quiet, loud[:10]) > 0.05
    assert p(steady, quiet, quiet[:0]) < 0.001  # no changes were made
    assert module._one_more(3.0, np.zeros(4)) == 0.0 and module._one_more(0.0, np.zeros(4)) == 1.0


def test_one_more_random_change_rarely_stands_out() -> None:
    generator = np.random.default_rng(1)
    ps = [module._one_more(*(lambda x: (x[0], x[1:]))(generator.normal(size=9))) for _ in range(2000)]
    assert np.mean(np.array(ps) < 0.05) == pytest.approx(0.05, abs=0.012)


def shifts(values: list[float]) -> pd.DataFrame:
    rows = [
        {"measure": "shift", "set": name, "concept": concept, "value": value}
        for name in ("neutral", "challenging")
        for concept, value in zip([*NAMES, "boredom", "relief", "thing"], values, strict=True)
    ]
    return pd.DataFrame(rows)


def test_shifts_are_compared_with_published_ones_by_name() -> None:
    values = [0.03, -0.02, 0.01, -0.04, 0.02, 0.0, -0.01, 0.05, 9.0]
    words = [module.WORDS[name] for name in (*NAMES, "boredom", "relief")]
    same = dict(zip(words, [2 * value for value in values[:-1]], strict=True))
    assert compare(shifts(values), same).startswith("r = +1.00 over 8 concepts")
    assert "not shown" not in compare(shifts(values), same)
    assert compare(shifts(values), {word: -value for word, value in same.items()}).startswith("r = −1.00")
    other = dict(zip(words, np.random.default_rng(1).normal(size=8).tolist(), strict=True))
    assert "not shown to be related" in compare(shifts(values), other)
    assert compare(shifts(values), {"sad": 1.0}) == "only 1 concepts are among the published shifts"


@pytest.mark.shared
def test_published_shifts_have_words_for_the_emotions(shared: object) -> None:
    import json
    from pathlib import Path

    listed = json.loads((Path(str(shared)) / "reference" / "emotion_concepts.json").read_text())[
        "posttraining_table16"
    ]
    assert set(module.WORDS.values()) <= set(listed)


def test_prompts_are_many_enough_and_end_where_the_reply_begins() -> None:
    assert len(NEUTRAL) >= 10 and len(CHALLENGING) >= 10
    assert len({*NEUTRAL, *CHALLENGING}) == len(NEUTRAL) + len(CHALLENGING)


def test_models_that_are_not_alike_are_refused(base: LiveModel, probes: ProbeSet) -> None:
    with pytest.raises(InputError, match="vocabular"):
        other = copy.deepcopy(base.tokenizer)
        other.add_tokens(["new"])
        tuning(base, wrap(base.underlying, other), probes)
    with pytest.raises(InputError, match="widths or depths"):
        wide = wrap(_narrow(base), base.tokenizer, name="other")
        tuning(base, wide, probes)
    with pytest.raises(InputError, match="other weights"):
        list(perturbations(base, tiny_model("gpt_neox"), 2))
    with pytest.raises(InputError, match="at least 2"):
        tuning(base, base, probes, perturbed=1)


def _narrow(base: LiveModel) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(base.underlying.config)
    config.n_layer = 2
    return AutoModelForCausalLM.from_config(config).eval()
