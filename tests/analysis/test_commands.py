"""`evalengine correlate` as a user meets it: tables, files, messages; reading at full size; the benchmark runs."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import planted
import pyarrow as pa
import pytest

from evalengine import console
from evalengine.analysis.protocols.true_regret import TOP1_JUDGED
from evalengine.analysis.report.report import page
from evalengine.analysis.results import load_results
from evalengine.analysis.statistics.bootstrap import draw_resamples
from evalengine.bench import bootstrap as bench
from evalengine.bench import synthetic
from evalengine.bench.scale import SIZES
from evalengine.cli import main


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scores")
    planted.write_study(folder, items=80)
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two benchmarks at one scale: all tables, and pages that are drawn quickly."""
    folder = tmp_path_factory.mktemp("few")
    planted.write_study(folder, {"hellaswag": 0.8, "piqa": 0.5}, items=40, scales=["1B"])
    return folder


def test_files_agree_with_each_other(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["correlate", str(scores), "--out", str(tmp_path), "--bootstrap", "exact"]) == 0
    text = capsys.readouterr().out
    assert "24,310 resamples" in text and "Verdicts on accuracy" in text
    for name in (
        "transfer",
        "matrices",
        "coherence",
        "alignment",
        "reliability",
        "decisions",
        "calibration",
        "verdicts",
        "cells",
    ):
        from_json = json.loads((tmp_path / f"{name}.json").read_text())
        table = pa.ipc.open_file(str(tmp_path / f"{name}.arrow")).read_all().to_pylist()
        with (tmp_path / f"{name}.csv").open() as handle:
            from_csv = list(csv.DictReader(handle))
        assert len(from_json) == len(table) == len(from_csv) > 0
        assert [list(r) for r in (from_json[0], table[0], from_csv[0])] == [list(from_json[0])] * 3
        for a, b, c in zip(from_json, table, from_csv, strict=True):
            assert a == b
            for key, value in a.items():
                assert (c[key] == "") == (value is None or value == "")
                if isinstance(value, float):
                    assert float(c[key]) == pytest.approx(value, rel=1e-9)
    row = json.loads((tmp_path / "transfer.json").read_text())[0]
    ends = [f"{k}_{e}" for k in ("bca", "percentile", "basic", "fisher") for e in ("low", "high")]
    assert all(math.isfinite(row[key]) for key in (*ends, "low", "high", "p", "q")) and row["n"] == 9
    assert (row["low"], row["high"]) == (row["bca_low"], row["bca_high"])
    assert not list(tmp_path.glob("*.tmp"))


def test_every_finite_estimate_has_an_interval_and_n(scores: Path, tmp_path: Path) -> None:
    assert main(["correlate", str(scores), "--out", str(tmp_path), "--study", "embedded", "--json"]) == 0
    for name in json.loads((tmp_path / "analysis.json").read_text())["tables"]:
        for row in json.loads((tmp_path / f"{name}.json").read_text()):
            if row["estimate"] is not None:
                assert row["n"] >= 4, row
                if row["other"] == TOP1_JUDGED:  # a probability of the posterior
                    assert 0.0 <= row["estimate"] <= 1.0 and row["low"] is None, row
                    continue
                assert row["low"] is not None and row["high"] is not None, row
                assert row["low"] <= row["high"]


@pytest.mark.parametrize("place", [0, 4, 30])
def test_tables_of_two_runs_never_stand_beside_a_manifest(
    few: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: int,
) -> None:
    """A second run stops while its tables move into place: analysis.json is gone until a run has come to its end."""
    run = ["correlate", str(few), "--bootstrap", "200", "--json", "--out", str(tmp_path)]
    assert main([*run, "--seed", "1"]) == 0
    move, moved = os.replace, []

    def full_disk(source: Path, target: Path) -> None:
        if Path(target).parent == tmp_path:
            moved.append(target)
            if len(moved) > place:
                raise OSError(28, "No space left on device")
        move(source, target)

    monkeypatch.setattr(os, "replace", full_disk)
    assert main([*run, "--seed", "2"]) == 1 and len(moved) == place + 1
    monkeypatch.undo()
    assert f"No space left on device ({tmp_path}); finished work is kept" in capsys.readouterr().err
    assert not (tmp_path / "analysis.json").exists() and not (tmp_path / ".writing").exists()
    assert main(["report", str(tmp_path), "--figures", "none"]) == 1
    assert main([*run, "--seed", "2"]) == 0 == main(["report", str(tmp_path), "--figures", "none"])


def test_the_same_call_gives_the_same_files(scores: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main(["correlate", str(scores), "--out", str(tmp_path / name), "--bootstrap", "500"]) == 0
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("a", "b"))
    assert first == second and len(first) > 20


@pytest.mark.parametrize("interval", ["percentile", "basic", "fisher", "jackknife"])
def test_interval_kinds(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], interval: str
) -> None:
    assert main(["correlate", str(scores), "--out", str(tmp_path), "--interval", interval, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["transfer"]
    row = rows[0]
    if interval != "jackknife":
        assert (row["low"], row["high"]) == (row[f"{interval}_low"], row[f"{interval}_high"])
    mean = next(r for r in rows if r["protocol"] == "category_transfer")
    assert mean["low"] is not None
    assert ("percentile interval" in mean["note"]) == (interval == "fisher")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bootstrap", "many"], "--bootstrap takes a number or 'exact'"),
        (["--bootstrap", "7"], "too few"),
        (["--bootstrap", "\N{SUPERSCRIPT TWO}00"], "--bootstrap takes a number or 'exact'"),
        (["--seed", "-1"], "--seed -1 must be 0 or more"),
        (["--stages", "pt"], "two different stages"),
        (["--stages", "pt,rl"], "no checkpoint has the stage 'rl'"),
        (["--metric", "f1"], "choose from acc"),
        (["--metric", "acc_pmi"], "without --pmi"),
        (["--study", "nowhere"], "there is no study file nowhere"),
        (["--level", "7"], "must lie between"),
        (["--resample", "both", "--bootstrap", "exact"], "cannot be resampled exactly"),
    ],
)
def test_wrong_options(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments, said
) -> None:
    assert main(["correlate", str(scores), "--out", str(tmp_path / "o"), *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_what_is_resampled_is_said(scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what, words in (("items", "items"), ("both", "mixtures and items")):
        options = ["--resample", what, "--bootstrap", "200"]
        assert main(["correlate", str(scores), "--out", str(tmp_path), *options]) == 0
        assert f"200 resamples of the {words} (Monte Carlo)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("level", "said"), [("0.999", "99.9%"), ("0.975", "97.5%"), ("0.57", "57%")])
def test_the_level_is_printed_as_it_is(
    level: str, said: str, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["correlate", str(few), "--out", str(tmp_path), "--bootstrap", "100", "--level", level]
    assert main(run) == 0
    assert f"[{said} interval]" in capsys.readouterr().out
    text = page(load_results(tmp_path))
    assert (
        f"{said} intervals: BCa" in text and f"median {said} interval" in text and "100% interval" not in text
    )


def test_missing_twin_is_said_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planted.write_study(tmp_path / "s", {"rte": 0.5, "piqa": 0.5}, items=50, skip=["1B-V2P1-sft"])
    assert main(["correlate", str(tmp_path / "s"), "--out", str(tmp_path / "o")]) == 0
    said = capsys.readouterr()
    assert "scale 1B: no sft checkpoint for V2P1; left out, 8 mixtures remain" in said.err
    shown = re.findall(r" (240M|1B) .*\]  +(\d+)  +50 ", said.out)
    assert set(shown) == {("240M", "9"), ("1B", "8")}
    rows = json.loads((tmp_path / "o" / "transfer.json").read_text())
    at = {(r["contrast"], r["scale"], r["name"], r["quantity"]): r["n"] for r in rows}
    assert at["", "240M", "rte", "accuracy"] == 9 and at["", "1B", "rte", "accuracy"] == 8
    assert at["scale", "1B", "rte", "accuracy"] == 8


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (80, ["scale", "r", "items", "p", "q", "ceiling"]),
        (120, ["scale", "r", "n", "items", "p", "q", "ceiling", "r without noise"]),
        (60, ["scale", "r", "q"]),
        (50, ["scale", "r"]),
    ],
)
def test_the_terminal_shows_what_fits_and_breaks_no_line(
    scores: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    width,
    shown,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["correlate", str(scores), "--out", str(tmp_path), "--bootstrap", "300"]) == 0
    text = capsys.readouterr().out
    head = next(line for line in text.splitlines() if line.strip().startswith("scale"))
    assert [name.strip() for name in head.split("  ") if name.strip()] == shown
    assert all(
        len(line) <= width for line in text.splitlines() if line.startswith((" ", "Science (", "All ("))
    )
    rows = {(r["name"], r["scale"]): r for r in json.loads((tmp_path / "transfer.json").read_text())[::-1]}
    for name in planted.BENCHMARKS:
        line = next(line for line in text.splitlines() if line.startswith(f" {name} "))
        row = rows[name, "240M"]
        expected = f"{name} 240M {row['estimate']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
        assert " ".join(line.split()).startswith(expected)
        if "q" in shown:
            assert ("< 0.001" if row["q"] < 0.001 else f"{row['q']:.3f}") in line


def test_a_table_is_never_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of 6.97e+08 would be another number."""
    for columns in ("20", "1", "0", "", "wide"):
        monkeypatch.setenv("COLUMNS", columns)
        console.table(
            "t", ["checkpoint", "FLOPs", "kept"], [["240M-a-pt", "6.97e+08", 3]], optional=("kept",)
        )
        lines = capsys.readouterr().out.splitlines()
        kept = [] if columns in ("20", "1") else ["3"]
        assert [line.split() for line in lines if "240M" in line] == [["240M-a-pt", "6.97e+08", *kept]]


def test_three_mixtures_are_too_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planted.write_study(tmp_path / "s", {"rte": 0.5}, items=20, mixtures=planted.MIXTURES[:3])
    assert main(["correlate", str(tmp_path / "s"), "--out", str(tmp_path / "o")]) == 1
    assert "needs at least 4" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_output_is_a_file(scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "o").write_text("")
    assert main(["correlate", str(scores), "--out", str(tmp_path / "o")]) == 1
    assert "is a file: give --out a folder" in capsys.readouterr().err


def test_report_refuses_options_of_correlate_for_tables_that_exist(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "o")
    assert main(["correlate", str(scores), "--out", out, "--bootstrap", "200"]) == 0
    for given in (["--statistic", "spearman"], ["--stages", "sft,pt"], ["--level", "0.9"]):
        assert main(["report", out, "--figures", "none", *given]) == 1
        assert f"which {given[0]} cannot change: give that to correlate" in capsys.readouterr().err
    assert not (tmp_path / "o" / "report.html").exists()
    (tmp_path / "file").write_text("")
    assert main(["report", out, "--out", str(tmp_path / "file"), "--figures", "none"]) == 1
    assert "file is a file, or lies in one, where a folder is needed" in capsys.readouterr().err


def test_where_no_r_is_defined_the_mixtures_are_counted_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    planted.write_study(tmp_path / "s", {"rte": 0.5}, items=4, mixtures=planted.MIXTURES[:4])
    assert main(["correlate", str(tmp_path / "s"), "--out", str(tmp_path / "o")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "n = 4 mixtures" in said and "n = 0" not in said
    assert "seeds" not in said[said.index("Tables:") :]  # a table without rows
    assert not [one for one in recwarn if issubclass(one.category, RuntimeWarning)]


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, evalengine.analysis, evalengine.cli; evalengine.cli.parser(); "
        "print([m for m in ('numba', 'scipy', 'matplotlib', 'pyarrow', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_correlating_imports_no_pandas_and_no_torch(scores: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from evalengine.cli import main; main(sys.argv[1:]); "
        "print([m for m in ('pandas', 'torch', 'matplotlib') if m in sys.modules])"
    )
    command = ["correlate", str(scores), "--out", str(tmp_path / "o")]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_benchmark_baselines_compute_the_same_intervals() -> None:
    x = np.random.default_rng(0).normal(size=(6, 14))
    ours = bench.matrix(x, draw_resamples(14, 500, seed=2))
    np.testing.assert_allclose(bench.numpy_matrix(x, 500, seed=2), ours, atol=1e-9)
    np.testing.assert_allclose(bench.scipy_cell(x[0], x[3], 500, seed=2), ours[0], atol=1e-9)
    result = bench.run(quick=True)
    assert set(result.ratios) >= {"bootstrap_vs_scipy_per_cell", "bootstrap_vs_numpy"}
    assert all(len(row) == len(result.columns) for row in result.rows)


@pytest.mark.slow
def test_full_size_reading_stays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """36 checkpoints x 86,779 items: below 1.5 GB in a process of its own, and below 10 s on a busy machine."""
    monkeypatch.setenv("EVALENGINE_CACHE", str(tmp_path / "cache"))
    names = [f"{x}-m{m}-{stage}" for x in ("240M", "1B") for m in range(9) for stage in ("pt", "sft")]
    checkpoints = synthetic.make_checkpoints(tmp_path / "checkpoints", names)
    synthetic.score(checkpoints, SIZES, tmp_path / "scores")
    code = (
        "import sys, time; from evalengine.analysis.data.panel import load_panel; load_panel(sys.argv[1]); "
        "start = time.process_time(); panel = load_panel(sys.argv[1]); seconds = time.process_time() - start; "
        "peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')); "
        "print(seconds, peak, panel.n_items.sum())"  # (ru_maxrss begins at the peak of the process that starts this one)
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "scores")], capture_output=True, text=True, check=True
    )
    seconds, kilobytes, items = map(float, done.stdout.split())
    assert items == sum(n for n, _ in SIZES.values()) == 86_779
    assert kilobytes < 1.5e6
    assert seconds < 10


@pytest.mark.parametrize("command", ["correlate", "explain", "report"])
def test_tables_are_not_written_among_the_checkpoints_of_a_store(
    command: str, scores: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(scores.rglob("*"))
    assert main([command, str(scores), "--out", str(scores / "analysis")]) == 1
    assert "give --out a folder beside it" in capsys.readouterr().err
    assert sorted(scores.rglob("*")) == before
