"""What the Triton files have in common: functions on the device, arguments of options, and what to compile.

Dims: N rows, V vocabulary, T targets.
"""

# mypy: disable-error-code="no-untyped-def"
# (the arguments of Triton functions have no Python types; their host functions have)

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# arguments of the kernels that call `answer`
TARGET_TYPES = {"row_T": "*i32", "token_T": "*i32", "argmax_N": "*i32", "greedy_T": "*i1"}


class Spec(NamedTuple):
    """One kernel for `compiled.py` to compile. Every `*_triton.py` has a function `specs(capability)` of them."""

    name: str
    kernel: Any  # the Triton function
    types: dict[str, str]  # of arguments whose type does not follow from their name
    constants: dict[str, Any]  # compile-time arguments
    warps: int = 4
    stages: int = 3


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
def rescaled(total, top, new_top):
    """A sum of exp(x - top) as one of exp(x - new_top)."""
    shift = tl.where(new_top == float("-inf"), 0.0, new_top)
    return total * tl.exp2((top - shift) * LOG2E)


@triton.jit
def load_targets(row_T, token_T, T, BLOCK_T: tl.constexpr):
    """(index, whether it exists, row, token) of this program's targets."""
    targets = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    there = targets < T
    row = tl.load(row_T + targets, mask=there, other=0).to(tl.int64)
    token = tl.load(token_T + targets, mask=there, other=0).to(tl.int64)
    return targets, there, row, token


@triton.jit
def answer(x, targets, there, row, token, logsumexp_N, argmax_N, logprob_T, greedy_T):
    """Stores the log-probability of targets with logits x and whether they are their row's argmax."""
    logprob = x - tl.load(logsumexp_N + row, mask=there, other=0.0)
    logprob = tl.where(logprob > 0.0, 0.0, logprob)  # the logit may round above its twin in the tile
    finite = (logprob - logprob) == 0.0
    greedy = (tl.load(argmax_N + row, mask=there, other=-1) == token) & finite
    tl.store(logprob_T + targets, logprob, mask=there)
    tl.store(greedy_T + targets, greedy, mask=there)


def logit_arguments(stand_in: Tensor, **options: Tensor | float | None) -> dict[str, Any]:
    """Arguments for the options of the logits: each value, or a stand-in, and whether it was given."""
    arguments: dict[str, Any] = {}
    for name, value in options.items():
        arguments["HAS_" + name.removesuffix("_V").upper()] = value is not None
        nothing = stand_in if name.endswith("_V") else 1.0
        value = nothing if value is None else value
        # an integer would be another type to Triton; a bias may be a view with gaps
        arguments[name] = value.contiguous() if isinstance(value, Tensor) else float(value)
    return arguments


def processors(device: torch.device) -> int:
    """Multiprocessors, for launches of a fixed number of programs."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
