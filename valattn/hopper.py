"""Folded valuation attention by FlashAttention-4's kernels (the package `flash-attn-4`), for GPUs of Hopper's generation.

These kernels take queries and keys of any width that is a multiple of 16 and leave values as wide as they are, so that a folded
bias costs one step of the tensor cores where torch's kernels round 64 + m up to 96 or 128. Padded keys are folded in as
well, as one more column: no mask is needed.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from math import gcd

import torch
from torch import Tensor
from torch.nn.functional import pad

FEWEST_QUERIES = 17  # for fewer, kernels that share the keys out among programs are faster


@lru_cache
def installed() -> bool:
    """Tell whether FlashAttention-4 and Triton are."""
    try:
        return bool(version("flash-attn-4") and version("triton"))
    except PackageNotFoundError:
        return False


def why_not(q: Tensor, vq: Tensor, mask: Tensor | None) -> str | None:
    """Return why these kernels cannot compute folded attention of these tensors, as a clause, or None if they can."""
    if not installed():
        return "FlashAttention-4 or Triton is not installed"
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
    from flash_attn.cute import flash_attn_func

    from emoprobe.valattn.kernels.widen import widen

    trained = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v, vq, vk, lam))
    ones = lam.new_ones(k.shape[1], dtype=torch.float32)
    wide_q = widen(q, vq, lam.float(), seen, 1 / scale, of_queries=True, trained=trained)
    wide_k = widen(k, vk, ones, seen, 1.0, of_queries=False, trained=trained)
    value = v.transpose(1, 2)
    # Gradients need values as wide as queries if these are grouped, or if other widths do not fit into one layout.
    wide, grouped = wide_k.shape[-1], q.shape[1] != k.shape[1]
    if trained and (grouped or wide > 192 or v.shape[-1] % gcd(wide, 64)):
        value = pad(value, (0, wide - v.shape[-1]))
    near = None if window is None else window - 1
    out: Tensor = flash_attn_func(
        wide_q, wide_k, value, softmax_scale=scale, causal=causal, window_size=(near, 0 if causal else near)
    )[0]
    out = out[..., : v.shape[-1]]
    if seen is not None:
        blind = ~_sees_something(seen, q.shape[2], causal, window)
        out = out.masked_fill(blind[..., None, None], 0.0)
    return out.transpose(1, 2)


def _sees_something(seen: Tensor, queries: int, causal: bool, window: int | None) -> Tensor:
    """Return of each query, (batch, queries), whether it sees a key."""
    keys = seen.shape[1]
    counts = pad(seen.cumsum(1), (1, 0))
    here = torch.arange(keys - queries, keys, device=seen.device)
    first = torch.zeros_like(here) if window is None else (here - window + 1).clamp(min=0)
    last = here if causal else torch.full_like(here, keys - 1) if window is None else here + window - 1
    return counts[:, last.clamp(max=keys - 1) + 1] > counts[:, first]
