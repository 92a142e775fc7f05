"""Logistic regression by Newton's method, with standard errors for two ways of clustering.

Observations may be counts: y successes of n trials in a row. The covariance is the sandwich of Cameron, Gelbach & Miller (2011),
V = V_a + V_b - V_ab with the factor G / (G - 1) of each clustering; where that gives a negative variance, the larger one of the
two clusterings is taken.

Dims: N rows, P coefficients.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.explain.choices import Array

STEPS, CLOSE = 50, 1e-10
RIDGE = 1e-10  # keeps a separated or constant column finite; far below what is reported


class Fit(NamedTuple):
    coefficient_P: Array
    loglik: float
    probability_N: Array
    bread_PP: Array  # inverse of the information


def fit(x_NP: Array, y_N: Array, n_N: Array | None = None, start_P: Array | None = None) -> Fit:
    """Maximum likelihood. `n_N`: trials of each row, 1 by default."""
    n_N = np.ones(len(y_N)) if n_N is None else n_N
    beta_P = np.zeros(x_NP.shape[1]) if start_P is None else start_P.copy()
    before = -np.inf
    for _ in range(STEPS):
        eta_N = x_NP @ beta_P
        loglik = float(y_N @ eta_N - n_N @ np.logaddexp(0.0, eta_N))
        p_N = 0.5 * (1.0 + np.tanh(0.5 * eta_N))
        information_PP = (x_NP.T * (n_N * p_N * (1.0 - p_N))) @ x_NP
        information_PP[np.diag_indices_from(information_PP)] += RIDGE * (1.0 + np.diag(information_PP))
        if abs(loglik - before) <= CLOSE * (1.0 + abs(loglik)):
            break
        before = loglik
        beta_P = beta_P + np.linalg.solve(information_PP, x_NP.T @ (y_N - n_N * p_N))
    return Fit(beta_P, loglik, p_N, np.asarray(np.linalg.inv(information_PP)))


def clustered(
    x_NP: Array, residual_N: Array, bread_PP: Array, a_N: NDArray[np.int64], b_N: NDArray[np.int64]
) -> Array:
    """Standard errors (P,) for clusters `a` and `b`, of a fit whose scores are x times residual (OLS: bread = (x'x)^-1)."""
    score_NP = x_NP * residual_N[:, None]
    ab_N = np.unique(a_N * (int(b_N.max()) + 1) + b_N, return_inverse=True)[1]
    of_a, of_b, of_ab = (_sandwich(score_NP, bread_PP, g_N) for g_N in (a_N, b_N, ab_N))
    variance_P = of_a + of_b - of_ab
    return np.sqrt(np.where(variance_P > 0.0, variance_P, np.maximum(of_a, of_b)))


def _sandwich(score_NP: Array, bread_PP: Array, group_N: NDArray[np.int64]) -> Array:
    """Variances (P,) for one clustering."""
    number_N = np.unique(group_N, return_inverse=True)[1]
    G = int(number_N.max()) + 1
    sums_GP = np.stack([np.bincount(number_N, column, G) for column in score_NP.T], axis=1)
    moved_GP = sums_GP @ bread_PP
    variance: Array = (moved_GP**2).sum(axis=0) * G / max(G - 1, 1)
    return variance


def dummies(group_N: NDArray[np.int64]) -> Array:
    """(N, G): which group each row is in."""
    return (group_N[:, None] == np.arange(int(group_N.max()) + 1)).astype(np.float64)
