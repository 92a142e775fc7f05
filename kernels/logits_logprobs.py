"""`target_logprobs` for engines that already hold the logits: one read of each row.

Cost: N*V elements read once (CUDA) or tile by tile (CPU); no copy of the logits in another dtype.
Dims: N rows, R rows of one block, V vocabulary, C columns of one tile, T targets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evalengine.kernels.head import (
    DTYPES,
    TargetLogprobs,
    check_logit_options,
    check_targets,
    check_vocab_size,
    empty_logprobs,
)
from evalengine.kernels.tiles import BLOCK_N, TILE_V, blocks, logsumexp_tiles, soft_cap_, softmax_tile_


def logits_logprobs(
    logits_NV: Tensor,  # any strides along N; bfloat16, float16, float32 or float64
    row_T: Tensor,  # row of each target, int32 or int64, on the logits' device or the CPU
    token_T: Tensor,  # token of each target, likewise
    *,
    softcap: float | None = None,  # logits = softcap * tanh(logits / softcap), after the scale
    scale: float | None = None,  # logits = logits * scale
    vocab_size: int | None = None,  # columns from here on do not exist
) -> TargetLogprobs:
    """`log_softmax(logits)[row, token]` in float32 and `argmax(logits[row]) == token`, for T targets.

    Raises ValueError for shapes and dtypes that do not fit, IndexError for a row or token out of range.
    """
    if vocab_size is not None:
        check_vocab_size(vocab_size, logits_NV.shape[-1])
        logits_NV = logits_NV[:, :vocab_size]
    op = logits_logprobs_op if torch.compiler.is_compiling() else _logits_logprobs
    return TargetLogprobs(*op(logits_NV, row_T, token_T, scale, softcap))


def logits_logprobs_reference(
    logits_NV: Tensor,
    row_T: Tensor,
    token_T: Tensor,
    *,
    softcap: float | None = None,
    scale: float | None = None,
    vocab_size: int | None = None,
) -> TargetLogprobs:
    """The same in plain PyTorch, in the dtype of the logits."""
    x_NV = logits_NV[:, :vocab_size]
    if scale is not None:
        x_NV = x_NV * scale
    if softcap is not None:
        x_NV = softcap * torch.tanh(x_NV / softcap)
    row_T, token_T = row_T.long(), token_T.long()
    return TargetLogprobs(torch.log_softmax(x_NV, -1)[row_T, token_T], x_NV.argmax(-1)[row_T] == token_T)


def _logits_logprobs(
    logits_NV: Tensor,
    row_T: Tensor,
    token_T: Tensor,
    scale: float | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    if logits_NV.ndim != 2 or logits_NV.shape[1] == 0 or logits_NV.dtype not in DTYPES:
        raise ValueError(
            f"logits_NV must be a floating (N, V) tensor, not {logits_NV.dtype} {tuple(logits_NV.shape)}"
        )
    check_logit_options(softcap, scale)
    check_targets(row_T, token_T, logits_NV.shape[0], logits_NV.shape[1])
    if row_T.numel() == 0:
        return empty_logprobs(logits_NV, row_T)
    if logits_NV.device.type == "cuda":
        from evalengine.kernels.logits_logprobs_triton import logits_logprobs_triton

        with torch.cuda.device_of(logits_NV):
            return logits_logprobs_triton(logits_NV, row_T, token_T, scale, softcap)
    return _logits_logprobs_cpu(logits_NV, row_T.long(), token_T.long(), scale, softcap)


@torch.no_grad()
def _logits_logprobs_cpu(
    logits_NV: Tensor, row_T: Tensor, token_T: Tensor, scale: float | None, softcap: float | None
) -> tuple[Tensor, Tensor]:
    n_rows, vocab = logits_NV.shape
    dtype = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
    tiles = -(-vocab // TILE_V)
    buffer = torch.empty(min(n_rows, BLOCK_N) * min(vocab, TILE_V), dtype=dtype)
    max_KR = torch.empty(tiles, min(n_rows, BLOCK_N), dtype=dtype)
    peak_KR = torch.empty_like(max_KR)
    max_N = torch.empty(n_rows, dtype=dtype)
    logsumexp_N = torch.empty(n_rows, dtype=torch.float64)
    for start, end in blocks(n_rows):
        rows = end - start
        for k in range(tiles):
            x_RC = logits_NV[start:end, k * TILE_V : (k + 1) * TILE_V]
            x_RC = buffer[: rows * x_RC.shape[1]].view(rows, x_RC.shape[1]).copy_(x_RC)
            _transform_(x_RC, scale, softcap)
            torch.amax(x_RC, 1, out=max_KR[k, :rows])
            softmax_tile_(x_RC, max_KR[k, :rows], peak_KR[k, :rows])
        torch.amax(max_KR[:, :rows], 0, out=max_N[start:end])
        logsumexp_N[start:end] = logsumexp_tiles(max_KR[:, :rows], peak_KR[:, :rows])
    logit_T = _transform_(logits_NV[row_T, token_T].to(dtype), scale, softcap)
    logprob_T = logit_T - logsumexp_N[row_T]
    if softcap is not None:  # tanh would make an infinite logit finite
        logprob_T = torch.where(_finite_rows(logits_NV)[row_T], logprob_T, torch.nan)
    greedy_T = (logit_T == max_N[row_T]) & logprob_T.isfinite()
    _keep_first_(greedy_T, logits_NV, row_T, token_T, scale, softcap)
    return logprob_T.float(), greedy_T


def _transform_(x: Tensor, scale: float | None, softcap: float | None) -> Tensor:
    if scale is not None:
        x.mul_(scale)
    return x if softcap is None else soft_cap_(x, softcap)


def _finite_rows(logits_NV: Tensor) -> Tensor:
    return torch.cat(
        [logits_NV[start:end].abs().amax(1).isfinite() for start, end in blocks(logits_NV.shape[0])]
    )


def _keep_first_(
    greedy_T: Tensor,
    logits_NV: Tensor,
    row_T: Tensor,
    token_T: Tensor,
    scale: float | None,
    softcap: float | None,
) -> None:
    """Clears greedy where an earlier column reaches the same maximum; looks only at candidates, a few rows at
    a time."""
    candidates = greedy_T.nonzero().squeeze(1)
    step = max(1, BLOCK_N * TILE_V // logits_NV.shape[1])
    dtype = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
    for start in range(0, candidates.shape[0], step):
        part = candidates[start : start + step]
        x_tV = _transform_(logits_NV[row_T[part]].to(dtype, copy=True), scale, softcap)
        greedy_T[part] = x_tV.argmax(1) == token_T[part]


logits_logprobs_op = torch.library.custom_op("evalengine::logits_logprobs", _logits_logprobs, mutates_args=())
logits_logprobs_op.register_fake(lambda logits_NV, row_T, *_: empty_logprobs(logits_NV, row_T))
