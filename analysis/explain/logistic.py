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

STEPS, HALVINGS, CLOSE = 50, 30, 1e-10
RIDGE = 1e-10  # keeps a separated or constant column finite; far below what is reported


class Fit(NamedTuple):
    coefficient_P: Array
    loglik: float
    probability_N: Array
    bread_PP: Array  # inverse of the information


def fit(
    x_NP: Array, y_N: Array, n_N: Array | None = None, start_P: Array | None = None, prior: float = 0.0
) -> Fit:
    """Maximum likelihood, of which a step that overshoots is halved. `n_N`: trials of each row, 1 by default. `prior`: precision
    of a normal prior of mean 0 on every coefficient, for predictions where some rows are all right or all wrong."""
    n_N = np.ones(len(y_N)) if n_N is None else n_N
    beta_P = np.zeros(x_NP.shape[1]) if start_P is None else start_P.copy()
    step_P: Array = np.zeros_like(beta_P)
    before = -np.inf
    for _ in range(STEPS):
        for _ in range(HALVINGS):
            eta_N = x_NP @ beta_P
            loglik = float(y_N @ eta_N - n_N @ np.logaddexp(0.0, eta_N))
            target = loglik - 0.5 * prior * float(beta_P @ beta_P)
            if target >= before - CLOSE * (1.0 + abs(before)):
                break
            step_P = step_P / 2.0
            beta_P = beta_P - step_P
        p_N = 0.5 * (1.0 + np.tanh(0.5 * eta_N))
        information_PP = (x_NP.T * (n_N * p_N * (1.0 - p_N))) @ x_NP
        information_PP[np.diag_indices_from(information_PP)] += prior + RIDGE * (
            1.0 + np.diag(information_PP)
        )
        if abs(target - before) <= CLOSE * (1.0 + abs(target)):
            break
        before = target
        step_P = np.asarray(
            np.linalg.solve(information_PP, x_NP.T @ (y_N - n_N * p_N) - prior * beta_P), dtype=np.float64
        )
        beta_P = beta_P + step_P
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
    return (moved_GP**2).sum(axis=0) * G / max(G - 1, 1)


def dummies(group_N: NDArray[np.int64]) -> Array:
    """(N, G): which group each row is in."""
    return (group_N[:, None] == np.arange(int(group_N.max()) + 1)).astype(np.float64)
