"""`logits_logprobs` on CUDA: one program reads one row once, keeping a running maximum, sum and argmax.

Cost: N*V elements from HBM; 8 bytes a row of scratch. Dims: N rows, V vocabulary, T targets.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from evalengine.kernels.head import empty_logprobs
from evalengine.kernels.triton_common import LN2, TARGET_TYPES, Spec, exp_sum, moved, rescaled

ROW_CONSTANTS = {"BLOCK_V": 4096}
ROW_WARPS = 8
TARGET_CONSTANTS = {"BLOCK_T": 128}


@triton.jit
def _logits_row_kernel(logits_NV, logsumexp_N, argmax_N, V, stride, BLOCK_V: tl.constexpr):
    row = tl.program_id(0)
    logits_V = logits_NV + row.to(tl.int64) * stride
    top = float("-inf")
    total = 0.0
    best = 2147483647
    for start in range(0, V, BLOCK_V):
        cols = start + tl.arange(0, BLOCK_V)
        x = tl.load(logits_V + cols, mask=cols < V, other=float("-inf")).to(tl.float32)
        block_top = tl.max(x, 0)
        first = tl.min(tl.where(x == block_top, cols, 2147483647), 0)
        best = tl.where(block_top > top, first, best)  # the first on ties
        new_top = tl.maximum(top, block_top)
        total = rescaled(total, top, new_top) + exp_sum(x, new_top, 0)
        top = new_top
    tl.store(logsumexp_N + row, top + tl.log2(total) * LN2)
    tl.store(argmax_N + row, best)


@triton.jit(do_not_specialize=["T", "N"])
def _logits_target_kernel(
    logits_NV, row_T, token_T, logsumexp_N, argmax_N, logprob_T, greedy_T,
    T, N, V, stride, BLOCK_T: tl.constexpr,
):  # fmt: skip
    targets = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    there = targets < T
    row = tl.load(row_T + targets, mask=there, other=-1).to(tl.int64)
    token = tl.load(token_T + targets, mask=there, other=-1).to(tl.int64)
    known = (row >= 0) & (row < N) & (token >= 0) & (token < V)
    x = tl.load(logits_NV + row * stride + token, mask=known, other=float("nan")).to(tl.float32)
    logprob = x - tl.load(logsumexp_N + row, mask=known, other=0.0)
    logprob = tl.where(logprob > 0.0, 0.0, logprob)  # the logsumexp may round below its largest logit
    if V == 1:
        logprob = logprob - logprob  # certain, unless it is not finite
    greedy = (tl.load(argmax_N + row, mask=known, other=-1) == token) & (logprob - logprob == 0.0)
    tl.store(logprob_T + targets, logprob, mask=there)
    tl.store(greedy_T + targets, greedy, mask=there)


def logits_logprobs_triton(logits_NV: Tensor, row_T: Tensor, token_T: Tensor) -> tuple[Tensor, Tensor]:
    """(logprob_T float32, greedy_T bool) of checked arguments, at least one target."""
    if logits_NV.stride(1) != 1:
        logits_NV = logits_NV.contiguous()
    (n_rows, vocab), device, stride = logits_NV.shape, logits_NV.device, logits_NV.stride(0)
    row_T, token_T = moved(row_T, token_T, device)
    logsumexp_N = torch.empty(n_rows, dtype=torch.float32, device=device)
    argmax_N = torch.empty(n_rows, dtype=torch.int32, device=device)
    logprob_T, greedy_T = empty_logprobs(logits_NV, row_T)
    _logits_row_kernel[(n_rows,)](
        logits_NV, logsumexp_N, argmax_N, vocab, stride, **ROW_CONSTANTS, num_warps=ROW_WARPS
    )
    _logits_target_kernel[(triton.cdiv(row_T.shape[0], TARGET_CONSTANTS["BLOCK_T"]),)](
        logits_NV, row_T, token_T, logsumexp_N, argmax_N, logprob_T, greedy_T,
        row_T.shape[0], n_rows, vocab, stride, **TARGET_CONSTANTS,
    )  # fmt: skip
    return logprob_T, greedy_T


def specs(capability: int) -> Iterator[Spec]:
    """Both kernels, for tests/kernels/compile_kernels.py."""
    for dtype in ("bf16", "fp32"):
        types = {"logits_NV": f"*{dtype}", "argmax_N": "*i32"}
        yield Spec(f"logits row {dtype}", _logits_row_kernel, types, ROW_CONSTANTS, ROW_WARPS)
    types = {"logits_NV": "*bf16", **TARGET_TYPES}
    yield Spec("logits target bf16", _logits_target_kernel, types, TARGET_CONSTANTS)
