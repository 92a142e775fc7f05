"""Quantities of a checkpoint on a benchmark that may say more than its accuracy: item by item, more is better.

    accuracy           whether the choice that the benchmark's own score picks is the right one
    correct_prob       exp L of the right choice, L its log-likelihood
    norm_correct_prob  its softmax probability among the choices
    margin             that, minus the largest of a wrong choice
    total_prob         sum of exp L over the choices
    logit margin       L of the right choice minus the largest of a wrong one, within -5 and 5
    log prob           L of the right choice

each of L itself, of L per character and of L per token. log prob per character is -ln 2 times bits per character.

References: Magnusson et al. (2025), "DataDecide", for the probabilities.

Dims: K checkpoints, I items, C choices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.explain.choices import Array, Choices
from evalengine.analysis.explain.design import by_mixture
from evalengine.analysis.explain.explainer import StudyScores, once
from evalengine.analysis.explain.means import Member

ACCURACY = "accuracy"
UNITS = ("", " per character", " per token")


@dataclass(frozen=True)
class Quantities(Member):
    """A benchmark at a scale and stage, by quantity: (M, I), runs of a mixture averaged, and the standard deviation between runs
    of a mixture, NaN with one run of each."""

    value: dict[str, Array]
    between_runs: dict[str, float]


@once
def quantities_of(study: StudyScores, scale: str, after: bool) -> dict[str, Quantities]:
    """By benchmark, of those that all runs have."""
    out = {}
    mixture_R = study.design.numbered(scale)[1]
    for choices in study.scores.benchmarks:
        if (some := choices.of(study.design.names(scale, after))) is not None:
            every = dict(quantities(some))
            value = {q: by_mixture(x_RI, mixture_R) for q, x_RI in every.items()}
            apart = {q: between_runs(x_RI.mean(axis=1), mixture_R) for q, x_RI in every.items()}
            out[choices.name] = Quantities(choices.category, choices.name, value, apart)
    return out


def between_runs(mean_R: Array, mixture_R: NDArray[np.int64]) -> float:
    """Standard deviation between runs of one mixture, pooled; NaN with one run of each."""
    count = np.bincount(mixture_R)
    if not (count > 1).any():
        return np.nan
    within = mean_R - (np.bincount(mixture_R, mean_R) / np.maximum(count, 1))[mixture_R]
    return float(np.sqrt((within**2).sum() / (len(mean_R) - (count > 0).sum())))


def quantities(some: Choices) -> Iterator[tuple[str, Array]]:
    """Every quantity of checkpoints, (K, I)."""
    yield ACCURACY, some.right()
    lengths: tuple[Any, ...] = (1.0, some.chars_C.clip(1), some.tokens_KC.clip(1))
    for unit, length in zip(UNITS, lengths, strict=True):
        of = some._replace(loglik_KC=some.loglik_KC / length)
        gold_KI = of.gold()
        mass_KI = of.log_mass()
        item_C = np.repeat(np.arange(len(of.gold_I)), np.diff(of.offset_I1))
        share_KC = np.exp(of.loglik_KC - mass_KI[:, item_C])
        share_KI = share_KC[:, of.gold_C]
        yield f"correct_prob{unit}", np.exp(gold_KI)
        yield f"norm_correct_prob{unit}", share_KI
        yield f"margin{unit}", share_KI - of.best_wrong(share_KC)
        yield f"total_prob{unit}", np.exp(mass_KI)
        yield f"logit margin{unit}", of.margin()
        yield f"log prob{unit}", gold_KI
