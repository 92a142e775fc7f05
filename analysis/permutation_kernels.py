"""The Numba kernel of the permutation tests. Dims: S statistics, M mixtures, N permutations."""

from __future__ import annotations

import numpy as np
from numba import prange

from evalengine.analysis.jit import jit

PERMUTATIONS = 256  # at a time


@jit()
def _add_terms(a_MS, order_N, total_NS):  # type: ignore[no-untyped-def]
    for n in range(len(order_N)):
        row, total = a_MS[order_N[n]], total_NS[n]
        for s in range(len(total)):
            total[s] += row[s]


@jit(parallel=True)
def permutation_hits(a_MMS, perm_MN, threshold_S):  # type: ignore[no-untyped-def]
    """How many of the given permutations (column n is one) have |sum_m A[m, perm(m)]| >= threshold, (S,).

    Statistics lie innermost and a block of permutations passes one mixture after the other, so that what one step reads
    stays in the cache.
    """
    M, N = perm_MN.shape
    S = a_MMS.shape[2]
    blocks = (N + PERMUTATIONS - 1) // PERMUTATIONS
    hits_KS = np.zeros((blocks, S), dtype=np.int64)
    for k in prange(blocks):
        start, stop = k * PERMUTATIONS, min(k * PERMUTATIONS + PERMUTATIONS, N)
        total_NS = np.zeros((stop - start, S))
        for m in range(M):
            _add_terms(a_MMS[m], perm_MN[m, start:stop], total_NS)
        for n in range(stop - start):
            for s in range(S):
                if abs(total_NS[n, s]) >= threshold_S[s]:
                    hits_KS[k, s] += 1
    return hits_KS.sum(axis=0)
