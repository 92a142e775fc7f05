"""Parts of the report's page: tables, and the panels of figures as inline SVG. All text is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from evalengine.analysis.drawing import svg
from evalengine.analysis.figure import Figure, Intervals, by, panels
from evalengine.analysis.results import Results


def p_value(p: float) -> str:
    """A p or q as it is printed."""
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def interval_words(results: Results) -> str:
    """Which intervals are shown."""
    method = results.method
    kinds = {
        "auto": "BCa bootstrap for one r, on Student's t for coherence and differences, jackknife on Fisher's z for means",
        "bca": "BCa bootstrap",
        "bca-t": "BCa bootstrap on Student's t",
        "fisher": "Fisher's z",
        "jackknife": "jackknife t",
        "jackknife-z": "jackknife t on Fisher's z",
    }
    if method["block"]:
        kinds["auto"] = (
            "jackknife on Fisher's z within blocks for r and means, BCa on Student's t for coherence and differences"
        )
    kind = kinds.get(method["interval"], f"{method['interval']} bootstrap")
    return f"{method['level']:.0%} intervals: {kind}, {method['resamples']:,} resamples"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], wrap: int = -1) -> str:
    """A table of escaped texts; a cell that starts with "<b " is markup of our own."""
    head = "".join(f"<th{' class=wrap' if k == wrap else ''}>{escape(c)}</th>" for k, c in enumerate(columns))
    lines = []
    for row in rows:
        cells = "".join(
            f"<td{' class=wrap' if k == wrap else ''}>{c if c.startswith('<b ') else escape(c)}</td>"
            for k, c in enumerate(row)
        )
        lines.append(f"<tr>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def grid(results: Results, figure: Figure) -> str:
    """The panels of a figure side by side, or one below the other on a phone."""
    out = []
    for title, panel in panels(figure).items():
        drawing = f'<div class="scroll">{svg(results, panel, title)}</div>'
        out.append(f"<div><h3>{escape(title)}</h3>{drawing}{_notes(panel)}</div>")
    return f'<div class="grid">{"".join(out)}</div>'


def _notes(figure: Figure) -> str:
    """What the stars in a figure of intervals stand for."""
    if not isinstance(figure, Intervals):
        return ""
    every = set(map(figure.label, figure.rows))
    lines = []
    for note, rows in by([row for row in figure.rows if row.note], lambda row: row.note).items():
        names = dict.fromkeys(map(figure.label, rows))
        text = note if len(names) == len(every) else f"{', '.join(names)}: {note}"
        lines.append(f'<p class="hint">* {escape(text)}</p>')
    return "".join(lines)
