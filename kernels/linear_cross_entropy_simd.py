"""`linear_cross_entropy` on CPUs with AVX-512: PyTorch's matrix products, and between them one pass over each row.

The pass takes a row's maximum, sum of exponentials and loss and overwrites its logits with their gradient, in
float32 whatever the logits are stored in, while the row is in the core's cache. Where rows are no more than
the hidden size, the logits live at the end of the memory in which the gradient of w will be: that is computed
slice by slice of the vocabulary from its beginning, and overwrites logits only after their use.

Cost: 6*N*V*D FLOPs with gradients; memory the gradients and one slice of logits for N <= D, one chunk of logits more above.
Dims: N rows, R rows of one chunk, V vocabulary, C columns of one slice, D hidden.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from evalengine.kernels.head import Head
from evalengine.kernels.linear_cross_entropy import Wanted, Weights
from evalengine.kernels.simd import F32, I64, LANES, VECTOR, Code, Program, Value
from evalengine.kernels.target_logprobs_simd import target_logprobs_simd
from evalengine.kernels.tiles import blocks

SLICES, MIN_SLICE = 8, 2048
ARGUMENTS = (
    "logits", "rows", "vocab", "slice", "ticket", "target", "loss", "weights", "softcapped", "bias", "stride_bias", "need",
)  # fmt: skip


def linear_cross_entropy_chunked(
    h_ND: Tensor, head: Head, target_N: Tensor, weights: Weights, wanted: Wanted, chunk_logits: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, gradients of h, w and bias) of checked arguments without ignored rows; empty where not wanted."""
    w_VD, bias_V = head.w_VD, head.bias_V
    if not any(wanted) and not weights.z_loss and h_ND.shape[0]:
        logprob_N, _ = target_logprobs_simd(h_ND, head, torch.arange(h_ND.shape[0]), target_N)
        loss, nothing = -logprob_N.double().sum() * weights.row, h_ND.new_empty(0)
        return loss.float(), nothing, nothing.clone(), nothing.clone()
    (n_rows, dim), vocab, dtype = h_ND.shape, w_VD.shape[0], h_ND.dtype
    size = chunk_rows(n_rows, dim, vocab, dtype, wanted, chunk_logits)
    one_chunk = size >= n_rows > 0
    dh_ND = torch.empty(h_ND.shape, dtype=dtype) if wanted.h else h_ND.new_empty(0)
    dbias_V = torch.zeros(vocab if wanted.bias else 0)
    dw_VD = torch.empty(0)
    if wanted.w:
        dw_VD = torch.empty(w_VD.shape, dtype=dtype) if one_chunk else torch.zeros(w_VD.shape)
    inside = one_chunk and wanted.w and n_rows <= dim
    memory = dw_VD.view(-1)[(dim - n_rows) * vocab :] if inside else torch.empty(size * vocab, dtype=dtype)
    step = max(MIN_SLICE, -(-vocab // SLICES // 64) * 64) if inside else vocab
    loss_N = torch.empty(n_rows)
    for start, end in blocks(n_rows, size):
        h_RD = h_ND[start:end]
        slices = list(_slices(memory, end - start, vocab, step))
        for x_RC, columns in slices:
            torch.mm(h_RD, w_VD[columns].t(), out=x_RC)
        _rows(memory, step, head, target_N[start:end], loss_N[start:end], weights, any(wanted))
        if wanted.h and not inside:
            torch.mm(slices[0][0], w_VD, out=dh_ND[start:end])
        elif wanted.h:
            dh_RD = torch.zeros(end - start, dim)
            for x_RC, columns in slices:
                _add_product(dh_RD, x_RC, w_VD[columns])
            dh_ND[start:end] = dh_RD
        for x_RC, columns in slices:
            if wanted.bias:
                dbias_V[columns] += x_RC.sum(0, dtype=torch.float32)
            if wanted.w and one_chunk:
                torch.mm((x_RC.clone() if inside else x_RC).t(), h_RD, out=dw_VD[columns])
            elif wanted.w:
                _add_product(dw_VD[columns], x_RC.t(), h_RD)
    loss = (loss_N.double().sum() * weights.row).float()
    del memory
    dbias_V = dbias_V if bias_V is None else dbias_V.to(bias_V.dtype)
    return (
        loss,
        dh_ND,
        dw_VD.to(dtype) if wanted.w else h_ND.new_empty(0),
        dbias_V if wanted.bias else h_ND.new_empty(0),
    )


def chunk_rows(
    n_rows: int, dim: int, vocab: int, dtype: torch.dtype, wanted: Wanted, chunk_logits: int
) -> int:
    """Rows of a chunk. Sums of w's gradient over chunks are float32: for bfloat16, chunks of fewer than 2*D rows would
    cost more memory in those sums than they save in logits."""
    least = 2 * dim if wanted.w and dtype != torch.float32 else 128
    return max(1, min(n_rows, max(least, chunk_logits // vocab // 64 * 64)))


def _slices(memory: Tensor, rows: int, vocab: int, step: int) -> Iterator[tuple[Tensor, slice]]:
    """(logits of a slice of the vocabulary, its columns): slices of `step` columns lie one after another."""
    for first in range(0, vocab, step):
        last = min(vocab, first + step)
        yield memory[first * rows : last * rows].view(rows, last - first), slice(first, last)


def _add_product(sum_MN: Tensor, a_MK: Tensor, b_KN: Tensor) -> None:
    """sum += a @ b with a float32 sum; a part of a bfloat16 product at a time."""
    if a_MK.dtype == torch.float32:
        sum_MN.addmm_(a_MK, b_KN)
        return
    step = max(1, 2**22 // b_KN.shape[1])
    for part in (slice(at, at + step) for at in range(0, sum_MN.shape[0], step)):
        sum_MN[part] += a_MK[part] @ b_KN


def _rows(
    memory: Tensor, step: int, head: Head, target_R: Tensor, loss_R: Tensor, weights: Weights, need: bool
) -> None:
    """Each row's loss, and the gradient in place of its logits."""
    bias_V = head.bias_V
    bias = torch.zeros(LANES) if bias_V is None else F.pad(bias_V.float(), (0, LANES))
    factors = torch.tensor([*weights, head.softcap or 0.0])
    given = {
        "logits": memory.data_ptr(),
        "rows": target_R.shape[0],
        "vocab": head.w_VD.shape[0],
        "slice": step,
        "ticket": 0,
        "target": target_R.data_ptr(),
        "loss": loss_R.data_ptr(),
        "weights": factors.data_ptr(),
        "softcapped": int(head.softcap is not None),
        "bias": bias.data_ptr(),
        "stride_bias": 0 if bias_V is None else 4,
        "need": int(need),
    }
    program = _program(memory.dtype == torch.bfloat16)
    program.run("rows", [given[name] for name in ARGUMENTS], torch.get_num_threads())


@functools.cache
def _program(bf16: bool) -> Program:
    program = Program()
    row = program.function("row", 2, functools.partial(_row, bf16))
    program.function("rows", 1, functools.partial(_all_rows, row))
    return program.compile()


def _all_rows(row: object, code: Code, block: Value) -> None:
    rows = code.load(block + 8 * ARGUMENTS.index("rows"), I64)
    with code.repeat() as leave:
        r = code.ticket(block + 8 * ARGUMENTS.index("ticket"))
        leave(r > rows - 1)
        code.call(row, block, r)


class _Place(NamedTuple):
    """Where LANES logits lie, the column of the first, and how many there are (None: all)."""

    address: Value
    column: Value
    there: Value | None


def _row(bf16: bool, code: Code, block: Value, r: Value) -> None:
    """Loss and gradient of one row."""
    x = {name: code.load(block + 8 * i, I64) for i, name in enumerate(ARGUMENTS)}
    size = 2 if bf16 else 4
    weight, z_loss, softcap = (code.load(x["weights"] + 4 * i, F32) for i in range(3))
    weight_L, softcap_L = code.splat(weight), code.splat(softcap)
    spare = code.space(VECTOR)
    read, write = (code.load_bf16, code.store_bf16) if bf16 else (code.load, code.store)

    def address(column: Value) -> Value:
        k = column // x["slice"]
        width = code.least(x["slice"], x["vocab"] - k * x["slice"])
        first = k * x["slice"]
        return x["logits"] + (first * x["rows"] + r * width + (column - first)) * size

    def logits(at: Value, column: Value) -> Value:
        value = code.variable(read(at) + code.load(x["bias"] + column * x["stride_bias"]))
        with code.when(x["softcapped"].same(1)):
            value.now = code.soft_cap(value.now, softcap_L)
        return value.now

    def each(body: Callable[[_Place], None]) -> None:
        """Emits `body` for every LANES logits, and again for the last few, copied to a place of their own."""
        with code.loop(0, x["vocab"], x["slice"]) as first:
            count = code.least(x["slice"], x["vocab"] - first)
            start = address(first)
            whole = count - count % LANES
            with code.loop(0, whole, LANES) as c:
                body(_Place(start + c * size, first + c, None))
            with code.when(whole < count):
                rest = count - whole
                code.copy(start + whole * size, spare, rest, size)
                body(_Place(spare, first + whole, rest))
                code.copy(spare, start + whole * size, rest, size)

    def values(place: _Place) -> Value:
        value = logits(place.address, place.column)
        if place.there is None:
            return value
        return (code.lanes() < code.splat(code.low(place.there))).where(value, -float("inf"))

    target = code.load(x["target"] + r * 8, I64)
    at_target = address(target)
    code.copy(at_target, spare, code.integer(1), size)
    its_bias = code.load(x["bias"] + target * x["stride_bias"], F32)
    target_L = code.variable(code.splat(code.first(read(spare)) + its_bias))
    with code.when(x["softcapped"].same(1)):
        target_L.now = code.soft_cap(target_L.now, softcap_L)

    top = code.variable(code.vector(-float("inf")))

    def take_maximum(place: _Place) -> None:
        value = values(place)
        top.now = (value > top.now).where(value, top.now)

    each(take_maximum)
    top_L = code.splat(code.reduce(top.now, lambda a, b: (a > b).where(a, b)))
    shift = top_L.same(-float("inf")).where(0.0, top_L)
    total = code.variable(code.vector(0.0))

    def add_exponentials(place: _Place) -> None:
        total.now = total.now + code.exp(values(place) - shift)

    each(add_exponentials)
    in_all = code.double(code.reduce(total.now, lambda a, b: a + b))
    logsumexp = top_L.same(-float("inf")).where(top_L, code.splat(code.single(code.log(in_all))) + shift)
    loss = logsumexp - target_L.now + code.splat(z_loss) * logsumexp * logsumexp
    code.store(code.first(loss), x["loss"] + r * 4)
    factor = (code.splat(z_loss) * logsumexp * 2.0 + 1.0) * weight_L

    def gradient(value: Value) -> Value:
        return code.exp(value - logsumexp) * factor

    def slope(value: Value, of: Value) -> Value:
        """The gradient through the soft-cap."""
        result = code.variable(of)
        with code.when(x["softcapped"].same(1)):
            ratio = value / softcap_L
            result.now = of * (ratio * ratio * -1.0 + 1.0)
        return result.now

    def overwrite(place: _Place) -> None:
        value = logits(place.address, place.column)
        write(slope(value, gradient(value)), place.address)

    with code.when(x["need"].same(1)):
        each(overwrite)
        here = gradient(target_L.now) - weight_L
        write(slope(target_L.now, here), spare)
        code.copy(spare, at_target, code.integer(1), size)
