"""The correlation between two stages without item noise, when the noise is known.

What a mixture scores is what it can do plus the noise of having only so many items. Where the noise (its variance at both
stages and, since the same items are answered, its covariance) is known from the items, the model of the M pairs is

    (x, y) ~ Normal(mean, [[s^2, rho s t], [rho s t, t^2]] + noise),

and rho is what the means over endless items would show. One rho is estimated by restricted maximum likelihood: the pairs'
covariance S is Wishart with M - 1 degrees of freedom, so 2 log L = -(M - 1) (log|V| + tr(V^-1 S)); its interval holds every
rho whose profile likelihood is within (M - 1) log(1 + t^2 / (M - 2)) of the best, t Student's quantile with M - 2 degrees of
freedom, which without noise is the exact t interval's likelihood-ratio form. It exists for any data; where the mixtures differ
no more than noise makes them, it is all of -1 to 1. The mean rho of many benchmarks is `pooled`, a ratio of sums.

References: Patterson & Thompson (1971), Biometrika 58, 545-554 (REML); Fuller (1987), "Measurement Error Models", ch. 1.

Dims: B benchmarks, C columns.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ANGLE_G = np.linspace(-0.5 * math.pi, 0.5 * math.pi, 161)
RHO_G = np.sin(ANGLE_G)  # denser towards -1 and 1, where the likelihood is steep
NOTHING = 1e-12  # a standard deviation of rounding
POINTS, ZOOMS = 13, 6  # of s and of t, each time around the best of the last


class Latent(NamedTuple):
    """rho with the ends of its interval."""

    estimate: float
    low: float
    high: float


def symmetric(before: float, after: float, both: float) -> Array:
    """(2, 2), from two variances and a covariance."""
    return np.array([[before, both], [both, after]])


def latent_r(covariance: Array, noise: Array, n: int, level: float = 0.95) -> Latent:
    """rho of one benchmark by REML, with its profile-likelihood interval.

    covariance, noise: (2, 2), of the values at both stages over n >= 4 mixtures (unbiased), and of their noise.
    """
    from scipy.special import stdtrit

    # Scaled to unit variances, so that one grid serves all; rho does not depend on the scale.
    scale = np.sqrt(np.maximum(np.diag(covariance), np.diag(noise)))
    if (scale <= NOTHING).any():  # nothing varies, of mixtures or of items
        return Latent(0.0, -1.0, 1.0)
    outer = np.outer(scale, scale)
    profile = _profile(covariance / outer, noise / outer, n)
    best = profile.max()
    tie = np.flatnonzero(profile >= best - 1e-9)
    top = tie[np.argmin(np.abs(RHO_G[tie]))]
    angle = float(ANGLE_G[top])
    around = profile[top - 1 : top + 2]
    if len(tie) == 1 and len(around) == 3 and np.isfinite(around).all():
        # The top of the parabola through these.
        left, middle, right = around.tolist()
        angle += 0.5 * (left - right) / (left - 2.0 * middle + right) * float(ANGLE_G[1] - ANGLE_G[0])
    cut = best - (n - 1) * math.log1p(float(stdtrit(n - 2, 0.5 + level / 2.0)) ** 2 / (n - 2))
    inside = np.flatnonzero(profile >= cut)
    return Latent(
        math.sin(angle), _crossing(profile, cut, inside[0], -1), _crossing(profile, cut, inside[-1], 1)
    )


def _crossing(profile: Array, cut: float, k: int, step: int) -> float:
    """Where the profile falls below the cut beyond the k-th value, between grid points."""
    if not 0 <= k + step < len(RHO_G):
        return float(RHO_G[k])
    share = (profile[k] - cut) / (profile[k] - profile[k + step])
    return float(RHO_G[k] + share * (RHO_G[k + step] - RHO_G[k]))


def _profile(covariance: Array, noise: Array, n: int) -> Array:
    """Twice the log-likelihood at each rho, at the best s and t for it."""
    rho_G = RHO_G[:, None, None]
    G = len(RHO_G)
    centre_2G = np.ones((2, G))
    half = 1.0
    best_G = np.full(G, -np.inf)
    for _ in range(ZOOMS):
        step = np.linspace(-half, half, POINTS)
        s_GP, t_GP = (np.maximum(c[:, None] + step, 0.0) for c in centre_2G)
        value_GPP = _loglik2(covariance, noise, n, s_GP[:, :, None], t_GP[:, None, :], rho_G)
        flat = value_GPP.reshape(G, -1).argmax(axis=1)
        g = np.arange(G)
        best_G = value_GPP.reshape(G, -1)[g, flat]
        centre_2G = np.stack([s_GP[g, flat // POINTS], t_GP[g, flat % POINTS]])
        half *= 3.0 / (POINTS - 1)
    return best_G


def _loglik2(covariance: Array, noise: Array, n: int, s: Array, t: Array, rho: Array) -> Array:
    xx, yy = s * s + noise[0, 0], t * t + noise[1, 1]
    xy = rho * s * t + noise[0, 1]
    det = xx * yy - xy * xy
    possible = det > 1e-12  # else the model allows no spread in some direction
    det = np.where(possible, det, 1.0)
    trace = (yy * covariance[0, 0] + xx * covariance[1, 1] - 2.0 * xy * covariance[0, 1]) / det
    return np.where(possible, -(n - 1) * (np.log(det) + trace), -np.inf)


def pooled(covariance_B3C: Array, noise_B3: Array) -> Array:
    """The mean rho of benchmarks in each column, (C,): sum(cov - noise) / sqrt(sum(var - noise) sum(var' - noise')).

    covariance_B3C, noise_B3: variances before and after and their covariance. Each benchmark is measured in its noise's
    standard deviations first, so a benchmark counts by how far its mixtures stand out of the noise. NaN where a sum of
    variances is not positive.
    """
    unit_B3 = np.stack([noise_B3[:, 0], noise_B3[:, 1], np.sqrt(noise_B3[:, 0] * noise_B3[:, 1])], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        before, after, both = ((covariance_B3C - noise_B3[:, :, None]) / unit_B3[:, :, None]).sum(axis=0)
        defined = (before > 0.0) & (after > 0.0)
        return np.where(defined, both / np.sqrt(np.where(defined, before * after, 1.0)), np.nan)
