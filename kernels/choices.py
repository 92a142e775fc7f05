"""What `choice_scores` takes and gives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from evalengine.metrics import METRICS


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
