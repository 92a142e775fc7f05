"""LaTeX tables: what TeX would stumble over is checked by a small reader of `tabular`, the numbers against the tables."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import planted
import pytest

from evalengine.analysis.figure import Mark, Table
from evalengine.analysis.report.latex import escape, tabular
from evalengine.analysis.report.report import page, write_latex
from evalengine.analysis.results import load_results
from evalengine.cli import main

PRINTED = {  # what our escapes print
    r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\ldots{}": "…",
    "$<$": "<", "$>$": ">", "$|$": "|", "$-$": "−", "--": "–", "{[}": "[", "{]}": "]", "{*}": "*", "{-}": "-",
    "{`}": "`", "{'}": "'", **{"\\" + c: c for c in "#$%&_{}"},
}  # fmt: skip
TOKEN = re.compile("|".join(map(re.escape, sorted(PRINTED, key=len, reverse=True))) + "|.", re.S)


def printed(text: str) -> str:
    """What LaTeX prints of a cell; a character that it would act on fails."""
    text = re.sub(r"\\emph\{(.*)\}$", r"\1", text.strip())
    out = ""
    for token in TOKEN.findall(text):
        assert token in PRINTED or token not in "\\#$%&_{}~^<>|[]*", (token, text)
        out += PRINTED.get(token, token)
    return out


def read(text: str) -> tuple[list[str], list[list[str]]]:
    """The columns' heads and the rows of a tabular; fails where TeX would."""
    comment, begin, *body, end = text.rstrip("\n").split("\n")
    assert comment.startswith("% ") and end == r"\end{tabular}"
    found = re.fullmatch(r"\\begin\{tabular\}\{((?:[lr]|p\{0\.4\\linewidth\})+)\}", begin)
    assert found is not None
    count = len(re.findall(r"[lr]|p\{[^}]*\}", found[1].replace(r"\linewidth", "")))
    assert body[0] == r"\toprule" and body[2] == r"\midrule" and body[-1] == r"\bottomrule"
    rows = []
    for line in body[1:-1]:
        if line == r"\midrule":
            continue
        assert line.endswith(r" \\")
        cells = re.split(r"(?<!\\)&", line[: -len(r" \\")])
        assert len(cells) == count, line
        rows.append([printed(cell) for cell in cells])
    assert not any(a == b == r"\midrule" for a, b in itertools.pairwise(body))
    return rows[0], rows[1:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("latex")
    planted.write_study(root / "scores", items=60)
    run = ["correlate", str(root / "scores"), "--out", str(root / "analysis"), "--bootstrap", "300", "--json"]
    assert main(run) == 0
    return root / "analysis"


def test_every_table_of_the_report_is_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["report", str(folder), "--out", str(tmp_path), "--figures", "none", "--latex", "--json"]
    assert main(run) == 0
    paths = list(map(Path, json.loads(capsys.readouterr().out)["latex"]))
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "tables").glob("[!.]*")}
    kinds = ("transfer_accuracy_1B", "coherence", "alignment", "reliability", "noise", "decisions")
    for name in (*kinds, "verdicts_accuracy", "accuracy_240M", "benchmarks"):
        heads, rows = read((tmp_path / "tables" / f"{name}.tex").read_text())
        assert rows and len(set(heads)) == len(heads), name
    for path in paths:
        read(path.read_text())


def test_decisions_by_accuracy_and_by_loss_have_tables_of_their_own(tmp_path: Path) -> None:
    lines = ["s,m,t,piqa.acc,piqa,c4"]
    for m in range(5):
        for t, k in (("pt", 3), ("sft", 2)):
            lines.append(f"1B,m{m},{t},{m * k % 7 / 10},{m * k % 5 / 1000},{m * k % 6 / 1000}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    columns = ["--scale", "s", "--mixture", "m", "--stage", "t", "--loss", "--benchmarks", "piqa*,c4"]
    assert main(["import", str(tmp_path / "t.csv"), "--out", str(tmp_path / "in"), *columns]) == 0
    assert main(["correlate", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    results = load_results(tmp_path / "out")
    write_latex(tmp_path / "out", tmp_path / "tables")
    for quantity, scale in (("accuracy", 100.0), ("loss", 1.0)):
        heads, lines = read((tmp_path / "tables" / f"decisions_{quantity}.tex").read_text())
        (row,) = results.rows(
            "decisions", quantity=quantity, category="Commonsense", name="mean of 1", other="pairwise loss"
        )
        (line,) = (line for line in lines if line[0] == "Commonsense (mean of 1)")
        shown = line[heads.index("lost by choosing of two" + " (points)" * (quantity == "accuracy"))]
        assert float(shown.split(" ")[0]) == pytest.approx(scale * row.estimate, rel=0.01)
        every = [line[0] for line in lines if line[0].startswith("All")]
        assert "last two" not in page(results)  # of choosing the best, which takes items
        assert every == [{"accuracy": "All (mean of 1 of 2)", "loss": "All (mean of 2)"}[quantity]]


def test_numbers_are_those_of_the_tables(folder: Path, tmp_path: Path) -> None:
    write_latex(folder, tmp_path)
    results = load_results(folder)
    heads, lines = read((tmp_path / "transfer_accuracy_1B.tex").read_text())
    shown = {line[0]: dict(zip(heads, line, strict=True)) for line in lines}
    for row in results.rows("transfer", protocol="transfer", quantity="accuracy", scale="1B"):
        mine = shown[row.name]
        numbers = re.findall(r"[+−]\d\.\d\d", mine["r"])
        found = [float(number.replace("−", "-")) for number in numbers]
        assert found == pytest.approx([row.estimate, row.low, row.high], abs=0.0051)
        assert mine["n"] == "9" and mine["items"] == "60"
        assert mine["p"] == ("< 0.001" if row.p < 0.001 else f"{row.p:.3f}")
        ceiling = results.rows("reliability", other="ceiling", quantity="accuracy", scale="1B", name=row.name)
        assert mine["ceiling"] == (
            f"{ceiling[0].estimate:.2f}" if ceiling[0].estimate == ceiling[0].estimate else ""
        )
    heads, lines = read((tmp_path / "accuracy_1B.tex").read_text())
    value = {
        (c["benchmark"], c["stage"], c["mixture"]): c["accuracy"] for c in results.cells if c["scale"] == "1B"
    }
    name = ""
    for line in lines:
        name = line[0] or name
        for mixture, text in zip(planted.MIXTURES, line[-9:], strict=True):
            accuracy = value[name, line[1], mixture]
            assert text == f"{100 * accuracy:.1f}" + "*" * (accuracy < results.chance[name])


@pytest.mark.parametrize(
    "name",
    [
        "a_b",
        "50% & more",
        "$x$",
        "{a}",
        "C:\\dir",
        "~^",
        "<tag>",
        "[h]",
        "* star",
        "a--b",
        "?`",
        "#1",
        "two\nlines",
    ],
)
def test_names_are_printed_as_they_are(name: str) -> None:
    table = Table(name, ["name", "r"], [[[name, "−0.50"], [Mark(name, "below"), "–"]]])
    _, rows = read(tabular(table))
    shown = "two\\nlines" if "\n" in name else name
    assert rows == [[shown, "−0.50"], [shown, "–"]]
    assert "\n" not in escape(name)
