"""Correlations over weighted columns, their permutation p-values, and the false-discovery rate.

A `Sample` is the data of one scale and quantity: variables (benchmarks at a stage) over mixtures, either one
data set for all columns of weights or, when items are resampled, one per column. Missing values (NaN) are
left out pair by pair: the correlation is over the mixtures that have both.

References: Pearson (1895); Spearman (1904); Kendall (1945), tau-b; Phipson & Smyth (2010) on permutation
p-values; Benjamini & Hochberg (1995), JRSS B 57, 289-300.

Dims: V variables, M mixtures, C columns, P pairs, S statistics.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
STATISTICS = ("pearson", "spearman", "kendall")
EXACT_PERMUTATIONS = 9  # mixtures up to which all orders are walked (362,880)
RANK_BYTES = 128 << 20  # ranks held at once
MANY = 32  # mixtures from which a matrix product beats the loop over pairs


class Sample(NamedTuple):
    """Variables over mixtures: `x_VMC` is (V, M, 1) or (V, M, C); `w_MC` columns of weights that sum to 1."""

    x_VMC: Array
    w_MC: Array

    def only(self, keep_M: NDArray[np.bool_]) -> Sample:
        """The same for some of the mixtures, weights rescaled (NaN columns where none of them is in the
        resample)."""
        w_MC = self.w_MC[keep_M]
        with np.errstate(invalid="ignore", divide="ignore"):
            w_MC = w_MC / w_MC.sum(axis=0)
        return Sample(np.ascontiguousarray(self.x_VMC[:, keep_M]), np.ascontiguousarray(w_MC))


def correlate(sample: Sample, pair_P2: NDArray[np.int64], statistic: str = "pearson") -> Array:
    """The statistic of each pair of variables in each column, (P, C); NaN where a variable is constant or
    missing."""
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
    from evalengine.analysis import resampling_kernels as kernels

    used, flat = np.unique(pair_P2, return_inverse=True)
    pair_P2 = flat.reshape(-1, 2).astype(np.int64)
    x_VMC = standardise(sample.x_VMC[used])
    if statistic == "pearson":
        if x_VMC.shape[2] == 1:
            x_VM = np.ascontiguousarray(x_VMC[:, :, 0])
            mean_VC, inverse_VC = np.empty((2, len(x_VM), sample.w_MC.shape[1]))
            value_PC = np.empty((len(pair_P2), sample.w_MC.shape[1]))
            kernels.moments(x_VM, sample.w_MC, mean_VC, inverse_VC)
            kernels.pearson(x_VM, pair_P2, sample.w_MC, mean_VC, inverse_VC, value_PC)
            value_PC[:, 0] = value_PC[:, 0].clip(-1.0, 1.0)
            return value_PC
        return kernels.pearson_columns(x_VMC, pair_P2, sample.w_MC)
    if statistic == "kendall":
        sums = pair_sums(np.round(x_VMC, 12), pair_P2, sample.w_MC)
        untied = sums.untied_x * sums.untied_y
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(untied > 0.0, sums.agree / np.sqrt(untied), np.nan)
    if statistic != "spearman":
        raise ValueError(f"no statistic '{statistic}': {', '.join(STATISTICS)}")
    x_VMC = np.round(x_VMC, 12)  # equal accuracies stay tied
    V, M, last = x_VMC.shape
    step = max(1, RANK_BYTES // (8 * V * M))
    out_PC = np.empty((len(pair_P2), sample.w_MC.shape[1]))
    for start in range(0, out_PC.shape[1], step):
        part = slice(start, start + step)
        w_MC = np.ascontiguousarray(sample.w_MC[:, part])
        x_part = x_VMC if last == 1 else np.ascontiguousarray(x_VMC[:, :, part])
        out_PC[:, part] = kernels.pearson_columns(kernels.midranks(x_part, w_MC), pair_P2, w_MC)
    return out_PC


class PairSums(NamedTuple):
    """Sums over pairs of different mixtures of the product of their weights times something, each (P, C)."""

    agree: Array  # sign of the difference in x times that in y
    untied_x: Array
    untied_y: Array
    wrong: Array  # half the difference of the two signs: 1 where x and y disagree, 1/2 where one is tied
    loss: Array  # `wrong` times the difference in y


def pair_sums(x_VMC: Array, pair_P2: NDArray[np.int64], w_MC: Array) -> PairSums:
    """What Kendall's tau and pairwise decisions are made of.

    Copies of one mixture in a resample are ties in both variables and add nothing.
    """
    from evalengine.analysis import resampling_kernels as kernels

    if x_VMC.shape[2] > 1:
        return PairSums(*kernels.quadratic_columns(np.ascontiguousarray(x_VMC), pair_P2, w_MC))
    P, M = len(pair_P2), len(w_MC)
    difference_VMM = x_VMC[:, :, 0][:, :, None] - x_VMC[:, :, 0][:, None, :]
    sign_VMM = np.sign(difference_VMM)
    out_5PC = np.empty((5, P, w_MC.shape[1]))
    step = max(1, RANK_BYTES // (8 * 5 * M * M))
    for start in range(0, P, step):
        i, j = pair_P2[start : start + step].T
        wrong = 0.5 * np.abs(sign_VMM[i] - sign_VMM[j])
        ties = [np.abs(sign_VMM[i]), np.abs(sign_VMM[j])]
        terms = np.stack([sign_VMM[i] * sign_VMM[j], *ties, wrong, wrong * np.abs(difference_VMM[j])])
        sums = weighted_pairs(terms.reshape(-1, M, M), w_MC)
        out_5PC[:, start : start + step] = sums.reshape(5, -1, w_MC.shape[1])
    return PairSums(*out_5PC)


def wrong_and_loss(x_2M: Array) -> Array:
    """(2, M, M): the terms `wrong` and `loss` of PairSums for one pair of variables."""
    difference_2MM = x_2M[:, :, None] - x_2M[:, None, :]
    sign_2MM = np.sign(difference_2MM)
    wrong_MM = 0.5 * np.abs(sign_2MM[0] - sign_2MM[1])
    return np.stack([wrong_MM, wrong_MM * np.abs(difference_2MM[1])])


def weighted_pairs(a_SMM: Array, w_MC: Array) -> Array:
    """Sum over pairs k < m of a[m, k] w[m, c] w[k, c], (S, C), of symmetric matrices with zeros on the diagonal."""
    from evalengine.analysis import resampling_kernels as kernels

    if a_SMM.shape[1] < MANY:
        return kernels.quadratic(a_SMM, w_MC)
    return np.stack([0.5 * np.einsum("mc,mc->c", a_MM @ w_MC, w_MC) for a_MM in a_SMM])


def standardise(x_VMC: Array) -> Array:
    """Variables with the first column's mean 0 and sd 1, so that kernels may judge spread by one
    threshold."""
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
    """A[s, m, k] = z(x)_m z(y)_k / M, so that sum_m A[s, m, perm(m)] is r with y permuted; NaN for
    constants."""

    def z(v_SM: Array) -> Array:
        sd = v_SM.std(axis=1, keepdims=True)
        constant = sd <= 1e-12 * np.maximum(np.abs(v_SM.mean(axis=1, keepdims=True)), 1e-300)
        return np.where(
            constant, np.nan, (v_SM - v_SM.mean(axis=1, keepdims=True)) / np.where(constant, 1.0, sd)
        )

    return z(x_SM)[:, :, None] * z(y_SM)[:, None, :] / x_SM.shape[1]


def permutation_p(a_SMM: Array, seed: int = 0, count: int = 100_000) -> Array:
    """Two-sided p of each statistic sum_m A[m, perm(m)] against permuting the mixtures: P(|t*| >= |t|).

    All orders for M <= 9 (no Monte-Carlo error), else `count` seeded ones with the observed order counted in.
    A category's mean r is such a statistic too: the mean of its benchmarks' A, all permuted together.
    """
    from evalengine.analysis import permutation_kernels as kernels

    a_SMM = np.ascontiguousarray(a_SMM, dtype=np.float64)
    S, M, _ = a_SMM.shape
    usable = np.isfinite(a_SMM).all(axis=(1, 2))
    p_S = np.full(S, np.nan)
    if M < 2 or not usable.any():
        return p_S
    if M <= EXACT_PERMUTATIONS:
        p_S[usable] = kernels.permutation_exact(a_SMM[usable], kernels.heap_swaps(M, math.factorial(M)))
    else:
        p_S[usable] = kernels.permutation_sampled(a_SMM[usable], _orders(M, seed, count))
    return p_S


@functools.lru_cache(maxsize=2)
def _orders(M: int, seed: int, count: int) -> NDArray[np.int16]:
    """(count, M) seeded orders of the mixtures, the same for every statistic."""
    orders = np.tile(np.arange(M, dtype=np.int16), (count, 1))
    np.random.default_rng(seed).permuted(orders, axis=1, out=orders)
    return orders


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
