"""The mean over mixtures and items of benchmarks, with an interval for other mixtures and other items.

Mixtures answer the same items, so a mean has two sources of error that neither resampling alone sees. The variance is that of
two-way clustering, V = V_mixtures + V_items - V_cells: the first two count the independent part of each cell twice. Items of
different benchmarks are independent, mixtures are the same on all of them. The interval is Student's t with one degree
of freedom less than there are mixtures.

Reference: Cameron, Gelbach & Miller (2011), "Robust inference with multiway clustering", JBES 29, 238-249.

Dims: B benchmarks, M mixtures, I items of a benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from evalengine.analysis.correlation import BlockNumbers, members_of
from evalengine.analysis.explain.choices import Array
from evalengine.analysis.explain.student import quantile


class Mean(NamedTuple):
    """An estimate, its interval and standard error. NaN ends with fewer than two mixtures, or where all of them are alike."""

    estimate: float
    low: float
    high: float
    se: float
    n: int  # mixtures

    @property
    def without_ends(self) -> str:
        """Why there is no interval, "" where there is one."""
        if np.isfinite(self.low):
            return ""
        several = "the same on every item and mixture, so no interval"
        return several if self.n > 1 else "one mixture, so no interval"


def interaction(x_MI: Array, block_M: BlockNumbers | None = None) -> float:
    """Mean square of what is neither the mixtures' nor the items' own (within blocks)."""
    M, I = x_MI.shape  # noqa: E741
    parts = [x_MI] if block_M is None else [x_MI[at] for at in members_of(block_M)]
    rest = [x - x.mean(axis=1, keepdims=True) - x.mean(axis=0) + x.mean() for x in parts]
    return sum(float((x**2).sum()) for x in rest) / ((M - len(parts)) * (I - 1))


def two_way_mean(value_BMI: Sequence[Array], level: float = 0.95) -> Mean:
    """The mean over benchmarks of their means; each benchmark is (M, I) of the same mixtures and has its own number of items."""
    B, M = len(value_BMI), len(value_BMI[0])
    mean_MB = np.stack([x_MI.mean(axis=1) for x_MI in value_BMI], axis=1)
    estimate = float(mean_MB.mean())
    if M < 2:
        return Mean(estimate, np.nan, np.nan, np.nan, M)
    mixtures = float(np.var(mean_MB.mean(axis=1), ddof=1)) / M
    items = cells = 0.0
    for x_MI in value_BMI:
        I = x_MI.shape[1]  # noqa: E741
        if I > 1:
            items += float(np.var(x_MI.mean(axis=0), ddof=1)) / I / B**2
            cells += interaction(x_MI) / (M * I) / B**2
    se = float(np.sqrt(max(mixtures + items - cells, mixtures, items)))
    if not se > 1e-12:
        return Mean(estimate, np.nan, np.nan, se, M)
    half = quantile(M, level) * se
    return Mean(estimate, estimate - half, estimate + half, se, M)
