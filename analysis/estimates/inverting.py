"""p-values by inverting intervals: a value's p is the level at which the interval's end reaches it.

For statistics that no permutation tests, such as a difference of two means of correlations. The interval is that of the group:
BCa with Student's t (`bootstrap.intervals`) or the jackknife's. So p < 0.05 where the 95% interval excludes the value, and the
test holds its level where the interval holds its coverage.

Reference: Davison & Hinkley (1997), sec. 4.4 and 5.2.

Dims: S statistics, C columns.
"""

from __future__ import annotations

import numpy as np

from evalengine.analysis.estimates.groups import Group
from evalengine.analysis.estimates.tables import Tests
from evalengine.analysis.statistics.bootstrap import (
    DEGENERATE_MOST,
    Array,
    Basis,
    Resamples,
    acceleration,
    below,
    degenerate_share,
    jackknife_error,
)
from evalengine.analysis.statistics.correlation import benjamini_hochberg


def inverted(group: Group, plan: Resamples) -> Tests:
    """Two-sided p of each difference being 0, in the group's own contrasts, and q over those of one contrast and scale."""
    out = {}
    for part in (part for part in (group, *group.contrasts) if part.contrast):
        for scale, value_SC in part.values.items():
            test = jackknife_p_at_most if part.interval == "jackknife" else p_at_most
            upper = test(value_SC, plan, basis=part.basis[scale])
            p = 2.0 * np.minimum(upper, 1.0 - upper)
            p[degenerate_share(value_SC, plan) > DEGENERATE_MOST] = np.nan  # not reported
            out[part.contrast, scale] = (p, benjamini_hochberg(p))
    return out


def p_at_most(value_SC: Array, plan: Resamples, value: float = 0.0, basis: Basis | None = None) -> Array:
    """One-sided p of a statistic being at most `value`, (S,); one minus it is the p of being at least that.

    With w = Phi^-1(share of resamples below the value), z0 and a as in `bootstrap.intervals`, a BCa end at z lies at the value
    where z0 + (z0 + z) / (1 - a (z0 + z)) = w, which is solved for z. A value beyond all resamples is taken for one that one
    more resample would reach. NaN where the estimate is, and where it lies outside all resamples.
    """
    from scipy.special import ndtri, stdtr

    value_SC = np.ascontiguousarray(value_SC, dtype=np.float64)
    left_out_SU = value_SC[:, 1 : 1 + plan.jackknife]
    used_SU, freedom_S = plan.units(len(value_SC), basis)
    estimate = value_SC[:, 0].copy()
    with np.errstate(all="ignore"):
        share, z0 = (below(value_SC, plan, at)[:, 0] for at in (np.full(len(estimate), value), estimate))
        least = 1.0 / (plan.multiplicity_R.sum() + 1.0)
        farthest, z0 = -ndtri(least), ndtri(z0)
        w = ndtri(share.clip(least, 1.0 - least))
        slope = 1.0 + acceleration(np.where(used_SU, left_out_SU, np.nan)) * (w - z0)
        z = np.where(slope > 0.0, (w - z0) / slope, np.sign(w - z0) * np.inf) - z0
        p = stdtr(freedom_S, z.clip(-farthest, farthest))
    return np.where(np.isfinite(estimate) & np.isfinite(z0), p, np.nan)


def jackknife_p_at_most(
    value_SC: Array, plan: Resamples, value: float = 0.0, basis: Basis | None = None
) -> Array:
    """The same by the jackknife's interval (`bootstrap.jackknife_t`): Student's test of (estimate - value) / standard error."""
    from scipy.special import stdtr

    with np.errstate(all="ignore"):
        t = (value_SC[:, 0] - value) / jackknife_error(value_SC, plan, basis)
    _, freedom_S = plan.units(len(value_SC), basis)
    return np.asarray(stdtr(freedom_S, -np.where(value_SC[:, 0] == value, 0.0, t)))
