"""Correlations without item noise: closed forms, scipy's optimiser, and coverage of what was planted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize as so
import scipy.stats as st

from evalengine.analysis.statistics.latent import latent_r, pooled

NOISE = np.array([[0.3, 0.1], [0.1, 0.2]])


def drawn(rng: np.random.Generator, rho: float, noise: np.ndarray, n: int) -> np.ndarray:
    """Covariance (2, 2) of n pairs of unit variance and correlation rho, with noise."""
    truth = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], n)
    return np.cov((truth + rng.multivariate_normal([0, 0], noise, n)).T)


@pytest.mark.parametrize("r", [-0.7, 0.0, 0.5, 0.97])
def test_without_noise_it_is_pearsons_r_with_its_profile_likelihood(r: float) -> None:
    n = 9
    found = latent_r(np.array([[4.0, 2 * r], [2 * r, 1.0]]), np.zeros((2, 2)), n)
    assert found.estimate == pytest.approx(r, abs=2e-3)
    cut = (n - 1) * math.log1p(st.t(n - 2).ppf(0.975) ** 2 / (n - 2))

    def fall(rho: float) -> float:  # of twice the profile log-likelihood, from its top: a closed form
        return (n - 1) * (math.log((1 - rho * r) ** 2 / (1 - rho**2)) - math.log(1 - r**2)) - cut

    assert found.low == pytest.approx(so.brentq(fall, -1 + 1e-12, r), abs=0.01)
    assert found.high == pytest.approx(so.brentq(fall, r, 1 - 1e-12), abs=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_maximum_that_scipy_finds(seed: int) -> None:
    n, covariance = 9, drawn(np.random.default_rng(seed), 0.5, NOISE, 9)

    def minus(p: np.ndarray) -> float:
        s, t, rho = p
        v = np.array([[s * s, rho * s * t], [rho * s * t, t * t]]) + NOISE
        return float((n - 1) * (np.linalg.slogdet(v)[1] + np.trace(np.linalg.solve(v, covariance))))

    best = min(
        (so.minimize(minus, (1, 1, start), bounds=[(0, 9), (0, 9), (-1, 1)]) for start in (-0.5, 0.0, 0.5)),
        key=lambda found: found.fun,
    )
    assert latent_r(covariance, NOISE, n).estimate == pytest.approx(best.x[2], abs=5e-3)


def test_nothing_but_noise_gives_an_interval_that_says_nothing() -> None:
    found = latent_r(0.5 * NOISE, NOISE, 9)
    assert (found.low, found.high) == (-1.0, 1.0)


@pytest.mark.parametrize(("rho", "share"), [(0.0, 0.1), (0.6, 0.1), (0.9, 0.4), (0.9, 1.5)])
def test_the_interval_holds_what_was_planted(rho: float, share: float) -> None:
    """share: the noise's variance over that between mixtures, so reliabilities of 0.91, 0.71 and 0.4."""
    rng = np.random.default_rng(11)
    noise = share * np.array([[1.0, 0.3], [0.3, 1.0]])
    held = [
        found.low <= rho <= found.high
        for found in (latent_r(drawn(rng, rho, noise, 9), noise, 9) for _ in range(300))
    ]
    assert np.mean(held) > 0.93 - 2.0 * math.sqrt(0.93 * 0.07 / 300)


def test_the_pooled_mean_is_a_ratio_of_sums_in_units_of_the_noise() -> None:
    covariance = np.array([[2.0, 3.0, 1.0], [5.0, 4.0, 2.0]])
    noise = np.array([[1.0, 0.5, 0.2], [2.0, 2.0, 0.0]])
    before = (2.0 - 1.0) / 1.0 + (5.0 - 2.0) / 2.0
    after = (3.0 - 0.5) / 0.5 + (4.0 - 2.0) / 2.0
    both = (1.0 - 0.2) / math.sqrt(0.5) + 2.0 / 2.0
    found = pooled(covariance[:, :, None], noise)
    assert found == pytest.approx([both / math.sqrt(before * after)])
    assert np.isnan(pooled(noise[:, :, None], noise)).all()


def test_the_pooled_mean_recovers_what_was_planted() -> None:
    rng = np.random.default_rng(5)
    found = []
    for _ in range(300):
        covariance = np.array([drawn(rng, 0.6, NOISE, 9) for _ in range(20)])
        parts = np.stack([covariance[:, 0, 0], covariance[:, 1, 1], covariance[:, 0, 1]], axis=1)
        noise = np.tile([NOISE[0, 0], NOISE[1, 1], NOISE[0, 1]], (20, 1))
        found.append(pooled(parts[:, :, None], noise)[0])
    assert np.mean(found) == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("before", [0.0, 1.0])
def test_a_stage_at_which_nothing_varies_says_nothing(before: float) -> None:
    """Every mixture answers every item alike, as models do that have one label for all: no noise, and no likelihood to take."""
    found = latent_r(np.diag([before, 0.0]), np.diag([0.5 * before, 0.0]), 9)
    assert tuple(found) == (0.0, -1.0, 1.0)
