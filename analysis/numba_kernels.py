"""Numba kernels: correlations, ranks and order statistics over many weightings of the same few mixtures, permutations.

A resample is a column of weights, not a copy of the data: `w_MC[m, c]` is how often mixture m is in resample
c over the column's total. A weighted correlation of variables i and j in every column is then one product per
mixture and column, laid out so that the innermost loop runs along contiguous columns. Every output element is
computed by one thread in a fixed order, so the results do not depend on the number of threads.

Large results are allocated by the caller: NumPy asks the system for huge pages, an allocation inside a kernel does
not, and page faults would cost more than the arithmetic.

Cost: P pairs, M mixtures, C columns: 2*P*M*C FLOPs for Pearson. Nothing is drawn in here.

Dims: V variables, M mixtures, C columns (resamples), P pairs of variables, S statistics, Q quantiles, N permutations.
NaN marks a degenerate column: one in which a variable has no spread.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from evalengine.jit import jit

ROWS = 4  # sums over the same weights at a time: every weight that is read serves all of them
WIDE = 256  # columns of such sums: their weights stay in the second-level cache
BINS = 2048  # histogram bins of the weighted selection
PERMUTATIONS = 256  # at a time


@jit(fastmath={"contract"})
def _add_weighted(a_M, w_MC, start, out):  # type: ignore[no-untyped-def]
    """Adds sum_m a[m] w[m, c] to `out`, which begins at column `start`."""
    # A function of its own: inside `prange` LLVM cannot tell that these arrays do not overlap, and does not
    # vectorise.
    M, stop = len(a_M), start + len(out)
    for m in range(0, M - 2, 3):  # three at a time: fewer passes over the tile
        a, b, d = a_M[m], a_M[m + 1], a_M[m + 2]
        u, v, w = w_MC[m, start:stop], w_MC[m + 1, start:stop], w_MC[m + 2, start:stop]
        for c in range(len(out)):
            out[c] += a * u[c] + b * v[c] + d * w[c]
    for m in range(M - M % 3, M):
        a = a_M[m]
        u = w_MC[m, start:stop]
        for c in range(len(out)):
            out[c] += a * u[c]


@jit(fastmath={"contract"})
def _add_weighted_rows(a_RM, w_MC, start, out):  # type: ignore[no-untyped-def]
    """`_add_weighted` of ROWS rows to WIDE columns each, one row after the other in `out`; to the same bits."""
    # Constants let LLVM see that the rows of `out` do not overlap.
    M, stop = a_RM.shape[1], start + WIDE
    for m in range(0, M - 2, 3):
        a0, b0, d0 = a_RM[0, m], a_RM[0, m + 1], a_RM[0, m + 2]
        a1, b1, d1 = a_RM[1, m], a_RM[1, m + 1], a_RM[1, m + 2]
        a2, b2, d2 = a_RM[2, m], a_RM[2, m + 1], a_RM[2, m + 2]
        a3, b3, d3 = a_RM[3, m], a_RM[3, m + 1], a_RM[3, m + 2]
        u, v, w = w_MC[m, start:stop], w_MC[m + 1, start:stop], w_MC[m + 2, start:stop]
        for c in range(WIDE):
            x, y, z = u[c], v[c], w[c]
            out[c] += a0 * x + b0 * y + d0 * z
            out[WIDE + c] += a1 * x + b1 * y + d1 * z
            out[2 * WIDE + c] += a2 * x + b2 * y + d2 * z
            out[3 * WIDE + c] += a3 * x + b3 * y + d3 * z
    for m in range(M - M % 3, M):
        a0, a1, a2, a3 = a_RM[0, m], a_RM[1, m], a_RM[2, m], a_RM[3, m]
        u = w_MC[m, start:stop]
        for c in range(WIDE):
            x = u[c]
            out[c] += a0 * x
            out[WIDE + c] += a1 * x
            out[2 * WIDE + c] += a2 * x
            out[3 * WIDE + c] += a3 * x


@jit(parallel=True)
def weighted_sums(a_SM, w_MC):  # type: ignore[no-untyped-def]
    """Sum over mixtures of a[s, m] w[m, c], (S, C): a matrix product whose bits do not depend on the number of threads."""
    S, C = len(a_SM), w_MC.shape[1]
    out_SC = np.zeros((S, C))
    for tile in prange((C + WIDE - 1) // WIDE):
        start, stop = tile * WIDE, min(tile * WIDE + WIDE, C)
        total = np.empty(ROWS * WIDE)
        together = S // ROWS * ROWS if stop - start == WIDE else 0
        for first in range(0, together, ROWS):
            total[:] = 0.0
            _add_weighted_rows(a_SM[first : first + ROWS], w_MC, start, total)
            for r in range(ROWS):
                out_SC[first + r, start:stop] = total[r * WIDE : r * WIDE + WIDE]
        for s in range(together, S):
            _add_weighted(a_SM[s], w_MC, start, out_SC[s, start:stop])
    return out_SC


@jit(fastmath={"contract"})
def _add_product(a_c, b_c, out):  # type: ignore[no-untyped-def]
    for c in range(len(out)):
        out[c] += a_c[c] * b_c[c]


@jit(parallel=True)
def pair_sums(terms_TMM, w_MC, out_TC):  # type: ignore[no-untyped-def]
    """Adds the sum over pairs of mixtures k < m of terms[t, m, k] w[m, c] w[k, c], of ROWS terms at most."""
    T, (M, C) = len(terms_TMM), w_MC.shape
    for tile in prange((C + WIDE - 1) // WIDE):
        start, stop = tile * WIDE, min(tile * WIDE + WIDE, C)
        inner = np.empty(ROWS * WIDE)
        a_RM = np.zeros((ROWS, M))
        for m in range(1, M):
            inner[:] = 0.0
            for t in range(T):
                if stop - start < WIDE:
                    _add_weighted(terms_TMM[t, m, :m], w_MC, start, inner[t * WIDE : t * WIDE + stop - start])
                else:
                    a_RM[t, :m] = terms_TMM[t, m, :m]
            if stop - start == WIDE:
                _add_weighted_rows(a_RM[:, :m], w_MC, start, inner)
            for t in range(T):
                _add_product(
                    inner[t * WIDE : t * WIDE + stop - start],
                    w_MC[m, start:stop],
                    out_TC[t, start:stop],
                )


@jit(fastmath={"contract"})
def _start_pearson(mean_x, mean_y, out):  # type: ignore[no-untyped-def]
    for c in range(len(out)):
        out[c] = -mean_x[c] * mean_y[c]


@jit()
def _end_pearson(total, inverse_x, inverse_y, out):  # type: ignore[no-untyped-def]
    for c in range(len(out)):
        out[c] = total[c] * (inverse_x[c] * inverse_y[c])


@jit(parallel=True)
def pearson(x_VM, pair_P2, w_MC, mean_VC, inverse_VC, out_PC):  # type: ignore[no-untyped-def]
    """Fills the weighted Pearson r of each pair in each column, see `correlation.Moments`.

    Rounding may leave |r| a few 1e-9 above 1 in a column close to degenerate.
    """
    P, (M, C) = len(pair_P2), w_MC.shape
    for tile in prange((C + WIDE - 1) // WIDE):
        start, stop = tile * WIDE, min(tile * WIDE + WIDE, C)
        width = stop - start
        total = np.zeros(ROWS * WIDE)
        a_RM = np.zeros((ROWS, M))
        for first in range(0, P, ROWS):
            rows = min(ROWS, P - first)
            for r in range(rows):
                i, j = pair_P2[first + r]
                a_RM[r] = x_VM[i] * x_VM[j]
                row = total[r * WIDE : r * WIDE + width]
                _start_pearson(mean_VC[i, start:stop], mean_VC[j, start:stop], row)
                if width < WIDE or rows < ROWS:
                    _add_weighted(a_RM[r], w_MC, start, row)
            if width == WIDE and rows == ROWS:
                _add_weighted_rows(a_RM, w_MC, start, total)
            for r in range(rows):
                i, j = pair_P2[first + r]
                row = total[r * WIDE : r * WIDE + width]
                _end_pearson(
                    row, inverse_VC[i, start:stop], inverse_VC[j, start:stop], out_PC[first + r, start:stop]
                )


@jit(parallel=True)
def midranks(x_VMc, w_MC):  # type: ignore[no-untyped-def]
    """Weighted mid-ranks scaled to unit variance if spread evenly, (V, M, C): mass below plus half the mass of ties.

    `x_VMc` is (V, M, 1), one data set for all columns, or (V, M, C).
    """
    V, M, last = x_VMc.shape
    C = w_MC.shape[1]
    step = 1 if last > 1 else 0
    out_VMC = np.empty((V, M, C))
    for v in prange(V):
        order = np.argsort(x_VMc[v, :, 0])
        for c in range(C):
            if step == 1 and c > 0:
                order = np.argsort(x_VMc[v, :, c])
            below = 0.0
            first = 0
            while first < M:
                value = x_VMc[v, order[first], c * step]
                stop = first
                tied = 0.0
                while stop < M and x_VMc[v, order[stop], c * step] == value:
                    tied += w_MC[order[stop], c]
                    stop += 1
                for k in range(first, stop):
                    out_VMC[v, order[k], c] = (below + 0.5 * tied) * 3.4641016151377544
                below += tied
                first = stop
    return out_VMC


@jit()
def _below_of(value_R, weight_R, low, high, out_2):  # type: ignore[no-untyped-def]
    less = 0.0
    at_most = 0.0
    valid = 0.0
    total = 0.0
    for r in range(len(value_R)):
        # Comparisons with NaN are false, so a degenerate resample counts in `total` alone.
        value = value_R[r]
        weight = weight_R[r]
        total += weight
        valid += weight if value == value else 0.0
        less += weight if value < low else 0.0
        at_most += weight if value <= high else 0.0
    out_2[0] = 0.5 * (less + at_most) / valid if valid > 0.0 else np.nan
    out_2[1] = 1.0 - valid / total


@jit(parallel=True)
def below(value_SR, weight_R, estimate_S):  # type: ignore[no-untyped-def]
    """(S, 2): share of the weight below the estimate, ties counted half; share of the weight that is degenerate."""
    S = value_SR.shape[0]
    out_S2 = np.empty((S, 2))
    for s in prange(S):
        slack = 1e-12 * max(1.0, abs(estimate_S[s]))
        _below_of(value_SR[s], weight_R, estimate_S[s] - slack, estimate_S[s] + slack, out_S2[s])
    return out_S2


@jit()
def _histogram(value_R, weight_R, low, width, mass, bin_R):  # type: ignore[no-untyped-def]
    """Adds each value's weight to its bin and notes the bin; NaN gets bin -1."""
    for r in range(len(value_R)):
        value = value_R[r]
        if value == value:
            b = min(BINS - 1, int((value - low) * width))
            mass[b] += weight_R[r]
            bin_R[r] = b
        else:
            bin_R[r] = -1


@jit()
def _targets(prob_Q, total, linear):  # type: ignore[no-untyped-def]
    """Cumulative weights that select each quantile's two order statistics: number k (from 0) is the first
    value whose cumulative weight reaches k + 1."""
    out = np.empty(2 * len(prob_Q))
    for q in range(len(prob_Q)):
        if linear:
            position = np.floor(prob_Q[q] * (total - 1.0))
            out[2 * q] = position + 1.0
            out[2 * q + 1] = min(position + 2.0, total)
        else:
            out[2 * q] = prob_Q[q] * total * (1.0 - 1e-13)
            out[2 * q + 1] = out[2 * q]
    return out


@jit()
def _select(value_R, weight_R, mass, bin_R, target_T):  # type: ignore[no-untyped-def]
    """The first value, in order, whose cumulative weight reaches each target (NaN for a NaN target)."""
    before = np.empty(BINS)
    running = 0.0
    for b in range(BINS):
        before[b] = running
        running += mass[b]
    wanted = np.zeros(BINS, dtype=np.bool_)
    bin_of = np.full(len(target_T), -1)
    count = 0
    for t in range(len(target_T)):
        if target_T[t] == target_T[t]:
            b = max(0, np.searchsorted(before, target_T[t], side="left") - 1)
            while b > 0 and mass[b] == 0.0:
                b -= 1
            bin_of[t] = b
            wanted[b] = True
    index = np.empty(len(value_R), dtype=np.int64)
    for r in range(len(value_R)):
        if bin_R[r] >= 0 and wanted[bin_R[r]]:
            index[count] = r
            count += 1
    index = index[:count]
    selected = np.full(len(target_T), np.nan)
    current = -1
    cumulative = 0.0
    for r in index[np.argsort(value_R[index])]:
        if bin_R[r] != current:
            current = bin_R[r]
            cumulative = before[current]
        cumulative += weight_R[r]
        for t in range(len(target_T)):
            if bin_of[t] == current and np.isnan(selected[t]) and cumulative >= target_T[t]:
                selected[t] = value_R[r]
    return selected


@jit()
def _quantiles_of(value_R, weight_R, prob_Q, linear, out_Q):  # type: ignore[no-untyped-def]
    low = np.inf
    high = -np.inf
    for r in range(len(value_R)):
        value = value_R[r]
        low = value if value < low else low
        high = value if value > high else high
    if not low < high:
        out_Q[:] = low if low == high else np.nan
        return
    mass = np.zeros(BINS)
    bin_R = np.empty(len(value_R), dtype=np.int16)
    _histogram(value_R, weight_R, low, BINS / (high - low), mass, bin_R)
    total = mass.sum()
    selected = _select(value_R, weight_R, mass, bin_R, _targets(prob_Q, total, linear))
    for q in range(len(prob_Q)):
        position = prob_Q[q] * (total - 1.0)
        part = position - np.floor(position) if linear else 0.0
        out_Q[q] = selected[2 * q] * (1.0 - part) + selected[2 * q + 1] * part


@jit(parallel=True)
def quantiles(value_SR, weight_R, prob_SQ, linear):  # type: ignore[no-untyped-def]
    """Weighted quantiles of each row, NaN left out, (S, Q), without sorting the row.

    `linear` interpolates between order statistics as NumPy's default does (for unit weights); otherwise the quantile is
    the smallest value whose cumulative weight reaches prob * total: the exact distribution's inverse. A histogram of
    the weights finds the bins that hold the wanted order statistics; only those are sorted.
    """
    out_SQ = np.empty((value_SR.shape[0], prob_SQ.shape[1]))
    for s in prange(value_SR.shape[0]):
        _quantiles_of(value_SR[s], weight_R, prob_SQ[s], linear, out_SQ[s])
    return out_SQ


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
