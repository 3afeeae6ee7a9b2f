"""Folded valuation attention by FlashAttention-4's kernels (the package `flash-attn-4`), for GPUs of Hopper's generation.

These kernels take queries and keys of any width that is a multiple of 16 and leave values as wide as they are, so that a folded
bias costs one step of the tensor cores where torch's kernels round 64 + m up to 96 or 128. Padded keys are folded in as
well, as one more column: no mask is needed.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

VERSION = "4.0.0b36"
FEWEST_QUERIES = 17  # for fewer, kernels that share the keys out among programs are faster


@lru_cache
def installed() -> bool:
    """Tell whether Triton is, and FlashAttention-4 in the version whose inner functions are called here."""
    try:
        return bool(version("triton")) and version("flash-attn-4") == VERSION
    except PackageNotFoundError:
        return False


def why_not(
    q: Tensor, vq: Tensor, mask: Tensor | None, window: int | None = None, *, trained: bool = False
) -> str | None:
    """Return why these kernels cannot compute folded attention of these tensors, as a clause, or None if they can.

    Where gradients are wanted (`trained`), windows and padding are refused: there the kernels have been run without only.
    """
    if not installed():
        return f"flash-attn-4 {VERSION} or Triton is not installed"
    if not q.is_cuda or torch.cuda.get_device_capability(q.device)[0] != 9:
        return f"they need a GPU of Hopper's generation, not {q.device}"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"they take float16 and bfloat16, not {str(q.dtype).removeprefix('torch.')}"
    if q.shape[-1] % 8 or q.shape[-1] + vq.shape[-1] >= 256:
        return f"they are at most 256 wide, not {q.shape[-1]} + {vq.shape[-1]}"
    if q.shape[2] < FEWEST_QUERIES:
        return "they are slow for few queries"
    if mask is not None and (mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[1:3] != (1, 1)):
        return "they take boolean masks of shape (batch, 1, 1, keys) only"
    if trained and (mask is not None or window is not None):
        return "their gradients have not been tried with windows or padding"
    return None


def hopper_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    vq: Tensor,
    vk: Tensor,
    lam: Tensor,
    *,
    causal: bool,
    seen: Tensor | None,
    scale: float,
    window: int | None,
) -> Tensor:
    """Return valuation attention, (batch, heads, queries, d). See `val_attention`.

    `lam` is (heads,). `seen` (batch, keys) tells which keys may be seen at all; a query that sees none gets zeros.
    """
    out: Tensor = _Hopper.apply(q, k, v, vq, vk, lam.float(), seen, scale, causal, window)  # type: ignore[no-untyped-call]
    if seen is not None:
        blind = ~_sees_something(seen, q.shape[2], causal, window)
        out = out.masked_fill(blind[..., None, None], 0.0)
    return out.transpose(1, 2)


class _Hopper(torch.autograd.Function):
    """Attention, (batch, queries, heads, d), of widened queries and keys."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        vq: Tensor,
        vk: Tensor,
        lam: Tensor,
        seen: Tensor | None,
        scale: float,
        causal: bool,
        window: int | None,
    ) -> Tensor:
        from flash_attn.cute import flash_attn_func

        from emoprobe.valattn.kernels.widen import widen

        wide_q = widen(q, vq, lam, seen, 1 / scale)
        wide_k = widen(k, vk, None, seen, 1.0)
        near = None if window is None else window - 1
        out, logsumexp = flash_attn_func(
            wide_q,
            wide_k,
            v.transpose(1, 2),
            softmax_scale=scale,
            causal=causal,
            window_size=(near, 0 if causal else near),
            return_lse=True,
        )
        ctx.save_for_backward(wide_q, wide_k, v, vq, vk, lam, out, logsumexp)
        ctx.scale, ctx.causal, ctx.window, ctx.padded = scale, causal, window, seen is not None
        return cast(Tensor, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        from emoprobe.valattn.hopper_backward import attention_gradients
        from emoprobe.valattn.kernels.widen import to_valuations

        wide_q, wide_k, v, vq, vk, lam, out, logsumexp = ctx.saved_tensors
        d, groups = v.shape[-1], wide_q.shape[2] // wide_k.shape[2]
        keys, values = wide_k, v.transpose(1, 2)
        if groups > 1:
            keys, values = keys.repeat_interleave(groups, 2), values.repeat_interleave(groups, 2)
        dq, dk, dv = attention_gradients(
            wide_q,
            keys,
            values,
            out,
            given,
            logsumexp,
            scale=ctx.scale,
            causal=ctx.causal,
            window=ctx.window,
        )
        if groups > 1:
            dk, dv = (t.reshape(*t.shape[:2], -1, groups, t.shape[-1]).sum(3) for t in (dk, dv))
        dvq, dlam = to_valuations(dq, d, vq, lam, ctx.padded, 1 / ctx.scale)
        dvk, _ = to_valuations(dk, d, vk, None, ctx.padded, 1.0)
        dq, dk, dv = dq[..., :d].transpose(1, 2), dk[..., :d].transpose(1, 2), dv.transpose(1, 2)
        return dq, dk, dv, dvq, dvk, dlam, None, None, None, None


def _sees_something(seen: Tensor, queries: int, causal: bool, window: int | None) -> Tensor:
    """Return of each query, (batch, queries), whether it sees a key."""
    keys = seen.shape[1]
    counts = pad(seen.cumsum(1), (1, 0))
    here = torch.arange(keys - queries, keys, device=seen.device)
    first = torch.zeros_like(here) if window is None else (here - window + 1).clamp(min=0)
    last = here if causal else torch.full_like(here, keys - 1) if window is None else here + window - 1
    return counts[:, last.clamp(max=keys - 1) + 1] > counts[:, first]
