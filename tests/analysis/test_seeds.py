"""Several runs of one mixture: averaged as by hand, refused without names, and taken out of the correlation between
mixtures again."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import planted
import pytest

from evalengine import store
from evalengine.analysis import power
from evalengine.analysis.data.panel import Cell, assemble, load_panel
from evalengine.analysis.estimates.item_bootstrap import item_data
from evalengine.analysis.protocols import noise, registry
from evalengine.analysis.protocols.seeds import components
from evalengine.analysis.report import report
from evalengine.analysis.statistics.bootstrap import draw_resamples, jackknife_t
from evalengine.analysis.statistics.latent import pooled
from evalengine.analysis.study import CorrelateOptions, analyse
from evalengine.cli import main
from evalengine.errors import UserError

SHARE, INHERITED = 0.3, 0.9  # of the variance of a single run; correlation of the seeds' parts


def drawn(rng: np.random.Generator, rho: float, shape: tuple[int, int, int]) -> np.ndarray:
    """Single runs (B, 2, M, R) of unit variance."""
    B, M, R = shape
    mixture = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], (B, M)).transpose(0, 2, 1)
    seed = rng.multivariate_normal([0, 0], [[1, INHERITED], [INHERITED, 1]], (B, M, R)).transpose(0, 3, 1, 2)
    return math.sqrt(1 - SHARE) * mixture[..., None] + math.sqrt(SHARE) * seed


def cells_of(x_B2MR: np.ndarray) -> list[Cell]:
    return [
        Cell(
            f"1B-m{m}-{stage}-{r}", "1B", f"m{m}", stage, f"b{b}", "NLI", {"accuracy": x_B2MR[b, t, m, r]}, 0,
            replicate=f"s{r}",
        )
        for b, (t, stage), m, r in itertools.product(
            range(len(x_B2MR)), enumerate(("pt", "sft")), *map(range, x_B2MR.shape[2:])
        )
        if np.isfinite(x_B2MR[b, t, m, r])
    ]  # fmt: skip


def test_runs_are_averaged_as_by_hand() -> None:
    x = drawn(np.random.default_rng(0), 0.5, (5, 9, 3))
    panel = assemble(cells_of(x), None)
    mean = assemble(cells_of(x.mean(axis=3, keepdims=True)), None)
    assert len(panel.mixtures) == 9 and panel.notes == ("3 runs of each mixture are averaged",)
    assert np.allclose(panel.values["accuracy"], mean.values["accuracy"], rtol=1e-12)
    assert not mean.runs and not mean.notes
    found, by_hand = (analyse(p, CorrelateOptions(bootstrap=500)).tables for p in (panel, mean))
    for row, other in zip(found["transfer"], by_hand["transfer"], strict=True):
        assert (row.estimate, row.low, row.high, row.p) == pytest.approx(
            (other.estimate, other.low, other.high, other.p)
        )
        assert row.n == 9
    assert by_hand["seeds"] == []


def test_unequal_runs_are_said() -> None:
    x = drawn(np.random.default_rng(0), 0.5, (2, 9, 3))
    x[:, 1, 4, 2] = np.nan
    x[1, 0, 0, 0] = np.nan
    panel = assemble(cells_of(x), None)
    assert panel.notes == (
        "up to 3 runs of a mixture are averaged; fewer for 1B-m4-sft (2)",
        "not on every run: b1; averaged over the runs that have a value",
    )
    assert panel.values["accuracy"][0, 1, 4] == pytest.approx(np.nanmean(x[:, 1, 4], axis=1))
    assert panel.values["accuracy"][0, 0, 0, 1] == pytest.approx(x[1, 0, 0, 1:].mean())


def test_runs_without_a_name_of_their_own_are_refused() -> None:
    cells = cells_of(drawn(np.random.default_rng(0), 0.5, (1, 9, 2)))
    for names in (("", ""), ("s0", "s0"), ("", "s1")):
        renamed = [c._replace(replicate=names[int(c.replicate[1:])]) for c in cells]
        with pytest.raises(UserError, match=r"both claim scale 1B.* a seed of its own \(`seed` in"):
            assemble(renamed, None)


def test_items_of_runs_are_averaged_before_noise_and_resampling(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    M, items, seeds = 6, 60, 3
    difficulty, gold, theta = rng.normal(size=items), rng.integers(0, 4, items), rng.normal(size=(2, M))
    correct = np.empty((2, M, seeds, items))
    for (t, stage), m, r in itertools.product(enumerate(("pt", "sft")), range(M), range(seeds)):
        score = rng.gumbel(size=(items, 4)).astype(np.float32)
        score[np.arange(items), gold] += (theta[t, m] - difficulty).astype(np.float32)
        correct[t, m, r] = score.argmax(axis=1) == gold
        who = {"scale": "1B", "mixture": f"m{m}", "stage": stage, "benchmark": "rte", "category": "NLI"}
        who["checkpoint"] = f"1B-m{m}-{stage}-{r}"
        table = planted.item_table(who, score, gold)
        about = planted.metadata(checkpoint_seed=str(r))
        store.write(tmp_path / who["checkpoint"] / "rte.arrow", table, about)
    panel = load_panel(tmp_path)
    assert panel.values["accuracy"][0, :, :, 0] == pytest.approx(correct.mean(axis=(2, 3)))
    assert panel.runs["accuracy"][0, :, :, 0] == pytest.approx(correct.mean(axis=3))
    mean = correct.mean(axis=2)
    rows = panel.row[0, :, :, 0]
    assert panel.items[0].correct_KI[rows] == pytest.approx(mean, abs=1e-7)
    measured = noise.measured(item_data(panel, 200, 0, "pearson", mixtures=False)[0], "accuracy", "1B")
    assert measured[0].noise == pytest.approx(noise.from_items(*mean), rel=1e-5)
    data, _ = item_data(panel, 200, 0, "pearson", mixtures=False, quantities=["accuracy"])
    x_VMC = data.sample("accuracy", "1B").x_VMC
    assert x_VMC[:, :, 0] == pytest.approx(mean.mean(axis=2), abs=1e-7)
    assert np.isfinite(panel.curves).any() and np.isfinite(panel.calibration["ece"]).all()
    with pytest.raises(UserError, match="both claim"):  # one file's seed as another's
        path = tmp_path / "1B-m0-pt-0" / "rte.arrow"
        store.write(path, store.read(path), planted.metadata(checkpoint_seed="1"))
        load_panel(tmp_path)


def test_components_of_equal_runs_are_those_of_the_two_way_analysis() -> None:
    # what equal seeds share counts for nothing
    x = drawn(np.random.default_rng(3), 0.5, (1, 7, 3))[0] + np.arange(3)
    found = components(x, np.full((7, 1), 1 / 7))
    residual = (
        x - x.mean(axis=1, keepdims=True) - x.mean(axis=2, keepdims=True) + x.mean(axis=(1, 2), keepdims=True)
    )
    covariance = np.einsum("tmr,umr->tu", residual, residual) / (6 * 2)
    assert found.single_3C[:, 0] == pytest.approx([covariance[0, 0], covariance[1, 1], covariance[0, 1]])
    assert found.seeds_3C == pytest.approx(found.single_3C / 3)
    means = np.cov(x.mean(axis=2))
    assert found.of_means_3C[:, 0] == pytest.approx([means[0, 0], means[1, 1], means[0, 1]])


def test_components_of_unequal_runs_are_unbiased() -> None:
    rng = np.random.default_rng(4)
    M = 30_000
    x = drawn(rng, 0.4, (1, M, 3))[0]
    x[0, ::2, 2] = x[1, 1::3, 0] = np.nan
    found = components(x, np.full((M, 1), 1 / M))
    between = (found.of_means_3C - found.seeds_3C)[:, 0]
    assert between == pytest.approx([1 - SHARE, 1 - SHARE, 0.4 * (1 - SHARE)], abs=0.03)
    assert found.single_3C[:, 0] == pytest.approx([SHARE, SHARE, INHERITED * SHARE], abs=0.01)
    assert found.share_2C[:, 0] == pytest.approx([SHARE, SHARE], abs=0.01)
    r = np.corrcoef(np.nanmean(x, axis=2))[0, 1]
    assert r - found.seeds_3C[2, 0] / math.sqrt(found.of_means_3C[:2, 0].prod()) < found.ceiling_C[0] < 1


def test_runs_that_no_stage_shares_leave_the_covariance_alone() -> None:
    x = np.full((2, 8, 4), np.nan)
    x[0, :, :2], x[1, :, 2:] = np.random.default_rng(0).normal(size=(2, 8, 2))
    found = components(x, np.full((8, 1), 1 / 8))
    assert not found.paired and found.seeds_3C[2, 0] == 0.0
    assert components(x[:, :, :2], np.full((8, 1), 1 / 8)) is None


def test_inherited_seeds_look_like_transfer_and_are_subtracted() -> None:
    """At a true 0: the mean r is .27 with one run a mixture and .11 with three; without the seeds it is 0, and its interval
    holds 0 about as often as it says."""
    rng = np.random.default_rng(1)
    plan = draw_resamples(9, 100, 0)
    one, three, clean, covered = [], [], [], []
    for _ in range(250):
        x = drawn(rng, 0.0, (7, 9, 3))
        of = [components(x_2MR, plan.weight_MC) for x_2MR in x]
        one.append(np.mean([np.corrcoef(x_2MR[:, :, 0])[0, 1] for x_2MR in x]))
        three.append(np.mean([np.corrcoef(x_2MR.mean(axis=2))[0, 1] for x_2MR in x]))
        seeds = np.array([c.seeds_3C for c in of])
        unit = seeds[:, :, 0]
        value = pooled(np.array([c.of_means_3C for c in of]) - seeds + unit[:, :, None], unit)[None]
        low, high = jackknife_t(value, plan)[0]
        clean.append(value[0, 0])
        covered.append(low <= 0 <= high)
    blur = power.Blur(share=SHARE, inherited=INHERITED)
    assert np.mean(one) == pytest.approx(blur.seen(0.0), abs=0.03) == pytest.approx(0.26, abs=0.03)
    assert np.mean(three) == pytest.approx(blur._replace(seeds=3).seen(0.0), abs=0.03)
    assert blur._replace(seeds=3).seen(0.0) == pytest.approx(0.11, abs=0.005)
    assert np.median(clean) == pytest.approx(0.0, abs=0.04)
    assert 0.85 < np.mean(covered) < 0.98


def test_the_table_and_the_report_of_three_seeds(tmp_path: Path) -> None:
    x = 0.5 + 0.05 * drawn(np.random.default_rng(2), 0.6, (4, 9, 3))
    analysis = analyse(assemble(cells_of(x), None), CorrelateOptions(bootstrap=500))
    rows = {(r.name, r.other): r for r in analysis.tables["seeds"]}
    direct = components(x[1], np.full((9, 1), 1 / 9))
    assert rows["b1", "seeds' share pt"].estimate == pytest.approx(direct.share_2C[0, 0])
    assert rows["b1", "ceiling"].estimate == pytest.approx(direct.ceiling_C[0], nan_ok=True)
    assert rows["b1", "r between mixtures"].interval == "profile likelihood"
    ends = [(r.low, r.high) for (_, kind), r in rows.items() if "share" in kind and np.isfinite(r.low)]
    assert len(ends) == 10 and all(0.0 <= low <= high <= 1.0 for low, high in ends)
    mean = rows["mean of 4", "r between mixtures"]
    assert mean.protocol == "category_seeds" and mean.interval == "jackknife" and mean.n == 9
    means = [components(x_2MR, np.full((9, 1), 1 / 9)) for x_2MR in x]
    direct = pooled(np.array([c.of_means_3C for c in means]), np.array([c.seeds_3C[:, 0] for c in means]))
    assert mean.estimate == pytest.approx(direct[0])
    assert "seeds" in [protocol.table for protocol in registry.PROTOCOLS]
    analysis.write(tmp_path)
    html = report.write_report(tmp_path, tmp_path).read_text()
    assert "<h2>Seeds</h2>" in html and "eeds account for part of the variance of accuracy" in html


def test_a_table_with_a_column_of_seeds_is_imported_and_averaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = 0.5 + 0.05 * drawn(np.random.default_rng(6), 0.6, (2, 6, 3))
    lines = ["data,step,seed,piqa,rte"] + [
        f"m{m},{stage},{r},{x[0, t, m, r]},{x[1, t, m, r]}"
        for (t, stage), m, r in itertools.product(enumerate(("pt", "sft")), range(6), range(3))
    ]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    given = ["--mixture", "data", "--stage", "step", "--replicate", "seed"]
    assert main(["import", str(tmp_path / "table.csv"), *given, "--out", str(tmp_path / "i")]) == 0
    panel = load_panel(tmp_path / "i")
    assert panel.values["accuracy"][0] == pytest.approx(x.mean(axis=3).transpose(1, 2, 0))
    assert main(["correlate", str(tmp_path / "i"), "--out", str(tmp_path / "a")]) == 0
    assert "3 runs of each mixture are averaged" in capsys.readouterr().err
    assert (tmp_path / "a" / "seeds.csv").read_text().count("seeds' share") > 4
