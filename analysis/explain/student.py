"""Intervals by Student's t over n mixtures, of n - 1 degrees of freedom: of means over mixtures and items, from standard errors,
or by leaving each mixture out once. Ends are cut to what the statistic can be (analysis/statistics/ranges.py), p-values are of
uncut ones.

Mixtures answer the same items, so a mean has two sources of error that neither resampling alone sees. Its variance is that of
two-way clustering, V = V_mixtures + V_items - V_cells: the first two count the independent part of each cell twice. Items of
different benchmarks are independent, mixtures are the same on all of them.

References: Cameron, Gelbach & Miller (2011), "Robust inference with multiway clustering", JBES 29, 238-249. For the jackknife:
Efron & Tibshirani (1993), "An Introduction to the Bootstrap", ch. 11; with blocks, Wolter (2007), "Introduction to Variance
Estimation", sec. 4.5.

Dims: B benchmarks, M mixtures, R runs, I items of a benchmark, S statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.explain.choices import Array
from evalengine.analysis.statistics.correlation import BlockNumbers, members_of
from evalengine.analysis.statistics.ranges import ANY, Range


def quantile(n: int, level: float) -> float:
    """How many standard errors the ends of a two-sided interval lie from the estimate; NaN of one mixture."""
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 0.5 + level / 2))


def p_below(t: Any, n: int) -> Any:
    """The probability of a smaller t, of a number or an array."""
    from scipy.special import stdtr

    return stdtr(n - 1, t)


class Interval(NamedTuple):
    """Estimates of any shape, their ends and standard errors, and two-sided p of their being 0; NaN where one is not defined."""

    estimate: Any
    low: Any
    high: Any
    se: Any
    p: Any

    def at(self, k: int) -> Interval:
        """One of several, as numbers."""
        return Interval(*(float(value_K[k]) for value_K in self))


def interval(estimate_S: Array, se_S: Array, n: int, level: float, possible: Range = ANY) -> Interval:
    """Of estimates over n mixtures with known standard errors."""
    half_S = quantile(n, level) * se_S
    with np.errstate(divide="ignore", invalid="ignore"):
        p_S = 2.0 * p_below(-np.abs(estimate_S / se_S), n)
    low_S, high_S = np.clip([estimate_S - half_S, estimate_S + half_S], *possible)
    return Interval(estimate_S, low_S, high_S, se_S, np.asarray(p_S))


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


def two_way_mean(value_BMI: Sequence[Array], level: float = 0.95, possible: Range = ANY) -> Mean:
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
    low, high = np.clip([estimate - half, estimate + half], *possible).tolist()
    return Mean(estimate, low, high, se, M)


def interaction(x_MI: Array, block_M: BlockNumbers | None = None) -> float:
    """Mean square of what is neither the mixtures' nor the items' own (within blocks)."""
    M, I = x_MI.shape  # noqa: E741
    parts = [x_MI] if block_M is None else [x_MI[at] for at in members_of(block_M)]
    rest = [x - x.mean(axis=1, keepdims=True) - x.mean(axis=0) + x.mean() for x in parts]
    return sum(float((x**2).sum()) for x in rest) / ((M - len(parts)) * (I - 1))


def half_width(x_M: Array, level: float) -> float:
    """Half the interval of the mean of n independent values; NaN of one."""
    n = len(x_M)
    return float(quantile(n, level) * x_M.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan


def pooled(
    y_RI: Array, used_RI: NDArray[np.bool_], mixture_R: NDArray[np.int64], level: float, possible: Range
) -> tuple[float, float, float]:
    """The mean of the values that are used, some at least, and its ends by the means of the mixtures that have any."""
    estimate = float(y_RI[used_RI].mean())
    sums_R = used_RI.sum(axis=1), np.where(used_RI, y_RI, 0.0).sum(axis=1)
    count_M, sum_M = (np.bincount(mixture_R, of_R) for of_R in sums_R)
    there_M = count_M > 0
    half = half_width(sum_M[there_M] / count_M[there_M], level)
    low, high = np.clip([estimate - half, estimate + half], *possible).tolist()
    return estimate, low, high


def of_correlation(
    estimate_S: Array, without_MS: Array, level: float = 0.95, block_M: BlockNumbers | None = None
) -> Interval:
    """Of correlations: on Fisher's z, which holds for means of them where few mixtures are (docs/analysis.md)."""
    inside = 1.0 - 1e-9
    z_S, z_MS = (np.arctanh(x.clip(-inside, inside)) for x in (estimate_S, without_MS))
    found = jackknife(z_S, z_MS, level, block_M)
    return found._replace(estimate=estimate_S, low=np.tanh(found.low), high=np.tanh(found.high))


def jackknife(
    estimate_S: Array,
    without_MS: Array,
    level: float = 0.95,
    block_M: BlockNumbers | None = None,
    possible: Range = ANY,
) -> Interval:
    """`without_MS`: each statistic without each of the M mixtures. n - 1 degrees of freedom; with blocks n minus blocks, and
    factors (m - 1) / m of a block of m, as of `bootstrap.jackknife_t`."""
    n = len(without_MS)
    parts = [np.arange(n)] if block_M is None else members_of(block_M)
    square_MS = (without_MS - without_MS.mean(axis=0)) ** 2
    variance_S = sum((len(at) - 1) / len(at) * square_MS[at].sum(axis=0) for at in parts)
    return interval(estimate_S, np.sqrt(variance_S), n - len(parts) + 1, level, possible)
