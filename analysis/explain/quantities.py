"""Quantities of a checkpoint on a benchmark that may say more than its accuracy: item by item, more is better.

    accuracy           whether the choice that the benchmark's own score picks is the right one
    correct_prob       exp L of the right choice, L its log-likelihood
    norm_correct_prob  its softmax probability among the choices
    margin             that, minus the largest of a wrong choice
    total_prob         sum of exp L over the choices
    logit margin       L of the right choice minus the largest of a wrong one, within -5 and 5
    log prob           L of the right choice

each of L itself ("raw"), of L per character and of L per token. log prob per character is -ln 2 times bits per character.

References: Magnusson et al. (2025), "DataDecide", for the probabilities.

Dims: K checkpoints, I items, C choices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.explain.choices import Array, Choices

ACCURACY = "accuracy"
UNITS = ("raw", "per character", "per token")


class Quantity(NamedTuple):
    """unit: "" of the accuracy, which has the benchmark's own."""

    name: str
    unit: str

    def __str__(self) -> str:
        return self.name if self.unit in ("", "raw") else f"{self.name} {self.unit}"


def quantities(choices: Choices, k: NDArray[np.int64]) -> Iterator[tuple[Quantity, Array]]:
    """Every quantity of some checkpoints, (K, I)."""
    some = choices.at(k)
    yield Quantity(ACCURACY, ""), some.right()
    lengths: tuple[Any, ...] = (1.0, some.chars_C.clip(1), some.tokens_KC.clip(1))
    for unit, length in zip(UNITS, lengths, strict=True):
        of = some._replace(loglik_KC=some.loglik_KC / length)
        gold_KI = of.gold()
        mass_KI = of.log_mass()
        item_C = np.repeat(np.arange(len(of.gold_I)), np.diff(of.offset_I1))
        share_KC = np.exp(of.loglik_KC - mass_KI[:, item_C])
        share_KI = share_KC[:, of.gold_C]
        yield Quantity("correct_prob", unit), np.exp(gold_KI)
        yield Quantity("norm_correct_prob", unit), share_KI
        yield Quantity("margin", unit), share_KI - of.best_wrong(share_KC)
        yield Quantity("total_prob", unit), np.exp(mass_KI)
        yield Quantity("logit margin", unit), of.margin()
        yield Quantity("log prob", unit), gold_KI
