"""`linear_cross_entropy` on the CPU in plain PyTorch: a chunk of rows at a time, gradients included.

A chunk's logits become its softmax and then their own gradient in place.
Dims: N rows, R rows of one chunk, V vocabulary, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evalengine.kernels.cpu import slices, transform_, wide
from evalengine.kernels.head import Head, Wanted, Weights

CHUNK_LOGITS = 2**24  # a chunk: 64 MiB
MIN_ROWS = 128  # of a chunk: each adds to the whole gradient of w


def linear_cross_entropy_cpu(
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
    w_VD, bias_V, _, softcap = head
    (n_rows, _), vocab, dtype = h_ND.shape, w_VD.shape[0], wide(h_ND.dtype)
    dh_ND = torch.empty(h_ND.shape if wanted.h else 0, dtype=h_ND.dtype)
    dw_VD = torch.zeros(w_VD.shape if wanted.w else 0, dtype=dtype)
    dbias_V = torch.zeros(vocab if wanted.bias else 0, dtype=dtype)
    loss = torch.zeros((), dtype=torch.float64)
    for rows in slices(n_rows, max(MIN_ROWS, chunk_logits // vocab)):
        h_RD, target_R1 = h_ND[rows], target_N[rows, None]
        x_RV = transform_((h_RD @ w_VD.t()).to(dtype), bias_V, None, softcap)
        slope_RV = None if softcap is None else 1.0 - (x_RV / softcap).square_()
        logit_R, max_R = x_RV.gather(1, target_R1)[:, 0], x_RV.amax(1)
        torch.softmax(x_RV, 1, out=x_RV)
        # the largest probability of a row is 1 / sum(exp(x - max))
        logsumexp_R = max_R.double() - x_RV.amax(1).double().log_()
        loss += (logsumexp_R - logit_R + weights.z_loss * logsumexp_R.square()).sum()
        if not any(wanted):
            continue
        if weights.z_loss:
            x_RV.mul_((1.0 + 2.0 * weights.z_loss * logsumexp_R).to(dtype)[:, None])
        x_RV.scatter_add_(1, target_R1, x_RV.new_full(target_R1.shape, -1.0))
        if slope_RV is not None:
            x_RV.mul_(slope_RV)
        if wanted.bias:
            dbias_V += x_RV.sum(0)
        dx_RV = x_RV.to(h_ND.dtype)
        if wanted.h:
            torch.mm(dx_RV, w_VD, out=dh_ND[rows])
        if wanted.w and dtype == h_ND.dtype:
            dw_VD.addmm_(dx_RV.t(), h_RD)
        elif wanted.w:
            dw_VD += dx_RV.t() @ h_RD
    if n_rows and weights.row != 1.0:
        for gradient in (dh_ND, dw_VD, dbias_V):
            gradient.mul_(weights.row)
    dbias_V = dbias_V if bias_V is None else dbias_V.to(bias_V.dtype)
    return (loss * weights.row).to(dtype), dh_ND, dw_VD.to(w_VD.dtype), dbias_V
