"""The regret of choosing the best mixture without item noise: closed forms, a grid, and coverage of what was planted."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import planted
import pytest
import scipy.stats as st

from evalengine import store
from evalengine.analysis.data.panel import Blocks, load_panel
from evalengine.analysis.estimates.groups import Label, Note
from evalengine.analysis.protocols import noise, true_regret
from evalengine.analysis.protocols.noise import ItemNoise, Measured
from evalengine.analysis.protocols.protocol import StudyData
from evalengine.analysis.protocols.true_decisions import TABLE, known_noise
from evalengine.analysis.protocols.true_regret import REGRET, REGRET_JUDGED, TOP1_JUDGED, regret
from evalengine.analysis.report.report import page
from evalengine.analysis.results import load_results
from evalengine.analysis.statistics.bootstrap import draw_resamples
from evalengine.analysis.study import CorrelateOptions, analyse, fixed_data


def measured(value_2M: np.ndarray, noise_22: np.ndarray) -> Measured:
    covariance = np.cov(value_2M)
    three = np.array([[covariance[0, 0]], [covariance[1, 1]], [covariance[0, 1]]])
    n = value_2M.shape[1]
    return Measured(
        ItemNoise(noise_22[0, 0], noise_22[1, 1], noise_22[0, 1]), three, np.ones(n, dtype=bool), n - 1
    )


def test_without_noise_the_regret_is_the_measured_one() -> None:
    value = np.array([[0.5, 0.7, 0.6, 0.2, 0.4], [0.55, 0.6, 0.72, 0.3, 0.5]])
    found = regret(value, measured(value, 1e-12 * np.eye(2)), None, np.random.default_rng(0))
    assert found is not None and found.best == 0.0
    np.testing.assert_allclose(found.judged_D, 0.12, atol=1e-4)
    np.testing.assert_allclose(found.true_D, 0.12, atol=1e-4)


def test_mixtures_that_tie_before_are_averaged() -> None:
    value = np.array([[0.7, 0.7, 0.6, 0.2, 0.4], [0.5, 0.8, 0.72, 0.3, 0.5]])
    found = regret(value, measured(value, 1e-12 * np.eye(2)), None, np.random.default_rng(0))
    assert found is not None and found.best == pytest.approx(0.5)
    np.testing.assert_allclose(found.judged_D, 0.15, atol=1e-4)


def test_the_order_of_the_mixtures_does_not_matter() -> None:
    rng = np.random.default_rng(7)
    value, noise_22, block = rng.normal(size=(2, 9)), 0.3 * np.eye(2), np.repeat([0, 1, 2], 3)
    of = measured(value, noise_22)
    for block_M in (None, block):
        first = regret(value, of, block_M, np.random.default_rng(0))
        for _ in range(5):
            order = rng.permutation(9)
            moved = None if block_M is None else block_M[order]
            again = regret(value[:, order], of, moved, np.random.default_rng(0))
            assert first is not None and again is not None
            np.testing.assert_allclose(again.true_D, first.true_D, atol=1e-5)
            np.testing.assert_allclose(again.judged_D, first.judged_D, atol=1e-5)
            assert again.best == pytest.approx(first.best)


def test_covariances_are_inverse_wishart_cut_where_they_exceed_the_noise() -> None:
    rng = np.random.default_rng(3)
    noise_22 = np.array([[0.2, 0.1], [0.1, 0.5]])
    sample_22 = np.array([[1.0, 0.4], [0.4, 1.5]])
    s_D22 = true_regret._covariances(sample_22, noise_22, 6, rng)
    assert s_D22 is not None
    every = st.invwishart(6, 6 * sample_22).rvs(200_000, random_state=1)
    kept = every[np.linalg.eigvalsh(every - noise_22)[:, 0] > 0]
    for of in (lambda s: s[:, 0, 0], lambda s: s[:, 1, 1], lambda s: s[:, 0, 1]):
        assert st.ks_2samp(of(s_D22), of(kept)).pvalue > 0.001


def test_true_pairs_are_those_of_the_whole_normal_model() -> None:
    """Given S: the conditional mean and covariance of all true values at once, the mean of each block with a flat prior."""
    s_22, noise_22 = np.array([[1.0, 0.4], [0.4, 1.5]]), np.array([[0.2, 0.1], [0.1, 0.5]])
    block = np.array([0, 0, 0, 1, 1, 1, 1])
    value = np.random.default_rng(2).normal(size=(2, 7)) + 3.0 * block
    draws = 40_000
    pairs = true_regret._true_pairs(
        value, noise_22, np.tile(s_22, (draws, 1, 1)), block, np.random.default_rng(0)
    )
    flat = 1e6
    mean_prior = np.kron((block[:, None] == block).astype(float), flat * np.eye(2))
    true_cov = mean_prior + np.kron(np.eye(7), s_22 - noise_22)
    gain = true_cov @ np.linalg.inv(true_cov + np.kron(np.eye(7), noise_22))
    expected_mean = gain @ value.T.ravel()
    expected_cov = true_cov - gain @ true_cov
    flat_pairs = pairs.transpose(0, 2, 1).reshape(draws, 14)
    np.testing.assert_allclose(flat_pairs.mean(axis=0), expected_mean, atol=0.02)
    np.testing.assert_allclose(np.cov(flat_pairs.T), expected_cov, atol=0.02)


def drawn(rng: np.random.Generator, n: int, rho: float, distribution: str) -> np.ndarray:
    """(2, n) true values of unit variance."""
    z = rng.normal(size=(2, n))
    z[1] = rho * z[0] + math.sqrt(1 - rho * rho) * z[1]
    if distribution == "t5":
        return z / np.sqrt(rng.chisquare(5, size=n) / 5) / math.sqrt(5 / 3)
    if distribution == "lognormal":
        s = 0.75
        return (np.exp(s * z) - math.exp(s * s / 2)) / math.sqrt((math.exp(s * s) - 1) * math.exp(s * s))
    return z


@pytest.mark.parametrize(
    ("reliability", "distribution"), [(0.9, "normal"), (0.7, "t5"), (0.9, "lognormal"), (0.35, "normal")]
)
def test_intervals_hold_the_regret_of_the_mixtures_at_hand(reliability: float, distribution: str) -> None:
    """Nine mixtures of seven benchmarks, true correlation 0.9, noise as 300 items estimate it."""
    rng = np.random.default_rng(2)
    M, B, studies = 9, 7, 40
    root = np.linalg.cholesky((1 - reliability) / reliability * np.array([[1, 0.3], [0.3, 1]]))
    held: list[tuple[bool, bool]] = []
    of_means: list[tuple[bool, bool]] = []
    for _ in range(studies):
        posterior, truths = [], []
        for _ in range(B):
            true = drawn(rng, M, 0.9, distribution)
            value = true + root @ rng.normal(size=(2, M))
            residual = root @ rng.normal(size=(2, (M - 1) * 299))
            found = regret(value, measured(value, residual @ residual.T / ((M - 1) * 299)), None, rng)
            if found is None:
                continue
            best = true[1].max()
            truth = best - true[1, value[0].argmax()], best - true[1, true[0].argmax()]
            posterior.append(found)
            truths.append(truth)
            held.append(
                tuple(
                    np.quantile(x, 0.025) <= t <= np.quantile(x, 0.975)
                    for x, t in zip(found[:2], truth, strict=True)
                )
            )
        means = [np.mean([one[k] for one in posterior], axis=0) for k in (0, 1)]
        of_means.append(
            tuple(
                np.quantile(x, 0.025) <= t <= np.quantile(x, 0.975)
                for x, t in zip(means, np.mean(truths, axis=0), strict=True)
            )
        )
    for found_K2, nominal in ((np.array(held), 0.95), (np.array(of_means), 0.93)):
        error = math.sqrt(nominal * (1 - nominal) / len(found_K2))
        assert (found_K2.mean(axis=0) > nominal - 3 * error).all()
    assert len(held) > 0.9 * studies * B


def test_another_seed_moves_the_loss_by_a_fiftieth_of_what_is_not_known_of_it() -> None:
    value, noise_22 = np.random.default_rng(0).normal(size=(2, 9)), np.array([[0.5, 0.1], [0.1, 0.5]])
    found = [
        regret(value, measured(value, noise_22), None, np.random.default_rng(seed)) for seed in range(40)
    ]
    judged_SD = np.array([one.judged_D for one in found if one is not None])
    assert len(judged_SD) == 40
    assert judged_SD.mean(axis=1).std() < 0.022 * judged_SD.std(axis=1).mean()


def test_noise_alone_has_no_posterior() -> None:
    value = 0.01 * np.random.default_rng(0).normal(size=(2, 9))
    assert regret(value, measured(value, np.eye(2)), None, np.random.default_rng(0)) is None


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    folder = tmp_path_factory.mktemp("regret")
    planted.write_study(folder, dict.fromkeys(planted.BENCHMARKS, 0.9), items=300)
    plan = draw_resamples(9, 200, 0)
    return StudyData(fixed_data(load_panel(folder), plan, "pearson"), plan, CorrelateOptions())


def test_rows_average_the_posteriors(study: StudyData) -> None:
    rows = {
        (r.scale, r.category, r.name, r.other): r
        for r in true_regret.rows(study, "accuracy", known_noise(study, "accuracy"))
    }
    panel = study.panel
    known = noise.measured(study.data, "accuracy", "1B")
    found = []
    for b in (0, 1):
        value = panel.variables("accuracy", 1)[[b, len(panel.benchmarks) + b]]
        mine = known[b]
        assert isinstance(mine, Measured)
        one = regret(value, mine, None, np.random.default_rng([0, 1, b]))
        assert one is not None
        found.append(one)
        row = rows["1B", "Commonsense", panel.benchmarks[b], REGRET_JUDGED]
        low, high = np.quantile(one.judged_D, [0.025, 0.975])
        assert (row.estimate, row.low, row.high) == pytest.approx((one.judged_D.mean(), low, high))
        assert (row.interval, row.n, row.protocol) == ("posterior", 9, TABLE)
    mean = np.mean([one.true_D for one in found], axis=0)
    row = rows["1B", "Commonsense", "mean of 2", REGRET]
    expected = (mean.mean(), *np.quantile(mean, [0.025, 0.975]))
    assert (row.estimate, row.low, row.high) == pytest.approx(expected)
    best = rows["1B", "Commonsense", "mean of 2", TOP1_JUDGED]
    assert best.estimate == pytest.approx(np.mean([one.best for one in found])) and math.isnan(best.low)


def of_the_model(
    right_TMI: np.ndarray, block: np.ndarray, draws: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Posterior losses of the choice by measured and by true values, and how probably the former is the best, from the answers:
    covariances by SciPy, all true values of a draw at once by the precision of their joint normal distribution."""
    _, M, items = right_TMI.shape
    groups = (block[:, None] == np.unique(block)).astype(float)
    centre = np.eye(M) - groups @ np.linalg.inv(groups.T @ groups) @ groups.T
    freedom = M - groups.shape[1]
    rest = np.einsum("mn,tni->tmi", centre, right_TMI)
    rest -= rest.mean(axis=2, keepdims=True)
    noise = np.einsum("tmi,umi->tu", rest, rest) / (freedom * (items - 1) * items)
    x = right_TMI.mean(axis=2)
    every = st.invwishart(freedom, x @ centre @ x.T).rvs(60 * draws, random_state=1)
    every = every[np.linalg.eigvalsh(every - noise)[:, 0] > 0][:draws]
    assert len(every) == draws
    inner = np.kron(np.eye(M), np.linalg.inv(noise))
    precision = inner + np.einsum("mn,dtu->dmtnu", centre, np.linalg.inv(every - noise)).reshape(
        draws, 2 * M, 2 * M
    )
    root = np.linalg.cholesky(np.linalg.inv(precision))
    mean = np.linalg.solve(precision, np.tile((inner @ x.T.ravel())[:, None], (draws, 1, 1)))
    true = (mean + root @ np.random.default_rng(2).normal(size=(draws, 2 * M, 1))).reshape(draws, M, 2)
    before, after = true[..., 0], true[..., 1]
    chosen = np.isclose(x[0], x[0].max())
    judged = after.max(axis=1) - after[:, chosen].mean(axis=1)
    by_true = after.max(axis=1) - after[np.arange(draws), before.argmax(axis=1)]
    return judged, by_true, float(chosen[after.argmax(axis=1)].mean() / chosen.sum())


@pytest.mark.parametrize("blocks", ["", "aabbb", "aaabbb"])
def test_rows_are_those_of_the_model_from_the_answers_themselves(tmp_path: Path, blocks: str) -> None:
    """Five mixtures, or blocks of two and three; without blocks one benchmark has four."""
    names = planted.MIXTURES[: len(blocks) or 5]
    planted.write_study(
        tmp_path, dict.fromkeys(planted.BENCHMARKS, 0.8), items=200, scales=("1B",), mixtures=names
    )
    if not blocks:
        (tmp_path / f"1B-{names[1]}-pt" / "rte.arrow").unlink()
    panel = load_panel(tmp_path)
    if blocks:
        panel = replace(panel, blocks=Blocks("source", tuple(blocks)))
    plan = draw_resamples(len(names), 200, 0, panel.block_M)
    study = StudyData(fixed_data(panel, plan, "pearson"), plan, CorrelateOptions())
    rows = list(true_regret.rows(study, "accuracy", known_noise(study, "accuracy")))
    draws, compared = 4000, 0
    for benchmark in panel.benchmarks:
        there = [
            m
            for m in names
            if all((tmp_path / f"1B-{m}-{t}" / f"{benchmark}.arrow").exists() for t in ("pt", "sft"))
        ]
        tables = [
            [store.read(tmp_path / f"1B-{m}-{t}" / f"{benchmark}.arrow") for m in there]
            for t in ("pt", "sft")
        ]
        right = np.array(
            [
                [np.array(t["loglik"].to_pylist()).argmax(axis=1) == t["gold"].to_numpy() for t in of_stage]
                for of_stage in tables
            ],
            dtype=float,
        )
        block = np.array([ord((blocks or "aaaaa")[names.index(m)]) for m in there])
        *both, best = of_the_model(right, block, draws)
        mine = {row.other: row for row in rows if row.name == benchmark}
        for found, row in zip(both, (mine[REGRET_JUDGED], mine[REGRET]), strict=True):
            if math.isnan(row.estimate):  # seldom more than noise
                continue
            error = found.std() * math.sqrt(1 / true_regret.DRAWS + 1 / draws)
            assert abs(row.estimate - found.mean()) < 4 * error and row.n == len(there)
            for end, share in ((row.low, 0.025), (row.high, 0.975)):
                slack = 4 * math.sqrt(share * (1 - share) * (1 / true_regret.DRAWS + 1 / draws))
                assert (found < end).mean() - slack < share < (found <= end).mean() + slack
            compared += 1
        if TOP1_JUDGED in mine:
            error = math.sqrt(0.25 * (1 / true_regret.DRAWS + 1 / draws))
            assert abs(mine[TOP1_JUDGED].estimate - best) < 4 * error
    assert compared >= 8


def test_a_mean_above_its_interval_is_explained(study: StudyData) -> None:
    few_D = np.where(np.arange(1000) < 20, 0.5, 0.0)
    draws = true_regret.Regret(few_D, np.linspace(0.0, 0.1, 1000), 0.98)
    judged, true, _ = true_regret._rows(study, "accuracy", "1B", Label("NLI", "rte"), [draws], 9, Note())
    assert judged.high == 0.0 < judged.estimate and judged.note == "98.0% of the draws lose nothing"
    assert true.low < true.estimate < true.high and not true.note


def test_the_report_shows_it(study: StudyData, tmp_path: Path) -> None:
    analyse(study.panel, CorrelateOptions(bootstrap=200)).write(tmp_path)
    results = load_results(tmp_path)
    html = page(results)
    (row,) = results.rows("decisions", protocol=TABLE, scale="1B", category="All", other=REGRET_JUDGED)
    assert f"{100 * row.estimate:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]" in html
    (row,) = results.rows("decisions", protocol=TABLE, scale="1B", category="All", other=TOP1_JUDGED)
    assert f"{100 * row.estimate:.1f}</td>" in html
