"""`linear_cross_entropy` on CUDA: three products by cuBLAS, and a Triton kernel that makes logits their own gradient.

A (V, D) gradient of w that is summed over chunks of rows is read and written once for each of them, so all rows go at
once as long as their logits are at most `LOGITS_BYTES`: w's gradient is then one product, with float32 sums that are
rounded once. Not all logits need memory of their own: those of the last columns lie where the gradient of w's first
rows will be written, which is idle until the very last product. N * V * N / (N + D) logits remain, half of them where N = D.

The kernel reads each row twice, the second time backwards, so that most of it comes from L2, and overwrites it.
Dims: N rows, V vocabulary, A of its columns whose logits have memory of their own, B = V - A others, D hidden,
L lanes of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from evalengine.kernels.cpu import wide
from evalengine.kernels.head import Head
from evalengine.kernels.loss_chunks import (
    ALIGNED,
    Gradients,
    add_product,
    aligned,
    first_columns,
    logits_memory,
    loss_in_chunks,
)
from evalengine.kernels.triton_common import LN2, LOG2E, Spec, exp_sum, logit, processors, rescaled

LOGITS_BYTES = 3 * 2**29  # at a time, where each chunk of rows would add to the (V, D) gradient of w
LOGITS_BYTES_UNSUMMED = 2**29  # where none does
LOSS_LANES = 1024  # each reads 16 bytes at a time and keeps a maximum and a sum of its own
LOSS_WARPS = 32
LOSS_PROGRAMS = 1  # a multiprocessor: as many rows wait in L2 to be read again
SCALE_BLOCK = 4096
COLUMNS = 256  # A is a multiple
ROWS = 128  # chunks of rows are multiples


@triton.jit
def _columns_logits(
    logits_V, bias_V, cols, stride, V, softcap, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr
):
    """Some columns' logits with bias and soft-cap; anything beyond V, where there is memory up to the stride."""
    x = tl.load(logits_V + cols, mask=cols < stride, other=0.0).to(tl.float32)
    if HAS_BIAS:
        x += tl.load(bias_V + cols, mask=cols < V, other=0.0).to(tl.float32)
    return logit(x, False, 1.0, HAS_SOFTCAP, softcap)


@triton.jit
def _block(start, LANES: tl.constexpr, WIDTH: tl.constexpr):
    return start + tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def _statistics(
    logits_V, bias_V, stride, V, softcap, top_L, total_L,
    HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Each lane's maximum and sum of exponentials, with those of further columns."""
    for start in range(0, V, LANES * WIDTH):
        cols = _block(start, LANES, WIDTH)
        x = _columns_logits(logits_V, bias_V, cols, stride, V, softcap, HAS_BIAS, HAS_SOFTCAP)
        x = tl.where(cols < V, x, float("-inf"))
        new_top = tl.maximum(top_L, tl.max(x, 1))
        total_L = rescaled(total_L, top_L, new_top) + exp_sum(x, new_top, 1)
        top_L = new_top
    return top_L, total_L


@triton.jit
def _gradient(
    logits_V, bias_V, stride, V, softcap, target, logsumexp, factor, weight,
    HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Overwrites logits with factor * softmax - weight * (1 at the target), from the last block to the first."""
    blocks = tl.cdiv(V, LANES * WIDTH)
    for k in range(blocks):
        cols = _block((blocks - 1 - k) * (LANES * WIDTH), LANES, WIDTH)
        x = _columns_logits(logits_V, bias_V, cols, stride, V, softcap, HAS_BIAS, HAS_SOFTCAP)
        dx = tl.exp2((x - logsumexp) * LOG2E) * factor - tl.where(cols == target, weight, 0.0)
        if HAS_SOFTCAP:
            dx *= 1.0 - (x / softcap) * (x / softcap)
        dx = tl.where(weight == 0.0, 0.0, dx)
        tl.store(logits_V + cols, dx.to(logits_V.dtype.element_ty), mask=cols < stride)


@triton.jit(do_not_specialize=["N", "A", "B", "ignore_index"])
def _loss_kernel(
    logits_NA, rest_NB, bias_V, target_N, weight, weight_N, loss_N,
    N, A, B, stride, stride_rest, ignore_index, z_loss, softcap,
    HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_REST: tl.constexpr, HAS_WEIGHTS: tl.constexpr,
    GRADIENT: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    of_kept = tl.load(weight)
    for row in range(tl.program_id(0), N, tl.num_programs(0)):
        logits_A = logits_NA + tl.cast(row, tl.int64) * stride
        rest_B = rest_NB + tl.cast(row, tl.int64) * stride_rest
        target = tl.load(target_N + row)
        kept = target != ignore_index
        there = (target >= 0) & (target < A + B)
        # before any thread overwrites it
        at_target = tl.load(logits_A + target, mask=there & (target < A), other=0.0).to(tl.float32)
        if HAS_REST:
            at_target += tl.load(rest_B + (target - A), mask=there & (target >= A), other=0.0).to(tl.float32)
        if HAS_BIAS:
            at_target += tl.load(bias_V + target, mask=there, other=0.0).to(tl.float32)
        at_target = logit(at_target, False, 1.0, HAS_SOFTCAP, softcap)

        top_L = tl.full((LANES,), float("-inf"), dtype=tl.float32)
        total_L = tl.zeros((LANES,), dtype=tl.float32)
        if HAS_REST:
            top_L, total_L = _statistics(
                rest_B, bias_V + A, stride_rest, B, softcap, top_L, total_L, HAS_BIAS, HAS_SOFTCAP, LANES, WIDTH
            )  # fmt: skip
        top_L, total_L = _statistics(
            logits_A, bias_V, stride, A, softcap, top_L, total_L, HAS_BIAS, HAS_SOFTCAP, LANES, WIDTH
        )
        top = tl.max(top_L, 0)
        logsumexp = top + tl.log2(tl.sum(rescaled(total_L, top_L, top), 0)) * LN2
        logsumexp = tl.where(there, logsumexp, float("nan"))  # of a target out of range
        column = target.to(tl.int32)
        loss = logsumexp - at_target + z_loss * logsumexp * logsumexp
        of_row = of_kept
        if HAS_WEIGHTS:
            of_row *= tl.load(weight_N + row)
            loss *= tl.load(weight_N + row)
        tl.store(loss_N + row, tl.where(kept, loss, 0.0))
        if GRADIENT:
            of_row = tl.where(kept, of_row, 0.0)
            factor = of_row * (1.0 + 2.0 * z_loss * logsumexp)
            _gradient(
                logits_A, bias_V, stride, A, softcap, column, logsumexp, factor, of_row,
                HAS_BIAS, HAS_SOFTCAP, LANES, WIDTH,
            )  # fmt: skip
            if HAS_REST:
                _gradient(
                    rest_B, bias_V + A, stride_rest, B, softcap, column - A, logsumexp, factor, of_row,
                    HAS_BIAS, HAS_SOFTCAP, LANES, WIDTH,
                )  # fmt: skip


@triton.jit
def _scale_kernel(x_N, factor, N, BLOCK: tl.constexpr):
    by = tl.load(factor).to(tl.float32)
    if by != 1.0:
        for k in range(tl.program_id(0), tl.cdiv(N, BLOCK), tl.num_programs(0)):
            start = tl.cast(k, tl.int64) * BLOCK
            left = tl.minimum(N - start, BLOCK).to(tl.int32)
            at = tl.arange(0, BLOCK)
            x = tl.load(x_N + start + at, mask=at < left, other=0.0).to(tl.float32)
            tl.store(x_N + start + at, (x * by).to(x_N.dtype.element_ty), mask=at < left)


def loss_and_gradients(
    h_ND: Tensor,
    head: Head,
    target_N: Tensor,
    ignore_index: int,
    z_loss: float,
    weight: float | Tensor,
    needs: Sequence[bool],
    weight_N: Tensor | None = None,
) -> Gradients:
    """The weighted sum of the rows' losses, and its gradients of h, w and bias: empty where not needed.

    target_N: int64 on h's device; NaN for a target out of range, loss and gradients. weight: of every row that is not ignored;
    weight_N, float32: times this. The kernel applies both, but not `weight` for float16: small probabilities would go to zero.
    """
    if not isinstance(weight, Tensor):
        weight = torch.full((), weight, dtype=torch.float32, device=h_ND.device)
    late = h_ND.dtype == torch.float16
    of_losses, of_sums = (torch.ones_like(weight), weight) if late else (weight, 1.0)

    def losses(logits_RA: Tensor, rows: slice, rest_RB: Tensor | None = None) -> Tensor:
        weight_R = None if weight_N is None else weight_N[rows]
        more = ignore_index, of_losses, any(needs), rest_RB
        return losses_(logits_RA, head, target_N[rows], z_loss, weight_R, *more)

    (n_rows, hidden), vocab = h_ND.shape, head.w_VD.shape[0]
    columns = own_columns(n_rows, vocab, hidden)
    if needs[1] and n_rows and n_rows * columns * h_ND.element_size() <= LOGITS_BYTES:
        loss, dh_ND, dw_VD, dbias_V = loss_at_once(h_ND, head, losses, of_sums, needs, columns)
    else:
        size = chunk_rows(n_rows, vocab * h_ND.element_size(), needs[1])
        loss, dh_ND, dw_VD, dbias_V = loss_in_chunks(h_ND, head, losses, of_sums, needs, size)
    return (loss * weight).to(wide(h_ND.dtype)), dh_ND, dw_VD, dbias_V


def own_columns(n_rows: int, vocab: int, hidden: int) -> int:
    """A, so that N * (V - A) logits, with the ends of their rows, fit into the gradient of w's first A rows."""
    columns = -(-(vocab + ALIGNED) * n_rows // (n_rows + hidden))
    return min(vocab, -(-columns // COLUMNS) * COLUMNS)


def chunk_rows(n_rows: int, row_bytes: int, summed: bool) -> int:
    """Rows of a chunk: all chunks about equally large. `summed`: each adds to a (V, D) gradient."""
    chunks = max(1, -(-n_rows * row_bytes // (LOGITS_BYTES if summed else LOGITS_BYTES_UNSUMMED)))
    return max(1, -(-n_rows // (chunks * ROWS))) * ROWS


def loss_at_once(
    h_ND: Tensor,
    head: Head,
    losses: Callable[[Tensor, slice, Tensor | None], Tensor],
    weight: float | Tensor,
    needs: Sequence[bool],
    columns: int,
) -> Gradients:
    """`loss_in_chunks` of a single chunk, whose columns from `columns` on lie in the gradient of w until that is computed."""
    w_VD, bias_V = head.w_VD, head.bias_V
    n_rows, vocab, dtype = h_ND.shape[0], w_VD.shape[0], wide(h_ND.dtype)
    dw_VD = torch.empty_like(w_VD, memory_format=torch.contiguous_format)
    parts = [(slice(0, columns), logits_memory(h_ND, n_rows, columns))]
    if columns < vocab:
        stride = aligned(vocab - columns)
        rest_NB = first_columns(dw_VD.view(-1)[: n_rows * stride].view(n_rows, stride), vocab - columns)
        parts.append((slice(columns, vocab), rest_NB))
    for part, dx in parts:
        torch.mm(h_ND, w_VD[part].t(), out=dx)
    rest = parts[1][1] if len(parts) > 1 else None
    loss = losses(parts[0][1], slice(None), rest).sum(dtype=torch.float64)
    dh_ND = h_ND.new_empty(h_ND.shape if needs[0] else 0, dtype=h_ND.dtype if len(parts) == 1 else dtype)
    dbias_V = h_ND.new_empty(vocab if needs[2] else 0, dtype=dtype)
    for number, (part, dx) in enumerate(parts):
        if needs[0]:
            add_product(dh_ND, dx, w_VD[part], first=number == 0)
        if needs[2]:
            torch.sum(dx, 0, dtype=dtype, out=dbias_V[part])
    for part, dx in reversed(parts):  # the last columns' logits make room for the first rows
        torch.mm(dx.t(), h_ND, out=dw_VD[part])
    for gradient in (dh_ND, dw_VD, dbias_V):
        if isinstance(weight, Tensor):
            gradient.mul_(weight)
    of_bias = w_VD.dtype if bias_V is None else bias_V.dtype
    return loss, dh_ND.to(h_ND.dtype), dw_VD, dbias_V.to(of_bias)


def losses_(
    logits_NA: Tensor,
    head: Head,
    target_N: Tensor,
    z_loss: float,
    weight_N: Tensor | None,
    ignore_index: int,
    weight: Tensor,
    gradient: bool,
    rest_NB: Tensor | None,
) -> Tensor:
    """The rows' losses, float32; with `gradient` the logits are overwritten with that of the weighted losses."""
    n_rows, rest = logits_NA.shape[0], logits_NA if rest_NB is None else rest_NB
    loss_N = torch.empty(n_rows, dtype=torch.float32, device=logits_NA.device)
    _loss_kernel[(min(n_rows, LOSS_PROGRAMS * processors(logits_NA.device)),)](
        logits_NA, rest, logits_NA if head.bias_V is None else head.bias_V.contiguous(), target_N,
        weight, weight if weight_N is None else weight_N, loss_N,
        n_rows, logits_NA.shape[1], 0 if rest_NB is None else rest_NB.shape[1],
        logits_NA.stride(0), rest.stride(0), ignore_index, float(z_loss), float(head.softcap or 1.0),
        HAS_BIAS=head.bias_V is not None, HAS_SOFTCAP=head.softcap is not None, HAS_REST=rest_NB is not None,
        HAS_WEIGHTS=weight_N is not None, GRADIENT=gradient, num_warps=LOSS_WARPS,
        **loss_constants(logits_NA.element_size()),
    )  # fmt: skip
    return loss_N


def loss_constants(element_size: int) -> dict[str, int]:
    """Compile-time arguments of `_loss_kernel`, but for its options."""
    return {"LANES": LOSS_LANES, "WIDTH": 16 // element_size}


def scale_(x: Tensor, factor: Tensor) -> None:
    """x *= factor in place; reads and writes nothing where the factor, which lies on the device, is 1."""
    programs = min(triton.cdiv(x.numel(), SCALE_BLOCK), 8 * processors(x.device))
    if programs:
        _scale_kernel[(programs,)](x, factor, x.numel(), BLOCK=SCALE_BLOCK)


def specs(capability: int) -> Iterator[Spec]:
    """The kernels without and with their options, for tests/kernels/compile_kernels.py."""
    for dtype, full, rest, gradient, weights in (
        ("bf16", False, True, True, False),
        ("bf16", True, True, True, False),
        ("bf16", False, False, True, False),
        ("bf16", False, False, True, True),
        ("bf16", False, False, False, False),
        ("fp32", True, True, True, False),
    ):
        types = {**dict.fromkeys(("logits_NA", "rest_NB", "bias_V"), f"*{dtype}"), "target_N": "*i64"}
        types["ignore_index"] = "i32"
        flags = ("HAS_BIAS", "HAS_SOFTCAP", "HAS_REST", "HAS_WEIGHTS", "GRADIENT")
        constants = loss_constants(4 if dtype == "fp32" else 2)
        constants |= dict(zip(flags, (full, full, rest, weights, gradient), strict=True))
        given = {"bias, soft-cap": full, "in two parts": rest, "weights": weights, "alone": not gradient}
        name = f"loss {dtype}: " + ", ".join(word for word, yes in given.items() if yes)
        yield Spec(name.removesuffix(": "), _loss_kernel, types, constants, LOSS_WARPS)
    yield Spec("scale bf16", _scale_kernel, {"x_N": "*bf16"}, {"BLOCK": SCALE_BLOCK})
