"""Parts of the report's page: legends, tables, and figures (figure.py) as inline SVG.

Colours are CSS variables, so that light, dark and print need one drawing; a heatmap's strength is opacity over the
page. Interval rows use percentages, so that they fill any width with text of one size. All text is escaped.

Cost: strings; about 100 bytes a heatmap cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

from evalengine.analysis.figure import R_AXIS, Axis, Heatmaps, Intervals, by
from evalengine.analysis.results import Results, excludes_zero, number, with_interval
from evalengine.analysis.tables import Row

CELL = 22
CHAR = 6.4  # width of a character of an 11 px label, generous
LONGEST = 26  # characters of a label before it is shortened in the middle
LINE = 15  # height of one interval in a row


def short(text: str) -> str:
    """A label that fits; the whole is in the tooltip."""
    if len(text) <= LONGEST:
        return text
    half = (LONGEST - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def breakable(text: str) -> str:
    """Escaped text that may break after an underscore."""
    return escape(text).replace("_", "_<wbr>")


def legend(names: Sequence[str], css: str = "s") -> str:
    """The colours of scales (css "s") or stages ("t"); nothing to tell apart, no legend."""
    marks = "".join(f'<span><i class="{css}{k}"></i>{escape(name)}</span>' for k, name in enumerate(names))
    return f'<div class="legend">{marks}</div>' if len(names) > 1 else ""


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


def grid(figure: Intervals, *, capitalise: bool = True) -> str:
    """The panels of a figure side by side."""
    scales = list(dict.fromkeys(row.scale for row in figure.shown))
    out = []
    for title, rows in by(figure.shown, figure.panel).items():
        shown = title.capitalize() if capitalise else title
        out.append(f"<div><h3>{escape(shown)}</h3>")
        for heading, members in by(rows, figure.group).items():
            out.append(f'<div class="hint">{escape(heading)}</div>' if heading else "")
            out.append(block(members, figure.label, scales, figure.axis))
        out.append("</div>")
    return f'<div class="grid">{"".join(out)}</div>'


def block(
    rows: Iterable[Row], label: Callable[[Row], str], scales: Sequence[str], axis: Axis = R_AXIS
) -> str:
    """Interval rows, one per label, with an interval for each scale; the axis below."""
    lines = []
    for name, found in by(list(rows), label).items():
        at = {row.scale: row for row in found}
        lines.append(interval_row(name, [at.get(scale) for scale in scales], axis))
    return "".join(lines) + axis_row(axis) if lines else ""


def interval_row(label: str, rows: Sequence[Row | None], axis: Axis) -> str:
    """A line of a figure: label, one interval per scale (colour) with its bar from 0, and the numbers."""
    zero = axis.percent(0.0)
    marks = [f'<line class="zero" x1="{zero:.2f}%" x2="{zero:.2f}%" y1="0" y2="100%"/>']
    numbers = []
    for s, row in enumerate(rows):
        y = LINE * s + LINE / 2
        if row is None or not math.isfinite(row.estimate):
            numbers.append(f'<span class="s{s}">–</span>')
            continue
        x = axis.percent(row.estimate)
        left, width = min(zero, x), abs(x - zero)
        marks.append(f'<rect class="bar s{s}" x="{left:.2f}%" y="{y - 4}" width="{width:.2f}%" height="8"/>')
        if math.isfinite(row.low):
            a, b = axis.percent(row.low), axis.percent(row.high)
            marks.append(f'<line class="ci" x1="{a:.2f}%" x2="{b:.2f}%" y1="{y}" y2="{y}"/>')
            marks += [
                f'<line class="ci" x1="{e:.2f}%" x2="{e:.2f}%" y1="{y - 3}" y2="{y + 3}"/>'
                for e, end in ((a, row.low), (b, row.high))
                if axis.low <= end <= axis.high
            ]
        marks.append(f'<circle class="dot s{s}" cx="{x:.2f}%" cy="{y}" r="3.2"/>')
        numbers.append(f'<span class="s{s}">{with_interval(row)}</span>')
    height = LINE * max(1, len(rows))
    drawing = f'<svg class="row" width="100%" height="{height}" role="img">{"".join(marks)}</svg>'
    notes = "; ".join(dict.fromkeys(row.note for row in rows if row is not None and row.note))
    hint = f' title="{escape(notes)}"' if notes else ""
    star = '<sup class="mark">*</sup>' if notes else ""
    return (
        f'<div class="irow"{hint}><span class="label" title="{escape(label)}">'
        f'{breakable(label)}{star}</span>{drawing}<span class="nums">{"".join(numbers)}</span></div>'
    )


def axis_row(axis: Axis) -> str:
    """The scale under a block of interval rows."""
    middle = 0.5 * (axis.low + axis.high)
    ends = "".join(
        f'<text x="{axis.percent(v):.0f}%" y="11" text-anchor="{anchor}">{number(v, 1) if v else "0"}</text>'
        for v, anchor in ((axis.low, "start"), (middle, "middle"), (axis.high, "end"))
    )
    return (
        f'<div class="irow axis"><span class="label"></span><svg class="row" width="100%" height="14">{ends}</svg>'
        '<span class="nums"></span></div>'
    )


def heatmap(results: Results, rows: Sequence[Row], name: str, figure: Heatmaps) -> str:
    """A matrix of r with category blocks; a ring marks cells whose interval excludes 0.

    `name` finds the cell's data in the page's script: "quantity/scale/protocol".
    """
    row_title, column_title = escape(figure.row_title), escape(figure.column_title)
    benchmarks: list[str] = list(results.method["benchmarks"])
    categories: list[str] = list(results.method["categories"])
    index = {benchmark: b for b, benchmark in enumerate(benchmarks)}
    B = len(benchmarks)
    margin = int(CHAR * max(len(short(b)) for b in benchmarks)) + 26
    top = 24
    width, height = margin + B * CELL + 8, top + B * CELL + margin
    parts = [
        f'<svg class="heat" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'data-name="{escape(name)}" aria-label="{row_title} by {column_title}">'
    ]
    for row in rows:
        cells = [(index[row.name], index[row.other])]
        if figure.triangle:
            cells.append(cells[0][::-1])
        for i, j in cells:
            parts.append(_cell(row, i, j, margin, top))
    for b, benchmark in enumerate(benchmarks):
        y = top + b * CELL + CELL / 2
        label, whole = escape(short(benchmark)), escape(benchmark)
        parts.append(
            f'<text class="lab" x="{margin - 5}" y="{y + 4}" text-anchor="end">{label}<title>{whole}</title></text>'
        )
        x, foot = margin + b * CELL + CELL / 2 + 4, top + B * CELL + 6
        parts.append(
            f'<text class="lab" transform="translate({x},{foot}) rotate(-90)" text-anchor="end">{label}'
            f"<title>{whole}</title></text>"
        )
    parts += _blocks(categories, margin, top)
    middle = top + B * CELL / 2
    parts.append(
        f'<text class="side" transform="translate(12,{middle}) rotate(-90)" text-anchor="middle">{row_title}</text>'
    )
    centre = margin + B * CELL / 2
    parts.append(
        f'<text class="side" x="{centre}" y="{height - 5}" text-anchor="middle">{column_title}</text></svg>'
    )
    return "".join(parts)


def _cell(row: Row, i: int, j: int, margin: int, top: int) -> str:
    x, y = margin + j * CELL, top + i * CELL
    where = f'data-i="{i}" data-j="{j}"'
    if not math.isfinite(row.estimate):
        return f'<rect class="cell none" {where} x="{x}" y="{y}" width="{CELL}" height="{CELL}"/>'
    sign = "pos" if row.estimate >= 0 else "neg"
    opacity = min(1.0, abs(row.estimate))
    cell = (
        f'<rect class="cell {sign}" {where} x="{x}" y="{y}" width="{CELL}" height="{CELL}" '
        f'fill-opacity="{opacity:.2f}"/>'
    )
    if excludes_zero(row):
        cell += f'<circle class="clear" cx="{x + CELL / 2}" cy="{y + CELL / 2}" r="3"/>'
    return cell


def _blocks(categories: Sequence[str], margin: int, top: int) -> list[str]:
    """Frames around the categories, and their names above where there is room."""
    parts = []
    B, start = len(categories), 0
    for b in range(1, B + 1):
        if b < B and categories[b] == categories[start]:
            continue
        a, z = start * CELL, b * CELL
        for x, y, w, h in ((margin + a, top, z - a, B * CELL), (margin, top + a, B * CELL, z - a)):
            parts.append(f'<rect class="block" x="{x}" y="{y}" width="{w}" height="{h}"/>')
        if CHAR * len(categories[start]) <= z - a:
            parts.append(
                f'<text class="cat" x="{margin + (a + z) / 2}" y="{top - 7}" text-anchor="middle">'
                f"{escape(categories[start])}</text>"
            )
        start = b
    return parts


def reliability_curve(results: Results, scale: str, benchmark: str) -> str:
    """Accuracy against confidence, one line per stage, whiskers the interval over mixtures, diagonal the ideal; "" where
    the benchmark has no curve at the scale."""
    curves = [results.curve(scale, stage, benchmark) for stage in results.method["stages"]]
    if not any(curves):
        return ""
    side, pad = 132, 24
    low = min([0.0] + [p["confidence"] for points in curves for p in points])

    def at(confidence: float, accuracy: float) -> tuple[float, float]:
        return pad + side * (confidence - low) / (1 - low), 6 + side * (1 - min(max(accuracy, 0.0), 1.0))

    parts = [
        f'<figure class="small"><svg viewBox="0 0 {side + pad + 8} {side + 28}" width="{side + pad + 8}" '
        f'height="{side + 28}" role="img"><rect class="frame" x="{pad}" y="6" width="{side}" height="{side}"/>'
    ]
    (x1, y1), (x2, y2) = at(low, low), at(1, 1)
    parts.append(f'<line class="ideal" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>')
    for t, points in enumerate(curves):
        for p in points:
            x, top = at(p["confidence"], p["high"])
            _, bottom = at(p["confidence"], p["low"])
            parts.append(
                f'<line class="whisker t{t}" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'
            )
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(p["confidence"], p["accuracy"]) for p in points))
        parts.append(f'<polyline class="curve t{t}" points="{path}"/>')
    ticks = ((pad, side + 18, "start", "0"), (pad + side, side + 18, "end", "1"), (pad - 4, 14, "end", "1"))
    parts += [f'<text class="tick" x="{x}" y="{y}" text-anchor="{a}">{v}</text>' for x, y, a, v in ticks]
    return "".join(parts) + f"</svg><figcaption>{escape(short(benchmark))}</figcaption></figure>"
