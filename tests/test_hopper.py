"""Folding for FlashAttention-4's kernels: what they are given makes plain attention valuation attention."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from attention_oracle import draw, worst
from torch import Tensor
from torch.nn.functional import pad

pytest.importorskip("triton", reason="Triton is not installed")

from emoprobe.valattn import hopper, val_attention
from emoprobe.valattn.attention import choose_implementation
from emoprobe.valattn.kernels import flash
from emoprobe.valattn.kernels.widen import width

if not flash.INTERPRETING:
    pytest.skip("needs Triton's interpreter", allow_module_level=True)


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int | None, int | None],
    return_lse: bool = True,
) -> tuple[Tensor, Tensor]:
    """Stand in for `flash_attn_func`: (batch, positions, heads, width), the last query stands at the last key."""
    assert q.shape[-1] == k.shape[-1] and q.shape[-1] % 16 == 0 and q.shape[-1] <= 256
    groups = q.shape[2] // k.shape[2]
    q, k, v = (t.transpose(1, 2).double() for t in (q, k, v))
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    ahead = torch.arange(k.shape[2]) - (torch.arange(q.shape[2]) + k.shape[2] - q.shape[2])[:, None]
    left, right = window_size[0], 0 if causal else window_size[1]
    far = torch.zeros_like(ahead, dtype=torch.bool)
    if right is not None:
        far |= ahead > right
    if left is not None:
        far |= -ahead > left
    scores = (softmax_scale * q @ k.mT).masked_fill(far, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2), scores.logsumexp(-1)


def plain_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    given: Tensor,
    logsumexp: Tensor,
    *,
    scale: float,
    causal: bool,
    window: int | None,
) -> tuple[Tensor, ...]:
    """Stand in for `attention_gradients`."""
    assert q.shape[2] == k.shape[2] and logsumexp.shape == (len(q), q.shape[2], q.shape[1])
    near = None if window is None else window - 1
    with torch.enable_grad():
        wanted = [t.detach().requires_grad_() for t in (q, k, v)]
        again, _ = plain_attention(*wanted, softmax_scale=scale, causal=causal, window_size=(near, near))
        torch.testing.assert_close(again, out)
        return tuple(t.contiguous() for t in torch.autograd.grad(again, wanted, given))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module, backward = types.ModuleType("flash_attn.cute"), types.ModuleType("hopper_backward")
    module.flash_attn_func = plain_attention  # type: ignore[attr-defined]
    backward.attention_gradients = plain_gradients  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", module)
    monkeypatch.setitem(sys.modules, "emoprobe.valattn.hopper_backward", backward)


def compute(
    *inputs: Tensor, mask: Tensor | None, scale: float | None, implementation: str = "", **options: Any
) -> Tensor:
    q, k = inputs[:2]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    seen = None if mask is None else mask[:, 0, 0].expand(len(k), k.shape[2])
    return hopper.hopper_attention(*inputs, seen=seen, scale=scale, **options)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "queries", "keys", "d", "m", "options"),
    [
        (2, 2, 70, 70, 64, 3, {}),
        (4, 2, 20, 90, 96, 5, {}),  # grouped queries and a cached prefix
        (2, 1, 33, 40, 64, 16, {"causal": False}),
        (1, 1, 40, 40, 40, 32, {"window": 9, "causal": False}),
        (2, 2, 70, 70, 64, 3, {"padded": True}),
        (2, 1, 70, 70, 64, 16, {"padded": True, "window": 8}),
        (2, 1, 40, 60, 64, 3, {"padded": True, "window": 8, "causal": False}),
    ],
)
@pytest.mark.usefixtures("stand_in")
def test_folding_for_them_is_the_formula(
    heads: int, kv_heads: int, queries: int, keys: int, d: int, m: int, options: dict[str, Any]
) -> None:
    options = {"causal": True, "window": None, "scale": 0.2, "mask": None, **options}
    if options.pop("padded", False):
        seen = torch.arange(keys) >= torch.tensor([[0], [keys // 2]])
        seen[0, -5:] = False
        options["mask"] = seen[:, None, None]
    assert worst(draw(heads, kv_heads, queries, keys, d, m), compute, **options) < 1e-5


@pytest.mark.parametrize("m", [3, 5])
@pytest.mark.usefixtures("stand_in")
def test_low_parts_take_the_columns_that_are_free(m: int) -> None:
    """Biases of tens of units of up to 5 dimensions are as exact as in float32."""
    inputs = draw(2, 2, 60, 60, 64, m, torch.bfloat16)
    inputs[5] = inputs[5] * 20
    exact = val_attention(*[t.double() for t in inputs], implementation="reference")
    ours = hopper.hopper_attention(*inputs, causal=True, seen=None, scale=1 / 8, window=None)
    assert float((ours - exact).norm() / exact.norm()) < 1e-3


def test_widths_are_the_least_that_tensor_cores_take() -> None:
    assert [width(64, m, False) for m in (1, 3, 16, 17, 32)] == [80, 80, 80, 96, 96]
    assert [width(128, m, True) for m in (3, 15, 16)] == [144, 144, 160]


def test_they_are_chosen_where_they_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    q, vq = torch.zeros(1, 2, 64, 64, dtype=torch.bfloat16), torch.zeros(1, 64, 3)
    monkeypatch.setattr(hopper, "installed", lambda: False)
    assert "not installed" in str(hopper.why_not(q, vq, None))
    monkeypatch.setattr(hopper, "installed", lambda: True)
    assert "Hopper" in str(hopper.why_not(q, vq, None))
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda t: True))
    for capability, wanted in (((8, 0), "Hopper"), ((10, 0), "Hopper"), ((9, 0), "None")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, it=capability: it)
        assert wanted in str(hopper.why_not(q, vq, None))
    assert choose_implementation(q, vq) == "folded"
    keys = torch.ones(1, 1, 1, 64, dtype=torch.bool)
    for changed, reason in (
        ((q.float(), vq, None), "float16 and bfloat16"),
        ((q[:, :, :1], vq[:, :1], None), "few queries"),
        ((pad(q, (0, 192)), vq, None), "256 wide"),
        ((q, vq, keys.expand(1, 1, 64, 64)), "boolean masks"),
        ((q, vq, keys), "None"),
    ):
        assert reason in str(hopper.why_not(*changed))
    for mask, window in ((keys, None), (None, 8)):  # what their gradients have not been tried with
        assert "not been tried" in str(hopper.why_not(q, vq, mask, window, trained=True))
        assert hopper.why_not(q, vq, mask, window) is None
    assert hopper.why_not(q, vq, None, trained=True) is None


def test_gradients_with_windows_are_left_to_other_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def why_not(*given: object, trained: bool) -> str:
        asked.append(trained)
        return "not asked"

    monkeypatch.setattr(hopper, "why_not", why_not)
    q, v = torch.randn(1, 2, 8, 16), torch.randn(1, 8, 3)
    for wanted in (q.requires_grad_(), q.detach()):
        val_attention(wanted, q.detach(), q.detach(), v, v, 0.5, window=4)
    with torch.no_grad():
        val_attention(q.requires_grad_(), q, q, v, v, 0.5, window=4)
    assert asked == [True, True, False, False, False, False]
