"""Intervals against scipy.stats.bootstrap and against brute force over every ordered resample."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats as st

from evalengine.analysis.statistics.bootstrap import (
    draw_resamples,
    enumerate_resamples,
    fisher,
    intervals,
    jackknife_t,
    jackknife_z,
    resamples,
)
from evalengine.analysis.statistics.correlation import Sample, correlate
from evalengine.analysis.statistics.numba_kernels import quantiles
from evalengine.errors import UserError

PAIR = np.array([[0, 1]])
KINDS = ("percentile", "basic", "bca", "bca-t", "jackknife", "jackknife-z")


def scipy_r(x, y, axis=-1):
    # rounded, so that resamples that are the sample itself tie exactly with it
    return np.round(st.pearsonr(x, y, axis=axis)[0], 12)


@pytest.mark.parametrize("n", [9, 14, 40])
@pytest.mark.parametrize("kind", ["percentile", "basic", "bca"])
def test_monte_carlo_equals_scipy_on_the_same_resamples(n: int, kind: str) -> None:
    x = np.random.default_rng(n).normal(size=(2, n))
    x[1] += x[0]
    plan = draw_resamples(n, 4999, seed=5)
    ours = intervals(correlate(Sample(x[:, :, None], plan.weight_MC), PAIR), plan).ends[kind][0]
    theirs = st.bootstrap(
        (x[0], x[1]), scipy_r, paired=True, n_resamples=4999, rng=np.random.default_rng(5),
        method={"bca": "BCa"}.get(kind, kind),
    ).confidence_interval  # fmt: skip
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


@pytest.mark.parametrize("statistic", ["pearson", "spearman", "kendall"])
def test_exact_equals_brute_force_over_all_ordered_resamples(statistic: str) -> None:
    n = 5
    x = np.array([[0.1, 0.5, 0.2, 0.9, 0.5], [0.3, 0.1, 0.4, 0.8, 0.6]])
    plan = enumerate_resamples(n)
    assert plan.count == math.comb(2 * n - 1, n)
    assert plan.multiplicity_R.sum() == n**n
    ours = intervals(correlate(Sample(x[:, :, None], plan.weight_MC), PAIR, statistic), plan, kinds=KINDS)
    oracle = {"pearson": st.pearsonr, "spearman": st.spearmanr, "kendall": st.kendalltau}[statistic]
    values = []
    for index in itertools.product(range(n), repeat=n):
        a, b = x[0, list(index)], x[1, list(index)]
        values.append(oracle(a, b)[0] if np.ptp(a) > 0 and np.ptp(b) > 0 else np.nan)
    values = np.round(values, 12)
    valid = values[np.isfinite(values)]
    estimate = round(oracle(x[0], x[1])[0], 12)
    assert ours.estimate[0] == pytest.approx(estimate, abs=1e-12)
    assert ours.degenerate[0] == pytest.approx(1 - len(valid) / len(values), abs=1e-12)
    np.testing.assert_allclose(
        ours.ends["percentile"][0], np.quantile(valid, [0.025, 0.975], method="inverted_cdf"), atol=1e-9
    )

    jack = np.array([oracle(np.delete(x[0], i), np.delete(x[1], i))[0] for i in range(n)])
    d = jack.mean() - jack
    a_hat = (d**3).sum() / (6 * (d**2).sum() ** 1.5)
    z0 = st.norm.ppf(((valid < estimate).mean() + (valid <= estimate).mean()) / 2)
    for z, ends in (
        (st.norm.ppf([0.025, 0.975]), ours.ends["bca"]),
        (st.t(n - 1).ppf([0.025, 0.975]), ours.ends["bca-t"]),
    ):
        prob = st.norm.cdf(z0 + (z0 + z) / (1 - a_hat * (z0 + z)))
        np.testing.assert_allclose(ends[0], np.quantile(valid, prob, method="inverted_cdf"), atol=1e-9)
    with np.errstate(divide="ignore", invalid="ignore"):  # Spearman's leave-one-out r can be 1: no interval
        left_out, whole = np.arctanh(jack), np.arctanh(oracle(x[0], x[1])[0])
        half = st.t(n - 1).ppf(0.975) * np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    np.testing.assert_allclose(ours.ends["jackknife-z"][0], np.tanh([whole - half, whole + half]), atol=1e-9)


def test_the_study_has_24310_resamples_and_monte_carlo_converges_to_them() -> None:
    x = np.random.default_rng(0).normal(size=(2, 9))
    exact, many = enumerate_resamples(9), draw_resamples(9, 200_000, 1)
    assert exact.count == 24_310
    a, b = (intervals(correlate(Sample(x[:, :, None], plan.weight_MC), PAIR), plan) for plan in (exact, many))
    np.testing.assert_allclose(a.ends["bca"], b.ends["bca"], atol=0.02)
    np.testing.assert_allclose(a.ends["percentile"], b.ends["percentile"], atol=0.01)


def test_default_is_exact_up_to_ten_mixtures() -> None:
    assert resamples(9, None).exact and resamples(10, None).exact and not resamples(11, None).exact
    assert resamples(11, None).count == 10_000
    with pytest.raises(UserError, match="use --bootstrap 10000"):
        resamples(16, "exact")
    with pytest.raises(UserError, match="too few"):
        resamples(9, 10)


def of_rows(value_SR: np.ndarray, weight_R: np.ndarray, prob_SQ: np.ndarray, linear: bool) -> np.ndarray:
    out_SQ = np.empty_like(prob_SQ)
    quantiles(0, len(value_SR), np.ascontiguousarray(value_SR), 0, weight_R, prob_SQ, linear, out_SQ)
    return out_SQ


@pytest.mark.parametrize("size", [2, 17, 5000])
@pytest.mark.parametrize("shape", ["normal", "ties", "spike"])
def test_quantiles_equal_numpy(size: int, shape: str) -> None:
    rng = np.random.default_rng(size)
    x = rng.normal(size=(3, size))
    if shape == "ties":
        x = np.round(x)
    if shape == "spike":
        x[:, 0] = 1e6
    prob = np.tile([0.0, 0.025, 0.4, 0.975, 1.0], (3, 1))
    ours = of_rows(x, np.ones(size), prob, True)
    np.testing.assert_allclose(ours, np.quantile(x, prob[0], axis=1).T, rtol=1e-12, atol=1e-12)
    weight = rng.integers(1, 5, size)
    expanded = np.repeat(x, weight, axis=1)
    ours = of_rows(x, weight.astype(float), prob[:, 1:4], False)
    theirs = np.quantile(expanded, prob[0, 1:4], axis=1, method="inverted_cdf").T
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_nan_resamples_are_left_out_and_counted() -> None:
    plan = draw_resamples(6, 1000, 0)
    value = np.random.default_rng(0).normal(size=(1, 1 + 6 + 1000))
    value[0, 7:107] = np.nan
    found = intervals(value, plan)
    assert found.degenerate[0] == pytest.approx(0.1)
    np.testing.assert_allclose(found.ends["percentile"][0], np.quantile(value[0, 107:], [0.025, 0.975]))


def test_constant_statistic_has_width_zero_and_undefined_estimate_has_none() -> None:
    plan = draw_resamples(6, 1000, 0)
    found = intervals(np.array([np.full(1007, 2.0), np.full(1007, np.nan)]), plan)
    assert found.ends["percentile"][0].tolist() == [2.0, 2.0] and found.ends["bca"][0].tolist() == [2.0, 2.0]
    assert np.isnan(found.ends["percentile"][1]).all() and np.isnan(found.ends["bca"][1]).all()


def test_bca_is_undefined_when_the_estimate_lies_outside_all_resamples() -> None:
    plan = draw_resamples(6, 1000, 0)
    value = np.random.default_rng(0).uniform(size=(1, 1007))
    value[0, 0] = 5.0
    found = intervals(value, plan)
    assert np.isnan(found.ends["bca"]).all() and np.isfinite(found.ends["percentile"]).all()


def test_fisher_equals_scipy() -> None:
    x = np.random.default_rng(3).normal(size=(2, 9))
    result = st.pearsonr(x[0], x[1])
    theirs = result.confidence_interval(0.9)
    np.testing.assert_allclose(fisher(np.array([result[0]]), 9, 0.9)[0], theirs, atol=1e-12)
    assert np.isnan(fisher(np.array([0.3]), 3)).all()


THREADS = """
import numpy as np, sys
from evalengine.analysis.statistics.bootstrap import draw_resamples, intervals
from evalengine.analysis.statistics.correlation import Sample, correlate
x = np.random.default_rng(0).normal(size=(12, 9, 1))
plan = draw_resamples(9, 2000, 3)
pairs = np.array([(i, j) for i in range(6) for j in range(6, 12)])
for s in ("pearson", "spearman", "kendall"):
    found = intervals(correlate(Sample(x, plan.weight_MC), pairs, s), plan)
    sys.stdout.buffer.write(np.concatenate([found.ends["bca"], found.ends["percentile"]], 1).tobytes())
"""


def run_python(code: str, *args: str, **env: str) -> bytes:
    done = subprocess.run(
        [sys.executable, "-c", code, *args], env={**os.environ, **env}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    one, four = (run_python(THREADS, OMP_NUM_THREADS=n) for n in ("1", "4"))
    assert len(one) > 1000 and one == four


def test_kernels_work_where_no_cache_can_be_written() -> None:
    code = """
from numba.core import caching
for locator in caching.CacheImpl._locator_classes:
    locator.from_function = classmethod(lambda cls, *a: None)
from evalengine.analysis.statistics.numba_kernels import quantiles
import numpy as np
out = np.empty((1, 3))
quantiles(0, 1, np.array([[9.0, 3.0, 1.0, 2.0]]), 1, np.ones(3), np.array([[0.0, 0.5, 1.0]]), True, out)
print(out.tolist())
"""
    assert run_python(code) == b"[[1.0, 2.0, 3.0]]\n"


def test_a_jackknife_without_a_finite_value_has_no_interval_and_no_warning() -> None:
    plan = enumerate_resamples(4)
    with np.errstate(all="raise"):
        ends = jackknife_t(np.array([[0.5, 0.4, np.inf, 0.6, 0.5]]), plan)
    assert np.isnan(ends).all()


def test_an_end_at_zero_is_zero_in_every_order_of_the_mixtures() -> None:
    # The end of this interval is a resample whose r is 0 but for rounding, which depends on the order of the sums.
    x = np.array([[4, 4, 6, 3, 5, 7], [4, 7, 7, 3, 6, 7]]) / 10
    plan = enumerate_resamples(6)
    lows = set()
    for shift in range(6):
        value = correlate(Sample(np.roll(x, shift, axis=1)[..., None], plan.weight_MC), np.array([[0, 1]]))
        lows.add(float(intervals(value, plan, kinds=("bca",)).ends["bca"][0, 0]))
    assert lows == {0.0}


def test_what_is_one_but_for_rounding_is_one_on_fishers_scale() -> None:
    plan = enumerate_resamples(4)
    value = np.array([[0.9, 0.8, 1.0, 0.7, 0.9]])
    for one in (1.0, np.nextafter(1.0, 0.0), 1.0 - 5e-16, np.nextafter(1.0, 2.0)):
        value[0, 2] = one
        assert np.isnan(jackknife_z(value, plan)).all(), one
    value[0, 2] = 1.0 - 1e-9
    assert np.isfinite(jackknife_z(value, plan)).all()
