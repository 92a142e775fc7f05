"""`target_logprobs` on CUDA: one pass over the head, in three Triton kernels.

1. `_tile_kernel`: one (rows, vocabulary) tile per step: GEMM on tensor cores, then per row the tile's
   maximum, sum of exponentials and argmax into scratch. Rows run fastest over the programs, so a vocabulary
   tile is read from HBM once and met from L2 by all rows of the chunk. Work is spread over vocabulary tiles,
   so that even one block of rows fills the chip: splitting V needs no second variant and has the same bits.
   Where registers allow, the loop over tiles is flattened into the loop over D, so that the next tile's
   operands are on their way while this one's exponentials are taken.
2. `_row_kernel`: the tiles' results of a row, in the order of the tiles, to its logsumexp and argmax.
3. `_target_kernel`: the target's logit, a float32 dot product, minus the logsumexp.

Every tile is computed alike whatever else is in the launch, and nothing is chosen by the number of rows.

Cost: 2*N*V*D FLOPs; scratch CHUNK_N * (V / BLOCK_V) * 12 bytes, under 1% of the logits.
Dims: N rows, V vocabulary, D hidden, T targets, K vocabulary tiles.
"""

# mypy: disable-error-code="no-untyped-def"
# (the arguments of Triton functions have no Python types; their host functions have)

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from evalengine.kernels.head import Head, empty_logprobs
from evalengine.kernels.triton_common import (
    LN2,
    TARGET_TYPES,
    Spec,
    answer,
    exp_sum,
    load_targets,
    logit,
    logit_arguments,
    rescaled,
)

CHUNK_N = 1024  # rows of a launch: bounds the scratch


class TileConfig(NamedTuple):
    """How `_tile_kernel` is compiled and launched."""

    block_n: int
    block_v: int
    block_d: int
    warps: int
    stages: int
    tma: bool  # operands come through Hopper's tensor memory accelerator
    flatten: bool = False  # one loop over tiles and D


HOPPER_16BIT = TileConfig(128, 256, 64, warps=8, stages=4, tma=True, flatten=True)
HOPPER_16BIT_BIAS = HOPPER_16BIT._replace(flatten=False)  # these would spill otherwise
HOPPER_16BIT_SOFTCAP = TileConfig(128, 128, 64, warps=8, stages=4, tma=True)
AMPERE_16BIT = TileConfig(128, 128, 32, warps=8, stages=3, tma=False)
FLOAT32 = TileConfig(128, 128, 16, warps=8, stages=3, tma=False)
HOPPER_SHARED = 232_448  # bytes of a block on compute capability 9.0


@triton.jit(do_not_specialize=["N"])  # one binary for every number of rows
def _tile_kernel(
    h_ND,
    w_VD,
    bias_V,
    max_KN,
    sum_KN,
    argmax_KN,
    N,
    V,
    D,
    stride_h,
    stride_w,
    scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    EVEN_V: tl.constexpr,
    TMA: tl.constexpr,
    FLATTEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row_blocks = (N + BLOCK_N - 1) // BLOCK_N
    tiles = row_blocks * ((V + BLOCK_V - 1) // BLOCK_V)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN):
        k = tile // row_blocks
        row = (tile % row_blocks) * BLOCK_N
        rows = row + tl.arange(0, BLOCK_N)
        cols = k * BLOCK_V + tl.arange(0, BLOCK_V)
        x = tl.zeros((BLOCK_N, BLOCK_V), dtype=tl.float32)
        for d in range(0, D, BLOCK_D):
            if TMA:
                h = h_ND.load([row, d])
                w = w_VD.load([k * BLOCK_V, d])
            else:
                dims = d + tl.arange(0, BLOCK_D)
                h_at = h_ND + rows.to(tl.int64)[:, None] * stride_h + dims[None, :]
                w_at = w_VD + cols.to(tl.int64)[:, None] * stride_w + dims[None, :]
                h = tl.load(h_at, mask=(rows < N)[:, None] & (dims < D)[None, :], other=0.0)
                w = tl.load(w_at, mask=(cols < V)[:, None] & (dims < D)[None, :], other=0.0)
            x = tl.dot(h, w.T, x, input_precision=PRECISION)
        if HAS_BIAS:
            x += tl.load(bias_V + cols, mask=cols < V, other=0.0).to(tl.float32)[None, :]
        x = logit(x, HAS_SCALE, scale, HAS_SOFTCAP, softcap)
        if not EVEN_V:
            x = tl.where((cols < V)[None, :], x, float("-inf"))
        top = tl.max(x, 1)
        total = exp_sum(x, top, 1)
        first = tl.min(tl.where(x == top[:, None], cols[None, :], 2147483647), 1)
        at = k * N + rows
        tl.store(max_KN + at, top, mask=rows < N)
        tl.store(sum_KN + at, total, mask=rows < N)
        tl.store(argmax_KN + at, first, mask=rows < N)


@triton.jit(do_not_specialize=["N"])
def _row_kernel(
    max_KN,
    sum_KN,
    argmax_KN,
    logsumexp_N,
    argmax_N,
    N,
    K,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    top = tl.full((BLOCK_N,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    best = tl.full((BLOCK_N,), 2147483647, dtype=tl.int32)
    for start in range(0, K, BLOCK_K):
        tiles = start + tl.arange(0, BLOCK_K)
        at = tiles[:, None] * N + rows[None, :]
        there = (tiles < K)[:, None] & (rows < N)[None, :]
        max_kn = tl.load(max_KN + at, mask=there, other=float("-inf"))
        sum_kn = tl.load(sum_KN + at, mask=there, other=0.0)
        argmax_kn = tl.load(argmax_KN + at, mask=there, other=2147483647)
        top_n = tl.max(max_kn, 0)
        first_n = tl.min(tl.where(max_kn == top_n[None, :], argmax_kn, 2147483647), 0)
        best = tl.where(top_n > top, first_n, best)  # the first on ties
        new_top = tl.maximum(top, top_n)
        total = rescaled(total, top, new_top)
        total += tl.sum(rescaled(sum_kn, max_kn, new_top[None, :]), 0)
        top = new_top
    logsumexp = top + tl.log2(total) * LN2
    tl.store(logsumexp_N + rows, logsumexp, mask=rows < N)
    tl.store(argmax_N + rows, best, mask=rows < N)


@triton.jit(do_not_specialize=["T"])
def _target_kernel(
    h_ND,
    w_VD,
    bias_V,
    row_T,
    token_T,
    logsumexp_N,
    argmax_N,
    logprob_T,
    greedy_T,
    T,
    D,
    stride_h,
    stride_w,
    scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    targets, there, row, token = load_targets(row_T, token_T, T, BLOCK_T)
    products = tl.zeros((BLOCK_T, BLOCK_D), dtype=tl.float32)
    for d in range(0, D, BLOCK_D):
        dims = d + tl.arange(0, BLOCK_D)
        mask = there[:, None] & (dims < D)[None, :]
        h = tl.load(h_ND + row[:, None] * stride_h + dims[None, :], mask=mask, other=0.0)
        w = tl.load(w_VD + token[:, None] * stride_w + dims[None, :], mask=mask, other=0.0)
        products += h.to(tl.float32) * w.to(tl.float32)
    x = tl.sum(products, 1)
    if HAS_BIAS:
        x += tl.load(bias_V + token, mask=there, other=0.0).to(tl.float32)
    x = logit(x, HAS_SCALE, scale, HAS_SOFTCAP, softcap)
    answer(x, targets, there, row, token, logsumexp_N, argmax_N, logprob_T, greedy_T)


def target_logprobs_triton(
    h_ND: Tensor, head: Head, row_T: Tensor, token_T: Tensor, config: TileConfig | None = None
) -> tuple[Tensor, Tensor]:
    """(logprob_T float32, greedy_T bool) of checked arguments, at least one target."""
    return targets_of_rows(h_ND, head, row_T, token_T, *row_logsumexp(h_ND, head, config))


def targets_of_rows(
    h_ND: Tensor, head: Head, row_T: Tensor, token_T: Tensor, logsumexp_N: Tensor, argmax_N: Tensor
) -> tuple[Tensor, Tensor]:
    """(logprob_T, greedy_T) from the rows' logsumexp and argmax."""
    h_ND, w_VD = _row_major(h_ND), _row_major(head.w_VD)
    row_T, token_T = (x.to(h_ND.device, non_blocking=True).contiguous() for x in (row_T, token_T))
    logprob_T, greedy_T = empty_logprobs(h_ND, row_T)
    _target_kernel[(triton.cdiv(row_T.shape[0], TARGET_CONSTANTS["BLOCK_T"]),)](
        h_ND=h_ND,
        w_VD=w_VD,
        row_T=row_T,
        token_T=token_T,
        logsumexp_N=logsumexp_N,
        argmax_N=argmax_N,
        logprob_T=logprob_T,
        greedy_T=greedy_T,
        T=row_T.shape[0],
        **_product_arguments(h_ND, w_VD, head),
        **TARGET_CONSTANTS,
    )
    return logprob_T, greedy_T


def row_logsumexp(h_ND: Tensor, head: Head, config: TileConfig | None = None) -> tuple[Tensor, Tensor]:
    """(logsumexp_N float32, argmax_N int32) of every row of h."""
    h_ND, w_VD = _row_major(h_ND), _row_major(head.w_VD)
    n_rows, vocab, device = h_ND.shape[0], w_VD.shape[0], h_ND.device
    config = config or config_for(h_ND, head._replace(w_VD=w_VD))
    tiles = triton.cdiv(vocab, config.block_v)
    scratch = torch.empty(3, tiles * min(n_rows, CHUNK_N), dtype=torch.float32, device=device)
    max_KN, sum_KN, argmax_KN = scratch[0], scratch[1], scratch[2].view(torch.int32)
    logsumexp_N = torch.empty(n_rows, dtype=torch.float32, device=device)
    argmax_N = torch.empty(n_rows, dtype=torch.int32, device=device)
    w = _descriptor(w_VD, config.block_v, config.block_d) if config.tma else w_VD
    arguments = _product_arguments(h_ND, w_VD, head) | tile_constants(config, h_ND.dtype, vocab)
    programs = _processors(device)
    for start in range(0, n_rows, CHUNK_N):
        h_nD = h_ND[start : start + CHUNK_N]
        rows = h_nD.shape[0]
        _tile_kernel[(min(triton.cdiv(rows, config.block_n) * tiles, programs),)](
            h_ND=_descriptor(h_nD, config.block_n, config.block_d) if config.tma else h_nD,
            w_VD=w,
            max_KN=max_KN,
            sum_KN=sum_KN,
            argmax_KN=argmax_KN,
            N=rows,
            V=vocab,
            num_warps=config.warps,
            num_stages=config.stages,
            **arguments,
        )
        _row_kernel[(triton.cdiv(rows, ROW_CONSTANTS["BLOCK_N"]),)](
            max_KN,
            sum_KN,
            argmax_KN,
            logsumexp_N[start:],
            argmax_N[start:],
            rows,
            tiles,
            **ROW_CONSTANTS,
        )
    return logsumexp_N, argmax_N


ROW_CONSTANTS = {"BLOCK_N": 16, "BLOCK_K": 64}
TARGET_CONSTANTS = {"BLOCK_T": 4, "BLOCK_D": 256}


def _product_arguments(h_ND: Tensor, w_VD: Tensor, head: Head) -> dict[str, Any]:
    """What every kernel that multiplies h with the head needs, but for the two matrices."""
    options = logit_arguments(h_ND, bias_V=head.bias_V, scale=head.scale, softcap=head.softcap)
    return {"D": h_ND.shape[1], "stride_h": h_ND.stride(0), "stride_w": w_VD.stride(0), **options}


def tile_constants(config: TileConfig, dtype: torch.dtype, vocab: int) -> dict[str, Any]:
    """The compile-time arguments of `_tile_kernel`, but for those of the logits."""
    return {
        "EVEN_V": vocab % config.block_v == 0,
        "TMA": config.tma,
        "FLATTEN": config.flatten,
        "PRECISION": _precision(dtype),
        "BLOCK_N": config.block_n,
        "BLOCK_V": config.block_v,
        "BLOCK_D": config.block_d,
    }


def config_for(h_ND: Tensor, head: Head) -> TileConfig:
    """The configuration of a device and dtype; pointers instead of TMA where rows are not 16-byte aligned."""
    if h_ND.element_size() == 4:
        return FLOAT32
    if not h_ND.is_cuda or not _has_room(h_ND.device):
        return AMPERE_16BIT
    config = hopper_16bit(head.bias_V is not None, head.softcap is not None)
    aligned = all(
        x.data_ptr() % 16 == 0 and x.stride(0) * x.element_size() % 16 == 0 for x in (h_ND, head.w_VD)
    )
    return config if aligned else config._replace(tma=False, flatten=False)


def _has_room(device: torch.device) -> bool:
    """Whether a device has Hopper's tensor memory accelerator and shared memory; consumer GPUs after it lack the
    latter."""
    properties = torch.cuda.get_device_properties(device)
    room = getattr(properties, "shared_memory_per_block_optin", HOPPER_SHARED)
    return properties.major >= 9 and room >= HOPPER_SHARED


def hopper_16bit(has_bias: bool, has_softcap: bool) -> TileConfig:
    """What fits the registers of sm_90."""
    return HOPPER_16BIT_SOFTCAP if has_softcap else HOPPER_16BIT_BIAS if has_bias else HOPPER_16BIT


def _precision(dtype: torch.dtype) -> str:
    """float32 stays float32 unless PyTorch was told that TF32 will do for its own products."""
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if tf32 else "ieee"


def _row_major(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 and x.stride(0) >= x.shape[1] else x.contiguous()


def _descriptor(x: Tensor, rows: int, cols: int) -> Any:
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(x, list(x.shape), list(x.stride()), [rows, cols])


def _processors(device: torch.device) -> int:
    """Programs of a persistent launch."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


OPTIONS = (  # bias and scale, soft-cap, whether the last vocabulary tile is partial
    (False, False, False),
    (False, False, True),
    (True, False, True),
    (False, True, False),
    (True, True, True),
)


def specs(capability: int) -> Iterator[Spec]:
    """Every kernel in every configuration for one compute capability."""
    if capability >= 90:
        tiles = [("bf16", hopper_16bit(*options[:2]), *options) for options in OPTIONS]
        tiles += [("bf16", tile[1]._replace(tma=False, flatten=False), *tile[2:]) for tile in tiles]
    else:
        tiles = [("bf16", AMPERE_16BIT, *options) for options in OPTIONS]
    tiles += [("fp32", FLOAT32, *options) for options in OPTIONS]
    yield from (_tile_spec(*tile) for tile in tiles)
    yield Spec("row", _row_kernel, {"argmax_KN": "*i32", "argmax_N": "*i32"}, ROW_CONSTANTS)
    flags = {"HAS_BIAS": True, "HAS_SCALE": True, "HAS_SOFTCAP": True}
    for dtype in ("bf16", "fp32"):
        types = {**dict.fromkeys(("h_ND", "w_VD", "bias_V"), f"*{dtype}"), **TARGET_TYPES}
        yield Spec(f"target {dtype}", _target_kernel, types, {**flags, **TARGET_CONSTANTS})


def _tile_spec(dtype: str, config: TileConfig, bias: bool, softcap: bool, partial: bool) -> Spec:
    """The main kernel for one configuration and one set of options."""
    blocks = (config.block_n, config.block_d), (config.block_v, config.block_d)
    operands = [f"tensordesc<{dtype}[{n}, {d}]>" if config.tma else f"*{dtype}" for n, d in blocks]
    types = {"h_ND": operands[0], "w_VD": operands[1], "bias_V": f"*{dtype}", "argmax_KN": "*i32"}
    constants = tile_constants(config, torch.float32, config.block_v + partial)
    constants |= {"HAS_BIAS": bias, "HAS_SCALE": bias, "HAS_SOFTCAP": softcap}
    given = {"bias, scale": bias, "soft-cap": softcap, "partial": partial and not bias}
    options = ", ".join(name for name, yes in given.items() if yes)
    words = [f"tile {dtype} {config.block_n}x{config.block_v}x{config.block_d}"]
    words += [word for word, yes in {"TMA": config.tma, "flat": config.flatten}.items() if yes]
    name = " ".join(words) + (f": {options}" if options else "")
    return Spec(name, _tile_kernel, types, constants, config.warps, config.stages)
