"""The training loss a chunk of rows at a time: the logits of one chunk become their own gradient, the products are summed.

Dims: N rows, R rows of one chunk, V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evalengine.kernels.cpu import slices, wide
from evalengine.kernels.head import Head

ALIGNED = 64  # elements: where rows of logits begin, so that a BLAS is as fast for any vocabulary

Gradients = tuple[Tensor, Tensor, Tensor, Tensor]  # the loss, and its gradients of h, w and bias


def loss_in_chunks(
    h_ND: Tensor,
    head: Head,
    losses: Callable[[Tensor, slice], Tensor],
    weight: float | Tensor,  # of all rows alike, still to be applied to the gradients
    needs: Sequence[bool],  # gradients of h, w and bias
    size: int,  # rows of a chunk
) -> Gradients:
    """The sum of the losses (float64, without `weight`) and its gradients, of checked arguments.

    `losses` returns the losses of some rows and overwrites their logits with the losses' gradient. `weight` is
    multiplied into sums at the end, so that float16 does not underflow.
    """
    w_VD, bias_V = head.w_VD, head.bias_V
    n_rows, vocab, dtype = h_ND.shape[0], w_VD.shape[0], wide(h_ND.dtype)
    need_h, need_w, need_bias = needs
    logits_RV = dx_RV = logits_memory(h_ND, min(size, n_rows), vocab)
    dh_ND = h_ND.new_empty(h_ND.shape if need_h else 0)
    dw_VD = h_ND.new_zeros(w_VD.shape if need_w else 0, dtype=dtype)
    dbias_V = h_ND.new_zeros(vocab if need_bias else 0, dtype=dtype)
    loss = h_ND.new_zeros((), dtype=torch.float64)
    for rows in slices(n_rows, size):
        h_RD = h_ND[rows]
        dx_RV = torch.mm(h_RD, w_VD.t(), out=logits_RV[: h_RD.shape[0]])
        loss += losses(dx_RV, rows).sum(dtype=torch.float64)
        if need_h:
            torch.mm(dx_RV, w_VD, out=dh_ND[rows])
        if need_w:
            add_product(dw_VD, dx_RV.t(), h_RD, first=False)
        if need_bias:
            dbias_V += dx_RV.sum(0, dtype=dtype)
    del logits_RV, dx_RV  # before sums are copied into another dtype
    if n_rows and not (isinstance(weight, float) and weight == 1.0):
        for gradient in (dh_ND, dw_VD, dbias_V):
            gradient.mul_(weight)
    of_bias = w_VD.dtype if bias_V is None else bias_V.dtype
    return loss, dh_ND, dw_VD.to(w_VD.dtype), dbias_V.to(of_bias)


def logits_memory(like: Tensor, n_rows: int, vocab: int) -> Tensor:
    """Uninitialised (n_rows, vocab), rows aligned."""
    return first_columns(like.new_empty(n_rows, aligned(vocab)), vocab)


def first_columns(memory_NS: Tensor, columns: int) -> Tensor:
    """The first columns of uninitialised memory, zeros behind them on the CPU: bfloat16 products there take what stands behind a
    row into account, times zero, and a NaN would stay one."""
    if not memory_NS.is_cuda:
        memory_NS[:, columns:] = 0
    return memory_NS[:, :columns]


def aligned(length: int) -> int:
    return -(-length // ALIGNED) * ALIGNED


def add_product(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """total += a b, or total = a b if it is the first; `total` may be the wide dtype of 16-bit factors.

    cuBLAS adds to what is there as it multiplies. On the CPU PyTorch has no such product: the product is rounded, the sum is not.
    """
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, beta=0 if first else 1, out=total)
    elif a.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, beta=0 if first else 1, out=total)
    else:
        total.copy_(a @ b) if first else total.add_(a @ b)
