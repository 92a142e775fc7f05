"""Slopes within items: y_im = alpha_i + gamma_(benchmark of i, m) + sum_k beta_k x_kim + e_im.

Items are compared with themselves under other mixtures, after what a mixture does to the whole benchmark is taken out. Every
item has every mixture, so demeaning over the items of a benchmark and then over mixtures is the projection on both sets of
effects, and beta is exactly that of ordinary least squares with a dummy for each.

What one mixture does to the use of a dose it does to all items at once, and an item may answer to what a mixture is made of for
reasons of its own, so errors are clustered by mixture and by item: V = V_mixture + V_item - V_cell, with

    CR1   (X'X)^-1 sum_g s_g s_g' (X'X)^-1 G / (G - 1) of items and cells, s_g the sum of x e over cluster g
    CR3   the jackknife over mixtures, (M - 1) / M sum_m (beta_(-m) - mean)^2

and Student's t with M - 1 degrees of freedom. Leaving out mixture m takes M / (M - 1) times its cross-products from those of the
study, so nothing is fitted anew.

How often each of these held the mean slope in simulated studies stands in docs/explain.md (tests simulate the same worlds). CR2
with the degrees of freedom of Bell and McCaffrey held as often as CR3 and serves one coefficient at a time.

Tests of one slope count mixtures, not items. Wild-cluster bootstrap: under the null slope, the residuals of whole mixtures
change sign (Rademacher weights), and each study made so is fitted and studentised with CR1 anew. All 2^M sign vectors up to M =
12, so no seed; the smallest p is 2 / 2^M, since a vector and its opposite give one |t|. Permutation: where the mixtures are a
grid of two factors (which sources, in which proportions), the doses of the levels of each factor change places. It tests that
the dose does nothing; the smallest p is 1 over the number of relabellings.

References: Cameron, Gelbach & Miller (2011), JBES 29, 238-249, for two ways of clustering; MacKinnon, Nielsen & Webb (2023),
"Cluster-robust inference: a guide to empirical practice", Journal of Econometrics 232, 272-299, for CR3 with few clusters;
Cameron, Gelbach & Miller (2008), "Bootstrap-based improvements for inference with clustered errors", Review of Economics and
Statistics 90, 414-427.

Dims: V variables, the regressors and y last; K regressors; M mixtures; I items; W sign vectors; L relabellings.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.explain import student
from evalengine.analysis.explain.choices import Array
from evalengine.analysis.explain.student import Interval

LEAST = 3  # mixtures, for an interval
NOTHING = 1e-10  # mean square of a regressor after demeaning, and smallest share of it that others leave: no variation


ALL_SIGNS = 12  # mixtures up to which every sign vector is taken
SAMPLED = 4095  # sign vectors beyond that, beside the one that changes nothing
RELABELLED_MOST = 40_320
TIE = 1e-9  # relative


class Errors(NamedTuple):
    """Standard errors (K,) clustered by item, by mixture (CR1), and of single cells."""

    item_K: Array
    mixture_K: Array
    cell_K: Array


def demeaned(value_MI: Array) -> Array:
    """Without the effects of the items of a benchmark and of the mixtures on it; (..., M, I)."""
    rest_MI = centred(value_MI)
    return rest_MI - rest_MI.mean(axis=-2, keepdims=True)


def centred(value_MI: Array) -> Array:
    """Without the effects of the mixtures on a benchmark; (..., M, I)."""
    return value_MI - value_MI.mean(axis=-1, keepdims=True)


def products(within_VMI: Array) -> Array:
    """Cross-products of the demeaned variables of each mixture, (M, V, V)."""
    by_mixture_MVI = within_VMI.swapaxes(0, 1)
    return by_mixture_MVI @ by_mixture_MVI.swapaxes(1, 2)


def without_each(product_MVV: Array) -> Array:
    """Cross-products over all mixtures, then of the study without each of them, demeaned anew: (1 + M, V, V)."""
    M = len(product_MVV)
    total_VV = product_MVV.sum(axis=0)
    return np.concatenate([total_VV[None], total_VV - product_MVV * (M / max(M - 1, 1))])


def slopes(total_JVV: Array) -> Array:
    """Least squares from cross-products, (J, K); NaN where the regressors do not vary, or one is a combination of the others."""
    xx_JKK, xy_JK = total_JVV[:, :-1, :-1], total_JVV[:, :-1, -1]
    scale_JK = np.sqrt(np.diagonal(xx_JKK, axis1=1, axis2=2).clip(0.0))
    whole = float(scale_JK[0].max()) if scale_JK.size else 0.0
    out_JK = np.full(xy_JK.shape, np.nan)
    for j, scale_K in enumerate(scale_JK):
        if not (scale_K > np.sqrt(NOTHING) * max(whole, 1e-300)).all():
            continue
        r_KK = xx_JKK[j] / np.outer(scale_K, scale_K)
        if np.linalg.eigvalsh(r_KK)[0] > NOTHING:
            out_JK[j] = np.linalg.solve(r_KK, xy_JK[j] / scale_K) / scale_K
    return out_JK


def fitted(within_VMI: Array, level: float = 0.95) -> tuple[Interval, Errors]:
    """Slopes with their errors."""
    every_JK = slopes(without_each(products(within_VMI)))
    errors = clustered(influence(within_VMI, every_JK[0]))
    return interval(every_JK, errors, level), errors


def varies(within_MI: Array) -> bool:
    """Whether a demeaned regressor, in log units or words, is more than rounding."""
    return bool(within_MI.size and (within_MI**2).mean() > NOTHING)


def influence(within_VMI: Array, slope_K: Array) -> Array:
    """What each item and mixture does to the slopes, (K, M, I): (X'X)^-1 x e; NaN without slopes."""
    K, *cells = within_VMI[:-1].shape
    if np.isnan(slope_K).any():
        return np.full((K, *cells), np.nan)
    x_KC, y_C = within_VMI[:-1].reshape(K, -1), within_VMI[-1].ravel()
    out_KC: Array = np.linalg.inv(x_KC @ x_KC.T) @ (x_KC * (y_C - slope_K @ x_KC))
    return out_KC.reshape(K, *cells)


def clustered(influence_KMI: Array) -> Errors:
    """Sandwich errors with G / (G - 1) of each clustering, of whatever has the influence."""

    def error(sum_KG: Array) -> Array:
        G = sum_KG.shape[1]
        return np.sqrt((sum_KG**2).sum(axis=1) * (G / max(G - 1, 1)))

    cells_KG = influence_KMI.reshape(len(influence_KMI), -1)
    return Errors(error(influence_KMI.sum(axis=1)), error(influence_KMI.sum(axis=2)), error(cells_KG))


def interval(every_JK: Array, errors: Errors, level: float = 0.95) -> Interval:
    """Statistics of the study, then without each mixture, with ends for other mixtures and items; none with fewer than three
    mixtures, or where one of them alone has the doses."""
    estimate_K, M = every_JK[0], len(every_JK) - 1
    more_K = np.maximum(errors.item_K**2 - errors.cell_K**2, 0.0)
    se_K = np.sqrt((M - 1) * every_JK[1:].var(axis=0) + more_K)
    if M < LEAST:
        se_K = np.full(len(estimate_K), np.nan)
    return student.interval(estimate_K, se_K, M, level)


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
