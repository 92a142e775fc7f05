"""Numba kernels: correlations, ranks and order statistics over many weightings of the same few mixtures, permutations.

A resample is a column of weights, not a copy of the data: `w_MC[m, c]` is how often mixture m is in resample
c over the column's total. A weighted correlation of variables i and j in every column is then one product per
mixture and column, laid out so that the innermost loop runs along contiguous columns.

A kernel whose first arguments are `first` and `last` does that part of its outermost loop, for `threads.spread`. Every output
element is computed by one call in a fixed order, so the results do not depend on the number of threads. Results are
allocated by the caller: NumPy asks the system for huge pages, an allocation inside a kernel does not, and page faults would
cost more than the arithmetic.

Cost: P pairs, M mixtures, C columns: 2*P*M*C FLOPs for Pearson. Nothing is drawn in here.

Dims: V variables, M mixtures, C columns (resamples), P pairs of variables, S statistics, Q quantiles, N permutations.
NaN marks a degenerate column: one in which a variable has no spread.
"""

from __future__ import annotations

import numpy as np

from evalengine.jit import jit

ROWS = 4  # sums over the same weights at a time: every weight that is read serves all of them
WIDE = 256  # columns of such sums: their weights stay in the second-level cache
BINS = 2048  # histogram bins of the weighted selection
PERMUTATIONS = 256  # at a time


@jit(fastmath={"contract"})
def _add_weighted(a_M, w_MC, start, out):  # type: ignore[no-untyped-def]
    """Adds sum_m a[m] w[m, c] to `out`, which begins at column `start`."""
    # A function of its own: within a larger one LLVM cannot tell that these arrays do not overlap, and does not vectorise.
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


def tiles(columns: int) -> int:
    """How many tiles of WIDE columns the kernels over columns take."""
    return (columns + WIDE - 1) // WIDE


@jit()
def weighted_sums(first, last, a_SM, w_MC, out_SC):  # type: ignore[no-untyped-def]
    """Sums over mixtures of a[s, m] w[m, c] in place of zeros, (S, C): a matrix product whose bits do not depend on the tiles."""
    S, C = len(a_SM), w_MC.shape[1]
    for tile in range(first, last):
        start, stop = tile * WIDE, min(tile * WIDE + WIDE, C)
        total = np.empty(ROWS * WIDE)
        together = S // ROWS * ROWS if stop - start == WIDE else 0
        for s in range(0, together, ROWS):
            total[:] = 0.0
            _add_weighted_rows(a_SM[s : s + ROWS], w_MC, start, total)
            for r in range(ROWS):
                out_SC[s + r, start:stop] = total[r * WIDE : r * WIDE + WIDE]
        for s in range(together, S):
            _add_weighted(a_SM[s], w_MC, start, out_SC[s, start:stop])


@jit(fastmath={"contract"})
def _add_product(a_c, b_c, out):  # type: ignore[no-untyped-def]
    for c in range(len(out)):
        out[c] += a_c[c] * b_c[c]


@jit()
def pair_sums(first, last, terms_TMM, w_MC, out_TC):  # type: ignore[no-untyped-def]
    """Adds the sum over pairs of mixtures k < m of terms[t, m, k] w[m, c] w[k, c]."""
    T, (M, C) = len(terms_TMM), w_MC.shape
    inner, a_RM = np.empty(ROWS * WIDE), np.zeros((ROWS, M))
    for tile in range(first, last):
        start, stop = tile * WIDE, min(tile * WIDE + WIDE, C)
        width = stop - start
        for t in range(T):
            for m in range(1, M, ROWS):
                rows = min(ROWS, M - m)
                for r in range(rows):
                    a_RM[r, : m + r] = terms_TMM[t, m + r, : m + r]
                    a_RM[r, m + r :] = 0.0
                inner[:] = 0.0
                if width == WIDE and rows == ROWS:
                    _add_weighted_rows(a_RM[:, : m + ROWS - 1], w_MC, start, inner)
                else:
                    for r in range(rows):
                        _add_weighted(
                            a_RM[r, : m + ROWS - 1], w_MC, start, inner[r * WIDE : r * WIDE + width]
                        )
                for r in range(rows):
                    row = inner[r * WIDE : r * WIDE + width]
                    _add_product(row, w_MC[m + r, start:stop], out_TC[t, start:stop])


@jit(fastmath={"contract"})
def _start_pearson(mean_x, mean_y, out):  # type: ignore[no-untyped-def]
    for c in range(len(out)):
        out[c] = -mean_x[c] * mean_y[c]


@jit()
def _end_pearson(total, inverse_x, inverse_y, out):  # type: ignore[no-untyped-def]
    for c in range(len(out)):
        out[c] = total[c] * (inverse_x[c] * inverse_y[c])


@jit()
def pearson(first, last, x_VM, pair_P2, w_MC, mean_VC, inverse_VC, out_PC):  # type: ignore[no-untyped-def]
    """Fills the weighted Pearson r of each pair in each column, see `correlation.Moments`.

    Rounding may leave |r| a few 1e-9 above 1 in a column close to degenerate.
    """
    P, (M, C) = len(pair_P2), w_MC.shape
    for tile in range(first, last):
        start, stop = tile * WIDE, min(tile * WIDE + WIDE, C)
        width = stop - start
        total = np.zeros(ROWS * WIDE)
        a_RM = np.zeros((ROWS, M))
        for p in range(0, P, ROWS):
            rows = min(ROWS, P - p)
            for r in range(rows):
                i, j = pair_P2[p + r]
                a_RM[r] = x_VM[i] * x_VM[j]
                row = total[r * WIDE : r * WIDE + width]
                _start_pearson(mean_VC[i, start:stop], mean_VC[j, start:stop], row)
                if width < WIDE or rows < ROWS:
                    _add_weighted(a_RM[r], w_MC, start, row)
            if width == WIDE and rows == ROWS:
                _add_weighted_rows(a_RM, w_MC, start, total)
            for r in range(rows):
                i, j = pair_P2[p + r]
                row = total[r * WIDE : r * WIDE + width]
                _end_pearson(
                    row, inverse_VC[i, start:stop], inverse_VC[j, start:stop], out_PC[p + r, start:stop]
                )


@jit()
def midranks(first, last, x_VMc, w_MC, out_VMC):  # type: ignore[no-untyped-def]
    """Weighted mid-ranks scaled to unit variance if spread evenly, (V, M, C): mass below plus half the mass of ties.

    `x_VMc` is (V, M, 1), one data set for all columns, or (V, M, C).
    """
    M, C = w_MC.shape
    step = 1 if x_VMc.shape[2] > 1 else 0
    for v in range(first, last):
        order = np.argsort(x_VMc[v, :, 0])
        for c in range(C):
            if step == 1 and c > 0:
                order = np.argsort(x_VMc[v, :, c])
            below = 0.0
            start = 0
            while start < M:
                value = x_VMc[v, order[start], c * step]
                stop = start
                tied = 0.0
                while stop < M and x_VMc[v, order[stop], c * step] == value:
                    tied += w_MC[order[stop], c]
                    stop += 1
                for k in range(start, stop):
                    out_VMC[v, order[k], c] = (below + 0.5 * tied) * 3.4641016151377544
                below += tied
                start = stop


@jit(fastmath={"contract"})
def _add_below(value_c, other_c, weight_c, out):  # type: ignore[no-untyped-def]
    """Adds the weight of `other` where it lies below `value`, and half of it where the two are equal."""
    for c in range(len(out)):
        half = 0.5 * weight_c[c]
        out[c] += (half if other_c[c] < value_c[c] else 0.0) + (half if other_c[c] <= value_c[c] else 0.0)


@jit()
def counted_midranks(first, last, x_VMC, w_MC, out_VMC):  # type: ignore[no-untyped-def]
    """`midranks` of (V, M, C), over tiles of columns: every mixture is compared with every other, M^2 for each column.

    Vectors of columns make that faster than a sort of each column while M is small.
    """
    V, M, C = x_VMC.shape
    for tile in range(first, last):
        start, stop = tile * WIDE, min(tile * WIDE + WIDE, C)
        for v in range(V):
            for m in range(M):
                value, rank = x_VMC[v, m, start:stop], out_VMC[v, m, start:stop]
                rank[:] = 0.0
                for k in range(M):
                    _add_below(value, x_VMC[v, k, start:stop], w_MC[k, start:stop], rank)
                rank *= 3.4641016151377544


@jit()
def _center(x_c, mean_c, weight_c, deviation, weighted):  # type: ignore[no-untyped-def]
    for c in range(len(mean_c)):
        left = x_c[c] - mean_c[c]
        deviation[c] = left
        weighted[c] = weight_c[c] * left


@jit()
def _end_by_column(variance_x, variance_y, least, out):  # type: ignore[no-untyped-def]
    # One root of the product: equal variables have exactly 1, as inverse roots of each would not.
    for c in range(len(out)):
        xx, yy = variance_x[c], variance_y[c]
        r = out[c] / np.sqrt(xx * yy) if xx > least and yy > least else np.nan
        r = 1.0 if r > 1.0 else r
        out[c] = -1.0 if r < -1.0 else r  # NaN stays NaN


@jit()
def pearson_by_column(first, last, x_VMC, pair_P2, w_MC, least, out_PC):  # type: ignore[no-untyped-def]
    """Fills the weighted Pearson r, in [-1, 1], of each pair of variables that differ from column to column; NaN where a
    variance is not above `least`. A tile's deviations are computed once for all pairs."""
    V, M, C = x_VMC.shape
    wide = min(WIDE, C)
    deviation_VMc, weighted_VMc = np.empty((V, M, wide)), np.empty((V, M, wide))
    variance_Vc, mean_c = np.empty((V, wide)), np.empty(wide)
    for tile in range(first, last):
        start, stop = tile * WIDE, min(tile * WIDE + WIDE, C)
        width = stop - start
        mean = mean_c[:width]
        for v in range(V):
            mean[:] = 0.0
            variance = variance_Vc[v, :width]
            variance[:] = 0.0
            for m in range(M):
                _add_product(x_VMC[v, m, start:stop], w_MC[m, start:stop], mean)
            for m in range(M):
                deviation, weighted = deviation_VMc[v, m, :width], weighted_VMc[v, m, :width]
                _center(x_VMC[v, m, start:stop], mean, w_MC[m, start:stop], deviation, weighted)
                _add_product(weighted, deviation, variance)
        for p in range(len(pair_P2)):
            i, j = pair_P2[p]
            row = out_PC[p, start:stop]
            row[:] = 0.0
            for m in range(M):
                _add_product(weighted_VMc[i, m, :width], deviation_VMc[j, m, :width], row)
            _end_by_column(variance_Vc[i, :width], variance_Vc[j, :width], least, row)


@jit()
def _add_shares(value_r, weight_r, low, high, less, at_most, valid):  # type: ignore[no-untyped-def]
    # Comparisons with NaN are false, so a degenerate resample is in none of the sums.
    for k in range(len(value_r)):
        value, weight = value_r[k], weight_r[k]
        valid[k] += weight if value == value else 0.0
        less[k] += weight if value < low else 0.0
        at_most[k] += weight if value <= high else 0.0


@jit()
def below(first, last, value_SC, skip, weight_R, estimate_S, out_S2):  # type: ignore[no-untyped-def]
    """(S, 2): share of the weight below the estimate, ties counted half; share of the weight that is degenerate.

    The first `skip` columns are no resamples. They are not left out beforehand: LLVM makes vectors of contiguous rows alone.
    Weights are whole numbers, so that WIDE sums of each kind, which make a vector of every step, add up to what one would.
    """
    total = weight_R.sum()
    for s in range(first, last):
        slack = 1e-12 * max(1.0, abs(estimate_S[s]))
        low, high = estimate_S[s] - slack, estimate_S[s] + slack
        less, at_most, valid = np.zeros(WIDE), np.zeros(WIDE), np.zeros(WIDE)
        for r in range(0, len(weight_R), WIDE):
            value_r, weight_r = value_SC[s, skip + r : skip + r + WIDE], weight_R[r : r + WIDE]
            _add_shares(value_r, weight_r, low, high, less, at_most, valid)
        known = valid.sum()
        out_S2[s, 0] = 0.5 * (less.sum() + at_most.sum()) / known if known > 0.0 else np.nan
        out_S2[s, 1] = 1.0 - known / total


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
def _widen(value_r, low_r, high_r):  # type: ignore[no-untyped-def]
    for k in range(len(value_r)):
        value = value_r[k]
        low_r[k] = value if value < low_r[k] else low_r[k]
        high_r[k] = value if value > high_r[k] else high_r[k]


@jit()
def _quantiles_of(value_R, weight_R, prob_Q, linear, out_Q):  # type: ignore[no-untyped-def]
    low_r, high_r = np.full(WIDE, np.inf), np.full(WIDE, -np.inf)
    for r in range(0, len(value_R), WIDE):
        _widen(value_R[r : r + WIDE], low_r, high_r)
    low, high = low_r.min(), high_r.max()
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


@jit()
def quantiles(first, last, value_SC, skip, weight_R, prob_SQ, linear, out_SQ):  # type: ignore[no-untyped-def]
    """Weighted quantiles of each row but for `skip` columns, NaN left out, (S, Q), without sorting the row.

    `linear` interpolates between order statistics as NumPy's default does (for unit weights); otherwise the quantile is
    the smallest value whose cumulative weight reaches prob * total: the exact distribution's inverse. A histogram of
    the weights finds the bins that hold the wanted order statistics; only those are sorted.
    """
    for s in range(first, last):
        _quantiles_of(value_SC[s, skip:], weight_R, prob_SQ[s], linear, out_SQ[s])


@jit()
def _add_terms(a_MS, order_N, total_NS):  # type: ignore[no-untyped-def]
    for n in range(len(order_N)):
        row, total = a_MS[order_N[n]], total_NS[n]
        for s in range(len(total)):
            total[s] += row[s]


@jit()
def permutation_hits(first, last, a_MMS, perm_MN, threshold_S, hits_KS):  # type: ignore[no-untyped-def]
    """Counts how many of each PERMUTATIONS (column n is one) have |sum_m A[m, perm(m)]| >= threshold, (K, S).

    Statistics lie innermost and a block of permutations passes one mixture after the other, so that what one step reads
    stays in the cache.
    """
    M, N = perm_MN.shape
    S = a_MMS.shape[2]
    for k in range(first, last):
        start, stop = k * PERMUTATIONS, min(k * PERMUTATIONS + PERMUTATIONS, N)
        total_NS = np.zeros((stop - start, S))
        for m in range(M):
            _add_terms(a_MMS[m], perm_MN[m, start:stop], total_NS)
        for n in range(stop - start):
            for s in range(S):
                if abs(total_NS[n, s]) >= threshold_S[s]:
                    hits_KS[k, s] += 1
