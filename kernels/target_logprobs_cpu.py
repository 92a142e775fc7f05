"""`target_logprobs` on the CPU: blocks of rows against cache-sized tiles of the vocabulary.

Cost: one GEMM of 2*N*V*D FLOPs plus about 0.8 ns a logit and thread; memory one tile (BLOCK_N * TILE_V
floats) and two floats per row of the block and tile. See tiles.py for the method.
Dims: N rows, R rows of one block, V vocabulary, C columns of one tile, D hidden, T targets
(S: sorted by tile; s: those of one tile), K tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evalengine.kernels.head import Head, empty_logprobs
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
def target_logprobs_cpu(h_ND: Tensor, head: Head, row_T: Tensor, token_T: Tensor) -> tuple[Tensor, Tensor]:
    """(logprob_T float32, greedy_T bool) of checked arguments."""
    tiles = HeadTiles(head)
    row_T, token_T, n_rows = row_T.long(), token_T.long(), h_ND.shape[0]
    order_S, row_S, col_S, bounds = visits(row_T, token_T, n_rows, tiles.vocab)
    logit_S = torch.empty(row_T.shape[0], dtype=tiles.dtype)
    first_S = torch.empty(row_T.shape[0], dtype=torch.bool)
    logsumexp_N = torch.empty(n_rows, dtype=torch.float64)
    best_tile_N = torch.empty(n_rows, dtype=torch.int64)
    max_KR = torch.empty(tiles.count, min(BLOCK_N, n_rows), dtype=tiles.dtype)
    peak_KR = torch.empty_like(max_KR)
    for b, (start, end) in enumerate(blocks(n_rows)):
        tiles.start(h_ND[start:end])
        max_Kr, peak_Kr = max_KR[:, : end - start], peak_KR[:, : end - start]
        for k in range(tiles.count):
            x_RC, max_R = tiles.logits(k), max_Kr[k]
            torch.amax(x_RC, 1, out=max_R)
            s = slice(bounds[b * tiles.count + k], bounds[b * tiles.count + k + 1])
            if s.stop > s.start:
                logit_S[s], first_S[s] = _look_up(x_RC, max_R, row_S[s], col_S[s])
            softmax_tile_(x_RC, max_R, peak_Kr[k])
        logsumexp_N[start:end] = logsumexp_tiles(max_Kr, peak_Kr)
        best_tile_N[start:end] = max_Kr.argmax(0)  # the first tile on ties
    row_S, token_S = row_T[order_S], token_T[order_S]
    logsumexp_S = logsumexp_N[row_S]
    if tiles.rounded:
        logprob_S = _exact_target(h_ND, tiles, row_S, token_S, logit_S, logsumexp_S)
    else:
        logprob_S = logit_S - logsumexp_S
    if head.softcap is not None:  # tanh would turn an infinite hidden state into a finite logit
        logprob_S = logprob_S + (h_ND.detach() * 0).sum(1, dtype=torch.float32)[row_S]
    logprob_T, greedy_T = empty_logprobs(h_ND, row_T)
    logprob_T[order_S] = logprob_S.float()
    greedy_T[order_S] = first_S & (best_tile_N[row_S] == token_S // TILE_V) & logprob_S.isfinite()
    return logprob_T, greedy_T


def _look_up(x_RC: Tensor, max_R: Tensor, row_s: Tensor, col_s: Tensor) -> tuple[Tensor, Tensor]:
    """Each target's logit, and whether it is the first in its tile to reach the row's maximum there."""
    logit_s = x_RC[row_s, col_s]
    first_s = logit_s == max_R[row_s]
    candidates = first_s.nonzero().squeeze(1)
    if candidates.numel():
        first_s[candidates] = x_RC[row_s[candidates]].argmax(1) == col_s[candidates]
    return logit_s, first_s


def _exact_target(
    h_ND: Tensor, tiles: HeadTiles, row_S: Tensor, token_S: Tensor, logit_S: Tensor, logsumexp_S: Tensor
) -> Tensor:
    """Log-probabilities with the target's logit in float32 instead of rounded to bfloat16, in the sum as
    well."""
    exact_S = torch.empty_like(logit_S)
    for start in range(0, row_S.shape[0], EXACT_CHUNK):
        part = slice(start, start + EXACT_CHUNK)
        exact_S[part] = (h_ND[row_S[part]].float() * tiles.w_VD[token_S[part]].float()).sum(1) * tiles.alpha
    if tiles.bias_V is not None:
        exact_S += tiles.bias_V[token_S]
    if tiles.softcap is not None:
        soft_cap_(exact_S, tiles.softcap)
    others_S = logsumexp_S + torch.log1p(-torch.exp((logit_S - logsumexp_S).clamp_(max=0.0)))
    return exact_S - torch.logaddexp(others_S, exact_S.double())
