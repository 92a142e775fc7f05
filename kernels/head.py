"""What the calls of this package have in common: the head, and the checks before anything is launched.

Dims: N rows, V vocabulary, D hidden, T targets.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class Head(NamedTuple):
    """A language-model head: logits = softcap * tanh(scale * (h w + bias) / softcap), each option where given."""

    w_VD: Tensor
    bias_V: Tensor | None = None
    scale: float | None = None
    softcap: float | None = None


class HeadedRows(NamedTuple):
    """Hidden states of scored rows (N, D), and the head that makes logits of them."""

    h_ND: Tensor
    head: Head


class TargetLogprobs(NamedTuple):
    """Each target's log-probability (natural, float32), and whether it is its row's argmax."""

    logprob_T: Tensor
    greedy_T: Tensor


def empty_logprobs(like: Tensor, row_T: Tensor) -> tuple[Tensor, Tensor]:
    """Uninitialised fields of TargetLogprobs on `like`'s device."""
    return (like.new_empty(row_T.shape, dtype=torch.float32), like.new_empty(row_T.shape, dtype=torch.bool))


def check_head(h_ND: Tensor, head: Head) -> None:
    """Raises unless hidden states and head fit together and the head's options mean something."""
    w_VD, bias_V, scale, softcap = head
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
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be positive, not {softcap}")
    if scale is not None and (scale == 0 or scale != scale):
        raise ValueError(f"scale must be a number other than zero, not {scale}")


def check_targets(row_T: Tensor, token_T: Tensor, n_rows: int, vocab: int, cuda: bool) -> None:
    """Raises unless row_T and token_T are equally long integer vectors within (n_rows, vocab).

    Where the kernels run on CUDA, they look at the range of indices that are there: to do it here would wait for the device.
    """
    if row_T.ndim != 1 or row_T.shape != token_T.shape:
        raise ValueError(
            f"row_T and token_T must be vectors of one length, not {_shape(row_T)} and {_shape(token_T)}"
        )
    for name, index_T, bound in (("row_T", row_T, n_rows), ("token_T", token_T, vocab)):
        check_indices(name, index_T, None if cuda and index_T.is_cuda else bound)


def check_indices(name: str, index_T: Tensor, bound: int | None) -> None:
    """Raises unless the vector holds integers, and where there is a bound, unless they lie in [0, bound)."""
    if index_T.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} must be int32 or int64, not {index_T.dtype}")
    if bound is not None and index_T.numel():
        low, high = (int(x) for x in torch.aminmax(index_T))
        if low < 0 or high >= bound:
            raise IndexError(f"{name} must lie in [0, {bound}), but ranges from {low} to {high}")


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)
