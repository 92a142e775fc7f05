"""Tests of one slope within items (within.py) that count mixtures, not items: signs of mixtures, and relabellings of the design.

Wild-cluster bootstrap: under the null slope, the residuals of whole mixtures change sign (Rademacher weights), and each study
made so is fitted and studentised with CR1 anew. All 2^M sign vectors up to M = 12, so no seed; the smallest p is 2 / 2^M, since a
vector and its opposite give one |t|.

Permutation: where the mixtures are a grid of two factors (which sources, in which proportions), the doses of the levels of each
factor change places. It tests that the dose does nothing; the smallest p is 1 over the number of relabellings.

Reference: Cameron, Gelbach & Miller (2008), "Bootstrap-based improvements for inference with clustered errors", Review of
Economics and Statistics 90, 414-427.

Dims: M mixtures, I items, W sign vectors, L relabellings.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.explain.choices import Array

ALL_SIGNS = 12  # mixtures up to which every sign vector is taken
SAMPLED = 4095  # sign vectors beyond that, beside the one that changes nothing
RELABELLED_MOST = 40_320
TIE = 1e-9  # relative


@functools.cache
def signs(M: int, seed: int = 0) -> Array:
    """(W, M) of -1 and 1; the first row is all ones."""
    if M <= ALL_SIGNS:
        return np.array(list(itertools.product((1.0, -1.0), repeat=M)))
    drawn = np.random.default_rng(seed).choice((-1.0, 1.0), size=(SAMPLED, M))
    return np.concatenate([np.ones((1, M)), drawn])


def wild_p(x_MI: Array, y_MI: Array, null: float = 0.0, seed: int = 0) -> float:
    """Two-sided p of a slope, both variables demeaned. NaN where residuals vanish.

    With c_mn = sum_i x_im r_in for the residuals r of the null, the study of signs w has the slope sum_m w_m c_mm / sum x^2, and
    its mixtures the scores w_m c_mm - sum_n w_n c_mn / M - slope * sum_i x_im^2.
    """
    M = len(x_MI)
    if M < 2:
        return math.nan
    xx_M = (x_MI**2).sum(axis=1)
    cross_MM = x_MI @ (y_MI - null * x_MI).T
    own_M, w_WM = np.diag(cross_MM), signs(M, seed)
    slope_W = w_WM @ own_M / xx_M.sum()
    score_WM = w_WM * own_M - w_WM @ cross_MM.T / M - slope_W[:, None] * xx_M
    spread_W = np.sqrt((score_WM**2).sum(axis=1))
    if not spread_W[0] > TIE * np.abs(own_M).sum():
        return math.nan
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is no larger slope
        t_W = np.abs(slope_W) / spread_W
    return float((t_W >= t_W[0] * (1.0 - TIE)).mean())


def relabellings(rows: Sequence[Hashable], columns: Sequence[Hashable]) -> NDArray[np.int64] | None:
    """Orders of the mixtures (L, M) that relabel the levels of two factors, the first one as they are. None where the mixtures
    are no full grid of at least two by two, or have too many orders."""
    place = {pair: m for m, pair in enumerate(zip(rows, columns, strict=True))}
    of_row, of_column = list(dict.fromkeys(rows)), list(dict.fromkeys(columns))
    whole = len(place) == len(rows) == len(of_row) * len(of_column)
    if not whole or min(len(of_row), len(of_column)) < 2:
        return None
    if math.factorial(len(of_row)) * math.factorial(len(of_column)) > RELABELLED_MOST:
        return None
    orders = []
    for a in itertools.permutations(of_row):
        for b in itertools.permutations(of_column):
            new_row, new_column = dict(zip(of_row, a, strict=True)), dict(zip(of_column, b, strict=True))
            orders.append([place[new_row[r], new_column[c]] for r, c in zip(rows, columns, strict=True)])
    return np.array(orders, dtype=np.int64)


def permutation_p(x_MI: Array, y_MI: Array, order_LM: NDArray[np.int64]) -> float:
    """Two-sided p of no slope: the share of relabellings of the doses whose slope is at least as far from 0."""
    cross_MM = x_MI @ y_MI.T
    slope_L = np.abs(cross_MM[order_LM, np.arange(len(x_MI))].sum(axis=1))
    return float((slope_L >= slope_L[0] * (1.0 - TIE)).mean())
