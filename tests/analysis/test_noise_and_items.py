"""Item noise, the item bootstrap and the choice of the best mixture, against closed forms and gathered copies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import planted
import pytest

from evalengine import store
from evalengine.analysis.data.items import averaged
from evalengine.analysis.data.panel import load_panel
from evalengine.analysis.estimates.item_bootstrap import GROUPS, item_data, resampled_means
from evalengine.analysis.protocols import decisions, noise
from evalengine.analysis.protocols.protocol import StudyData
from evalengine.analysis.statistics.bootstrap import (
    Resamples,
    degenerate_share,
    draw_resamples,
    enumerate_resamples,
    intervals,
    jackknife_error,
)
from evalengine.analysis.statistics.correlation import Sample
from evalengine.analysis.statistics.latent import latent_r, pooled
from evalengine.analysis.study import CorrelateOptions, analyse, fixed_data


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("noise")
    planted.write_study(folder, items=200)
    return load_panel(folder)


def reliability_of(panel):
    data = fixed_data(panel, draw_resamples(9, 100, 0), "pearson")
    return noise.reliability(data, "accuracy", noise.measured_by_scale(data, "accuracy"))


def test_reliability_is_cronbachs_alpha(panel) -> None:
    group = reliability_of(panel)
    at = {(label.name, label.other): k for k, label in enumerate(group.labels)}
    for b, name in enumerate(panel.benchmarks):
        for t, stage in enumerate(panel.stages):
            x = panel.items[b].correct_KI[panel.row[1, t, :, b]].astype(float)  # mixtures by items
            items = x.shape[1]
            alpha = items / (items - 1) * (1 - x.var(axis=0, ddof=1).sum() / x.sum(axis=1).var(ddof=1))
            found = group.values["1B"][at[name, f"reliability {stage}"], 0]
            assert found == pytest.approx(alpha, abs=1e-9)


def test_correction_with_independent_items_is_spearmans_formula(panel) -> None:
    """From counts alone the errors are independent: the ceiling is sqrt(rel * rel'), r without noise r over it."""
    bare = replace(panel, items=(), row=None)
    group = reliability_of(bare)
    at = {(label.name, label.other): k for k, label in enumerate(group.labels)}
    value = group.values["1B"][:, 0]
    study = StudyData(
        fixed_data(bare, draw_resamples(9, 100, 0), "pearson"), draw_resamples(9, 100, 0), CorrelateOptions()
    )
    rows = {
        (r.name, r.scale): r
        for r in noise.without_noise(study, "accuracy", noise.measured_by_scale(study.data, "accuracy"))
    }
    inside = 0
    for b, name in enumerate(panel.benchmarks):
        x, y = panel.values["accuracy"][1, :, :, b]
        rel = [1 - np.mean(v * (1 - v)) / 199 / v.var(ddof=1) for v in (x, y)]
        ceiling = np.sqrt(rel[0] * rel[1])
        assert value[at[name, "ceiling"]] == pytest.approx(ceiling)
        spearman = np.corrcoef(x, y)[0, 1] / ceiling
        if abs(spearman) < 0.95:  # inside -1 to 1 the two estimates are the same
            inside += 1
            assert rows[name, "1B"].estimate == pytest.approx(spearman, abs=5e-3)
    assert inside > 1


def test_correction_recovers_the_planted_correlation() -> None:
    """Many mixtures, few items: r is attenuated, the corrected r is not, also where twins share item effects."""
    rng = np.random.default_rng(0)
    M, items, r = 3000, 40, 0.8
    theta = rng.normal(size=(2, M))
    theta[1] = r * theta[0] + np.sqrt(1 - r * r) * theta[1]
    shared = rng.normal(size=(M, items))  # a mixture's item effects, the same at both stages
    x, y = (0.2 * theta[t][:, None] + shared + 0.5 * rng.normal(size=(M, items)) for t in range(2))
    found = noise.from_items(x, y)
    assert found.before == pytest.approx(1.25 / items, rel=0.03) and found.between == pytest.approx(
        1 / items, rel=0.05
    )
    covariance = np.cov(x.mean(axis=1), y.mean(axis=1))
    residual = np.array([[found.before, found.between], [found.between, found.after]])
    assert latent_r(covariance, residual, M).estimate == pytest.approx(r, abs=0.05)
    parts = np.array([[[covariance[0, 0]], [covariance[1, 1]], [covariance[0, 1]]]])
    clean = pooled(parts, np.array([found]))
    assert clean[0] == pytest.approx(r, abs=0.05)
    independent = np.diag(np.diag(residual))  # would take the twins' shared item effects for transfer
    assert abs(latent_r(covariance, independent, M).estimate - r) > 0.15


def test_no_spread_beyond_noise_is_said(tmp_path: Path) -> None:
    planted.write_study(tmp_path, items=30, spread=0.0)
    panel = load_panel(tmp_path)
    group = reliability_of(panel)
    ceiling = [k for k, label in enumerate(group.labels) if label.other == "ceiling"]
    undefined = [k for k in ceiling if np.isnan(group.values["1B"][k, 0])]
    assert undefined and all(group.notes["1B"][k].kind == noise.ITEM_NOISE for k in undefined)


def test_noise_of_fewer_items_than_the_value_rests_on_is_said(tmp_path: Path) -> None:
    """Confidence on items with a finite score: its noise is that of the items that all mixtures have, and the rows say so."""
    planted.write_study(tmp_path, items=40, scales=("1B",))
    for k, stage in enumerate(("pt", "sft")):
        path = tmp_path / f"1B-V1P{k}-{stage}" / "rte.arrow"
        table = store.read(path)
        loglik = np.array(table["loglik"].to_pylist(), np.float32)
        loglik[k] = np.nan
        who = {key: table[key][0].as_py() for key in store.KEYS}
        again = planted.item_table(who, loglik, table["gold"].to_numpy(), table["item"].to_pylist())
        store.write(path, again, planted.metadata())
    panel = load_panel(tmp_path)
    rows = analyse(panel, CorrelateOptions(bootstrap=100)).tables["reliability"]
    some = "item noise is that of the 38 of 40 items on which all scores are finite"
    said = {row.note for row in rows if row.name == "rte" and row.quantity == "confidence"}
    assert said and all(some in note for note in said)
    assert not any(some in row.note for row in rows if row.name != "rte" or row.quantity == "accuracy")
    (mean,) = (
        r
        for r in rows
        if r.category == "NLI" and r.protocol == "category_reliability" and r.quantity == "confidence"
    )
    assert mean.note.split("; ")[0] == "item noise of some items of rte"
    b, k = panel.benchmarks.index("rte"), panel.items[panel.benchmarks.index("rte")].confidence_KI
    x_TMI = k[panel.row[0, :, :, b]].astype(float)[:, :, 2:]
    rest = (
        x_TMI
        - x_TMI.mean(axis=1, keepdims=True)
        - x_TMI.mean(axis=2, keepdims=True)
        + x_TMI.mean(axis=(1, 2), keepdims=True)
    )
    noise_T = (rest**2).sum(axis=(1, 2)) / (8 * 37) / 38
    for t, stage in enumerate(panel.stages):
        row = next(
            r for r in rows if (r.name, r.quantity, r.other) == ("rte", "confidence", f"reliability {stage}")
        )
        assert row.estimate == pytest.approx(
            1 - noise_T[t] / panel.values["confidence"][0, t, :, b].var(ddof=1)
        )


def test_a_resample_of_equal_values_has_no_reliability() -> None:
    """Three of five mixtures alike: 3^5 of the 5^5 resamples hold them alone, and one each of the other two."""
    plan = enumerate_resamples(5)
    x_MC = np.array([0.35, 0.35, 0.35, 0.4, 0.45])[:, None]
    covariance = noise.covariances(Sample(np.stack([x_MC, x_MC**2]), plan.weight_MC), np.ones(5, bool))
    found = noise._reliabilities(
        noise.Measured(noise.ItemNoise(1e-4, 1e-4, 0.0), covariance, np.ones(5, dtype=bool), 4)
    )
    assert degenerate_share(found[:1], plan)[0] == pytest.approx((3**5 + 2) / 5**5, abs=1e-12)


def test_equal_accuracies_of_several_runs_stay_equal(panel) -> None:
    """Two mixtures of R runs, right on one item in every run, and on R items in one run each: in every order the same mean."""
    for R in range(2, 11):
        correct_KI = np.zeros((2 * R, R + 1), np.uint8)
        correct_KI[:R, 0] = 1
        correct_KI[np.arange(R, 2 * R), 1 + np.arange(R)] = 1
        one = panel.items[0]._replace(checkpoints=tuple(map(str, range(2 * R))), correct_KI=correct_KI)
        rest = np.zeros((2 * R, R + 1), np.float32)
        one = one._replace(
            confidence_KI=rest, other_KI=rest, means_KF=np.zeros((2 * R, 5)), unusable_K=np.zeros(2 * R, int)
        )
        found = averaged(one, np.repeat([0, 1], R)).correct_KI
        (mean_KC,) = resampled_means([found], 10, 0, np.random.SeedSequence(1))
        assert mean_KC[0, 0] == mean_KC[1, 0] == 1 / (R + 1)


def test_item_resamples_equal_gathered_copies(panel) -> None:
    known = panel.items[2]
    K, items = known.correct_KI.shape
    accuracy, confidence = resampled_means(
        [known.correct_KI, known.confidence_KI], 50, GROUPS, np.random.SeedSequence(4)
    )
    rng = np.random.default_rng(np.random.SeedSequence(4))
    shuffled = rng.permutation(items)
    index = rng.integers(0, items, (50, items), dtype=np.uint32)
    np.testing.assert_allclose(accuracy[:, 0], known.correct_KI.mean(axis=1), atol=1e-12)
    for c, chosen in enumerate(index):
        np.testing.assert_array_equal(
            accuracy[:, 1 + GROUPS + c], known.correct_KI[:, chosen].sum(axis=1) / items
        )
        expected = known.confidence_KI[:, chosen].mean(axis=1, dtype=np.float64)
        np.testing.assert_allclose(confidence[:, 1 + GROUPS + c], expected, atol=1e-9)
    edges = np.linspace(0, items, GROUPS + 1).astype(int)
    rest = np.delete(known.correct_KI, shuffled[edges[3] : edges[4]], axis=1)
    np.testing.assert_allclose(accuracy[:, 1 + 3], rest.mean(axis=1), atol=1e-12)
    assert K == 36


def test_items_are_paired_across_checkpoints_and_blocks_do_not_matter(
    panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = panel.items[0]
    whole = resampled_means([known.correct_KI, known.confidence_KI], 40, 0, np.random.SeedSequence(1))
    monkeypatch.setattr(
        "evalengine.analysis.estimates.item_bootstrap.BLOCK_BYTES", 12 * 200 * 7
    )  # 7 resamples a block
    blocks = resampled_means([known.correct_KI, known.confidence_KI], 40, 0, np.random.SeedSequence(1))
    assert (whole[0] == blocks[0]).all() and (whole[1] == blocks[1]).all()
    twins = np.repeat(known.correct_KI[:1], 2, axis=0)
    same = resampled_means([twins], 40, 0, np.random.SeedSequence(1))[0]
    assert (same[0] == same[1]).all()


def test_item_bootstrap_has_the_binomial_standard_error(panel) -> None:
    data, plan = item_data(panel, 2000, 0, "pearson", mixtures=False)
    x = data.sample("accuracy", "1B").x_VMC[0, 0]
    p = x[0]
    assert x[1 + plan.jackknife :].std() == pytest.approx(np.sqrt(p * (1 - p) / 200), rel=0.06)


@pytest.mark.parametrize("items", (20, 35, 50, 200))
def test_the_jackknife_over_items_has_the_binomial_standard_error(items: int) -> None:
    """Also with fewer items than groups: each item is left out once."""
    right_KI = np.random.default_rng(items).random((4, items)) < 0.6
    (value_KC,) = resampled_means([right_KI.astype(np.uint8)], 100, GROUPS, np.random.SeedSequence(1))
    plan = Resamples(np.full((9, value_KC.shape[1]), 1 / 9), np.ones(100), GROUPS, exact=False)
    p_K = right_KI.mean(axis=1)
    expected = np.sqrt(p_K * (1 - p_K) / (items - 1))
    np.testing.assert_allclose(jackknife_error(value_KC, plan), expected, rtol=0.02 if items <= 50 else 0.25)


def test_resampling_both_is_wider_than_items_alone(panel) -> None:
    width = {}
    for what in ("items", "mixtures", "both"):
        rows = analyse(panel, CorrelateOptions(bootstrap=1500, resample=what)).tables["transfer"]
        single = [row for row in rows if row.protocol == "transfer" and row.quantity == "accuracy"]
        width[what] = np.mean([row.percentile_high - row.percentile_low for row in single])
    assert width["items"] < width["mixtures"] < width["both"]


def test_hierarchical_columns_hold_the_sample_and_the_jackknife(panel) -> None:
    data, plan = item_data(panel, 300, 0, "pearson", mixtures=True)
    sample = data.sample("confidence", "240M")
    expected = panel.variables("confidence", 0)
    np.testing.assert_allclose(sample.x_VMC[:, :, 0], expected, atol=1e-8)
    np.testing.assert_allclose(sample.x_VMC[:, :, 5], expected, atol=1e-8)
    assert plan.jackknife == 9 and sample.w_MC[4, 5] == 0.0 and plan.count == 300


def test_the_choice_of_the_best_says_what_it_leaves_out(panel) -> None:
    """A benchmark of three mixtures: the mean is over the others, as that of the choices between two is."""
    row = panel.row.copy()
    row[1, 1, 3:, 0] = -1
    values = {q: np.where(row < 0, np.nan, x) for q, x in panel.values.items()}
    rows = analyse(replace(panel, row=row, values=values), CorrelateOptions(bootstrap=100)).tables[
        "decisions"
    ]
    at = {
        (r.category, r.other): r
        for r in rows
        if r.scale == "1B" and r.name.startswith("mean") and not r.contrast
    }
    category, name = panel.categories[0], panel.benchmarks[0]
    for kind in ("pairwise agreement", "top1", "regret"):
        assert f"without {name} (fewer than 4 mixtures)" in at[category, kind].note
    assert at[category, "top1"].note.endswith("; items resampled, percentile interval")


def test_there_is_no_best_where_all_mixtures_answer_alike_after(panel) -> None:
    first = panel.items[0]
    correct_KI = first.correct_KI.copy()
    after_K = panel.row[:, 1, :, 0].ravel()
    correct_KI[after_K] = correct_KI[after_K[0]]
    changed = replace(panel, items=(first._replace(correct_KI=correct_KI), *panel.items[1:]))
    data, _ = item_data(changed, 100, 0, "pearson", mixtures=False)
    group = decisions.best_choice(data, "accuracy")
    at = {(label.category, label.name, label.other): s for s, label in enumerate(group.labels)}
    category, name = panel.categories[0], panel.benchmarks[0]
    others = [panel.benchmarks[b] for b in panel.category_members()[category] if b]
    for kind in ("top1", "regret"):
        assert np.isnan(group.values["1B"][at[category, name, kind]]).all()
        mean = at[category, f"mean of {len(others)} of {len(others) + 1}", kind]
        rest = [group.values["1B"][at[category, other, kind]] for other in others]
        np.testing.assert_allclose(group.values["1B"][mean], np.mean(rest, axis=0))
        assert group.notes["1B"][mean].text == f"without {name} (all mixtures are tied at sft)"


def test_best_choice(panel) -> None:
    data, plan = item_data(panel, 500, 0, "pearson", mixtures=False)
    group = decisions.best_choice(data, "accuracy")
    B = len(panel.benchmarks)
    for c in (0, 1 + GROUPS + 7):
        for b in range(B):
            x, y = (data.sample("accuracy", "1B").x_VMC[v, :, c] for v in (b, B + b))
            best = np.flatnonzero(np.isclose(x, x.max(), atol=1e-12))
            hit = np.mean(np.isclose(y[best], y.max(), atol=1e-12))
            np.testing.assert_allclose(
                group.values["1B"][2 * b : 2 * b + 2, c], [hit, y.max() - y[best].mean()], atol=1e-10
            )
    found = intervals(group.values["1B"], plan)
    assert (found.ends["percentile"][:, 0] <= found.ends["percentile"][:, 1]).all()
