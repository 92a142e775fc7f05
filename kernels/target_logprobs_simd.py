"""`target_logprobs` on CPUs with AVX-512: logits that never leave the core's cache, in float32 throughout.

A unit of work is 64 rows against a tile of the vocabulary. Rows are the lanes of vectors, and a number of the
head (a pair for bfloat16, `vdpbf16ps`) is broadcast to all of them, so that the head is read as it lies in
memory and never packed. 48 columns at a time, the logits go through a buffer in the first-level cache into a
running maximum, sum of exponentials and argmax of each lane. Threads draw units by number.

A row's bits do not depend on its neighbours: no lane meets another, sums have a fixed order, and every lane
goes through the same instructions in whatever vector it lies.

Cost: 2*N*V*D FLOPs, close to the bare GEMM's time with the statistics included; memory the rows once more, and 12 bytes
a row and tile.
Dims: N rows, P panels of LANES rows, V vocabulary, D hidden, S words of a row, T targets.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from evalengine.kernels.cpu import slices
from evalengine.kernels.head import Head, empty_logprobs
from evalengine.kernels.simd import F32, I16, I32, I64, LANES, PAIRS, VECTOR, VF, VI, Code, Program, Value

ROWS = 64  # of a unit: four vectors
TILE_V = 240  # columns of a unit; part of the result's bits
COLUMNS = 48  # logits of so many columns are in the buffer at once
STEP = 6  # columns of the innermost loop: 24 sums and 4 vectors of rows in 32 registers
SPLIT = 256  # steps of a dot product that are summed on their own: keeps the rounding of long sums down
TARGETS = 16  # a unit of targets
CHUNK_N = 1024  # rows of a launch: bounds the scratch
ARGUMENTS = (  # of both compiled functions, in this order
    "h", "stride_h", "w", "stride_w", "dim", "vocab", "panels", "scratch", "ticket",
    "start", "end", "targets", "row", "token", "logprob", "greedy", "transformed", "bias", "stride_bias", "options",
)  # fmt: skip


@torch.no_grad()
def target_logprobs_simd(h_ND: Tensor, head: Head, row_T: Tensor, token_T: Tensor) -> tuple[Tensor, Tensor]:
    """(logprob_T float32, greedy_T bool) of checked arguments; see `target_logprobs.vectorised`."""
    w_VD, bias_V, scale, softcap = head
    w_VD = w_VD if w_VD.stride(1) == 1 else w_VD.contiguous()
    row_T, token_T = row_T.long().contiguous(), token_T.long().contiguous()
    n_rows, (vocab, dim) = h_ND.shape[0], w_VD.shape
    logprob_T, greedy_T = empty_logprobs(h_ND, row_T)
    bias = torch.zeros(1) if bias_V is None else bias_V.float().contiguous()
    options = torch.tensor([1.0 if scale is None else scale, 0.0 if softcap is None else softcap])
    panels, tiles = -(-min(n_rows, CHUNK_N) // LANES), -(-vocab // TILE_V)
    scratch = torch.empty(tiles + 1, 3, panels * LANES)  # the last tile: all of them
    given = {
        "w": w_VD.data_ptr(),
        "stride_w": w_VD.stride(0) * w_VD.element_size(),
        "dim": dim,
        "vocab": vocab,
        "scratch": scratch.data_ptr(),
        "ticket": 0,
        "targets": row_T.shape[0],
        "row": row_T.data_ptr(),
        "token": token_T.data_ptr(),
        "logprob": logprob_T.data_ptr(),
        "greedy": greedy_T.data_ptr(),
        "transformed": int(not (bias_V is None and scale is None and softcap is None)),
        "bias": bias.data_ptr(),
        "stride_bias": 0 if bias_V is None else 4,
        "options": options.data_ptr(),
    }
    program = _program(w_VD.dtype == torch.bfloat16)
    for rows in slices(n_rows, CHUNK_N):
        h_PSL = _panels(h_ND[rows])
        given |= {"h": h_PSL.data_ptr(), "stride_h": h_PSL.shape[1] * VECTOR, "panels": h_PSL.shape[0]}
        given |= {"start": rows.start, "end": rows.stop}
        arguments = [given[name] for name in ARGUMENTS]
        program.run("units", arguments, torch.get_num_threads())
        program.run("finish", arguments, 1)
    return logprob_T, greedy_T


def _panels(h_RD: Tensor) -> Tensor:
    """(P, S, LANES) words: a panel holds LANES rows, a word one number or a pair of bfloat16."""
    n_rows, dim = h_RD.shape
    pair = 4 // h_RD.element_size()
    panels, steps = -(-n_rows // LANES), -(-dim // pair)
    if not h_RD.is_contiguous() or n_rows != panels * LANES or dim != steps * pair:
        padded = h_RD.new_zeros(panels * LANES, steps * pair)
        padded[:n_rows, :dim] = h_RD
        h_RD = padded
    return h_RD.view(torch.int32).view(panels, LANES, steps).transpose(1, 2).contiguous()


@functools.cache
def _program(bf16: bool) -> Program:
    program = Program()
    wide = program.function("wide", 7, functools.partial(_products, 4, STEP, bf16))
    narrow = program.function("narrow", 7, functools.partial(_products, 1, STEP, bf16))
    single = program.function("single", 7, functools.partial(_products, 1, 1, bf16))
    transform = program.function("transform", 6, _transform)
    statistics = program.function("statistics", 6, _statistics)
    parts = (wide, narrow, single, transform, statistics)
    tile = program.function("tile", 3, functools.partial(_tile, *parts))
    target = program.function("target", 2, functools.partial(_target, single, transform))
    program.function("units", 1, functools.partial(_units, tile, target))
    program.function("finish", 1, _finish)
    return program.compile()


def _given(code: Code, block: Value) -> dict[str, Value]:
    return {name: code.load(block + 8 * i, I64) for i, name in enumerate(ARGUMENTS)}


def _tiles(vocab: Value) -> Value:
    return (vocab + (TILE_V - 1)) // TILE_V


def _units(tile: Any, target: Any, code: Code, block: Value) -> None:
    """What each thread runs: tiles and targets until there are none."""
    x = _given(code, block)
    row_blocks = (x["panels"] * LANES + (ROWS - 1)) // ROWS
    units = row_blocks * _tiles(x["vocab"])
    with code.repeat() as leave:
        unit = code.ticket(block + 8 * ARGUMENTS.index("ticket"))
        first = (unit - units) * TARGETS
        leave(first > x["targets"] - 1)
        with code.when(unit < units):
            code.call(tile, block, unit // row_blocks, unit % row_blocks)
        with code.when(first > -1), code.loop(first, code.least(first + TARGETS, x["targets"])) as t:
            row = code.load(x["row"] + t * 8, I64)
            with code.when(row > x["start"] - 1), code.when(row < x["end"]):
                code.call(target, block, t)


def _tile(
    wide: Any,
    narrow: Any,
    single: Any,
    transform: Any,
    statistics: Any,
    code: Code,
    block: Value,
    k: Value,
    b: Value,
) -> None:
    """Statistics of the tile k for the b-th block of rows."""
    x = _given(code, block)
    buffer = code.space(COLUMNS * ROWS * 4)
    vectors = ROWS // LANES
    width = x["panels"] * VECTOR  # bytes of a row of scratch
    panels = code.least(x["panels"] - b * vectors, code.integer(vectors))
    stride = panels * VECTOR
    h = x["h"] + b * vectors * x["stride_h"]
    result = x["scratch"] + k * width * 3 + b * (vectors * VECTOR)
    with code.loop(0, panels) as v:
        code.store(code.vector(-float("inf")), result + v * VECTOR)
        code.store(code.vector(0.0), result + width + v * VECTOR)
        code.store(code.vector(0.0).bits(VI), result + width * 2 + v * VECTOR)
    end = code.least(x["vocab"], (k + 1) * TILE_V)
    with code.loop(k * TILE_V, end, COLUMNS) as column:
        count = code.least(end - column, code.integer(COLUMNS))
        whole = count - count % STEP
        w = x["w"] + column * x["stride_w"]

        def multiply(function: Any, v: Value, c: Value) -> None:
            at_w, at_x = w + c * x["stride_w"], buffer + c * stride + v * VECTOR
            panel = h + v * x["stride_h"]
            code.call(function, panel, x["stride_h"], at_w, x["stride_w"], x["dim"], at_x, stride)

        full = panels.same(vectors)
        with code.when(full), code.loop(0, whole, STEP) as c:
            multiply(wide, code.integer(0), c)
        with code.loop(0, panels) as v:
            with code.loop(full.where(whole, code.integer(0)), whole, STEP) as c:
                multiply(narrow, v, c)
            with code.loop(whole, count) as c:
                multiply(single, v, c)
        with code.when(x["transformed"].same(1)):
            bias = x["bias"] + column * x["stride_bias"]
            code.call(transform, buffer, panels, count, bias, x["stride_bias"], x["options"])
        with code.loop(0, panels) as v:
            code.call(statistics, buffer + v * VECTOR, stride, count, column, result + v * VECTOR, width)


def _target(single: Any, transform: Any, code: Code, block: Value, t: Value) -> None:
    """The logit of a target, with the bits it has in its tile, to where its log-probability will be."""
    x = _given(code, block)
    buffer = code.space(VECTOR)
    row, token = code.load(x["row"] + t * 8, I64) - x["start"], code.load(x["token"] + t * 8, I64)
    h, w = x["h"] + row // LANES * x["stride_h"], x["w"] + token * x["stride_w"]
    code.call(single, h, x["stride_h"], w, x["stride_w"], x["dim"], buffer, code.integer(VECTOR))
    with code.when(x["transformed"].same(1)):
        bias, one = x["bias"] + token * x["stride_bias"], code.integer(1)
        code.call(transform, buffer, one, one, bias, x["stride_bias"], x["options"])
    code.store(code.load(buffer + row % LANES * 4, F32), x["logprob"] + t * 4)


def _products(
    vectors: int,
    columns: int,
    bf16: bool,
    code: Code,
    h: Value,
    stride_h: Value,  # bytes from one panel to the next
    w: Value,
    stride_w: Value,  # bytes from one row of the head to the next
    dim: Value,
    x: Value,
    stride_x: Value,  # bytes from one column of the buffer to the next
) -> None:
    """The innermost loop: `vectors` panels of rows times `columns` rows of the head."""
    sums = [[code.variable(code.vector(0.0)) for _ in range(vectors)] for _ in range(columns)]

    def step(d: Value, last_alone: bool = False) -> None:
        at_h, at_w = h + d * VECTOR, w + d * 4
        h_v = [code.load(at_h + stride_h * v) for v in range(vectors)]
        for c in range(columns):
            address = at_w + stride_w * c
            word = code.load(address, I16 if last_alone else I32, align=2)
            w_c = code.splat(code.widen(word) if last_alone else word).bits(VF)
            for v in range(vectors):
                if bf16:
                    dot = code.external("llvm.x86.avx512bf16.dpbf16ps.512", VF, VF, PAIRS, PAIRS)
                    sums[c][v].now = code.call(dot, sums[c][v].now, h_v[v].bits(PAIRS), w_c.bits(PAIRS))
                else:
                    sums[c][v].now = code.fma(h_v[v], w_c, sums[c][v].now)

    steps = dim // 2 if bf16 else dim
    with code.loop(0, dim, 2 * SPLIT if bf16 else SPLIT) as part:
        first = part // 2 if bf16 else part
        end = code.least(first + SPLIT, steps)
        for row in sums:
            for total in row:
                total.now = code.vector(0.0)
        with code.loop(first, end) as d:
            step(d)
        if bf16:
            with code.when((dim % 2).same(1)), code.when(end.same(steps)):
                step(steps, last_alone=True)
        for c in range(columns):
            for v in range(vectors):
                at = x + stride_x * c + v * VECTOR
                before = part.same(0).where(code.vector(0.0), code.load(at))
                code.store(before + sums[c][v].now, at)


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
            raw = code.load(at)
            logit = code.variable((raw + bias_L) * scale_L)
            with code.when(softcap > 0.0):
                # a soft-cap leaves no trace of an infinite product: raw - raw puts a NaN back
                logit.now = code.soft_cap(logit.now, softcap_L) + (raw - raw)
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
        first.now = greater.where(code.splat(code.low(column + c)), first.now)
    code.store(top.now, result)
    code.store(first.now, at_first)
    shift = _shift(top.now)
    total = code.variable(code.load(at_total) * code.exp(before - shift))
    with code.loop(0, count) as c:
        total.now = total.now + code.exp(code.load(x + c * stride) - shift)
    code.store(total.now, at_total)


def _finish(code: Code, block: Value) -> None:
    """The tiles' statistics of each row, in their order, into those of all of them, and the targets' answers."""
    x = _given(code, block)
    width, tiles = x["panels"] * VECTOR, _tiles(x["vocab"])
    result = x["scratch"] + tiles * width * 3
    with code.loop(0, x["panels"]) as v:
        at = x["scratch"] + v * VECTOR
        top, first = code.variable(code.load(at)), code.variable(code.load(at + width * 2, VI))
        with code.loop(1, tiles) as k:
            tile = at + k * width * 3
            greater = code.load(tile) > top.now
            top.now = greater.where(code.load(tile), top.now)
            first.now = greater.where(code.load(tile + width * 2, VI), first.now)
        shift, total = _shift(top.now), code.variable(code.vector(0.0))
        with code.loop(0, tiles) as k:
            tile = at + k * width * 3
            total.now = total.now + code.load(tile + width) * code.exp(code.load(tile) - shift)
        code.store(top.now, result + v * VECTOR)
        code.store(total.now, result + v * VECTOR + width)
        code.store(first.now, result + v * VECTOR + width * 2)
    with code.loop(0, x["targets"]) as t:
        row = code.load(x["row"] + t * 8, I64) - x["start"]
        with code.when(row > -1), code.when(row < x["end"] - x["start"]):
            at = result + row * 4
            below = code.load(x["logprob"] + t * 4, F32) - code.load(at, F32)
            logprob = code.single(code.double(below) - code.log(code.double(code.load(at + width, F32))))
            code.store(logprob, x["logprob"] + t * 4)
            finite, token = (logprob - logprob).same(0.0), code.low(code.load(x["token"] + t * 8, I64))
            greedy = code.load(at + width * 2, I32).same(token) & finite
            code.store(code.byte(greedy), x["greedy"] + t, align=1)


def _shift(top: Value) -> Value:
    """What is taken off before an exponential: the maximum, or nothing where a bias masks everything."""
    return top.same(-float("inf")).where(0.0, top)
