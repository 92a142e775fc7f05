"""`target_logprobs` for engines that already hold the logits: one read of each row.

Cost: N*V elements read once; on the CPU a float32 copy of one chunk of rows.
Dims: N rows, V vocabulary, T targets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evalengine.kernels.cpu import score_rows, wide
from evalengine.kernels.head import DTYPES, TargetLogprobs, check_targets, empty_logprobs


def logits_logprobs(
    logits_NV: Tensor,  # any strides along N; bfloat16, float16, float32 or float64
    row_T: Tensor,  # row of each target, int32 or int64, on the logits' device or the CPU
    token_T: Tensor,  # token of each target, likewise
) -> TargetLogprobs:
    """`log_softmax(logits)[row, token]` in float32 and `argmax(logits[row]) == token`, for T targets.

    Raises ValueError for shapes and dtypes that do not fit, IndexError for a row or token out of range; indices that are on
    CUDA already give NaN and not greedy instead (see `target_logprobs`).
    """
    op = logits_logprobs_op if torch.compiler.is_compiling() else _logits_logprobs
    return TargetLogprobs(*op(logits_NV, row_T, token_T))


def _logits_logprobs(logits_NV: Tensor, row_T: Tensor, token_T: Tensor) -> tuple[Tensor, Tensor]:
    if logits_NV.ndim != 2 or logits_NV.shape[1] == 0 or logits_NV.dtype not in DTYPES:
        raise ValueError(
            f"logits_NV must be a floating (N, V) tensor, not {logits_NV.dtype} {tuple(logits_NV.shape)}"
        )
    n_rows, vocab = logits_NV.shape
    check_targets(row_T, token_T, n_rows, vocab, logits_NV.is_cuda)
    if row_T.numel() == 0:
        return empty_logprobs(logits_NV, row_T)
    if logits_NV.device.type == "cuda":
        from evalengine.kernels.logits_logprobs_triton import logits_logprobs_triton

        with torch.cuda.device_of(logits_NV):
            return logits_logprobs_triton(logits_NV, row_T, token_T)

    def raw(rows: slice) -> list[Tensor]:
        return [logits_NV[rows].to(wide(logits_NV.dtype), copy=True)]

    logprob_1T, greedy_1T = score_rows(raw, 1, n_rows, vocab, row_T, token_T)
    return logprob_1T[0], greedy_1T[0]


logits_logprobs_op = torch.library.custom_op("evalengine::logits_logprobs", _logits_logprobs, mutates_args=())
logits_logprobs_op.register_fake(lambda logits_NV, row_T, _token_T: empty_logprobs(logits_NV, row_T))
