"""Fold a low-rank attention bias into queries and keys, so that no n × n matrix is ever built.

With q' = [q, λ·v_q / scale] and k' = [k, v_k], scale · q'·k'ᵀ = scale · QKᵀ + λ·V_Q·V_Kᵀ exactly, and any attention
kernel can run it (FlashBias, arXiv 2505.12044). Values are padded with zeros to the same width, because fused kernels
refuse values of another width than keys and would fall back to one that is quadratic in memory.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def fold_queries(query: Tensor, query_valuations: Tensor, scale: float) -> Tensor:
    """Widen queries (batch, heads, queries, d) by λ·v_q (batch, 1 or heads, queries, m) over `scale`."""
    extra = (query_valuations / scale).to(query.dtype).expand(*query.shape[:-1], -1)
    return torch.cat([query, extra], dim=-1)


def fold_keys(key: Tensor, value: Tensor, key_valuations: Tensor) -> tuple[Tensor, Tensor]:
    """Widen keys (batch, kv_heads, keys, d) by v_k (batch, keys, m), and values by as many zeros."""
    extra = key_valuations[:, None].to(key.dtype).expand(*key.shape[:-1], -1)
    return torch.cat([key, extra], dim=-1), pad(value, (0, extra.shape[-1]))
