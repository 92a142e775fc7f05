"""Log-probability of chosen tokens under emulated fine-tuning, for a dial of strengths at once, without the logits.

A base model's logits are shifted by what fine-tuning changed in a pair of other models of the same vocabulary:

    z = z_base + beta (z_tuned - z_ref)

normalised over the whole vocabulary at every row. A constant added to a row of one model's logits changes nothing, so logits
and log-probabilities give the same distribution. Soft-caps are not linear: each model's logits are capped, then added.

Reference: Mitchell et al. (2024), "An emulator for fine-tuning large language models using small language models"; with
beta = 1, Liu et al. (2024), "Tuning language models by proxy".

16-bit models on CUDA, and float32 or bfloat16 models on CPUs with AVX-512, take kernels that never hold logits in memory; all
else takes a chunk of rows at a time.

Cost: the products of the three heads once, and one pass of exponentials over the vocabulary for each beta.
Dims: N rows, V vocabulary, B betas, T targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evalengine.kernels.cpu import head_logits, score_rows, wide
from evalengine.kernels.head import HeadedRows, check_head, check_targets
from evalengine.kernels.target_logprobs import vectorised


class EmulatedLogprobs(NamedTuple):
    """For each beta, each target's log-probability (natural; float32, or float64 of float64 hidden states of the base), and
    whether it is its row's argmax."""

    logprob_BT: Tensor
    greedy_BT: Tensor


@torch.no_grad()
def emulated_logprobs(
    base: HeadedRows,
    tuned: HeadedRows,
    ref: HeadedRows,
    betas: Sequence[float],
    row_T: Tensor,  # row of each target, int32 or int64
    token_T: Tensor,  # token of each target, likewise
    *,
    vocab_size: int | None = None,  # columns from here on do not exist; default: those that all heads have
) -> EmulatedLogprobs:
    """`log_softmax(z)[row, token]` and `argmax(z[row]) == token` (first index on ties) of T targets at each of B betas.

    Row n of the three models is the same token of the same text. Accumulates in float32 (float64 for float64), however large
    beta. A row with NaN or infinite hidden states in any of the models gives NaN and not greedy, for beta 0 too. Other rows
    have for beta 0 the bits of the base's `target_logprobs` on CPUs (float64 is not rounded here). Raises ValueError for shapes
    and dtypes that do not fit, IndexError for a row or token out of range (where a kernel on CUDA is given indices that are
    there: NaN and not greedy).
    """
    models = (base, tuned, ref)
    most = min(len(rows.head.w_VD) for rows in models)
    vocab = most if vocab_size is None else vocab_size
    if not 0 < vocab <= most:
        raise ValueError(f"vocab_size must be between 1 and the heads' {most}, not {vocab_size}")
    for rows in models:
        check_head(*rows)
        if rows.h_ND.device != base.h_ND.device:
            raise ValueError(
                f"base is on {base.h_ND.device}, another model on {rows.h_ND.device}: they must be on one"
            )
        if len(rows.h_ND) != len(base.h_ND):
            raise ValueError("base, tuned and ref must have the same rows")
    n_rows = len(base.h_ND)
    dtypes = {rows.h_ND.dtype for rows in models}
    fused = base.h_ND.is_cuda and dtypes <= {torch.bfloat16, torch.float16}
    check_targets(row_T, token_T, n_rows, vocab, fused)
    asked = n_rows and row_T.numel() and betas
    if asked and fused:
        from evalengine.kernels.emulated_logprobs_triton import emulated_logprobs_triton

        with torch.cuda.device_of(base.h_ND):  # Triton launches on the current device
            return EmulatedLogprobs(*emulated_logprobs_triton(models, betas, row_T, token_T, vocab))
    if asked and base.h_ND.is_cpu and len(dtypes) == 1 and vectorised(base.h_ND.dtype):
        from evalengine.kernels.target_logprobs_simd import emulated_logprobs_simd

        return EmulatedLogprobs(*emulated_logprobs_simd(models, betas, row_T, token_T, vocab))
    row_T, token_T = (index_T.to(base.h_ND.device) for index_T in (row_T, token_T))

    def logits(chunk: slice) -> Iterator[Tensor]:
        base_RV, tuned_RV, ref_RV = (head_logits(rows.h_ND[chunk], rows.head, vocab) for rows in models)
        shift_RV, z_RV = tuned_RV.sub_(ref_RV), ref_RV  # fresh memory would cost as much as the sums
        for beta in betas:
            yield torch.add(base_RV, shift_RV, alpha=beta, out=z_RV)

    dtype = wide(base.h_ND.dtype)
    return EmulatedLogprobs(*score_rows(logits, len(betas), n_rows, vocab, row_T, token_T, dtype))
