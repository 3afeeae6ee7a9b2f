"""Fold a low-rank attention bias into queries and keys, so that no n × n matrix is ever built.

With q' = [q, λ·v_q / scale] and k' = [k, v_k], scale · q'·k'ᵀ = scale · QKᵀ + λ·V_Q·V_Kᵀ exactly, and any attention
kernel can run it (FlashBias, arXiv 2505.12044). Values are padded with zeros to the same width, because fused kernels
refuse values of another width than keys and would fall back to one that is quadratic in memory; widths are rounded up to
a multiple of 8, because kernels would otherwise copy everything to do so themselves.

In half precision each valuation is written as the sum of two half-precision numbers, x ≈ x₁ + x₂, and the three
products that matter get a column each: [x₁, x₂, x₁]·[y₁, y₁, y₂]. The bias is then nearly as exact as one computed in
float32, at no cost where the columns fit into the rounding.
"""

import torch
from torch import Tensor, constant_pad_nd

MULTIPLE = 8  # of which kernels want widths to be
HALF = (torch.float16, torch.bfloat16)


def fold_queries(query: Tensor, query_valuations: Tensor, scale: float) -> Tensor:
    """Widen queries (batch, heads, queries, d) by λ·v_q (batch, 1 or heads, queries, m) over `scale`."""
    if query.dtype not in HALF:
        return _widen(query, query_valuations, 1 / scale)
    high, low = _split(query_valuations / scale, query.dtype)
    return _widen(query, torch.cat([high, low, high], dim=-1))


def fold_keys(key: Tensor, value: Tensor, key_valuations: Tensor) -> tuple[Tensor, Tensor]:
    """Widen keys (batch, kv_heads, keys, d) by v_k (batch, keys, m), and values by as many zeros."""
    wide = fold_key(key, key_valuations)
    return wide, constant_pad_nd(value, (0, wide.shape[-1] - key.shape[-1]))


def fold_key(key: Tensor, key_valuations: Tensor) -> Tensor:
    """Widen keys (batch, kv_heads, keys, d) by v_k (batch, keys, m)."""
    shared = key_valuations.unsqueeze(1)  # by all heads
    if key.dtype not in HALF:
        return _widen(key, shared)
    high, low = _split(shared, key.dtype)
    return _widen(key, torch.cat([high, high, low], dim=-1))


def unfold_key(wide: Tensor, width: int, m: int) -> tuple[Tensor, Tensor]:
    """Take widened keys apart again: keys (batch, kv_heads, keys, width), and v_k (batch, keys, m)."""
    columns = wide[:, 0, :, width:]  # every head has the same
    if wide.dtype in HALF:
        return wide[..., :width], columns[..., :m].float() + columns[..., 2 * m : 3 * m].float()
    return wide[..., :width], columns[..., :m]


def _split(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return two numbers of a half precision whose sum is x."""
    high = x.to(dtype)
    return high, (x - high.to(x.dtype)).to(dtype)


def _widen(x: Tensor, extra: Tensor, factor: float = 1.0) -> Tensor:
    """Return x (batch, heads, position, d) with columns of zeros behind it, in the first of which is factor · extra."""
    width, more = x.shape[-1], extra.shape[-1]
    wide = constant_pad_nd(x, (0, more - (width + more) % -MULTIPLE))
    # Operations are few here, since in generation each takes longer than its numbers do.
    wide.narrow(-1, width, more).add_(extra, alpha=factor)
    return wide
