"""Resampling: weights for the mixtures, and intervals from any statistic evaluated on them.

Everything is a column. `Resamples.weight_MC` holds, side by side, the sample itself (column 0), the sample with one
unit left out (the jackknife that BCa needs) and the resamples; a statistic is a function of a column of weights,
evaluated once on all columns. Derived statistics (a mean over benchmarks, a difference between scales, a correlation of
two matrices) are plain arithmetic on the columns of simpler ones, so each has its own interval from the same resamples.

With n mixtures there are only C(2n-1, n) distinct resamples (24,310 at n = 9; Hall 1992, appendix I).
`enumerate_resamples` takes each once with its multinomial weight: the bootstrap distribution itself, without
Monte-Carlo error. Where mixtures are in blocks, each resample draws as many from every block as are in it: 3 blocks of 3
have 10^3 distinct resamples.

References: Efron (1987), "Better bootstrap confidence intervals", JASA 82, 171-185 (BCa); Efron & Tibshirani
(1993), "An Introduction to the Bootstrap", ch. 13 (percentile) and 14 (BCa); Davison & Hinkley (1997), ch. 5
(basic); Fisher (1921).

Dims: M mixtures, C columns, S statistics, R resamples.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.statistics.correlation import (
    BlockNumbers,
    block_sizes,
    degrees_of_freedom,
    every_choice,
    members_of,
    parts_of,
)
from evalengine.analysis.statistics.threads import spread
from evalengine.errors import UserError

Array = NDArray[np.float64]
EXACT_LIMIT = 10  # mixtures up to whose number of resamples (92,378) all are enumerated by default
EXACT_MOST = 12  # and the most that `exact` accepts (1,352,078)
DEGENERATE_MOST = 0.05  # share of undefined resamples above which a statistic is not reported
ROUNDING = 1e-12  # what is so near to 0, for statistics of about 1, is 0 (the kernel `below` takes as much for a tie)
KINDS = ("auto", "bca", "bca-t", "percentile", "basic", "fisher", "jackknife", "jackknife-z")


class Basis(NamedTuple):
    """What statistics rest on, where that may be some of the mixtures: those with a value in any part of each, (S, M), how
    many are behind the part that has the fewest, (S,), and how many degrees of freedom fewer than their own t has, (S,)."""

    used_SM: NDArray[np.bool_]
    n_S: NDArray[np.int64]
    lost_S: NDArray[np.int64] | int = 0

    @classmethod
    def of(cls, used_SM: NDArray[np.bool_]) -> Basis:
        """Of statistics without parts."""
        return cls(used_SM, used_SM.sum(axis=1))

    def chosen(self, index: Sequence[int] | NDArray[Any]) -> Basis:
        """Of some of the statistics."""
        return Basis(self.used_SM[index], self.n_S[index])

    def joined(self, other: Basis) -> Basis:
        """Of these statistics and then of others."""
        return Basis(np.concatenate([self.used_SM, other.used_SM]), np.concatenate([self.n_S, other.n_S]))

    def together(self) -> tuple[NDArray[np.bool_], int]:
        """Of one statistic that has all of these as parts: its mixtures, (M,), and n."""
        return np.asarray(self.used_SM.any(axis=0)), int(self.n_S.min()) if len(self.n_S) else 0


@dataclass(frozen=True)
class Resamples:
    """Weights of the mixtures in every column: the sample, `jackknife` leave-one-out samples, the resamples.

    weight_MC: float64, every column sums to 1 (a column of a unit left out has a zero there).
    multiplicity_R: how many of the n^n ordered resamples each stands for; ones for Monte Carlo.
    block_M: the block of each mixture, within which mixtures are compared and resampled; None where all are exchangeable.
    """

    weight_MC: Array
    multiplicity_R: Array
    jackknife: int
    exact: bool
    block_M: BlockNumbers | None = None

    @property
    def count(self) -> int:
        return len(self.multiplicity_R)

    @functools.cached_property
    def leaves_out_mixtures(self) -> bool:
        """Whether these are the units of the jackknife, and not groups of items."""
        return self.jackknife > 0 and bool(self.weight_MC[0, 1] == 0.0)

    @property
    def within_blocks(self) -> bool:
        """Whether the units of the jackknife are mixtures in several blocks."""
        return len(self.parts) > 1

    @functools.cached_property
    def parts(self) -> Sequence[NDArray[np.intp] | slice]:
        """The units of the jackknife by block; all in one where they are groups of items."""
        if self.block_M is None or not self.leaves_out_mixtures:
            return [slice(None)]
        return members_of(self.block_M)

    def freedom(
        self, used_SM: NDArray[np.bool_], n_S: NDArray[np.int64], lost_S: NDArray[np.int64] | int = 0
    ) -> NDArray[np.int64]:
        """Of statistics of n mixtures, less one for the mean of each block that holds any of theirs, (S,)."""
        return n_S - used_SM.sum(axis=1) + degrees_of_freedom(used_SM, self.block_M) - lost_S

    def units(self, statistics: int, basis: Basis | None) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """The units of the jackknife that change each statistic when left out, (S, units): all, or the mixtures that it rests on;
        and its degrees of freedom, (S,).

        A mean of statistics over different mixtures has the degrees of freedom of that over the fewest: with those of all its
        mixtures a mean of r over 20 and over 5 mixtures covers 0.90 instead of 0.95, with these 0.95.
        """
        if basis is None or not self.leaves_out_mixtures:
            freedom_S = np.full(statistics, max(self.jackknife - len(self.parts), 1))
            return np.ones((statistics, self.jackknife), dtype=np.bool_), freedom_S
        return basis.used_SM, np.maximum(self.freedom(*basis), 1)


class Intervals(NamedTuple):
    """Estimates and their intervals: (S,), by kind (S, 2), (S,). NaN where the data cannot say."""

    estimate: Array
    ends: dict[str, Array]
    degenerate: Array  # share of the resamples (by multiplicity) in which the statistic is undefined


def enumerate_resamples(n: int, block_M: BlockNumbers | None = None) -> Resamples:
    """All distinct resamples of n units (within blocks) with their multinomial multiplicities n! / prod(k_i!)."""
    parts, sizes = parts_of(n, block_M), block_sizes(n, block_M)
    count = distinct(sizes)
    if count > distinct([EXACT_MOST]):
        raise UserError(
            f"--bootstrap exact would enumerate {count:,} resamples of {n} mixtures: "
            f"use --bootstrap 10000 above {EXACT_MOST}"
        )
    counts_RM = np.empty((count, n), dtype=np.int8)
    multiplicity_R = np.ones(count)
    for at_M, k_R in zip(parts, every_choice([distinct([m]) for m in sizes]), strict=True):
        counts_Km = _distinct_counts(len(at_M))
        factorial = np.array([math.factorial(k) for k in range(len(at_M) + 1)], dtype=np.float64)
        counts_RM[:, at_M] = counts_Km[k_R]
        multiplicity_R *= (factorial[-1] / factorial[counts_Km].prod(axis=1))[k_R]
    return Resamples(_columns(counts_RM), np.rint(multiplicity_R), n, True, block_M)


def distinct(sizes: Sequence[int]) -> int:
    """The number of distinct resamples within blocks of these sizes."""
    return math.prod(math.comb(2 * m - 1, m) for m in sizes)


def _distinct_counts(n: int) -> NDArray[np.int8]:
    """How often each distinct resample of n units draws each of them, (C(2n-1, n), n)."""
    # Stars and bars: of 2n - 1 places n - 1 hold bars, and the stars between two bars are how often a unit is drawn.
    bars = itertools.chain.from_iterable(itertools.combinations(range(2 * n - 1), n - 1))
    count = distinct([n])
    bar_RB = np.fromiter(bars, np.int8, count * (n - 1)).reshape(count, n - 1)
    counts: NDArray[np.int8] = np.diff(bar_RB, axis=1, prepend=np.int8(-1), append=np.int8(2 * n - 1)) - 1
    return counts


def draw_resamples(n: int, count: int, seed: int, block_M: BlockNumbers | None = None) -> Resamples:
    """`count` Monte-Carlo resamples of n units (within blocks), from a PCG64 generator seeded with `seed`."""
    if count < 100:
        raise UserError(f"--bootstrap {count} is too few to estimate an interval: use 1000 or more, or exact")
    rng = np.random.default_rng(seed)
    counts_RM = np.empty((count, n), dtype=np.intp)
    for at_M in parts_of(n, block_M):
        counts_RM[:, at_M] = count_draws(rng.integers(0, len(at_M), (count, len(at_M))), len(at_M))
    return Resamples(_columns(counts_RM), np.ones(count), n, False, block_M)


def constant_share(sizes: Sequence[int]) -> float:
    """Share of the resamples that draw one unit alone from every block."""
    return math.prod(float(m) ** (1 - m) for m in sizes)


def count_draws(index_RN: NDArray[np.integer], n: int) -> NDArray[np.intp]:
    """How often each resample (row) drew each of n units, (R, n)."""
    R = len(index_RN)
    flat = index_RN + n * np.arange(R)[:, None]
    return np.bincount(flat.ravel(), minlength=R * n).reshape(R, n)


def resamples(n: int, how: str | int | None, seed: int = 0, block_M: BlockNumbers | None = None) -> Resamples:
    """As the user asked: "exact", a number, or None: exact up to EXACT_LIMIT units, or as many resamples, else 10,000.

    block_M: the block of each unit, within which units are drawn.
    """
    if how is None:
        few = distinct(block_sizes(n, block_M)) <= distinct([EXACT_LIMIT])
        how = "exact" if few else 10_000
    return enumerate_resamples(n, block_M) if how == "exact" else draw_resamples(n, int(how), seed, block_M)


def _columns(counts_RM: NDArray[np.integer]) -> Array:
    n = counts_RM.shape[1]
    leave_one_out = (1.0 - np.eye(n)) / (n - 1)
    return np.ascontiguousarray(
        np.concatenate([np.full((n, 1), 1.0 / n), leave_one_out, counts_RM.T / float(n)], axis=1)
    )


def degenerate_share(value_SC: Array, plan: Resamples) -> Array:
    """Share of the resamples, by multiplicity, in which each statistic is undefined, (S,)."""
    undefined_SR = np.isnan(value_SC[:, 1 + plan.jackknife :])
    share_S, some_S = np.zeros(len(undefined_SR)), undefined_SR.any(axis=1)
    share_S[some_S] = undefined_SR[some_S] @ plan.multiplicity_R / plan.multiplicity_R.sum()
    return share_S


def below(value_SC: Array, plan: Resamples, value_S: Array) -> Array:
    """(S, 2): share of the resamples below a value, ties counted half; share in which the statistic is undefined."""
    from evalengine.analysis.statistics import numba_kernels as kernels

    share_S2 = np.empty((len(value_SC), 2))
    spread(
        kernels.below,
        len(value_SC),
        value_SC,
        1 + plan.jackknife,
        plan.multiplicity_R,
        value_S,
        share_S2,
    )
    return share_S2


def intervals(
    value_SC: Array,
    plan: Resamples,
    level: float = 0.95,
    kinds: Sequence[str] = ("percentile", "basic", "bca"),
    basis: Basis | None = None,
) -> Intervals:
    """Estimates and intervals of statistics evaluated on every column of `plan`.

    kinds: of KINDS but "auto" and "fisher". BCa: with z0 = Phi^-1(share of resamples below the estimate, ties half) and the
    acceleration a = sum d^3 / (6 (sum d^2)^1.5), d the jackknife deviations, the ends are the quantiles at Phi(z0 + (z0 + z)
    / (1 - a (z0 + z))). Where z0 is infinite (the estimate lies outside all resamples) BCa is undefined and NaN. All
    resamples equal gives an interval of width zero. BCa-t takes z from Student's t with n - 1 degrees of freedom, n the
    units of the jackknife: for means and differences BCa itself is too narrow at a dozen units. basis: the mixtures that each
    statistic rests on, None for all.
    """
    from scipy.special import ndtr, ndtri, stdtrit

    from evalengine.analysis.statistics.numba_kernels import quantiles

    value_SC = np.ascontiguousarray(value_SC, dtype=np.float64)
    estimate = value_SC[:, 0].copy()
    first = 1 + plan.jackknife
    tails = np.array([0.5 - level / 2.0, 0.5 + level / 2.0])
    share, degenerate = below(value_SC, plan, estimate).T
    used_SU, freedom_S = plan.units(len(estimate), basis)
    z_of = {"bca": ndtri(tails), "bca-t": stdtrit(freedom_S[:, None], tails)}
    prob = {}  # of the quantiles that are the ends of each kind
    if {"percentile", "basic"} & set(kinds):
        prob["percentile"] = np.tile(tails, (len(estimate), 1))
    with np.errstate(all="ignore"):
        z0 = ndtri(share)[:, None]
        a = acceleration(np.where(used_SU, value_SC[:, 1:first], np.nan))[:, None]
        for kind in (kind for kind in z_of if kind in kinds):
            z = z0 + z_of[kind]
            prob[kind] = np.where(np.isfinite(z0), ndtr(z0 + z / (1.0 - a * z)), np.nan)
    ends = {}
    if prob:
        prob_SQ = np.concatenate(list(prob.values()), axis=1)
        end = np.empty_like(prob_SQ)
        spread(quantiles, len(end), value_SC, first, plan.multiplicity_R, prob_SQ, not plan.exact, end)
        for kind, found, at in zip(prob, np.split(end, len(prob), axis=1), prob.values(), strict=True):
            ends[kind] = np.where(np.isnan(at) | np.isnan(estimate)[:, None], np.nan, found)
    if "basic" in kinds:
        ends["basic"] = 2.0 * estimate[:, None] - ends["percentile"][:, ::-1]
    if "jackknife" in kinds:
        ends["jackknife"] = jackknife_t(value_SC, plan, level, basis)
    if "jackknife-z" in kinds:
        ends["jackknife-z"] = jackknife_z(value_SC, plan, level, basis)
    slack_S1 = ROUNDING * np.maximum(1.0, np.abs(estimate))[:, None]
    for kind, end in ends.items():  # rounding must not say that an end at 0 lies above or below it
        ends[kind] = np.where(np.abs(end) <= slack_S1, 0.0, end)
    return Intervals(estimate, ends, degenerate)


def acceleration(jackknife_SM: Array) -> Array:
    """Efron's acceleration from leave-one-out values, (S,); 0 where the jackknife does not vary or is undefined."""
    if jackknife_SM.shape[1] == 0:
        return np.zeros(len(jackknife_SM))
    with np.errstate(all="ignore"):
        count = np.isfinite(jackknife_SM).sum(axis=1, keepdims=True)
        deviation = np.nansum(jackknife_SM, axis=1, keepdims=True) / count - jackknife_SM
        spread = np.nansum(deviation**2, axis=1)
        a = np.nansum(deviation**3, axis=1) / (6.0 * spread**1.5)
    scale = np.nanmax(np.abs(jackknife_SM), axis=1, initial=0.0)
    return np.where((spread > 1e-24 * np.maximum(scale, 1e-300) ** 2) & np.isfinite(a), a, 0.0)


def fisher(r: Array, n: NDArray[Any] | int, level: float = 0.95) -> Array:
    """Fisher's z interval for Pearson's r, (..., 2): tanh(atanh r +- z / sqrt(n - 3)); NaN for n < 4."""
    from scipy.special import ndtri

    r = np.asarray(r, dtype=np.float64)
    n = np.broadcast_to(np.asarray(n, dtype=np.float64), r.shape)
    with np.errstate(all="ignore"):
        half = ndtri(0.5 + level / 2.0) / np.sqrt(np.where(n > 3, n - 3.0, np.nan))
        return np.tanh(np.arctanh(r)[..., None] + half[..., None] * np.array([-1.0, 1.0]))


def jackknife_t(value_SC: Array, plan: Resamples, level: float = 0.95, basis: Basis | None = None) -> Array:
    """Jackknife interval (S, 2): estimate +- t_{n-1} sqrt((n-1)/n sum (theta_(i) - mean)^2) (Tukey 1958).

    With blocks the factor is that of the unit's block and t has one degree of freedom fewer for each (Wolter 2007,
    "Introduction to Variance Estimation", sec. 4.5: deviations from the mean of all). NaN where the statistic is undefined
    without one of the units. basis: n is the number of mixtures that a statistic rests on (`Resamples.units`), None for all.
    """
    from scipy.special import stdtrit

    _, freedom_S = plan.units(len(value_SC), basis)
    half = stdtrit(freedom_S, 0.5 + level / 2.0) * jackknife_error(value_SC, plan, basis)
    return value_SC[:, :1] + half[:, None] * np.array([-1.0, 1.0])


def jackknife_error(value_SC: Array, plan: Resamples, basis: Basis | None = None) -> Array:
    """The jackknife's standard errors (S,): see `jackknife_t`."""
    used_SU, _ = plan.units(len(value_SC), basis)
    left_out = np.where(used_SU, value_SC[:, 1 : 1 + plan.jackknife], 0.0)
    with np.errstate(invalid="ignore"):  # infinite without some unit, or no unit
        mean = left_out.sum(axis=1, keepdims=True) / used_SU.sum(axis=1, keepdims=True)
        squared = np.where(used_SU, (left_out - mean) ** 2, 0.0)
    variance = np.zeros(len(value_SC))
    for unit in plan.parts:
        m = np.maximum(used_SU[:, unit].sum(axis=1), 1)
        variance += (m - 1) / m * squared[:, unit].sum(axis=1)
    return np.sqrt(variance)


def jackknife_z(value_SC: Array, plan: Resamples, level: float = 0.95, basis: Basis | None = None) -> Array:
    """The jackknife interval on Fisher's scale (S, 2): tanh(z +- t_{n-1} SE_jack(z)), z = atanh of the statistic.

    For means of correlations, whose distribution atanh makes nearly normal. NaN where the statistic is 1 or -1, lies
    outside, or is undefined without one of the units.
    """
    value_SC = value_SC[:, : 1 + plan.jackknife]
    with np.errstate(all="ignore"):
        # Where it is 1 but for rounding, atanh would be what the rounding makes of it.
        z_SC = np.arctanh(np.where(np.abs(value_SC) < 1.0 - ROUNDING, value_SC, np.nan))
        ends = jackknife_t(z_SC, plan, level, basis)
    return np.tanh(ends)
