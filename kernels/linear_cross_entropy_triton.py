"""`linear_cross_entropy` on CUDA: a Triton kernel turns a chunk's logits into its losses and gradient.

It reads each row twice, the second time from L2, and overwrites the logits. Without gradients no logits are stored at all: the
loss comes from `target_logprobs`' own kernels. A chunk is larger than on the CPU, because the sums of w's gradient over chunks
cost a pass over (V, D) each.
Dims: N rows, R rows of one chunk, V vocabulary, D hidden.
"""

# mypy: disable-error-code="no-untyped-def"
# (the arguments of Triton functions have no Python types; their host functions have)

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from evalengine.kernels.head import Head
from evalengine.kernels.target_logprobs_triton import target_logprobs_triton
from evalengine.kernels.triton_common import LN2, LOG2E, Spec, exp_sum, logit, logit_arguments, rescaled

CHUNK_LOGITS = 2**28  # a chunk: 512 MiB in bfloat16
LOSS_CONSTANTS = {"BLOCK_V": 2048}
LOSS_WARPS = 8


@triton.jit
def _loss_kernel(
    logits_RV,
    bias_V,
    target_R,
    loss_R,
    V,
    stride,
    z_loss,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0)
    logits_V = logits_RV + row.to(tl.int64) * stride
    target = tl.load(target_R + row)
    at_target = tl.load(logits_V + target).to(tl.float32)  # before any thread overwrites it
    if HAS_BIAS:
        at_target += tl.load(bias_V + target).to(tl.float32)
    at_target = logit(at_target, False, 1.0, HAS_SOFTCAP, softcap)
    top = float("-inf")
    total = 0.0
    for start in range(0, V, BLOCK_V):
        cols = start + tl.arange(0, BLOCK_V)
        x = tl.load(logits_V + cols, mask=cols < V, other=0.0).to(tl.float32)
        if HAS_BIAS:
            x += tl.load(bias_V + cols, mask=cols < V, other=0.0).to(tl.float32)
        x = tl.where(cols < V, logit(x, False, 1.0, HAS_SOFTCAP, softcap), float("-inf"))
        new_top = tl.maximum(top, tl.max(x, 0))
        total = rescaled(total, top, new_top) + exp_sum(x, new_top, 0)
        top = new_top
    logsumexp = top + tl.log2(total) * LN2
    tl.store(loss_R + row, logsumexp - at_target + z_loss * logsumexp * logsumexp)
    factor = 1.0 + 2.0 * z_loss * logsumexp
    for start in range(0, V, BLOCK_V):
        cols = start + tl.arange(0, BLOCK_V)
        x = tl.load(logits_V + cols, mask=cols < V, other=0.0).to(tl.float32)
        if HAS_BIAS:
            x += tl.load(bias_V + cols, mask=cols < V, other=0.0).to(tl.float32)
        x = logit(x, False, 1.0, HAS_SOFTCAP, softcap)
        dx = tl.exp2((x - logsumexp) * LOG2E) * factor - tl.where(cols == target, 1.0, 0.0)
        if HAS_SOFTCAP:
            dx *= 1.0 - (x / softcap) * (x / softcap)
        tl.store(logits_V + cols, dx.to(logits_RV.dtype.element_ty), mask=cols < V)


def chunk_rows(n_rows: int, vocab: int, chunk_logits: int = CHUNK_LOGITS) -> int:
    """Rows of a chunk: all chunks about equally large, in multiples of 128."""
    chunks = max(1, -(-n_rows * vocab // chunk_logits))
    return -(-n_rows // chunks) // 128 * 128 + 128


def losses_(logits_RV: Tensor, head: Head, target_R: Tensor, z_loss: float) -> Tensor:
    """The rows' losses, float32; the logits are overwritten with the losses' gradient."""
    loss_R = torch.empty(target_R.shape, dtype=torch.float32, device=logits_RV.device)
    _loss_kernel[(logits_RV.shape[0],)](
        logits_RV=logits_RV,
        target_R=target_R,
        loss_R=loss_R,
        V=logits_RV.shape[1],
        stride=logits_RV.stride(0),
        z_loss=z_loss,
        num_warps=LOSS_WARPS,
        **logit_arguments(logits_RV, bias_V=head.bias_V, softcap=head.softcap),
        **LOSS_CONSTANTS,
    )
    return loss_R


def loss_alone(h_ND: Tensor, head: Head, target_N: Tensor, z_loss: float, weight: float) -> Tensor:
    """The loss of checked arguments without ignored rows where no gradient is needed, by the kernels of `target_logprobs`."""
    if h_ND.shape[0] == 0:
        return torch.tensor(0.0 * weight, device=h_ND.device)
    row_N = torch.arange(h_ND.shape[0], dtype=torch.int32, device=h_ND.device)
    logsumexp_N = torch.empty(h_ND.shape[0], dtype=torch.float32, device=h_ND.device)
    logprob_N, _ = target_logprobs_triton(h_ND, head, row_N, target_N, logsumexp_T=logsumexp_N)
    return ((z_loss * logsumexp_N.double().square() - logprob_N.double()).sum() * weight).float()


def specs(capability: int) -> Iterator[Spec]:
    """The kernel without and with its options, for `compiled.py`."""
    for dtype, full in (("bf16", False), ("bf16", True), ("fp32", True)):
        types = {"logits_RV": f"*{dtype}", "bias_V": f"*{dtype}", "target_R": "*i64"}
        constants = {"HAS_BIAS": full, "HAS_SOFTCAP": full, **LOSS_CONSTANTS}
        name = f"loss {dtype}" + (" bias, soft-cap" if full else "")
        yield Spec(name, _loss_kernel, types, constants, LOSS_WARPS)
