"""Correlations, permutation p-values and the false-discovery rate against scipy; properties."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats as st
from hypothesis import assume, given, settings
from hypothesis import strategies as hs
from hypothesis.extra.numpy import arrays

from evalengine.analysis.statistics.bootstrap import draw_resamples
from evalengine.analysis.statistics.correlation import (
    COUNTED,
    DECISION,
    Sample,
    benjamini_hochberg,
    correlate,
    pair_sums,
    permutation_p,
    permuted_p,
    ranks,
    similarity_terms,
)

ORACLES = {"pearson": st.pearsonr, "spearman": st.spearmanr, "kendall": st.kendalltau}
PAIR = np.array([[0, 1]])


def plain(x: np.ndarray, statistic: str) -> float:
    n = x.shape[1]
    return float(correlate(Sample(x[:, :, None], np.full((n, 1), 1 / n)), PAIR, statistic)[0, 0])


@pytest.mark.parametrize("statistic", ORACLES)
@pytest.mark.parametrize("ties", [False, True])
def test_every_resample_equals_scipy_on_the_gathered_copy(statistic: str, ties: bool) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 8))
    if ties:
        x = np.round(x)
    plan = draw_resamples(8, 200, 7)
    ours = correlate(Sample(x[:, :, None], plan.weight_MC), PAIR, statistic)[0, 1 + 8 :]
    index = np.random.default_rng(7).integers(0, 8, (200, 8))
    for r, chosen in enumerate(index):
        a, b = x[0, chosen], x[1, chosen]
        if np.ptp(a) == 0 or np.ptp(b) == 0:
            assert np.isnan(ours[r])
        else:
            assert ours[r] == pytest.approx(ORACLES[statistic](a, b)[0], abs=1e-10)


@pytest.mark.parametrize("statistic", ORACLES)
def test_data_that_differ_by_column(statistic: str) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 7, 30))
    ours = correlate(Sample(x, np.full((7, 30), 1 / 7)), PAIR, statistic)[0]
    theirs = [ORACLES[statistic](x[0, :, c], x[1, :, c])[0] for c in range(30)]
    np.testing.assert_allclose(ours, theirs, atol=1e-10)


@pytest.mark.parametrize("statistic", ["pearson", "spearman"])
@pytest.mark.parametrize("n", [9, COUNTED, COUNTED + 1], ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_resampled_mixtures_whose_data_differ_by_column(statistic: str, n: int, ties: bool) -> None:
    """More columns than a tile; ranks that are counted and ranks that are sorted; one column does not vary."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3, n, 300))
    x = np.round(x) if ties else x
    x[1, :, 290] = 0.25
    drawn = rng.multinomial(n, np.full(n, 1 / n), 300).T
    pairs = np.array([[0, 1], [2, 0], [1, 1]])
    ours = correlate(Sample(x, drawn / n), pairs, statistic)
    for c in (0, 1, 255, 256, 290, 299):
        copies = x[:, np.repeat(np.arange(n), drawn[:, c]), c]
        for (i, j), r in zip(pairs, ours[:, c], strict=True):
            if np.ptp(copies[i]) == 0 or np.ptp(copies[j]) == 0:
                assert np.isnan(r)
            else:
                assert r == pytest.approx(ORACLES[statistic](copies[i], copies[j])[0], abs=1e-12)
    assert np.nanmax(np.abs(ours)) <= 1.0


vectors = arrays(np.float64, (2, 6), elements=hs.integers(-50, 50).map(float))


@settings(max_examples=60, deadline=None)
@given(vectors, hs.floats(0.01, 1000), hs.floats(-1000, 1000), hs.sampled_from(sorted(ORACLES)))
def test_shift_scale_and_order_of_the_pair_do_not_matter(x, factor, shift, statistic) -> None:
    assume(np.ptp(x[0]) > 0 and np.ptp(x[1]) > 0)
    r = plain(x, statistic)
    assert plain(np.stack([x[0] * factor + shift, x[1]]), statistic) == pytest.approx(r, abs=1e-7)
    assert plain(np.stack([-x[0], x[1]]), statistic) == pytest.approx(-r, abs=1e-7)
    assert plain(x[::-1], statistic) == pytest.approx(r, abs=1e-9)
    assert -1 <= r <= 1


@pytest.mark.parametrize("statistic", ORACLES)
def test_constant_and_missing_values(statistic: str) -> None:
    x = np.random.default_rng(4).normal(size=(4, 6))
    x[1] = 0.3 + 1e-17
    x[2, 0] = np.nan
    w = np.full((6, 1), 1 / 6)
    r = correlate(Sample(x[:, :, None], w), np.array([[0, 1], [0, 2], [0, 3]]), statistic)[:, 0]
    assert np.isnan(r[0])
    assert r[1] == pytest.approx(ORACLES[statistic](x[0, 1:], x[2, 1:])[0], abs=1e-10)
    assert r[2] == pytest.approx(ORACLES[statistic](x[0], x[3])[0], abs=1e-10)


@pytest.mark.parametrize("n", [4, 6])
def test_exact_permutation_p_equals_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(2, 5, n))
    x[4] = np.round(x[4])  # ties
    ours = permutation_p(similarity_terms(x, y))
    for s in range(5):
        theirs = st.permutation_test(
            (x[s],), lambda a, s=s: abs(st.pearsonr(a, y[s])[0]), permutation_type="pairings",
            n_resamples=np.inf, alternative="greater",
        )  # fmt: skip
        assert ours[s] == pytest.approx(theirs.pvalue, abs=1e-12)


def test_rank_permutation_and_nine_mixtures() -> None:
    x, y = np.random.default_rng(3).normal(size=(2, 1, 9))
    a = similarity_terms(ranks(x), ranks(y))
    assert a[0].trace() == pytest.approx(st.spearmanr(x[0], y[0])[0], abs=1e-12)
    exact = permutation_p(a)[0]
    assert exact * 362_880 == pytest.approx(round(exact * 362_880), abs=1e-6)
    rng = np.random.default_rng(0)
    perms = rng.permuted(np.tile(np.arange(9), (50_000, 1)), axis=1)
    sampled = a[0][np.arange(9), perms].sum(axis=1)
    assert exact == pytest.approx((np.abs(sampled) >= abs(a[0].trace()) - 1e-12).mean(), abs=0.01)


def test_sampled_permutation_p_counts_the_observed_order() -> None:
    x = np.arange(12.0)[None]
    assert permutation_p(similarity_terms(x, x), count=999)[0] == pytest.approx(1 / 1000)


def test_permutation_p_of_a_constant_is_undefined() -> None:
    assert np.isnan(permutation_p(similarity_terms(np.ones((1, 5)), np.arange(5.0)[None]))).all()


def test_a_mean_tau_of_zero_but_for_rounding_has_a_p_of_one() -> None:
    """Benchmarks with tau of 0.2, 0.4 and -0.6 over five mixtures: summed in some orders they leave 1e-16."""
    x_BM = np.tile(np.arange(5.0), (3, 1))
    y_BM = np.array([[0.0, 2, 4, 3, 1], [0, 1, 4, 3, 2], [2, 4, 3, 1, 0]])
    taus = [st.kendalltau(x_M, y_M)[0] for x_M, y_M in zip(x_BM, y_BM, strict=True)]
    assert taus == pytest.approx([0.2, 0.4, -0.6])
    members = list(itertools.permutations(range(3)))
    assert permuted_p(x_BM, y_BM, members, "kendall").tolist() == [1.0] * 6


def test_benjamini_hochberg_equals_scipy() -> None:
    p = np.random.default_rng(0).uniform(size=20) ** 2
    np.testing.assert_allclose(benjamini_hochberg(p), st.false_discovery_control(p))
    with_nan = np.insert(p, 3, np.nan)
    q = benjamini_hochberg(with_nan)
    assert np.isnan(q[3])
    np.testing.assert_allclose(np.delete(q, 3), st.false_discovery_control(p))


@pytest.mark.parametrize("mixtures", [9, 40])
def test_decisions_over_pairs_equal_a_plain_loop(mixtures: int) -> None:
    """Of variables that are the same in every column, and of some that could differ."""
    rng = np.random.default_rng(mixtures)
    x_2M = rng.integers(0, 3, size=(2, mixtures)).astype(float)
    w_MC = rng.dirichlet(np.ones(mixtures), size=5).T
    expected = np.zeros((3, 5))
    for m in range(mixtures):
        for k in range(m):
            dx, dy = x_2M[:, m] - x_2M[:, k]
            wrong = abs(np.sign(dx) - np.sign(dy)) / 2
            untied = dx != 0 or dy != 0
            expected += np.outer([untied, wrong, wrong * abs(dy)], w_MC[m] * w_MC[k])
    for columns in (1, 5):
        x_2MC = np.repeat(x_2M[:, :, None], columns, axis=2)
        found = pair_sums(x_2MC, PAIR, w_MC, DECISION)[:, 0]
        np.testing.assert_allclose(found, expected, rtol=1e-12)
