"""Write queries or keys beside columns of their valuations in one pass, for attention whose bias is folded into both.

`emoprobe.folding` says what folding is. Here it is one kernel, for on a GPU the dozen of operations that it takes would cost a
good part of the attention. The width is a multiple of 16, the least that tensor cores multiply; the columns that this leaves
free hold low parts of the valuations, as many as find room, and what hides padded keys.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from emoprobe.valattn.kernels.blocks import part

ROWS = 64
GATHERED = 32  # rows of which one program sums gradients over all heads
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
    value *= factor
    if QUERY:
        value *= tl.load(strength + head)
    extra = part(value, column // M, wide.dtype.element_ty, QUERY)
    if PADDED:
        hide = QUERY_HIDES
        if not QUERY:
            hidden = tl.load(seen + batch * positions + row, mask=there, other=1) == 0
            hide = tl.where(hidden, KEY_HIDES, 0.0)
        extra = tl.where(column == PARTS * M, hide, extra.to(tl.float32)).to(wide.dtype.element_ty)
    tl.store(to + D + column, extra, mask=there & (column < W - D))


@triton.jit
def gather(
    grad,
    valuations,
    strength,
    to_valuations,
    to_strength,
    positions,
    heads,
    factor,
    valuations_b,
    valuations_n,
    valuations_m,
    D: tl.constexpr,
    W: tl.constexpr,
    M: tl.constexpr,
    M_BLOCK: tl.constexpr,
    SECOND: tl.constexpr,
    QUERY: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Sum the gradient to the columns behind D over parts and heads; for queries, write that to strength by block too."""
    batch = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, M_BLOCK)[None, :]
    there = (row < positions) & (column < M)
    here = valuations + batch * valuations_b + row.to(tl.int64) * valuations_n + column * valuations_m
    value = tl.load(here, mask=there, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, M_BLOCK), tl.float32)
    for head in range(heads):
        of_head = grad + ((batch * positions + row) * heads + head) * W + D + column
        found = tl.load(of_head, mask=there, other=0.0).to(tl.float32)
        if SECOND > 0:
            found += tl.load(of_head + SECOND * M, mask=there, other=0.0).to(tl.float32)
        found *= factor
        if QUERY:
            block = batch * tl.num_programs(0) + tl.program_id(0)
            tl.store(to_strength + block * heads + head, tl.sum(tl.sum(found * value, 1), 0))
            found *= tl.load(strength + head)
        total += found
    to = to_valuations + (batch * positions + row) * M + column
    tl.store(to, total.to(to_valuations.dtype.element_ty), mask=there)


def width(d: int, m: int, padded: bool) -> int:
    """Return how wide queries and keys of d columns become by m valuations, and one column more with padded keys."""
    return -(-(d + m + padded) // 16) * 16


def widen(
    x: Tensor, valuations: Tensor, strength: Tensor | None, seen: Tensor | None, factor: float
) -> Tensor:
    """Widen x (batch, heads, positions, d) by strength (heads,) · factor · valuations (batch, positions, m).

    Returns (batch, positions, heads, width). x are queries with `strength` and keys without. `seen` (batch, keys), unless
    None, tells which keys may be seen: a column of queries and keys then hides the others.
    """
    x = x if x.stride(-1) == 1 else x.contiguous()
    batch, heads, positions, d = x.shape
    m, padded = valuations.shape[-1], seen is not None
    wide = x.new_empty(batch, positions, heads, width(d, m, padded))
    write[(triton.cdiv(positions, ROWS), batch * heads)](
        x,
        valuations,
        strength,
        seen if seen is None else seen.to(torch.uint8).contiguous(),
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
        PARTS=_parts(wide.shape[-1], d, m, padded),
        QUERY=strength is not None,
        PADDED=padded,
        QUERY_HIDES=HIDING[0],
        KEY_HIDES=HIDING[1],
        ROWS=ROWS,
    )
    return wide


def to_valuations(
    grad: Tensor, d: int, valuations: Tensor, strength: Tensor | None, padded: bool, factor: float
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients to valuations and strength of `widen`, where `grad` is that to what it returns."""
    batch, positions, heads, wide = grad.shape
    m = valuations.shape[-1]
    # The gradient to x₁ + x₂ is that to [x₁, x₂, x₁] but for the second: its partner in the product is y₁ once more.
    second = 1 if strength is None else 2
    second = second if second < _parts(wide, d, m, padded) else 0
    found = valuations.new_empty(valuations.shape)
    grid = (triton.cdiv(positions, GATHERED), batch)
    of_strength = None if strength is None else strength.new_empty(batch * grid[0], heads)
    gather[grid](
        grad,
        valuations,
        strength,
        found,
        of_strength,
        positions,
        heads,
        factor,
        *valuations.stride(),
        D=d,
        W=wide,
        M=m,
        M_BLOCK=triton.next_power_of_2(m),
        SECOND=second,
        QUERY=strength is not None,
        ROWS=GATHERED,
    )
    return found, None if of_strength is None else of_strength.sum(0)


def _parts(wide: int, d: int, m: int, padded: bool) -> int:
    """Return how many parts of valuations find room."""
    return min(3, (wide - d - padded) // m)
