"""Wide tables: which columns are scores, in which unit, and what is said of the others."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from evalengine.analysis.data.mixtures import imported_mixtures
from evalengine.analysis.data.panel import load_panel
from evalengine.analysis.importing.imported import MISSING
from evalengine.analysis.study import CorrelateOptions, analyse
from evalengine.cli import main

PLACE = ["--scale", "s", "--mixture", "m", "--stage", "t"]


def table(path: Path, columns: str, *lines: str) -> Path:
    """A table with a row for each of `lines`, of checkpoints 1B-0-pt, 1B-0-sft, 1B-1-pt, ..."""
    rows = [f"1B,m{i // 2},{'pt' if i % 2 == 0 else 'sft'},{line}" for i, line in enumerate(lines)]
    path.write_text("\n".join([f"s,m,t,{columns}", *rows]) + "\n")
    return path


def values(folder: Path) -> dict[str, list[float]]:
    """By benchmark (and quantity, if it is no accuracy), in the table's order."""
    found: dict[str, list[float]] = {}
    with (folder / "results.csv").open() as handle:
        for row in csv.DictReader(handle):
            key = row["benchmark"] + ("" if row["quantity"] == "accuracy" else f" {row['quantity']}")
            found.setdefault(key, []).append(float(row["value"]))
    return found


def refused(capsys: pytest.CaptureFixture[str], out: Path, *given: str | Path) -> str:
    assert main(["import", *map(str, given), *PLACE, "--out", str(out)]) == 1
    assert not out.exists()
    return capsys.readouterr().err


def imported(out: Path, *given: str | Path) -> dict[str, list[float]]:
    assert main(["import", *map(str, given), *PLACE, "--out", str(out)]) == 0
    return values(out)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"s;m;t;rte\n1B;a;pt;0,5\n", "is separated by semicolons"),
        (b"s\tm\tt\trte\n1B\ta\tpt\t0.5\n", "is separated by tabs"),
        ("s,m,t,rte\n1B,\u00e9,pt,0.5\n".encode("latin-1"), "is not in UTF-8"),
        ("s,m,t,rte\n1B,a,pt,0.5\n".encode("utf-16"), "is not in UTF-8"),
        (b"", "is empty"),
        (b"\n\n", "is empty"),
    ],
    ids=["semicolons", "tabs", "latin-1", "utf-16", "empty", "blank"],
)
def test_tables_of_another_form_are_refused_by_what_they_are(
    data: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    assert f"t.csv {said}" in refused(capsys, tmp_path / "out", tmp_path / "t.csv")


def test_other_columns_are_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(
        tmp_path / "t.csv",
        "seed,tokens,rte,average,core_avg.acc,wikitext_ppl,rte_std,ARC-Easy,social_iqa,val_loss,mine.acc",
        "0,100,0.25,0.3,0.3,17.5,0.01,0.5,0.125,2.5,0.75",
        "7,200,0.50,0.4,0.4,12.5,0.02,0.6,0.250,2.0,0.25",
    )
    found = imported(tmp_path / "out", file)
    assert found == {"rte": [0.25, 0.5], "arc_easy": [0.5, 0.6], "siqa": [0.125, 0.25], "mine": [0.75, 0.25]}
    said = " ".join(capsys.readouterr().out.split())
    assert "Left out: seed, tokens, val_loss (no benchmarks that evalengine knows" in said
    assert "average, core_avg.acc (means of others)" in said
    assert "wikitext_ppl (lower is better" in said and "rte_std (errors" in said
    assert main(["import", str(file), *PLACE, "--out", str(tmp_path / "json"), "--json"]) == 0
    left_out = json.loads(capsys.readouterr().out)["left_out"]
    assert sorted(left_out) == [
        "average",
        "core_avg.acc",
        "rte_std",
        "seed",
        "tokens",
        "val_loss",
        "wikitext_ppl",
    ]


def test_only_what_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(tmp_path / "t.csv", "seed,mine,yours,average", "0,0.25,0.5,0.4", "1,0.5,0.75,0.6")
    said = refused(capsys, tmp_path / "out", file)
    assert "no column looks like a benchmark" in said and "--benchmarks 'seed,mine,yours'" in said
    assert imported(tmp_path / "named", file, "--benchmarks", "mine,yours") == {
        "mine": [0.25, 0.5],
        "yours": [0.5, 0.75],
    }
    assert "Left out: seed, average (not in --benchmarks)" in capsys.readouterr().out
    assert "average" in imported(tmp_path / "mean", file, "--benchmarks", "average")
    assert "no column looks like a benchmark 'theirs*'" in refused(
        capsys, tmp_path / "out", file, "--benchmarks", "mine,theirs*"
    )


def test_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(tmp_path / "t.csv", "wiki_ppl,rte.acc,code_loss", "0.9,0.5,1.5", "0.8,0.6,1.25")
    assert imported(tmp_path / "plain", file) == {"rte": [0.5, 0.6], "code loss": [1.5, 1.25]}
    said = refused(capsys, tmp_path / "out", file, "--benchmarks", "wiki_ppl")
    assert "of wiki_ppl, lower is better: say --loss" in said
    found = imported(tmp_path / "loss", file, "--benchmarks", "*_ppl,rte*", "--loss")
    assert found == {"wiki_ppl loss": [0.9, 0.8], "rte": [0.5, 0.6]}, "an accuracy by its name is none"


def test_percent_is_decided_by_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(tmp_path / "t.csv", "rte,wic,cb.acc,cb.confidence", "0.5,50,12.5%,75", "1,0,0.5%,80")
    found = imported(tmp_path / "out", file)
    assert found == {
        "rte": [0.5, 1.0],
        "wic": [0.5, 0.0],
        "cb": [0.125, 0.005],
        "cb confidence": [0.75, 0.8],
    }
    assert "read as percent: wic, cb.acc, cb.confidence; as shares of one: rte" in " ".join(
        capsys.readouterr().err.split()
    )
    both = table(tmp_path / "b.csv", "rte,wic", "0.5,0.5", "0.75,62.5")
    said = refused(capsys, tmp_path / "bad", both)
    assert "b.csv, line 2: wic is 0.5 here and up to 62.5 elsewhere, a share of one among percent" in said


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("rte,wic,rte", "columns 4 and 6 are both called rte"),
        ("rte, wic ,wic", "columns 5 and 6 are both called wic"),
        ("rte,cb.acc,cb_acc", "the columns cb.acc, cb_acc are all scores of cb"),
        ("rte,social_iqa,siqa", "the columns social_iqa, siqa are all scores of siqa"),
    ],
)
def test_two_columns_of_one_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], columns: str, said: str
) -> None:
    assert said in refused(capsys, tmp_path / "out", table(tmp_path / "t.csv", columns, "0.5,0.6,0.7"))


@pytest.mark.parametrize("text", sorted({*MISSING, "N/A", "#N/A", "NaN", " . ", "NULL"}))
def test_a_missing_value_costs_one_cell(tmp_path: Path, text: str) -> None:
    found = imported(tmp_path / "out", table(tmp_path / "t.csv", "rte,wic", f"{text},0.5", "0.25,0.75"))
    assert found["wic"] == [0.5, 0.75]
    assert math.isnan(found["rte"][0]) and found["rte"][1] == 0.25


def test_a_column_without_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(tmp_path / "t.csv", "rte,wic", "#N/A,0.5", "N/A,0.75")
    assert imported(tmp_path / "out", file) == {"wic": [0.5, 0.75]}
    assert "Left out: rte (without any value)" in capsys.readouterr().out


def test_text_in_a_benchmark_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(tmp_path / "t.csv", "rte,wic", '0.5,"0,5"', "0.25,0.75")
    assert "line 2, column wic: '0,5' is not a number" in refused(capsys, tmp_path / "out", file)


def test_rows_of_different_shots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(tmp_path / "t.csv", "n_shot,rte", "0,0.5", "5,0.25")
    said = refused(capsys, tmp_path / "out", file)
    assert "the rows differ in n_shot (0, 5): choose one with --where n_shot=VALUE" in said
    other = tmp_path / "u.csv"
    other.write_text("s,m,t,n_shot,rte\n2B,m,pt,0,0.5\n")
    five = table(tmp_path / "five.csv", "n_shot,rte", "5,0.5", "5,0.25")
    said = refused(capsys, tmp_path / "out", five, other)
    assert f"rte has different numbers of few-shot examples: 5 in {five}, 0 in {other}" in said


def test_rows_without_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "t.csv"
    file.write_text("s,m,t,rte\n1B,a,pt,0.5\n1B,nan,sft,0.25\n")
    assert "t.csv, line 3 says no mixture" in refused(capsys, tmp_path / "out", file)


def test_one_mixture_has_one_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--shares", "code")
    bad = table(tmp_path / "t.csv", "code,rte", "0.5,0.5", "0.25,0.25")
    assert "mixture m0 has the share 0.25 of code, and 0.5 elsewhere" in refused(
        capsys, tmp_path / "out", bad, *given
    )
    a = table(tmp_path / "a.csv", "code,rte", "0.5,0.5", "0.5,0.25")
    b = tmp_path / "b.csv"
    b.write_text("s,m,t,code,rte\n2B,m0,pt,0.125,0.5\n")
    assert f"{b}: mixture m0 has the share 0.125 of code, and 0.5 elsewhere" in refused(
        capsys, tmp_path / "out", a, b, *given
    )


def test_shares_with_a_percent_sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(
        tmp_path / "t.csv", "code,rte", *(f"{share},0.5" for share in ("25%", "25 %", "50%", "50%", "0", "0"))
    )
    imported(tmp_path / "out", file, "--shares", "code")
    shares = imported_mixtures(tmp_path / "out")
    assert shares is not None and shares.shares == {"code": {"m0": 0.25, "m1": 0.5, "m2": 0.0}}
    mixed = table(tmp_path / "u.csv", "code,rte", "25%,0.5", "25%,0.5", "0.5,0.5", "0.5,0.5")
    said = refused(capsys, tmp_path / "no", mixed, "--shares", "code")
    assert f"{mixed}: code has values with and without a percent sign" in said


def test_one_standard_error_in_another_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(tmp_path / "t.csv", "rte,rte_stderr", "0.5,0.011", "0.6,0.012", "0.7,1.1", "0.6,0.010")
    said = refused(capsys, tmp_path / "out", file)
    assert f"{file}, line 4: the standard error as in rte_stderr would take about 0.17 items of rte" in said


def test_rows_are_chosen_whatever_spaces_stand_around_their_cells(tmp_path: Path) -> None:
    file = table(tmp_path / "t.csv", "shots,rte", "0,0.5", "0 ,0.25", "5,0.5", " 0,0.75")
    assert imported(tmp_path / "out", file, "--where", "shots=0") == {"rte": [0.5, 0.25, 0.75]}


def test_a_mixture_that_may_be_the_mean_of_others_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = table(tmp_path / "t.csv", "rte", "0.5", "0.25", "0.5", "0.75")
    imported(tmp_path / "out", file)
    assert "mean of others" not in capsys.readouterr().err
    file.write_text(file.read_text() + "1B,Average,pt,0.5\n1B,Average,sft,0.5\n")
    imported(tmp_path / "out", file)
    assert "a mixture is called Average: if it is the mean of others, leave it out" in " ".join(
        capsys.readouterr().err.split()
    )


def test_one_row_says_the_number_of_items_for_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As correlate takes it: no note says that there is no item noise."""
    lines = (f"0.{3 + k % 5}{k},{100 if k == 0 else ''}" for k in range(8))
    imported(tmp_path / "out", table(tmp_path / "t.csv", "rte,rte_n", *lines))
    assert "no item noise" not in capsys.readouterr().err
    tables = analyse(load_panel(tmp_path / "out"), CorrelateOptions(bootstrap=100)).tables
    assert any(row.other == "reliability pt" and math.isfinite(row.estimate) for row in tables["reliability"])


def test_a_mean_beside_its_parts_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(tmp_path / "t.csv", "mmlu.acc,mmlu_law.acc,mmlu_art.acc", "0.5,0.25,0.75", "0.5,0.5,0.5")
    imported(tmp_path / "out", file)
    assert "mmlu stands beside mmlu_art, mmlu_law: if it is their mean, leave it out" in " ".join(
        capsys.readouterr().err.split()
    )


def test_means_are_compared_over_the_benchmarks_of_both_scales(tmp_path: Path) -> None:
    """rte has values at one scale only: the difference of the means would be one of benchmarks, not of scales."""
    lines = ["s,m,t,rte,wic"]
    for s, shift in (("60M", 0), ("1B", 1)):
        for m in range(5):
            for t, k in (("pt", 3), ("sft", 7)):
                wic = (m * k + shift * m * m) % 11 / 11
                lines.append(f"{s},m{m},{t},{'N/A' if s == '60M' else (m * k) % 5 / 5},{wic}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    imported(tmp_path / "out", tmp_path / "t.csv")
    panel = load_panel(tmp_path / "out")
    assert any("rte has no value for 60M-m0-pt" in note for note in panel.notes)
    found = analyse(panel, CorrelateOptions(bootstrap=200)).tables
    means = {
        row.at: row
        for row in found["transfer"]
        if row.protocol == "category_transfer" and row.category == "All"
    }
    assert math.isfinite(means["60M"].estimate) and math.isfinite(means["1B"].estimate)
    assert means["60M"].note.startswith("without rte")
    single = {row.name: row for row in found["transfer"] if row.protocol == "transfer" and row.contrast}
    assert means["1B − 60M"].estimate == pytest.approx(single["wic"].estimate)  # rte has no r at 60M
    assert "over the 1 that have a value at both scales" in means["1B − 60M"].note
    agreement = {
        row.at: row
        for row in found["decisions"]
        if row.category == "All" and row.other == "pairwise agreement"
    }
    assert agreement["60M"].note.startswith("without rte")
    wic = [
        r for r in found["decisions"] if r.name == "wic" and r.other == "pairwise agreement" and r.contrast
    ]
    assert agreement["1B − 60M"].estimate == pytest.approx(wic[0].estimate)


BESIDE = [  # a score, its standard errors, its numbers of items
    ("rte,rte_stderr,rte_n", ()),
    ("rte.acc,rte.acc_stderr,rte_items", ()),
    ("rte_acc,rte_stderr,rte_acc_n", ()),
    ("eval/rte/acc,eval/rte/acc_stderr,eval/rte/n", ()),
    ('"rte,acc,none","rte,acc_stderr,none",rte_n_samples', ()),
    ("rte,se of rte,count rte", ("--stderr", "se of {}", "--items", "count {}")),
    ("rte,rte_se,rte_count", ("--stderr", "{}_se", "--items", "{}_count", "--benchmarks", "rte*")),
]


@pytest.mark.parametrize(("columns", "options"), BESIDE)
def test_standard_errors_and_numbers_of_items_stand_beside_a_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], columns: str, options: tuple[str, ...]
) -> None:
    file = table(tmp_path / "t.csv", columns, "0.25,0.03,200", "0.5,,200")
    assert imported(tmp_path / "out", file, *options) == {"rte": [0.25, 0.5]}
    assert (
        column(tmp_path / "out", "stderr") == ["0.03", ""]
        and column(tmp_path / "out", "items") == ["200"] * 2
    )
    assert "Left out" not in capsys.readouterr().out
    percent = table(tmp_path / "p.csv", columns, "25,3,200", "50%,3.5%,200")
    assert imported(tmp_path / "percent", percent, *options) == {"rte": [0.25, 0.5]}
    assert [float(v) for v in column(tmp_path / "percent", "stderr")] == pytest.approx([0.03, 0.035])


def column(folder: Path, name: str) -> list[str]:
    with (folder / "results.csv").open() as handle:
        return [row[name] for row in csv.DictReader(handle)]


def test_the_errors_of_another_score_are_not_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """piqa is judged by acc_norm; whose errors `piqa_stderr` are is not said."""
    file = table(
        tmp_path / "t.csv",
        "piqa.acc,piqa.acc_norm,piqa.acc_stderr,piqa_stderr,piqa_n",
        "0.5,0.6,0.01,0.01,1838",
        "0.6,0.7,0.01,0.01,1838",
    )
    assert imported(tmp_path / "out", file) == {"piqa": [0.6, 0.7]}
    assert (
        column(tmp_path / "out", "stderr") == ["", ""] and column(tmp_path / "out", "items") == ["1838"] * 2
    )
    assert "piqa_stderr (errors, no scores)" in " ".join(capsys.readouterr().out.split())
    assert imported(tmp_path / "acc", file, "--metric", "acc") == {"piqa": [0.5, 0.6]}
    assert column(tmp_path / "acc", "stderr") == ["0.01", "0.01"]


@pytest.mark.parametrize(
    ("columns", "line", "options", "said"),
    [
        ("rte,rte_stderr", "45,0.03", (), "about 2.8e+06 items of rte: write them in the unit of rte"),
        ("rte,rte_stderr", "0.45,3", (), "about 0.028 items of rte: write them in the unit of rte"),
        ("rte,rte_stderr,rte_n", "0.45,0.0003,277", (), "about 2.8e+06 items of rte"),
        ("rte,rte_stderr", "0.45,0", (), "line 2: rte_stderr is 0 beside 0.45, which no standard error is"),
        ("rte,rte_stderr", "0.45,1e-200", (), "about inf items of rte: write them in the unit of rte"),
        ("rte,rte_stderr", "0.45,-0.01", (), "line 2: rte_stderr is -0.01 beside 0.45"),
        (
            "rte,rte_stderr,rte.stderr",
            "0.45,0.1,0.1",
            (),
            "columns rte_stderr, rte.stderr may all be meant for rte",
        ),
        ("rte,rte_se", "0.45,0.1", ("--stderr", "rte_se"), "--stderr 'rte_se': write {} where"),
        ("rte,rte_se", "0.45,0.1", ("--stderr", "{}_err"), "no column is called --stderr '{}_err'"),
        (
            "rte,rte_count",
            "0.45,0.1",
            ("--items", "{}_count"),
            "rte_count holds something else than numbers of items",
        ),
    ],
)
def test_errors_and_counts_that_cannot_be(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    columns: str,
    line: str,
    options: tuple[str, ...],
    said: str,
) -> None:
    file = table(tmp_path / "t.csv", columns, line, line)
    assert said in refused(capsys, tmp_path / "out", file, *options)


def test_a_column_that_only_looks_like_counts_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = table(tmp_path / "t.csv", "rte,rte_n", "0.5,0.55", "0.6,0.65")
    assert imported(tmp_path / "out", file) == {"rte": [0.5, 0.6]}
    assert column(tmp_path / "out", "items") == ["0", "0"]
    assert "rte_n (not whole, so no numbers of items)" in capsys.readouterr().out


SEEDS = "s,m,t,seed,web,rte\n" + "".join(
    f"1B,m{m},{t},{seed},{'a' if m % 2 else 'b'},0.{1 + m}{seed}\n"
    for m in range(4)
    for t in ("pt", "sft")
    for seed in (0, 1)
)


def test_runs_of_one_mixture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "t.csv"
    file.write_text(SEEDS)
    said = refused(capsys, tmp_path / "out", file)
    assert "lines 2 and 3 are both scale 1B, mixture m0, stage pt: choose rows with --where" in said
    assert "name the column that tells runs of one mixture apart: --replicate" in said
    imported(tmp_path / "out", file, "--replicate", "seed")
    assert column(tmp_path / "out", "replicate") == ["0", "1"] * 8
    assert column(tmp_path / "out", "checkpoint")[:2] == ["1B-m0-pt-seed0", "1B-m0-pt-seed1"]
    assert column(tmp_path / "out", "mixture") == [f"m{m}" for m in range(4) for _ in range(4)]
    said = refused(capsys, tmp_path / "no", file, "--replicate", "web")
    assert "lines 2 and 3 are both scale 1B, mixture m0, stage pt, replicate b" in said
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    for path in (one, two):
        path.write_text("s,m,t,rte\n1B,a,pt,0.5\n")
    imported(tmp_path / "two", f"{one}@replicate=1", f"{two}@replicate=2")
    assert column(tmp_path / "two", "replicate") == ["1", "2"]


def test_a_factor_of_the_mixtures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from evalengine.store import sealed

    file = tmp_path / "t.csv"
    file.write_text(SEEDS)
    given = ("--replicate", "seed", "--block", "web")
    imported(tmp_path / "out", file, *given)
    metadata = sealed.read(tmp_path / "out" / "results.arrow").schema.metadata
    assert json.loads(metadata[b"blocks"]) == {"web": {"m0": "b", "m1": "a", "m2": "b", "m3": "a"}}
    file.write_text(SEEDS.replace("m2,sft,1,b", "m2,sft,1,c"))
    said = refused(capsys, tmp_path / "no", file, *given)
    assert "mixture m2 has the web c, and b elsewhere: a --block column has one label per mixture" in said
    file.write_text(SEEDS.replace("m2,sft,1,b", "m2,sft,1,"))
    assert "t.csv, line 13 says no web: add it" in refused(capsys, tmp_path / "no", file, *given)


def test_names_longer_than_a_checkpoints(tmp_path: Path) -> None:
    """Each of a mixture and a run may have 200 bytes; the name that is made of both stays one of its own."""
    lines = [f"1B,{'é' * 90}{m},pt,{'y' * 150}{seed},0.{m}{seed}" for m in (1, 2) for seed in (3, 4)]
    file = tmp_path / "t.csv"
    file.write_text("\n".join(["s,m,t,run,rte", *lines]))
    imported(tmp_path / "out", file, "--replicate", "run")
    found = column(tmp_path / "out", "checkpoint")
    assert len(set(found)) == 4 and all(len(name.encode()) <= 200 for name in found)


def test_explain_says_that_imported_results_have_no_items(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text("data,step,piqa\na,pt,0.5\na,sft,0.6\n")
    given = ["import", str(tmp_path / "t.csv"), "--mixture", "data", "--stage", "step"]
    assert main([*given, "--out", str(tmp_path / "imported")]) == 0
    assert main(["explain", str(tmp_path / "imported"), "--out", str(tmp_path / "out")]) == 1
    assert "holds imported results, which say nothing of single items" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("one", "other"), [("1", "1.0"), ("a", "A"), ("\u00e9", "e\u0301"), ("1e3", "1000")])
def test_names_that_may_be_one_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], one: str, other: str
) -> None:
    """As where one half of a table was written with a missing value in it, which makes its integers floats."""
    path = tmp_path / "t.csv"
    path.write_text(f"m,t,rte\n{one},pt,0.5\n{other},pt,0.6\nb,pt,0.7\n", encoding="utf-8")
    columns = ["--mixture", "m", "--stage", "t", "--out", str(tmp_path / "out"), "--json"]
    assert main(["import", str(path), *columns]) == 0
    notes = [note for note in json.loads(capsys.readouterr().out)["notes"] if "if they are one" in note]
    assert notes == [
        f"mixtures {one!a} and {other!a} count as different: if they are one, write it in one way"
    ]


def test_losses_with_and_without_a_percent_sign_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("m,t,rte\na,pt,2.5%\nb,pt,2.4\n")
    columns = ["--mixture", "m", "--stage", "t", "--loss", "--out", str(tmp_path / "out")]
    assert main(["import", str(path), *columns]) == 1
    assert "rte has values with and without a percent sign" in " ".join(capsys.readouterr().err.split())
