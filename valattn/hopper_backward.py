"""Gradients of attention by FlashAttention-4's kernels for Hopper GPUs, whose queries and keys are wider than its values.

`flash_attn_func` of 4.0.0b36 gets them wrong where queries are at most 128 wide and no multiple of 32: its main kernel lays
the sums for the queries' gradient out by 16 columns, the kernels before and after it by 32. From 129 columns on it takes
tiles that are right, but slow for folded biases. So the same three kernels are run here, with one rounding and tiles of ours.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import cutlass.cute as cute
import torch
from flash_attn.cute import interface as flash
from flash_attn.cute.cache_utils import get_jit_cache
from flash_attn.cute.cute_dsl_utils import get_broadcast_dims, to_cute_tensor, torch2cute_dtype_map
from flash_attn.cute.flash_bwd_sm90 import FlashAttentionBackwardSm90
from flash_attn.cute.utils import AuxData
from torch import Tensor

ARCHITECTURE = 90
_compiled = get_jit_cache("emoprobe_bwd")


# For heads of 128 and a narrow bias; of what FlashAttention-4 takes up to 128 columns, it keeps all but the width.
WIDE = flash.BwdConfig(
    m_block_size=64,
    n_block_size=128,
    num_stages_Q=2,
    num_stages_dO=2,
    num_stages_PdS=2,
    SdP_swapAB=True,
    dKV_swapAB=False,
    dQ_swapAB=False,
    AtomLayoutMSdP=1,
    AtomLayoutNdKV=2,
    AtomLayoutMdQ=1,
)


def choose_tiles(width: int, value_width: int, causal: bool, local: bool) -> tuple[flash.BwdConfig, int]:
    """Return the tiles of the main kernel, and of how many columns it computes a multiple."""
    if 128 < width <= 160 and value_width <= 128:
        return WIDE, 32
    tiles = flash._tile_size_bwd_sm90(width, value_width, causal, local)
    return tiles, 64 if tiles.dKV_swapAB else 16 if tiles.dQ_single_wg else 32


def attention_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    given: Tensor,
    logsumexp: Tensor,
    *,
    scale: float,
    causal: bool,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients to q, k and v, (batch, positions, heads, width), where `given` is that to the output.

    q and k are as wide as each other, v, out and given too; all have the same number of heads. `logsumexp` is (batch, heads,
    queries). `window` is as in `val_attention`.
    """
    local = window is not None
    left, right = (None, None) if window is None else (window - 1, 0 if causal else window - 1)
    causal = causal and not local
    (batch, queries, heads, width), keys, value_width = q.shape, k.shape[1], v.shape[-1]
    tiles, rounding = choose_tiles(width, value_width, causal, local)
    rows = -(-queries // tiles.m_block_size) * tiles.m_block_size
    columns = -(-width // rounding) * rounding
    # Of v, as many columns as lie together in shared memory, or as groups of warps take at a time where they split them.
    together = 64 * tiles.num_wg // tiles.AtomLayoutNdKV if tiles.dKV_swapAB else gcd(columns, 64)
    value_columns = -(-value_width // together) * together
    dtype = torch2cute_dtype_map[q.dtype]
    v, given = (t if t.stride(-1) == 1 else t.contiguous() for t in (v, given))
    dq, dk, dv = (
        torch.empty_like(q),
        torch.empty_like(k),
        torch.empty_like(v, memory_format=torch.contiguous_format),
    )
    sums = q.new_empty(batch, heads, rows * columns, dtype=torch.float32)
    products, log2 = q.new_empty(2, batch, heads, rows, dtype=torch.float32)
    flash._bwd_preprocess(
        out, given, products, logsumexp, log2, sums, None, None, None,
        dtype, width, value_width, tiles.m_block_size, hdim_multiple_of=rounding, fake_mode=False,
    )  # fmt: skip
    tensors = (q, k, v, given, log2, products, sums, dk, dv)
    single = (queries <= tiles.m_block_size, keys <= tiles.n_block_size)
    key = (
        dtype, width, value_width, columns, causal, local, tiles, single,
        *(get_broadcast_dims(t) for t in (q, k, v, given)),
    )  # fmt: skip
    if key not in _compiled:
        _compiled[key] = compile_main(
            tensors, columns, value_columns, causal, local, tiles, scale, left, right
        )
    _compiled[key](
        *tensors,
        scale,
        None,
        None,
        None,
        None,
        left,
        right,
        None,
        None,
        None,
        AuxData(None, None),
        None,
        None,
    )
    flash._bwd_postprocess_convert(
        sums, dq, scale, None, None, ARCHITECTURE, dtype, width, tiles.m_block_size,
        128 if tiles.dQ_single_wg else tiles.num_wg * 128, tiles.AtomLayoutMdQ, tiles.dQ_swapAB,
        hdim_multiple_of=rounding, fake_mode=False,
    )  # fmt: skip
    return dq, dk, dv


def compile_main(
    tensors: tuple[Tensor, ...],
    columns: int,
    value_columns: int,
    causal: bool,
    local: bool,
    tiles: flash.BwdConfig,
    scale: float,
    left: int | None,
    right: int | None,
) -> Any:
    """Compile the main kernel, which takes `columns` of q and k and `value_columns` of v; what these lack is read as zeros."""
    kernel = FlashAttentionBackwardSm90(
        torch2cute_dtype_map[tensors[0].dtype],
        columns,
        value_columns,
        is_causal=causal,
        is_local=local,
        tile_m=tiles.m_block_size,
        tile_n=tiles.n_block_size,
        Q_stage=tiles.num_stages_Q,
        dO_stage=tiles.num_stages_dO,
        PdS_stage=tiles.num_stages_PdS,
        SdP_swapAB=tiles.SdP_swapAB,
        dKV_swapAB=tiles.dKV_swapAB,
        dQ_swapAB=tiles.dQ_swapAB,
        AtomLayoutMSdP=tiles.AtomLayoutMSdP,
        AtomLayoutNdKV=tiles.AtomLayoutNdKV,
        AtomLayoutMdQ=tiles.AtomLayoutMdQ,
        num_threads=(tiles.num_wg + 1) * 128,
        dQ_single_wg=tiles.dQ_single_wg,
    )
    stream = cute.runtime.make_fake_stream(use_tvm_ffi_env_stream=True)
    return cute.compile(
        kernel, *(to_cute_tensor(t) for t in tensors), scale, None, None, None, None, left, right, None, None, None,
        AuxData(None, None), None, None, stream, options="--enable-tvm-ffi",
    )  # fmt: skip
