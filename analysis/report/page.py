"""The parts of the report as HTML: texts, tables, and the panels of figures as inline SVG. All text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from evalengine.analysis.figure import (
    Figure,
    File,
    Folded,
    Heading,
    IntervalPlot,
    Mark,
    Part,
    Scatters,
    Table,
    panels,
)
from evalengine.analysis.report.drawing import svg
from evalengine.analysis.results import Method


def html(parts: Iterable[Part], method: Method) -> str:
    """The parts, one below the other. method: how the study was made that they are about."""
    return "".join(_html(part, method) for part in parts)


def _html(part: Part, method: Method) -> str:
    match part:
        case str():
            return f'<p class="hint">{escape(part)}</p>' if part else ""
        case Heading():
            return f"<h{part.level}>{escape(part.text)}</h{part.level}>"
        case Folded():
            opened = " open" * part.opened
            return f"<details{opened}><summary>{escape(part.title)}</summary>{html(part.parts, method)}</details>"
        case File():
            return _html(part.of, method) if part.shown else ""
        case Table():
            return show(part)
    return grid(method, part)


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


def grid(method: Method, figure: Figure) -> str:
    """The panels of a figure side by side, or one below the other on a phone and where they are wide."""
    out = []
    for title, panel in panels(figure).items():
        drawing = f'<div class="scroll">{svg(method, panel, title)}</div>'
        notes = panel.notes if isinstance(panel, IntervalPlot) else []
        below = "".join(f'<p class="hint">{escape(note)}</p>' for note in notes)
        out.append(f"<div><h4>{escape(title)}</h4>{drawing}{below}</div>")
    kind = "grid wide" if isinstance(figure, Scatters) else "grid"
    return f'<div class="{kind}">{"".join(out)}</div>'
