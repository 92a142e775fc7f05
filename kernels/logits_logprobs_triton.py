"""`logits_logprobs` on CUDA: one program reads one row once, keeping a running maximum, sum and argmax.

Cost: N*V elements from HBM; 8 bytes a row of scratch. Dims: N rows, V vocabulary, T targets.
"""

# mypy: disable-error-code="no-untyped-def"
# (the arguments of Triton functions have no Python types; their host functions have)

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
    logit,
    logit_arguments,
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
    scale,
    softcap,
    HAS_SCALE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0)
    logits_V = logits_NV + row.to(tl.int64) * stride
    top = float("-inf")
    total = 0.0
    best = 2147483647
    for start in range(0, V, BLOCK_V):
        cols = start + tl.arange(0, BLOCK_V)
        x = tl.load(logits_V + cols, mask=cols < V, other=0.0).to(tl.float32)
        x = tl.where(cols < V, logit(x, HAS_SCALE, scale, HAS_SOFTCAP, softcap), float("-inf"))
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
    scale,
    softcap,
    HAS_SCALE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    targets, there, row, token = load_targets(row_T, token_T, T, BLOCK_T)
    x = tl.load(logits_NV + row * stride + token, mask=there, other=0.0).to(tl.float32)
    x = logit(x, HAS_SCALE, scale, HAS_SOFTCAP, softcap)
    answer(x, targets, there, row, token, logsumexp_N, argmax_N, logprob_T, greedy_T)


def logits_logprobs_triton(
    logits_NV: Tensor, row_T: Tensor, token_T: Tensor, scale: float | None, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """(logprob_T float32, greedy_T bool) of checked arguments, at least one target."""
    if logits_NV.stride(1) != 1:
        logits_NV = logits_NV.contiguous()
    (n_rows, vocab), device = logits_NV.shape, logits_NV.device
    row_T, token_T = (x.to(device, non_blocking=True).contiguous() for x in (row_T, token_T))
    logsumexp_N = torch.empty(n_rows, dtype=torch.float32, device=device)
    argmax_N = torch.empty(n_rows, dtype=torch.int32, device=device)
    logprob_T, greedy_T = empty_logprobs(logits_NV, row_T)
    given: dict[str, Any] = {"logits_NV": logits_NV, "logsumexp_N": logsumexp_N, "argmax_N": argmax_N}
    given |= {"stride": logits_NV.stride(0), **logit_arguments(logits_NV, scale=scale, softcap=softcap)}
    _logits_row_kernel[(n_rows,)](V=vocab, **given, **ROW_CONSTANTS, num_warps=ROW_WARPS)
    _logits_target_kernel[(triton.cdiv(row_T.shape[0], TARGET_CONSTANTS["BLOCK_T"]),)](
        row_T=row_T,
        token_T=token_T,
        logprob_T=logprob_T,
        greedy_T=greedy_T,
        T=row_T.shape[0],
        **given,
        **TARGET_CONSTANTS,
    )
    return logprob_T, greedy_T


def specs(capability: int) -> Iterator[Spec]:
    """The kernels with all options, for `compiled.py`."""
    flags = {"HAS_SCALE": True, "HAS_SOFTCAP": True}
    for dtype in ("bf16", "fp32"):
        types = {"logits_NV": f"*{dtype}", "argmax_N": "*i32"}
        yield Spec(f"logits row {dtype}", _logits_row_kernel, types, {**flags, **ROW_CONSTANTS}, ROW_WARPS)
    types = {"logits_NV": "*bf16", **TARGET_TYPES}
    yield Spec("logits target bf16", _logits_target_kernel, types, {**flags, **TARGET_CONSTANTS})
