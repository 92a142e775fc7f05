"""Numba kernels of the permutation tests: every order of a few mixtures, or many drawn ones.

A statistic is sum_m A[m, perm(m)] for a matrix A of each, so that one swap changes four terms: all 362,880 orders of
nine mixtures cost a millisecond a statistic.

Dims: S statistics, M mixtures, N permutations.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from evalengine.analysis.jit import jit

PERMUTATIONS = 256  # at a time


@jit()
def heap_swaps(n, count):  # type: ignore[no-untyped-def]
    """The swaps by which Heap's algorithm (1963) walks through all permutations of n: (count - 1, 2)."""
    out = np.empty((count - 1, 2), dtype=np.int8)
    state = np.zeros(n, dtype=np.int64)
    row = 0
    k = 1
    while k < n:
        if state[k] < k:
            out[row, 0] = 0 if k % 2 == 0 else state[k]
            out[row, 1] = k
            row += 1
            state[k] += 1
            k = 1
        else:
            state[k] = 0
            k += 1
    return out


@jit(parallel=True)
def permutation_exact(a_SMM, swap_N2):  # type: ignore[no-untyped-def]
    """Share of all permutations with |sum_m A[m, perm(m)]| >= |trace A|: one swap, so four additions, each."""
    S, M, _ = a_SMM.shape
    out_S = np.empty(S)
    for s in prange(S):
        perm = np.arange(M)
        value = 0.0
        largest = 0.0
        for m in range(M):
            value += a_SMM[s, m, m]
            for k in range(M):
                largest = max(largest, abs(a_SMM[s, m, k]))
        threshold = abs(value) - 1e-10 * largest * M
        hits = 1
        for n in range(swap_N2.shape[0]):
            i, j = swap_N2[n, 0], swap_N2[n, 1]
            value += a_SMM[s, i, perm[j]] + a_SMM[s, j, perm[i]] - a_SMM[s, i, perm[i]] - a_SMM[s, j, perm[j]]
            perm[i], perm[j] = perm[j], perm[i]
            if abs(value) >= threshold:
                hits += 1
        out_S[s] = hits / (swap_N2.shape[0] + 1)
    return out_S


@jit()
def _add_terms(a_MS, order_N, total_NS):  # type: ignore[no-untyped-def]
    for n in range(len(order_N)):
        row, total = a_MS[order_N[n]], total_NS[n]
        for s in range(len(total)):
            total[s] += row[s]


@jit(parallel=True)
def permutation_sampled(a_MMS, perm_MN, threshold_S, hits_KS):  # type: ignore[no-untyped-def]
    """Fills how many of each block of PERMUTATIONS given ones (column n is one) have |sum_m A[m, perm(m)]| >= threshold.

    Statistics lie innermost and a block of permutations passes one mixture after the other, so that what one step reads
    stays in the cache.
    """
    for k in prange(hits_KS.shape[0]):
        start, stop = k * PERMUTATIONS, min(k * PERMUTATIONS + PERMUTATIONS, perm_MN.shape[1])
        total_NS = np.zeros((stop - start, a_MMS.shape[2]))
        for m in range(a_MMS.shape[0]):
            _add_terms(a_MMS[m], perm_MN[m, start:stop], total_NS)
        for n in range(stop - start):
            for s in range(a_MMS.shape[2]):
                if abs(total_NS[n, s]) >= threshold_S[s]:
                    hits_KS[k, s] += 1
