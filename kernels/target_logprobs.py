"""Log-probability of chosen tokens without the logits.

A likelihood score needs, per scored position, the log-probability of one or a few tokens and whether the
token was the argmax; never the (N, V) logits themselves. On CUDA a Triton kernel makes one pass over the head
and keeps a running maximum and sum of exponentials per vocabulary tile; elsewhere PyTorch does the same in
cache-sized tiles.

Cost: 2*N*V*D FLOPs; memory N * tiles * 2 floats instead of N*V logits.
Dims: N rows, V vocabulary, D hidden, T targets.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from evalengine.kernels.target_logprobs_cpu import target_logprobs_cpu

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class TargetLogprobs(NamedTuple):
    """What is known of each target: its log-probability (natural, float32) and whether it is its row's
    argmax."""

    logprob_T: Tensor
    greedy_T: Tensor


def target_logprobs(
    h_ND: Tensor,  # hidden states of the scored rows
    w_VD: Tensor,  # LM head, the dtype of h
    row_T: Tensor,  # row of each target, int32 or int64, on h's device or the CPU
    token_T: Tensor,  # token of each target, likewise
    *,
    bias_V: Tensor | None = None,  # added to the logits
    softcap: float | None = None,  # logits = softcap * tanh(logits / softcap), after the scale
    scale: float | None = None,  # logits = logits * scale, bias included
    vocab_size: int | None = None,  # columns from here on do not exist (a padded head)
) -> TargetLogprobs:
    """`log_softmax(logits)[row, token]` and `argmax(logits[row]) == token` (first index on ties) for T
    targets.

    Accumulates in float32 for bfloat16, float16 and float32 (float32 multiplies as float32, not TF32).
    Targets may share rows and come in any order. A row's result is bitwise the same whatever other rows and
    targets are in the call. A row with a NaN or infinite hidden state gives NaN and not greedy. Not
    differentiable: see `linear_cross_entropy`. Raises ValueError for shapes and dtypes that do not fit,
    IndexError for a row or token out of range; the range is checked where the index tensors live, so CPU
    indices spare CUDA a synchronisation.
    """
    if torch.compiler.is_compiling():
        w_VD, bias_V = crop_vocabulary(w_VD, bias_V, vocab_size)
        return TargetLogprobs(*target_logprobs_op(h_ND, w_VD, row_T, token_T, bias_V, softcap, scale))
    w_VD, bias_V = crop_vocabulary(w_VD, bias_V, vocab_size)
    return TargetLogprobs(*_target_logprobs(h_ND, w_VD, row_T, token_T, bias_V, softcap, scale))


def target_logprobs_reference(
    h_ND: Tensor,
    w_VD: Tensor,
    row_T: Tensor,
    token_T: Tensor,
    *,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    vocab_size: int | None = None,
) -> TargetLogprobs:
    """The same in plain PyTorch, in the dtype of its inputs, with all logits in memory."""
    logits_NV = F.linear(h_ND, w_VD, bias_V)[:, :vocab_size]
    if scale is not None:
        logits_NV = logits_NV * scale
    if softcap is not None:
        logits_NV = softcap * torch.tanh(logits_NV / softcap)
    row_T, token_T = row_T.long(), token_T.long()
    logprob_T = torch.log_softmax(logits_NV, -1)[row_T, token_T]
    return TargetLogprobs(logprob_T, logits_NV.argmax(-1)[row_T] == token_T)


def crop_vocabulary(
    w_VD: Tensor, bias_V: Tensor | None, vocab_size: int | None
) -> tuple[Tensor, Tensor | None]:
    """The head without the padding beyond `vocab_size`."""
    if vocab_size is None or vocab_size == w_VD.shape[0]:
        return w_VD, bias_V
    if not 0 < vocab_size <= w_VD.shape[0]:
        raise ValueError(
            f"vocab_size must be between 1 and the head's {w_VD.shape[0]} rows, not {vocab_size}"
        )
    return w_VD[:vocab_size], None if bias_V is None else bias_V[:vocab_size]


def check_targets(row_T: Tensor, token_T: Tensor, n_rows: int, vocab: int) -> None:
    """Raises unless row_T and token_T are equally long integer vectors within (n_rows, vocab)."""
    if row_T.ndim != 1 or row_T.shape != token_T.shape:
        raise ValueError(
            f"row_T and token_T must be vectors of one length, not {_shape(row_T)} and {_shape(token_T)}"
        )
    for name, index_T, bound in (("row_T", row_T, n_rows), ("token_T", token_T, vocab)):
        if index_T.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{name} must be int32 or int64, not {index_T.dtype}")
        if index_T.numel():
            low, high = (int(x) for x in torch.stack(torch.aminmax(index_T)).tolist())
            if low < 0 or high >= bound:
                raise IndexError(f"{name} must lie in [0, {bound}), but ranges from {low} to {high}")


def check_head(h_ND: Tensor, w_VD: Tensor, bias_V: Tensor | None) -> None:
    """Raises unless hidden states, head and bias fit together."""
    if h_ND.ndim != 2 or w_VD.ndim != 2 or h_ND.shape[1] != w_VD.shape[1]:
        raise ValueError(f"h_ND and w_VD must be (N, D) and (V, D), not {_shape(h_ND)} and {_shape(w_VD)}")
    if h_ND.dtype != w_VD.dtype or h_ND.dtype not in DTYPES:
        raise ValueError(f"h_ND and w_VD must share one floating dtype, not {h_ND.dtype} and {w_VD.dtype}")
    if h_ND.dtype == torch.float64 and h_ND.is_cuda:
        raise ValueError("float64 is computed on the CPU only: move h_ND and w_VD there")
    if bias_V is not None and bias_V.shape != w_VD.shape[:1]:
        raise ValueError(f"bias_V must be ({w_VD.shape[0]},), not {_shape(bias_V)}")
    if w_VD.shape[0] == 0 or w_VD.shape[1] == 0:
        raise ValueError(f"the head w_VD is empty: {_shape(w_VD)}")
    if w_VD.device != h_ND.device or (bias_V is not None and bias_V.device != h_ND.device):
        raise ValueError(f"h_ND is on {h_ND.device}: the head and its bias must be there too")


def check_logit_options(softcap: float | None, scale: float | None) -> None:
    """Raises unless softcap is positive and scale is a number other than zero."""
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be positive, not {softcap}")
    if scale is not None and (scale == 0 or scale != scale):
        raise ValueError(f"scale must be a number other than zero, not {scale}")


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)


def _target_logprobs(
    h_ND: Tensor,
    w_VD: Tensor,
    row_T: Tensor,
    token_T: Tensor,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    check_head(h_ND, w_VD, bias_V)
    check_logit_options(softcap, scale)
    check_targets(row_T, token_T, h_ND.shape[0], w_VD.shape[0])
    if row_T.numel() == 0:
        return _fake(h_ND, w_VD, row_T, token_T)
    if h_ND.device.type == "cuda":
        from evalengine.kernels.target_logprobs_triton import target_logprobs_triton

        with torch.cuda.device_of(h_ND):  # Triton launches on the current device
            return target_logprobs_triton(h_ND, w_VD, row_T, token_T, bias_V, softcap, scale)
    return target_logprobs_cpu(h_ND, w_VD, row_T, token_T, bias_V, softcap, scale)


def _fake(
    h_ND: Tensor,
    w_VD: Tensor,
    row_T: Tensor,
    token_T: Tensor,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    return (
        h_ND.new_empty(row_T.shape, dtype=torch.float32),
        h_ND.new_empty(row_T.shape, dtype=torch.bool),
    )


# What torch.compile and torch.export see; eager calls skip the operator's overhead.
target_logprobs_op = torch.library.custom_op("evalengine::target_logprobs", _target_logprobs, mutates_args=())
target_logprobs_op.register_fake(_fake)
