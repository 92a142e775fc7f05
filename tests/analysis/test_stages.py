"""More than two stages: every pair as if it were alone, differences by hand, gaps left out where they matter."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from evalengine.analysis.data.panel import Cell, assemble, load_panel
from evalengine.analysis.protocols.stages import pairs
from evalengine.analysis.protocols.transfer_tests import swap_p
from evalengine.analysis.report import report
from evalengine.analysis.study import CorrelateOptions, analyse
from evalengine.cli import main
from evalengine.errors import UserError

STAGES = ("pt", "sft", "dpo", "rl")
BENCHMARKS = {"piqa": "Commonsense", "siqa": "Commonsense", "rte": "NLI"}


def values(stages: int, scales: int = 2, mixtures: int = 8) -> np.ndarray:
    """(S, T, M, B): a walk over the stages."""
    steps = np.random.default_rng(0).normal(size=(scales, stages, mixtures, len(BENCHMARKS)))
    return 0.5 + 0.02 * steps.cumsum(axis=1)


def cells_of(x_STMB: np.ndarray, stages: tuple[str, ...]) -> list[Cell]:
    return [
        Cell(f"{scale}-m{m}-{stage}", scale, f"m{m}", stage, benchmark, BENCHMARKS[benchmark],
             {"accuracy": x_STMB[s, t, m, b]}, 100)
        for (s, scale), (t, stage), m, (b, benchmark) in itertools.product(
            enumerate(("240M", "1B")[: len(x_STMB)]), enumerate(stages), range(x_STMB.shape[2]), enumerate(BENCHMARKS)
        )
        if np.isfinite(x_STMB[s, t, m, b])
    ]  # fmt: skip


def test_pairs() -> None:
    assert pairs(2) == [(0, 1)]
    assert pairs(3) == [(0, 1), (0, 2), (1, 2)]
    assert pairs(5) == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (1, 4), (2, 3), (2, 4), (3, 4)]
    assert all(len(pairs(T)) == 3 * T - 6 for T in range(3, 30))


def test_every_pair_is_the_analysis_of_these_two_alone() -> None:
    cells = cells_of(values(4), STAGES)
    tables = analyse(assemble(cells, STAGES), CorrelateOptions()).tables
    stages = [r for r in tables["stages"] if not r.contrast]
    found = {(r.protocol, r.scale, r.category, r.name, r.other): r for r in stages}
    seen = 0
    for t, u in pairs(4):
        pair = (STAGES[t], STAGES[u])
        for row in analyse(assemble(cells, pair), CorrelateOptions()).tables["transfer"]:
            if not row.contrast:
                key = (row.protocol, row.scale, row.category, row.name, ",".join(pair))
                assert list(found[key]._replace(other="")) == pytest.approx(list(row), nan_ok=True)
                seen += 1
    assert seen == len([key for key in found if key[0] in ("transfer", "category_transfer")]) == 6 * 2 * 6
    both = analyse(assemble(cells, ("pt", "rl")), CorrelateOptions()).tables
    assert list(map(repr, tables["transfer"])) == list(map(repr, both["transfer"]))  # equal, NaN to NaN
    assert both["stages"] == []


def test_later_stages_are_compared_over_common_benchmarks() -> None:
    x = values(4, scales=1)
    x[0, 2, :, 1] = 0.25  # siqa has no r with dpo
    panel = assemble(cells_of(x, STAGES), STAGES)
    rows = [r for r in analyse(panel, CorrelateOptions()).tables["stages"] if r.contrast == "stage"]
    assert {(r.other, r.minus) for r in rows} == {
        ("pt,dpo", "pt,sft"), ("pt,rl", "pt,sft"), ("pt,rl", "pt,dpo"),
    }  # fmt: skip
    r = np.array([[np.corrcoef(x[0, 0, :, b], x[0, t, :, b])[0, 1] for t in (1, 3)] for b in range(3)])
    at = {
        (row.category, row.name if row.protocol == "transfer" else "", row.other, row.minus): row
        for row in rows
    }
    mean = at["All", "", "pt,rl", "pt,sft"]
    assert mean.estimate == pytest.approx((r[:, 1] - r[:, 0]).mean()) and mean.interval == "jackknife"
    dpo = np.corrcoef(x[0, 0, :, 0], x[0, 2, :, 0])[0, 1]
    partial = at["Commonsense", "", "pt,dpo", "pt,sft"]
    assert partial.estimate == pytest.approx(dpo - r[0, 0]) and "over the 1 that have" in partial.note
    assert np.isnan(at["Commonsense", "siqa", "pt,rl", "pt,dpo"].estimate)
    sides = [np.stack([x[0, 0, :, 2:].T, x[0, t, :, 2:].T]) for t in (1, 3)]
    assert at["NLI", "rte", "pt,rl", "pt,sft"].p == pytest.approx(swap_p(*sides, [[0]])[0])


@pytest.mark.parametrize("r", [0.0, 0.8])
def test_equal_transfer_to_two_stages_is_rejected_as_often_as_it_says(r: float) -> None:
    """The two share the first stage, and what else moves them is correlated, too."""
    rng = np.random.default_rng(0)
    rest = 1 - r * r
    both = [[1, r, r], [r, 1, r * r + 0.5 * rest], [r, r * r + 0.5 * rest, 1]]
    x = rng.multivariate_normal(np.zeros(3), both, (9, 600)).transpose(2, 1, 0)  # stage, draw, mixture
    p = swap_p(x[[0, 1]], x[[0, 2]], [[b] for b in range(600)])
    assert (p <= 0.05).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 600)


def test_a_difference_between_two_stages_is_found() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 200, 20))
    close = x + 0.3 * rng.normal(size=x.shape)
    assert (swap_p(np.stack([x, close]), np.stack([x, y]), [[b] for b in range(200)]) < 0.05).mean() > 0.9


def test_with_more_than_six_later_stages_none_are_compared() -> None:
    stages = tuple(str(1000 * t) for t in range(8))
    panel = assemble(cells_of(values(8, scales=1), stages), stages)
    assert not [r for r in analyse(panel, CorrelateOptions()).tables["stages"] if r.contrast]


def test_a_mixture_that_lacks_a_stage_is_left_out_of_its_pairs() -> None:
    x = values(3, scales=1)
    x[0, 1, 2] = x[0, 2, 5] = np.nan  # m2 without sft, m5 without dpo
    stages = STAGES[:3]
    panel = assemble(cells_of(x, stages), stages)
    assert panel.stages == ("pt", "dpo") and "m5" not in panel.mixtures
    assert any("no dpo checkpoint for m5; left out" in note for note in panel.notes)
    assert "scale 240M: no sft checkpoint for m2; left out of the pairs with sft" in panel.notes
    rows = analyse(panel, CorrelateOptions()).tables["stages"]
    rows = [r for r in rows if (r.protocol, r.name, r.contrast) == ("transfer", "rte", "")]
    n = {r.other: r.n for r in rows}
    assert n == {"pt,sft": 7, "pt,dpo": 7, "sft,dpo": 6}
    keep = np.isfinite(x[0, :2, :, 2]).all(axis=0)
    expected = np.corrcoef(x[0, 0, keep, 2], x[0, 1, keep, 2])[0, 1]
    assert next(r for r in rows if r.other == "pt,sft").estimate == pytest.approx(expected)


def test_levels_are_means_over_mixtures_and_benchmarks() -> None:
    x = values(3, scales=1)
    rows = analyse(assemble(cells_of(x, STAGES[:3]), STAGES[:3]), CorrelateOptions()).tables["stages"]
    found = {(r.category, r.other): r for r in rows if r.protocol == "stage_mean"}
    for t, stage in enumerate(STAGES[:3]):
        assert found["Commonsense", stage].estimate == pytest.approx(x[0, t, :, :2].mean())
        assert found["All", stage].estimate == pytest.approx(x[0, t].mean())
        spread = x[0, t].mean(axis=1).std(ddof=1) / np.sqrt(8)  # the jackknife of a mean
        assert found["All", stage].high - found["All", stage].estimate == pytest.approx(2.364624 * spread)


def test_levels_are_of_the_benchmarks_that_every_stage_has() -> None:
    """A benchmark that the stage in between was not scored on would move the mean of that stage alone."""
    x = values(3, scales=1)
    cells = [c for c in cells_of(x, STAGES[:3]) if (c.stage, c.benchmark) != (STAGES[1], "piqa")]
    rows = analyse(assemble(cells, STAGES[:3]), CorrelateOptions(bootstrap=100)).tables["stages"]
    found = {(r.category, r.other): r for r in rows if r.protocol == "stage_mean"}
    for t, stage in enumerate(STAGES[:3]):
        row = found["All", stage]
        assert row.estimate == pytest.approx(x[0, t, :, 1:].mean())
        assert row.note == "without piqa (not at every stage)"
        assert row.name == "mean of 2"


def test_stages_are_named_once_and_exist() -> None:
    cells = cells_of(values(3), STAGES[:3])
    for asked in (("pt",), ("pt", "sft", "pt")):
        with pytest.raises(UserError, match="two different stages or more"):
            assemble(cells, asked)
    with pytest.raises(UserError, match="no checkpoint has the stage 'rl'"):
        assemble(cells, ("pt", "sft", "rl"))


def test_the_report_shows_curves_and_tables(tmp_path: Path) -> None:
    analyse(assemble(cells_of(values(4), STAGES), STAGES), CorrelateOptions(bootstrap=300)).write(tmp_path)
    html = report.write_report(tmp_path, tmp_path).read_text()
    assert "<h2>Stages</h2>" in html and "pt → sft → dpo → rl" in html
    assert (
        "r from pt: accuracy, 1B" in html
        and "r to rl: accuracy, 240M" in html
        and "Later stages compared" in html
    )
    written = {path.name for path in report.write_figures(tmp_path, tmp_path / "f", ["png"])}
    assert {"stages_from_first.png", "stages_to_last.png", "stages_mean.png"} <= written


def test_pythia_over_its_steps(real_data: Path, tmp_path: Path) -> None:
    table = real_data / "results" / "pythia_evals_wide.csv"
    if not table.is_file():
        pytest.skip("needs results/pythia_evals_wide.csv in EVALENGINE_DATA")
    given = ["--scale", "deduped", "--mixture", "params_nominal", "--stage", "step"]
    where = [f"--where={w}" for w in ("suite=pythia-v1", "num_fewshot=0", "folder=zero-shot")]
    assert main(["import", str(table), *given, *where, "--out", str(tmp_path / "i")]) == 0
    steps = ("512", "1000", "3000", "13000", "143000")
    panel = load_panel(tmp_path / "i", stages=steps)
    rows = analyse(panel, CorrelateOptions()).tables["stages"]
    single = [r for r in rows if r.protocol == "transfer" and not r.contrast]
    assert len(single) == len(pairs(5)) * len(panel.benchmarks) * len(panel.scales)
    late = next(r for r in single if (r.scale, r.name, r.other) == ("1", "sciq", "13000,143000"))
    alone = analyse(load_panel(tmp_path / "i", stages=steps[-2:]), CorrelateOptions()).tables["transfer"]
    same = next(r for r in alone if (r.scale, r.name) == ("1", "sciq"))
    assert list(late._replace(other="")) == pytest.approx(list(same), nan_ok=True)
