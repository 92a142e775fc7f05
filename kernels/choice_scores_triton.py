"""`choice_scores` on CUDA: one program per item sums its choices and keeps the five scores' softmax
statistics running.

Cost: each log-probability read once, one launch. Dims: T targets, C choices, I items, S scores (padded to 8).
"""

# mypy: disable-error-code="no-untyped-def"
# (the arguments of Triton functions have no Python types; their host functions have)

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from evalengine.kernels.choice_scores import Choices
from evalengine.kernels.triton_common import Spec

CONSTANTS = {"BLOCK_C": 8}


@triton.jit
def _choice_kernel(
    logprob_T,
    target_offset_C1,
    choice_offset_I1,
    gold_I,
    chars_C,
    bytes_C,
    uncond_C,
    loglik_C,
    score_SC,
    pick_SI,
    confidence_SI,
    p_gold_SI,
    margin_SI,
    entropy_SI,
    C,
    HAS_GOLD: tl.constexpr,
    HAS_CHARS: tl.constexpr,
    HAS_BYTES: tl.constexpr,
    HAS_UNCOND: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    item = tl.program_id(0)
    first = tl.load(choice_offset_I1 + item).to(tl.int32)
    last = tl.load(choice_offset_I1 + item + 1).to(tl.int32)
    s = tl.arange(0, 8)
    top = tl.full((8,), float("-inf"), dtype=tl.float32)
    second = tl.full((8,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((8,), dtype=tl.float32)
    weighted = tl.zeros((8,), dtype=tl.float32)  # sum of exp(x - top) * (x - top)
    at_gold = tl.zeros((8,), dtype=tl.float32)
    pick = tl.full((8,), -1, dtype=tl.int32)
    gold = -1
    if HAS_GOLD:
        gold = tl.load(gold_I + item).to(tl.int32)
    for block in range(first, last, BLOCK_C):
        choices = block + tl.arange(0, BLOCK_C)
        there = choices < last
        start = tl.load(target_offset_C1 + choices, mask=there, other=0).to(tl.int32)
        end = tl.load(target_offset_C1 + choices + 1, mask=there, other=0).to(tl.int32)
        loglik = tl.zeros((BLOCK_C,), dtype=tl.float32)
        for t in range(tl.max(end - start, 0)):
            loglik += tl.load(logprob_T + start + t, mask=start + t < end, other=0.0)
        nan = tl.full((BLOCK_C,), float("nan"), dtype=tl.float32)
        per_char, per_byte, pmi = nan, nan, nan
        if HAS_CHARS:
            per_char = loglik / tl.load(chars_C + choices, mask=there, other=1).to(tl.float32)
        if HAS_BYTES:
            per_byte = loglik / tl.load(bytes_C + choices, mask=there, other=1).to(tl.float32)
        if HAS_UNCOND:
            pmi = loglik - tl.load(uncond_C + choices, mask=there, other=0.0)
        per_token = loglik / tl.maximum(end - start, 1).to(tl.float32)
        x = tl.where((s == 0)[:, None], loglik[None, :], pmi[None, :])
        x = tl.where((s == 1)[:, None], per_char[None, :], x)
        x = tl.where((s == 2)[:, None], per_byte[None, :], x)
        x = tl.where((s == 3)[:, None], per_token[None, :], x)
        tl.store(loglik_C + choices, loglik, mask=there)
        tl.store(score_SC + s[:, None] * C + choices[None, :], x, mask=(s < 5)[:, None] & there[None, :])
        x = tl.where(there[None, :], x, float("-inf"))
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
    tl.store(pick_SI + at, tl.where(total == total, pick, -1), mask=s < 5)
    tl.store(confidence_SI + at, confidence, mask=s < 5)
    tl.store(p_gold_SI + at, tl.where(gold >= 0, p_gold, float("nan")), mask=s < 5)
    tl.store(margin_SI + at, (1.0 - tl.exp(second - top)) * confidence, mask=s < 5)
    tl.store(entropy_SI + at, tl.log(total) - weighted * confidence, mask=s < 5)


def choice_scores_triton(choices: Choices) -> tuple[Tensor, ...]:
    """The fields of ChoiceScores for checked arguments, at least one item."""
    n_choices, n_items = choices.counts
    logprob_T, uncond_C = choices.logprob_T.float().contiguous(), choices.loglik_uncond_C
    given = [None if x is None else x.contiguous() for x in choices[3:6]]
    given.append(None if uncond_C is None else uncond_C.float().contiguous())
    loglik_C = logprob_T.new_empty(n_choices)
    score_SC = logprob_T.new_empty(5, n_choices)
    pick_SI = torch.empty(5, n_items, dtype=torch.int32, device=logprob_T.device)
    confidence_SI, p_gold_SI, margin_SI, entropy_SI = (logprob_T.new_empty(5, n_items) for _ in range(4))
    per_item = (pick_SI, confidence_SI, p_gold_SI, margin_SI, entropy_SI)
    _choice_kernel[(n_items,)](
        logprob_T,
        choices.target_offset_C1.contiguous(),
        choices.choice_offset_I1.contiguous(),
        *(logprob_T if x is None else x for x in given),
        loglik_C,
        score_SC,
        *per_item,
        n_choices,
        **dict(
            zip(
                ("HAS_GOLD", "HAS_CHARS", "HAS_BYTES", "HAS_UNCOND"),
                (x is not None for x in given),
                strict=True,
            )
        ),
        **CONSTANTS,
        num_warps=1,
    )
    return (loglik_C, score_SC, *per_item)


def specs(capability: int) -> Iterator[Spec]:
    """The kernel with all options, for `compiled.py`."""
    names = ("target_offset_C1", "choice_offset_I1", "gold_I", "chars_C", "bytes_C")
    flags = {f"HAS_{x}": True for x in ("GOLD", "CHARS", "BYTES", "UNCOND")}
    types = {**dict.fromkeys(names, "*i64"), "pick_SI": "*i32"}
    yield Spec("choice", _choice_kernel, types, {**flags, **CONSTANTS}, warps=1)
