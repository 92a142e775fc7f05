"""Intervals by Student's t over n mixtures, of n - 1 degrees of freedom: from standard errors, or by leaving each out once.

References, for the jackknife: Efron & Tibshirani (1993), "An Introduction to the Bootstrap", ch. 11; with blocks, Wolter (2007),
"Introduction to Variance Estimation", sec. 4.5.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from evalengine.analysis.correlation import BlockNumbers, members_of
from evalengine.analysis.explain.choices import Array


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


def interval(estimate_S: Array, se_S: Array, n: int, level: float) -> Interval:
    """Of estimates over n mixtures with known standard errors."""
    half_S = quantile(n, level) * se_S
    with np.errstate(divide="ignore", invalid="ignore"):
        p_S = 2.0 * p_below(-np.abs(estimate_S / se_S), n)
    return Interval(estimate_S, estimate_S - half_S, estimate_S + half_S, se_S, np.asarray(p_S))


def half_width(x_M: Array, level: float) -> float:
    """Half the interval of the mean of n independent values; NaN of one."""
    n = len(x_M)
    return float(quantile(n, level) * x_M.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan


def of_share(
    estimate_S: Array, without_MS: Array, level: float = 0.95, block_M: BlockNumbers | None = None
) -> Interval:
    """Of shares: ends within 0 and 1."""
    found = jackknife(estimate_S, without_MS, level, block_M)
    return found._replace(low=found.low.clip(0.0, 1.0), high=found.high.clip(0.0, 1.0))


def of_correlation(
    estimate_S: Array, without_MS: Array, level: float = 0.95, block_M: BlockNumbers | None = None
) -> Interval:
    """Of correlations: on Fisher's z, which holds for means of them where few mixtures are (docs/analysis.md)."""
    inside = 1.0 - 1e-9
    z_S, z_MS = (np.arctanh(x.clip(-inside, inside)) for x in (estimate_S, without_MS))
    found = jackknife(z_S, z_MS, level, block_M)
    return found._replace(estimate=estimate_S, low=np.tanh(found.low), high=np.tanh(found.high))


def jackknife(
    estimate_S: Array, without_MS: Array, level: float = 0.95, block_M: BlockNumbers | None = None
) -> Interval:
    """`without_MS`: each statistic without each of the M mixtures. n - 1 degrees of freedom; with blocks n minus blocks, and
    factors (m - 1) / m of a block of m, as of `bootstrap.jackknife_t`."""
    n = len(without_MS)
    if block_M is None:
        return interval(estimate_S, np.sqrt((n - 1) * without_MS.var(axis=0)), n, level)
    square_MS, parts = (without_MS - without_MS.mean(axis=0)) ** 2, members_of(block_M)
    variance_S = sum((len(at) - 1) / len(at) * square_MS[at].sum(axis=0) for at in parts)
    return interval(estimate_S, np.sqrt(variance_S), n - len(parts) + 1, level)
