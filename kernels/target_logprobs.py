"""Log-probability of chosen tokens without the logits.

A likelihood score needs, per scored position, the log-probability of one or a few tokens and whether the
token was the argmax; never the (N, V) logits themselves. On CUDA (Triton) and on CPUs with AVX-512 a kernel
makes one pass over the head and keeps a maximum and a sum of exponentials per row and vocabulary tile; other
CPUs take plain PyTorch, a chunk of rows at a time.

Cost: 2*N*V*D FLOPs; memory 12 bytes a row and tile, or one chunk of logits, instead of N*V logits.
Dims: N rows, V vocabulary, D hidden, T targets.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from evalengine.kernels.cpu import head_logits, score_rows
from evalengine.kernels.head import Head, TargetLogprobs, check_head, check_targets, empty_logprobs


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
    """`log_softmax(logits)[row, token]` and `argmax(logits[row]) == token` (first index on ties) of T targets.

    Accumulates in float32 for bfloat16, float16 and float32 (float32 multiplies as float32, not TF32).
    Targets may share rows and come in any order. A row's result is bitwise the same whatever other rows and
    targets are in the call; on CPUs without AVX-512, as far as the BLAS sums a row alike in products of any size
    (MKL does). A row with a NaN or infinite hidden state gives NaN and not greedy. Not differentiable: see
    `linear_cross_entropy`. Raises ValueError for shapes and dtypes that do not fit, IndexError for a row or token
    out of range. Indices that are on CUDA already cannot be looked at without waiting for the device: there a target
    out of range gives NaN and not greedy instead.
    """
    if vocab_size is not None:
        if not 0 < vocab_size <= w_VD.shape[0]:
            raise ValueError(f"vocab_size must be between 1 and the head's {w_VD.shape[0]}, not {vocab_size}")
        w_VD, bias_V = w_VD[:vocab_size], None if bias_V is None else bias_V[:vocab_size]
    op = target_logprobs_op if torch.compiler.is_compiling() else _target_logprobs
    return TargetLogprobs(*op(h_ND, w_VD, row_T, token_T, bias_V, scale, softcap))


def _target_logprobs(
    h_ND: Tensor,
    w_VD: Tensor,
    row_T: Tensor,
    token_T: Tensor,
    bias_V: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    head = Head(w_VD, bias_V, scale, softcap)
    check_head(h_ND, head)
    check_targets(row_T, token_T, h_ND.shape[0], w_VD.shape[0], h_ND.is_cuda)
    if row_T.numel() == 0:
        return empty_logprobs(h_ND, row_T)
    if h_ND.device.type == "cuda":
        from evalengine.kernels.target_logprobs_triton import target_logprobs_triton

        with torch.cuda.device_of(h_ND):  # Triton launches on the current device
            return target_logprobs_triton(h_ND, head, row_T, token_T)
    if vectorised(h_ND.dtype):
        from evalengine.kernels.target_logprobs_simd import target_logprobs_simd

        return target_logprobs_simd(h_ND, head, row_T, token_T)
    size = h_ND.shape[0], w_VD.shape[0]
    logprob_1T, greedy_1T = score_rows(lambda rows: [head_logits(h_ND[rows], head)], 1, *size, row_T, token_T)
    return logprob_1T[0], greedy_1T[0]


@functools.cache
def vectorised(dtype: torch.dtype) -> bool:
    """Whether this CPU has AVX-512 (for bfloat16 its instructions too), and llvmlite knows both."""
    import llvmlite

    known = tuple(int(x) for x in llvmlite.__version__.split(".")[:2]) >= (0, 45)
    if not known or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported())


# What torch.compile and torch.export see; eager calls skip the operator's overhead.
target_logprobs_op = torch.library.custom_op("evalengine::target_logprobs", _target_logprobs, mutates_args=())
target_logprobs_op.register_fake(lambda h_ND, _w, row_T, *_: empty_logprobs(h_ND, row_T))
