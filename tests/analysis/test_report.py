"""The report in a real browser: no errors, no requests, nothing cut off at two widths."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import chromium
import numpy as np
import planted
import pytest
from test_protocols import make

from evalengine.analysis.data.mixtures import from_sources
from evalengine.analysis.data.panel import load_panel
from evalengine.analysis.figure import IntervalPlot
from evalengine.analysis.report.drawing import svg
from evalengine.analysis.report.report import undefined_words, write_figures, write_latex, write_report
from evalengine.analysis.report.style import styled
from evalengine.analysis.report.summary import summarise
from evalengine.analysis.results import OTHERS, load_results
from evalengine.analysis.study import CorrelateOptions, analyse
from evalengine.analysis.together import checksums
from evalengine.benchmarks.catalogue import BENCHMARKS
from evalengine.cli import main
from evalengine.errors import UserError

CATEGORIES = {name: benchmark.category for name, benchmark in BENCHMARKS.items()}
SHARES = {m: {f"web_{m[1]}": 0.7 - 0.2 * int(m[3]), "code": 0.2 + 0.1 * int(m[3]), "books": 0.1 + 0.1 * int(m[3])}
          for m in planted.MIXTURES}  # fmt: skip
needs_chromium = pytest.mark.skipif(
    chromium.find() is None, reason="needs Chromium: apt-get install chromium"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An analysis of 20 benchmarks with everything in it, and its report."""
    rng = np.random.default_rng(1)
    truth = {name: float(rng.uniform(-0.2, 0.98)) for name in CATEGORIES}
    return reported(tmp_path_factory.mktemp("report"), truth, CATEGORIES)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of five benchmarks: as many kinds of tables and figures, which are drawn much sooner."""
    return reported(tmp_path_factory.mktemp("small"), None, planted.BENCHMARKS)


def reported(root: Path, truth: dict[str, float] | None, categories: dict[str, str]) -> Path:
    planted.write_study(root / "scores", truth, items=120, categories=categories)
    analysis = analyse(load_panel(root / "scores"), CorrelateOptions(), from_sources(SHARES))
    analysis.write(root / "analysis")
    write_report(root / "analysis", root / "analysis")
    return root / "analysis"


@pytest.fixture(scope="module")
def tab() -> Iterator[chromium.Page]:
    with chromium.browser() as opened:
        yield opened


CLIPPED = """(() => {
  document.querySelectorAll("details").forEach((d) => { d.open = true; });
  const out = [], page = document.documentElement.clientWidth;
  for (const svg of document.querySelectorAll("svg")) {
    const box = svg.getBoundingClientRect(), before = [];
    for (const text of svg.querySelectorAll("text")) {
      const t = text.getBoundingClientRect();
      if (t.width === 0) out.push("invisible: " + text.textContent);
      if (t.left < box.left - 1 || t.right > box.right + 1 || t.top < box.top - 1 || t.bottom > box.bottom + 1)
        out.push("outside its drawing: " + text.textContent);
      // A line of text is higher than its letters, so lines may meet.
      for (const [o, other] of before)
        if (t.left < o.right - 1 && o.left < t.right - 1 && t.top < o.bottom - 5 && o.top < t.bottom - 5)
          out.push("overlap: " + text.textContent + " and " + other);
      before.push([t, text.textContent]);
    }
  }
  for (const node of document.querySelectorAll("h1,h2,h3,p,li,td,th,summary")) {
    const box = node.getBoundingClientRect();
    if (!box.width || node.closest(".scroll")) continue;
    if (box.right > page + 1 || box.left < -1) out.push("off the page: " + node.textContent.slice(0, 40));
    if (node.scrollWidth > node.clientWidth + 1 && getComputedStyle(node).display !== "inline")
      out.push("cut: " + node.textContent.slice(0, 40));
  }
  if (document.documentElement.scrollWidth > page + 1) out.push("the page scrolls sideways");
  return [...new Set(out)].slice(0, 10);
})()"""


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_off_and_nothing_is_loaded(
    folder: Path, tab: chromium.Page, width: int, dark: bool
) -> None:
    tab.open(folder / "report.html", width, dark=dark)
    assert tab.run(CLIPPED) == []
    assert tab.problems() == []
    assert tab.requests() == []
    background = tab.run("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is not dark
    ink = tab.run("getComputedStyle(document.body).color")
    assert tab.run("getComputedStyle(document.querySelector('svg text[style*=ink]')).fill") == ink


@needs_chromium
@pytest.mark.parametrize(
    ("style", "noticed"),
    [
        ("li { white-space: nowrap; }", "cut"),
        ("h2 { width: 1500px; }", "off the page|sideways"),
        ("svg text { font-size: 19px !important; }", "outside its drawing"),
        ("svg text { transform: none !important; }", "overlap"),
    ],
)
def test_the_check_notices_what_it_is_for(folder: Path, tab: chromium.Page, style: str, noticed: str) -> None:
    tab.open(folder / "report.html", 390)
    tab.run(f"document.head.insertAdjacentHTML('beforeend', '<style>{style}</style>')")
    assert re.search(noticed, " ".join(tab.run(CLIPPED)))


@needs_chromium
def test_names_from_outside_are_escaped(small: Path, tab: chromium.Page, tmp_path: Path) -> None:
    evil = '<img src=x onerror="window.owned=1">'
    text = {path.name: path.read_text() for path in small.glob("*.json")}
    for name, content in text.items():
        swapped = content.replace('"hellaswag"', json.dumps(evil)).replace(
            '"V1P0"', json.dumps("</script><b>")
        )
        (tmp_path / name).write_text(swapped)
    method = json.loads((tmp_path / "analysis.json").read_text())
    del method["checksums"]
    method["checksums"] = checksums(tmp_path, [*method["tables"], *OTHERS], method)
    (tmp_path / "analysis.json").write_text(json.dumps(method))
    tab.open(write_report(tmp_path, tmp_path), 1280)
    assert tab.run("window.owned") is None and tab.problems() == [] and tab.requests() == []
    assert tab.run("document.querySelectorAll('img').length") == 0
    assert evil in tab.run("document.body.innerText")


def test_every_estimate_of_the_page_has_its_interval(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    html = re.sub(r"<style.*?</style>", "", html, flags=re.S)
    numbers = re.findall(r"<text [^>]*>([^<]*\[[^<]*|–)</text>", html)
    assert len(numbers) > 200
    assert all(re.fullmatch(r"–|[+−]\d\.\d\d \[[+−]\d\.\d\d+, [+−]\d\.\d\d+\]", text) for text in numbers)
    assert not re.search(r"\bnan\b|None|\binf\b", html)


def test_a_matrix_shows_every_r_bold_where_its_interval_excludes_0(folder: Path) -> None:
    results = load_results(folder)
    html = (folder / "report.html").read_text()
    drawing = re.findall(r'<svg role="img" aria-label="accuracy, 1B".*?</svg>', html, flags=re.S)[0]
    cells = re.findall(r'<text style="([^"]*)"[^>]*>(−?[01]?\.\d\d)</text>', drawing)
    rows = results.rows("matrices", protocol="matrix_cross", quantity="accuracy", scale="1B")
    assert len(rows) == 400
    assert [float(text.replace("−", "-")) for _, text in cells] == [round(row.estimate, 2) for row in rows]
    assert ["700" in style for style, _ in cells] == [row.low > 0 or row.high < 0 for row in rows]


def test_the_page_holds_all_drawings_and_no_script(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    assert "<script" not in html and "script-src" not in html
    assert html.count('<svg role="img"') > 2 * 2 * 3 + 30
    assert "http://" not in html and "https://" not in html


def test_names_are_not_taken_for_formulas(folder: Path) -> None:
    results = load_results(folder)
    rows = [row._replace(name=r"$\frac$") for row in results.rows("coherence")]
    with styled():
        assert r"$\frac$" in svg(results.method, IntervalPlot(rows, lambda row: row.name), "coherence")


def test_n_is_that_of_the_estimates_shown(folder: Path) -> None:
    """A category of one benchmark has no coherence, so its n of 0 is no estimate's."""
    results = load_results(folder)
    rows = results.rows("coherence", protocol="coherence")
    lost = rows[0]._replace(estimate=math.nan, low=math.nan, high=math.nan, n=0)
    with styled():
        drawn = svg(
            results.method, IntervalPlot([lost, *rows[1:]], lambda row: f"{row.category}, {row.name}"), ""
        )
    assert "n = 9" in drawn and "n = 0" not in drawn


def test_summary_claims_only_what_intervals_carry(folder: Path) -> None:
    results = load_results(folder)
    found = summarise(results)
    text = " ".join(found["supported"])
    for row in results.rows("transfer", protocol="category_transfer", category="All"):
        if row.scale not in results.scales:
            continue
        claim = any(
            row.scale in line.split(",")[0] and f"mixtures with higher {row.quantity} at" in line
            for line in found["supported"]
        )
        assert claim == (row.low > 0), (row, text)
    assert any("There are 9 mixtures" in line for line in found["caution"])
    verdicts = {(v["quantity"], v["benchmark"]): v["verdict"] for v in results.verdicts}
    for (quantity, benchmark), verdict in verdicts.items():
        rows = results.rows("transfer", protocol="transfer", quantity=quantity, name=benchmark)
        sure = [r.low > 0 and r.q < 0.05 for r in rows if r.scale in results.scales]
        assert (verdict == "reliable") == all(sure)


def test_the_scale_of_fewest_mixtures_is_the_one_to_be_warned_of(tmp_path: Path) -> None:
    """22 mixtures at 240M would need no warning, 5 at 1B do; and neither number is said of the other scale."""
    names = [f"m{k}" for k in range(22)]
    skip = [f"1B-{name}-{stage}" for name in names[5:] for stage in ("pt", "sft")]
    planted.write_study(tmp_path / "s", {"rte": 0.5, "piqa": 0.5}, items=40, mixtures=names, skip=skip)
    analyse(load_panel(tmp_path / "s"), CorrelateOptions(bootstrap=300)).write(tmp_path)
    found = summarise(load_results(tmp_path))
    assert any(line.startswith("There are 5 mixtures at 1B. ") for line in found["caution"])
    page = write_report(tmp_path, tmp_path).read_text()
    assert "with intervals over mixtures, n = 5 to 22." in page


def test_figures(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_figures(small, tmp_path)
    names = {path.stem for path in written}
    expected = {
        "category_transfer",
        "benchmark_transfer",
        "matrix_cross",
        "coherence",
        "alignment",
        "reliability",
    }
    assert expected | {"mixture_effect"} <= names
    for path in written:
        start = path.read_bytes()[:8]
        assert start.startswith(b"\x89PNG\r\n\x1a\n" if path.suffix == ".png" else b"%PDF-")
        assert path.stat().st_size > 3000
    with pytest.raises(UserError, match="choose from png, pdf, svg"):
        write_figures(small, tmp_path, ["gif"])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for write in (write_figures, write_report):
        with pytest.raises(UserError, match=r"evalengine\[report\]"):
            write(small, tmp_path)


def test_a_report_leaves_nothing_of_an_earlier_one(small: Path, tmp_path: Path) -> None:
    """The first knows what the mixtures are made of, and so has more figures; files of others stay."""
    drawn, tables = tmp_path / "figures", tmp_path / "tables"
    drawn.mkdir()
    (drawn / "mine.png").write_bytes(b"")
    write_figures(small, drawn, ["svg"])
    tables.mkdir()
    (tables / "mine.tex").touch()
    write_latex(small, tables)
    assert (drawn / "mixture_effect.svg").is_file() and (tables / "accuracy_240M.tex").is_file()
    fewer = analyse(load_panel(small.parent / "scores"), CorrelateOptions("300"))
    fewer._replace(method={**fewer.method, "scales": ["1B"]}).write(tmp_path / "fewer")
    figures = write_figures(tmp_path / "fewer", drawn, ["png"])
    assert {path.name for path in drawn.glob("[!.]*")} == {path.name for path in figures} | {"mine.png"}
    written = write_latex(tmp_path / "fewer", tables)
    assert {path.name for path in tables.glob("[!.]*")} == {path.name for path in written} | {"mine.tex"}
    gone = {"mixture_effect.png", "accuracy_240M.tex"}
    assert len(figures) > 9 < len(written) and not gone & {path.name for path in (*figures, *written)}
    (tables / ".written").write_text("../fewer/analysis.json\n..\nmine.tex/x")
    write_latex(tmp_path / "fewer", tables)
    assert (tmp_path / "fewer" / "analysis.json").is_file()


def test_command(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(small), "--out", str(tmp_path), "--figures", "none", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert Path(said["report"]).read_text() == (small / "report.html").read_text()
    assert main(["report", str(tmp_path / "nothing")]) == 1
    assert "no score store" in capsys.readouterr().err
    (tmp_path / "analysis.json").write_text("{")
    assert main(["report", str(tmp_path)]) == 1
    assert "damaged" in capsys.readouterr().err


def test_undefined_resamples_are_said_once_and_each_row_has_its_share(tmp_path: Path) -> None:
    """By hand: r has none where all nine draws are of the five mixtures, or of the two, that are alike."""
    panel = make(seed=4)
    panel.values["accuracy"][1, 0, :, 0] = [0.6] * 2 + [0.7, 0.8] + [0.5] * 5
    analysis = analyse(panel, CorrelateOptions())
    (row,) = [
        r
        for r in analysis.tables["transfer"]
        if (r.name, r.scale, r.quantity, r.contrast) == ("a1", "1B", "accuracy", "")
    ]
    assert row.degenerate == pytest.approx((5 / 9) ** 9 + (2 / 9) ** 9 + 2 * (1 / 9) ** 9) and not row.note
    notes = [r.note for rows in analysis.tables.values() for r in rows if math.isfinite(r.estimate)]
    assert not any("of the resamples" in note for note in notes)
    analysis.write(tmp_path)
    html = write_report(tmp_path, tmp_path).read_text()
    share = max(r.degenerate for rows in analysis.tables.values() for r in rows if math.isfinite(r.estimate))
    assert html.count("statistics are undefined in 0.1% to") == 1
    assert f"0.1% to {share:.1%} of the resamples, which are left out for them (column degenerate" in html
    assert undefined_words([row._replace(degenerate=0.0)]) == ""


def test_report_of_undefined_values(tmp_path: Path) -> None:
    """A constant column, a category with one benchmark, one scale: dashes and reasons, no NaN."""
    planted.write_study(
        tmp_path / "s", {"rte": 0.5, "cb": 0.5}, items=40, scales=["1B"], categories=CATEGORIES, choices=1
    )
    analysis = analyse(load_panel(tmp_path / "s"), CorrelateOptions())
    assert all(math.isnan(r.estimate) for r in analysis.tables["transfer"])
    single = [r for r in analysis.tables["transfer"] if r.protocol == "transfer" and not r.contrast]
    assert single and all("no spread" in r.note for r in single)
    analysis.write(tmp_path / "a")
    html = write_report(tmp_path / "a", tmp_path / "a").read_text()
    assert "no correlation is defined" in html
