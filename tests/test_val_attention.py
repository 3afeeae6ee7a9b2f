"""Valuation attention: the formula, exactness in half precision, which kernels are taken, and what is refused.

That every implementation equals the formula, `test_val_attention_sweep.py` shows.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_oracle import draw, worst
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.valattn import attention, val_attention
from emoprobe.valattn.attention import choose_implementation


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_valuations_keep_their_digits(dtype: torch.dtype) -> None:
    """Biases of tens of units stay right in half precision, where one rounded to it would not."""
    inputs = draw(2, 2, 60, 60, 64, 3, dtype, batch=1)
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
    inputs = [t.double().requires_grad_() for t in draw(2, 1, 3, 4, 8, 2, batch=1)]
    assert torch.autograd.gradcheck(
        lambda *t: val_attention(*t, implementation="reference", **options), inputs
    )


def test_the_bias_is_added_to_what_the_cap_gives() -> None:
    q, k, v, vq, vk, lam = (t.double() for t in draw(1, 1, 5, 5, 8, 2, batch=1))
    scores = 1.5 * torch.tanh(q[0, 0] @ k[0, 0].T / 8**0.5 / 1.5) + lam * vq[0] @ vk[0].T
    by_hand = scores.softmax(-1) @ v[0, 0]
    assert torch.allclose(val_attention(q, k, v, vq, vk, lam, causal=False, softcap=1.5)[0, 0], by_hand)


def test_flex_has_no_gradients_on_a_cpu() -> None:
    inputs = draw(4, 2, 20, 30, 16, 3)
    with pytest.raises(InputError, match="no gradients on a CPU"):
        val_attention(*[t.requires_grad_() for t in inputs], implementation="flex")


def test_what_nobody_can_compute_is_said() -> None:
    inputs = draw(2, 1, 6, 6, 16, 3, batch=1)
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
    inputs = draw(2, 1, 100, 100, 16, 3, batch=1)
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


def test_a_mask_in_another_precision_is_that_mask() -> None:
    inputs = draw(2, 1, 6, 6, 16, 3, torch.bfloat16, batch=1)
    mask = torch.where(torch.rand(6, 6, generator=torch.Generator().manual_seed(1)) > 0.4, 0.0, -torch.inf)
    for implementation in ("folded", "reference"):
        found, same = (
            val_attention(*inputs, mask=one, implementation=implementation) for one in (mask, mask == 0)
        )
        assert found.dtype == torch.bfloat16 and torch.equal(found, same)


def test_kernels_are_given_masks_in_the_precision_of_the_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of GPUs misread others, which none on a CPU does."""
    given: list[torch.dtype] = []

    def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, **options: object) -> Tensor:
        given.append(mask.dtype)
        return torch.zeros_like(q)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", kernel)
    inputs = draw(2, 1, 6, 6, 16, 3, torch.bfloat16, batch=1)
    val_attention(*inputs, mask=torch.zeros(6, 6), implementation="folded")
    assert given == [torch.bfloat16]


def test_queries_far_from_every_key_get_zeros() -> None:
    """More queries than keys, and whole chunks of them outside of the window."""
    inputs = draw(2, 1, 2500, 900, 8, 2, batch=1)
    options = {"causal": False, "window": 7}
    found = val_attention(*inputs, implementation="folded", **options)
    expected = val_attention(*inputs, implementation="reference", **options)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not found[:, :, : 1600 - 6].any() and found[:, :, 1600 - 6 :].any(-1).all()
