"""`logits_logprobs` on CUDA: one program reads one row once, keeping a running maximum, sum and argmax.

Cost: N*V elements from HBM; 8 bytes a row of scratch. Dims: N rows, V vocabulary, T targets.
"""

# mypy: disable-error-code="no-untyped-def"
# (the arguments of Triton functions have no Python types; their host functions have)

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from evalengine.kernels.head import empty_logprobs
from evalengine.kernels.triton_common import (
    LN2,
    TARGET_TYPES,
    Spec,
    answer,
    exp_sum,
    load_targets,
    rescaled,
)

ROW_CONSTANTS = {"BLOCK_V": 4096}
ROW_WARPS = 8
TARGET_CONSTANTS = {"BLOCK_T": 128}


@triton.jit
def _logits_row_kernel(
    logits_NV,
    logsumexp_N,
    argmax_N,
    V,
    stride,
    BLOCK_V: tl.constexpr,
):
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


@triton.jit(do_not_specialize=["T"])
def _logits_target_kernel(
    logits_NV,
    row_T,
    token_T,
    logsumexp_N,
    argmax_N,
    logprob_T,
    greedy_T,
    T,
    stride,
    BLOCK_T: tl.constexpr,
):
    targets, there, row, token = load_targets(row_T, token_T, T, BLOCK_T)
    x = tl.load(logits_NV + row * stride + token, mask=there, other=0.0).to(tl.float32)
    answer(x, targets, there, row, token, logsumexp_N, argmax_N, logprob_T, greedy_T)


def logits_logprobs_triton(logits_NV: Tensor, row_T: Tensor, token_T: Tensor) -> tuple[Tensor, Tensor]:
    """(logprob_T float32, greedy_T bool) of checked arguments, at least one target."""
    if logits_NV.stride(1) != 1:
        logits_NV = logits_NV.contiguous()
    (n_rows, vocab), device, stride = logits_NV.shape, logits_NV.device, logits_NV.stride(0)
    row_T, token_T = (x.to(device, non_blocking=True).contiguous() for x in (row_T, token_T))
    logsumexp_N = torch.empty(n_rows, dtype=torch.float32, device=device)
    argmax_N = torch.empty(n_rows, dtype=torch.int32, device=device)
    logprob_T, greedy_T = empty_logprobs(logits_NV, row_T)
    _logits_row_kernel[(n_rows,)](
        logits_NV, logsumexp_N, argmax_N, vocab, stride, **ROW_CONSTANTS, num_warps=ROW_WARPS
    )
    _logits_target_kernel[(triton.cdiv(row_T.shape[0], TARGET_CONSTANTS["BLOCK_T"]),)](
        logits_NV,
        row_T,
        token_T,
        logsumexp_N,
        argmax_N,
        logprob_T,
        greedy_T,
        row_T.shape[0],
        stride,
        **TARGET_CONSTANTS,
    )
    return logprob_T, greedy_T


def specs(capability: int) -> Iterator[Spec]:
    """Both kernels, for `compiled.py`."""
    for dtype in ("bf16", "fp32"):
        types = {"logits_NV": f"*{dtype}", "argmax_N": "*i32"}
        yield Spec(f"logits row {dtype}", _logits_row_kernel, types, ROW_CONSTANTS, ROW_WARPS)
    types = {"logits_NV": "*bf16", **TARGET_TYPES}
    yield Spec("logits target bf16", _logits_target_kernel, types, TARGET_CONSTANTS)
