"""Numba kernels over the items of many checkpoints: reliability curves, and counts of resampled items.

Dims: K checkpoints, I items, R resamples.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from evalengine.analysis.jit import jit


@jit(parallel=True)
def reliability(confidence_KI, correct_KI, bins):  # type: ignore[no-untyped-def]
    """Equal-mass bins of confidence, as even as integers allow: (K, bins, 3) of share, mean confidence, accuracy.

    Items of equal confidence keep their order. An empty bin (fewer items than bins) has share 0 and NaN means.
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
