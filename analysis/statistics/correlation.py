"""Correlations over weighted columns, their permutation p-values, and the false-discovery rate.

A `Sample` is the data of one scale and quantity: variables (benchmarks at a stage) over mixtures, either one
data set for all columns of weights or, when items are resampled, one per column. Missing values (NaN) are
left out pair by pair: the correlation is over the mixtures that have both.

A sample whose mixtures are in blocks (`block_M`) has correlations within them: of what is left of each variable, or of its
ranks, once the mean of the mixture's block is subtracted, which is the partial r given the block. Kendall's tau is then over
the pairs of mixtures of one block, and mixtures are permuted within their blocks.

References: Pearson (1895); Spearman (1904); Kendall (1945), tau-b; Phipson & Smyth (2010) on permutation
p-values; Benjamini & Hochberg (1995), JRSS B 57, 289-300.

Dims: V variables, M mixtures, C columns, P pairs, S statistics, G blocks.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.statistics.threads import spread

Array = NDArray[np.float64]
BlockNumbers = NDArray[np.int64]  # (M,), the number of each mixture's block
STATISTICS = ("pearson", "spearman", "kendall")
EXACT_MIXTURES = 9  # up to whose number of orders all are walked
EXACT_PERMUTATIONS = math.factorial(EXACT_MIXTURES)
SAMPLED = 100_000  # and how many seeded ones, where there are more
TINY = 1e-12  # variance of standardised data below which a resample counts as constant
COLUMN_BYTES = 32 << 20  # of data that differ by column, at once
COUNTED = 64  # mixtures up to which ranks in columns of their own are counted, not sorted
KEPT = 4 << 20  # numbers (variables x columns) up to which a sample keeps its moments
# seeded orders times pairs of mixtures that a permutation test of Kendall's tau walks at most
TAU_TERMS = 1 << 28
BLOCK_TERMS = 1 << 22  # the same at once


class Moments(NamedTuple):
    """Standardised variables, and their weighted mean and 1/sd in each column (NaN where they do not vary)."""

    x_VM: Array
    mean_VC: Array
    inverse_VC: Array


@dataclass(frozen=True)
class Sample:
    """Variables over mixtures: `x_VMC` is (V, M, 1) or (V, M, C); `w_MC` columns of weights that sum to 1; `block_M` the
    block of each mixture, None where all are exchangeable."""

    x_VMC: Array
    w_MC: Array
    block_M: BlockNumbers | None = None

    @functools.cached_property
    def moments(self) -> Moments:
        """Of data that are the same in every column; kept, since many statistics rest on the same variables."""
        return moments(self.x_VMC, self.w_MC)

    def of(self, variables: NDArray[np.int64]) -> Sample:
        """Some of the variables, whose moments are not computed again."""
        part = Sample(np.ascontiguousarray(self.x_VMC[variables]), self.w_MC, self.block_M)
        if self.block_M is None:  # within blocks they differ by column
            part.__dict__["moments"] = Moments(*(values[variables] for values in self.moments))
        return part

    def only(self, keep_M: NDArray[np.bool_]) -> Sample:
        """The same for some of the mixtures, weights rescaled (NaN columns where none of them is in the resample)."""
        if keep_M.all():
            return self
        w_MC = self.w_MC[keep_M]
        with np.errstate(invalid="ignore", divide="ignore"):
            w_MC = w_MC / w_MC.sum(axis=0)
        block_M = None if self.block_M is None else self.block_M[keep_M]
        return Sample(np.ascontiguousarray(self.x_VMC[:, keep_M]), np.ascontiguousarray(w_MC), block_M)


def correlate(sample: Sample, pair_P2: NDArray[np.int64], statistic: str = "pearson") -> Array:
    """The statistic of each pair of variables in each column, (P, C); NaN where a variable is constant or missing."""
    if statistic not in STATISTICS:
        raise ValueError(f"no statistic '{statistic}': {', '.join(STATISTICS)}")
    pair_P2 = np.ascontiguousarray(pair_P2, dtype=np.int64).reshape(-1, 2)
    if not len(pair_P2):
        return np.empty((0, sample.w_MC.shape[1]))
    known_VM = np.isfinite(sample.x_VMC[:, :, 0])
    known_PM = known_VM[pair_P2[:, 0]] & known_VM[pair_P2[:, 1]]
    if known_PM.all():
        return _complete(sample, pair_P2, statistic)
    out_PC = np.full((len(pair_P2), sample.w_MC.shape[1]), np.nan)
    masks, group = np.unique(known_PM, axis=0, return_inverse=True)
    for g, mask in enumerate(masks):
        if mask.sum() >= 3:
            chosen = np.flatnonzero(group.ravel() == g)
            out_PC[chosen] = _complete(sample.only(mask), pair_P2[chosen], statistic)
    return out_PC


def _complete(sample: Sample, pair_P2: NDArray[np.int64], statistic: str) -> Array:
    V, M, last = sample.x_VMC.shape
    C = sample.w_MC.shape[1]
    same_in_every_column = statistic == "pearson" and last == 1 and sample.block_M is None
    if same_in_every_column and V * C <= KEPT:
        return _pearson(sample.moments, pair_P2, sample.w_MC)
    used, flat = np.unique(pair_P2, return_inverse=True)
    pair_P2 = flat.reshape(-1, 2).astype(np.int64)
    if same_in_every_column:
        return _pearson(moments(sample.x_VMC[used], sample.w_MC), pair_P2, sample.w_MC)
    x_VMC = standardise(sample.x_VMC[used])
    if statistic != "pearson":
        x_VMC = np.round(x_VMC, 12)  # equal accuracies stay tied
    if statistic == "kendall":
        return bounded_ratio(*pair_sums(x_VMC, pair_P2, sample.w_MC, KENDALL, sample.block_M))
    step = max(1, COLUMN_BYTES // (8 * len(x_VMC) * M))
    out_PC = np.empty((len(pair_P2), C))
    for start in range(0, C, step):
        part = slice(start, start + step)
        w_MC = np.ascontiguousarray(sample.w_MC[:, part])
        x_part = x_VMC if last == 1 else np.ascontiguousarray(x_VMC[:, :, part])
        if statistic == "spearman":
            x_part = _midranks(x_part, w_MC)
        if sample.block_M is not None:
            x_part = within(x_part, w_MC, sample.block_M)
        out_PC[:, part] = _pearson_by_column(x_part, pair_P2, w_MC)
    return out_PC


def moments(x_VMC: Array, w_MC: Array) -> Moments:
    """Of variables (V, M, 1) that are the same in every column."""
    x_VMC = standardise(x_VMC)
    mean_VC, square_VC = weighted_sums(x_VMC, w_MC), weighted_sums(x_VMC**2, w_MC)
    variance_VC = square_VC - mean_VC**2
    variance_VC[variance_VC <= TINY] = np.nan
    return Moments(x_VMC[:, :, 0], mean_VC, 1.0 / np.sqrt(variance_VC))


def _pearson(of: Moments, pair_P2: NDArray[np.int64], w_MC: Array) -> Array:
    from evalengine.analysis.statistics.numba_kernels import pearson, tiles

    value_PC = np.empty((len(pair_P2), w_MC.shape[1]))
    spread(pearson, tiles(w_MC.shape[1]), of.x_VM, pair_P2, w_MC, of.mean_VC, of.inverse_VC, value_PC)
    value_PC[:, 0] = value_PC[:, 0].clip(-1.0, 1.0)
    return value_PC


def _midranks(x_VMC: Array, w_MC: Array) -> Array:
    """Weighted mid-ranks in each column, (V, M, C), of data that are the same in every column or not."""
    from evalengine.analysis.statistics import numba_kernels as kernels

    V, M, last = x_VMC.shape
    out_VMC = np.empty((V, *w_MC.shape))
    if last > 1 and M <= COUNTED:
        spread(kernels.counted_midranks, kernels.tiles(last), x_VMC, w_MC, out_VMC)
    else:
        spread(kernels.midranks, V, x_VMC, w_MC, out_VMC)
    return out_VMC


def _pearson_by_column(x_VMC: Array, pair_P2: NDArray[np.int64], w_MC: Array) -> Array:
    """As `_pearson`, for data that differ from column to column (resampled items, ranks)."""
    from evalengine.analysis.statistics.numba_kernels import pearson_by_column, tiles

    value_PC = np.empty((len(pair_P2), w_MC.shape[1]))
    spread(pearson_by_column, tiles(w_MC.shape[1]), x_VMC, pair_P2, w_MC, TINY, value_PC)
    return value_PC


def within(x_VMC: Array, w_MC: Array, block_M: BlockNumbers) -> Array:
    """Each variable minus its weighted mean over the mixture's block, (V, M, C)."""
    out_VMC = np.empty((*x_VMC.shape[:2], max(x_VMC.shape[2], w_MC.shape[1])))
    for at_M in members_of(block_M):
        w_mC = w_MC[at_M]
        total_C = w_mC.sum(axis=0)
        mean_VC = weighted_sums(x_VMC[:, at_M], w_mC) / np.where(total_C == 0.0, 1.0, total_C)
        out_VMC[:, at_M] = x_VMC[:, at_M] - mean_VC[:, None]
    return out_VMC


def members_of(block_M: BlockNumbers) -> list[NDArray[np.intp]]:
    """The mixtures of each block."""
    return [np.flatnonzero(block_M == g) for g in np.unique(block_M)]


def parts_of(M: int, block_M: BlockNumbers | None) -> list[NDArray[np.intp]]:
    """The mixtures of each block; all M in one where there are no blocks."""
    return [np.arange(M)] if block_M is None else members_of(block_M)


def degrees_of_freedom(known_PM: NDArray[np.bool_], block_M: BlockNumbers | None) -> NDArray[np.int64]:
    """Mixtures less blocks that hold any of them (all in one where there are no blocks), (P,)."""
    if block_M is None:
        return known_PM.sum(axis=1) - 1
    blocks_P = sum(known_PM[:, at_M].any(axis=1).astype(np.int64) for at_M in members_of(block_M))
    return known_PM.sum(axis=1) - blocks_P


def bounded_ratio(xy: Array, xx: Array, yy: Array) -> Array:
    """Covariances over the roots of both variances, in [-1, 1]; NaN where a variance is not above TINY."""
    with np.errstate(invalid="ignore", divide="ignore"):
        r: Array = np.where((xx > TINY) & (yy > TINY), xy / np.sqrt(xx * yy), np.nan)
    return r.clip(-1.0, 1.0)


def weighted_sums(x_SMC: Array, w_MC: Array) -> Array:
    """Sum over mixtures of values, the same in every column (S, M, 1) or not (S, M, C), times their weights, (S, C)."""
    from evalengine.analysis.statistics import numba_kernels as kernels

    if x_SMC.shape[2] > 1:
        return np.stack([(x_MC * w_MC).sum(axis=0) for x_MC in x_SMC])
    sum_SC = np.zeros((len(x_SMC), w_MC.shape[1]))
    x_SM = np.ascontiguousarray(x_SMC[:, :, 0])
    spread(kernels.weighted_sums, kernels.tiles(w_MC.shape[1]), x_SM, w_MC, sum_SC)
    return sum_SC


# Terms of a pair of different mixtures, in this order. agree: sign of the difference in x times that in y; untied: 1 where
# x, or y, or either of them differs; wrong: half the difference of the two signs, so 1 where x and y disagree and 1/2 where one
# is tied; loss: `wrong` times the difference in y.
TERMS = ("agree", "untied_x", "untied_y", "untied", "wrong", "loss")
KENDALL, DECISION = slice(0, 3), slice(3, 6)


def pair_sums(
    x_VMC: Array, pair_P2: NDArray[np.int64], w_MC: Array, which: slice, block_M: BlockNumbers | None = None
) -> Array:
    """Sums over pairs of different mixtures (of one block) of the product of their weights times each of the TERMS asked
    for, (T, P, C): what Kendall's tau and pairwise decisions are made of.

    Copies of one mixture in a resample are ties in both variables and add nothing.
    """
    from evalengine.analysis.statistics import numba_kernels as kernels

    M, C = w_MC.shape
    alike_MM = np.ones((M, M)) if block_M is None else 1.0 * np.equal.outer(block_M, block_M)
    out_TPC = np.zeros((len(TERMS[which]), len(pair_P2), C))
    for p, (i, j) in enumerate(pair_P2):
        x_MC, y_MC = x_VMC[i], x_VMC[j]
        if x_VMC.shape[2] == 1:  # the same terms in every column
            terms_TMM = _terms(x_MC - x_MC.T, y_MC - y_MC.T, which) * alike_MM
            spread(kernels.pair_sums, kernels.tiles(C), terms_TMM, w_MC, out_TPC[:, p])
        else:
            for m in range(1, M):
                terms_TmC = _terms(x_MC[m] - x_MC[:m], y_MC[m] - y_MC[:m], which)
                out_TPC[:, p] += w_MC[m] * (terms_TmC * w_MC[:m] * alike_MM[m, :m, None]).sum(axis=1)
    return out_TPC


def _terms(dx: Array, dy: Array, which: slice) -> Array:
    """The TERMS asked for, of differences in x and in y, along a new first axis."""
    x, y = np.sign(dx), np.sign(dy)
    wrong = 0.5 * np.abs(x - y)
    untied_x, untied_y = np.abs(x), np.abs(y)
    untied = np.maximum(untied_x, untied_y)
    every: list[Array] = [x * y, untied_x, untied_y, untied, wrong, wrong * np.abs(dy)]
    return np.stack(every[which])


def standardise(x_VMC: Array) -> Array:
    """Variables with the first column's mean 0 and sd 1, so that kernels may judge spread by one threshold."""
    mean = x_VMC[:, :, :1].mean(axis=1, keepdims=True)
    sd = x_VMC[:, :, :1].std(axis=1, keepdims=True)
    constant = sd <= 1e-12 * np.maximum(np.abs(mean), 1e-300)
    # A constant variable becomes all zeros: no spread in any resample of the mixtures.
    scaled = (x_VMC - mean) / np.where(constant, 1.0, sd)
    if x_VMC.shape[2] == 1:
        scaled[constant[:, 0, 0]] = 0.0
    return np.ascontiguousarray(scaled)


def ranks(x_VM: Array) -> Array:
    """Mid-ranks (1 = smallest) of each variable, NaN kept."""
    from scipy.stats import rankdata

    return np.stack([rankdata(np.round(x, 12), nan_policy="omit") for x in x_VM]) if len(x_VM) else x_VM


def similarity_terms(x_SM: Array, y_SM: Array) -> Array:
    """A[s, m, k] = z(x)_m z(y)_k / M, so that sum_m A[s, m, perm(m)] is r with y permuted; NaN for constants."""
    x_SM, y_SM = (standardise(v_SM[:, :, None])[:, :, 0] for v_SM in (x_SM, y_SM))
    a_SMM = x_SM[:, :, None] * y_SM[:, None, :] / x_SM.shape[1]
    a_SMM[~(x_SM.any(axis=1) & y_SM.any(axis=1))] = np.nan
    return a_SMM


def permutation_p(
    a_SMM: Array, seed: int = 0, count: int = SAMPLED, block_M: BlockNumbers | None = None
) -> Array:
    """Two-sided p of each statistic sum_m A[m, perm(m)] against permuting the mixtures (within blocks): P(|t*| >= |t|).

    All orders where they are at most EXACT_PERMUTATIONS (9! of 9 mixtures; no Monte-Carlo error), else `count` seeded ones
    with the observed order counted in. A category's mean r is such a statistic too: the mean of its benchmarks' A, all
    permuted together.
    """
    from evalengine.analysis.statistics.numba_kernels import PERMUTATIONS, permutation_hits

    M = a_SMM.shape[1]
    usable = np.isfinite(a_SMM).all(axis=(1, 2))
    p_S = np.full(len(a_SMM), np.nan)
    a_MMS = np.ascontiguousarray(a_SMM[usable].transpose(1, 2, 0))
    orders_MN, exact = orders_within(_blocks(M, block_M), seed, count)
    # Orders of equal |t| in exact arithmetic, as with tied values, count as equal.
    slack_S = 1e-12 * M * np.abs(a_MMS).max(axis=(0, 1))
    N = orders_MN.shape[1]
    hits_KS = np.zeros((-(-N // PERMUTATIONS), len(slack_S)), dtype=np.int64)
    spread(permutation_hits, len(hits_KS), a_MMS, orders_MN, np.abs(np.trace(a_MMS)) - slack_S, hits_KS)
    hits_S = hits_KS.sum(axis=0)
    # Among drawn orders the observed one counts as one of them (Davison & Hinkley 1997, eq. 4.11).
    p_S[usable] = hits_S / N if exact else (1.0 + hits_S) / (N + 1)
    return p_S


def permuted_p(
    x_BM: Array,
    y_BM: Array,
    members: Sequence[Sequence[int]],
    statistic: str = "pearson",
    seed: int = 0,
    block_M: BlockNumbers | None = None,
) -> Array:
    """Two-sided permutation p of each mean correlation of benchmarks before (x) and after (y), (S,).

    members: the benchmarks whose mean each statistic is, all permuted together. block_M: mixtures are permuted within
    these, and the correlations are within them. NaN where a benchmark is constant (within the blocks).
    """
    if statistic == "kendall":
        return _permuted_tau_p(x_BM, y_BM, members, seed, block_M)
    if statistic == "spearman":
        x_BM, y_BM = ranks(x_BM), ranks(y_BM)
    if block_M is not None:
        x_BM, y_BM = residuals(x_BM, block_M), residuals(y_BM, block_M)
    a_BMM = similarity_terms(x_BM, y_BM)
    means_SMM = np.array([a_BMM[list(index)].mean(axis=0) for index in members])
    return permutation_p(means_SMM, seed, block_M=block_M)


def residuals(x_VM: Array, block_M: BlockNumbers) -> Array:
    """Standardised variables minus the mean of the mixture's block; zeros where one does not vary within blocks."""
    M = x_VM.shape[1]
    left_VM = within(standardise(x_VM[:, :, None]), np.full((M, 1), 1.0 / M), block_M)[:, :, 0]
    left_VM[(left_VM**2).mean(axis=1) <= TINY] = 0.0
    return left_VM


def _permuted_tau_p(
    x_BM: Array, y_BM: Array, members: Sequence[Sequence[int]], seed: int, block_M: BlockNumbers | None
) -> Array:
    """The same for Kendall's tau-b: a sum over pairs of mixtures, so not one of `permutation_p`'s statistics."""
    M = x_BM.shape[1]
    blocks = _blocks(M, block_M)
    i, j = np.triu_indices(M, 1)
    alike = np.equal.outer(blocks, blocks)[i, j]
    i, j = i[alike], j[alike]
    sign_x_BP, sign_y_BMM = (np.sign((v[:, :, None] - v[:, None, :]).round(12)) for v in (x_BM, y_BM))
    sign_x_BP = sign_x_BP[:, i, j]
    orders_MN, exact = orders_within(blocks, seed, sampled_orders(block_sizes(M, block_M), "kendall"))
    orders_KM = orders_MN.T
    if not exact:  # the observed order counts as one of them
        orders_KM = np.concatenate([np.arange(M)[None], orders_KM])
    with np.errstate(invalid="ignore", divide="ignore"):
        scale_B = 1.0 / np.sqrt((sign_x_BP**2).sum(axis=1) * (sign_y_BMM[:, i, j] ** 2).sum(axis=1))
    hits_S = np.zeros(len(members))
    step = max(1, BLOCK_TERMS // len(i))
    for start in range(0, len(orders_KM), step):
        first, second = orders_KM[start : start + step][:, i], orders_KM[start : start + step][:, j]
        tau_KB = np.stack(
            [y[first, second] @ x * c for x, y, c in zip(sign_x_BP, sign_y_BMM, scale_B, strict=True)], axis=1
        )
        mean_KS = np.stack([np.abs(tau_KB[:, list(index)].mean(axis=1)) for index in members], axis=1)
        if start == 0:
            goal_S = mean_KS[0] - 1e-12  # a mean of 0 but for rounding is as small as any
        hits_S += (mean_KS >= goal_S).sum(axis=0)
    return np.where(np.isfinite(goal_S), hits_S / len(orders_KM), np.nan)


def _blocks(M: int, block_M: BlockNumbers | None) -> BlockNumbers:
    return np.zeros(M, dtype=np.int64) if block_M is None else block_M


def block_sizes(M: int, block_M: BlockNumbers | None) -> list[int]:
    """How many of M mixtures are in each block; all of them where there are no blocks."""
    return list(map(len, parts_of(M, block_M)))


def orders(sizes: Sequence[int]) -> int:
    """The number of orders of mixtures within blocks of these sizes."""
    return math.prod(map(math.factorial, sizes))


def all_orders(sizes: Sequence[int]) -> bool:
    """Whether a permutation test walks all orders of blocks of these sizes."""
    return orders(sizes) <= EXACT_PERMUTATIONS


def sampled_orders(sizes: Sequence[int], statistic: str) -> int:
    """How many seeded orders a permutation test of transfers walks, where it does not walk all."""
    pairs = sum(math.comb(m, 2) for m in sizes)
    return min(SAMPLED, max(999, TAU_TERMS // pairs)) if statistic == "kendall" else SAMPLED


def orders_within(
    block_M: BlockNumbers, seed: int = 0, count: int = SAMPLED
) -> tuple[NDArray[np.int16], bool]:
    """(M, N) orders of the mixtures within blocks, one a column, the same for every statistic, and whether they are all, else
    `count` seeded ones."""
    return _orders(tuple(block_M.tolist()), seed, count)


@functools.lru_cache(maxsize=2)
def _orders(blocks: tuple[int, ...], seed: int, count: int) -> tuple[NDArray[np.int16], bool]:
    parts = members_of(np.array(blocks))
    sizes = list(map(len, parts))
    exact = all_orders(sizes)
    orders_MN = np.empty((len(blocks), orders(sizes) if exact else count), dtype=np.int16)
    if exact:
        for at_M, k_N in zip(parts, every_choice([math.factorial(m) for m in sizes]), strict=True):
            m = len(at_M)
            each = itertools.chain.from_iterable(itertools.permutations(range(m)))
            order_Km = np.fromiter(each, np.int16, m * math.factorial(m)).reshape(-1, m)
            orders_MN[at_M] = at_M[order_Km[k_N]].T
    else:
        rng = np.random.default_rng(seed)
        for at_M in parts:
            for first in range(0, count, 1000):  # NumPy is fastest with int64 in cache
                place_MN = orders_MN[:, first : first + 1000]
                place_MN[at_M] = rng.permuted(np.tile(at_M, (place_MN.shape[1], 1)), axis=1).T
    return orders_MN, exact


def every_choice(counts: Sequence[int]) -> NDArray[np.intp]:
    """Every way to choose one of `counts[g]` for each g, (G, product of the counts)."""
    return np.indices(tuple(counts)).reshape(len(counts), -1)


def benjamini_hochberg(p: Array) -> Array:
    """Adjusted p-values (q) of one family; NaN is left out of the family and stays NaN."""
    p = np.asarray(p, dtype=np.float64)
    q = np.full(p.shape, np.nan)
    index = np.flatnonzero(np.isfinite(p))
    if len(index):
        order = index[np.argsort(p[index])]
        scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
        q[order] = np.minimum(1.0, np.minimum.accumulate(scaled[::-1])[::-1])
    return q
