"""Numba kernels over items: what each item's choice scores say, and calibration from many items.

One pass over the flattened choices of a file; no Python loop over items.
Dims: I items, J choices of all items, K checkpoints.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from evalengine.analysis.jit import jit

PICK, CONFIDENCE, P_GOLD, MARGIN, ENTROPY, BRIER, NLL = range(7)
FIELDS = 7


@jit()
def read_items(score_J, offset_I1, gold_I, out_IF):  # type: ignore[no-untyped-def]
    """Fills (I, FIELDS): pick (first index on ties), softmax at the pick and at the gold choice, margin of
    the two best probabilities, entropy in nats, Brier score (sum of squares over choices), negative log of
    p(gold). A row is NaN where a score is not finite or the gold index is out of range.
    """
    for i in range(len(gold_I)):
        start, stop = offset_I1[i], offset_I1[i + 1]
        gold = start + gold_I[i]
        best = start
        usable = stop > start and gold_I[i] >= 0 and gold < stop
        for j in range(start, stop):
            if not np.isfinite(score_J[j]):
                usable = False
            elif score_J[j] > score_J[best]:
                best = j
        if not usable:
            out_IF[i, :] = np.nan
            continue
        total = 0.0
        for j in range(start, stop):
            total += np.exp(np.float64(score_J[j]) - score_J[best])
        second = 0.0
        entropy = 0.0
        brier = 0.0
        log_total = np.log(total)
        for j in range(start, stop):
            logp = np.float64(score_J[j]) - score_J[best] - log_total
            p = np.exp(logp)
            if j != best:
                second = max(second, p)
            entropy -= p * logp
            miss = p - (1.0 if j == gold else 0.0)
            brier += miss * miss
        log_gold = np.float64(score_J[gold]) - score_J[best] - log_total
        out_IF[i, PICK] = best - start
        out_IF[i, CONFIDENCE] = 1.0 / total
        out_IF[i, P_GOLD] = np.exp(log_gold)
        out_IF[i, MARGIN] = 1.0 / total - second
        out_IF[i, ENTROPY] = entropy
        out_IF[i, BRIER] = brier
        out_IF[i, NLL] = -log_gold


@jit(parallel=True)
def reliability(confidence_KI, correct_KI, bins):  # type: ignore[no-untyped-def]
    """Equal-mass bins of confidence, as even as integers allow: (K, bins, 3) of share, mean confidence,
    accuracy.

    Items of equal confidence keep their order. An empty bin (fewer items than bins) has share 0 and NaN
    means.
    """
    K, items = confidence_KI.shape
    out_KB3 = np.full((K, bins, 3), np.nan)
    for k in prange(K):
        order = np.argsort(confidence_KI[k], kind="mergesort")
        small, extra = items // bins, items % bins
        start = 0
        for b in range(bins):
            stop = start + small + (1 if b < extra else 0)
            out_KB3[k, b, 0] = (stop - start) / items
            if stop > start:
                confidence = 0.0
                hits = 0.0
                for n in range(start, stop):
                    confidence += confidence_KI[k, order[n]]
                    hits += correct_KI[k, order[n]]
                out_KB3[k, b, 1] = confidence / (stop - start)
                out_KB3[k, b, 2] = hits / (stop - start)
            start = stop
    return out_KB3


@jit(parallel=True)
def count_draws(index_RI, items):  # type: ignore[no-untyped-def]
    """How often each resample drew each item, float64 (R, items)."""
    out_RI = np.zeros((index_RI.shape[0], items))
    for r in prange(index_RI.shape[0]):
        for i in range(index_RI.shape[1]):
            out_RI[r, index_RI[r, i]] += 1.0
    return out_RI
