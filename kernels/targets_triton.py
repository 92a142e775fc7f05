"""The answers about targets on CUDA, from what a first kernel left of each row's vocabulary tiles.

The scratch `tile_NK3` holds per row and tile the maximum, the sum of exponentials beyond it and the argmax (an int32's
bits), one after the other, so that one program reads a row in one go. `target_kernel` takes one target: its row's tiles
in their order to maximum, sum and argmax, and the target's logit, which it computes as a float32 dot product or is given.
A target that is its row's argmax takes the row's maximum as its logit: what rounds differently in the tile does not count.

Cost: 12 bytes a tile and 2*D elements a target. Dims: N rows, V vocabulary, D hidden, T targets, K vocabulary tiles.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from evalengine.kernels.triton_common import LN2, TARGET_TYPES, Spec, dot_product, logit, rescaled

CONSTANTS = {"BLOCK_K": 512, "BLOCK_D": 2048}
TARGET_WARPS = 8


@triton.jit
def store_tile(tile_NK3, rows, k, K, top, total, first, there):
    """Leaves the maximum, sum and argmax of tile k of some rows."""
    at = tile_NK3 + (rows * K + k) * 3
    tl.store(at, top, mask=there)
    tl.store(at + 1, total, mask=there)
    tl.store(at + 2, first.to(tl.float32, bitcast=True), mask=there)


@triton.jit(
    do_not_specialize=["N", "K", "start", "chunk"],
    do_not_specialize_on_alignment=["bias_V", "row_T", "token_T", "logprob_T", "greedy_T"],
)
def target_kernel(
    h_ND, w_VD, bias_V, tile_NK3, logit_T, row_T, token_T, logprob_T, greedy_T,
    start, chunk, N, K, V, D, stride_h, stride_w, scale, softcap,
    HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    HAS_LOGIT: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0)
    row = tl.load(row_T + t).to(tl.int64)
    token = tl.load(token_T + t).to(tl.int64)
    if (row >= 0) & (row < N) & (token >= 0) & (token < V):
        if (row >= start) & (row < start + chunk):
            tile_K3 = tile_NK3 + (row - start) * K * 3
            top = float("-inf")
            total = 0.0
            best = 2147483647
            for first_k in range(0, K, BLOCK_K):
                tiles = first_k + tl.arange(0, BLOCK_K)
                there = tiles < K
                max_k = tl.load(tile_K3 + tiles * 3, mask=there, other=float("-inf"))
                sum_k = tl.load(tile_K3 + tiles * 3 + 1, mask=there, other=0.0)
                argmax_k = tl.load(tile_K3 + tiles * 3 + 2, mask=there, other=0.0).to(tl.int32, bitcast=True)
                block_top = tl.max(max_k, 0)
                first = tl.min(tl.where(max_k == block_top, argmax_k, 2147483647), 0)
                best = tl.where(block_top > top, first, best)  # the first on ties
                new_top = tl.maximum(top, block_top)
                total = rescaled(total, top, new_top) + tl.sum(rescaled(sum_k, max_k, new_top), 0)
                top = new_top
            log_total = tl.log2(total) * LN2
            if HAS_LOGIT:
                x = tl.load(logit_T + t)
            else:
                x = dot_product(h_ND + row * stride_h, w_VD + token * stride_w, D, BLOCK_D)
            if HAS_BIAS:
                x += tl.load(bias_V + token).to(tl.float32)
            x = logit(x, HAS_SCALE, scale, HAS_SOFTCAP, softcap)
            x = tl.where(best == token, top, x)  # what `total` has of it is exp(0)
            logprob = (x - top) - log_total
            logprob = tl.where(logprob > 0.0, 0.0, logprob)  # the logit may round above its twin in the tile
            if V == 1:
                logprob = logprob - logprob  # certain, unless it is not finite
            tl.store(logprob_T + t, logprob)
            tl.store(greedy_T + t, (best == token) & (logprob - logprob == 0.0))
    else:
        if start == 0:
            tl.store(logprob_T + t, float("nan"))
            tl.store(greedy_T + t, False)


def target_constants(bias: bool, scale: bool, softcap: bool, has_logit: bool) -> dict[str, int]:
    """The compile-time arguments of `target_kernel`."""
    flags = {"HAS_BIAS": bias, "HAS_SCALE": scale, "HAS_SOFTCAP": softcap}
    return {**flags, "HAS_LOGIT": has_logit, **CONSTANTS}


def specs(capability: int) -> Iterator[Spec]:
    """With the dot product and without, for tests/kernels/compile_kernels.py."""
    for dtype, has_logit in (("bf16", False), ("fp32", True)):
        types = dict.fromkeys(("h_ND", "w_VD", "bias_V"), f"*{dtype}")
        types |= TARGET_TYPES | {"start": "i32", "chunk": "i32"}
        constants = target_constants(True, True, True, has_logit)
        yield Spec(f"target {dtype}", target_kernel, types, constants, TARGET_WARPS)
