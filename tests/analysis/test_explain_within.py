"""Slopes within items: statsmodels with dummies, brute force, and coverage in worlds with a known slope."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import stdtrit
from scipy.stats import t as t_of

from evalengine.analysis.explain import within
from evalengine.analysis.explain.within import permutation_p, relabellings, signs, wild_p

M, SIZES = 6, (7, 12, 9)
BENCHMARK = np.repeat(np.arange(3), SIZES)


def demeaned(v: np.ndarray, benchmark: np.ndarray) -> np.ndarray:
    """Benchmark by benchmark."""
    parts = [within.demeaned(v[..., benchmark == b]) for b in np.unique(benchmark)]
    return np.concatenate(parts, axis=-1)


VERSION, PROPORTION = np.repeat(np.arange(3), 3), np.tile(np.arange(3), 3)


def small(seed: int, regressors: int = 1) -> np.ndarray:
    """Regressors and y, (V, M, I), with effects of items and of benchmarks by mixtures in all of them."""
    rng = np.random.default_rng(seed)
    items = sum(SIZES)
    v = rng.normal(size=(regressors + 1, M, items)) + 2 * rng.normal(size=(regressors + 1, 1, items))
    v += 3 * rng.normal(size=(regressors + 1, M, 3))[:, :, BENCHMARK]
    v[-1] += 0.7 * v[0]
    return v


def with_dummies(v: np.ndarray, mixtures: list[int] | None = None) -> tuple[object, np.ndarray, np.ndarray]:
    """The least-squares fit of statsmodels with a dummy for each item and each benchmark and mixture."""
    chosen = list(range(M)) if mixtures is None else mixtures
    v = v[:, chosen]
    items = v.shape[2]
    m, i = (a.ravel() for a in np.meshgrid(np.arange(len(chosen)), np.arange(items), indexing="ij"))
    cells = BENCHMARK[i] * len(chosen) + m
    columns = [*v[:-1].reshape(len(v) - 1, -1), *(i == k for k in range(items))]
    # one mixture of each benchmark stands in its items' dummies
    columns += [cells == c for c in np.unique(cells) if c % len(chosen)]
    fit = sm.OLS(v[-1].ravel(), np.column_stack(columns).astype(float)).fit()
    return fit, m, i


@pytest.mark.parametrize("regressors", [1, 3])
def test_slopes_and_errors_are_those_of_dummies(regressors: int) -> None:
    v = small(regressors, regressors)
    value = demeaned(v, BENCHMARK)
    product = within.products(value)
    every = within.slopes(within.without_each(product))
    fit, m, i = with_dummies(v)
    np.testing.assert_allclose(every[0], fit.params[:regressors], rtol=0, atol=1e-10)
    for left_out in range(M):
        other, _, _ = with_dummies(v, [k for k in range(M) if k != left_out])
        np.testing.assert_allclose(every[1 + left_out], other.params[:regressors], rtol=0, atol=1e-10)
    slopes, errors = within.fitted(value)
    np.testing.assert_array_equal(slopes.estimate, every[0])
    n, p = fit.model.exog.shape
    found = {}
    for name, groups in (("item", i), ("mixture", m), ("cell", np.arange(n))):
        robust = fit.get_robustcov_results("cluster", groups=groups)
        found[name] = robust.bse[:regressors] ** 2 * (n - p) / (n - 1)  # without the factor for the dummies
    np.testing.assert_allclose(errors.item_K**2, found["item"], rtol=1e-8)
    np.testing.assert_allclose(errors.mixture_K**2, found["mixture"], rtol=1e-8)
    np.testing.assert_allclose(errors.cell_K**2, found["cell"], rtol=1e-8)
    both = (M - 1) * every[1:].var(axis=0) + np.maximum(found["item"] - found["cell"], 0.0)
    np.testing.assert_allclose(slopes.se**2, both, rtol=1e-8)
    np.testing.assert_allclose(slopes.p, 2 * t_of(M - 1).sf(abs(every[0]) / slopes.se), rtol=1e-8)


def test_a_regressor_without_variation_has_no_slope() -> None:
    v = small(3)
    v[0] = v[0, :1]  # the same in all mixtures
    value = demeaned(v, BENCHMARK)
    assert not within.varies(value[0])
    v[0] = np.where(np.arange(M)[:, None] == 2, small(4)[0], v[0])  # moved by one mixture alone
    v = np.stack([v[0], 2 * v[0], v[1]])
    value = demeaned(v, BENCHMARK)
    assert within.varies(value[0])
    every = within.slopes(within.without_each(within.products(value)))
    assert np.isnan(every[0]).all()  # one is twice the other
    alone = within.slopes(within.without_each(within.products(value[1:])))[:, 0]
    assert np.isfinite(np.delete(alone, 3)).all() and np.isnan(alone[3])


def test_all_sign_vectors_are_refitted_by_brute_force() -> None:
    v = small(5)
    x, y = demeaned(v, BENCHMARK)
    for null in (0.0, 0.6):
        t = []
        for w in signs(M):
            made = demeaned(np.stack([v[0], w[:, None] * (y - null * x)]), BENCHMARK)
            slope = within.slopes(within.without_each(within.products(made)))[0]
            t.append(abs(slope[0]) / within.clustered(within.influence(made, slope)).mixture_K[0])
        assert wild_p(x, y, null) == pytest.approx(np.mean(np.array(t) >= t[0] * (1 - 1e-9)))
    assert len(signs(M)) == 2**M and (signs(14)[0] == 1).all() and len(signs(14)) == 4096
    assert np.isnan(wild_p(x, 2.0 * x, 2.0))


def test_relabellings_of_a_grid() -> None:
    orders = relabellings(VERSION.tolist(), PROPORTION.tolist())
    assert orders is not None and orders.shape == (36, 9) and (orders[0] == np.arange(9)).all()
    assert len(np.unique(orders, axis=0)) == 36
    for order in orders:  # mixtures that share a level still do
        assert all(
            (VERSION[order[a]] == VERSION[order[b]]) == (VERSION[a] == VERSION[b])
            for a, b in itertools.combinations(range(9), 2)
        )
    assert relabellings([0, 0, 1], [0, 1, 0]) is None and relabellings([0, 0], [0, 1]) is None
    rng = np.random.default_rng(0)
    v = rng.normal(size=(2, 9, 30))
    x, y = within.demeaned(v)
    slopes = [
        within.slopes(within.products(within.demeaned(np.stack([v[0][o], v[1]]))).sum(0)[None])[0, 0]
        for o in orders
    ]
    assert permutation_p(x, y, orders) == pytest.approx(np.mean(np.abs(slopes) >= abs(slopes[0]) - 1e-12))
    strong = within.demeaned(np.stack([v[0], 3 * v[0] + 0.1 * v[1]]))
    assert permutation_p(*strong, orders) == 1 / 36


def world(
    rng: np.random.Generator, slope: float, of_mixtures: float, of_items: float = 0.0, task: float = 0.0
) -> np.ndarray:
    """Dose and margin of nine mixtures, three sources by three proportions, and 3 x 40 items.

    Mixtures and items use the dose with slopes of their own, of the given spread. `task`: the mixture's benchmark rises with the
    mean dose of its items.
    """
    items = 120
    of_source, common = (rng.poisson(rng.gamma(0.5, 2.0, size=(n, items, 2))) for n in (3, 1))
    share = np.array([0.65, 0.45, 0.25])[PROPORTION][:, None, None]
    exposures = 3 * (share * of_source[VERSION] + (0.75 - share) * common)
    x = np.log1p(exposures[..., 0]) - np.log1p(exposures[..., 1])
    y = (slope + of_mixtures * rng.normal(size=(9, 1)) + of_items * rng.normal(size=items)) * x
    y += rng.normal(size=(9, items)) + rng.normal(size=items)
    y += rng.normal(size=(9, 3))[:, BENCHMARK_OF] + task * x.reshape(9, 3, 40).mean(axis=2)[:, BENCHMARK_OF]
    return np.stack([x, y])


BENCHMARK_OF = np.repeat(np.arange(3), 40)


@pytest.mark.parametrize(("of_mixtures", "of_items"), [(0.0, 0.0), (0.5, 0.0), (0.3, 1.2)])
def test_intervals_hold_for_other_mixtures_and_items(of_mixtures: float, of_items: float) -> None:
    """Where mixtures differ in their slopes the errors by item fail, CR1 by mixture holds too rarely, and the jackknife and the
    sign vectors hold; where items differ too, the jackknife alone fails. What is reported holds in all."""
    rng, n = np.random.default_rng(1), 400
    hits = dict.fromkeys(("item", "CR1", "CR3", "wild", "reported"), 0)
    for _ in range(n):
        value = demeaned(world(rng, 1.0, of_mixtures, of_items), BENCHMARK_OF)
        every = within.slopes(within.without_each(within.products(value)))[:, 0]
        found, errors = within.fitted(value)
        off = abs(every[0] - 1.0)
        t = float(stdtrit(8, 0.975))
        hits["item"] += off <= t * errors.item_K[0]
        hits["CR1"] += off <= t * errors.mixture_K[0]
        hits["CR3"] += off <= t * np.sqrt(8 * every[1:].var())
        hits["wild"] += wild_p(*value, 1.0) > 0.05
        hits["reported"] += found.low[0] <= 1.0 <= found.high[0]
    share = {name: count / n for name, count in hits.items()}
    assert 0.93 <= share["reported"] <= 0.985
    if of_mixtures == 0.5:
        assert share["item"] < 0.6 and share["CR1"] < 0.94
        assert 0.93 <= share["CR3"] <= 0.975 and 0.93 <= share["wild"] <= 0.975
    if of_items:
        assert share["CR3"] < 0.9


def test_an_effect_on_the_tasks_level_alone_gives_zero() -> None:
    rng = np.random.default_rng(2)
    found, rejected = [], 0
    orders = relabellings(VERSION.tolist(), PROPORTION.tolist())
    for _ in range(200):
        value = demeaned(world(rng, 0.0, 0.0, task=5.0), BENCHMARK_OF)
        found.append(within.slopes(within.without_each(within.products(value)))[0, 0])
        rejected += permutation_p(*value, orders) <= 0.0501
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(200) and np.std(found) < 0.1
    assert rejected / 200 <= 0.09
