"""The training loss of a language-model head, with gradients, without the (N, V) logits.

The gradient of the mean (or sum) of a cross-entropy with respect to the logits is known as soon as the row's
softmax is, so the forward pass already computes the gradients of h, w and the bias, a chunk of rows at a
time, and backward only multiplies them by the incoming scalar. That is three GEMMs, as many as with stored
logits, and one chunk of logits instead of all.

Cost: 6*N*V*D FLOPs with gradients, 2*N*V*D without; memory one chunk of logits and the gradients.
Dims: N rows, V vocabulary, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evalengine.kernels.head import Head, Wanted, Weights, check_head, check_indices
from evalengine.kernels.linear_cross_entropy_cpu import linear_cross_entropy_cpu


def linear_cross_entropy(
    h_ND: Tensor,  # hidden states
    w_VD: Tensor,  # LM head, the dtype of h
    target_N: Tensor,  # right token of each row, or ignore_index; int32 or int64
    *,
    bias_V: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",  # "mean" over the rows that are not ignored, or "sum"
    z_loss: float = 0.0,  # adds z_loss * logsumexp(logits)^2 per row, reduced like the loss
    softcap: float | None = None,  # logits = softcap * tanh(logits / softcap)
) -> Tensor:
    """Scalar loss in float32 (float64 for float64 inputs), differentiable once in h, w and bias.

    The same as `cross_entropy(linear(h, w, bias), target)`; NaN for a mean over no rows, as there. Softmax
    and the gradients' sums are float32 for 16-bit inputs, whose products are rounded as PyTorch rounds them
    (without gradients CUDA does not round them). Ignored rows cost nothing. The z-loss is that of PaLM (Chowdhery et
    al., 2022, section 5). Raises ValueError for shapes, dtypes or options that do not fit, IndexError for a
    target out of range.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction must be "mean" or "sum", not {reduction!r}')
    grad = torch.is_grad_enabled()
    need_bias = grad and bias_V is not None and bias_V.requires_grad
    loss, *_ = linear_cross_entropy_op(
        h_ND,
        w_VD,
        target_N,
        bias_V,
        ignore_index,
        reduction == "mean",
        z_loss,
        softcap,
        grad and h_ND.requires_grad,
        grad and w_VD.requires_grad,
        need_bias,
    )
    return loss


def _linear_cross_entropy(
    h_ND: Tensor,
    w_VD: Tensor,
    target_N: Tensor,
    bias_V: Tensor | None,
    ignore_index: int,
    mean: bool,
    z_loss: float,
    softcap: float | None,
    need_h: bool,
    need_w: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, gradients of h, w and bias); an empty tensor for a gradient that is not needed."""
    head, wanted = Head(w_VD, bias_V, None, softcap), Wanted(need_h, need_w, need_bias)
    check_head(h_ND, head)
    if target_N.shape != h_ND.shape[:1] or target_N.device != h_ND.device:
        where = f"{target_N.device} {tuple(target_N.shape)}"
        raise ValueError(f"target_N must be {h_ND.shape[0]} integers on {h_ND.device}, not {where}")
    kept = (target_N != ignore_index).nonzero().squeeze(1)
    compact = kept.numel() < target_N.numel()
    h_MD, target_M = (h_ND[kept], target_N[kept]) if compact else (h_ND, target_N)
    check_indices("target_N", target_M, w_VD.shape[0])
    row_weight = 1.0 if not mean else 1.0 / kept.numel() if kept.numel() else torch.nan
    arguments = h_MD, head, target_M.long().contiguous(), Weights(row_weight, z_loss), wanted
    if h_ND.is_cuda:
        from evalengine.kernels.linear_cross_entropy_triton import linear_cross_entropy_triton

        with torch.cuda.device_of(h_ND):  # Triton launches on the current device
            loss, dh_MD, dw_VD, dbias_V = linear_cross_entropy_triton(*arguments)
    else:
        loss, dh_MD, dw_VD, dbias_V = linear_cross_entropy_cpu(*arguments)
    if need_h and compact:
        dh_MD = torch.zeros_like(h_ND).index_copy_(0, kept, dh_MD)
    return loss, dh_MD, dw_VD, dbias_V


def _fake(
    h_ND: Tensor, w_VD: Tensor, target_N: Tensor, bias_V: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    need_h, need_w, need_bias = rest[-3:]
    loss = h_ND.new_empty((), dtype=torch.float64 if h_ND.dtype == torch.float64 else torch.float32)
    dh = torch.empty_like(h_ND, memory_format=torch.contiguous_format) if need_h else h_ND.new_empty(0)
    dw = torch.empty_like(w_VD, memory_format=torch.contiguous_format) if need_w else h_ND.new_empty(0)
    dbias = torch.empty_like(bias_V) if need_bias and bias_V is not None else h_ND.new_empty(0)
    return loss, dh, dw, dbias


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.needs = inputs[-3:]
    ctx.set_materialize_grads(False)  # the gradients are outputs too; nobody differentiates them
    ctx.save_for_backward(*output[1:])


def _backward(ctx, grad_loss, *_unused):  # type: ignore[no-untyped-def]
    if grad_loss is None:
        return (None,) * 11
    scaled = [
        _scaled(x, grad_loss) if need else None for x, need in zip(ctx.saved_tensors, ctx.needs, strict=True)
    ]
    return (scaled[0], scaled[1], None, scaled[2], *([None] * 7))


def _scaled(gradient: Tensor, grad_loss: Tensor) -> Tensor:
    """gradient * grad_loss, without a copy in the usual case of loss.backward() on the CPU."""
    eager = type(grad_loss) is Tensor and not torch.compiler.is_compiling()
    if eager and grad_loss.device.type == "cpu" and float(grad_loss) == 1.0:
        return gradient
    return gradient * grad_loss.to(gradient.dtype)


linear_cross_entropy_op = torch.library.custom_op(
    "evalengine::linear_cross_entropy", _linear_cross_entropy, mutates_args=()
)
linear_cross_entropy_op.register_fake(_fake)
linear_cross_entropy_op.register_autograd(_backward, setup_context=_setup)
