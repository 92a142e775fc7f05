"""float32 scores on CUDA: cuBLAS multiplies a block of rows with a slice of the vocabulary into a buffer that stays in
L2, and a kernel reduces the buffer to the scratch of targets_triton.py.

Triton's own float32 products reach 0.4 of cuBLAS's rate. Every product has the same number of rows, whatever the call
has, and the slices begin at the same columns: cuBLAS chooses its algorithm by the shape, and one algorithm sums each row
alike, so a row's bits do not depend on the others. The targets' logits are read from the same buffer.

Cost: 2*N*V*D FLOPs, N rounded up to BLOCK_N; 4 * BLOCK_N * SLICE_V bytes and 12 bytes per row and BLOCK_V columns.
Dims: N rows, R rows of one product, V vocabulary, S columns of one slice, D hidden, T targets, K blocks of BLOCK_V columns.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from evalengine.kernels.head import Head
from evalengine.kernels.targets_triton import store_tile
from evalengine.kernels.triton_common import Launcher, Spec, exp_sum, logit

BLOCK_N = 256  # rows of a product
SLICE_V = 132 * 128  # columns of a product: cuBLAS's tiles of 128 x 128 fill an H100's multiprocessors evenly
BLOCK_V = 2_048  # columns that one program reduces
BLOCK_T = 1_024  # targets that one program looks through
WARPS = 8


@triton.jit(
    do_not_specialize=["row", "col", "rows", "cols", "k", "T", "K"],
    do_not_specialize_on_alignment=["bias_V", "row_T", "token_T"],
)
def _slice_kernel(
    logits_RS, bias_V, tile_NK3, row_T, token_T, logit_T,
    row, col, rows, cols, k, T, K, stride, scale, softcap,
    HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """The slice at (row, col) has so many rows and cols, k is the first of its blocks of columns. One program a row and
    block; the last ones take the targets."""
    blocks = (cols + BLOCK_V - 1) // BLOCK_V
    program = tl.program_id(0)
    if program < rows * blocks:
        r = program // blocks
        block = program % blocks
        s = block * BLOCK_V + tl.arange(0, BLOCK_V)
        x = tl.load(logits_RS + r * stride + s, mask=s < cols, other=0.0)
        if HAS_BIAS:
            x += tl.load(bias_V + col + s, mask=s < cols, other=0.0).to(tl.float32)
        x = tl.where(s < cols, logit(x, HAS_SCALE, scale, HAS_SOFTCAP, softcap), float("-inf"))
        top = tl.max(x, 0)
        first = tl.min(tl.where(x == top, s, 2147483647), 0) + col
        store_tile(tile_NK3, (row + r).to(tl.int64), k + block, K, top, exp_sum(x, top, 0), first, True)
    else:
        targets = (program - rows * blocks) * BLOCK_T + tl.arange(0, BLOCK_T)
        there = targets < T
        row_t = tl.load(row_T + targets, mask=there, other=-1).to(tl.int64) - row
        col_t = tl.load(token_T + targets, mask=there, other=-1).to(tl.int64) - col
        in_slice = (row_t >= 0) & (row_t < rows) & (col_t >= 0) & (col_t < cols)
        at_target = tl.load(logits_RS + row_t * stride + col_t, mask=in_slice, other=0.0)
        tl.store(logit_T + targets, at_target, mask=in_slice)


def slice_statistics(h_ND: Tensor, head: Head, row_T: Tensor, token_T: Tensor) -> tuple[Tensor, Tensor]:
    """(tile_NK3, logit_T) of checked arguments: the scratch, and the targets' logits before the head's options."""
    (n_rows, hidden), vocab = h_ND.shape, head.w_VD.shape[0]
    w_VD, bias_V, scale, softcap = head.w_VD.detach(), head.bias_V, head.scale, head.softcap
    per_slice = triton.cdiv(SLICE_V, BLOCK_V)
    blocks = vocab // SLICE_V * per_slice + triton.cdiv(vocab % SLICE_V, BLOCK_V)
    tile_NK3 = h_ND.new_empty(n_rows, blocks, 3)
    logit_T = h_ND.new_empty(row_T.shape[0])
    h_RD = h_ND.new_zeros(BLOCK_N, hidden)
    logits_RS = h_ND.new_empty(BLOCK_N, min(-(-vocab // 16) * 16, SLICE_V))
    bias = w_VD if bias_V is None else bias_V
    given = bias_V is not None, scale is not None, softcap is not None
    launch = _launcher(h_ND.device, (bias.dtype, row_T.dtype, token_T.dtype), *given)
    for row in range(0, n_rows, BLOCK_N):
        rows = min(BLOCK_N, n_rows - row)
        h_RD[:rows].copy_(h_ND.detach()[row : row + rows])
        for col in range(0, vocab, SLICE_V):
            slice_VD = w_VD[col : col + SLICE_V]
            cols = slice_VD.shape[0]
            torch.mm(h_RD, slice_VD.t(), out=logits_RS[:, :cols])
            programs = rows * triton.cdiv(cols, BLOCK_V) + triton.cdiv(row_T.shape[0], BLOCK_T)
            k = col // SLICE_V * per_slice
            at = row, col, rows, cols, k, row_T.shape[0], blocks, logits_RS.stride(0)
            options = float(scale or 1.0), float(softcap or 1.0)
            launch(programs, logits_RS, bias, tile_NK3, row_T, token_T, logit_T, *at, *options)
    return tile_NK3, logit_T


@functools.lru_cache(maxsize=64)
def _launcher(
    device: torch.device, dtypes: tuple[torch.dtype, ...], bias: bool, scale: bool, softcap: bool
) -> Launcher:
    return Launcher(_slice_kernel, _constants(bias, scale, softcap), WARPS)


def _constants(bias: bool, scale: bool, softcap: bool) -> dict[str, Any]:
    flags = {"HAS_BIAS": bias, "HAS_SCALE": scale, "HAS_SOFTCAP": softcap}
    return {**flags, "BLOCK_V": BLOCK_V, "BLOCK_T": BLOCK_T}


def specs(capability: int) -> Iterator[Spec]:
    """Without and with the options of a head, for tests/kernels/compile_kernels.py."""
    for full in (False, True):
        types = {"row_T": "*i32", "token_T": "*i32"}
        types |= dict.fromkeys(("row", "col", "rows", "cols", "k"), "i32")
        name = "slice fp32" + (" bias, scale, soft-cap" if full else "")
        yield Spec(name, _slice_kernel, types, _constants(full, full, full), WARPS)
