"""From per-token log-probabilities to scored choices and answered items, without a Python loop over items.

Per choice: the log-likelihood (sum over its targets) and its four normalisations: per character, per byte,
per token and minus the unconditional log-likelihood (PMI). Per item and score: the pick (first index on
ties), the softmax confidence in it, the gold choice's probability, the margin between the two largest
probabilities, and the entropy in nats.

Cost: each log-probability read once. Dims: T targets, C choices of all items, I items, S the five scores of
`SCORES`.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import torch
from torch import Tensor

SCORES = (
    "acc",
    "acc_norm",
    "acc_bytes",
    "acc_token",
    "acc_pmi",
)  # what names the score that picks the answer


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


class ChoiceScores(NamedTuple):
    """Scores of the choices, and per score what each item's softmax over them says. A score that was not
    asked for (no lengths, no unconditional log-likelihoods) is NaN, its pick -1."""

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


def choice_scores_reference(*args: Tensor, **options: Tensor) -> ChoiceScores:
    """The same as a loop over items in float64."""
    logprob_T, target_offset_C1, choice_offset_I1, gold_I, chars_C, bytes_C, loglik_uncond_C = Choices(
        *args, **options
    )
    offset = target_offset_C1.tolist()
    loglik_C = torch.stack([logprob_T[a:b].double().sum() for a, b in itertools.pairwise(offset)])
    lengths = torch.tensor([max(1, b - a) for a, b in itertools.pairwise(offset)])
    nan_C = torch.full_like(loglik_C, torch.nan)
    score_SC = torch.stack(
        [
            loglik_C,
            nan_C if chars_C is None else loglik_C / chars_C,
            nan_C if bytes_C is None else loglik_C / bytes_C,
            loglik_C / lengths,
            nan_C if loglik_uncond_C is None else loglik_C - loglik_uncond_C.double(),
        ]
    )
    items = choice_offset_I1.tolist()
    out = torch.full((5, len(SCORES), len(items) - 1), torch.nan, dtype=torch.float64)
    for i, (first, last) in enumerate(itertools.pairwise(items)):
        for s in range(len(SCORES)):
            score = score_SC[s, first:last]
            if score.isnan().any():
                out[0, s, i] = -1
                continue
            p = score.softmax(0)
            top = p.sort(descending=True).values.tolist()
            gold = -1 if gold_I is None else int(gold_I[i])
            out[0, s, i], out[1, s, i] = float(score.argmax()), top[0]
            out[2, s, i] = p[gold] if gold >= 0 else torch.nan
            out[3, s, i] = top[0] - (top[1] if len(top) > 1 else 0.0)
            out[4, s, i] = torch.special.entr(p).sum()
    return ChoiceScores(loglik_C, score_SC, out[0].int(), out[1], out[2], out[3], out[4])


def _choice_scores(*args: Tensor | None) -> tuple[Tensor, ...]:
    choices = Choices(*args)  # type: ignore[arg-type]
    _check(choices)
    if choices.counts[1] == 0:
        return _fake(*args)
    if choices.logprob_T.device.type == "cuda":
        from evalengine.kernels.choice_scores_triton import choice_scores_triton

        with torch.cuda.device_of(choices.logprob_T):
            return choice_scores_triton(choices)
    return _choice_scores_cpu(choices)


@torch.no_grad()
def _choice_scores_cpu(choices: Choices) -> tuple[Tensor, ...]:
    logprob_T, target_offset_C1, choice_offset_I1, gold_I, chars_C, bytes_C, loglik_uncond_C = choices
    n_choices, n_items = choices.counts
    target_offset_C1, choice_offset_I1 = target_offset_C1.long(), choice_offset_I1.long()
    loglik_C = _segments(logprob_T.double(), "sum", target_offset_C1)
    nan_C = torch.full((n_choices,), torch.nan, dtype=torch.float64)
    score_SC = torch.stack(
        [
            loglik_C,
            nan_C if chars_C is None else loglik_C / chars_C,
            nan_C if bytes_C is None else loglik_C / bytes_C,
            loglik_C / target_offset_C1.diff().clamp(min=1),
            nan_C if loglik_uncond_C is None else loglik_C - loglik_uncond_C,
        ]
    )
    item_C = torch.repeat_interleave(torch.arange(n_items), choice_offset_I1.diff(), output_size=n_choices)
    score_CS = score_SC.t().contiguous()  # segments run along the first dimension
    index_C1 = (torch.arange(n_choices) - choice_offset_I1[item_C])[:, None]
    max_IS = _segments(score_CS, "max", choice_offset_I1)
    pick_IS = _segments(
        torch.where(score_CS == max_IS[item_C], index_C1, n_choices).double(), "min", choice_offset_I1
    )
    exp_CS = torch.exp(score_CS - max_IS[item_C])
    sum_IS = _segments(exp_CS, "sum", choice_offset_I1)
    p_CS = exp_CS / sum_IS[item_C]
    second_IS = _segments(torch.where(index_C1 == pick_IS[item_C], 0.0, p_CS), "max", choice_offset_I1)
    confidence_IS = 1.0 / sum_IS
    entropy_IS = _segments(torch.special.entr(p_CS), "sum", choice_offset_I1)
    p_gold_IS = torch.full_like(sum_IS, torch.nan)
    if gold_I is not None:
        known = (gold_I >= 0).nonzero().squeeze(1)
        p_gold_IS[known] = p_CS[choice_offset_I1[known] + gold_I[known].long()]
    pick_IS = torch.where(sum_IS.isnan(), -1.0, pick_IS)
    per_item = (
        t.t().float().contiguous() for t in (confidence_IS, p_gold_IS, confidence_IS - second_IS, entropy_IS)
    )
    return (loglik_C.float(), score_SC.float(), pick_IS.t().int().contiguous(), *per_item)


def _segments(x: Tensor, how: str, offset: Tensor) -> Tensor:
    return torch.segment_reduce(x, how, offsets=offset, axis=0)


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
