"""Every implementation of valuation attention equals the formula in float64, forward and gradients, at any shape."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from attention_oracle import TOLERANCE, draw, worst
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emoprobe.valattn import val_attention

sweep = partial(settings, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
Problem = tuple[dict[str, int], dict[str, Any]]


@st.composite
def problems(
    pick: st.DrawFn,
    longest: int,
    *,
    widths: tuple[int, ...] = (8, 40, 64, 96, 128, 256),
    masks: tuple[str, ...] = ("none", "padding"),
    capped: bool = True,
) -> Problem:
    """Draw a shape and options: head dimension, m, groups, cached prefix, window, padding, cap, 1 to `longest` keys."""
    keys = pick(st.sampled_from([1, 2, 7, 8, 9, 63, 64, 65]) | st.integers(1, longest))
    keys = min(keys, longest)
    queries = pick(st.sampled_from([keys, 1]) | st.integers(1, keys))
    kv_heads = pick(st.sampled_from([1, 2]))
    shape = {
        "batch": pick(st.sampled_from([1, 2])),
        "heads": kv_heads * pick(st.sampled_from([1, 2, 4]) if longest < 1000 else st.just(1)),
        "kv_heads": kv_heads,
        "queries": queries,
        "keys": keys,
        "d": pick(st.sampled_from(widths)),
        "m": pick(st.integers(1, 32)),
    }
    options: dict[str, Any] = {
        "causal": pick(st.booleans()),
        "window": pick(st.none() | st.integers(1, keys + 8)),
        "scale": pick(st.none() | st.floats(0.5, 1.5).map(lambda x: x / shape["d"] ** 0.5)),
        "softcap": pick(st.none() | st.floats(0.5, 30.0)) if capped else None,
    }
    kind = pick(st.sampled_from(masks))
    if kind == "padding":
        first = torch.tensor([pick(st.integers(0, keys - 1)) for _ in range(shape["batch"])])
        real = torch.arange(keys) >= first[:, None]
        options["mask"] = (real if pick(st.booleans()) else real.flip(1))[:, None, None]
    elif kind != "none":
        g = torch.Generator().manual_seed(pick(st.integers(0, 999)))
        seen = torch.rand(shape["batch"], 1, queries, keys, generator=g) > 0.4
        options["mask"] = seen if kind == "any" else torch.where(seen, 0.0, -torch.inf)
    return shape, options


any_mask = ("none", "padding", "any", "additive")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(problem=problems(257, masks=any_mask, capped=False))
@sweep(max_examples=30)
def test_folded_is_the_formula(problem: Problem, dtype: torch.dtype) -> None:
    shape, options = problem
    assert worst(draw(**shape, dtype=dtype), "folded", **options) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(problem=problems(4097, masks=any_mask, capped=False))
@sweep(max_examples=12)
def test_folded_is_the_formula_at_length(problem: Problem, dtype: torch.dtype) -> None:
    shape, options = problem
    assert worst(draw(**shape, dtype=dtype), "folded", **options) < TOLERANCE[dtype]


@given(problem=problems(129, masks=any_mask))
@sweep(max_examples=15)
def test_the_formula_in_float32_is_that_in_float64(problem: Problem) -> None:
    shape, options = problem
    assert worst(draw(**shape), "reference", **options) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@given(problem=problems(129, masks=any_mask), most=st.floats(1.0, 20.0))
@sweep(max_examples=15)
def test_the_formula_in_half_precision_holds_where_strength_is_large(
    problem: Problem, most: float, dtype: torch.dtype
) -> None:
    shape, options = problem
    inputs = draw(**shape, dtype=dtype)
    inputs[5] = inputs[5] / inputs[5].abs().max() * most
    assert worst(inputs, "reference", **options) < TOLERANCE[dtype]


@given(problem=problems(65, widths=(8, 64), masks=("none", "padding", "any")))
@sweep(max_examples=10)
def test_flex_is_the_formula(problem: Problem) -> None:
    """On a CPU FlexAttention runs as plain torch operations and has no gradients."""
    shape, options = problem
    inputs = draw(**shape)
    exact = val_attention(*[t.double() for t in inputs], implementation="reference", **options)
    ours = val_attention(*inputs, implementation="flex", **options).double()
    assert float((ours - exact).norm()) <= 1e-5 * float(exact.norm())
