"""The backward kernels: gradients to keys and values block by block of keys, to queries block by block of queries.

Two walks compute each score twice, but nothing is added up across programs: the gradients are the same in every run. Scores
are recomputed from the log-sum-exp of the forward pass. With dS the gradient at the scores, the gradient to the valuations
of the queries is λ·dS·V_K, to those of the keys λ·dSᵀ·V_Q, and to λ itself the sum of V_Q ⊙ dS·V_K.
"""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from emoprobe.valattn.kernels.blocks import capped, visible


@triton.jit
def _walk_keys(
    dq,
    dx,
    q,
    x,
    do,
    lse,
    delta,
    k_blocks,
    v_blocks,
    y_blocks,
    vk_blocks,
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
):
    for first in tl.range(start, stop, BLOCK_N):
        first = tl.multiple_of(first, BLOCK_N)
        k = k_blocks.load([batch, kv_head, first, 0]).reshape(BLOCK_N, D)
        y = y_blocks.load([batch, first, 0]).reshape(BLOCK_N, R)
        v = v_blocks.load([batch, kv_head, first, 0]).reshape(BLOCK_N, D)
        vk = vk_blocks.load([batch, first, 0]).reshape(BLOCK_N, R)
        scores = tl.dot(q, k.T, input_precision=PRECISION)
        if CAPPED:
            scores, tanh = capped(scores, slope, cap)
        scores = tl.dot(x, y.T, scores, input_precision=PRECISION)
        d_weights = tl.dot(do, v.T, input_precision=PRECISION)
        weights = tl.exp2(scores * scale - lse[:, None])
        if MASKED:
            columns = first + tl.arange(0, BLOCK_N)
            see = visible(rows[:, None], columns[None, :], keys, window, seen, CAUSAL, WINDOWED, PADDED)
            weights = tl.where(see, weights, 0.0)
        d_scores = weights * (d_weights - delta[:, None])
        d_scores_half = d_scores.to(q.dtype)
        dx = tl.dot(d_scores_half, vk, dx, input_precision=PRECISION)
        if CAPPED:
            d_scores_half = (d_scores * (1 - tanh * tanh)).to(q.dtype)
        dq = tl.dot(d_scores_half, k, dq, input_precision=PRECISION)
    return dq, dx


@triton.jit(do_not_specialize=["queries", "keys", "window"])
def backward_queries(
    q_blocks,
    k_blocks,
    v_blocks,
    x_blocks,
    y_blocks,
    vk_blocks,
    do_blocks,
    dq_blocks,
    dx_out,
    seen,
    logsumexp,
    deltas,
    queries,
    keys,
    window,
    scale,
    slope,
    cap,
    product_scale,
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
):
    """Write dq and, per head, dS·V_K in R columns."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    batch, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    kv_head = head // GROUPS
    seen += batch.to(tl.int64) * keys
    first_row = block * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    behind = keys - queries
    q = q_blocks.load([batch, head, first_row, 0]).reshape(BLOCK_M, D)
    do = do_blocks.load([batch, head, first_row, 0]).reshape(BLOCK_M, D)
    x = x_blocks.load([batch * HEADS + head, first_row, 0]).reshape(BLOCK_M, R)
    at = tl.program_id(1).to(tl.int64) * queries + rows
    lse = tl.load(logsumexp + at, mask=rows < queries, other=0.0)
    delta = tl.load(deltas + at, mask=rows < queries, other=0.0)

    start, full, stop = 0, (keys // BLOCK_N) * BLOCK_N, keys
    if CAUSAL:
        full = tl.minimum(full, ((first_row + behind + 1) // BLOCK_N) * BLOCK_N)
        stop = tl.minimum(stop, first_row + behind + BLOCK_M)
    if WINDOWED:
        start = (tl.maximum(0, first_row + behind - window + 1) // BLOCK_N) * BLOCK_N
        stop = tl.minimum(stop, first_row + behind + BLOCK_M - 1 + window)
    if WINDOWED or PADDED:
        full = start

    dq = tl.zeros([BLOCK_M, D], tl.float32)
    dx = tl.zeros([BLOCK_M, R], tl.float32)
    if not (WINDOWED or PADDED):
        dq, dx = _walk_keys(
            dq, dx, q, x, do, lse, delta, k_blocks, v_blocks, y_blocks, vk_blocks, seen, batch, kv_head,
            rows + behind, start, full, keys, window, scale, slope, cap,
            D, R, BLOCK_N, False, CAUSAL, WINDOWED, PADDED, CAPPED, PRECISION,
        )  # fmt: skip
    dq, dx = _walk_keys(
        dq, dx, q, x, do, lse, delta, k_blocks, v_blocks, y_blocks, vk_blocks, seen, batch, kv_head,
        rows + behind, full, stop, keys, window, scale, slope, cap,
        D, R, BLOCK_N, True, CAUSAL, WINDOWED, PADDED, CAPPED, PRECISION,
    )  # fmt: skip
    dq *= product_scale
    dq_blocks.store([batch, head, first_row, 0], dq.to(dq_blocks.dtype).reshape(1, 1, BLOCK_M, D))
    to = dx_out + at[:, None] * R + tl.arange(0, R)[None, :]
    tl.store(to, dx, mask=rows[:, None] < queries)


@triton.jit
def _walk_queries(
    dk,
    dv,
    dy,
    k,
    v,
    y,
    q_blocks,
    do_blocks,
    x_blocks,
    vq_blocks,
    logsumexp,
    deltas,
    seen,
    batch,
    head,
    columns,
    start,
    stop,
    queries,
    keys,
    window,
    scale,
    slope,
    cap,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    PADDED: tl.constexpr,
    CAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    at = (batch * HEADS + head).to(tl.int64) * queries
    for first in tl.range(start, stop, BLOCK_M):
        first = tl.multiple_of(first, BLOCK_M)
        rows = first + tl.arange(0, BLOCK_M)
        q = q_blocks.load([batch, head, first, 0]).reshape(BLOCK_M, D)
        x = x_blocks.load([batch * HEADS + head, first, 0]).reshape(BLOCK_M, R)
        do = do_blocks.load([batch, head, first, 0]).reshape(BLOCK_M, D)
        vq = vq_blocks.load([batch, first, 0]).reshape(BLOCK_M, R)
        lse = tl.load(logsumexp + at + rows, mask=rows < queries, other=0.0)
        delta = tl.load(deltas + at + rows, mask=rows < queries, other=0.0)
        scores = tl.dot(k, q.T, input_precision=PRECISION)  # transposed: a row per key
        if CAPPED:
            scores, tanh = capped(scores, slope, cap)
        scores = tl.dot(y, x.T, scores, input_precision=PRECISION)
        d_weights = tl.dot(v, do.T, input_precision=PRECISION)
        weights = tl.exp2(scores * scale - lse[None, :])
        if MASKED:
            see = visible(
                (rows + keys - queries)[None, :],
                columns[:, None],
                keys,
                window,
                seen,
                CAUSAL,
                WINDOWED,
                PADDED,
            )
            weights = tl.where(see, weights, 0.0)
        dv = tl.dot(weights.to(do.dtype), do, dv, input_precision=PRECISION)
        d_scores = weights * (d_weights - delta[None, :])
        d_scores_half = d_scores.to(q.dtype)
        dy = tl.dot(d_scores_half, vq, dy, input_precision=PRECISION)
        if CAPPED:
            d_scores_half = (d_scores * (1 - tanh * tanh)).to(q.dtype)
        dk = tl.dot(d_scores_half, q, dk, input_precision=PRECISION)
    return dk, dv, dy


@triton.jit(do_not_specialize=["queries", "keys", "window"])
def backward_keys(
    q_blocks,
    k_blocks,
    v_blocks,
    x_blocks,
    y_blocks,
    vq_blocks,
    do_blocks,
    dk_blocks,
    dv_blocks,
    dy_out,
    strength,
    seen,
    logsumexp,
    deltas,
    queries,
    keys,
    window,
    scale,
    slope,
    cap,
    product_scale,
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
):
    """Write dk, dv and, per head of the keys, λ·dSᵀ·V_Q in R columns, all summed over the heads that share these keys."""
    kv_heads: tl.constexpr = HEADS // GROUPS
    block = tl.program_id(0)  # under a causal mask the first have most to do
    batch, kv_head = tl.program_id(1) // kv_heads, tl.program_id(1) % kv_heads
    seen += batch.to(tl.int64) * keys
    first_column = block * BLOCK_N
    columns = first_column + tl.arange(0, BLOCK_N)
    behind = keys - queries
    k = k_blocks.load([batch, kv_head, first_column, 0]).reshape(BLOCK_N, D)
    v = v_blocks.load([batch, kv_head, first_column, 0]).reshape(BLOCK_N, D)
    y = y_blocks.load([batch, first_column, 0]).reshape(BLOCK_N, R)

    # Rows and columns past the end are zeros, whose weights meet only zeros: they need no mask.
    start, full, stop = 0, 0, queries
    if CAUSAL:
        start = (tl.maximum(0, first_column - behind) // BLOCK_M) * BLOCK_M
        full = tl.maximum(0, first_column + BLOCK_N - 1 - behind)
        full = tl.minimum(tl.cdiv(full, BLOCK_M) * BLOCK_M, tl.cdiv(queries, BLOCK_M) * BLOCK_M)
    if WINDOWED:
        if not CAUSAL:
            start = (tl.maximum(0, first_column - behind - window + 1) // BLOCK_M) * BLOCK_M
        stop = tl.minimum(stop, tl.maximum(0, first_column + BLOCK_N - 1 - behind + window))
    if WINDOWED or PADDED:
        full = stop

    dk = tl.zeros([BLOCK_N, D], tl.float32)
    dv = tl.zeros([BLOCK_N, D], tl.float32)
    dy = tl.zeros([BLOCK_N, R], tl.float32)
    for head in range(kv_head * GROUPS, (kv_head + 1) * GROUPS):
        dy_head = tl.zeros([BLOCK_N, R], tl.float32)
        if CAUSAL or WINDOWED or PADDED:
            dk, dv, dy_head = _walk_queries(
                dk, dv, dy_head, k, v, y, q_blocks, do_blocks, x_blocks, vq_blocks, logsumexp, deltas, seen,
                batch, head, columns, start, full, queries, keys, window, scale, slope, cap,
                HEADS, D, R, BLOCK_M, True, CAUSAL, WINDOWED, PADDED, CAPPED, PRECISION,
            )  # fmt: skip
        if not (WINDOWED or PADDED):
            dk, dv, dy_head = _walk_queries(
                dk, dv, dy_head, k, v, y, q_blocks, do_blocks, x_blocks, vq_blocks, logsumexp, deltas, seen,
                batch, head, columns, full, stop, queries, keys, window, scale, slope, cap,
                HEADS, D, R, BLOCK_M, False, CAUSAL, WINDOWED, PADDED, CAPPED, PRECISION,
            )  # fmt: skip
        dy += dy_head * tl.load(strength + head)
    dk *= product_scale
    dk_blocks.store([batch, kv_head, first_column, 0], dk.to(dk_blocks.dtype).reshape(1, 1, BLOCK_N, D))
    dv_blocks.store([batch, kv_head, first_column, 0], dv.to(dv_blocks.dtype).reshape(1, 1, BLOCK_N, D))
    at = tl.program_id(1).to(tl.int64) * keys + columns
    tl.store(dy_out + at[:, None] * R + tl.arange(0, R)[None, :], dy, mask=columns[:, None] < keys)


@triton.jit(do_not_specialize=["queries"])
def row_products(
    out_blocks, do_blocks, deltas, queries, HEADS: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr
):
    """Write Σ out ⊙ dout of each query, which the gradient of a softmax takes away."""
    batch, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    first_row = tl.program_id(0) * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    out = out_blocks.load([batch, head, first_row, 0]).reshape(BLOCK_M, D).to(tl.float32)
    do = do_blocks.load([batch, head, first_row, 0]).reshape(BLOCK_M, D).to(tl.float32)
    to = deltas + tl.program_id(1).to(tl.int64) * queries + rows
    tl.store(to, tl.sum(out * do, 1), mask=rows < queries)
