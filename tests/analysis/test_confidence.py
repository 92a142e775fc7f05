"""The two confidences, items without a score, and the debiased ECE: SciPy, plain loops, and simulations with known truths."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import planted
import pytest
from scipy.special import softmax

from evalengine import store
from evalengine.analysis.data.items import mean_of_known, read_store
from evalengine.analysis.data.panel import load_panel
from evalengine.analysis.estimates.item_bootstrap import GROUPS, item_data, resampled_means
from evalengine.analysis.protocols.calibration import claims, disagreements
from evalengine.analysis.protocols.noise import from_items, measured
from evalengine.analysis.report.report import page
from evalengine.analysis.results import load_results
from evalengine.analysis.statistics.calibration_error import (
    ECE_BINS,
    debiased_calibration_error,
    expected_calibration_error,
    reliability,
)
from evalengine.analysis.study import CorrelateOptions, analyse, weighted
from evalengine.cli import main
from evalengine.errors import UserError
from evalengine.store.metrics import answers, raw_answers, table_answers

ITEMS = 60


def write_scores(
    folder: Path, *, metric: str = "acc_norm", broken: int = 0, seed: int = 0
) -> dict[str, np.ndarray]:
    """piqa by `metric` and rte by acc, on two scales of nine mixtures; returns piqa's log-likelihoods by checkpoint.

    The first `broken` items of 1B-V1P0-sft have a score that is not finite.
    """
    rng = np.random.default_rng(seed)
    chars = rng.integers(5, 60, (ITEMS, 3)).astype(np.int32)
    gold = rng.integers(0, 3, ITEMS)
    kept = {}
    for scale in ("240M", "1B"):
        for mixture in planted.MIXTURES:
            for stage in ("pt", "sft"):
                name = f"{scale}-{mixture}-{stage}"
                for benchmark, chosen in (("piqa", metric), ("rte", "acc")):
                    loglik = (rng.normal(size=(ITEMS, 3)) * rng.uniform(1, 4) - chars).astype(np.float32)
                    if benchmark == "piqa":
                        kept[name] = loglik
                    if name == "1B-V1P0-sft":
                        loglik[:broken, 1] = np.nan
                    who = {"checkpoint": name, "scale": scale, "mixture": mixture, "stage": stage,
                           "benchmark": benchmark, "category": planted.BENCHMARKS[benchmark]}  # fmt: skip
                    table = planted.item_table(who, loglik, gold, chars=chars)
                    path = folder / name / f"{benchmark}.arrow"
                    store.write(path, table, planted.metadata(default_score=chosen))
    kept["chars"], kept["gold"] = chars, gold
    return kept


def both(loglik: np.ndarray, chars: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Picks per character, and the raw and the own confidence in them."""
    own = loglik.astype(np.float64) / chars
    pick = own.argmax(axis=1)
    rows = np.arange(len(loglik))
    return pick, softmax(loglik.astype(np.float64), axis=1)[rows, pick], softmax(own, axis=1)[rows, pick]


def test_raw_answers_keep_the_pick_and_take_the_softmax_over_log_likelihoods() -> None:
    rng = np.random.default_rng(3)
    loglik = (rng.normal(size=(200, 4)) * 4 - 20).astype(np.float32)
    loglik[5, 2] = -np.inf
    chars, gold = rng.integers(1, 40, (200, 4)).astype(np.int32), rng.integers(0, 4, 200)
    table = planted.item_table(dict.fromkeys(store.KEYS, "x"), loglik, gold, chars=chars)
    own, read_gold = table_answers(table, "acc_norm")
    raw = raw_answers(table, "acc_norm", own, read_gold)
    pick, raw_confidence, own_confidence = both(loglik, chars)
    usable = np.arange(200) != 5
    assert (raw.pick == own.pick).all() and (raw.pick[usable] == pick[usable]).all() and raw.pick[5] == -1
    assert (pick[usable] != loglik[usable].argmax(axis=1)).any()
    np.testing.assert_allclose(raw.confidence[usable], raw_confidence[usable], rtol=1e-5)
    np.testing.assert_allclose(own.confidence[usable], own_confidence[usable], rtol=1e-5)
    p = softmax(loglik[usable].astype(np.float64), axis=1)
    np.testing.assert_allclose(raw.nll[usable], -np.log(p[np.arange(199), gold[usable]]), rtol=1e-4)
    top = np.sort(p, axis=1)
    np.testing.assert_allclose(raw.margin[usable], top[:, -1] - top[:, -2], atol=1e-5)
    assert all(np.isnan(field[5]) for field in raw[1:])
    by_loglik, _ = table_answers(table, "acc")
    assert raw_answers(table, "acc", by_loglik, read_gold) is by_loglik


def test_given_picks_among_items_without_choices() -> None:
    score_C = np.log(np.array([0.2, 0.8, 0.5, 0.5]))
    found = answers(score_C, np.array([0, 2, 2, 4]), np.array([0, 0, 1]), np.array([0, -1, -1]))
    np.testing.assert_array_equal(found.pick, [0, -1, -1])
    np.testing.assert_allclose(found.confidence, [0.2, np.nan, np.nan], rtol=1e-6)


@pytest.mark.parametrize("taken", ["raw", "own"])
def test_both_confidences_are_in_the_tables_and_calibration_is_raw(tmp_path: Path, taken: str) -> None:
    made = write_scores(tmp_path / "scores")
    assert main(["correlate", str(tmp_path / "scores"), "--out", str(tmp_path / "a"), "--bootstrap", "200",
                 "--confidence", taken]) == 0  # fmt: skip
    other = "confidence (own)" if taken == "raw" else "confidence (raw)"
    method = json.loads((tmp_path / "a" / "analysis.json").read_text())
    assert (method["confidence"], method["other_confidence"]) == (taken, other)
    assert method["quantities"] == ["accuracy", "confidence"]
    with (tmp_path / "a" / "cells.csv").open() as handle:
        cells = {(r["scale"], r["mixture"], r["stage"], r["benchmark"]): r for r in csv.DictReader(handle)}
    expected: dict[str, list[float]] = {"raw": [], "own": []}
    for mixture in planted.MIXTURES:
        pick, raw, own = both(made[f"1B-{mixture}-pt"], made["chars"])
        row = cells["1B", mixture, "pt", "piqa"]
        means = {"raw": raw.mean(), "own": own.mean()}
        assert float(row["confidence"]) == pytest.approx(means[taken], abs=1e-6)
        assert float(row[other]) == pytest.approx(means["own" if taken == "raw" else "raw"], abs=1e-6)
        assert float(row["accuracy"]) == pytest.approx((pick == made["gold"]).mean())
        p = softmax(made[f"1B-{mixture}-pt"].astype(np.float64), axis=1)
        assert float(row["nll"]) == pytest.approx(-np.log(p[np.arange(ITEMS), made["gold"]]).mean(), rel=1e-5)
        parts = np.array_split(np.argsort(raw.astype(np.float32), kind="stable"), ECE_BINS)
        correct = pick == made["gold"]
        plugin = sum(len(b) / ITEMS * abs(correct[b].mean() - raw[b].mean()) for b in parts)
        assert float(row["ece_plugin"]) == pytest.approx(plugin, abs=1e-6)
        rte = cells["1B", mixture, "pt", "rte"]
        assert rte["confidence"] == rte[other]
        for kind, value in means.items():
            expected[kind].append(value)
    results = load_results(tmp_path / "a")
    for quantity, kind in (("confidence", taken), (other, "own" if taken == "raw" else "raw")):
        (mean,) = results.rows("calibration", quantity=quantity, name="piqa", other="pt", scale="1B")
        assert mean.estimate == pytest.approx(np.mean(expected[kind]), abs=1e-6)
        assert {r.protocol for r in results.rows("transfer", quantity=quantity)} == {
            "transfer",
            "category_transfer",
        }
    (ece,) = results.rows("calibration", quantity="ece", name="piqa", other="pt", scale="1B")
    of_cells = np.array([float(cells["1B", m, "pt", "piqa"]["ece"]) for m in planted.MIXTURES])
    square = (np.sign(of_cells) * of_cells**2).mean()
    assert ece.estimate == pytest.approx(np.sign(square) * np.sqrt(abs(square)), abs=1e-9)
    with_other = {name for name in results.tables if results.rows(name, quantity=other)}
    assert with_other == {"transfer", "calibration"}
    html = page(results)
    assert (
        "Confidence is the softmax over" in html
        and f"--confidence {'own' if taken == 'raw' else 'raw'}" in html
    )


def test_nothing_is_added_where_log_likelihoods_pick(tmp_path: Path) -> None:
    write_scores(tmp_path, metric="acc")
    panel = load_panel(tmp_path)
    assert panel.other_confidence == {} and panel.items[0].other_KI is panel.items[0].confidence_KI
    own = load_panel(tmp_path, confidence="own")
    np.testing.assert_array_equal(panel.values["confidence"], own.values["confidence"])
    tables = analyse(panel, CorrelateOptions(bootstrap=200)).tables
    assert {r.quantity for r in tables["transfer"] if not r.contrast} == {"accuracy", "confidence"}


def test_disagreements_are_signs_and_verdicts(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores")
    analyse(load_panel(tmp_path / "scores"), CorrelateOptions(bootstrap=200)).write(tmp_path / "a")
    results = load_results(tmp_path / "a")
    rows = [r._replace(estimate=0.1, low=-0.5, high=0.6) for r in results.tables["transfer"]]
    verdicts = [v | {"verdict": "undecided"} for v in results.verdicts]

    def with_(changed: dict[str, float], verdict: str = "undecided"):
        mine = [
            r._replace(**changed) if (r.quantity, r.scale, r.name) == ("confidence", "1B", "piqa") else r
            for r in rows
        ]
        said = [
            v | {"verdict": verdict} if (v["quantity"], v["benchmark"]) == ("confidence (own)", "rte") else v
            for v in verdicts
        ]
        return results._replace(tables=results.tables | {"transfer": mine}, verdicts=said)

    assert disagreements(with_({})) == []
    assert disagreements(with_({"estimate": -0.1})) == []  # neither interval excludes 0
    assert disagreements(with_({"estimate": -0.6, "low": -0.9, "high": -0.1})) == [
        "piqa (1B: r = −0.60 against +0.10)"
    ]
    assert disagreements(with_({}, "reliable")) == ["rte (undecided against reliable)"]
    (agree,), (differ,) = (list(claims(with_({}, verdict))) for verdict in ("undecided", "reliable"))
    assert "no verdict and no sign" in agree.text and "would change on rte" in differ.text


def test_imported_results_have_no_choice_of_confidence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["mixture,stage,rte.acc,rte.confidence"]
    lines += [f"m{m},{s},0.{3 + m},0.{4 + m}" for m in range(4) for s in ("pt", "sft")]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    assert main(["import", str(tmp_path / "t.csv"), "--mixture", "mixture", "--stage", "stage",
                 "--out", str(tmp_path / "i")]) == 0  # fmt: skip
    assert load_panel(tmp_path / "i").confidence == ""
    with pytest.raises(UserError, match="--confidence chooses the confidence of a score store"):
        load_panel(tmp_path / "i", confidence="own")


def test_items_without_a_score_are_wrong_and_have_no_confidence(tmp_path: Path) -> None:
    broken = 7
    made = write_scores(tmp_path, broken=broken)
    panel = load_panel(tmp_path)
    b, m = panel.benchmarks.index("piqa"), panel.mixtures.index("V1P0")
    at = (panel.scales.index("1B"), 1, m, b)
    pick, raw, own = both(made["1B-V1P0-sft"][broken:], made["chars"][broken:])
    right = pick == made["gold"][broken:]
    assert panel.values["accuracy"][at] == pytest.approx(right.sum() / ITEMS)
    assert panel.values["confidence"][at] == pytest.approx(raw.mean(), abs=1e-6)
    assert panel.other_confidence["confidence (own)"][at] == pytest.approx(own.mean(), abs=1e-6)
    parts = np.array_split(np.argsort(raw.astype(np.float32), kind="stable"), ECE_BINS)
    plugin = sum(len(p) / len(raw) * abs(right[p].mean() - raw[p].mean()) for p in parts)
    assert panel.calibration["ece_plugin"][at] == pytest.approx(plugin, abs=1e-6)
    (note,) = [n for n in panel.notes if "not finite" in n]
    assert note == (
        "piqa, rte: 7 item scores are not finite; those items count as wrong, and confidence and calibration leave them out"
    )
    data, _ = weighted(panel, CorrelateOptions(bootstrap=200))
    found = measured(data, "confidence", "1B")[b].noise
    x = panel.items[b].confidence_KI[panel.row[at[0], :, :, b]][:, :, broken:].astype(float)
    np.testing.assert_allclose(found, from_items(x[0], x[1]))

    # resampled items: the mean is over those drawn that have a confidence
    known = panel.items[b]
    (value_KC,) = resampled_means([known.confidence_KI], 40, GROUPS, np.random.SeedSequence(2))
    rng = np.random.default_rng(np.random.SeedSequence(2))
    shuffled = rng.permutation(ITEMS)
    index = rng.integers(0, ITEMS, (40, ITEMS), dtype=np.uint32)
    for c, chosen in enumerate(index):
        np.testing.assert_allclose(
            value_KC[:, 1 + GROUPS + c],
            np.nanmean(known.confidence_KI[:, chosen].astype(float), axis=1),
            atol=1e-8,
        )
    rest = np.delete(known.confidence_KI, shuffled[_group(3)], axis=1)
    np.testing.assert_allclose(value_KC[:, 1 + 3], np.nanmean(rest.astype(float), axis=1), atol=1e-8)
    items, _ = item_data(panel, 100, 0, "pearson", mixtures=False)
    np.testing.assert_allclose(
        items.sample("confidence", "1B").x_VMC[:, :, 0], panel.variables("confidence", at[0]), atol=1e-7
    )


def _group(g: int) -> slice:
    edges = np.linspace(0, ITEMS, GROUPS + 1).astype(int)
    return slice(int(edges[g]), int(edges[g + 1]))


def test_a_checkpoint_without_any_score_has_no_confidence(tmp_path: Path) -> None:
    write_scores(tmp_path, broken=ITEMS)
    panel = load_panel(tmp_path)
    at = (panel.scales.index("1B"), 1, panel.mixtures.index("V1P0"))
    assert (panel.values["accuracy"][at] == 0.0).all()
    assert all(np.isnan(x[at]).all() for x in (panel.values["confidence"], *panel.calibration.values()))
    tables = analyse(panel, CorrelateOptions(bootstrap=200)).tables
    found = [r for r in tables["transfer"] if (r.quantity, r.scale, r.name) == ("confidence", "1B", "rte")]
    (row,) = [r for r in found if not r.contrast]
    assert row.n == 8


def simulated(items: int, draws: int, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Debiased and plug-in ECE of `draws` models, and each one's true error: root mean square over its own bins."""
    rng = np.random.default_rng([items, len(kind)])
    confidence = (0.25 + 0.75 * rng.beta(1.5, 1.5, (draws, items))).astype(np.float32)
    p = {"calibrated": confidence, "too sure": 0.25 + (confidence - 0.25) / 2}[kind]
    correct = (rng.uniform(size=p.shape) < p).astype(np.uint8)
    curve = reliability(confidence, correct, ECE_BINS)
    order = np.argsort(confidence, axis=1, kind="stable")
    error = np.take_along_axis(p - confidence, order, axis=1)
    true = np.sqrt(
        np.mean([part.mean(axis=1) ** 2 for part in np.array_split(error, ECE_BINS, axis=1)], axis=0)
    )
    return debiased_calibration_error(curve, np.full(draws, items)), expected_calibration_error(curve), true


@pytest.mark.parametrize("items", [56, 300, 1000])
def test_a_calibrated_model_has_no_debiased_error(items: int) -> None:
    found, plugin, _ = simulated(items, 1500, "calibrated")
    error = found.std() / np.sqrt(len(found))
    assert abs(found.mean()) < 0.004 + 3 * error
    assert plugin.mean() > {56: 0.17, 300: 0.07, 1000: 0.04}[items]
    square = np.sign(found) * found**2  # what is unbiased
    assert abs(square.mean()) < 1e-3 / np.sqrt(items) + 3 * square.std() / np.sqrt(len(found))


@pytest.mark.parametrize("items", [56, 300, 1000])
def test_a_miscalibrated_model_keeps_its_error(items: int) -> None:
    found, _, true = simulated(items, 1500, "too sure")
    square = np.sign(found) * found**2
    assert square.mean() == pytest.approx(
        (true**2).mean(), abs=0.002 + 3 * square.std() / np.sqrt(len(found))
    )
    # The root of one model's square is a little low, that of a mean over nine is not.
    assert found.mean() == pytest.approx(true.mean(), abs=0.05 if items == 56 else 0.005)
    of_nine = square[: len(square) // 9 * 9].reshape(-1, 9).mean(axis=1)
    nine = np.sign(of_nine) * np.sqrt(np.abs(of_nine))
    assert nine.mean() == pytest.approx(np.sqrt((true**2).mean()), abs=0.015 if items == 56 else 0.004)


def test_the_debiased_error_is_its_formula() -> None:
    rng = np.random.default_rng(8)
    confidence = rng.uniform(0.2, 1, (2, 107)).astype(np.float32)
    correct = (rng.uniform(size=(2, 107)) < 0.5).astype(np.uint8)
    found = debiased_calibration_error(reliability(confidence, correct, 15), np.array([107, 107]))
    for k in range(2):
        square = 0.0
        for part in np.array_split(np.argsort(confidence[k], kind="stable"), 15):
            y, p = correct[k, part], confidence[k, part]
            square += len(part) / 107 * ((y.mean() - p.mean()) ** 2 - y.var(ddof=1) / len(part))
        assert found[k] == pytest.approx(np.sign(square) * np.sqrt(abs(square)), abs=1e-6)
    few = reliability(confidence[:, :29].copy(), correct[:, :29].copy(), 15)
    assert np.isnan(debiased_calibration_error(few, np.array([29, 29]))).all()


def test_bins_leave_items_without_a_confidence_out() -> None:
    rng = np.random.default_rng(9)
    confidence = rng.uniform(0.2, 1, (3, 80)).astype(np.float32)
    correct = (rng.uniform(size=(3, 80)) < 0.5).astype(np.uint8)
    confidence[1, ::3] = np.nan
    confidence[2] = np.nan
    curve = reliability(confidence, correct, 15)
    use = np.isfinite(confidence[1])
    alone = reliability(confidence[1:2, use].copy(), correct[1:2, use].copy(), 15)
    np.testing.assert_array_equal(curve[1], alone[0])
    np.testing.assert_array_equal(curve[0], reliability(confidence[:1], correct[:1], 15)[0])
    assert np.isnan(expected_calibration_error(curve)[2])
    np.testing.assert_allclose(
        mean_of_known(confidence, 1)[:2], np.nanmean(confidence[:2].astype(float), axis=1)
    )


def test_read_store_gives_the_confidence_that_is_asked_for(tmp_path: Path) -> None:
    write_scores(tmp_path)
    raw, own = (
        next(b for b in read_store(tmp_path, confidence=kind).benchmarks if b.name == "piqa")
        for kind in ("raw", "own")
    )
    np.testing.assert_array_equal(raw.confidence_KI, own.other_KI)
    np.testing.assert_array_equal(raw.other_KI, own.confidence_KI)
    assert (raw.confidence_KI != raw.other_KI).any()
    np.testing.assert_array_equal(raw.means_KF, own.means_KF)
