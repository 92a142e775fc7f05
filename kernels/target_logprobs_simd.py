"""`target_logprobs` and `emulated_logprobs` on CPUs with AVX-512: logits never leave the core's cache, in float32 throughout.

A unit of work is 64 rows against a tile of the vocabulary. Rows are the lanes of vectors, and a number of the
head (a pair for bfloat16, `vdpbf16ps`) is broadcast to all of them, so that the head is read as it lies in
memory and never packed. 48 columns at a time, the logits go through a buffer in the first-level cache into a
running maximum, sum of exponentials and argmax of each lane. Threads draw units by number.

One model and three share all of this. Of three, the columns' logits go through a buffer each: base, and tuned less ref; their
sum for one beta after the other then takes the place of ref, and its statistics are those of a model.

A row's bits do not depend on its neighbours: no lane meets another, sums have a fixed order, and every lane
goes through the same instructions in whatever vector it lies.

Cost: 2*N*V*D FLOPs of each model, close to the bare GEMM's time with the statistics included, which each beta takes anew;
memory the rows once more, and 12 bytes a row, tile and beta.
Dims: N rows, P panels of LANES rows, V vocabulary, D hidden, S words of a row, K vocabulary tiles, B betas, T targets.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from evalengine.kernels.cpu import slices
from evalengine.kernels.head import Head, HeadedRows
from evalengine.kernels.simd import F32, F64, I8, I32, I64, LANES, PAIRS, VECTOR, VF, VI, Code, Program, Value

ROWS = 64  # of a unit: four vectors
TILE_V = 240  # columns of a unit; part of the result's bits
COLUMNS = 48  # logits of so many columns are in the buffer at once
STEP = 6  # columns of the innermost loop: 24 sums and 4 vectors of rows in 32 registers
SPLIT = 256  # steps of a dot product that are summed on their own: keeps the rounding of long sums down
TARGETS = 16  # a unit of targets
CHUNK_N = 1024  # rows of a launch: bounds the scratch
# Of both compiled functions, in this order; then those of each model.
SHARED = (
    "ticket", "vocab", "panels", "start", "end", "targets", "row", "token", "betas", "beta", "scratch", "logprob", "greedy",
)  # fmt: skip
MODEL = ("h", "stride_h", "w", "stride_w", "steps", "transformed", "bias", "stride_bias", "options")


class ModelTensors(NamedTuple):
    """What a program reads of a model. The tensors must outlive its runs, which get their addresses."""

    h_ND: Tensor  # rows of a whole number of words
    w_VD: Tensor  # likewise
    bias_V: Tensor  # float32; a single 0 for all columns where there is none
    options: Tensor  # scale, and the soft-cap or 0
    transformed: bool  # by any of the options

    def arguments(self, h_PSL: Tensor) -> list[int]:
        """Those of MODEL, for some rows in panels."""
        size = self.w_VD.element_size()
        given = {
            "h": h_PSL.data_ptr(),
            "stride_h": h_PSL.shape[1] * VECTOR,
            "w": self.w_VD.data_ptr(),
            "stride_w": self.w_VD.stride(0) * size,
            "steps": self.w_VD.shape[1] * size // 4,
            "transformed": int(self.transformed),
            "bias": self.bias_V.data_ptr(),
            "stride_bias": 4 if len(self.bias_V) > 1 else 0,
            "options": self.options.data_ptr(),
        }
        return [given[name] for name in MODEL]


def target_logprobs_simd(h_ND: Tensor, head: Head, row_T: Tensor, token_T: Tensor) -> tuple[Tensor, Tensor]:
    """(logprob_T float32, greedy_T bool) of checked arguments; see `target_logprobs.vectorised`."""
    models = [HeadedRows(h_ND, head)]
    logprob_1T, greedy_1T = emulated_logprobs_simd(models, (0.0,), row_T, token_T, len(head.w_VD))
    return logprob_1T[0], greedy_1T[0]


@torch.no_grad()
def emulated_logprobs_simd(
    models: Sequence[HeadedRows],  # base, tuned, ref; or a single one, whose only beta is not looked at
    betas: Sequence[float],
    row_T: Tensor,
    token_T: Tensor,
    vocab: int,
) -> tuple[Tensor, Tensor]:
    """(logprob_BT float32, greedy_BT bool) of checked arguments, models of one dtype; see `target_logprobs.vectorised`."""
    program = _program(models[0].h_ND.dtype == torch.bfloat16, len(models))
    read = [_read(rows) for rows in models]
    row_T, token_T = row_T.long().contiguous(), token_T.long().contiguous()
    n_rows, beta_B = len(models[0].h_ND), torch.tensor(betas, dtype=torch.float32)
    logprob_BT = torch.empty(len(betas), len(row_T))
    greedy_BT = torch.empty_like(logprob_BT, dtype=torch.bool)
    panels, tiles = -(-min(n_rows, CHUNK_N) // LANES), -(-vocab // TILE_V)
    scratch = torch.empty(len(betas), tiles + 1, 3, panels * LANES)  # the last tile: all of them
    tensors = {"row": row_T, "token": token_T, "beta": beta_B, "logprob": logprob_BT, "greedy": greedy_BT}
    given = {name: x.data_ptr() for name, x in (tensors | {"scratch": scratch}).items()}
    given |= {"ticket": 0, "vocab": vocab, "targets": len(row_T), "betas": len(betas)}
    for rows in slices(n_rows, CHUNK_N):
        panels_M = [_panels(model.h_ND[rows]) for model in read]
        given |= {"panels": len(panels_M[0]), "start": rows.start, "end": rows.stop}
        arguments = [given[name] for name in SHARED]
        for model, h_PSL in zip(read, panels_M, strict=True):
            arguments += model.arguments(h_PSL)
        program.run("units", arguments, torch.get_num_threads())
        program.run("finish", arguments, 1)
    return logprob_BT, greedy_BT


def _read(rows: HeadedRows) -> ModelTensors:
    h_ND, (w_VD, bias_V, scale, softcap) = rows
    if w_VD.shape[1] * w_VD.element_size() % 4:
        h_ND, w_VD = F.pad(h_ND, (0, 1)), F.pad(w_VD, (0, 1))
    return ModelTensors(
        h_ND,
        w_VD if w_VD.stride(1) == 1 else w_VD.contiguous(),
        torch.zeros(1) if bias_V is None else bias_V.float().contiguous(),
        torch.tensor([1.0 if scale is None else scale, 0.0 if softcap is None else softcap]),
        not (bias_V is None and scale is None and softcap is None),
    )


def _panels(h_RD: Tensor) -> Tensor:
    """(P, S, LANES) words: a panel holds LANES rows, a word one number or a pair of bfloat16."""
    missing = -h_RD.shape[0] % LANES
    h_RD = F.pad(h_RD, (0, 0, 0, missing)) if missing else h_RD.contiguous()
    return h_RD.view(torch.int32).unflatten(0, (-1, LANES)).transpose(1, 2).contiguous()


@functools.cache
def _program(bf16: bool, models: int) -> Program:
    return Program(
        wide=functools.partial(_products, bf16, 4, STEP),
        narrow=functools.partial(_products, bf16, 1, STEP),
        single=functools.partial(_products, bf16, 1, 1),
        transform=_transform,
        statistics=_statistics,
        logits=_logits,
        tile=functools.partial(_tile, models),
        target=functools.partial(_target, models),
        units=_units,
        finish=_finish,
    )


def _tiles(vocab: Value) -> Value:
    return (vocab + (TILE_V - 1)) // TILE_V


def _units(code: Code, block: Value) -> None:
    """What each thread runs: tiles and targets until there are none."""
    x = code.integers(block, SHARED)
    row_blocks = (x["panels"] * LANES + (ROWS - 1)) // ROWS
    units = row_blocks * _tiles(x["vocab"])
    with code.repeat() as leave:
        unit = code.ticket(block + 8 * SHARED.index("ticket"))
        first = (unit - units) * TARGETS
        leave(first > x["targets"] - 1)
        with code.when(unit < units):
            code.call("tile", block, unit // row_blocks, unit % row_blocks)
        with code.when(first > -1), code.loop(first, code.least(first + TARGETS, x["targets"])) as t:
            row = code.load(x["row"] + t * 8, I64)
            with code.when(row > x["start"] - 1), code.when(row < x["end"]):
                code.call("target", block, t)


def _tile(models: int, code: Code, block: Value, k: Value, n: Value) -> None:
    """Statistics of the tile k for the n-th block of rows, for every beta."""
    x = code.integers(block, SHARED)
    buffers = [code.space(COLUMNS * ROWS * 4) for _ in range(models)]
    vectors = ROWS // LANES
    width = x["panels"] * VECTOR  # bytes of a row of scratch
    panels = code.least(x["panels"] - n * vectors, vectors)
    stride = panels * VECTOR
    result = x["scratch"] + k * width * 3 + n * (vectors * VECTOR)
    scratch = _scratch(x)
    with code.loop(0, x["betas"]) as b, code.loop(0, panels) as v:
        at = result + b * scratch + v * VECTOR
        code.store(code.vector(-float("inf")), at)
        code.store(code.vector(0.0), at + width)
        code.store(code.vector(0.0).cast(VI), at + width * 2)
    end = code.least(x["vocab"], (k + 1) * TILE_V)
    with code.loop(k * TILE_V, end, COLUMNS) as column:
        count = code.least(end - column, COLUMNS)
        with (
            _each_beta(code, block, buffers, n * vectors, panels, column, count) as (b, logits),
            code.loop(0, panels) as v,
        ):
            at = result + b * scratch + v * VECTOR
            code.call("statistics", logits + v * VECTOR, stride, count, column, at, width)


def _target(models: int, code: Code, block: Value, t: Value) -> None:
    """The logit of a target, with the bits it has in its tile, to where its log-probability will be, for every beta."""
    x = code.integers(block, SHARED)
    buffers = [code.space(VECTOR) for _ in range(models)]
    row, token = code.load(x["row"] + t * 8, I64) - x["start"], code.load(x["token"] + t * 8, I64)
    one = code.integer(1)
    with _each_beta(code, block, buffers, row // LANES, one, token, one) as (b, logits):
        logit = code.load(logits + row % LANES * 4, F32)
        code.store(logit, x["logprob"] + (b * x["targets"] + t) * 4)


@contextlib.contextmanager
def _each_beta(
    code: Code,
    block: Value,
    buffers: Sequence[Value],
    panel: Value,
    panels: Value,
    column: Value,
    count: Value,
) -> Iterator[tuple[Value, Value]]:
    """Runs its body with the number of each beta and the place of its logits, those of some panels and columns.

    A single model's logits are taken as they are; of three, base + beta (tuned - ref), which is base, bit for bit, for 0.
    """
    x = code.integers(block, SHARED)
    for k, buffer in enumerate(buffers):
        model = block + 8 * (len(SHARED) + k * len(MODEL))
        code.call("logits", model, panel, panels, column, count, buffer)
    if len(buffers) == 1:
        yield code.integer(0), buffers[0]
        return
    base, shift, sums = buffers
    vectors = panels * count

    def add(a: Value, factor_L: Value, b: Value, to: Value) -> None:
        with code.loop(0, vectors) as i:
            at = i * VECTOR
            code.store(code.fma(factor_L, code.load(b + at), code.load(a + at)), to + at)

    add(shift, code.vector(-1.0), sums, shift)
    with code.loop(0, x["betas"]) as b:
        add(base, code.splat(code.load(x["beta"] + b * 4, F32)), shift, sums)
        yield b, sums


def _logits(
    code: Code, model: Value, panel: Value, panels: Value, column: Value, count: Value, buffer: Value
) -> None:
    """A model's logits of `panels` panels and `count` columns, a column's vectors side by side."""
    x = code.integers(model, MODEL)
    vectors, stride = ROWS // LANES, panels * VECTOR
    h, w = x["h"] + panel * x["stride_h"], x["w"] + column * x["stride_w"]
    whole = count - count % STEP

    def multiply(products: str, v: Value, c: Value) -> None:
        at_w, at_x = w + c * x["stride_w"], buffer + c * stride + v * VECTOR
        code.call(
            products, h + v * x["stride_h"], x["stride_h"], at_w, x["stride_w"], x["steps"], at_x, stride
        )

    full = panels.same(vectors)
    with code.when(full), code.loop(0, whole, STEP) as c:
        multiply("wide", code.integer(0), c)
    with code.loop(0, panels) as v:
        with code.loop(full.where(whole, 0), whole, STEP) as c:
            multiply("narrow", v, c)
        with code.loop(whole, count) as c:
            multiply("single", v, c)
    with code.when(x["transformed"].same(1)):
        bias = x["bias"] + column * x["stride_bias"]
        code.call("transform", buffer, panels, count, bias, x["stride_bias"], x["options"])


def _products(
    bf16: bool,
    vectors: int,
    columns: int,
    code: Code,
    h: Value,
    stride_h: Value,  # bytes from one panel to the next
    w: Value,
    stride_w: Value,  # bytes from one row of the head to the next
    steps: Value,  # words of a row
    x: Value,
    stride_x: Value,  # bytes from one column of the buffer to the next
) -> None:
    """The innermost loop: `vectors` panels of rows times `columns` rows of the head."""
    sums = [[code.variable(code.vector(0.0)) for _ in range(vectors)] for _ in range(columns)]
    with code.loop(0, steps, SPLIT) as first:
        for row in sums:
            for total in row:
                total.now = code.vector(0.0)
        with code.loop(first, code.least(first + SPLIT, steps)) as step:
            at_h, at_w = h + step * VECTOR, w + step * 4
            h_v = [code.load(at_h + stride_h * v) for v in range(vectors)]
            for c, row in enumerate(sums):
                w_c = code.splat(code.load(at_w + stride_w * c, I32, align=2)).cast(VF)
                for total, h_L in zip(row, h_v, strict=True):
                    if bf16:
                        total.now = code.intrinsic(
                            "llvm.x86.avx512bf16.dpbf16ps.512", total.now, h_L.cast(PAIRS), w_c.cast(PAIRS)
                        )
                    else:
                        total.now = code.fma(h_L, w_c, total.now)
        for c, row in enumerate(sums):
            for v, total in enumerate(row):
                at = x + stride_x * c + v * VECTOR
                before = first.same(0).where(code.vector(0.0), code.load(at))
                code.store(before + total.now, at)


def _transform(
    code: Code, x: Value, panels: Value, count: Value, bias: Value, stride_bias: Value, options: Value
) -> None:
    """scale * (x + bias) and the soft-cap, in place."""
    scale, softcap = code.load(options, F32), code.load(options + 4, F32)
    scale_L, softcap_L = code.splat(scale), code.splat(softcap)
    with code.loop(0, count) as c:
        bias_L = code.splat(code.load(bias + c * stride_bias, F32))
        with code.loop(0, panels) as v:
            at = x + (c * panels + v) * VECTOR
            logit = code.variable((code.load(at) + bias_L) * scale_L)
            with code.when(softcap > 0.0):
                logit.now = code.soft_capped(logit.now, softcap_L)
            code.store(logit.now, at)


def _statistics(
    code: Code, x: Value, stride: Value, count: Value, column: Value, result: Value, width: Value
) -> None:
    """Takes `count` vectors into the running maximum, sum of exponentials and first column of the maximum.

    These lie `width` bytes apart; `column` is the first vector's.
    """
    at_total, at_first = result + width, result + width * 2
    before = code.load(result)
    top, first = code.variable(before), code.variable(code.load(at_first, VI))
    with code.loop(0, count) as c:
        logit = code.load(x + c * stride)
        greater = logit > top.now
        top.now = greater.where(logit, top.now)
        first.now = greater.where(code.splat((column + c).cast(I32, "trunc")), first.now)
    code.store(top.now, result)
    code.store(first.now, at_first)
    shift = code.shift(top.now)
    total = code.variable(code.load(at_total) * code.exp(before - shift))
    with code.loop(0, count) as c:
        total.now = total.now + code.exp(code.load(x + c * stride) - shift)
    code.store(total.now, at_total)


def _scratch(x: dict[str, Value]) -> Value:
    """Bytes of a beta's scratch."""
    return (_tiles(x["vocab"]) + 1) * x["panels"] * (3 * VECTOR)


def _finish(code: Code, block: Value) -> None:
    """The tiles' statistics of each row, in their order, into those of all of them, and the targets' answers."""
    x = code.integers(block, SHARED)
    width, tiles = x["panels"] * VECTOR, _tiles(x["vocab"])
    with code.loop(0, x["betas"]) as b:
        scratch = x["scratch"] + b * _scratch(x)
        result = scratch + tiles * width * 3
        with code.loop(0, x["panels"]) as v:
            at = scratch + v * VECTOR
            top, first = code.variable(code.load(at)), code.variable(code.load(at + width * 2, VI))
            with code.loop(1, tiles) as k:
                tile = at + k * width * 3
                greater = code.load(tile) > top.now
                top.now = greater.where(code.load(tile), top.now)
                first.now = greater.where(code.load(tile + width * 2, VI), first.now)
            shift, total = code.shift(top.now), code.variable(code.vector(0.0))
            with code.loop(0, tiles) as k:
                tile = at + k * width * 3
                total.now = total.now + code.load(tile + width) * code.exp(code.load(tile) - shift)
            code.store(top.now, result + v * VECTOR)
            code.store(total.now, result + v * VECTOR + width)
            code.store(first.now, result + v * VECTOR + width * 2)
        with code.loop(0, x["targets"]) as t:
            row = code.load(x["row"] + t * 8, I64) - x["start"]
            with code.when(row > -1), code.when(row < x["end"] - x["start"]):
                at, number = result + row * 4, b * x["targets"] + t
                below = code.load(x["logprob"] + number * 4, F32) - code.load(at, F32)
                log_total = code.intrinsic("llvm.log.f64", code.load(at + width, F32).cast(F64, "fpext"))
                logprob = (below.cast(F64, "fpext") - log_total).cast(F32, "fptrunc")
                code.store(logprob, x["logprob"] + number * 4)
                token = code.load(x["token"] + t * 8, I64).cast(I32, "trunc")
                greedy = code.load(at + width * 2, I32).same(token) & (logprob - logprob).same(0.0)
                code.store(greedy.cast(I8, "zext"), x["greedy"] + number, align=1)
