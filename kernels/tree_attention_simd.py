"""`tree_attention` on CPUs with AVX-512: flash attention of up to 64 queries over the keys of their own path, read by index.

A unit of work is a tile of a block's queries under one head. Queries are the lanes of vectors; a number of a key or a value is
broadcast to all of them and read where it lies. KEYS keys at a time, the logits go through a buffer in the first-level cache:
first the kept prefix, then the block's ancestors, then the block's own tokens up to the tile's last. The softmax is kept as a
running maximum and sum (Dao 2023, FlashAttention-2, algorithm 1). Threads draw units by number.

A query's bits do not depend on what it does not see: no lane meets another, and a key that a lane does not see weighs exactly 0.

Cost: 2 * (d + e) FLOPs for each query, head and key of the tile's list; no memory but the answer.
Dims: H heads, G key heads, N tokens, P tokens of the kept prefix, A ancestors, B blocks, d head width, e value width.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from evalengine.kernels.simd import F32, I32, I64, LANES, VECTOR, VI, Code, Program, Value
from evalengine.kernels.token_tree import WIDEST, Tree

QUERIES = 64  # of a unit; where there are fewer, the last one fills the lanes
VECTORS, STRIDE = (
    QUERIES // LANES,
    4 * QUERIES,
)  # STRIDE: bytes from one key's logits, or one column of the answer, to the next
KEYS = 48  # whose logits are in the buffer at once
STEP_K = 6  # keys of the innermost loop of the logits: 24 sums and 4 vectors of queries in 32 registers
STEP_E = 4  # columns of values of the innermost loop of the answer
ALWAYS = 2**31 - 1
ARGUMENTS = (
    "ticket", "heads", "group", "tokens", "width", "value_width", "block", "prefix", "window",
    "query", "query_h", "query_n", "key", "key_h", "key_n", "value", "value_h", "value_n",
    "kept_key", "kept_key_h", "kept_key_n", "kept_value", "kept_value_h", "kept_value_n",
    "ancestor", "offset", "end", "position", "sink", "options", "out",
)  # fmt: skip
# A unit's working memory: the bytes of each part of it, all of them whole vectors.
PARTS = {
    "q": WIDEST * QUERIES * 4,  # a vector's columns one after another
    "logits": KEYS * QUERIES * 4,  # a key's vectors side by side
    "out": WIDEST * QUERIES * 4,  # a column's vectors side by side
    "key_at": KEYS * 8,  # addresses of the keys, and of the values
    "value_at": KEYS * 8,
    "low": KEYS * 4,  # a query at low or behind and before high sees the key
    "high": KEYS * 4,
    "key_position": KEYS * 4,
    "n": QUERIES * 4,
    "n_position": QUERIES * 4,
    "top": QUERIES * 4,
    "total": QUERIES * 4,
    "shrink": QUERIES * 4,
}


@torch.no_grad()
def tree_attention_simd(
    query_HNd: Tensor,
    key_GNd: Tensor,
    value_GNe: Tensor,
    tree: Tree,
    scale: float,
    window: int | None,
    softcap: float | None,
    sink_H: Tensor | None,
    kept: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """(N, H, e) of checked arguments whose last stride is 1; 16-bit numbers are widened, which is exact."""
    (heads, n, width), value_width = query_HNd.shape, value_GNe.shape[-1]
    q, k, v, *kept_ = (x.float() for x in (query_HNd, key_GNd, value_GNe, *(kept or ())))
    kept_k, kept_v = kept_ or (k, v)
    ancestor, offset, end, position = (x.int().contiguous() for x in tree[:4])
    sink = torch.full((heads,), -torch.inf) if sink_H is None else sink_H.float().contiguous()
    options = torch.tensor([scale, softcap or 0.0])
    out_NHe = torch.empty(n, heads, value_width)
    given = {
        "ticket": 0, "heads": heads, "group": heads // len(k), "tokens": n, "width": width,
        "value_width": value_width, "block": tree.block, "prefix": kept_k.shape[1] if kept else 0,
        "window": ALWAYS if window is None else min(window, ALWAYS),
        "ancestor": ancestor.data_ptr(), "offset": offset.data_ptr(), "end": end.data_ptr(),
        "position": position.data_ptr(), "sink": sink.data_ptr(), "options": options.data_ptr(), "out": out_NHe.data_ptr(),
    }  # fmt: skip
    for name, x in (("query", q), ("key", k), ("value", v), ("kept_key", kept_k), ("kept_value", kept_v)):
        given |= {name: x.data_ptr(), f"{name}_h": 4 * x.stride(0), f"{name}_n": 4 * x.stride(1)}
    _program().run("units", [given[name] for name in ARGUMENTS], torch.get_num_threads())
    return out_NHe.to(query_HNd.dtype)


@functools.cache
def _program() -> Program:
    return Program(
        logits=_logits,
        values=functools.partial(_values, STEP_E),
        value=functools.partial(_values, 1),
        cap=_cap,
        weigh=_weigh,
        keys=_keys,
        begin=_begin,
        finish=_finish,
        tile=_tile,
        units=_units,
    )


def _places(space: Value) -> dict[str, Value]:
    """The address of each part of a unit's working memory."""
    places, at = {}, 0
    for name, size in PARTS.items():
        places[name] = space + at
        at += size
    return places


def _units(code: Code, block: Value) -> None:
    """What each thread runs: units until there are none."""
    x = code.integers(block, ARGUMENTS)
    space = code.space(sum(PARTS.values()))
    tiles = (x["block"] + (QUERIES - 1)) // QUERIES
    units = x["tokens"] // x["block"] * tiles * x["heads"]
    with code.repeat() as leave:
        unit = code.ticket(block)
        leave(unit > units - 1)
        tile = unit // x["heads"]
        code.call("tile", block, space, unit % x["heads"], tile // tiles, tile % tiles)


def _tile(code: Code, block: Value, space: Value, head: Value, b: Value, t: Value) -> None:
    """The answers of the t-th tile of the b-th block under one head."""
    x, at = code.integers(block, ARGUMENTS), _places(space)
    first = b * x["block"] + t * QUERIES
    rows = code.least(x["block"] - t * QUERIES, QUERIES)
    code.call("begin", block, space, head, first, rows)
    ancestors = _offset(code, x, b + 1) - _offset(code, x, b)
    count = x["prefix"] + ancestors + t * QUERIES + rows
    with code.loop(0, count, KEYS) as start:
        keys = code.least(count - start, KEYS)
        padded = _padded(keys)
        code.call("keys", block, space, head, b, start, keys)
        with code.loop(0, padded, STEP_K) as k:
            code.call("logits", at["q"], at["key_at"] + k * 8, x["width"], at["logits"] + k * STRIDE)
        code.call("cap", x["options"], at["logits"], padded * VECTORS)
        with code.loop(0, VECTORS) as v:
            code.call("weigh", space, padded, v, x["window"])
        whole = x["value_width"] - x["value_width"] % STEP_E
        steps = ("values", STEP_E, 0, whole), ("value", 1, whole, x["value_width"])
        for name, columns, first_e, end_e in steps:
            with code.loop(first_e, end_e, columns) as e:
                out = at["out"] + e * STRIDE
                code.call(name, at["logits"], at["value_at"], keys, e * 4, out, at["shrink"])
    code.call("finish", block, space, head, first, rows)


def _padded(keys: Value) -> Value:
    return (keys + (STEP_K - 1)) // STEP_K * STEP_K


def _offset(code: Code, x: dict[str, Value], b: Value) -> Value:
    return code.load(x["offset"] + b * 4, I32).cast(I64, "sext")


def _begin(code: Code, block: Value, space: Value, head: Value, first: Value, rows: Value) -> None:
    """A tile's queries, scaled, with a vector's numbers of one column side by side; lanes behind the last row repeat it."""
    x, at = code.integers(block, ARGUMENTS), _places(space)
    scale = code.load(x["options"], F32)
    query = x["query"] + head * x["query_h"]
    with code.loop(0, QUERIES) as i:
        n = first + code.least(i, rows - 1)
        code.store(n.cast(I32, "trunc"), at["n"] + i * 4)
        code.store(code.load(x["position"] + n * 4, I32), at["n_position"] + i * 4)
    whole = x["width"] - x["width"] % LANES
    with code.loop(0, VECTORS) as v:
        q = at["q"] + v * (x["width"] * VECTOR)
        row_at = [
            query + (first + code.least(v * LANES + lane, rows - 1)) * x["query_n"] for lane in range(LANES)
        ]
        with code.loop(0, whole, LANES) as d:
            scale_L = code.splat(scale)
            columns = code.transposed([code.load(row + d * 4) * scale_L for row in row_at])
            for j, column in enumerate(columns):
                code.store(column, q + (d + j) * VECTOR)
        with code.loop(whole, x["width"]) as d:
            for lane, row in enumerate(row_at):
                code.store(code.load(row + d * 4, F32) * scale, q + d * VECTOR + lane * 4)
        sink_L = code.splat(code.load(x["sink"] + head * 4, F32))
        code.store(sink_L, at["top"] + v * VECTOR)
        code.store((sink_L > -float("inf")).where(code.vector(1.0), 0.0), at["total"] + v * VECTOR)
    with code.loop(0, x["value_width"] * VECTORS) as i:
        code.store(code.vector(0.0), at["out"] + i * VECTOR)


def _keys(code: Code, block: Value, space: Value, head: Value, b: Value, start: Value, count: Value) -> None:
    """Where `count` keys of the b-th block's list lie and who sees them, from the start-th one on; padding is seen by none."""
    x, at = code.integers(block, ARGUMENTS), _places(space)
    group = head // x["group"]
    stop, first = start + count, b * x["block"]
    begin = _offset(code, x, b)
    prefix, listed = x["prefix"], x["prefix"] + _offset(code, x, b + 1) - begin

    def put(j: Value, kept: str, index: Value, low: Value, high: Value, position: Value) -> None:
        i = j - start
        for name in ("key", "value"):
            rows = x[f"{kept}{name}"] + group * x[f"{kept}{name}_h"]
            code.store(rows + index * x[f"{kept}{name}_n"], at[f"{name}_at"] + i * 8)
        for name, number in (("low", low), ("high", high), ("key_position", position)):
            code.store(number.cast(I32, "trunc"), at[name] + i * 4)

    def token(j: Value, index: Value, low: Value) -> None:
        high, position = (
            code.load(x[name] + index * 4, I32).cast(I64, "sext") for name in ("end", "position")
        )
        put(j, "", index, low, high, position)

    zero = code.integer(0)
    with code.loop(start, code.least(prefix, stop)) as j:
        put(j, "kept_", j, zero, code.integer(ALWAYS), j)
    with code.loop((start < prefix).where(prefix, start), code.least(listed, stop)) as j:
        token(j, code.load(x["ancestor"] + (begin + j - prefix) * 4, I32).cast(I64, "sext"), zero)
    with code.loop((start < listed).where(listed, start), stop) as j:
        token(j, first + j - listed, first + j - listed)
    with code.loop(count, _padded(count)) as i:
        for name in ("key_at", "value_at"):
            code.store(code.load(at[name], I64), at[name] + i * 8)
        for name in ("low", "high", "key_position"):
            code.store(zero.cast(I32, "trunc"), at[name] + i * 4)


def _logits(code: Code, q: Value, key_at: Value, width: Value, x: Value) -> None:
    """The innermost loop: all queries times STEP_K keys."""
    sums = [[code.variable(code.vector(0.0)) for _ in range(VECTORS)] for _ in range(STEP_K)]
    keys = [code.load(key_at + 8 * k, I64) for k in range(STEP_K)]
    with code.loop(0, width) as d:
        q_v = [code.load(q + (width * v + d) * VECTOR) for v in range(VECTORS)]
        for key, row in zip(keys, sums, strict=True):
            key_L = code.splat(code.load(key + d * 4, F32))
            for total, q_L in zip(row, q_v, strict=True):
                total.now = code.fma(q_L, key_L, total.now)
    for k, row in enumerate(sums):
        for v, total in enumerate(row):
            code.store(total.now, x + k * STRIDE + v * VECTOR)


def _cap(code: Code, options: Value, x: Value, count: Value) -> None:
    """The soft-cap, where there is one, of `count` vectors in place."""
    softcap = code.load(options + 4, F32)
    with code.when(softcap > 0.0), code.loop(0, count) as i:
        softcap_L = code.splat(softcap)
        code.store(code.soft_capped(code.load(x + i * VECTOR), softcap_L), x + i * VECTOR)


def _weigh(code: Code, space: Value, count: Value, v: Value, window: Value) -> None:
    """A vector's logits of `count` keys become e^(logit - maximum), its maximum and sum follow, and what came before shrinks."""
    at = _places(space)
    lanes = v * VECTOR
    x = at["logits"] + lanes
    n_L, position_L = code.load(at["n"] + lanes, VI), code.load(at["n_position"] + lanes, VI)
    window_L = code.splat(window.cast(I32, "trunc"))
    before = code.load(at["top"] + lanes)
    top = code.variable(before)
    with code.loop(0, count) as k:
        low, high, position = (
            code.splat(code.load(at[name] + k * 4, I32)) for name in ("low", "high", "key_position")
        )
        seen = (low < n_L + 1) & (n_L < high) & (position_L - position < window_L)
        logit = seen.where(code.load(x + k * STRIDE), -float("inf"))
        code.store(logit, x + k * STRIDE)
        top.now = (logit > top.now).where(logit, top.now)
    shift = code.shift(top.now)
    shrink = code.exp(before - shift)
    total = code.variable(code.load(at["total"] + lanes) * shrink)
    with code.loop(0, count) as k:
        logit = code.load(x + k * STRIDE)
        weight = logit.same(-float("inf")).where(0.0, code.exp(logit - shift))
        code.store(weight, x + k * STRIDE)
        total.now = total.now + weight
    code.store(top.now, at["top"] + lanes)
    code.store(total.now, at["total"] + lanes)
    code.store(shrink, at["shrink"] + lanes)


def _values(
    columns: int,
    code: Code,
    weight: Value,
    value_at: Value,
    count: Value,
    offset: Value,  # bytes to the first column
    out: Value,
    shrink: Value,
) -> None:
    """The innermost loop: the answers so far shrink, and the values of `count` keys are added by their weights."""
    shrink_v = [code.load(shrink + v * VECTOR) for v in range(VECTORS)]
    sums = [
        [code.variable(code.load(out + e * STRIDE + v * VECTOR) * shrink_v[v]) for v in range(VECTORS)]
        for e in range(columns)
    ]
    with code.loop(0, count) as k:
        value = code.load(value_at + k * 8, I64) + offset
        weight_v = [code.load(weight + k * STRIDE + v * VECTOR) for v in range(VECTORS)]
        for e, row in enumerate(sums):
            value_L = code.splat(code.load(value + 4 * e, F32))
            for total, weight_L in zip(row, weight_v, strict=True):
                total.now = code.fma(weight_L, value_L, total.now)
    for e, row in enumerate(sums):
        for v, total in enumerate(row):
            code.store(total.now, out + e * STRIDE + v * VECTOR)


def _finish(code: Code, block: Value, space: Value, head: Value, first: Value, rows: Value) -> None:
    """The answers, divided by the sums of weights, to their rows; lanes behind the last row write it again."""
    x, at = code.integers(block, ARGUMENTS), _places(space)
    width = x["value_width"]
    whole = width - width % LANES
    with code.loop(0, VECTORS) as v:
        share_L = code.vector(1.0) / code.load(at["total"] + v * VECTOR)
        out = at["out"] + v * VECTOR
        row_at = [
            x["out"] + ((first + code.least(v * LANES + lane, rows - 1)) * x["heads"] + head) * width * 4
            for lane in range(LANES)
        ]
        with code.loop(0, whole, LANES) as e:
            columns = [code.load(out + (e + j) * STRIDE) * share_L for j in range(LANES)]
            for row, numbers in zip(row_at, code.transposed(columns), strict=True):
                code.store(numbers, row + e * 4)
        with code.loop(whole, width) as e:
            code.store(code.load(out + e * STRIDE) * share_L, out + e * STRIDE)
            for lane, row in enumerate(row_at):
                code.store(code.load(out + e * STRIDE + lane * 4, F32), row + e * 4)
