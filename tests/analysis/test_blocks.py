"""Mixtures in blocks: every statistic within them against partial correlations and brute force, sizes, refusals, files."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import planted
import pytest
import scipy.stats as st
from test_protocols import make

from evalengine import store
from evalengine.analysis.data.blocks import explained_share, with_blocks
from evalengine.analysis.data.mixtures import Mixtures, read_study
from evalengine.analysis.data.panel import Blocks, Panel
from evalengine.analysis.protocols import decisions, noise
from evalengine.analysis.protocols.alignment import CELLS, WITHIN, alignment
from evalengine.analysis.protocols.transfer_tests import swap_p
from evalengine.analysis.statistics.bootstrap import (
    constant_share,
    draw_resamples,
    enumerate_resamples,
    resamples,
)
from evalengine.analysis.statistics.correlation import Sample, correlate, permuted_p
from evalengine.analysis.study import CorrelateOptions, analyse, fixed_data
from evalengine.cli import main
from evalengine.errors import UserError

BLOCK = np.repeat(np.arange(3), 3)
LABELS = tuple("abc"[g] for g in BLOCK)


def blocked(panel: Panel) -> Panel:
    return replace(panel, blocks=Blocks("web source", LABELS[: len(panel.mixtures)]))


def taken_out(x: np.ndarray, block: np.ndarray = BLOCK) -> np.ndarray:
    """What a regression on the blocks leaves."""
    dummies = (block[:, None] == np.unique(block)).astype(float)
    return x - dummies @ np.linalg.lstsq(dummies, x, rcond=None)[0]


def gathered(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Resamples within blocks as lists of mixtures, and their weights."""
    rng = np.random.default_rng(seed)
    index = np.concatenate([3 * g + rng.integers(0, 3, (40, 3)) for g in range(3)], axis=1)
    weights = np.stack([np.bincount(i, minlength=9) for i in index], axis=1) / 9.0
    return index, weights


def tau_b_within(x: np.ndarray, y: np.ndarray, block: np.ndarray) -> float:
    terms = [
        (np.sign(x[i] - x[j]), np.sign(y[i] - y[j]))
        for i, j in itertools.combinations(range(len(x)), 2)
        if block[i] == block[j]
    ]
    a, b = np.array(terms).T
    spread = (a * a).sum() * (b * b).sum()
    return float((a * b).sum() / math.sqrt(spread)) if spread else math.nan


OF = {
    "pearson": lambda x, y, g: st.pearsonr(taken_out(x, g), taken_out(y, g))[0],
    "spearman": lambda x, y, g: st.pearsonr(taken_out(st.rankdata(x), g), taken_out(st.rankdata(y), g))[0],
    "kendall": tau_b_within,
}


@pytest.mark.parametrize("statistic", OF)
def test_every_resample_equals_the_partial_correlation_of_the_gathered_copy(statistic: str) -> None:
    index, w_MC = gathered(1)
    x_VM = np.random.default_rng(2).normal(size=(2, 9)) + 5.0 * BLOCK
    for x_VMC in (x_VM[:, :, None], np.repeat(x_VM[:, :, None], 40, axis=2)):
        found = correlate(Sample(x_VMC, w_MC, BLOCK), np.array([[0, 1]]), statistic)[0]
        for c, i in enumerate(index):
            if all(np.ptp(taken_out(x_VM[v, i], BLOCK[i])) > 1e-9 for v in range(2)):
                assert found[c] == pytest.approx(OF[statistic](*x_VM[:, i], BLOCK[i]), abs=1e-9)
            else:
                assert np.isnan(found[c])


def test_the_partial_correlation_does_not_depend_on_the_blocks_means() -> None:
    x_VM = np.random.default_rng(3).normal(size=(2, 9))
    w_MC = enumerate_resamples(9, BLOCK).weight_MC
    pair = np.array([[0, 1]])
    plain = correlate(Sample(x_VM[:, :, None], w_MC, BLOCK), pair)
    moved = correlate(Sample((x_VM + [[3.0], [-7.0]] * BLOCK)[:, :, None], w_MC, BLOCK), pair)
    assert moved == pytest.approx(plain, abs=1e-10, nan_ok=True)


def test_missing_mixtures_are_left_out_of_their_blocks() -> None:
    x_VM = np.random.default_rng(4).normal(size=(2, 9))
    x_VM[1, [0, 4]] = np.nan
    keep = np.isfinite(x_VM[1])
    found = correlate(Sample(x_VM[:, :, None], np.full((9, 1), 1 / 9), BLOCK), np.array([[0, 1]]))[0, 0]
    assert found == pytest.approx(OF["pearson"](*x_VM[:, keep], BLOCK[keep]))


def test_fishers_interval_counts_the_blocks_that_a_benchmark_has() -> None:
    """The partial r given k covariates has the z interval of n - k mixtures; a benchmark that lacks a block has one fewer."""
    panel = blocked(make())
    panel.values["accuracy"][:, :, 6:, 4] = np.nan
    rows = analyse(panel, CorrelateOptions(bootstrap=200)).tables["transfer"]
    for name, n, covariates in (("a1", 9, 2), ("b2", 6, 1)):
        row = next(
            r for r in rows if (r.name, r.scale, r.quantity, r.contrast) == (name, "1B", "accuracy", "")
        )
        half = st.norm.ppf(0.975) / math.sqrt(n - covariates - 3)
        ends = np.tanh(np.arctanh(row.estimate) + np.array([-half, half]))
        assert row.n == n and [row.fisher_low, row.fisher_high] == pytest.approx(ends.tolist())


def test_exact_resamples_are_all_draws_within_blocks() -> None:
    plan = resamples(5, None, block_M=np.array([0, 1, 0, 1, 1]))
    drawn: dict[tuple[int, ...], int] = {}
    for first in itertools.product([0, 2], repeat=2):
        for second in itertools.product([1, 3, 4], repeat=3):
            counts = tuple(np.bincount([*first, *second], minlength=5).tolist())
            drawn[counts] = drawn.get(counts, 0) + 1
    counts_RM = np.rint(5 * plan.weight_MC[:, 6:].T).astype(int)
    found = dict(zip(map(tuple, counts_RM.tolist()), plan.multiplicity_R, strict=True))
    assert found == drawn
    assert plan.exact and plan.units(1, None)[1] == 3
    alone = sum(n for counts, n in drawn.items() if np.count_nonzero(counts) == 2)
    assert constant_share([2, 3]) == pytest.approx(alone / sum(drawn.values()))
    assert resamples(9, None, block_M=BLOCK).count == 1000
    assert resamples(500, None, block_M=np.arange(500) % 5).count == 10_000


def test_seeded_resamples_keep_the_sizes_of_the_blocks() -> None:
    plan = draw_resamples(9, 200, 1, BLOCK)
    by_block = 9 * plan.weight_MC[:, 10:].reshape(3, 3, 200).sum(axis=1)
    assert (by_block.round(9) == 3.0).all()


@pytest.mark.parametrize("statistic", OF)
def test_p_is_the_share_of_all_orders_within_blocks(statistic: str) -> None:
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(2, 2, 7))
    block = np.array([0, 1, 0, 1, 0, 1, 1])
    groups = [np.flatnonzero(block == g) for g in range(2)]
    members = [[0], [0, 1]]

    def mean(order: np.ndarray, index: list[int]) -> float:
        return abs(float(np.mean([OF[statistic](x[b], y[b][order], block) for b in index])))

    orders = []
    for parts in itertools.product(*(itertools.permutations(group) for group in groups)):
        order = np.empty(7, dtype=int)
        for group, part in zip(groups, parts, strict=True):
            order[group] = part
        orders.append(order)
    expected = [
        np.mean([mean(order, index) >= mean(np.arange(7), index) - 1e-9 for order in orders])
        for index in members
    ]
    assert permuted_p(x, y, members, statistic, block_M=block) == pytest.approx(expected)


def test_seeded_orders_stay_within_blocks() -> None:
    block = np.repeat(np.arange(4), 6)
    x = np.random.default_rng(6).normal(size=(1, 24))
    shifted = x + 100.0 * block
    p, again = permuted_p(x, x, [[0]], block_M=block), permuted_p(shifted, shifted, [[0]], block_M=block)
    assert p == again == pytest.approx(1 / 100_001)


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_the_size_of_the_test_of_no_transfer(share: float) -> None:
    """Two independent stages, each with a web source's effect: within it the level holds, across it does not."""
    rng = np.random.default_rng([7, int(10 * share)])
    x, y = math.sqrt(1 - share) * rng.normal(size=(2, 1500, 9)) + math.sqrt(share) * np.repeat(
        rng.normal(size=(2, 1500, 3)), 3, axis=2
    )
    index = [[b] for b in range(1500)]
    error = 3.5 * math.sqrt(0.05 * 0.95 / 1500)
    assert abs((permuted_p(x, y, index, block_M=BLOCK) < 0.05).mean() - 0.05) < error
    across = (permuted_p(x[:400], y[:400], index[:400]) < 0.05).mean()
    assert across < 0.09 if share == 0.0 else across > 0.25


def test_the_power_within_blocks() -> None:
    rng = np.random.default_rng(8)
    x, e = rng.normal(size=(2, 1500, 9))
    p = permuted_p(x, 0.9 * x + math.sqrt(0.19) * e, [[b] for b in range(1500)], block_M=BLOCK)
    assert 0.70 < (p < 0.05).mean() < 0.85


def test_two_scales_are_compared_within_blocks() -> None:
    rng = np.random.default_rng(9)
    z = rng.normal(size=(2, 2, 600, 9))
    z[:, 1] = 0.6 * z[:, 0] + 0.8 * z[:, 1]
    moved = z + 9.0 * rng.normal(size=(2, 2, 600, 1)) * BLOCK
    index = [[b] for b in range(600)]
    p = swap_p(*z, index, block_M=BLOCK)
    assert p == pytest.approx(swap_p(*moved, index, block_M=BLOCK))
    assert 0.02 < (p < 0.05).mean() < 0.05 + 3.5 * math.sqrt(0.05 * 0.95 / 600)


def test_noise_within_blocks() -> None:
    """The twins' noise and the variance left of it, against sums over each block."""
    rng = np.random.default_rng(10)
    x, y = rng.normal(size=(2, 9, 50)) + 2.0 * rng.normal(size=(2, 3, 50))[:, BLOCK]
    found = noise.from_items(x, y, BLOCK)
    cross = 0.0
    for g in range(3):
        ex, ey = (v[g == BLOCK] - v[g == BLOCK].mean(axis=0) for v in (x, y))
        ex, ey = (e - e.mean(axis=1, keepdims=True) for e in (ex, ey))
        cross += (ex * ey).sum()
    assert found.between == pytest.approx(cross / (6 * 49 * 50))
    sample = Sample(
        rng.normal(size=(2, 9, 1)) + 4.0 * BLOCK[:, None], enumerate_resamples(9, BLOCK).weight_MC, BLOCK
    )
    keep = np.arange(9) != 4
    known = noise.covariances(sample, keep)
    left = taken_out(sample.x_VMC[:, keep, 0].T, BLOCK[keep])
    assert known[:, 0] == pytest.approx([(left[:, i] @ left[:, j]) / 5 for i, j in ((0, 0), (1, 1), (0, 1))])
    keep[0] = False
    left = taken_out(sample.x_VMC[:, keep, 0].T, BLOCK[keep])
    assert known[2, 1] == pytest.approx(left[:, 0] @ left[:, 1] / 4)  # without the first mixture


def test_alignment_and_decisions_within_blocks() -> None:
    panel = blocked(make())
    data = fixed_data(panel, enumerate_resamples(9, BLOCK), "pearson")
    at = {
        (label.category, label.name, label.other): group.values["240M"][k, 0]
        for group in alignment(data)
        for k, label in enumerate(group.labels)
    }
    a, c = (panel.values[q][0, 0][:, :3] for q in ("accuracy", "confidence"))  # the three of Science
    cells = np.tile(BLOCK[:, None], 3).ravel()
    assert at["Science", CELLS, "pt"] == pytest.approx(OF["pearson"](a.ravel(), c.ravel(), cells))
    assert at["Science", WITHIN, "pt"] == pytest.approx(
        np.mean([st.pearsonr(x, y)[0] for x, y in zip(a, c, strict=True)])
    )
    x, y = panel.values["accuracy"][0, :, :, 0]
    pairs = [(i, j) for i, j in itertools.combinations(range(9), 2) if BLOCK[i] == BLOCK[j]]
    alike = np.mean([(x[i] - x[j]) * (y[i] - y[j]) > 0 for i, j in pairs])
    assert decisions.pairwise(data, "accuracy").values["240M"][0, 0] == pytest.approx(alike)


def test_intervals_of_shares_stay_within_0_and_1() -> None:
    """Nine pairs within blocks, all right on some benchmarks: the jackknife's t interval would pass 1."""
    rows = analyse(blocked(make()), CorrelateOptions(bootstrap=300)).tables["decisions"]
    shares = [r for r in rows if r.other == "pairwise agreement" and np.isfinite(r.low)]
    assert any(r.high == 1.0 for r in shares) and any(r.low == 0.0 for r in shares)
    assert all((-1.0 if r.contrast else 0.0) <= r.low <= r.estimate <= r.high <= 1.0 for r in shares)


@pytest.mark.parametrize("statistic", OF)
def test_the_whole_analysis_within_blocks(statistic: str, tmp_path: Path) -> None:
    mixtures = Mixtures({}, {"web_source": dict(zip(planted.MIXTURES, LABELS, strict=True))})
    panel = make()
    analysis = analyse(panel, CorrelateOptions(statistic=statistic, bootstrap=300), mixtures)
    assert analysis.method["block"]["labels"]["V2P1"] == "b"
    assert "216 orders, no p below 0.0046" in analysis.panel.notes[-1]
    rows = {
        row.name: row
        for row in analysis.tables["transfer"]
        if row.scale == "240M" and row.quantity == "accuracy" and not row.contrast
    }
    x, y = panel.values["accuracy"][0, :, :, 0]
    assert rows["a1"].estimate == pytest.approx(OF[statistic](x, y, BLOCK))
    assert rows["a1"].n == 9
    across = analysis.tables["across_blocks"]
    plain = analyse(panel, CorrelateOptions(statistic=statistic, bootstrap=300, block="none"), mixtures)
    for found, expected in zip(across, plain.tables["transfer"], strict=True):
        assert found[:6] == expected[:6]
        assert (found.estimate, found.low, found.p) == pytest.approx(
            (expected.estimate, expected.low, expected.p)
        )
    assert plain.method["block"] == {} and plain.tables["across_blocks"] == []


def test_auto_needs_two_mixtures_in_each_and_enough_of_them() -> None:
    panel = make()
    labels = dict(zip(panel.mixtures, LABELS, strict=True))
    assert with_blocks(panel, "auto", Mixtures({}, {"web_source": labels})).blocks == Blocks(
        "web source", LABELS
    )
    alone = {**labels, panel.mixtures[0]: "another"}
    assert with_blocks(panel, "auto", Mixtures({}, {"web_source": {**alone}})).blocks is None
    assert with_blocks(panel, "web_source", Mixtures({}, {"web_source": {**alone}})).blocks is not None
    assert with_blocks(panel, "auto", Mixtures({}, {"column": labels})).blocks is None
    assert with_blocks(panel, "column", Mixtures({}, {"column": labels})).blocks is not None
    assert with_blocks(panel, "auto", None).blocks is None


@pytest.mark.parametrize(
    ("asked", "factors", "words"),
    [
        ("web_source", {}, "no mixture has this factor .*--study"),
        ("crawl", {"web_source": "aaabbbccc"}, "known: web_source"),
        ("crawl", {"crawl": "aaabbbcc"}, "not known for V3P2"),
        ("crawl", {"crawl": "aaaaaaaaa"}, "same for all"),
        ("crawl", {"crawl": "abcdefghh"}, "too few to compare"),
    ],
)
def test_blocks_that_cannot_be_are_refused(asked: str, factors: dict[str, str], words: str) -> None:
    panel = make()
    of = {name: dict(zip(panel.mixtures, labels, strict=False)) for name, labels in factors.items()}
    with pytest.raises(UserError, match=words):
        with_blocks(panel, asked, Mixtures({}, of))


def test_the_share_of_a_factor_equals_the_analysis_of_variance() -> None:
    y = np.random.default_rng(11).normal(size=9) + BLOCK
    excess = 2 * (st.f_oneway(*y.reshape(3, 3)).statistic - 1)
    omega = excess / (excess + 9)
    assert explained_share(y[None, None, :, None], LABELS) == pytest.approx(omega)


def test_a_factor_that_explains_most_is_pointed_out() -> None:
    panel = make()
    moved = panel.values["accuracy"] + 3.0 * BLOCK[:, None]
    panel = replace(panel, values={**panel.values, "accuracy": moved})
    labels = dict(zip(panel.mixtures, LABELS, strict=True))
    note = with_blocks(panel, "auto", Mixtures({}, {"crawl": labels})).notes[-1]
    assert "crawl explains 9" in note and "--block crawl" in note
    assert with_blocks(make(), "auto", Mixtures({}, {"crawl": labels})).notes == make().notes


def test_the_study_file_names_the_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores, out = tmp_path / "scores", tmp_path / "analysis"
    planted.write_study(scores, items=60, scales=["1B"])
    study = tmp_path / "study.yaml"
    lines = [f"  {m}: {{web_{m[1]}: 0.7, code: 0.3}}" for m in planted.MIXTURES]
    study.write_text("mixtures:\n" + "\n".join(lines) + "\n")
    assert main(["correlate", str(scores), "--out", str(out), "--study", str(study)]) == 0
    assert "within web source (web_1, web_2, web_3)" in " ".join(capsys.readouterr().err.split())
    method = json.loads((out / "analysis.json").read_text())
    assert method["block"]["factor"] == "web source" and method["resamples"] == 1000
    assert main(["report", str(out), "--figures", "none"]) == 0
    page = (out / "report.html").read_text()
    assert "permuted within web source: 216 orders" in page and "Across web source" in page
    assert main(["correlate", str(scores), "--out", str(out), "--block", "crawl"]) == 1
    assert "--block crawl" in capsys.readouterr().err


def test_the_stores_manifest_names_the_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores, out, other = tmp_path / "scores", tmp_path / "analysis", tmp_path / "other"
    planted.write_study(scores, items=60, scales=["1B"])
    study = tmp_path / "blocks.yaml"
    study.write_text("blocks: {web_source: {" + ", ".join(f"{m}: w{m[1]}" for m in planted.MIXTURES) + "}}")
    assert main(["correlate", str(scores), "--out", str(other), "--study", str(study)]) == 0
    for path in scores.glob("*/*.arrow"):
        label = json.dumps({"web_source": f"w{path.parent.name.split('-')[1][1]}"})
        store.write(path, store.read(path), {**(store.read_metadata(path) or {}), "blocks": label})
    assert main(["correlate", str(scores), "--out", str(out)]) == 0
    assert (out / "transfer.csv").read_text() == (other / "transfer.csv").read_text()
    for path in scores.glob("*-V1P0-pt/*.arrow"):
        other_label = {**(store.read_metadata(path) or {}), "blocks": '{"web_source": "x"}'}
        store.write(path, store.read(path), other_label)
    capsys.readouterr()
    assert main(["correlate", str(scores), "--out", str(out)]) == 1
    assert "mixture V1P0 has two labels of web_source" in capsys.readouterr().err


def test_a_file_names_blocks_of_mixtures_that_no_study_describes(tmp_path: Path) -> None:
    file = tmp_path / "blocks.yaml"
    file.write_text("blocks:\n  web_source: {a: x, b: x, c: 7}\n  year: {a: 2024, b: 2025, c: 2025}\n")
    assert read_study(str(file)) == Mixtures(
        {},
        {"web_source": {"a": "x", "b": "x", "c": "7"}, "year": {"a": "2024", "b": "2025", "c": "2025"}},
    )
    file.write_text("mixtures:\n  a: {web_1: 1}\n  b: {web_2: 1}\nblocks:\n  web_source: {a: x, b: y}\n")
    assert read_study(str(file)).web_source == {
        "a": "x",
        "b": "y",
    }  # what is said goes before what names tell
    for text in ("blocks: [a]\n", "blocks: {year: 3}\n", "sources: {}\n"):
        file.write_text(text)
        with pytest.raises(UserError, match=r"neither `mixtures:` .* nor `blocks:`"):
            read_study(str(file))
    for share in ("-0.1", ".nan", ".inf"):
        file.write_text(f"mixtures: {{a: {{web: 1.1, code: {share}}}}}\n")
        with pytest.raises(UserError, match="the shares of mixture a must be numbers from 0 up"):
            read_study(str(file))
