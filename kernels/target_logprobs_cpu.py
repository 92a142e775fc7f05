"""`target_logprobs` on the CPU: blocks of rows against cache-sized tiles of the vocabulary.

Cost: one GEMM of 2*N*V*D FLOPs plus about 0.4 ns a logit on two cores; memory one tile (BLOCK_N * TILE_V
floats) and two floats per row of the block and tile. See tiles.py for the method.
Dims: N rows, R rows of one block, V vocabulary, C columns of one tile, D hidden, T targets
(S: sorted by tile), K tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evalengine.kernels.tiles import (
    BLOCK_N,
    TILE_V,
    HeadTiles,
    blocks,
    logsumexp_tiles,
    soft_cap_,
    softmax_tile_,
    visits,
)

EXACT_CHUNK = 4096  # targets whose hidden states are gathered at once for the exact logit


@torch.no_grad()
def target_logprobs_cpu(
    h_ND: Tensor,
    w_VD: Tensor,
    row_T: Tensor,
    token_T: Tensor,
    bias_V: Tensor | None,
    softcap: float | None,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """(logprob_T float32, greedy_T bool) of checked arguments."""
    head = HeadTiles(w_VD, bias_V, scale, softcap)
    row_T, token_T = row_T.long(), token_T.long()
    order_S, bounds, flat_S = visits(row_T, token_T, h_ND.shape[0], head.vocab)
    row_S, token_S = row_T[order_S], token_T[order_S]
    logit_S = torch.empty(row_T.shape[0], dtype=head.dtype)
    first_S = torch.zeros(row_T.shape[0], dtype=torch.bool)
    logsumexp_N = torch.empty(h_ND.shape[0], dtype=torch.float64)
    best_tile_N = torch.empty(h_ND.shape[0], dtype=torch.int64)
    max_KR = torch.empty(head.count, min(BLOCK_N, h_ND.shape[0]), dtype=head.dtype)
    peak_KR = torch.empty_like(max_KR)
    for b, (start, end) in enumerate(blocks(h_ND.shape[0])):
        head.start(h_ND[start:end])
        max_Kr, peak_Kr = max_KR[:, : end - start], peak_KR[:, : end - start]
        for k in range(head.count):
            x_RC = head.logits(k)
            s0, s1 = bounds[b * head.count + k], bounds[b * head.count + k + 1]
            torch.amax(x_RC, 1, out=max_Kr[k])
            if s1 > s0:
                torch.index_select(x_RC.view(-1), 0, flat_S[s0:s1], out=logit_S[s0:s1])
                row_s = row_S[s0:s1] - start
                reached_s = logit_S[s0:s1] == max_Kr[k][row_s]
                first_S[s0:s1] = _first_in_tile(x_RC, row_s, token_S[s0:s1] - k * TILE_V, reached_s)
            softmax_tile_(x_RC, peak_Kr[k])
        _, logsumexp_N[start:end] = logsumexp_tiles(max_Kr, peak_Kr)
        best_tile_N[start:end] = max_Kr.argmax(0)  # the first tile on ties
    logsumexp_S = logsumexp_N[row_S]
    greedy_S = first_S & (best_tile_N[row_S] == token_S // TILE_V) & logsumexp_S.isfinite()
    if head.rounded:
        logprob_S = _exact_target(h_ND, w_VD, row_S, token_S, head, logit_S, logsumexp_S)
    else:
        logprob_S = logit_S - logsumexp_S
    if softcap is not None:  # tanh would turn an infinite hidden state into a finite logit
        logprob_S = logprob_S + (h_ND.detach() * 0).sum(1, dtype=torch.float32)[row_S]
    logprob_T = torch.empty(row_T.shape[0], dtype=torch.float32)
    greedy_T = torch.empty_like(first_S)
    logprob_T[order_S] = logprob_S.float()
    greedy_T[order_S] = greedy_S & logprob_S.isfinite()
    return logprob_T, greedy_T


def _first_in_tile(x_RC: Tensor, row_s: Tensor, col_s: Tensor, reached_s: Tensor) -> Tensor:
    """Whether each target that reaches its tile's maximum is the first column to do so."""
    candidates = reached_s.nonzero().squeeze(1)
    if candidates.numel():
        reached_s[candidates] = x_RC[row_s[candidates]].argmax(1) == col_s[candidates]
    return reached_s


def _exact_target(
    h_ND: Tensor,
    w_VD: Tensor,
    row_S: Tensor,
    token_S: Tensor,
    head: HeadTiles,
    logit_S: Tensor,
    logsumexp_S: Tensor,
) -> Tensor:
    """Log-probabilities with the target's logit in float32 instead of rounded to bfloat16, in the sum as
    well."""
    exact_S = torch.empty_like(logit_S)
    for start in range(0, row_S.shape[0], EXACT_CHUNK):
        part = slice(start, start + EXACT_CHUNK)
        exact_S[part] = (h_ND[row_S[part]].float() * w_VD[token_S[part]].float()).sum(1) * head.alpha
    if head.bias_V is not None:
        exact_S += head.bias_V[token_S]
    if head.softcap is not None:
        soft_cap_(exact_S, head.softcap)
    change_S = torch.exp(exact_S - logsumexp_S) - torch.exp(logit_S - logsumexp_S)
    return (exact_S - (logsumexp_S + change_S.log1p())).clamp(max=0.0)
