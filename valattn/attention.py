"""Valuation attention as a function of tensors: Softmax(QKᵀ/√d_k + λ·V_Q·V_Kᵀ)·V.

Two implementations of one signature: `reference` writes the formula down (any precision, quadratic memory); `folded`
widens queries and keys by the valuations, so that any fused kernel computes the same without the n × n bias.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from emoprobe.errors import InputError
from emoprobe.folding import fold_keys, fold_queries

IMPLEMENTATIONS = ("reference", "folded")


def val_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    vq: Tensor,
    vk: Tensor,
    strength: float | Tensor,
    *,
    causal: bool = True,
    mask: Tensor | None = None,
    scale: float | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Return valuation attention, (batch, heads, queries, d).

    q is (batch, heads, queries, d), k and v (batch, kv_heads, keys, d) with heads a multiple of kv_heads, vq
    (batch, queries, m), vk (batch, keys, m). `strength` is λ, a number or a (heads,) tensor; `scale` is 1/√d unless given.
    With `causal`, the last query sees all keys, the one before it all but the last, and so on. `mask` is boolean (True: may
    be seen) or additive, broadcastable to (batch, heads, queries, keys). `implementation` is "reference", "folded" or None
    (folded). Raises `InputError` for shapes that do not fit together.
    """
    implementation = implementation or "folded"
    if implementation not in IMPLEMENTATIONS:
        raise InputError(
            f'implementation="{implementation}" is not there: give one of {", ".join(IMPLEMENTATIONS)}'
        )
    _check_shapes(q, k, v, vq, vk)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    lam = torch.as_tensor(strength, dtype=vq.dtype, device=q.device).reshape(1, -1, 1, 1)
    if implementation == "reference":
        return _reference(q, k, v, vq, vk, lam, causal, mask, scale)
    return _folded(q, k, v, vq, vk, lam, causal, mask, scale)


def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    vq: Tensor,
    vk: Tensor,
    lam: Tensor,
    causal: bool,
    mask: Tensor | None,
    scale: float,
) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = scale * q @ k.mT + (lam * (vq @ vk.mT)[:, None]).to(q.dtype)
    if causal:
        scores = scores.masked_fill(~_causal(q, k), -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(dim=-1) @ v


def _folded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    vq: Tensor,
    vk: Tensor,
    lam: Tensor,
    causal: bool,
    mask: Tensor | None,
    scale: float,
) -> Tensor:
    width = q.shape[-1]
    queries = fold_queries(q, lam * vq[:, None], scale)
    keys, values = fold_keys(k, v, vk)
    # The kernels' own causal flag aligns the first query with the first key, so it serves square attention only.
    square = causal and mask is None and q.shape[2] == k.shape[2]
    if causal and not square and q.shape[2] > 1:
        seen = _causal(q, k)
        if mask is None:
            mask = seen
        else:
            mask = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -torch.inf)
    output = scaled_dot_product_attention(
        queries, keys, values, mask, is_causal=square, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return output[..., :width]


def _causal(q: Tensor, k: Tensor) -> Tensor:
    queries, keys = q.shape[2], k.shape[2]
    return torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, vq: Tensor, vk: Tensor) -> None:
    fits = (
        q.dim() == k.dim() == 4
        and k.shape == v.shape
        and q.shape[-1] == k.shape[-1]
        and q.shape[1] % k.shape[1] == 0
        and vq.shape[:2] == (q.shape[0], q.shape[2])
        and vk.shape[:2] == (k.shape[0], k.shape[2])
        and vq.shape[-1] == vk.shape[-1]
    )
    if not fits:
        shapes = ", ".join(
            f"{name} {tuple(t.shape)}"
            for name, t in zip(("q", "k", "v", "vq", "vk"), (q, k, v, vq, vk), strict=True)
        )
        raise InputError(f"the shapes do not fit together: {shapes}")
