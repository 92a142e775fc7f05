"""`choice_scores` on CUDA: a launch that sums each choice's log-probabilities, and one that reduces items.

The scores between the two are `scores`, the formulas of all devices. In the second launch a program per item keeps the
softmax statistics of all metrics running, so an item's bits depend on nothing else.

Cost: each log-probability read once. Dims: T targets, C choices, I items, S metrics.
"""

# mypy: disable-error-code="no-untyped-def"
# (the arguments of Triton functions have no Python types; their host functions have)

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from evalengine.kernels.triton_common import Spec

BLOCK_C = 8


@triton.jit
def _loglik_kernel(logprob_T, target_offset_C1, loglik_C, C, BLOCK_C: tl.constexpr):
    choices = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = choices < C
    start = tl.load(target_offset_C1 + choices, mask=there, other=0).to(tl.int32)
    end = tl.load(target_offset_C1 + choices + 1, mask=there, other=0).to(tl.int32)
    loglik = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for t in range(tl.max(end - start, 0)):
        loglik += tl.load(logprob_T + start + t, mask=start + t < end, other=0.0)
    tl.store(loglik_C + choices, loglik, mask=there)


@triton.jit
def _item_kernel(
    score_SC,
    choice_offset_I1,
    gold_I,
    pick_SI,
    confidence_SI,
    p_gold_SI,
    margin_SI,
    entropy_SI,
    C,
    S: tl.constexpr,
    HAS_GOLD: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    item = tl.program_id(0)
    first = tl.load(choice_offset_I1 + item).to(tl.int32)
    last = tl.load(choice_offset_I1 + item + 1).to(tl.int32)
    s = tl.arange(0, BLOCK_S)
    top = tl.full((BLOCK_S,), float("-inf"), dtype=tl.float32)
    second = tl.full((BLOCK_S,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_S,), dtype=tl.float32)
    weighted = tl.zeros((BLOCK_S,), dtype=tl.float32)  # sum of exp(x - top) * (x - top)
    at_gold = tl.zeros((BLOCK_S,), dtype=tl.float32)
    pick = tl.full((BLOCK_S,), -1, dtype=tl.int32)
    gold = -1
    if HAS_GOLD:
        gold = tl.load(gold_I + item).to(tl.int32)
    for block in range(first, last, BLOCK_C):
        choices = block + tl.arange(0, BLOCK_C)
        there = (choices < last)[None, :]
        at = s[:, None] * C + choices[None, :]
        x = tl.load(score_SC + at, mask=(s < S)[:, None] & there, other=float("nan"))
        x = tl.where(there, x, float("-inf"))
        index = (choices - first)[None, :]
        block_top = tl.max(x, 1)
        block_pick = tl.min(tl.where(x == block_top[:, None], index, 2147483647), 1)
        block_second = tl.max(tl.where(index == block_pick[:, None], float("-inf"), x), 1)
        pick = tl.where(block_top > top, block_pick, pick)  # the first on ties
        second = tl.maximum(tl.maximum(second, block_second), tl.minimum(top, block_top))
        new_top = tl.maximum(top, block_top)
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        decay = tl.where(total == 0.0, 0.0, top - shift)
        weighted = (weighted + decay * total) * tl.exp(decay)
        total = total * tl.exp(decay)
        below = x - shift[:, None]
        e = tl.exp(below)
        total += tl.sum(e, 1)
        weighted += tl.sum(tl.where(e == 0.0, 0.0, e * below), 1)
        at_gold += tl.sum(tl.where(index == gold, x, 0.0), 1)
        top = new_top
    total = tl.where(total == 0.0, float("nan"), total)
    confidence = 1.0 / total
    p_gold = tl.exp(at_gold - top) * confidence
    at = s * tl.num_programs(0) + item
    tl.store(pick_SI + at, tl.where(total == total, pick, -1), mask=s < S)
    tl.store(confidence_SI + at, confidence, mask=s < S)
    tl.store(p_gold_SI + at, tl.where(gold >= 0, p_gold, float("nan")), mask=s < S)
    tl.store(margin_SI + at, (1.0 - tl.exp(second - top)) * confidence, mask=s < S)
    tl.store(entropy_SI + at, tl.log(total) - weighted * confidence, mask=s < S)


def item_constants(metrics: int, has_gold: bool) -> dict[str, int | bool]:
    """The compile-time arguments of the second launch."""
    padded = triton.next_power_of_2(metrics)
    return {"S": metrics, "HAS_GOLD": has_gold, "BLOCK_S": padded, "BLOCK_C": BLOCK_C}


def choice_scores_triton(
    logprob_T: Tensor,
    target_offset_C1: Tensor,
    choice_offset_I1: Tensor,
    gold_I: Tensor | None,
    scores: Callable[[Tensor], Tensor],  # of the log-likelihoods (C,), by every metric (S, C)
) -> tuple[Tensor, ...]:
    """The fields of ChoiceScores for checked arguments, at least one item."""
    n_choices, n_items = target_offset_C1.numel() - 1, choice_offset_I1.numel() - 1
    logprob_T = logprob_T.float().contiguous()
    loglik_C = logprob_T.new_empty(n_choices)
    blocks = (triton.cdiv(n_choices, BLOCK_C),)
    _loglik_kernel[blocks](
        logprob_T, target_offset_C1.contiguous(), loglik_C, n_choices, BLOCK_C=BLOCK_C, num_warps=1
    )
    score_SC = scores(loglik_C)
    metrics = len(score_SC)
    pick_SI = torch.empty(metrics, n_items, dtype=torch.int32, device=logprob_T.device)
    per_item = (pick_SI, *(logprob_T.new_empty(metrics, n_items) for _ in range(4)))
    _item_kernel[(n_items,)](
        torch.where(score_SC.isfinite(), score_SC, torch.nan),
        choice_offset_I1.contiguous(),
        pick_SI if gold_I is None else gold_I.contiguous(),
        *per_item,
        n_choices,
        **item_constants(metrics, gold_I is not None),
        num_warps=1,
    )
    return (loglik_C, score_SC, *per_item)


def specs(capability: int) -> Iterator[Spec]:
    """Both kernels, for `compiled.py`."""
    types = {**dict.fromkeys(("target_offset_C1", "choice_offset_I1", "gold_I"), "*i64"), "pick_SI": "*i32"}
    yield Spec("choice sums", _loglik_kernel, types, {"BLOCK_C": BLOCK_C}, warps=1)
    yield Spec("choice", _item_kernel, types, item_constants(5, True), warps=1)
