"""`linear_cross_entropy` on CUDA: chunks of rows; a Triton kernel turns a chunk's logits into its losses and
gradient.

cuBLAS multiplies a chunk of rows with the head, `_loss_kernel` reads each row twice (the second time from L2)
and overwrites its logits with their gradient, and two more GEMMs carry that to h and w. Without gradients no
logits are stored at all: the loss comes from `target_logprobs`' own kernels. A chunk is larger than on the
CPU, because the sums of w's gradient over chunks cost a pass over (V, D) each.
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

from evalengine.kernels.head import Head, Wanted, Weights
from evalengine.kernels.target_logprobs_triton import row_logsumexp, targets_of_rows
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


def linear_cross_entropy_triton(
    h_ND: Tensor,
    head: Head,
    target_N: Tensor,
    weights: Weights,
    wanted: Wanted,
    chunk_logits: int = CHUNK_LOGITS,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, gradients of h, w and bias) of checked arguments without ignored rows; empty where not wanted.

    Gradients are taken of the sum and multiplied by the row's weight at the end, so that float16 does not
    underflow.
    """
    w_VD, bias_V = head.w_VD, head.bias_V
    n_rows, vocab, device = h_ND.shape[0], w_VD.shape[0], h_ND.device
    if n_rows == 0 or not any(wanted):
        loss = _loss_alone(h_ND, head, target_N, weights.z_loss) * weights.row
        zeros = [x.new_zeros(x.shape if need else 0) for x, need in ((h_ND, wanted.h), (w_VD, wanted.w))]
        dbias = h_ND.new_empty(0) if bias_V is None or not wanted.bias else torch.zeros_like(bias_V)
        return loss.float(), zeros[0], zeros[1], dbias
    chunks = -(-n_rows * vocab // chunk_logits)
    size = min(n_rows, -(-n_rows // chunks) // 128 * 128 + 128)
    logits_RV = torch.empty(size, vocab, dtype=h_ND.dtype, device=device)
    loss_N = torch.empty(n_rows, dtype=torch.float32, device=device)
    dh_ND = torch.empty_like(h_ND) if wanted.h else h_ND.new_empty(0)
    dw_VD = torch.zeros(w_VD.shape if wanted.w else 0, dtype=torch.float32, device=device)
    dbias_V = torch.zeros(vocab if wanted.bias else 0, dtype=torch.float32, device=device)
    for start in range(0, n_rows, size):
        rows = slice(start, start + size)
        h_RD = h_ND[rows]
        dx_RV = torch.mm(h_RD, w_VD.t(), out=logits_RV[: h_RD.shape[0]])
        loss_rows_(dx_RV, head, target_N[rows], loss_N[rows], weights.z_loss)
        if wanted.h:
            dh_ND[rows] = (dx_RV @ w_VD).mul_(weights.row)
        if wanted.w:
            dw_VD += dx_RV.t() @ h_RD
        if wanted.bias:
            dbias_V += dx_RV.sum(0, dtype=torch.float32)
    loss = loss_N.double().sum() * weights.row
    dw_VD, dbias_V = dw_VD.mul_(weights.row).to(w_VD.dtype), dbias_V.mul_(weights.row)
    return loss.float(), dh_ND, dw_VD, dbias_V if bias_V is None else dbias_V.to(bias_V.dtype)


def loss_rows_(logits_RV: Tensor, head: Head, target_R: Tensor, loss_R: Tensor, z_loss: float) -> None:
    """Writes each row's loss and overwrites its logits with the loss's gradient."""
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


def _loss_alone(h_ND: Tensor, head: Head, target_N: Tensor, z_loss: float) -> Tensor:
    """The sum of the rows' losses, float64."""
    if h_ND.shape[0] == 0:
        return torch.zeros((), dtype=torch.float64, device=h_ND.device)
    logsumexp_N, argmax_N = row_logsumexp(h_ND, head)
    row_N = torch.arange(h_ND.shape[0], dtype=torch.int32, device=h_ND.device)
    logprob_N, _ = targets_of_rows(h_ND, head, row_N, target_N, logsumexp_N, argmax_N)
    return (z_loss * logsumexp_N.double().square() - logprob_N.double()).sum()


def specs(capability: int) -> Iterator[Spec]:
    """The kernel without and with its options, for `compiled.py`."""
    for dtype, full in (("bf16", False), ("bf16", True), ("fp32", True)):
        types = {"logits_RV": f"*{dtype}", "bias_V": f"*{dtype}", "target_R": "*i64"}
        constants = {"HAS_BIAS": full, "HAS_SOFTCAP": full, **LOSS_CONSTANTS}
        name = f"loss {dtype}" + (" bias, soft-cap" if full else "")
        yield Spec(name, _loss_kernel, types, constants, LOSS_WARPS)
