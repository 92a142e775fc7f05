"""Student's t over n mixtures, of n - 1 degrees of freedom."""

from __future__ import annotations

from typing import Any

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


def half_width(x_M: Array, level: float) -> float:
    """Half the interval of the mean of n independent values; NaN of one."""
    n = len(x_M)
    return float(quantile(n, level) * x_M.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan
