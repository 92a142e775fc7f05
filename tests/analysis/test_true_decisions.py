"""Decisions without item noise: orthant probabilities by SciPy and by simulation, and coverage of what was planted."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import planted
import pytest
import scipy.stats as st

from evalengine.analysis.data.panel import load_panel
from evalengine.analysis.protocols import decisions, noise, true_decisions
from evalengine.analysis.protocols.protocol import StudyData
from evalengine.analysis.report.report import page
from evalengine.analysis.results import load_results
from evalengine.analysis.statistics.bootstrap import (
    Resamples,
    draw_resamples,
    enumerate_resamples,
    jackknife_t,
)
from evalengine.analysis.statistics.correlation import Sample
from evalengine.analysis.statistics.latent import latent_r, pooled
from evalengine.analysis.study import CorrelateOptions, analyse, fixed_data

M = 9


@pytest.mark.parametrize("rho", [-0.6, 0.0, 0.5, 0.9])
def test_the_share_is_twice_the_orthant(rho: float) -> None:
    orthant = st.multivariate_normal([0, 0], [[1, rho], [rho, 1]]).cdf(np.zeros(2))
    assert true_decisions.right_of_two(np.array(rho)) == pytest.approx(2 * orthant, abs=1e-6)
    assert true_decisions.right_of_two(np.array([1.2, -1.2])) == pytest.approx([1.0, 0.0])


def test_share_and_loss_are_what_many_mixtures_show() -> None:
    """Two hundred thousand pairs of mixtures that are measured with noise before, and known after."""
    rng = np.random.default_rng(0)
    before, after, rho, noise_before = 1.0, 2.0, 0.8, 0.7
    true = rng.multivariate_normal([0, 0], [[before, rho * 2**0.5], [rho * 2**0.5, after]], (200_000, 2))
    measured = true[:, :, 0] + math.sqrt(noise_before) * rng.normal(size=(200_000, 2))
    better = true[:, :, 1].argmax(axis=1)
    chosen = measured.argmax(axis=1)
    lost = (true[:, :, 1].max(axis=1) - np.take_along_axis(true[:, :, 1], chosen[:, None], 1)[:, 0]).mean()
    covariance = np.array([[[before + noise_before], [after + 0.5], [rho * 2**0.5 + 0.1]]])
    of_noise = np.array([[noise_before, 0.5, 0.1]])
    judged, without = true_decisions.correlations(covariance, of_noise)
    assert without == pytest.approx([rho])
    assert true_decisions.right_of_two(judged) == pytest.approx([(chosen == better).mean()], abs=0.004)
    right_by_truth = (true[:, :, 0].argmax(axis=1) == better).mean()
    assert true_decisions.right_of_two(without) == pytest.approx([right_by_truth], abs=0.004)
    loss = true_decisions.loss_judged(covariance, of_noise, np.array([100_000]))
    assert loss == pytest.approx([lost], rel=0.02)


def drawn(
    rng: np.random.Generator, benchmarks: int, rho: float, reliability: float, plan: Resamples
) -> tuple[np.ndarray, np.ndarray]:
    """Covariances (B, 3, C) of nine mixtures of unit true variance, and their noise as 300 items estimate it (B, 3).

    The noise of the two stages correlates by 0.3.
    """
    share = (1 - reliability) / reliability
    root = np.linalg.cholesky(share * np.array([[1, 0.3], [0.3, 1]]))
    true = rng.normal(size=(benchmarks, 2, M))
    true[:, 1] = rho * true[:, 0] + math.sqrt(1 - rho * rho) * true[:, 1]
    x = true + root @ rng.normal(size=(benchmarks, 2, M))
    residual = root @ rng.normal(size=(benchmarks, 2, (M - 1) * 299))
    found = np.einsum("bsi,bti->bst", residual, residual) / ((M - 1) * 299)
    keep = np.ones(M, dtype=bool)
    covariance = [noise.covariances(Sample(pair[:, :, None], plan.weight_MC), keep) for pair in x]
    return np.array(covariance), np.stack([found[:, 0, 0], found[:, 1, 1], found[:, 0, 1]], axis=1)


@pytest.mark.parametrize("reliability", [0.9, 0.7, 0.35])
@pytest.mark.parametrize("benchmarks", [7, 20])
def test_intervals_of_categories_hold_what_was_planted(benchmarks: int, reliability: float) -> None:
    rng = np.random.default_rng(benchmarks)
    every = enumerate_resamples(M)
    plan = Resamples(every.weight_MC[:, : 1 + M].copy(), np.ones(1), M, True)
    held = []
    rho, judged = 0.9, 0.9 * math.sqrt(reliability)
    goals = [0.5 + math.asin(r) / math.pi for r in (judged, rho)] + [(1 - judged) / math.sqrt(math.pi)]
    assert goals[1] == pytest.approx(0.856, abs=1e-3)
    draws = 120
    for _ in range(draws):
        covariance, of_noise = drawn(rng, benchmarks, rho, reliability, plan)
        values = np.stack([*true_decisions.correlations(covariance, of_noise),
                           true_decisions.loss_judged(covariance, of_noise, np.full(benchmarks, M))])  # fmt: skip
        ends = jackknife_t(values, plan)
        ends[:2] = true_decisions.right_of_two(ends[:2])
        held.append(
            [
                low <= goal <= high if low == low else np.nan
                for (low, high), goal in zip(ends, goals, strict=True)
            ]
        )
    covered = np.nanmean(np.array(held, dtype=float), axis=0)
    assert (covered > 0.93 - 2.5 * math.sqrt(0.93 * 0.07 / draws)).all()
    assert np.isnan(np.array(held, dtype=float)[:, 0]).mean() < (0.3 if reliability < 0.5 else 0.01)


@pytest.mark.parametrize("reliability", [0.9, 0.7, 0.35])
def test_intervals_of_benchmarks_hold_what_was_planted(reliability: float) -> None:
    rng = np.random.default_rng(4)
    plan = Resamples(np.full((M, 1), 1.0 / M), np.ones(1), 0, True)
    goal, held = 0.5 + math.asin(0.9) / math.pi, []
    covariance, of_noise = drawn(rng, 150, 0.9, reliability, plan)
    for (xx, yy, xy), (a, b, both) in zip(covariance[:, :, 0], of_noise, strict=True):
        found = latent_r(np.array([[xx, xy], [xy, yy]]), np.array([[a, both], [both, b]]), M)
        _, low, high = true_decisions.right_of_two(np.array(found))
        held.append(low <= goal <= high)
    assert np.mean(held) > 0.93 - 2.5 * math.sqrt(0.93 * 0.07 / 150)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    folder = tmp_path_factory.mktemp("decisions")
    planted.write_study(folder, dict.fromkeys(planted.BENCHMARKS, 0.9), items=300)
    plan = draw_resamples(M, 200, 0)
    return StudyData(fixed_data(load_panel(folder), plan, "pearson"), plan, CorrelateOptions())


def test_rows_are_the_formulas_of_what_was_measured(study: StudyData) -> None:
    rows = list(true_decisions.rows(study, "accuracy", true_decisions.known_noise(study, "accuracy")))
    known = noise.measured(study.data, "accuracy", "1B")
    at = {(r.category, r.name, r.other): r for r in rows if r.scale == "1B"}
    found = [known[b] for b in (0, 1)]
    rho = pooled(np.array([m.covariance_3C for m in found]), np.array([m.noise for m in found]))
    row = at["Commonsense", "mean of 2", true_decisions.AGREEMENT]
    assert row.estimate == pytest.approx(0.5 + math.asin(min(rho[0], 1.0)) / math.pi)
    left_out = rho[1 : 1 + M]
    half = st.t(M - 1).ppf(0.975) * math.sqrt((M - 1) / M * ((left_out - left_out.mean()) ** 2).sum())
    low = 0.5 + math.asin(np.clip(rho[0] - half, -1, 1)) / math.pi
    assert row.low == pytest.approx(low) and row.interval == "jackknife" and row.n == M
    clean = {
        (r.scale, r.name): r
        for r in noise.without_noise(study, "accuracy", noise.measured_by_scale(study.data, "accuracy"))
    }
    for name in study.panel.benchmarks:
        mine = next(r for key, r in at.items() if key[1] == name)
        theirs = clean["1B", name]
        for end in ("estimate", "low", "high"):
            expected = 0.5 + math.asin(getattr(theirs, end)) / math.pi
            assert getattr(mine, end) == pytest.approx(expected)
    judged = at["All", "mean of 5", true_decisions.AGREEMENT_JUDGED]
    assert judged.estimate <= at["All", "mean of 5", true_decisions.AGREEMENT].estimate
    assert at["All", "mean of 5", true_decisions.LOSS_JUDGED].low >= 0.0


def test_without_items_or_their_number_nothing_is_corrected(study: StudyData) -> None:
    bare = replace(study.panel, items=(), n_items=np.zeros(5, dtype=np.int64))
    data = fixed_data(bare, study.plan, "pearson")
    study = StudyData(data, study.plan, CorrelateOptions())
    assert list(true_decisions.rows(study, "accuracy", true_decisions.known_noise(study, "accuracy"))) == []


def test_the_report_shows_them_beside_the_measured_ones(study: StudyData, tmp_path: Path) -> None:
    analyse(study.panel, CorrelateOptions(bootstrap=200)).write(tmp_path)
    results = load_results(tmp_path)
    html = page(results)
    assert "Without item noise" in html
    (row,) = results.rows(
        "decisions", protocol=true_decisions.TABLE, scale="1B", category="All", other=true_decisions.AGREEMENT
    )
    assert f"{100 * row.estimate:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]" in html


def test_pairs_tied_at_both_stages_are_no_decisions() -> None:
    x = np.array([1.0, 1.0, 1.0, 2.0, 3.0, 3.0])
    y = np.array([2.0, 2.0, 2.0, 1.0, 3.0, 3.0])
    w = np.full((6, 1), 1 / 6)
    share, loss = decisions._pairwise(Sample(np.stack([x, y])[:, :, None], w))
    assert share[0] == pytest.approx((1 + st.kendalltau(x, y)[0]) / 2)
    pairs = [(i, j) for i in range(6) for j in range(i) if (x[i], y[i]) != (x[j], y[j])]
    assert len(pairs) == 15 - 3 - 1
    lost = [max(y[i], y[j]) - (y[i] if x[i] > x[j] else y[j]) for i, j in pairs]
    assert loss[0] == pytest.approx(np.mean(lost))
    alike = decisions._pairwise(Sample(np.ones((2, 4, 1)), np.full((4, 1), 0.25)))
    assert np.isnan(alike).all()


def test_a_benchmark_on_which_all_mixtures_tie_is_named(study: StudyData) -> None:
    accuracy = study.panel.values["accuracy"].copy()
    accuracy[0, :, :, 0] = 0.25
    panel = replace(study.panel, values={"accuracy": accuracy})
    found = decisions.pairwise(fixed_data(panel, study.plan, "pearson"), "accuracy")
    at = {(label.category, label.name, label.other): k for k, label in enumerate(found.labels)}
    row = at["Commonsense", panel.benchmarks[0], "pairwise agreement"]
    assert (
        np.isnan(found.values["240M"][row]).all() and found.notes["240M"][row].text == "all mixtures are tied"
    )
    mean = at["Commonsense", "mean of up to 2", "pairwise agreement"]
    other = at["Commonsense", panel.benchmarks[1], "pairwise agreement"]
    np.testing.assert_allclose(found.values["240M"][mean], found.values["240M"][other])
    assert f"without {panel.benchmarks[0]}" in found.notes["240M"][mean].text
