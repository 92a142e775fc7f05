"""`emulated_logprobs` on CUDA for 16-bit models: the heads' products once, then every beta, in two kernels.

1. `_tile_kernel`: one (rows, vocabulary) tile a program: the products of tuned and ref, each with its own options, to their
   difference; then the base's. For each beta, their sum's maximum, sum of exponentials and argmax go to scratch.
2. `_logit_kernel`: the base logit and the difference of each target. With base + beta x difference as the logit, `target_kernel`
   of targets_triton.py answers, once a beta.

Two float32 accumulators of a tile are in registers at a time, so tiles are half as wide as those of one head. float32 goes
through cuBLAS (emulated_logprobs.py): Triton's own products reach 0.4 of its rate.

Scratch grows with the number of betas, which are unrolled.

Cost: 2*N*V*(D_base + D_tuned + D_ref) FLOPs and N*V exponentials a beta; scratch 12 bytes a row, tile and beta.
Dims: N rows, V vocabulary, D hidden, B betas, T targets, K vocabulary tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from evalengine.kernels.head import HeadedRows
from evalengine.kernels.targets_triton import TARGET_WARPS, store_tile, target_constants, target_kernel
from evalengine.kernels.triton_common import Spec, copied, dot_product, logit, moved, tile_logits, totals

CHUNK_N = 1024  # rows of a launch: bounds the scratch
BLOCK_N, BLOCK_D = 128, 32
BLOCK_V, BLOCK_V_OPTIONS = 128, 64  # with any option a wider tile spills
WARPS, STAGES = 8, 3
LOGIT_D = 1024
MODELS = ("base", "tuned", "ref")
HAS = ("BIAS", "SCALE", "SOFTCAP")


@triton.jit(do_not_specialize=["N"])
def _tile_kernel(
    base_h, base_w, base_bias, tuned_h, tuned_w, tuned_bias, ref_h, ref_w, ref_bias, beta_B, tile_BNK3,
    N, V, rows_of_beta,
    base_D, base_stride_h, base_stride_w, base_scale, base_softcap,
    tuned_D, tuned_stride_h, tuned_stride_w, tuned_scale, tuned_softcap,
    ref_D, ref_stride_h, ref_stride_w, ref_scale, ref_softcap,
    B: tl.constexpr,
    BASE_BIAS: tl.constexpr, BASE_SCALE: tl.constexpr, BASE_SOFTCAP: tl.constexpr,
    TUNED_BIAS: tl.constexpr, TUNED_SCALE: tl.constexpr, TUNED_SOFTCAP: tl.constexpr,
    REF_BIAS: tl.constexpr, REF_SCALE: tl.constexpr, REF_SOFTCAP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row_blocks = (N + BLOCK_N - 1) // BLOCK_N
    K = (V + BLOCK_V - 1) // BLOCK_V
    k = tl.program_id(0) // row_blocks
    row = (tl.program_id(0) % row_blocks) * BLOCK_N
    col = k * BLOCK_V
    rows = row + tl.arange(0, BLOCK_N)
    cols = col + tl.arange(0, BLOCK_V)
    shift = tile_logits(
        tuned_h, tuned_w, tuned_bias, row, col, N, V, tuned_D, tuned_stride_h, tuned_stride_w, tuned_scale, tuned_softcap,
        TUNED_BIAS, TUNED_SCALE, TUNED_SOFTCAP, False, BLOCK_N, BLOCK_V, BLOCK_D,
    )  # fmt: skip
    shift -= tile_logits(
        ref_h, ref_w, ref_bias, row, col, N, V, ref_D, ref_stride_h, ref_stride_w, ref_scale, ref_softcap,
        REF_BIAS, REF_SCALE, REF_SOFTCAP, False, BLOCK_N, BLOCK_V, BLOCK_D,
    )  # fmt: skip
    x = tile_logits(
        base_h, base_w, base_bias, row, col, N, V, base_D, base_stride_h, base_stride_w, base_scale, base_softcap,
        BASE_BIAS, BASE_SCALE, BASE_SOFTCAP, False, BLOCK_N, BLOCK_V, BLOCK_D,
    )  # fmt: skip
    for b in tl.static_range(B):
        z = tl.where((cols < V)[None, :], x + tl.load(beta_B + b) * shift, float("-inf"))
        top, total, first = totals(z, cols)
        store_tile(tile_BNK3, b * rows_of_beta + rows.to(tl.int64), k, K, top, total, first, rows < N)


@triton.jit
def _logit_kernel(
    h_ND, w_VD, bias_V, row_T, token_T, logit_T, N, V, D, stride_h, stride_w, scale, softcap,
    HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SOFTCAP: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0)
    row = tl.load(row_T + t).to(tl.int64)
    token = tl.load(token_T + t).to(tl.int64)
    if (row >= 0) & (row < N) & (token >= 0) & (token < V):
        x = dot_product(h_ND + row * stride_h, w_VD + token * stride_w, D, BLOCK_D)
        if HAS_BIAS:
            x += tl.load(bias_V + token).to(tl.float32)
        tl.store(logit_T + t, logit(x, HAS_SCALE, scale, HAS_SOFTCAP, softcap))
    else:
        tl.store(logit_T + t, float("nan"))


def emulated_logprobs_triton(
    models: Sequence[HeadedRows],  # base, tuned, ref
    betas: Sequence[float],
    row_T: Tensor,
    token_T: Tensor,
    vocab: int,
) -> tuple[Tensor, Tensor]:
    """(logprob_BT float32, greedy_BT bool) of checked arguments, at least one row and target; NaN and False where a row or
    token is out of range."""
    h, w, bias, has, numbers = [], [], [], [], []
    for h_ND, (w_VD, bias_V, scale, softcap) in models:
        h.append(h_ND if h_ND.stride(1) == 1 else h_ND.contiguous())
        w.append(w_VD if w_VD.stride(1) == 1 else w_VD.contiguous())
        bias.append(w[-1] if bias_V is None else bias_V.contiguous())
        has.append((bias_V is not None, scale is not None, softcap is not None))
        sizes = h_ND.shape[1], h[-1].stride(0), w[-1].stride(0)
        numbers.append((*sizes, float(scale or 1.0), float(softcap or 1.0)))
    device, n_rows, count = h[0].device, h[0].shape[0], len(betas)
    row_T, token_T = moved(row_T, token_T, device)
    logit_3T = torch.empty(3, len(row_T), dtype=torch.float32, device=device)
    for k in range(3):
        _logit_kernel[(len(row_T),)](
            h[k], w[k], bias[k], row_T, token_T, logit_3T[k], n_rows, vocab, *numbers[k], *has[k], LOGIT_D
        )
    beta_B = copied(torch.tensor(betas, dtype=torch.float32), device)
    logit_BT = logit_3T[0] + beta_B[:, None] * (logit_3T[1] - logit_3T[2])
    block_v = BLOCK_V_OPTIONS if any(map(any, has)) else BLOCK_V
    chunk, K = min(n_rows, CHUNK_N), -(-vocab // block_v)
    tile_BNK3 = torch.empty(count, chunk, K, 3, dtype=torch.float32, device=device)
    logprob_BT = torch.empty(count, len(row_T), dtype=torch.float32, device=device)
    greedy_BT = torch.empty(count, len(row_T), dtype=torch.bool, device=device)
    constants = target_constants(False, False, False, True)
    for start in range(0, n_rows, chunk):
        some = [x[start : start + chunk] for x in h]
        block_rows = some[0].shape[0]
        operands = [tensor for three in zip(some, w, bias, strict=True) for tensor in three]
        _tile_kernel[(-(-block_rows // BLOCK_N) * K,)](
            *operands, beta_B, tile_BNK3, block_rows, vocab, chunk, *(n for five in numbers for n in five), count,
            *(flag for three in has for flag in three), BLOCK_N, block_v, BLOCK_D, num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip
        for b in range(count):
            target_kernel[(len(row_T),)](
                h[0], w[0], bias[0], tile_BNK3[b], logit_BT[b], row_T, token_T, logprob_BT[b], greedy_BT[b],
                start, chunk, n_rows, K, vocab, *numbers[0][:3], 1.0, 1.0, **constants, num_warps=TARGET_WARPS,
            )  # fmt: skip
    return logprob_BT, greedy_BT


def specs(capability: int) -> Iterator[Spec]:
    """The kernels without options and with all of them, for a dial of five."""
    for options in (False, True):
        words = ": bias, scale, soft-cap" if options else ""
        flags = {f"{model.upper()}_{has}": options for model in MODELS for has in HAS}
        types: dict[str, str] = {"beta_B": "*fp32", "tile_BNK3": "*fp32", "rows_of_beta": "i32"}
        for model in MODELS:
            types |= {f"{model}_{part}": "*bf16" for part in ("h", "w", "bias")}
            types |= {f"{model}_{part}": "i32" for part in ("D", "stride_h", "stride_w")}
            types |= {f"{model}_{part}": "fp32" for part in ("scale", "softcap")}
        block_v = BLOCK_V_OPTIONS if options else BLOCK_V
        blocks: dict[str, Any] = {"BLOCK_N": BLOCK_N, "BLOCK_V": block_v, "BLOCK_D": BLOCK_D}
        name = f"tile bf16 {BLOCK_N}x{block_v}x{BLOCK_D}, 5 betas{words}"
        yield Spec(name, _tile_kernel, types, {"B": 5, **flags, **blocks}, WARPS, STAGES)
        flags = {f"HAS_{has}": options for has in HAS}
        types = dict.fromkeys(("h_ND", "w_VD", "bias_V"), "*bf16")
        types |= {"row_T": "*i32", "token_T": "*i32", "logit_T": "*fp32"}
        yield Spec(f"logit bf16{words}", _logit_kernel, types, {**flags, "BLOCK_D": LOGIT_D})
