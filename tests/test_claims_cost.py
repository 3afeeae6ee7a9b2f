"""The cost of valuations: the verdict on times made up for it, the arithmetic, and that timing runs what it says."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from parts import shown
from tiny import tiny_model, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from emoprobe.models import LiveModel, wrap
from emoprobe.study.claims import cost as module
from emoprobe.study.claims.cost import (
    LENGTHS,
    PARTS,
    Heads,
    arithmetic,
    exponent,
    heads_of,
    judged,
    share,
    timed,
    weighed,
)
from emoprobe.study.claims.judging import NOT_SHOWN, NOT_SUPPORTED, SUPPORTED
from emoprobe.valattn import Valuation


def times(
    *, power: float = 1.0, valuations: float = 1e-7, bias: float = 0.03, noise: float = 0.01
) -> pd.DataFrame:
    """Seconds of attention that grow as n², of valuations as n^power, and a bias that adds a share to attention."""
    draw = np.random.default_rng(0)
    rows = []
    for n in LENGTHS:
        for repeat in range(6):
            wobble = 1 + noise * draw.normal(size=5)
            base = 1e-8 * n**2
            plain = [valuations * n**power, base, base * (1 + bias), 1e-5 * n, 1.02e-5 * n]
            values = dict(zip(PARTS, np.array(plain) * wobble, strict=True))
            if n > 512:
                values |= {"pass": np.nan, "injected": np.nan}
            rows.append({"tokens": n, "repeat": repeat, **values})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({}, SUPPORTED),
        ({"bias": 0.3}, NOT_SUPPORTED),
        ({"power": 2.0, "valuations": 1e-11}, NOT_SUPPORTED),
        ({"bias": 0.1, "noise": 0.05}, NOT_SHOWN),
    ],
)
def test_the_cost_is_small_only_where_it_grows_slowly_and_takes_little(
    given: dict[str, float], verdict: str
) -> None:
    result = judged(times(**given), d_model=64, heads=Heads(4, 2, 16), m=3)  # type: ignore[arg-type]
    assert f"insignificant beside attention: {verdict}." in result.verdict
    assert shown(result) == ["power" not in given, "bias" not in given]
    assert result.table.part.tolist()[: len(PARTS)] == list(PARTS)


def test_exponents_and_shares_are_those_of_the_times() -> None:
    exact = times(noise=0.0, power=1.2, valuations=1e-8, bias=0.05)
    assert exponent(exact, "valuations")[0] == pytest.approx(1.2)
    assert exponent(exact, "attention")[0] == pytest.approx(2.0)
    assert share(exact, 2048)[0] == pytest.approx(0.05 + 1e-8 * 2048**1.2 / (1e-8 * 2048**2))


def test_both_conditions_have_to_be_shown() -> None:
    little, much = (0.02, 0.01, 0.03), (0.2, 0.15, 0.25)
    linear, quadratic, unsure = (1.0, 0.9, 1.1), (2.0, 1.9, 2.1), (1.4, 1.2, 1.6)
    assert weighed(linear, little) == SUPPORTED
    assert weighed(linear, much) == weighed(quadratic, little) == NOT_SUPPORTED
    assert weighed(unsure, little) == NOT_SHOWN


def test_operations_are_counted() -> None:
    """n = 100, width 32 in 4 heads, m = 2: 100²/2 pairs of positions, 2 operations for each product and sum."""
    pairs, n, d, heads, m = 100**2 / 2, 100, 32, 4, 2
    attention = pairs * (2 * d + 2 * d)
    found = arithmetic(n, d, Heads(heads, heads, d // heads), m)
    assert found["valuations"] == pytest.approx(2 * n * m * d / attention)
    assert (
        found["bias"]
        == pytest.approx(pairs * 2 * m * heads / attention)
        == pytest.approx(m / (2 * d / heads))
    )


def test_timing_runs_every_part_as_often_as_asked_and_leaves_the_model_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama", dtype=torch.float32)
    valuation = Valuation(torch.ones(1, 2, model.d_model), torch.zeros(1, 2), ("a", "b"), (1,))
    before = model.logits("The sun came up.")
    strengths = []
    real = module.inject
    monkeypatch.setattr(module, "inject", lambda *given: strengths.append(given[2]) or real(*given))
    found = timed(model, valuation, lengths=(8, 1024), repeats=2)
    assert found.tokens.tolist() == [8, 8, 1024, 1024]
    assert (found[list(PARTS[:3])] > 0).all(axis=None)
    assert np.isnan(found.loc[2:, ["pass", "injected"]]).all(axis=None)  # beyond the context of 512
    assert (found.loc[:1, ["pass", "injected"]] > 0).all(axis=None) and strengths
    assert torch.equal(model.logits("The sun came up."), before)


def grouped_model() -> LiveModel:
    """Eight heads of queries that share two of keys and values, of a width that is no part of the model's."""
    config = LlamaConfig(
        vocab_size=330,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16,
    )
    return wrap(LlamaForCausalLM(config).eval(), tiny_tokenizer())


def test_attention_is_timed_with_the_heads_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = grouped_model()
    assert heads_of(model) == Heads(8, 2, 16) and heads_of(tiny_model("gpt2")) == Heads(4, 4, 8)
    shapes = []
    real = module.scaled_dot_product_attention

    def noting(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        shapes.append((tuple(q.shape), tuple(k.shape), tuple(v.shape)))
        return real(q, k, v, **options)

    monkeypatch.setattr(module, "scaled_dot_product_attention", noting)
    valuation = Valuation(torch.ones(1, 2, model.d_model), torch.zeros(1, 2), ("a", "b"), (1,))
    timed(model, valuation, lengths=(8,), repeats=1)
    assert set(shapes) == {
        ((1, 8, 8, 16), (1, 2, 8, 16), (1, 2, 8, 16)),
        ((1, 8, 8, 24), (1, 2, 8, 24), (1, 2, 8, 24)),
    }


def test_heads_and_their_width_are_said() -> None:
    result = judged(times(), d_model=64, heads=Heads(8, 2, 16), m=3)
    assert "8 heads of 16, 2 of keys and values" in result.method
    # 128 numbers in all heads, not the model's 64.
    assert arithmetic(100, 64, Heads(8, 2, 16), 3)["bias"] == pytest.approx(3 / (2 * 16))
