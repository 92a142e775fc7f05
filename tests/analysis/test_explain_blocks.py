"""`explain --block`: mixtures are ranked against those of their own block, as `correlate --block` compares them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import planted
import pytest
from scipy.stats import t as student

from evalengine import store
from evalengine.analysis.data.panel import load_panel
from evalengine.analysis.explain import eft_decisions, proxies, ranking
from evalengine.analysis.explain.choices import read_choices
from evalengine.analysis.explain.design import design_of
from evalengine.analysis.explain.explainer import ExplainOptions, StudyScores
from evalengine.analysis.explain.findings import explain
from evalengine.analysis.study import CorrelateOptions, analyse
from evalengine.cli import main
from evalengine.errors import UserError

SOURCE = {mixture: f"web{mixture[1]}" for mixture in planted.MIXTURES}  # V1P0 is of web1
LABELS = np.array([SOURCE[mixture] for mixture in planted.MIXTURES])


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose manifest named each mixture's web source."""
    folder = tmp_path_factory.mktemp("blocks") / "scores"
    planted.write_study(folder, items=60, seed=4)
    for path in folder.glob("*/*.arrow"):
        source = SOURCE[path.parent.name.split("-")[1]]
        about = {**planted.metadata(), "blocks": json.dumps({"web_source": source, "same": "all"})}
        store.write(path, store.read(path), about)
    return folder


def study_of(scores: Path, **options: object) -> StudyScores:
    found = read_choices(scores)
    return StudyScores(found, design_of(found), ExplainOptions(**options))  # type: ignore[arg-type]


def accuracies(scores: Path, benchmark: str, stage: str) -> np.ndarray:
    """Of each mixture at 1B, read by hand."""
    tables = [store.read(scores / f"1B-{m}-{stage}" / f"{benchmark}.arrow") for m in planted.MIXTURES]
    return np.array(
        [
            np.mean(
                [
                    np.argmax(x) == g
                    for x, g in zip(t["loglik"].to_pylist(), t["gold"].to_pylist(), strict=True)
                ]
            )
            for t in tables
        ]
    )


def agreement(x: np.ndarray, y: np.ndarray, labels: np.ndarray) -> float:
    """The share of pairs of one block that both order alike, pair by pair."""
    said = []
    for a, b in itertools.combinations(range(len(x)), 2):
        if labels[a] == labels[b] and (x[a] != x[b] or y[a] != y[b]):
            said.append(0.5 + 0.5 * np.sign(x[a] - x[b]) * np.sign(y[a] - y[b]))
    return float(np.mean(said))


def partial_r(x: np.ndarray, y: np.ndarray, labels: np.ndarray) -> float:
    """The correlation of the residuals of regressions on dummies of the blocks."""
    dummies = (labels[:, None] == np.unique(labels)).astype(float)
    left = [v - dummies @ np.linalg.lstsq(dummies, v, rcond=None)[0] for v in (x, y)]
    return float(np.corrcoef(*left)[0, 1])


def test_a_proxy_is_judged_within_the_web_source(scores: Path) -> None:
    rows = {
        (r.measure, r.benchmark): r
        for r in proxies.rows(study_of(scores))
        if (r.seen, r.target, r.proxy, r.minus) == ("1B pt", "1B sft", "accuracy", "") and r.benchmark
    }
    apart = 0
    for benchmark in planted.BENCHMARKS:
        x, y = (accuracies(scores, benchmark, stage) for stage in ("pt", "sft"))
        for measure, statistic in ((ranking.AGREEMENT, agreement), (ranking.R, partial_r)):
            row, expected = rows[measure, benchmark], statistic(x, y, LABELS)
            assert row.estimate == pytest.approx(expected, abs=1e-12)
            apart += abs(expected - statistic(x, y, np.zeros(9))) > 0.01
            left = [np.delete(np.arange(9), m) for m in range(9)]
            without = np.array([statistic(x[k], y[k], LABELS[k]) for k in left])
            if measure == ranking.R:
                without = np.arctanh(without)
            # of each block of 3 the squares times 2/3; t has 9 - 3 degrees of freedom
            half = student.ppf(0.975, 6) * np.sqrt(2 / 3 * ((without - without.mean()) ** 2).sum())
            low = (
                max(expected - half, 0.0)
                if measure == ranking.AGREEMENT
                else np.tanh(np.arctanh(expected) - half)
            )
            assert row.low == pytest.approx(low, abs=1e-10)
    assert apart > 4  # not what all mixtures together would say


def test_the_ceiling_is_of_the_reliability_within_blocks() -> None:
    """Cronbach's alpha of the items' pooled covariance within blocks."""
    rng = np.random.default_rng(0)
    block_M = np.array([0, 2, 2, 0, 1, 1, 0, 1, 0])
    level_M = 5.0 * rng.normal(size=3)[block_M] + rng.normal(size=9)
    x_MI = level_M[:, None] + rng.normal(size=(9, 16)) + rng.normal(size=16)
    pooled = sum(np.cov(x_MI[block_M == g].T) * ((block_M == g).sum() - 1) for g in range(3)) / (9 - 3)
    alpha = 16 / 15 * (1 - np.trace(pooled) / pooled.sum())
    assert proxies.reliability(x_MI, block_M) == pytest.approx(alpha) and alpha < proxies.reliability(x_MI)


def test_choices_of_a_mixture_by_emulation_are_judged_within_it_too(scores: Path) -> None:
    rows = {
        r.benchmark: r
        for r in eft_decisions.rows(study_of(scores))
        if (r.predictor, r.minus, r.measure) == ("large base", "", "r") and r.benchmark
    }
    for benchmark, row in rows.items():
        x, y = (accuracies(scores, benchmark, stage) for stage in ("pt", "sft"))
        assert row.estimate == pytest.approx(partial_r(x, y, LABELS), abs=1e-12)
    assert set(rows) == set(planted.BENCHMARKS)


def test_r_is_that_of_correlate(scores: Path) -> None:
    analysis = analyse(load_panel(scores), CorrelateOptions(bootstrap="200"))
    theirs = {
        row.name: row.estimate
        for row in analysis.tables["transfer"]
        if (row.scale, row.quantity, row.contrast) == ("1B", "accuracy", "")
        and row.name in planted.BENCHMARKS
    }
    ours = {
        r.benchmark: r.estimate
        for r in proxies.rows(study_of(scores))
        if (r.seen, r.target, r.proxy, r.measure) == ("1B pt", "1B sft", "accuracy", "r") and r.benchmark
    }
    assert ours == pytest.approx(theirs, abs=1e-9)


def test_what_is_asked_for_and_what_is_said(scores: Path, tmp_path: Path) -> None:
    found = explain(scores, ExplainOptions())
    assert found.method["block"] == "web source"
    assert any("within web source (web1, web2, web3)" in note for note in found.method["notes"])
    again = explain(scores, ExplainOptions(block="web_source"))
    assert again.method == found.method and str(again.tables) == str(found.tables)
    plain = explain(scores, ExplainOptions(block="none"))
    assert plain.method["block"] == "" and not any("within web" in note for note in plain.method["notes"])
    asked = {"seen": "1B pt", "target": "1B sft", "proxy": "accuracy", "minus": ""}
    (row,) = plain.rows("proxies", **asked, measure="r", benchmark="rte")
    x, y = (accuracies(scores, "rte", stage) for stage in ("pt", "sft"))
    assert row.estimate == pytest.approx(np.corrcoef(x, y)[0, 1])
    with pytest.raises(UserError, match="--block year: no mixture has this factor"):
        explain(scores, ExplainOptions(block="year"))
    with pytest.raises(UserError, match="--block same: it is the same for all mixtures"):
        explain(scores, ExplainOptions(block="same"))
    study = tmp_path / "study.yaml"
    study.write_text(json.dumps({"blocks": {"year": {m: "20" + m[3] for m in planted.MIXTURES}}}))
    given = ["explain", str(scores), "--out", str(tmp_path / "out"), "--study", str(study), "--block", "year"]
    assert main(given) == 0
    assert json.loads((tmp_path / "out" / "explain.json").read_text())["block"] == "year"
