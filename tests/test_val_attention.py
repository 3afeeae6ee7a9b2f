"""Every implementation of valuation attention equals the formula in float64, forward and gradients, at any shape."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.valattn import attention, val_attention
from emoprobe.valattn.attention import choose_implementation

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def draw(shape: dict[str, int], dtype: torch.dtype, seed: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    b, h, kv, n, k, d, m = (shape[x] for x in ("batch", "heads", "kv_heads", "queries", "keys", "d", "m"))
    sizes = [(b, h, n, d), (b, kv, k, d), (b, kv, k, d)]
    wide = [torch.randn(size, generator=g).to(dtype) for size in sizes]
    valuations = [torch.tanh(torch.randn(b, length, m, generator=g)) for length in (n, k)]
    return [*wide, *valuations, torch.rand(h, generator=g) + 0.5]


def some_shape(seed: int, longest: int) -> tuple[dict[str, int], dict[str, Any]]:
    """Draw a shape and options: head dimension, m, groups, cached prefix, window, padding, lengths 1 to `longest`."""
    pick = random.Random(seed)
    keys = pick.choice([1, 2, 7, 8, 9, 63, 64, 65, pick.randint(1, longest), longest])
    queries = pick.choice([keys, keys, 1, pick.randint(1, keys)])
    kv_heads = pick.choice([1, 2])
    shape = {
        "batch": pick.choice([1, 2]),
        "heads": kv_heads * pick.choice([1, 2, 4]),
        "kv_heads": kv_heads,
        "queries": queries,
        "keys": keys,
        "d": pick.choice([8, 40, 64, 96, 128, 256]),
        "m": pick.choice([1, 2, 3, 5, 8, 16, 17, 32]),
    }
    options: dict[str, Any] = {"causal": pick.random() < 0.75}
    if pick.random() < 0.3:
        options["window"] = pick.randint(8, keys + 8)
    if pick.random() < 0.3:
        options["scale"] = (0.5 + pick.random()) / shape["d"] ** 0.5
    kind = pick.choice(["none", "padding", "any", "additive"])
    if kind != "none":
        rows = 1 if kind == "padding" else queries
        g = torch.Generator().manual_seed(seed)
        mask = torch.rand(shape["batch"], 1, rows, keys, generator=g) > 0.4
        if kind == "padding":
            mask = torch.arange(keys) >= torch.randint(0, keys, (shape["batch"], 1, 1, 1), generator=g)
        options["mask"] = mask if kind != "additive" else torch.where(mask, 0.0, -torch.inf)
    return shape, options


def worst(inputs: list[Tensor], implementation: str, **options: Any) -> float:
    """Return the largest relative error of the output and the gradients against the formula in float64."""
    ours = [t.detach().requires_grad_() for t in inputs]
    truth = [t.detach().double().requires_grad_() for t in inputs]
    exact_options, mask = dict(options), options.get("mask")
    if mask is not None and mask.is_floating_point():
        options["mask"], exact_options["mask"] = mask.to(inputs[0].dtype), mask.double()
    exact = val_attention(*truth, implementation="reference", **exact_options)
    more = val_attention(*truth[:5], truth[5] * 1.1, implementation="reference", **exact_options) - exact
    given = torch.randn(exact.shape, generator=torch.Generator().manual_seed(9)).double()
    given = (given + 2 * more.detach() / (more.detach().std(correction=0) + 1e-9)).to(inputs[0].dtype)
    out = val_attention(*ours, implementation=implementation, **options)
    found = (out, *torch.autograd.grad(out, ours, given))
    wanted = (exact, *torch.autograd.grad(exact, truth, given.double()))
    assert all(t.isfinite().all() for t in found)
    noise = 0.05 * max(
        float(t.detach().norm()) for t in wanted
    )  # where few keys are seen, gradients to scores vanish
    return max(
        float((a.detach().double() - b).norm() / max(float(b.detach().norm()), noise, 1e-30))
        for a, b in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(24))
def test_folded_is_the_formula_at_any_shape(seed: int, dtype: torch.dtype) -> None:
    shape, options = some_shape(seed, 257)
    assert worst(draw(shape, dtype, seed), "folded", **options) < TOLERANCE[dtype], (shape, options)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(100, 112))
def test_folded_is_the_formula_at_length(seed: int, dtype: torch.dtype) -> None:
    shape, options = some_shape(seed, 4097)
    assert worst(draw(shape, dtype, seed), "folded", **options) < TOLERANCE[dtype], (shape, options)


def test_the_sweep_reaches_everything() -> None:
    drawn = [some_shape(seed, 257) for seed in range(24)]
    assert any("window" in options for _, options in drawn) and any("mask" in options for _, options in drawn)
    assert any(shape["queries"] < shape["keys"] for shape, _ in drawn)
    assert any(shape["heads"] > shape["kv_heads"] for shape, _ in drawn)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_valuations_keep_their_digits(dtype: torch.dtype) -> None:
    """Biases of tens of units stay right in half precision, where one rounded to it would not."""
    shape = {"batch": 1, "heads": 2, "kv_heads": 2, "queries": 60, "keys": 60, "d": 64, "m": 3}
    inputs = draw(shape, dtype, 0)
    inputs[5] = inputs[5] * 20
    exact = val_attention(*[t.double() for t in inputs], implementation="reference")
    rounded = [t.to(dtype).double() for t in inputs]
    coarse = val_attention(*rounded, implementation="reference")
    ours = val_attention(*inputs, implementation="folded").double()
    error, coarse_error = (float((t - exact).norm() / exact.norm()) for t in (ours, coarse))
    assert error < coarse_error / 2 and error < (5e-3 if dtype == torch.bfloat16 else 1e-3)


@pytest.mark.parametrize(
    "options",
    [{}, {"window": 3}, {"window": 2, "causal": False}, {"softcap": 1.5}, {"softcap": 0.8, "window": 2}],
)
def test_the_formula_has_right_gradients(options: dict[str, Any]) -> None:
    shape = {"batch": 1, "heads": 2, "kv_heads": 1, "queries": 3, "keys": 4, "d": 8, "m": 2}
    inputs = [t.double().requires_grad_() for t in draw(shape, torch.float32, 0)]
    assert torch.autograd.gradcheck(
        lambda *t: val_attention(*t, implementation="reference", **options), inputs
    )


def test_the_bias_is_added_to_what_the_cap_gives() -> None:
    q, k, v, vq, vk, lam = (
        t.double()
        for t in draw(
            {"batch": 1, "heads": 1, "kv_heads": 1, "queries": 5, "keys": 5, "d": 8, "m": 2}, torch.float32, 0
        )
    )
    scores = 1.5 * torch.tanh(q[0, 0] @ k[0, 0].T / 8**0.5 / 1.5) + lam * vq[0] @ vk[0].T
    by_hand = scores.softmax(-1) @ v[0, 0]
    assert torch.allclose(val_attention(q, k, v, vq, vk, lam, causal=False, softcap=1.5)[0, 0], by_hand)


@pytest.mark.slow
def test_flex_is_the_formula() -> None:
    """On a CPU FlexAttention runs as plain torch operations and has no gradients."""
    shape = {"batch": 2, "heads": 4, "kv_heads": 2, "queries": 20, "keys": 30, "d": 16, "m": 3}
    inputs = draw(shape, torch.float32, 0)
    padding = (torch.arange(30) >= torch.tensor([[0], [12]]))[:, None, None]
    for options in ({}, {"causal": False}, {"window": 5}, {"softcap": 2.0}, {"mask": padding}):
        exact = val_attention(*[t.double() for t in inputs], implementation="reference", **options)
        ours = val_attention(*inputs, implementation="flex", **options)
        assert torch.allclose(ours.double(), exact, atol=1e-5), options
    with pytest.raises(InputError, match="no gradients on a CPU"):
        val_attention(*[t.requires_grad_() for t in inputs], implementation="flex")


def test_what_nobody_can_compute_is_said() -> None:
    shape = {"batch": 1, "heads": 2, "kv_heads": 1, "queries": 6, "keys": 6, "d": 16, "m": 3}
    inputs = draw(shape, torch.float32, 0)
    for options, message in (
        ({"implementation": "folded", "softcap": 2.0}, "capped with the scores"),
        ({"implementation": "slow"}, "is not there"),
        ({"window": 0}, "window=0 is not above 0"),
        ({"scale": -1.0}, "scale=-1.0"),
        ({"mask": torch.ones(5, 5, dtype=torch.bool)}, "does not broadcast"),
    ):
        with pytest.raises(InputError, match=message):
            val_attention(*inputs, **options)
    with pytest.raises(InputError, match="strength has 3 entries for 2 heads"):
        val_attention(*inputs[:5], torch.ones(3))
    with pytest.raises(InputError, match="6 queries to 5 keys"):
        val_attention(inputs[0], *(t[:, :, :5] for t in inputs[1:3]), inputs[3], inputs[4][:, :5], 1.0)


def test_the_implementation_is_chosen_by_what_it_can_do() -> None:
    q, vq = torch.zeros(1, 2, 6, 64), torch.zeros(1, 6, 3)
    assert choose_implementation(q, vq) == "folded"
    assert choose_implementation(q, vq, softcap=2.0) == "reference"


def test_folding_takes_the_fused_kernel_and_no_n_by_n_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Causal, padded and windowed: no call has more than CHUNK × keys scores in its mask, and values are as wide as keys."""
    monkeypatch.setattr(attention, "CHUNK", 16)
    own, calls = attention.scaled_dot_product_attention, []

    def watched(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        calls.append((q.shape[2], k.shape[2]))
        assert q.shape[-1] == k.shape[-1] == v.shape[-1] and q.shape[-1] % 8 == 0
        assert mask is None or mask.shape[-2:].numel() <= 16 * k.shape[2]
        return own(q, k, v, mask, **kwargs)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", watched)
    shape = {"batch": 1, "heads": 2, "kv_heads": 1, "queries": 100, "keys": 100, "d": 16, "m": 3}
    inputs = draw(shape, torch.float32, 0)
    val_attention(*inputs, implementation="folded")
    assert calls == [(100, 100)]
    mask = (torch.arange(100) > 10)[None, None, None]
    for options in ({"mask": mask}, {"window": 20}, {"window": 20, "causal": False}):
        assert worst(inputs, "folded", **options) < 1e-5
    assert max(keys for _, keys in calls[-14:]) <= 16 + 2 * 19


def test_tensors_need_nothing_but_torch() -> None:
    """The benchmark runs where the rest of what emoprobe depends on is not installed."""
    root = Path(__file__).resolve().parents[1]
    code = (
        f"import sys; sys.path.insert(0, {str(root / 'benchmarks')!r}); import attention; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "emoprobe.valattn.attention" in loaded
    assert not loaded & {"transformers", "sklearn", "pandas", "nnsight", "datasets", "emoprobe.models"}
