"""From per-token log-probabilities to scored choices and answered items, without a Python loop over items.

Per choice: the log-likelihood (sum over its targets) and its score by every metric of `evalengine.metrics`, where the
formulas are. Per item and metric, by `metrics.answers`: the pick (first index on ties), and of the softmax over the metric's
own scores the confidence in the pick, the gold choice's probability, the margin between the two largest probabilities, and
the entropy in nats.

Cost: each log-probability read once, on the CPU, where CUDA tensors are brought and from where the results are.
Dims: T targets, C choices of all items, I items, S metrics.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evalengine.metrics import METRICS, answers

SCORES = tuple(METRICS)
Fields = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # those of ChoiceScores


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


@torch.no_grad()
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
    choice. Sums run in the order of the targets, in float64, so an item's bits do not depend on the others.
    Raises ValueError where offsets, lengths or gold do not fit.
    """
    op = choice_scores_op if torch.compiler.is_compiling() else _choice_scores
    return ChoiceScores(
        *op(logprob_T, target_offset_C1, choice_offset_I1, gold_I, chars_C, bytes_C, loglik_uncond_C)
    )


def _choice_scores(
    logprob_T: Tensor,
    target_offset_C1: Tensor,
    choice_offset_I1: Tensor,
    gold_I: Tensor | None,
    chars_C: Tensor | None,
    bytes_C: Tensor | None,
    loglik_uncond_C: Tensor | None,
) -> Fields:
    if logprob_T.ndim != 1 or not logprob_T.is_floating_point():
        raise ValueError(
            f"logprob_T must be a floating vector, not {logprob_T.dtype} {tuple(logprob_T.shape)}"
        )
    _check_offsets("target_offset_C1", target_offset_C1, logprob_T.numel(), least=0)
    n_choices, n_items = target_offset_C1.numel() - 1, choice_offset_I1.numel() - 1
    _check_offsets("choice_offset_I1", choice_offset_I1, n_choices, least=1)
    columns = {"chars": chars_C, "bytes": bytes_C, "loglik_uncond": loglik_uncond_C}
    for name, x in columns.items():
        if x is not None and x.shape != (n_choices,):
            raise ValueError(f"{name}_C must have one number per choice ({n_choices}), not {tuple(x.shape)}")
    if gold_I is None:
        gold_I = torch.full((n_items,), -1)
    if gold_I.shape != (n_items,):
        raise ValueError(f"gold_I must have one index per item ({n_items}), not {tuple(gold_I.shape)}")
    if bool((gold_I.cpu() >= choice_offset_I1.cpu().diff()).any()):
        raise ValueError("gold_I names a choice that its item does not have")

    target_offset_C1 = target_offset_C1.long().cpu()
    loglik_C = torch.segment_reduce(logprob_T.cpu().double(), "sum", offsets=target_offset_C1, axis=0)
    columns["tokens"] = target_offset_C1.diff()
    nan_C, rows = torch.full_like(loglik_C, torch.nan), []
    for metric in METRICS.values():
        needed_C = columns[metric.column] if metric.column else loglik_C
        rows.append(nan_C if needed_C is None else metric.score(loglik_C, needed_C.to(loglik_C)))
    score_SC = torch.stack(rows)
    items = choice_offset_I1.cpu().numpy(), gold_I.cpu().numpy()
    found = [answers(score_C.numpy(), *items)[:5] for score_C in score_SC]
    pick_SI, *others = (torch.from_numpy(np.stack(field_SI)) for field_SI in zip(*found, strict=True))
    fields = loglik_C.float(), score_SC.float(), pick_SI, *others
    return tuple(x.to(logprob_T.device) for x in fields)  # type: ignore[return-value]


def _check_offsets(name: str, offset: Tensor, total: int, least: int) -> None:
    if offset.ndim != 1 or offset.numel() == 0 or offset.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} must be a vector of int32 or int64 offsets that starts with 0")
    ends = offset[[0, -1]].tolist()
    if ends != [0, total] or (offset.numel() > 1 and int(offset.diff().min()) < least):
        raise ValueError(f"{name} must rise from 0 to {total} by at least {least} a step")


def _fake(logprob_T: Tensor, target_offset_C1: Tensor, choice_offset_I1: Tensor, *_: Tensor | None) -> Fields:
    n_choices, n_items = target_offset_C1.shape[0] - 1, choice_offset_I1.shape[0] - 1

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return logprob_T.new_empty(shape, dtype=dtype)

    n = len(SCORES)
    per_item = new(n, n_items), new(n, n_items), new(n, n_items), new(n, n_items)
    return new(n_choices), new(n, n_choices), new(n, n_items, dtype=torch.int32), *per_item


choice_scores_op = torch.library.custom_op("evalengine::choice_scores", _choice_scores, mutates_args=())
choice_scores_op.register_fake(_fake)
