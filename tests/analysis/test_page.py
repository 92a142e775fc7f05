"""What the page holds, read with html.parser: structure, and numbers against the tables."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from pathlib import Path

import planted
import pytest

from evalengine.analysis.data.panel import load_panel
from evalengine.analysis.figure import IntervalPlot, Mark, Table, files, panels
from evalengine.analysis.protocols import noise
from evalengine.analysis.protocols.registry import PROTOCOLS
from evalengine.analysis.protocols.transfer_table import words
from evalengine.analysis.report import page
from evalengine.analysis.report.drawing import draw
from evalengine.analysis.report.report import page as render
from evalengine.analysis.report.style import styled
from evalengine.analysis.results import Results, load_results, p_value, with_interval
from evalengine.analysis.study import CorrelateOptions, analyse

VOID = {"meta", "link", "br", "use", "path"}


class Reader(HTMLParser):
    """Tables by their label: heads, rows, and the attributes of the cells; fails where tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.cells: dict[str, list[dict[str, str | None]]] = {}
        self.wrapped: dict[str, str | None] = {}  # the class of the element around
        self.headings: list[str] = []
        self._at: str | None = None
        self.feed(html)
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if tag == "table":
            self._at = known.get("aria-label") or f"table {len(self.tables)}"
            self.tables[self._at], self.cells[self._at] = [], []
            self.wrapped[self._at] = self.stack[-1][1].get("class")
        if self._at and tag == "tr":
            self.tables[self._at].append([])
        if self._at and tag in ("td", "th"):
            self.tables[self._at][-1].append("")
        if self._at and tag == "td":
            self.cells[self._at].append(known)
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")
        if tag not in VOID:
            self.stack.append((tag, known))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.stack.pop()[0] == tag
        if tag == "table":
            self._at = None

    def handle_data(self, data: str) -> None:
        inside = self.stack[-1][0] if self.stack else ""
        if self._at and inside in ("td", "th"):
            self.tables[self._at][-1][-1] += data
        if inside in ("h1", "h2", "h3"):
            self.headings[-1] += data


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two scales, one benchmark without spread at the smaller; chance is known for some."""
    root = tmp_path_factory.mktemp("page")
    planted.write_study(root / "scores", items=80, spread=1.0)
    panel = load_panel(root / "scores")
    panel.values["accuracy"][0, 0, :, 0] = 0.25
    analyse(panel, CorrelateOptions("300")).write(root / "analysis")
    found = load_results(root / "analysis")
    return found._replace(method={**found.method, "chance": [0.25, None, 0.4, 0.5, 0.99]})


@pytest.fixture(scope="module")
def read(results: Results) -> Reader:
    return Reader(render(results))


def test_the_noise_comes_first_and_its_numbers_are_those_of_the_tables(
    results: Results, read: Reader
) -> None:
    assert read.headings[1] == "What the noise allows one to say"
    _, *rows = read.tables["what the noise allows one to say"]
    assert [row[0] for row in rows] == [
        f"{q}, {s}" for q in ("accuracy", "confidence") for s in ("240M", "1B")
    ]
    for row in rows:
        quantity, scale = row[0].split(", ")
        at = {"quantity": quantity, "scale": scale}
        found = results.rows("reliability", protocol="reliability", **at)
        sure = [
            all(
                r.low > 0
                for r in found
                if r.name == name and r.other in ("reliability pt", "reliability sft")
            )
            for name in results.method["benchmarks"]
        ]
        high = [r.estimate >= 0.7 for r in found if r.other == "ceiling"]
        assert row[1:3] == [f"{sum(sure)} of 5", f"{sum(high)} of 5"]
        means = [
            results.rows(table, category="All", protocol=protocol, **at)[0]
            for table, protocol in (
                ("transfer", "category_transfer"),
                ("reliability", "category_reliability"),
            )
        ]
        assert row[3:] == [with_interval(mean) for mean in means]
    assert "5 of 5" in [row[2] for row in rows]


def test_items_chance_and_every_accuracy_are_shown(results: Results, read: Reader) -> None:
    heads, *rows = read.tables["accuracy, means over mixtures"]
    assert heads == [
        "benchmark",
        "category",
        "score",
        "items",
        "chance",
        "240M pt",
        "240M sft",
        "1B pt",
        "1B sft",
    ]
    assert [row[3] for row in rows] == ["80"] * 5
    assert [row[4] for row in rows] == ["25.0", "–", "40.0", "50.0", "99.0"]
    mean = {(r.name, r.scale, r.other): r.estimate for r in results.rows("calibration", quantity="accuracy")}
    for row in rows:
        for text, at in zip(row[5:], heads[5:], strict=True):
            assert float(text.rstrip("*")) == pytest.approx(100 * mean[row[0], *at.split()], abs=0.051)
    assert all(text.endswith("*") for text in rows[4][5:]) and not rows[1][5].endswith("*")
    chance = dict(zip(results.method["benchmarks"], results.method["chance"], strict=True))
    heads, *rows = read.tables["accuracy at 1B"]
    value = {
        (c["benchmark"], c["stage"], c["mixture"]): c["accuracy"] for c in results.cells if c["scale"] == "1B"
    }
    assert heads[4:] == list(planted.MIXTURES) and len(rows) == 10
    for k, row in enumerate(rows):
        benchmark = rows[k - k % 2][0]
        for mixture, text in zip(planted.MIXTURES, row[4:], strict=True):
            accuracy = value[benchmark, row[1], mixture]
            below = chance[benchmark] is not None and accuracy < chance[benchmark]
            assert text == f"{100 * accuracy:.1f}" + "*" * below


def test_verdicts_become_lists_on_a_phone(read: Reader) -> None:
    heads, *rows = read.tables["verdicts on accuracy"]
    assert heads == ["benchmark", "verdict", "p", "q", "q of the difference", "because"] and len(rows) == 5
    labels = [cell["data-label"] for cell in read.cells["verdicts on accuracy"]]
    assert labels == heads * 5
    assert read.wrapped["verdicts on accuracy"] == "stacked"


def test_no_p_is_printed_as_zero(read: Reader) -> None:
    texts = [text for rows in read.tables.values() for row in rows for text in row]
    assert "0.000" not in texts
    assert p_value(0.00099) == "< 0.001" and p_value(0.001) == "0.001" and p_value(math.nan) == "–"


def test_the_numbers_of_the_transfer_table(results: Results, read: Reader) -> None:
    heads, *rows = read.tables["transfer of accuracy"]
    assert heads == ["", "scale", "r", "n", "items", "p", "q", "ceiling", "r without noise"]
    name, seen = "", set()
    for row in rows:
        name = row[0] or name
        if row[1] == "change" or "(" in name:
            continue
        mine = results.rows("transfer", protocol="transfer", quantity="accuracy", name=name, scale=row[1])[0]
        clean = results.rows(
            "reliability", other="r without noise", quantity="accuracy", name=name, scale=row[1]
        )[0]
        assert row[2:4] == [with_interval(mine), str(mine.n)]
        assert row[4:7] == ["80", p_value(mine.p), p_value(mine.q)]
        assert row[8] == (with_interval(clean) if math.isfinite(clean.estimate) else "")
        seen.add((name, row[1]))
    assert len(seen) == 10
    assert [row[1] for row in rows].count("change") == 4  # of three categories and of all


def test_a_line_of_a_figure_has_an_interval_for_every_scale(results: Results) -> None:
    """A category whose mean is over other benchmarks at one scale than at the other is one line all the same."""
    means = results.rows("transfer", protocol="category_transfer", category="Commonsense")
    assert {row.name for row in means} == {"mean of 2", "mean of up to 2"}
    drawn = [file.of for protocol in PROTOCOLS for file in files(protocol.shown(results))]
    shown = [figure for figure in drawn if isinstance(figure, IntervalPlot) and figure.rows]
    for figure in shown:
        in_panels = []
        for panel in panels(figure).values():
            lines: dict[tuple[str, str], list[str]] = {}
            for row in panel.rows:
                lines.setdefault((figure.group(row), figure.label(row)), []).append(row.at)
            assert all(scales == results.scales for scales in lines.values())
            in_panels.append(lines)
        assert all(lines == in_panels[0] for lines in in_panels), "drawn side by side, so on the same lines"
    assert len(shown) >= 4


def test_a_note_of_one_scale_is_not_said_of_the_others(results: Results) -> None:
    rows = [
        row._replace(note="") for row in results.rows("transfer", protocol="transfer", quantity="accuracy")
    ]
    name, scale = rows[0].name, rows[0].scale
    figure = IntervalPlot([rows[0]._replace(note="few"), *rows[1:]], lambda row: row.name)
    assert f'<p class="hint">* {name} ({scale}): few</p>' in page.grid(results.method, figure)
    both = [row._replace(note="few" if row.name == name else "") for row in rows]
    assert f'<p class="hint">* {name}: few</p>' in page.grid(results.method, figure._replace(rows=both))


def test_a_file_says_what_its_stars_stand_for(results: Results) -> None:
    rows = results.rows("transfer", protocol="transfer")
    name = rows[0].name
    rows = [row._replace(note="few" * ((row.quantity, row.name) == ("accuracy", name))) for row in rows]
    figure = IntervalPlot(rows, lambda row: row.name, limit=1.2)
    scales = "; ".join(f"accuracy, {scale}" for scale in results.scales)
    assert figure.notes == [f"* {name} ({scales}): few"]
    with styled():
        files_, page_ = (
            {text.get_text() for text in draw(results.method, figure, notes=notes).texts}
            for notes in (True, False)
        )
    assert " ".join(sorted(files_ - page_)) == figure.notes[0]


def test_blank_ceilings_are_explained(results: Results) -> None:
    ceilings = results.rows("reliability", other="ceiling", quantity="accuracy")
    known = [row._replace(estimate=0.9, note="", note_kind="") for row in ceilings]
    assert noise.no_ceiling(known) == noise.no_ceiling([]) == ""
    blank = {"estimate": math.nan, "note": "as noisy", "note_kind": noise.ITEM_NOISE}
    assert noise.no_ceiling([row._replace(**blank) for row in known]) == "No ceiling: as noisy."
    often = {"estimate": math.nan, "note": "not reported: undefined in 13% of the resamples"}
    changed = [known[0]._replace(**blank), *known[1:-1], known[-1]._replace(**often)]
    one, other = known[0], known[-1]
    assert noise.no_ceiling(changed) == (
        f"No ceiling for {one.name} ({one.scale}): as noisy. No ceiling for {other.name} ({other.scale}): "
        "in more than 5% of the resamples the mixtures differ no more than item noise makes them."
    )
    tables = {**results.tables, "reliability": changed}
    assert words(results._replace(tables=tables), "accuracy").endswith(noise.no_ceiling(changed))


@pytest.mark.parametrize("evil", ["<b onclick=x>", '"><i>', "<script>", "a & b"])
def test_every_cell_is_escaped(evil: str) -> None:
    table = Table(evil, [evil, "r"], [[[evil, Mark(evil, "below")]]], stacked=True)
    found = Reader(page.show(table))
    assert found.tables == {evil: [[evil, "r"], [evil, evil]]}
    assert [cell["data-label"] for cell in found.cells[evil]] == [evil, "r"]


def test_a_page_without_items_says_so(results: Results) -> None:
    bare = results._replace(tables={**results.tables, "reliability": []})
    html = render(bare)
    assert "The numbers of items are not known" in html
    assert Reader(html).tables["transfer of accuracy"][0] == ["", "scale", "r", "n", "items", "p", "q"]
    assert "what the noise allows one to say" not in Reader(html).tables


def test_the_style_needs_no_script() -> None:
    css = (Path(page.__file__).parent / "report.css").read_text()
    assert "attr(data-label)" in css and "url(" not in css and "@import" not in css
