"""Numba kernels of the permutation tests: every order of a few mixtures, or many drawn ones.

A statistic is sum_m A[m, perm(m)] for a matrix A of each, so that one swap changes four terms: all 362,880 orders of
nine mixtures cost a millisecond a statistic.

Dims: S statistics, M mixtures, N permutations.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from evalengine.analysis.jit import jit


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
    """Share of all permutations with |sum_m A[m, perm(m)]| >= |trace A|: one swap, so four additions,
    each."""
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


@jit(parallel=True)
def permutation_sampled(a_SMM, perm_NM):  # type: ignore[no-untyped-def]
    """The same over given permutations; the observed order counts as one of them (Davison & Hinkley 1997, eq.
    4.11)."""
    S, M, _ = a_SMM.shape
    out_S = np.empty(S)
    for s in prange(S):
        value = 0.0
        for m in range(M):
            value += a_SMM[s, m, m]
        threshold = abs(value) * (1.0 - 1e-12)
        hits = 1
        for n in range(perm_NM.shape[0]):
            value = 0.0
            for m in range(M):
                value += a_SMM[s, m, perm_NM[n, m]]
            if abs(value) >= threshold:
                hits += 1
        out_S[s] = hits / (perm_NM.shape[0] + 1)
    return out_S
