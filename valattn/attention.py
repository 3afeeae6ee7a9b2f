"""Valuation attention as a function of tensors: Softmax(QKᵀ/√d_k + λ·V_Q·V_Kᵀ)·V.

Four implementations of one signature: `reference` writes the formula down (any precision, quadratic memory); `folded`
widens queries and keys by the valuations, so that any fused kernel computes the same without the n × n bias: torch's, or on a
Hopper GPU FlashAttention-4's where it is installed; `flex` states the bias as a score_mod of FlexAttention; `triton` is a
flash kernel of our own with the term of low rank in its score loop.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from emoprobe.errors import InputError
from emoprobe.folding import fold_keys, fold_queries
from emoprobe.valattn import hopper

IMPLEMENTATIONS = ("reference", "folded", "flex", "triton")
CHUNK = 1024  # queries that see a mask at a time, so that it never has n × n entries


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
    window: int | None = None,
    softcap: float | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Return valuation attention, (batch, heads, queries, d).

    q is (batch, heads, queries, d), k and v (batch, kv_heads, keys, d) with heads a multiple of kv_heads, vq
    (batch, queries, m), vk (batch, keys, m). `strength` is λ, a number or a (heads,) tensor; `scale` is 1/√d unless given.
    With `causal`, the last query sees all keys, the one before it all but the last, and so on. `mask` is boolean (True: may
    be seen) or additive, broadcastable to (batch, heads, queries, keys). With `window`, a query sees only what is less than
    that many positions away. `softcap` bends the scores to softcap · tanh(scores / softcap) before the bias is added, so
    that λ means the same in every model. Queries that see no key get zeros.

    `implementation` is "reference", "folded", "flex", "triton" or None, which leaves it to `choose_implementation`; all give
    gradients to q, k, v, vq, vk and strength ("flex" only on a GPU, where it is compiled; "triton" takes as mask only which
    keys of each text are real). Raises `InputError` for shapes that do not fit together, and where an implementation that
    was asked for cannot compute this.
    """
    _check(q, k, v, vq, vk, mask, causal, scale, window, softcap)
    trained = torch.is_grad_enabled() and any(
        isinstance(t, Tensor) and t.requires_grad for t in (q, k, v, vq, vk, strength)
    )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if implementation is None:
        implementation = choose_implementation(
            q, vq, mask=mask, softcap=softcap, window=window, trained=trained
        )
    elif implementation not in IMPLEMENTATIONS:
        raise InputError(
            f'implementation="{implementation}" is not there: give one of {", ".join(IMPLEMENTATIONS)}'
        )
    else:
        _refuse(implementation, q, vq, mask, softcap)
    lam = torch.as_tensor(strength, dtype=vq.dtype, device=q.device).reshape(-1)
    if len(lam) not in (1, q.shape[1]):
        raise InputError(f"strength has {len(lam)} entries for {q.shape[1]} heads: give one, or one per head")
    if implementation == "triton":
        from emoprobe.valattn.kernels.flash import Setting, flash_val_attention

        setting = Setting(scale, causal, _seen_keys(mask, k), window, softcap)
        return flash_val_attention(q, k, v, vq, vk, lam.expand(q.shape[1]), setting)
    if implementation == "flex":
        if trained and not q.is_cuda:
            raise InputError(
                'implementation="flex" cannot compute this: FlexAttention has no gradients on a CPU; take "folded"'
            )
        return _flex(q, k, v, vq, vk, lam.expand(q.shape[1]), causal, mask, scale, window, softcap)
    if implementation == "folded" and hopper.why_not(q, vq, mask, window, trained=trained) is None:
        seen = _seen_keys(mask, k)
        lam = lam.expand(q.shape[1])
        return hopper.hopper_attention(
            q, k, v, vq, vk, lam, causal=causal, seen=seen, scale=scale, window=window
        )
    vq = lam[None, :, None, None] * vq[:, None]
    if implementation == "folded":
        return _folded(q, k, v, vq, vk, causal, mask, scale, window)
    return _reference(q, k, v, vq, vk, causal, mask, scale, window, softcap)


def choose_implementation(
    q: Tensor,
    vq: Tensor,
    *,
    mask: Tensor | None = None,
    softcap: float | None = None,
    window: int | None = None,
    trained: bool = False,
) -> str:
    """Return the implementation that `val_attention` takes for tensors of this shape, dtype and device.

    `trained` says that gradients are wanted. FlashAttention-4's kernels or our own where they can run; else the fused kernels
    of torch. Fused kernels cannot cap scores without the bias: for that, our own, else FlexAttention on a GPU and the plain
    formula on a CPU.
    """
    if softcap is None and hopper.why_not(q, vq, mask, window, trained=trained) is None:
        return "folded"
    if why_not("triton", q, vq, mask=mask, softcap=softcap) is None and q.is_cuda:
        return "triton"
    if softcap is None:
        return "folded"
    return "flex" if why_not("flex", q, vq, mask=mask, softcap=softcap) is None and q.is_cuda else "reference"


def why_not(
    implementation: str, q: Tensor, vq: Tensor, *, mask: Tensor | None = None, softcap: float | None = None
) -> str | None:
    """Return why an implementation cannot compute this, as a clause, or None if it can."""
    if implementation == "folded" and softcap is not None:
        return "a folded bias would be capped with the scores"
    if implementation == "flex" and mask is not None and mask.dtype != torch.bool:
        return "it takes boolean masks only"
    if implementation == "triton":
        if find_spec("triton") is None:
            return "Triton is not installed"
        if mask is not None and (mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[1:3] != (1, 1)):
            return "it takes boolean masks of shape (batch, 1, 1, keys) only"
        from emoprobe.valattn.kernels.flash import why_not as why_not_triton

        return why_not_triton(q, vq)
    return None


def _refuse(implementation: str, q: Tensor, vq: Tensor, mask: Tensor | None, softcap: float | None) -> None:
    reason = why_not(implementation, q, vq, mask=mask, softcap=softcap)
    if reason is not None:
        raise InputError(f'implementation="{implementation}" cannot compute this: {reason}')


def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    vq: Tensor,
    vk: Tensor,
    causal: bool,
    mask: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    # What is rounded to half precision before the softmax is lost where scores are large: only the result is.
    dtype, exact = q.dtype, torch.promote_types(q.dtype, torch.float32)
    q, k, v = q.to(exact), k.to(exact), v.to(exact)
    scores = scale * q @ k.mT
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores + (vq @ vk[:, None].mT).to(exact)
    seen = _visible(q, k, 0, q.shape[2], 0, k.shape[2], causal, window)
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    nothing = (scores == -torch.inf).all(-1, keepdim=True)
    weights = scores.masked_fill(nothing, 0.0).softmax(dim=-1).masked_fill(nothing, 0.0)
    return (weights @ v).to(dtype)


def _folded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    vq: Tensor,
    vk: Tensor,
    causal: bool,
    mask: Tensor | None,
    scale: float,
    window: int | None,
) -> Tensor:
    (queries, width), length = q.shape[2:], k.shape[2]
    wide_q = fold_queries(q, vq, scale)
    wide_k, wide_v = fold_keys(k, v, vk)
    grouped = q.shape[1] != k.shape[1]
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)  # some kernels of torch misread another
    # The kernels' own causal flag aligns the first query with the first key, so it serves square attention only.
    square = causal and queries == length
    if mask is None and window is None and (square or not causal or queries == 1):
        out = scaled_dot_product_attention(
            wide_q, wide_k, wide_v, is_causal=square, scale=scale, enable_gqa=grouped
        )
        return out[..., :width]
    parts = []
    for start in range(0, queries, CHUNK):
        stop = min(start + CHUNK, queries)
        low, high = _reach(start, stop, length - queries, length, causal, window)
        seen = _visible(q, k, start, stop, low, high, causal, window)
        here = _cut(mask, start, stop, low, high)
        if here is not None and seen is not None:
            here = here & seen if here.dtype == torch.bool else here.masked_fill(~seen, -torch.inf)
        part = scaled_dot_product_attention(
            wide_q[:, :, start:stop],
            wide_k[:, :, low:high],
            wide_v[:, :, low:high],
            seen if here is None else here,
            scale=scale,
            enable_gqa=grouped,
        )
        parts.append(part[..., :width])
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


def _reach(
    start: int, stop: int, behind: int, keys: int, causal: bool, window: int | None
) -> tuple[int, int]:
    """Return the range of keys outside of which the queries of a range see nothing."""
    low, high = 0, keys
    if causal:
        high = stop + behind
    if window is not None:
        low, high = max(0, start + behind - window + 1), min(high, stop + behind + window - 1)
    return low, max(low, high)


def _visible(
    q: Tensor, k: Tensor, start: int, stop: int, low: int, high: int, causal: bool, window: int | None
) -> Tensor | None:
    """Return which keys from `low` on are seen from which queries from `start` on, or None where all are."""
    if not causal and window is None:
        return None
    rows = torch.arange(start, stop, device=q.device)[:, None] + (k.shape[2] - q.shape[2])
    columns = torch.arange(low, high, device=q.device)
    seen = columns <= rows if causal else torch.ones_like(columns <= rows)
    return seen if window is None else seen & ((rows - columns).abs() < window)


def _cut(mask: Tensor | None, start: int, stop: int, low: int, high: int) -> Tensor | None:
    """Cut a mask to queries and keys, along the axes that it has at full length."""
    if mask is None:
        return None
    if mask.dim() > 1 and mask.shape[-2] > 1:
        mask = mask[..., start:stop, :]
    return mask[..., low:high] if mask.shape[-1] > 1 else mask


# FlexAttention -------------------------------------------------------------------------------------------------------


def _flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    vq: Tensor,
    vk: Tensor,
    lam: Tensor,
    causal: bool,
    mask: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    # A tensor that wants a gradient may be looked up only once, so that every dimension is one of its own.
    of_queries = [t.contiguous() for t in (vq.float()).unbind(-1)]
    of_keys = [t.contiguous() for t in (vk.float()).unbind(-1)]
    lam = lam.float()

    def bent(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        bias = of_queries[0][b, i] * of_keys[0][b, j]
        for here, there in zip(of_queries[1:], of_keys[1:], strict=True):
            bias = bias + here[b, i] * there[b, j]
        return score + lam[h] * bias

    grouped = q.shape[1] != k.shape[1]
    blocks = _block_mask(q.shape[2], k.shape[2], causal, window, q.device)
    if mask is not None:
        blocks = _make_block_mask(q, k, mask, causal, window)
    out: Tensor = _flex_kernel(q.is_cuda)(
        q, k, v, score_mod=bent, block_mask=blocks, scale=scale, enable_gqa=grouped
    )
    return out


@lru_cache
def _flex_kernel(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if compiled else flex_attention


@lru_cache
def _block_mask(queries: int, keys: int, causal: bool, window: int | None, device: torch.device) -> Any:
    if not causal and window is None:
        return None
    return _block_mask_of(None, 1, 1, queries, keys, causal, window, device)


def _make_block_mask(q: Tensor, k: Tensor, mask: Tensor, causal: bool, window: int | None) -> Any:
    mask = mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    return _block_mask_of(mask, q.shape[0], q.shape[1], q.shape[2], k.shape[2], causal, window, q.device)


def _block_mask_of(
    mask: Tensor | None,
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    causal: bool,
    window: int | None,
    device: torch.device,
) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        at = i + (keys - queries)
        found = j <= at if causal else j == j
        if window is not None:
            found = found & ((at - j).abs() < window)
        return found if mask is None else found & mask[b, h, i, j]

    return create_block_mask(seen, batch if mask is not None else None, heads if mask is not None else None,
                             queries, keys, device=device, _compile=device.type == "cuda")  # fmt: skip


# Checks --------------------------------------------------------------------------------------------------------------


def _seen_keys(mask: Tensor | None, k: Tensor) -> Tensor | None:
    return None if mask is None else mask[:, 0, 0].expand(k.shape[0], k.shape[2])


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    vq: Tensor,
    vk: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> None:
    fits = (
        q.dim() == k.dim() == 4
        and k.shape == v.shape
        and q.shape[-1] == k.shape[-1]
        and q.shape[0] == k.shape[0]
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
    if causal and q.shape[2] > k.shape[2]:
        raise InputError(
            f"causal attention of {q.shape[2]} queries to {k.shape[2]} keys: some would see nothing"
        )
    for name, value in (("scale", scale), ("window", window), ("softcap", softcap)):
        if value is not None and not value > 0:
            raise InputError(f"{name}={value} is not above 0")
    if mask is not None:
        full = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        if any(
            size not in (1, want) for size, want in zip(reversed(mask.shape), reversed(full), strict=False)
        ):
            raise InputError(f"a mask of shape {tuple(mask.shape)} does not broadcast to {full}")
