"""Intervals of statistics over mixtures by leaving each out once, with Student's t.

References: Efron & Tibshirani (1993), "An Introduction to the Bootstrap", ch. 11; with blocks, Wolter (2007), "Introduction to
Variance Estimation", sec. 4.5.
"""

from __future__ import annotations

import numpy as np

from evalengine.analysis.correlation import BlockNumbers, members_of
from evalengine.analysis.explain.choices import Array
from evalengine.analysis.explain.student import Interval, interval


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
