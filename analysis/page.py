"""Parts of the report's page: tables, and the panels of figures as inline SVG. All text is escaped."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from html import escape
from typing import Any

from evalengine.analysis.drawing import svg
from evalengine.analysis.figure import Figure, Intervals, Mark, Scatters, Table, by, panels
from evalengine.analysis.results import Results, with_interval
from evalengine.analysis.tables import Row


def p_value(p: float) -> str:
    """A p or q as it is printed."""
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def interval_words(results: Results) -> str:
    """Which intervals are shown."""
    method = results.method
    kinds = {
        "auto": "BCa bootstrap for one r, on Student's t for coherence, jackknife for differences and on Fisher's z for means",
        "bca": "BCa bootstrap",
        "bca-t": "BCa bootstrap on Student's t",
        "fisher": "Fisher's z",
        "jackknife": "jackknife t",
        "jackknife-z": "jackknife t on Fisher's z",
    }
    if method["block"]:
        within = "jackknife within blocks, on Fisher's z for r and means"
        kinds["auto"] = f"{within}; BCa on Student's t for coherence"
    kind = kinds.get(method["interval"], f"{method['interval']} bootstrap")
    return f"{method['level']:.0%} intervals: {kind}, {method['resamples']:,} resamples"


def section(title: str, words: str, *parts: str) -> str:
    """A section under its title, a text, and a paragraph of small print (HTML) before its parts."""
    return f"<h2>{escape(title)}</h2>{hint(words)}{''.join(parts)}"


def hint(html: str) -> str:
    """A paragraph of small print."""
    return f'<p class="hint">{html}</p>'


def details(title: str, html: str, opened: bool = False) -> str:
    """What stands folded under its title, a text."""
    return f"<details{' open' * opened}><summary>{escape(title)}</summary>{html}</details>"


def show(shown: Table) -> str:
    """A table of escaped texts. Where the screen is too narrow it scrolls sideways, or its rows become lists (`stacked`)."""

    def cell(text: str | Mark, column: str) -> str:
        kind = f' class="{escape(text.kind)}"' if isinstance(text, Mark) else ""
        label = f' data-label="{escape(column)}"' if shown.stacked else ""
        return f"<td{kind}{label}>{escape(text.text if isinstance(text, Mark) else text)}</td>"

    def line(row: Sequence[str | Mark]) -> str:
        return f"<tr>{''.join(map(cell, row, shown.columns))}</tr>"

    title = f' aria-label="{escape(shown.title)}"' if shown.title else ""
    head = "".join(f"<th>{escape(column)}</th>" for column in shown.columns)
    bodies = "".join(f"<tbody>{''.join(map(line, block))}</tbody>" for block in shown.blocks if block)
    kinds = f"texts{shown.texts}" + " prose" * shown.prose
    return (
        f'<div class="{"stacked" if shown.stacked else "scroll"}"><table class="{kinds}"{title}>'
        f"<thead><tr>{head}</tr></thead>{bodies}</table></div>"
    )


def numbers(title: str, rows: Sequence[Row], scales: Sequence[str], about: Sequence[str]) -> Table:
    """Estimates with their intervals: a line for each quantity and each value of the fields `about`, a column for each scale."""
    blocks: list[list[list[str]]] = []
    for quantity, mine in by(rows, lambda row: row.quantity).items():
        blocks.append([])
        for what, line in by(mine, operator.attrgetter(*about)).items():
            at = {row.scale: row for row in line}
            blocks[-1].append([quantity, *what, *(with_interval(at.get(scale)) for scale in scales)])
    return Table(title, ["quantity", *about, *scales], blocks, texts=1 + len(about))


def grid(results: Results, figure: Figure) -> str:
    """The panels of a figure side by side, or one below the other on a phone and where they are wide."""
    out = []
    for title, panel in panels(figure).items():
        drawing = f'<div class="scroll">{svg(results, panel, title)}</div>'
        out.append(f"<div><h3>{escape(title)}</h3>{drawing}{_notes(panel)}</div>")
    kind = "grid wide" if isinstance(figure, Scatters) else "grid"
    return f'<div class="{kind}">{"".join(out)}</div>'


def _notes(figure: Figure) -> str:
    """What the stars in a figure of intervals stand for."""
    if not isinstance(figure, Intervals):
        return ""
    groups: dict[str, set[str]] = {}
    for row in figure.rows:
        groups.setdefault(figure.label(row), set()).add(figure.group(row))

    def name(row: Any) -> str:
        label = figure.label(row)
        return label if len(groups[label]) == 1 else f"{figure.group(row)}, {label}"

    every = set(map(name, figure.rows))
    lines = []
    for note, rows in by([row for row in figure.rows if row.note], lambda row: row.note).items():
        names = dict.fromkeys(map(name, rows))
        text = note if len(names) == len(every) else f"{', '.join(names)}: {note}"
        lines.append(f'<p class="hint">* {escape(text)}</p>')
    return "".join(lines)
