"""What the Triton files have in common: functions on the device, arguments of options, and what to compile.

Dims: N rows, V vocabulary, T targets.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
HOPPER_SHARED = 232_448  # bytes of a block on compute capability 9.0
# arguments of the kernels that answer for targets
TARGET_TYPES = {"row_T": "*i32", "token_T": "*i32", "argmax_N": "*i32", "greedy_T": "*i1"}


class Launcher:
    """A Triton function with its compile-time arguments, the last of its signature.

    From the second launch on it calls what the first one compiled and spares Triton's dispatch, some 10 us of host time.
    So the arguments of all launches must be of one kind: device, dtypes, the alignment of pointers that Triton specialises
    on, and each integer that it does.
    """

    def __init__(self, kernel: Any, constants: dict[str, Any], warps: int = 4, stages: int = 3) -> None:
        self._kernel = kernel
        self._constants = tuple(constants[name] for name in kernel.arg_names[-len(constants) :])
        self._options = {"num_warps": warps, "num_stages": stages}
        self._compiled: Any = None  # stays None in the interpreter

    def __call__(self, programs: int, *arguments: Any) -> None:
        if self._compiled is None:
            self._compiled = self._kernel[(programs, 1, 1)](*arguments, *self._constants, **self._options)
        else:
            self._compiled[(programs, 1, 1)](*arguments, *self._constants)


class Spec(NamedTuple):
    """One kernel for tests/kernels/compile_kernels.py. Every `*_triton.py` has a function `specs(capability)` of them."""

    name: str
    kernel: Any  # the Triton function
    types: dict[str, str]  # of arguments whose type does not follow from their name
    constants: dict[str, Any]  # compile-time arguments
    warps: int = 4
    stages: int = 3


@triton.jit
def block(x_ND, rows, dims, N, D, stride):
    """Some rows and columns of a matrix; 0 beyond its N rows and D columns."""
    at = x_ND + rows.to(tl.int64)[:, None] * stride + dims[None, :]
    return tl.load(at, mask=(rows < N)[:, None] & (dims < D)[None, :], other=0.0)


@triton.jit
def dot_product(h_D, w_D, D, BLOCK_D: tl.constexpr):
    """Of two vectors, in float32."""
    products = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for d in range(0, D, BLOCK_D):
        dims = d + tl.arange(0, BLOCK_D)
        h = tl.load(h_D + dims, mask=dims < D, other=0.0)
        w = tl.load(w_D + dims, mask=dims < D, other=0.0)
        products += h.to(tl.float32) * w.to(tl.float32)
    return tl.sum(products, 0)


@triton.jit
def logit(x, HAS_SCALE: tl.constexpr, scale, HAS_SOFTCAP: tl.constexpr, softcap):
    """Scale and soft-cap of raw logits. A soft-cap leaves no trace of an infinite logit: x - x puts a NaN back."""
    if HAS_SCALE:
        x = x * scale
    if HAS_SOFTCAP:
        t = tl.exp2(tl.abs(x) * (-2.0 * LOG2E / softcap))
        capped = softcap * (1.0 - t) / (1.0 + t)
        x = tl.where(x < 0, -capped, capped) + (x - x)
    return x


@triton.jit
def tile_logits(
    h_ND, w_VD, bias_V, row, col, N, V, D, stride_h, stride_w, scale, softcap,
    HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SOFTCAP: tl.constexpr, TMA: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A model's logits of a tile from (row, col) on, (BLOCK_N, BLOCK_V). TMA: h and w are tensor descriptors."""
    rows = row + tl.arange(0, BLOCK_N)
    cols = col + tl.arange(0, BLOCK_V)
    x = tl.zeros((BLOCK_N, BLOCK_V), dtype=tl.float32)
    for d in range(0, D, BLOCK_D):
        if TMA:
            h = h_ND.load([row, d])
            w = w_VD.load([col, d])
        else:
            dims = d + tl.arange(0, BLOCK_D)
            h = block(h_ND, rows, dims, N, D, stride_h)
            w = block(w_VD, cols, dims, V, D, stride_w)
        x = tl.dot(h, w.T, x, input_precision="ieee")
    if HAS_BIAS:
        x += tl.load(bias_V + cols, mask=cols < V, other=0.0).to(tl.float32)[None, :]
    return logit(x, HAS_SCALE, scale, HAS_SOFTCAP, softcap)


@triton.jit
def exp_sum(x, top, axis: tl.constexpr):
    """Sum of exp(x - top) along axis, the last; a block that a bias masks as a whole (top = -inf) gives 0.

    One multiply-add and one exp2 an element; what rounding of the shift adds to each exponent comes off the sum.
    """
    shift = tl.where(top == float("-inf"), 0.0, top)
    power = shift * LOG2E
    if axis == 1:
        total = tl.sum(tl.exp2(x * LOG2E - power[:, None]), 1)
    else:
        total = tl.sum(tl.exp2(x * LOG2E - power), 0)
    return total * tl.exp2(tl.fma(-shift, LOG2E, power))


@triton.jit
def totals(x, cols):
    """The maximum, sum and argmax of each row of a tile of logits."""
    top = tl.max(x, 1)
    total = exp_sum(x, top, 1)
    first = tl.min(tl.where(x == top[:, None], cols[None, :], 2147483647), 1)
    return top, total, first


@triton.jit
def rescaled(total, top, new_top):
    """A sum of exp(x - top) as one of exp(x - new_top)."""
    shift = tl.where(new_top == float("-inf"), 0.0, new_top)
    return total * tl.exp2((top - shift) * LOG2E)


def moved(row_T: Tensor, token_T: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Both on the device, contiguous. From the CPU, where their range was checked, as int32 through pinned memory: a copy
    from elsewhere may wait for the device."""
    if device.type == "cpu" or not (row_T.is_cpu and token_T.is_cpu):
        return row_T.to(device).contiguous(), token_T.to(device).contiguous()
    pinned_2T = torch.empty((2, row_T.shape[0]), dtype=torch.int32, pin_memory=True)
    pinned_2T[0].copy_(row_T)
    pinned_2T[1].copy_(token_T)
    row_T, token_T = pinned_2T.to(device, non_blocking=True).unbind()
    return row_T, token_T


def copied(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device: through pinned memory, so that nothing waits for the device."""
    return x if device.type == "cpu" else x.pin_memory().to(device, non_blocking=True)


def is_hopper(device: torch.device) -> bool:
    """Whether a device has Hopper's tensor memory accelerator and shared memory; consumer GPUs after it lack the latter."""
    if device.type != "cuda":
        return False
    properties = torch.cuda.get_device_properties(device)
    room = getattr(properties, "shared_memory_per_block_optin", HOPPER_SHARED)
    return properties.major >= 9 and room >= HOPPER_SHARED


def processors(device: torch.device) -> int:
    """Multiprocessors, for launches of a fixed number of programs."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
