"""Student's t over n mixtures, of n - 1 degrees of freedom."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

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
