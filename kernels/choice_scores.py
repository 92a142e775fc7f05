"""From per-token log-probabilities to scored choices and answered items, without a Python loop over items.

Per choice: the log-likelihood (sum over its targets) and its score by every metric of `evalengine.metrics`, where the
formulas are. Per item and metric: the pick (first index on ties), and of the softmax over the metric's own scores the
confidence in the pick, the gold choice's probability, the margin between the two largest probabilities, and the entropy in
nats.

Cost: each log-probability read once. Dims: T targets, C choices of all items, I items, S metrics.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evalengine.metrics import METRICS, answers

SCORES = tuple(METRICS)


class Choices(NamedTuple):
    """The arguments of `choice_scores`."""

    logprob_T: Tensor
    target_offset_C1: Tensor
    choice_offset_I1: Tensor
    gold_I: Tensor | None = None
    chars_C: Tensor | None = None
    bytes_C: Tensor | None = None
    loglik_uncond_C: Tensor | None = None

    @property
    def counts(self) -> tuple[int, int]:
        """(choices, items)."""
        return self.target_offset_C1.numel() - 1, self.choice_offset_I1.numel() - 1

    def scores(self, loglik_C: Tensor) -> Tensor:
        """(S, C): the score of every choice by every metric, NaN where what the metric needs was not given."""
        columns = {
            "chars": self.chars_C,
            "bytes": self.bytes_C,
            "tokens": self.target_offset_C1.diff(),
            "loglik_uncond": self.loglik_uncond_C,
        }
        rows = []
        for metric in METRICS.values():
            needed_C = columns[metric.column] if metric.column else loglik_C
            nan_C = torch.full_like(loglik_C, torch.nan)
            rows.append(nan_C if needed_C is None else metric.score(loglik_C, needed_C.to(loglik_C)))
        return torch.stack(rows)


class ChoiceScores(NamedTuple):
    """Scores of the choices, and per metric what each item's softmax over them says. A score that was not asked for (no
    lengths, no unconditional log-likelihoods) is NaN; where a score of an item is not finite, its pick is -1 and the rest
    NaN."""

    loglik_C: Tensor  # float32
    score_SC: Tensor  # float32, rows in the order of SCORES; row 0 is loglik_C
    pick_SI: Tensor  # int32, index of the choice within its item
    confidence_SI: Tensor  # float32, probability of the pick
    p_gold_SI: Tensor  # float32, NaN where gold is unknown
    margin_SI: Tensor  # float32, largest minus second largest probability; 1 with a single choice
    entropy_SI: Tensor  # float32, nats


def choice_scores(
    logprob_T: Tensor,  # float32, the targets of choice 0, then of choice 1, ...
    target_offset_C1: Tensor,  # C + 1 offsets: choice c owns logprob_T[offset[c] : offset[c + 1]]
    choice_offset_I1: Tensor,  # I + 1 offsets: item i owns choices offset[i] to offset[i + 1] - 1
    *,
    gold_I: Tensor | None = None,  # index of the right choice within its item, -1 where unknown
    chars_C: Tensor | None = None,  # length of each choice in characters
    bytes_C: Tensor | None = None,  # length of each choice in bytes
    loglik_uncond_C: Tensor | None = None,  # log-likelihood of each choice without its context
) -> ChoiceScores:
    """Scores ragged choices. Integer tensors are int32 or int64, all on the device of `logprob_T`.

    A choice without targets has log-likelihood 0; its per-token score is 0 as well. Every item needs a
    choice. Sums run in the order of the targets, in float64 on the CPU and float32 on CUDA, so an item's bits
    do not depend on the others. Raises ValueError where offsets, lengths or gold do not fit.
    """
    op = choice_scores_op if torch.compiler.is_compiling() else _choice_scores
    return ChoiceScores(
        *op(logprob_T, target_offset_C1, choice_offset_I1, gold_I, chars_C, bytes_C, loglik_uncond_C)
    )


def _choice_scores(*args: Tensor | None) -> tuple[Tensor, ...]:
    choices = Choices(*args)  # type: ignore[arg-type]
    _check(choices)
    if choices.counts[1] == 0:
        return _fake(*args)
    if choices.logprob_T.device.type == "cuda":
        from evalengine.kernels.choice_scores_triton import choice_scores_triton

        with torch.cuda.device_of(choices.logprob_T):
            return choice_scores_triton(*choices[:4], scores=choices.scores)
    return _choice_scores_cpu(choices)


@torch.no_grad()
def _choice_scores_cpu(choices: Choices) -> tuple[Tensor, ...]:
    loglik_C = torch.segment_reduce(
        choices.logprob_T.double(), "sum", offsets=choices.target_offset_C1.long(), axis=0
    )
    score_SC = choices.scores(loglik_C)
    offset_I1 = choices.choice_offset_I1.numpy()
    gold_I = np.full(len(offset_I1) - 1, -1) if choices.gold_I is None else choices.gold_I.numpy()
    found = [answers(score_C.numpy(), offset_I1, gold_I)[:5] for score_C in score_SC]
    per_item = (torch.from_numpy(np.stack(field_SI)) for field_SI in zip(*found, strict=True))
    return (loglik_C.float(), score_SC.float(), *per_item)


def _check(choices: Choices) -> None:
    logprob_T, target_offset_C1, choice_offset_I1, gold_I = choices[:4]
    n_choices, n_items = choices.counts
    if logprob_T.ndim != 1 or not logprob_T.is_floating_point():
        raise ValueError(
            f"logprob_T must be a floating vector, not {logprob_T.dtype} {tuple(logprob_T.shape)}"
        )
    _check_offsets("target_offset_C1", target_offset_C1, logprob_T.numel(), least=0)
    _check_offsets("choice_offset_I1", choice_offset_I1, n_choices, least=1)
    for name, x in zip(Choices._fields[4:], choices[4:], strict=True):
        if x is not None and x.shape != (n_choices,):
            raise ValueError(f"{name} must have one number per choice ({n_choices}), not {tuple(x.shape)}")
    if gold_I is not None:
        if gold_I.shape != (n_items,):
            raise ValueError(f"gold_I must have one index per item ({n_items}), not {tuple(gold_I.shape)}")
        if bool((gold_I >= choice_offset_I1.diff()).any()):
            raise ValueError("gold_I names a choice that its item does not have")


def _check_offsets(name: str, offset: Tensor, total: int, least: int) -> None:
    if offset.ndim != 1 or offset.numel() == 0 or offset.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} must be a vector of int32 or int64 offsets that starts with 0")
    ends = offset[[0, -1]].tolist()
    if ends != [0, total] or (offset.numel() > 1 and int(offset.diff().min()) < least):
        raise ValueError(f"{name} must rise from 0 to {total} by at least {least} a step")


def _fake(*args: Tensor | None) -> tuple[Tensor, ...]:
    choices = Choices(*args)  # type: ignore[arg-type]
    n_choices, n_items = choices.target_offset_C1.shape[0] - 1, choices.choice_offset_I1.shape[0] - 1
    n, new = len(SCORES), functools.partial(choices.logprob_T.new_empty, dtype=torch.float32)
    pick_SI = choices.logprob_T.new_empty((n, n_items), dtype=torch.int32)
    return (new((n_choices,)), new((n, n_choices)), pick_SI, *(new((n, n_items)) for _ in range(4)))


SCHEMA = (
    "(Tensor logprob_T, Tensor target_offset_C1, Tensor choice_offset_I1, Tensor? gold_I=None, "
    "Tensor? chars_C=None, Tensor? bytes_C=None, Tensor? loglik_uncond_C=None) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
choice_scores_op = torch.library.custom_op(
    "evalengine::choice_scores", _choice_scores, mutates_args=(), schema=SCHEMA
)
choice_scores_op.register_fake(_fake)
