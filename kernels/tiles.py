"""Logits on the CPU, one cache-sized tile at a time.

The (N, V) logits of a language-model head stream to DRAM and back several times under
`log_softmax(F.linear(...))`. Here a block of rows meets one vocabulary tile after another in a buffer of a
few megabytes, so that the softmax statistics are taken while the tile is still in cache. `softmax` in place
costs less than half of what `exp` and `sum` cost on their own, and its largest probability is the reciprocal
of the tile's sum of exponentials. (`exp2` would be faster still, but PyTorch computes the elements at a
thread's end with another function, so that a row's bits would depend on its neighbours.)

A row's bits do not depend on its neighbours: the vocabulary tiles are fixed, the reduction over tiles has a
fixed order, and blocks of very few rows and tiles of very few columns are padded because a BLAS may pick
another order of summation for them.
Dims: N rows, R rows of one block, V vocabulary, C columns of one tile, D hidden, K tiles.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from evalengine.kernels.head import Head

BLOCK_N = 512  # rows of a block: W is read once per block
TILE_V = 2048  # columns of a tile; part of the result's bits, so never chosen by the number of rows


MIN_COLUMNS = 16  # measured: below 12, sgemm's order of summation depends on the number of rows


@functools.cache
def native_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices with its own instructions."""
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@functools.cache
def vectorised(dtype: torch.dtype) -> bool:
    """Whether the kernels on simd.py run here: AVX-512, for bfloat16 its instructions too, and not AMX, whose matrix units
    PyTorch puts to better use; and an llvmlite (it comes with Numba) that knows both."""
    import llvmlite

    known = tuple(int(x) for x in llvmlite.__version__.split(".")[:2]) >= (0, 45)
    if not known or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if dtype == torch.bfloat16:
        return bool(torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported())
    return dtype == torch.float32


def padded_rows(n_rows: int) -> int:
    """Rows given to one GEMM: a multiple of 8 a thread.

    Measured: with threads that share a GEMM at other borders, the rows beside a border are summed in another order.
    """
    step = 8 * torch.get_num_threads()
    return -(-n_rows // step) * step


def blocks(n_rows: int, size: int = BLOCK_N) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of each block of rows."""
    for start in range(0, n_rows, size):
        yield start, min(start + size, n_rows)


class Visits(NamedTuple):
    """Which targets each (block, tile) holds. S: the T targets in the order of their visits."""

    order_S: Tensor  # the targets, sorted by (block, tile)
    row_S: Tensor  # row within the block
    col_S: Tensor  # column within the tile
    bounds: list[int]  # visit v = block * K + k holds S from bounds[v] to bounds[v + 1]


def visits(row_T: Tensor, token_T: Tensor, n_rows: int, vocab: int, size: int = BLOCK_N) -> Visits:
    """Sorts the targets by the block of `size` rows and the vocabulary tile they lie in."""
    count = -(-vocab // TILE_V)
    n_visits = -(-n_rows // size) * count
    visit_S, order_S = torch.sort((row_T // size) * count + token_T // TILE_V, stable=True)
    bounds = torch.searchsorted(visit_S, torch.arange(n_visits + 1)).tolist()
    return Visits(order_S, row_T[order_S] % size, token_T[order_S] % TILE_V, bounds)


class HeadTiles:
    """The head cut into vocabulary tiles; `start(h)` takes a block of rows, `logits(k)` computes its
    k-th tile.

    Logits are `softcap * tanh(scale * (h w + bias) / softcap)` in float32 (float64 for float64 inputs).
    bfloat16 is multiplied as bfloat16 where the CPU can (`rounded` is then true: the product is rounded to
    bfloat16, as F.linear rounds it) and otherwise, like float16, in float32.
    """

    def __init__(self, head: Head) -> None:
        self.w_VD, bias_V, scale, self.softcap = head
        self.alpha = 1.0 if scale is None else float(scale)
        self.dtype = torch.float64 if self.w_VD.dtype == torch.float64 else torch.float32
        self.bias_V = None if bias_V is None else bias_V.to(self.dtype) * self.alpha
        self.vocab, self.dim = self.w_VD.shape
        self.count = -(-self.vocab // TILE_V)
        self.rounded = self.w_VD.dtype == torch.bfloat16 and native_bf16()
        self._rows = 0
        self._product = torch.empty(0, dtype=self.dtype)
        self._half = torch.empty(0, dtype=self.w_VD.dtype)
        self._w = torch.empty(0, dtype=self.dtype)
        self._h_RD = self._product

    def start(self, h_RD: Tensor) -> None:
        """Takes the rows whose tiles `logits` computes from here on."""
        self._rows = h_RD.shape[0]
        padded = padded_rows(self._rows)
        h_RD = h_RD if self.rounded else h_RD.to(self.dtype)
        if padded > self._rows:
            h_RD = torch.cat([h_RD, h_RD.new_zeros(padded - self._rows, self.dim)])
        self._h_RD = h_RD
        width = max(min(TILE_V, self.vocab), MIN_COLUMNS)
        if self._product.numel() < padded * width:
            self._product = torch.empty(padded * width, dtype=self.dtype)
            if self.rounded:
                self._half = torch.empty(padded * width, dtype=self.w_VD.dtype)

    def span(self, k: int) -> tuple[int, int]:
        """(first, last + 1) column of tile k."""
        return k * TILE_V, min((k + 1) * TILE_V, self.vocab)

    def weight(self, k: int) -> Tensor:
        """The tile's rows of the head in the dtype of the multiplication, (C, D)."""
        first, last = self.span(k)
        w_CD = self.w_VD[first:last]
        if self.rounded or w_CD.dtype == self.dtype:
            return w_CD
        if self._w.numel() < w_CD.numel():
            self._w = torch.empty(w_CD.numel(), dtype=self.dtype)
        return self._w[: w_CD.numel()].view(w_CD.shape).copy_(w_CD)

    @property
    def rows(self) -> Tensor:
        """The block's hidden states in the dtype of the multiplication, (R, D)."""
        return self._h_RD[: self._rows]

    def logits(self, k: int, out: Tensor | None = None) -> Tensor:
        """(R, C) logits of tile k, in `out` (flat, enough for `padded_rows` rows) or a buffer the next call
        reuses."""
        first, last = self.span(k)
        rows, width = self._h_RD.shape[0], last - first
        x_RC = (self._product if out is None else out)[: rows * width].view(rows, width)
        w_CD, bias_C = self.weight(k), None if self.bias_V is None else self.bias_V[first:last]
        if width >= MIN_COLUMNS:
            self._multiply(w_CD, bias_C, x_RC)
        else:
            wide = MIN_COLUMNS - width
            bias_C = None if bias_C is None else F.pad(bias_C, (0, wide))
            padded = x_RC.new_empty(rows, MIN_COLUMNS)
            self._multiply(F.pad(w_CD, (0, 0, 0, wide)), bias_C, padded)
            x_RC.copy_(padded[:, :width])
        x_RC = x_RC[: self._rows]
        return x_RC if self.softcap is None else soft_cap_(x_RC, self.softcap)

    def _multiply(self, w_CD: Tensor, bias_C: Tensor | None, x_RC: Tensor) -> None:
        """x = scale * (h w + bias)."""
        if self.rounded:
            half_RC = self._half[: x_RC.numel()].view(x_RC.shape)
            x_RC.copy_(torch.mm(self._h_RD, w_CD.t(), out=half_RC))
            if self.alpha != 1.0:
                x_RC.mul_(self.alpha)
            if bias_C is not None:
                x_RC.add_(bias_C)
        elif bias_C is not None:
            torch.addmm(bias_C, self._h_RD, w_CD.t(), alpha=self.alpha, out=x_RC)
        elif self.alpha != 1.0:
            torch.addmm(x_RC, self._h_RD, w_CD.t(), beta=0.0, alpha=self.alpha, out=x_RC)
        else:
            torch.mm(self._h_RD, w_CD.t(), out=x_RC)


def soft_cap_(x: Tensor, softcap: float) -> Tensor:
    """`softcap * tanh(x / softcap)` in place."""
    return x.div_(softcap).tanh_().mul_(softcap)


def softmax_tile_(x_RC: Tensor, max_R: Tensor, peak_R: Tensor) -> None:
    """Turns a tile of logits with these row maxima into its own softmax and takes each row's largest
    probability. Where the whole tile is masked there are no probabilities: zeros, and 1 in place of the largest."""
    torch.softmax(x_RC, 1, out=x_RC)
    torch.amax(x_RC, 1, out=peak_R)
    masked_R = max_R == -torch.inf
    if masked_R.any():
        x_RC[masked_R] = 0.0
        peak_R[masked_R] = 1.0


def logsumexp_tiles(max_KR: Tensor, peak_KR: Tensor) -> Tensor:
    """logsumexp of each row from its tiles' maxima and largest probabilities, in float64.

    A tile's sum of exp(x - max) is the reciprocal of its largest probability. Tiles are added in their order.
    """
    max_R = max_KR.amax(0).double()
    return max_R + ((max_KR.double() - max_R).exp_() / peak_KR).sum(0).log_()
