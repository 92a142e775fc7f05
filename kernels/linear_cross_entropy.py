"""The training loss of a language-model head, with gradients, without the (N, V) logits.

The gradient of the mean (or sum) of a cross-entropy with respect to the logits is known as soon as the row's
softmax is, so the forward pass already computes the gradients of h, w and the bias, a chunk of rows at a
time, and backward only multiplies them by the incoming scalar. That is three GEMMs, as many as with stored
logits, and one chunk of logits instead of all. CUDA and CPU differ in what turns a chunk's logits into its
losses and gradient, a Triton kernel or PyTorch's softmax in place, and in how many rows a chunk has.

Cost: 6*N*V*D FLOPs with gradients, 2*N*V*D without; memory one chunk of logits and the gradients.
Dims: N rows, M rows that are not ignored, R rows of one chunk, V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evalengine.kernels.cpu import transform_, wide
from evalengine.kernels.head import Head, check_head, check_indices
from evalengine.kernels.loss_chunks import Gradients, loss_in_chunks

CHUNK_LOGITS = 2**24  # of a chunk on the CPU: 64 MiB
MIN_ROWS = 128  # of a chunk: each adds to the whole gradient of w


def linear_cross_entropy(
    h_ND: Tensor,  # hidden states
    w_VD: Tensor,  # LM head, the dtype of h
    target_N: Tensor,  # right token of each row, or ignore_index; int32 or int64, on h's device or the CPU
    *,
    bias_V: Tensor | None = None,
    weight_N: Tensor | None = None,  # of each row's loss, any sign; a constant, on h's device
    ignore_index: int = -100,
    reduction: str = "mean",  # over the number of rows that are not ignored, whatever their weights; or "sum"
    z_loss: float = 0.0,  # adds z_loss * logsumexp(logits)^2 per row, reduced like the loss
    softcap: float | None = None,  # logits = softcap * tanh(logits / softcap)
) -> Tensor:
    """Scalar loss in float32 (float64 for float64 inputs), differentiable once in h, w and bias.

    The same as `cross_entropy(linear(h, w, bias), target)`; NaN for a mean over no rows, as there. Softmax
    and the gradients' sums are float32 for 16-bit inputs, whose products are rounded as PyTorch rounds them.
    The z-loss is that of PaLM (Chowdhery et al., 2022, section 5).

    Targets on the CPU are looked at: ignored rows cost nothing, and one out of range raises IndexError. Of targets on a GPU
    the host sees nothing, so that it need not wait: ignored rows take their part in the products, and one out of range makes
    the loss and the gradients NaN. In both cases ignored rows may hold anything. Raises ValueError for shapes, dtypes or options
    that do not fit.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction must be "mean" or "sum", not {reduction!r}')
    if weight_N is not None and weight_N.requires_grad:
        raise ValueError("weight_N is a constant here and must not require a gradient: detach it")
    grad = torch.is_grad_enabled()
    needs = [grad and x is not None and x.requires_grad for x in (h_ND, w_VD, bias_V)]
    mean = reduction == "mean"
    loss, *_ = linear_cross_entropy_op(
        h_ND, w_VD, target_N, bias_V, weight_N, ignore_index, mean, z_loss, softcap, needs
    )
    return loss


def _linear_cross_entropy(
    h_ND: Tensor,
    w_VD: Tensor,
    target_N: Tensor,
    bias_V: Tensor | None,
    weight_N: Tensor | None,
    ignore_index: int,
    mean: bool,
    z_loss: float,
    softcap: float | None,
    needs: Sequence[bool],
) -> Gradients:
    """An empty tensor for a gradient that is not needed."""
    head = Head(w_VD, bias_V, None, softcap)
    check_head(h_ND, head)
    if target_N.shape != h_ND.shape[:1] or target_N.device not in (h_ND.device, torch.device("cpu")):
        where = f"{target_N.device} {tuple(target_N.shape)}"
        raise ValueError(
            f"target_N must be {h_ND.shape[0]} integers on {h_ND.device} or the CPU, not {where}"
        )
    check_indices("target_N", target_N, None)
    weight_M = None
    if weight_N is not None:
        if weight_N.shape != target_N.shape or weight_N.device != h_ND.device:
            where = f"{weight_N.device} {tuple(weight_N.shape)}"
            raise ValueError(f"weight_N must be {h_ND.shape[0]} numbers on {h_ND.device}, not {where}")
        weight_M = weight_N.to(wide(h_ND.dtype)).contiguous()
    kept_N = target_N != ignore_index
    weight: float | Tensor = 1.0
    if target_N.is_cuda:
        kept_M, h_MD, target_M = None, h_ND, target_N
        if needs[1]:  # 0 times what an ignored row holds need not be 0
            h_MD = torch.where(kept_N[:, None], h_ND, 0.0)
        if mean:
            weight = 1.0 / kept_N.sum()
    else:
        kept_M = kept_N.nonzero().squeeze(1)
        target_M = target_N[kept_M]
        check_indices("target_N", target_M, w_VD.shape[0])
        if mean:
            weight = 1.0 / kept_M.numel() if kept_M.numel() else torch.nan
        kept_M = None if kept_M.numel() == target_N.numel() else to_device(kept_M, h_ND.device)
        h_MD = h_ND if kept_M is None else h_ND[kept_M]
        weight_M = weight_M if kept_M is None or weight_M is None else weight_M[kept_M]
    target_M = to_device(target_M.long().contiguous(), h_ND.device)
    if h_ND.is_cuda:
        from evalengine.kernels.linear_cross_entropy_triton import loss_and_gradients

        with torch.cuda.device_of(h_ND):  # Triton launches on the current device
            loss, dh_MD, dw_VD, dbias_V = loss_and_gradients(
                h_MD, head, target_M, ignore_index, z_loss, weight, needs, weight_M
            )
    else:
        size = max(MIN_ROWS, CHUNK_LOGITS // w_VD.shape[0])

        def losses(logits_RV: Tensor, rows: slice) -> Tensor:
            weight_R = None if weight_M is None else weight_M[rows]
            return losses_(logits_RV, head, target_M[rows], z_loss, weight_R)

        loss, dh_MD, dw_VD, dbias_V = loss_in_chunks(h_MD, head, losses, weight, needs, size)
        loss = (loss * weight).to(wide(h_ND.dtype))
    if needs[0] and kept_M is not None:
        dh_MD = torch.zeros_like(h_ND).index_copy_(0, kept_M, dh_MD)
    return loss, dh_MD, dw_VD, dbias_V


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """From the CPU without waiting for what the GPU is still to do."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and not x.is_cuda else x


def losses_(
    logits_RV: Tensor, head: Head, target_R: Tensor, z_loss: float, weight_R: Tensor | None
) -> Tensor:
    """The rows' losses, float64, on the CPU; the logits become their softmax and then their own gradient."""
    softcap, target_R1 = head.softcap, target_R[:, None]
    x_RV = transform_(logits_RV.to(wide(logits_RV.dtype)), head.bias_V, None, softcap)
    slope_RV = None if softcap is None else 1.0 - (x_RV / softcap).square_()
    logit_R, max_R = x_RV.gather(1, target_R1)[:, 0], x_RV.amax(1)
    torch.softmax(x_RV, 1, out=x_RV)
    # the largest probability of a row is 1 / sum(exp(x - max))
    logsumexp_R = max_R.double() - x_RV.amax(1).double().log_()
    if z_loss:
        x_RV.mul_((1.0 + 2.0 * z_loss * logsumexp_R).to(x_RV.dtype)[:, None])
    x_RV.scatter_add_(1, target_R1, x_RV.new_full(target_R1.shape, -1.0))
    if slope_RV is not None:
        x_RV.mul_(slope_RV)
    loss_R = logsumexp_R - logit_R + z_loss * logsumexp_R.square()
    if weight_R is not None:
        x_RV.mul_(weight_R[:, None])
        loss_R *= weight_R
    logits_RV.copy_(x_RV)  # 16-bit logits were widened, others are changed in place
    return loss_R


def _fake(h_ND: Tensor, w_VD: Tensor, target_N: Tensor, bias_V: Tensor | None, *options: Any) -> Gradients:
    loss = h_ND.new_empty((), dtype=wide(h_ND.dtype))
    like = (h_ND, w_VD, h_ND if bias_V is None else bias_V)
    dh, dw, dbias = (
        torch.empty_like(x, memory_format=torch.contiguous_format) if need else h_ND.new_empty(0)
        for x, need in zip(like, options[-1], strict=True)
    )
    return loss, dh, dw, dbias


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.needs = inputs[-1]
    ctx.set_materialize_grads(False)  # the gradients are outputs too; nobody differentiates them
    ctx.save_for_backward(*output[1:])


def _backward(ctx, grad_loss, *of_gradients):  # type: ignore[no-untyped-def]
    if any(x is not None for x in of_gradients):
        raise RuntimeError("linear_cross_entropy is differentiable once: its gradients have no gradients")
    if grad_loss is None:
        return (None,) * 10
    scaled = [
        _scaled(x, grad_loss) if need else None for x, need in zip(ctx.saved_tensors, ctx.needs, strict=True)
    ]
    return (scaled[0], scaled[1], None, scaled[2], *([None] * 6))


def _scaled(gradient: Tensor, grad_loss: Tensor) -> Tensor:
    """gradient * grad_loss, in place where no second backward can ask for the gradient again."""
    eager = type(grad_loss) is Tensor and not torch.compiler.is_compiling()
    if not eager or torch._C._autograd._get_current_graph_task_keep_graph():
        return (gradient * grad_loss).to(gradient.dtype)
    gradient = gradient.detach()
    if not gradient.is_cuda:
        return gradient if float(grad_loss) == 1.0 else gradient.mul_(float(grad_loss))
    from evalengine.kernels.linear_cross_entropy_triton import scale_

    with torch.cuda.device_of(gradient):
        scale_(gradient, grad_loss)
    return gradient


linear_cross_entropy_op = torch.library.custom_op(
    "evalengine::linear_cross_entropy", _linear_cross_entropy, mutates_args=()
)
linear_cross_entropy_op.register_fake(_fake)
linear_cross_entropy_op.register_autograd(_backward, setup_context=_setup)
