"""`target_logprobs` on CUDA: one pass over the head, in two launches.

1. `_tile_kernel`: one (rows, vocabulary) tile per step: GEMM on tensor cores, then per row the tile's
   maximum, sum of exponentials and argmax into scratch. Rows run fastest over the programs, so a vocabulary
   tile is read from HBM once and met from L2 by all rows of the launch. Work is spread over vocabulary tiles,
   so that even one block of rows fills the chip: splitting V needs no second variant and has the same bits.
   Where registers allow, the loop over tiles is flattened into the loop over D, so that the next tile's
   operands are on their way while this one's exponentials are taken. (float32: float32_slices_triton.py.)
2. `target_kernel` of targets_triton.py: the tiles of a target's row to its answer.

Every tile is computed alike whatever else is in the launch, and nothing is chosen by the number of rows.
What follows from dtypes, strides and options is kept between calls (`_launchers`), the tiles are launched before anything
that they do not need, and the host never waits for the device: with few rows, its microseconds are most of a call.

Cost: 2*N*V*D FLOPs; scratch CHUNK_N * (V / BLOCK_V) * 12 bytes at most: 19 MiB at V 100,864.
Dims: N rows, V vocabulary, D hidden, T targets, K vocabulary tiles.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from evalengine.kernels.float32_slices_triton import slice_statistics
from evalengine.kernels.head import Head, empty_logprobs
from evalengine.kernels.targets_triton import TARGET_WARPS, store_tile, target_constants, target_kernel
from evalengine.kernels.triton_common import Launcher, Spec, is_hopper, moved, processors, tile_logits, totals

CHUNK_N = 4096  # rows of a launch: bounds the scratch


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
# these would spill otherwise
HOPPER_16BIT_BIAS = HOPPER_16BIT._replace(flatten=False)
HOPPER_16BIT_BIAS_SOFTCAP = HOPPER_16BIT_BIAS._replace(block_v=128)
AMPERE_16BIT = TileConfig(128, 128, 32, warps=8, stages=3, tma=False)


# one binary for every number of rows
@triton.jit(do_not_specialize=["N"], do_not_specialize_on_alignment=["bias_V"])
def _tile_kernel(
    h_ND, w_VD, bias_V, tile_NK3, N, V, D, stride_h, stride_w, scale, softcap,
    HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    EVEN_V: tl.constexpr, TMA: tl.constexpr, FLATTEN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row_blocks = (N + BLOCK_N - 1) // BLOCK_N
    K = (V + BLOCK_V - 1) // BLOCK_V
    for tile in tl.range(tl.program_id(0), row_blocks * K, tl.num_programs(0), flatten=FLATTEN):
        k = tile // row_blocks
        row = (tile % row_blocks) * BLOCK_N
        rows = row + tl.arange(0, BLOCK_N)
        cols = k * BLOCK_V + tl.arange(0, BLOCK_V)
        x = tile_logits(
            h_ND, w_VD, bias_V, row, k * BLOCK_V, N, V, D, stride_h, stride_w, scale, softcap,
            HAS_BIAS, HAS_SCALE, HAS_SOFTCAP, TMA, BLOCK_N, BLOCK_V, BLOCK_D,
        )  # fmt: skip
        if not EVEN_V:
            x = tl.where((cols < V)[None, :], x, float("-inf"))
        top, total, first = totals(x, cols)
        store_tile(tile_NK3, rows, k, K, top, total, first, rows < N)


class Tiles(NamedTuple):
    """How the tiles of a head are computed."""

    config: TileConfig
    launch: Launcher
    programs: int  # of a persistent launch


class Launchers(NamedTuple):
    """What calls of one kind share."""

    tiles: Tiles | None  # None: float32, by slices
    target: Launcher


def target_logprobs_triton(
    h_ND: Tensor,
    head: Head,
    row_T: Tensor,
    token_T: Tensor,
    config: TileConfig | None = None,  # else the one of the device and dtype
) -> tuple[Tensor, Tensor]:
    """(logprob_T float32, greedy_T bool) of checked arguments, at least one target; NaN and False where a row or token is
    out of range."""
    h_ND, w_VD, bias_V = _row_major(h_ND), _row_major(head.w_VD), head.bias_V
    device, n_rows, (vocab, hidden) = h_ND.device, h_ND.shape[0], w_VD.shape
    shape = vocab, hidden, h_ND.stride(0), w_VD.stride(0)
    aligned = h_ND.data_ptr() % 16 == 0, w_VD.data_ptr() % 16 == 0
    given = None if bias_V is None else bias_V.dtype, head.scale is not None, head.softcap is not None
    indices = row_T.dtype, token_T.dtype, row_T.is_cpu and token_T.is_cpu
    launchers = _launchers(device, h_ND.dtype, shape, aligned, given, indices, config)
    bias = w_VD if bias_V is None else bias_V.contiguous()
    # an integer would be another type to Triton
    options = float(head.scale or 1.0), float(head.softcap or 1.0)
    if launchers.tiles is None:
        chunk = max(1, n_rows)
        row_T, token_T = moved(row_T, token_T, device)
        kept = None if bias_V is None else bias
        tile_NK3, logit_T = slice_statistics(h_ND, Head(w_VD, kept, head.scale, head.softcap), row_T, token_T)
    else:
        chunk = CHUNK_N
        size = min(n_rows, chunk), -(-vocab // launchers.tiles.config.block_v), 3
        tile_NK3 = logit_T = torch.empty(size, dtype=torch.float32, device=device)
    for start in range(0, max(1, n_rows), chunk):  # without rows, targets still learn that theirs is missing
        if launchers.tiles is not None and n_rows:
            (config, launch, programs), block_rows = launchers.tiles, min(chunk, n_rows - start)
            operands: tuple[Any, Any] = h_ND if n_rows <= chunk else h_ND[start : start + chunk], w_VD
            if config.tma:
                sizes = config.block_n, config.block_v
                operands = tuple(
                    _descriptor(x, n, config.block_d) for x, n in zip(operands, sizes, strict=True)
                )
            work = -(-block_rows // config.block_n) * tile_NK3.shape[1]
            launch(min(work, programs), *operands, bias, tile_NK3, block_rows, *shape, *options)
        if start == 0:
            row_T, token_T = moved(row_T, token_T, device)
            logprob_T, greedy_T = empty_logprobs(h_ND, row_T)
        tensors = h_ND, w_VD, bias, tile_NK3, logit_T, row_T, token_T, logprob_T, greedy_T
        launchers.target(row_T.shape[0], *tensors, start, chunk, n_rows, tile_NK3.shape[1], *shape, *options)
    return logprob_T, greedy_T


@functools.lru_cache(maxsize=256)
def _launchers(
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int],  # vocabulary, hidden size, strides of h and w
    aligned: tuple[bool, bool],  # h and w, to 16 bytes
    given: tuple[torch.dtype | None, bool, bool],  # of a bias; whether there are scale and soft-cap
    indices: tuple[torch.dtype, torch.dtype, bool],  # the bool: from the CPU
    config: TileConfig | None,
) -> Launchers:
    """Everything that a launcher's kernels may be compiled for is among the arguments."""
    vocab, _, *strides = shape
    flags = given[0] is not None, *given[1:]
    if config is None and dtype != torch.float32:
        whole = all(aligned) and all(stride * dtype.itemsize % 16 == 0 for stride in strides)
        config = config_for(device, flags[0], flags[2], whole)
    tiles = None
    if config is not None:
        launch = Launcher(_tile_kernel, tile_constants(config, vocab, *flags), config.warps, config.stages)
        tiles = Tiles(config, launch, processors(device))
    constants = target_constants(*flags, config is None)
    return Launchers(tiles, Launcher(target_kernel, constants, TARGET_WARPS))


def tile_constants(config: TileConfig, vocab: int, bias: bool, scale: bool, softcap: bool) -> dict[str, Any]:
    """The compile-time arguments of `_tile_kernel`."""
    flags = {"HAS_BIAS": bias, "HAS_SCALE": scale, "HAS_SOFTCAP": softcap}
    ways = {"EVEN_V": vocab % config.block_v == 0, "TMA": config.tma, "FLATTEN": config.flatten}
    blocks = {"BLOCK_N": config.block_n, "BLOCK_V": config.block_v, "BLOCK_D": config.block_d}
    return flags | ways | blocks


def config_for(device: torch.device, bias: bool, softcap: bool, aligned: bool) -> TileConfig:
    """The 16-bit configuration of a device; pointers instead of TMA where rows are not 16-byte aligned."""
    if not is_hopper(device):
        return AMPERE_16BIT
    config = hopper_16bit(bias, softcap)
    return config if aligned else config._replace(tma=False, flatten=False)


def hopper_16bit(bias: bool, softcap: bool) -> TileConfig:
    """What fits the registers of sm_90."""
    if bias:
        return HOPPER_16BIT_BIAS_SOFTCAP if softcap else HOPPER_16BIT_BIAS
    return HOPPER_16BIT


def _row_major(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 and x.stride(0) >= x.shape[1] else x.contiguous()


def _descriptor(x: Tensor, rows: int, cols: int) -> TensorDescriptor:
    """One without the constructor's checks, which cost as much as a launch: `config_for` has seen that it fits."""
    descriptor = TensorDescriptor.__new__(TensorDescriptor)
    vars(descriptor).update(
        base=x, shape=x.shape, strides=x.stride(), block_shape=[rows, cols], padding="zero"
    )
    return descriptor


OPTIONS = (  # bias and scale, soft-cap, whether the last vocabulary tile is partial
    (False, False, False),
    (False, False, True),
    (True, False, True),
    (False, True, False),
    (True, True, True),
)


def specs(capability: int) -> Iterator[Spec]:
    """The kernel in every configuration for one compute capability."""
    tiles = [(AMPERE_16BIT, *options) for options in OPTIONS]
    if capability >= 90:
        tiles = [(hopper_16bit(*options[:2]), *options) for options in OPTIONS]
        tiles += [(tile[0]._replace(tma=False, flatten=False), *tile[1:]) for tile in tiles]
    yield from (_spec(*tile) for tile in tiles)


def _spec(config: TileConfig, bias: bool, softcap: bool, partial: bool) -> Spec:
    """The kernel for one configuration and one set of options."""
    blocks = (config.block_n, config.block_d), (config.block_v, config.block_d)
    operands = [f"tensordesc<bf16[{n}, {d}]>" if config.tma else "*bf16" for n, d in blocks]
    types = {"h_ND": operands[0], "w_VD": operands[1], "bias_V": "*bf16"}
    constants = tile_constants(config, config.block_v + partial, bias, bias, softcap)
    given = {"bias, scale": bias, "soft-cap": softcap, "partial": partial and not bias}
    options = ", ".join(name for name, yes in given.items() if yes)
    words = [f"tile bf16 {config.block_n}x{config.block_v}x{config.block_d}"]
    words += [word for word, yes in {"TMA": config.tma, "flat": config.flatten}.items() if yes]
    name = " ".join(words) + (f": {options}" if options else "")
    return Spec(name, _tile_kernel, types, constants, config.warps, config.stages)
