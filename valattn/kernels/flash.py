"""Valuation attention by the kernels of this folder, with gradients to queries, keys, values, valuations and strength."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from triton.tools.tensor_descriptor import TensorDescriptor

from emoprobe.valattn.kernels.backward import backward_keys, backward_queries, row_products
from emoprobe.valattn.kernels.blocks import spread
from emoprobe.valattn.kernels.forward import forward
from emoprobe.valattn.kernels.tiles import (
    BACKWARD_KEYS,
    BACKWARD_QUERIES,
    FEW_QUERIES,
    FORWARD,
    INTERPRETED,
    Tiles,
    block_width,
)

LOG2E = math.log2(math.e)
INTERPRETING = not isinstance(forward, triton.runtime.JITFunction)  # TRITON_INTERPRET=1: on the CPU, slowly
MOST_DIMENSIONS = 32
ROWS = 64  # that the kernels without matrix products take at a time


class Choices(NamedTuple):
    """Tiles of the three kernels."""

    forward: Tiles
    queries: Tiles
    keys: Tiles


class Setting(NamedTuple):
    """What is no tensor with a gradient. `seen` tells of each key, (batch, keys), whether it may be seen at all."""

    scale: float
    causal: bool = True
    seen: Tensor | None = None
    window: int | None = None
    softcap: float | None = None
    choices: Choices | None = None


def flash_val_attention(
    q: Tensor, k: Tensor, v: Tensor, vq: Tensor, vk: Tensor, strength: Tensor, setting: Setting
) -> Tensor:
    """Return valuation attention, (batch, heads, queries, d), of tensors on one GPU. See `val_attention`.

    `strength` is (heads,). A query that sees no key gets zeros. What cannot be computed here, `why_not` tells beforehand.
    """
    out: Tensor = _Flash.apply(q, k, v, vq, vk, strength.float(), setting)
    return out


def why_not(q: Tensor, vq: Tensor) -> str | None:
    """Return why these tensors cannot be given to the kernels, or None if they can."""
    if q.shape[-1] % 16 or q.shape[-1] > 256:
        return f"its head dimensions are multiples of 16 up to 256, not {q.shape[-1]}"
    if vq.shape[-1] > MOST_DIMENSIONS:
        return f"its valuations have at most {MOST_DIMENSIONS} dimensions, not {vq.shape[-1]}"
    if INTERPRETING:
        return None if q.dtype != torch.float64 else "it does not compute in float64"
    if q.device.type != "cuda" or torch.cuda.get_device_capability(q.device) < (9, 0):
        return f"it needs a CUDA GPU of compute capability 9.0 (Hopper) or above, not {q.device}"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"it takes float16 and bfloat16, not {str(q.dtype).removeprefix('torch.')}"
    return None


def choose_tiles(q: Tensor) -> Choices:
    """Return the tiles for queries of this shape."""
    if INTERPRETING:
        return Choices(INTERPRETED, INTERPRETED, INTERPRETED)
    width = block_width(q.shape[-1])
    few = q.shape[2] <= FEW_QUERIES.queries
    return Choices(
        FEW_QUERIES if few else FORWARD[width][0], BACKWARD_QUERIES[width][0], BACKWARD_KEYS[width][0]
    )


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, vq: Tensor, vk: Tensor, strength: Tensor, setting: Setting
    ) -> Tensor:
        q, k, v = _describable(q), _describable(k), _describable(v)
        # A valuation enters beside products that are yet to be scaled or, where these are capped, beside what comes out.
        factor = 1 / setting.scale if setting.softcap is None else LOG2E
        x = _spread(vq, strength, factor, q.dtype, of_queries=True)
        y = _spread(vk, strength.new_ones(1), 1.0, q.dtype, of_queries=False)
        out, logsumexp = torch.empty_like(q, memory_format=torch.contiguous_format), _per_query(q)
        tiles = (setting.choices or choose_tiles(q)).forward
        rows, columns = tiles.queries, tiles.keys
        forward[_grid(q, rows)](
            _blocks(q, rows),
            _blocks(k, columns),
            _blocks(v, columns),
            _blocks(x, rows),
            _blocks(y, columns),
            _blocks(out, rows),
            _seen(q, setting),
            logsumexp,
            *_numbers(q, k, setting),
            **_constants(q, k, vq, setting, tiles),
            SPECIALIZE=tiles.specialize,
        )
        ctx.save_for_backward(q, k, v, vq, vk, strength, x, y, out, logsumexp)
        ctx.setting = setting
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, vq, vk, strength, x, y, out, logsumexp = ctx.saved_tensors
        setting: Setting = ctx.setting
        do, deltas = _describable(grads[0]), _per_query(q)
        dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
        rank, m = x.shape[-1], vq.shape[-1]
        dx = torch.empty(*q.shape[:3], rank, dtype=torch.float32, device=q.device)
        dy = torch.empty(*k.shape[:3], rank, dtype=torch.float32, device=q.device)
        # The kernels contract gradients with the plain valuations: these need no more digits than the gradients have.
        plain_q, plain_k = (pad(t.to(q.dtype), (0, rank - m)).contiguous() for t in (vq, vk))
        choices = setting.choices or choose_tiles(q)
        row_products[_grid(q, ROWS)](
            _blocks(out, ROWS), _blocks(do, ROWS), deltas, q.shape[2], q.shape[1], _width(q), ROWS
        )
        rows, columns = choices.queries.queries, choices.queries.keys
        backward_queries[_grid(q, rows)](
            _blocks(q, rows),
            _blocks(k, columns),
            _blocks(v, columns),
            _blocks(x, rows),
            _blocks(y, columns),
            _blocks(plain_k, columns),
            _blocks(do, rows),
            _blocks(dq, rows),
            dx,
            _seen(q, setting),
            logsumexp,
            deltas,
            *_numbers(q, k, setting),
            setting.scale,
            **_constants(q, k, vq, setting, choices.queries),
        )
        rows, columns = choices.keys.queries, choices.keys.keys
        backward_keys[_grid(k, columns)](
            _blocks(q, rows),
            _blocks(k, columns),
            _blocks(v, columns),
            _blocks(x, rows),
            _blocks(y, columns),
            _blocks(plain_q, rows),
            _blocks(do, rows),
            _blocks(dk, columns),
            _blocks(dv, columns),
            dy,
            strength,
            _seen(q, setting),
            logsumexp,
            deltas,
            *_numbers(q, k, setting),
            setting.scale,
            **_constants(q, k, vq, setting, choices.keys),
        )
        dx, dy = dx[..., :m], dy[..., :m]
        dvq = torch.einsum("bhnm,h->bnm", dx, strength).to(vq.dtype)
        dstrength = torch.einsum("bhnm,bnm->h", dx, vq.float())
        return dq, dk, dv, dvq, dy.sum(1).to(vk.dtype), dstrength, None


def _spread(values: Tensor, strength: Tensor, factor: float, dtype: torch.dtype, of_queries: bool) -> Tensor:
    """Return valuations (batch, positions, m) as columns, (batch · heads, positions, 16 or 32); see `blocks`."""
    batch, positions, m = values.shape
    heads, rank = len(strength), 16 if m <= 16 else 32
    exact = dtype == torch.float32
    columns = torch.empty(
        batch * heads, positions, rank, dtype=dtype if exact else torch.float16, device=values.device
    )
    spread[(triton.cdiv(positions, ROWS), batch * heads)](
        values,
        strength,
        columns,
        positions,
        heads,
        factor,
        *values.stride(),
        M=m,
        R=rank,
        PARTS=1 if exact else max(1, min(3, rank // m)),
        QUERY=of_queries,
        ROWS=ROWS,
    )
    return columns


def _describable(x: Tensor) -> Tensor:
    """Return x in a layout that the tensor memory accelerator takes: rows in one piece, steps of 16 bytes, none of zero."""
    fits = x.stride(-1) == 1 and all(
        size == 1 or (stride > 0 and stride * x.element_size() % 16 == 0)
        for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True)
    )
    return x if fits and x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)


def _blocks(x: Tensor, rows: int) -> Any:
    """Describe x as blocks of `rows` positions and all columns, which are 16 or 32 of valuations (of 3 axes)."""
    *around, size, width = x.shape
    block = [1] * len(around) + [rows, block_width(width) if x.dim() == 4 else width]
    # Of an axis of length 1 the step means nothing to torch, but has to be a right one here.
    strides = [
        stride if length > 1 else x.stride(-2) * size
        for length, stride in zip(x.shape, x.stride(), strict=True)
    ]
    strides[-1] = 1
    return TensorDescriptor(x, list(x.shape), strides, block)


def _per_query(q: Tensor) -> Tensor:
    return torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)


def _width(q: Tensor) -> int:
    return block_width(q.shape[-1])


def _grid(x: Tensor, block: int) -> tuple[int, int]:
    return triton.cdiv(x.shape[2], block), x.shape[0] * x.shape[1]


def _seen(q: Tensor, setting: Setting) -> Tensor:
    if setting.seen is None:
        return q.new_zeros(1, dtype=torch.uint8)  # not looked at
    return setting.seen.to(torch.uint8).contiguous()


def _numbers(q: Tensor, k: Tensor, setting: Setting) -> tuple[float, ...]:
    """Return queries, keys, window, and scale, slope and cap of the scores, to base 2."""
    capped = setting.softcap is not None
    cap = setting.softcap or 1.0
    return (
        q.shape[2],
        k.shape[2],
        setting.window or 0,
        1.0 if capped else setting.scale * LOG2E,
        setting.scale / cap,
        cap * LOG2E,
    )


def _constants(q: Tensor, k: Tensor, vq: Tensor, setting: Setting, tiles: Tiles) -> dict[str, Any]:
    return {
        "HEADS": q.shape[1],
        "GROUPS": q.shape[1] // k.shape[1],
        "D": _width(q),
        "R": 16 if vq.shape[-1] <= 16 else 32,
        "BLOCK_M": tiles.queries,
        "BLOCK_N": tiles.keys,
        "CAUSAL": setting.causal,
        "WINDOWED": setting.window is not None,
        "PADDED": setting.seen is not None,
        "CAPPED": setting.softcap is not None,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }
