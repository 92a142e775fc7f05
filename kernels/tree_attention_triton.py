"""`tree_attention` on CUDA: flash attention of one tile of queries over the keys of its own path, read by index.

A program takes one tile of a block's queries under one head: q stays in registers or shared memory, k and v come in tiles of
rows, first the kept prefix, then the block's ancestors with the block's own tokens behind them, up to the tile's last. The
softmax is kept as a running maximum and sum in float32, base 2 (Dao 2023, FlashAttention-2, algorithm 1).
Cost: 2 * (d + e) FLOPs for each query, head and key of the tile's list; no memory but the answer.
Dims: H heads, G key heads, N tokens, P tokens of the kept prefix, A ancestors, B blocks, d head width, e value width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from evalengine.kernels.token_tree import Tree
from evalengine.kernels.triton_common import LOG2E, Spec, is_hopper, logit

# Of float32: a maximum before any key, finite so that no NaN comes of it.
LOWEST = tl.constexpr(-3.4028234663852886e38)


class AttentionTiles(NamedTuple):
    queries: int
    keys: int
    warps: int
    stages: int


# By the wider of head and value, padded to a power of two. More warps where fewer would spill.
SIXTEEN_BIT = {
    16: AttentionTiles(64, 64, 4, 3),
    32: AttentionTiles(64, 64, 4, 3),
    64: AttentionTiles(64, 32, 4, 3),
    128: AttentionTiles(64, 64, 4, 2),
    256: AttentionTiles(64, 32, 8, 2),
}
HOPPER_16BIT = SIXTEEN_BIT | {256: AttentionTiles(64, 32, 4, 2)}
FLOAT32 = {
    16: AttentionTiles(32, 32, 4, 2),
    32: AttentionTiles(32, 32, 4, 2),
    64: AttentionTiles(32, 32, 8, 2),
    128: AttentionTiles(32, 32, 8, 2),
    256: AttentionTiles(16, 32, 8, 2),
}

OPTIONS = ("HAS_PREFIX", "HAS_WINDOW", "HAS_SOFTCAP", "HAS_SINK")


@triton.jit
def _weigh(
    q,  # (queries, d)
    k,  # (keys, d)
    v,  # (keys, e)
    seen,  # (queries, keys)
    top,  # (queries,) running maximum of the logits, base 2
    total,  # (queries,) sum of 2 ** (logit - top)
    out,  # (queries, e) sum of 2 ** (logit - top) * v
    scale,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
):
    """(top, total, out) with one tile of keys more."""
    x = tl.dot(q, k.T, input_precision="ieee")
    if HAS_SOFTCAP:
        x = logit(x, True, scale, True, softcap) * LOG2E
    else:
        x = x * (scale * LOG2E)
    x = tl.where(seen, x, float("-inf"))
    new_top = tl.maximum(top, tl.max(x, 1))
    p = tl.exp2(x - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    out = tl.dot(p.to(v.dtype), v, out * shrink[:, None], input_precision="ieee")
    return new_top, total * shrink + tl.sum(p, 1), out


@triton.jit
def _rows(base, row, stride, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """(len(row), BLOCK_WIDTH): rows of a matrix by index, zeros behind their width."""
    col = tl.arange(0, BLOCK_WIDTH)
    at = base + row.to(tl.int64)[:, None] * stride + col[None, :]
    if WIDTH == BLOCK_WIDTH:
        return tl.load(at)
    return tl.load(at, mask=(col < WIDTH)[None, :], other=0.0)


@triton.jit(
    do_not_specialize=["BLOCK", "P", "window"],
    do_not_specialize_on_alignment=["ancestor_A", "offset_B", "end_N", "position_N"],  # parts of one transfer
)
def _tree_attention_kernel(
    query_HNd, key_GNd, value_GNe, kept_key_GPd, kept_value_GPe, out_NHe,
    ancestor_A, offset_B, end_N, position_N, sink_H, H, BLOCK, P, window, scale, softcap,
    stride_query_h, stride_query_n, stride_key_h, stride_key_n, stride_value_h, stride_value_n,
    stride_kept_key_h, stride_kept_key_n, stride_kept_value_h, stride_kept_value_n,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    HAS_PREFIX: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINK: tl.constexpr,
):  # fmt: skip
    # The heads of a tile run side by side: their rows of one token lie side by side in memory.
    head = tl.program_id(0) % H
    tile = tl.program_id(0) // H
    tiles = tl.cdiv(BLOCK, BLOCK_Q)  # of a block
    block = tile // tiles
    first = block * BLOCK
    row = (tile % tiles) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    query = first + tl.minimum(row, BLOCK - 1)
    key_head = (head // GROUP).to(tl.int64)
    q = _rows(query_HNd + head.to(tl.int64) * stride_query_h, query, stride_query_n, WIDTH, BLOCK_D)
    query_position = query
    if HAS_WINDOW:
        query_position = tl.load(position_N + query).to(tl.int32)

    if HAS_SINK:  # a logit without a value
        top = tl.zeros([BLOCK_Q], tl.float32) + tl.load(sink_H + head).to(tl.float32) * LOG2E
        total = tl.full([BLOCK_Q], 1.0, tl.float32)
    else:
        top = tl.full([BLOCK_Q], LOWEST, tl.float32)
        total = tl.zeros([BLOCK_Q], tl.float32)
    out = tl.zeros([BLOCK_Q, BLOCK_E], tl.float32)

    if HAS_PREFIX:  # every query sees it
        kept_key = kept_key_GPd + key_head * stride_kept_key_h
        kept_value = kept_value_GPe + key_head * stride_kept_value_h
        for start in range(0, P, BLOCK_K):
            i = start + tl.arange(0, BLOCK_K)
            key = tl.minimum(i, P - 1)
            seen = (i < P)[None, :] & (query >= 0)[:, None]
            if HAS_WINDOW:
                seen = seen & (query_position[:, None] - i[None, :] < window)
            k = _rows(kept_key, key, stride_kept_key_n, WIDTH, BLOCK_D)
            v = _rows(kept_value, key, stride_kept_value_n, VALUE_WIDTH, BLOCK_E)
            top, total, out = _weigh(q, k, v, seen, top, total, out, scale, softcap, HAS_SOFTCAP)

    keys = key_GNd + key_head * stride_key_h
    values = value_GNe + key_head * stride_value_h
    above = tl.load(offset_B + block)
    count = tl.load(offset_B + block + 1) - above
    own = tl.minimum((tile % tiles + 1) * BLOCK_Q, BLOCK)  # tokens of the block up to the tile's last
    for start in range(0, count + own, BLOCK_K):
        i = start + tl.arange(0, BLOCK_K)
        ancestor = tl.load(ancestor_A + above + i, mask=i < count, other=0)
        key = tl.where(i < count, ancestor, first + tl.minimum(i - count, own - 1))
        end = tl.load(end_N + key)
        end = tl.where(i < count + own, end, 0)
        seen = (key[None, :] <= query[:, None]) & (query[:, None] < end[None, :])
        if HAS_WINDOW:
            key_position = tl.load(position_N + key).to(tl.int32)
            seen = seen & (query_position[:, None] - key_position[None, :] < window)
        k = _rows(keys, key, stride_key_n, WIDTH, BLOCK_D)
        v = _rows(values, key, stride_value_n, VALUE_WIDTH, BLOCK_E)
        top, total, out = _weigh(q, k, v, seen, top, total, out, scale, softcap, HAS_SOFTCAP)

    col = tl.arange(0, BLOCK_E)
    at = (query.to(tl.int64) * H + head) * VALUE_WIDTH
    there = (row < BLOCK)[:, None] & (col < VALUE_WIDTH)[None, :]
    out = (out / total[:, None]).to(out_NHe.dtype.element_ty)
    tl.store(out_NHe + at[:, None] + col[None, :], out, mask=there)


def tiles_for(dtype: torch.dtype, width: int, hopper: bool) -> AttentionTiles:
    """The shipped tiles for the wider of head and value."""
    table = FLOAT32 if dtype == torch.float32 else HOPPER_16BIT if hopper else SIXTEEN_BIT
    return table[max(16, triton.next_power_of_2(width))]


def tree_attention_triton(
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
    """(N, H, e) of checked arguments."""
    (heads, n, width), value_width, block = query_HNd.shape, value_GNe.shape[2], tree.block
    out_NHe = query_HNd.new_empty(n, heads, value_width)
    tiles = tiles_for(query_HNd.dtype, max(width, value_width), is_hopper(query_HNd.device))
    kept_key, kept_value = kept or (key_GNd, value_GNe)
    given = kept is not None, window is not None, softcap is not None, sink_H is not None
    strides = [n for x in (query_HNd, key_GNd, value_GNe, kept_key, kept_value) for n in x.stride()[:2]]
    _tree_attention_kernel[(heads * (n // block) * -(-block // tiles.queries),)](
        query_HNd, key_GNd, value_GNe, kept_key, kept_value, out_NHe,
        *tree[:4], out_NHe if sink_H is None else sink_H,
        heads, block, kept_key.shape[1] if kept else 0, 0 if window is None else window,
        scale, 1.0 if softcap is None else float(softcap), *strides,
        **constants(tiles, heads // key_GNd.shape[0], width, value_width, given),
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out_NHe


def constants(
    tiles: AttentionTiles, group: int, width: int, value_width: int, given: Iterable[bool]
) -> dict[str, int]:
    """The compile-time arguments of `_tree_attention_kernel`. given: prefix, window, soft-cap, sink."""
    padded = [max(16, triton.next_power_of_2(n)) for n in (width, value_width)]
    sizes = {"GROUP": group, "WIDTH": width, "VALUE_WIDTH": value_width}
    blocks = {"BLOCK_D": padded[0], "BLOCK_E": padded[1], "BLOCK_Q": tiles.queries, "BLOCK_K": tiles.keys}
    return sizes | blocks | dict(zip(OPTIONS, given, strict=True))


def specs(capability: int) -> Iterator[Spec]:
    """Every head width, and the options at the widest, for tests/kernels/compile_kernels.py."""
    cases = [("bf16", width, "") for width in SIXTEEN_BIT] + [("fp32", width, "") for width in FLOAT32]
    cases += [("bf16", 80, ""), ("bf16", 256, "prefix"), ("bf16", 256, "prefix, window, soft-cap, sink")]
    for dtype, width, options in cases:
        tiles = tiles_for(torch.float32 if dtype == "fp32" else torch.bfloat16, width, capability >= 90)
        tensors = ("query_HNd", "key_GNd", "value_GNe", "kept_key_GPd", "kept_value_GPe", "out_NHe", "sink_H")
        types = dict.fromkeys(tensors, f"*{dtype}") | {"window": "i32"}
        types |= dict.fromkeys(("ancestor_A", "offset_B", "end_N"), "*i32") | {"position_N": "*i64"}
        name = f"tree attention {dtype} {tiles.queries}x{tiles.keys}x{width}"
        name += f": {options}" if options else ""
        given = [word in options for word in ("prefix", "window", "soft-cap", "sink")]
        made = constants(tiles, 1, width, width, given)
        yield Spec(name, _tree_attention_kernel, types, made, tiles.warps, tiles.stages)
