"""Write queries or keys beside columns of their valuations in one pass, for attention whose bias is folded into both.

`emoprobe.folding` says what folding is. Here it is one kernel, for on a GPU the dozen of operations that it takes would cost a
good part of the attention. The width is a multiple of 16, the least that tensor cores multiply; the columns that this leaves
free hold low parts of the valuations, as many as find room, and what hides padded keys.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from emoprobe.valattn.kernels.blocks import part

ROWS = 64
HIDING = (
    256.0,
    -32768.0,
)  # of a query, of a key that may not be seen: products no score comes near, in any precision


@triton.jit
def write(
    source,
    valuations,
    strength,
    seen,
    wide,
    positions,
    heads,
    factor,
    source_b,
    source_h,
    source_n,
    valuations_b,
    valuations_n,
    valuations_m,
    D: tl.constexpr,
    D_BLOCK: tl.constexpr,
    W: tl.constexpr,
    E_BLOCK: tl.constexpr,
    M: tl.constexpr,
    PARTS: tl.constexpr,
    QUERY: tl.constexpr,
    PADDED: tl.constexpr,
    QUERY_HIDES: tl.constexpr,
    KEY_HIDES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write source (batch, heads, positions, D) and the columns behind it as (batch, positions, heads, W)."""
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    there = row < positions
    to = wide + ((batch * positions + row) * heads + head) * W

    column = tl.arange(0, D_BLOCK)[None, :]
    here = source + batch * source_b + head.to(tl.int64) * source_h + row.to(tl.int64) * source_n + column
    inside = there & (column < D)
    tl.store(to + column, tl.load(here, mask=inside), mask=inside)

    column = tl.arange(0, E_BLOCK)[None, :]
    here = valuations + batch * valuations_b + row.to(tl.int64) * valuations_n + (column % M) * valuations_m
    value = tl.load(here, mask=there & (column < PARTS * M), other=0.0).to(tl.float32)
    extra = part(value * (tl.load(strength + head) * factor), column // M, wide.dtype.element_ty, QUERY)
    if PADDED:
        hide = QUERY_HIDES
        if not QUERY:
            hidden = tl.load(seen + batch * positions + row, mask=there, other=1) == 0
            hide = tl.where(hidden, KEY_HIDES, 0.0)
        extra = tl.where(column == PARTS * M, hide, extra.to(tl.float32)).to(wide.dtype.element_ty)
    tl.store(to + D + column, extra, mask=there & (column < W - D))


def width(d: int, m: int, padded: bool, trained: bool) -> int:
    """Return how wide queries and keys of d columns become by m valuations, and one column more with padded keys.

    With `trained`, gradients are wanted: those of FlashAttention-4 4.0.0b36 are wrong for widths up to 128 that are not
    multiples of 32 (its main kernel lays sums out by 16 columns, the kernels before and after it by 32).
    """
    columns = d + m + padded
    step = 32 if trained and columns <= 128 else 16
    return -(-columns // step) * step


def widen(
    x: Tensor,
    valuations: Tensor,
    strength: Tensor,
    seen: Tensor | None,
    factor: float,
    *,
    of_queries: bool,
    trained: bool,
) -> Tensor:
    """Widen x (batch, heads, positions, d) by strength (heads,) · factor · valuations (batch, positions, m).

    Returns (batch, positions, heads, width), `trained` if it is to have gradients. `seen` (batch, keys), unless None, tells
    which keys may be seen: a column of queries and keys then hides the others.
    """
    wide: Tensor = _Widen.apply(x, valuations, strength, seen, factor, of_queries, trained)
    return wide


class _Widen(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        valuations: Tensor,
        strength: Tensor,
        seen: Tensor | None,
        factor: float,
        of_queries: bool,
        trained: bool,
    ) -> Tensor:
        x = x if x.stride(-1) == 1 else x.contiguous()
        batch, heads, positions, d = x.shape
        m, padded = valuations.shape[-1], seen is not None
        wide = x.new_empty(batch, positions, heads, width(d, m, padded, trained))
        parts = min(3, (wide.shape[-1] - d - padded) // m)
        write[(triton.cdiv(positions, ROWS), batch * heads)](
            x,
            valuations,
            strength,
            x if seen is None else seen.to(torch.uint8).contiguous(),
            wide,
            positions,
            heads,
            factor,
            *x.stride()[:3],
            *valuations.stride(),
            D=d,
            D_BLOCK=triton.next_power_of_2(d),
            W=wide.shape[-1],
            E_BLOCK=triton.next_power_of_2(wide.shape[-1] - d),
            M=m,
            PARTS=parts,
            QUERY=of_queries,
            PADDED=padded,
            QUERY_HIDES=HIDING[0],
            KEY_HIDES=HIDING[1],
            ROWS=ROWS,
        )
        ctx.save_for_backward(valuations, strength)
        ctx.d, ctx.factor = d, factor
        # The gradient to x₁ + x₂ is that to [x₁, x₂, x₁] but for the second: its partner in the product is y₁ once more.
        ctx.counting = [i for i in ((0, 2) if of_queries else (0, 1)) if i < parts]
        return wide

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (valuations, strength), d = grads, ctx.saved_tensors, ctx.d
        m = valuations.shape[-1]
        dx = grad[..., :d].transpose(1, 2) if ctx.needs_input_grad[0] else None
        d_valuations = d_strength = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            products = [grad[..., d + i * m : d + (i + 1) * m].float() for i in ctx.counting]
            to_columns = ctx.factor * torch.stack(products).sum(0)
            d_valuations = torch.einsum("bnhm,h->bnm", to_columns, strength).to(valuations.dtype)
            d_strength = torch.einsum("bnhm,bnm->h", to_columns, valuations.float())
        return dx, d_valuations, d_strength, None, None, None, None
