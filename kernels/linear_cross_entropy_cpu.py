"""`linear_cross_entropy` on the CPU: chunks of rows, each in cache-sized tiles of the vocabulary.

A tile's own softmax is left in place while its statistics are taken, so each exponential is computed once:
the gradient of a tile is that softmax times one factor a row. With a soft-cap the logits are kept instead.
Dims: N rows, R rows of one chunk, V vocabulary, C columns of one tile, D hidden, K tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evalengine.kernels.head import Head
from evalengine.kernels.linear_cross_entropy import Wanted, Weights
from evalengine.kernels.tiles import (
    TILE_V,
    HeadTiles,
    blocks,
    logsumexp_tiles,
    padded_rows,
    softmax_tile_,
    visits,
)

MIN_CHUNK, MAX_CHUNK = 128, 1024


class _Gradients:
    """Running sums of the gradients of h (one chunk), w and bias, in the dtype of the logits."""

    def __init__(self, tiles: HeadTiles, h_ND: Tensor, wanted: Wanted) -> None:
        self.tiles = tiles
        self.dh_ND = torch.empty(h_ND.shape, dtype=h_ND.dtype) if wanted.h else None
        self.dw_VD = torch.zeros(tiles.w_VD.shape, dtype=tiles.dtype) if wanted.w else None
        self.dbias_V = torch.zeros(tiles.vocab, dtype=tiles.dtype) if wanted.bias else None
        self._dh_RD = torch.empty(0)

    def start(self, rows: int) -> None:
        if self.dh_ND is not None:
            self._dh_RD = torch.zeros(rows, self.tiles.dim, dtype=self.tiles.dtype)

    def add(self, k: int, dx_RC: Tensor) -> None:
        """Takes the gradient of one tile of logits."""
        first, last = self.tiles.span(k)
        if self.dbias_V is not None:
            self.dbias_V[first:last] += dx_RC.sum(0)
        if self.tiles.rounded:
            dx_RC = dx_RC.to(self.tiles.w_VD.dtype)
        if self.dh_ND is not None:
            _add_product(self._dh_RD, dx_RC, self.tiles.weight(k))
        if self.dw_VD is not None:
            _add_product(self.dw_VD[first:last], dx_RC.t(), self.tiles.rows)

    def finish(self, start: int, end: int) -> None:
        if self.dh_ND is not None:
            self.dh_ND[start:end] = self._dh_RD


def linear_cross_entropy_chunked(
    h_ND: Tensor, head: Head, target_N: Tensor, weights: Weights, wanted: Wanted, chunk_logits: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, gradients of h, w and bias) of checked arguments without ignored rows; empty where not
    wanted."""
    tiles, softcap, (row_weight, z_loss) = HeadTiles(head), head.softcap, weights
    n_rows, need = h_ND.shape[0], any(wanted)
    size = min(MAX_CHUNK, max(MIN_CHUNK, chunk_logits // tiles.vocab // 64 * 64))
    gradients = _Gradients(tiles, h_ND, wanted)
    chunk = torch.empty(padded_rows(min(size, n_rows)) * tiles.vocab if need else 0, dtype=tiles.dtype)
    targets = visits(torch.arange(n_rows), target_N, n_rows, tiles.vocab, size)
    logit_N = torch.empty(n_rows, dtype=tiles.dtype)
    loss = torch.zeros((), dtype=torch.float64)
    for b, (start, end) in enumerate(blocks(n_rows, size)):
        tiles.start(h_ND[start:end])
        bounds = targets.bounds[b * tiles.count : (b + 1) * tiles.count + 1]
        max_KR = torch.empty(tiles.count, end - start, dtype=tiles.dtype)
        peak_KR = torch.empty_like(max_KR)
        for k in range(tiles.count):
            x_RC = tiles.logits(k, _tile(chunk, tiles, k) if need else None)
            part = slice(bounds[k], bounds[k + 1])
            logit_N[targets.order_S[part]] = x_RC[targets.row_S[part], targets.col_S[part]]
            torch.amax(x_RC, 1, out=max_KR[k])
            softmax_tile_(x_RC.clone() if need and softcap is not None else x_RC, max_KR[k], peak_KR[k])
        logsumexp_R = logsumexp_tiles(max_KR, peak_KR)
        loss += (logsumexp_R - logit_N[start:end]).sum() + z_loss * logsumexp_R.square().sum()
        if not need:
            continue
        row_factor_R = row_weight * (1.0 + 2.0 * z_loss * logsumexp_R)
        factor_KR = ((max_KR - logsumexp_R).exp_() / peak_KR * row_factor_R).to(tiles.dtype)
        gradients.start(end - start)
        for k in range(tiles.count):
            width = tiles.span(k)[1] - tiles.span(k)[0]
            x_RC = _tile(chunk, tiles, k)[: (end - start) * width].view(end - start, width)
            part = slice(bounds[k], bounds[k + 1])
            at_target = targets.row_S[part], targets.col_S[part]
            if softcap is None:
                x_RC.mul_(factor_KR[k][:, None])[at_target] -= row_weight
            else:
                slope_RC = 1.0 - (x_RC / softcap).square_()
                x_RC.sub_(logsumexp_R[:, None].to(tiles.dtype)).exp_().mul_(
                    row_factor_R[:, None].to(tiles.dtype)
                )
                x_RC[at_target] -= row_weight
                x_RC.mul_(slope_RC)
            gradients.add(k, x_RC)
        gradients.finish(start, end)
    results = ((gradients.dh_ND, h_ND), (gradients.dw_VD, head.w_VD), (gradients.dbias_V, head.bias_V))
    dh_ND, dw_VD, dbias_V = (
        h_ND.new_empty(0) if gradient is None or of is None else gradient.to(of.dtype)
        for gradient, of in results
    )
    return (loss * row_weight).to(tiles.dtype), dh_ND, dw_VD, dbias_V


def _tile(chunk: Tensor, tiles: HeadTiles, k: int) -> Tensor:
    """The part of the chunk's buffer that holds tile k, from its first element on: tiles lie one after
    another."""
    rows = chunk.numel() // tiles.vocab
    return chunk[k * TILE_V * rows :]


def _add_product(sum_MN: Tensor, a_MK: Tensor, b_KN: Tensor) -> None:
    """sum += a @ b, accumulated in the dtype of `sum`."""
    if a_MK.dtype == sum_MN.dtype:
        sum_MN.addmm_(a_MK, b_KN)
    else:
        sum_MN += a_MK @ b_KN
