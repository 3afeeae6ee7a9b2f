"""The forward kernel: flash attention whose scores carry a term of low rank.

One program computes a block of queries of one head: it walks over the blocks of keys that any of them sees, those that all
see first and without a mask, and keeps the running maximum, sum and output of the softmax (Dao, arXiv 2307.08691).
Exponentials are to base 2, with log2(e) in the scale.
"""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from emoprobe.valattn.kernels.blocks import capped, visible


@triton.jit
def _walk(
    out,
    total,
    top,
    q,
    x,
    k_blocks,
    v_blocks,
    y_blocks,
    seen,
    batch,
    kv_head,
    rows,
    start,
    stop,
    keys,
    window,
    scale,
    slope,
    cap,
    D: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    PADDED: tl.constexpr,
    CAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
    SPECIALIZE: tl.constexpr,
):
    for first in tl.range(start, stop, BLOCK_N, warp_specialize=SPECIALIZE):
        first = tl.multiple_of(first, BLOCK_N)
        k = k_blocks.load([batch, kv_head, first, 0]).reshape(BLOCK_N, D)
        y = y_blocks.load([batch, first, 0]).reshape(BLOCK_N, R)
        scores = tl.dot(q, k.T, input_precision=PRECISION)
        if CAPPED:
            scores, _ = capped(scores, slope, cap)
        scores = tl.dot(x, y.T, scores, input_precision=PRECISION)
        if MASKED:
            columns = first + tl.arange(0, BLOCK_N)
            see = visible(rows[:, None], columns[None, :], keys, window, seen, CAUSAL, WINDOWED, PADDED)
            scores = tl.where(see, scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * scale)
        shift = new_top
        if WINDOWED or PADDED:  # a query may have seen nothing yet
            shift = tl.where(new_top == -float("inf"), 0.0, new_top)
        weights = tl.exp2(scores * scale - shift[:, None])
        shrink = tl.exp2(top - shift)
        total = total * shrink + tl.sum(weights, 1)
        out = out * shrink[:, None]
        v = v_blocks.load([batch, kv_head, first, 0]).reshape(BLOCK_N, D)
        out = tl.dot(weights.to(v.dtype), v, out, input_precision=PRECISION)
        top = new_top
    return out, total, top


@triton.jit(do_not_specialize=["queries", "keys", "window"])
def forward(
    q_blocks,
    k_blocks,
    v_blocks,
    x_blocks,
    y_blocks,
    out_blocks,
    seen,
    logsumexp,
    queries,
    keys,
    window,
    scale,
    slope,
    cap,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    PADDED: tl.constexpr,
    CAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
    SPECIALIZE: tl.constexpr,
):
    """Write the output and log2 Σ 2^score of each query; scores are `scale` times the products, or capped and at scale 1."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # under a causal mask the last have most to do
    batch, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    kv_head = head // GROUPS
    seen += batch.to(tl.int64) * keys
    first_row = block * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    behind = keys - queries  # the last query stands at the last key
    q = q_blocks.load([batch, head, first_row, 0]).reshape(BLOCK_M, D)
    x = x_blocks.load([batch * HEADS + head, first_row, 0]).reshape(BLOCK_M, R)

    start, full, stop = 0, (keys // BLOCK_N) * BLOCK_N, keys
    if CAUSAL:
        full = tl.minimum(full, ((first_row + behind + 1) // BLOCK_N) * BLOCK_N)
        stop = tl.minimum(stop, first_row + behind + BLOCK_M)
    if WINDOWED:
        start = (tl.maximum(0, first_row + behind - window + 1) // BLOCK_N) * BLOCK_N
        stop = tl.minimum(stop, first_row + behind + BLOCK_M - 1 + window)
    if WINDOWED or PADDED:
        full = start

    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    out = tl.zeros([BLOCK_M, D], tl.float32)
    if not (WINDOWED or PADDED):
        out, total, top = _walk(
            out, total, top, q, x, k_blocks, v_blocks, y_blocks, seen, batch, kv_head, rows + behind,
            start, full, keys, window, scale, slope, cap,
            D, R, BLOCK_N, False, CAUSAL, WINDOWED, PADDED, CAPPED, PRECISION, SPECIALIZE,
        )  # fmt: skip
    out, total, top = _walk(
        out, total, top, q, x, k_blocks, v_blocks, y_blocks, seen, batch, kv_head, rows + behind,
        full, stop, keys, window, scale, slope, cap,
        D, R, BLOCK_N, True, CAUSAL, WINDOWED, PADDED, CAPPED, PRECISION, SPECIALIZE,
    )  # fmt: skip
    nothing = total == 0.0
    out = out / tl.where(nothing, 1.0, total)[:, None]
    found = tl.where(nothing, 0.0, top + tl.log2(total))
    tl.store(logsumexp + tl.program_id(1).to(tl.int64) * queries + rows, found, mask=rows < queries)
    out_blocks.store([batch, head, first_row, 0], out.to(out_blocks.dtype).reshape(1, 1, BLOCK_M, D))
