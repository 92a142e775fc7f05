"""Scoring on the CPU in plain PyTorch: log_softmax and argmax of a chunk of rows at a time.

16-bit inputs are widened, which is exact: products and sums are float32 on every CPU (float64 for float64).
Dims: N rows, R rows of one chunk, V vocabulary, C columns of one slice, D hidden, T targets, B answers for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from evalengine.kernels.head import Head

CHUNK_LOGITS = 2**20  # a chunk: 4 MiB
MIN_ROWS = 128  # of a chunk, each of which reads the whole head; of every product just so many
SLICE_V = 4096  # columns of the head that are widened at a time


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of logits and sums for inputs of this dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def slices(length: int, size: int) -> Iterator[slice]:
    """Consecutive slices of `size`; the last may be shorter."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def products(h_RD: Tensor, w_VD: Tensor) -> Tensor:
    """h w in the wide dtype, (R, V).

    A BLAS chooses the order of its sums by the shape of the whole product, differently on every CPU. All products are of
    MIN_ROWS rows, so that a row has the same bits alone and among others.
    """
    dtype = wide(h_RD.dtype)
    n_rows, vocab = h_RD.shape[0], w_VD.shape[0]
    h_PD = F.pad(h_RD.to(dtype), (0, 0, 0, -n_rows % MIN_ROWS))
    x_PV = h_PD.new_empty(h_PD.shape[0], vocab)
    for columns in slices(vocab, vocab if w_VD.dtype == dtype else SLICE_V):
        w_CD = w_VD[columns].to(dtype)
        for rows in slices(h_PD.shape[0], MIN_ROWS):
            torch.mm(h_PD[rows], w_CD.t(), out=x_PV[rows, columns])
    return x_PV[:n_rows]


def transform_(x_RV: Tensor, bias_V: Tensor | None, scale: float | None, softcap: float | None) -> Tensor:
    """softcap * tanh(scale * (x + bias) / softcap) in place, each option where given."""
    if bias_V is not None:
        x_RV.add_(bias_V)
    if scale is not None:
        x_RV.mul_(scale)
    return x_RV if softcap is None else x_RV.div_(softcap).tanh_().mul_(softcap)


def head_logits(h_RD: Tensor, head: Head, vocab: int | None = None) -> Tensor:
    """A head's logits of some rows, all columns or the first `vocab`, wide.

    With a soft-cap, which would leave no trace of an infinite logit, NaN throughout where the bare products are not finite.
    """
    w_VD, bias_V, scale, softcap = head
    x_RV = products(h_RD, w_VD[:vocab])
    if softcap is not None:
        x_RV[~x_RV.abs().amax(1).isfinite()] = torch.nan
    return transform_(x_RV, None if bias_V is None else bias_V[:vocab], scale, softcap)


@torch.no_grad()
def score_rows(
    logits: Callable[
        [slice], Iterable[Tensor]
    ],  # of some rows, one (R, V) after another; each is overwritten
    count: int,  # of them
    n_rows: int,
    vocab: int,
    row_T: Tensor,
    token_T: Tensor,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """(logprob (count, T) of this dtype, greedy (count, T) bool) of checked arguments on the logits' device."""
    row_T, token_T = row_T.long(), token_T.long()
    logprob_BT = torch.empty(count, len(row_T), dtype=dtype, device=row_T.device)
    greedy_BT = torch.empty_like(logprob_BT, dtype=torch.bool)
    for rows in slices(n_rows, max(1, CHUNK_LOGITS // vocab // MIN_ROWS) * MIN_ROWS):
        target_t = ((row_T >= rows.start) & (row_T < rows.stop)).nonzero().squeeze(1)
        row_t, token_t = row_T[target_t] - rows.start, token_T[target_t]
        for b, x_RV in enumerate(logits(rows)):
            greedy_BT[b, target_t] = x_RV.argmax(1)[row_t] == token_t  # the first on ties
            at_target_t = torch.log_softmax(x_RV, 1, out=x_RV)[row_t, token_t]
            logprob_BT[b, target_t] = at_target_t.to(dtype)
    return logprob_BT, greedy_BT & logprob_BT.isfinite()
