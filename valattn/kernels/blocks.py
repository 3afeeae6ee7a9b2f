"""What the kernels for valuation attention share: which keys a query sees, scores of a block, and spread valuations.

Valuations enter the scores as one more matrix product of `R` = 16 or 32 columns, the least that tensor cores multiply.
Column c holds part c // m of dimension c % m: the parts of a query are [high, low, high], those of a key [high, high, low],
as many of them as find room, so that up to 5 dimensions are as exact as in float32 and up to 8 are on the side of the query,
where λ is multiplied in. The columns are in float16 whatever the queries are in: it has three more bits than bfloat16, and
valuations need no large exponents.
"""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def visible(
    rows, columns, keys, window, seen, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, PADDED: tl.constexpr
):
    """Tell which keys (`columns`) are seen from which query positions among the keys (`rows`), broadcast together."""
    see = columns < keys
    if CAUSAL:
        see = see & (columns <= rows)
    if WINDOWED:
        see = see & (columns > rows - window)
        if not CAUSAL:
            see = see & (columns < rows + window)
    if PADDED:
        see = see & (tl.load(seen + columns, mask=columns < keys, other=0) != 0)
    return see


@triton.jit
def capped(products, slope, cap):
    """Return cap · tanh(slope · products), and the tanh."""
    tanh = 1 - 2 / (1 + tl.exp2(products * (slope * 2.8853900817779268)))  # 2 · log2(e)
    return cap * tanh, tanh


@triton.jit
def part(value, which, dtype: tl.constexpr, QUERY: tl.constexpr):
    """Return the part of a valuation that a column holds, the `which`-th of [high, low, high] or of [high, high, low]."""
    high = value.to(dtype)
    low = (value - high.to(tl.float32)).to(dtype)
    return tl.where(which == (1 if QUERY else 2), low, high)


@triton.jit
def spread(
    source,
    strength,
    columns,
    positions,
    heads,
    factor,
    stride_b,
    stride_n,
    stride_m,
    M: tl.constexpr,
    R: tl.constexpr,
    PARTS: tl.constexpr,
    QUERY: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write strength · factor · source (batch, positions, m) as the columns above, (batch · heads, positions, R)."""
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, R)[None, :]
    here = source + batch.to(tl.int64) * stride_b + rows.to(tl.int64) * stride_n + (column % M) * stride_m
    value = tl.load(here, mask=(rows < positions) & (column < PARTS * M), other=0.0).to(tl.float32)
    value = value * (tl.load(strength + head) * factor)
    out = part(value, column // M, columns.dtype.element_ty, QUERY)
    to = columns + (tl.program_id(1).to(tl.int64) * positions + rows) * R + column
    tl.store(to, out, mask=rows < positions)
