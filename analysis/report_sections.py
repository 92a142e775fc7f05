"""The sections of the report, each a string of HTML made from the tables.

A section without data is empty. All text from outside is escaped here or in `svg`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from evalengine.analysis.results import Results, one, share_with_interval, with_interval
from evalengine.analysis.summary import rows_by, summarise
from evalengine.analysis.svg import R_AXIS, Axis, axis_row, heatmap, interval_row, reliability_curve
from evalengine.analysis.tables import Row

SEPARATOR = "\x1f"  # between the parts of a matrix's name; no benchmark or scale holds it
READINGS = {
    "cells": "over (benchmark, mixture) cells",
    "mixtures": "over benchmarks, mean of the mixtures",
    "benchmarks": "over mixtures, mean of the benchmarks",
    "persistence": "persistence",
}


def head(results: Results, title: str) -> str:
    method = results.method
    items = sum(method["items"])
    parts = [
        f"{len(method['mixtures'])} mixtures",
        f"{len(method['scales'])} scale{'s' if len(method['scales']) > 1 else ''} ({', '.join(method['scales'])})",
        f"{len(method['benchmarks'])} benchmarks in {len(results.categories)} "
        + ("categories" if len(results.categories) > 1 else "category"),
    ] + ([f"{items:,} items"] if items else [])
    return f'<h1>{escape(title)}</h1><p class="lead">{escape(" · ".join(parts))}</p>'


def in_plain_words(results: Results) -> str:
    found = summarise(results)

    def block(title: str, lines: Sequence[str], empty: str) -> str:
        points = "".join(f"<li>{escape(line)}</li>" for line in lines) or f"<li>{escape(empty)}</li>"
        return f"<div><h3>{escape(title)}</h3><ul>{points}</ul></div>"

    return (
        "<h2>In plain words</h2>"
        '<div class="says">'
        + block("What this data supports", found.supported, "Nothing whose interval excludes the opposite.")
        + block("What it does not support", found.unsupported, "Nothing was left open.")
        + "</div>"
        + block("Read with this in mind", found.cautions, "").replace("<div>", '<div class="cautions">')
    )


def _legend(names: Sequence[str], css: str = "s", extra: str = "") -> str:
    marks = "".join(f'<span><i class="{css}{k}"></i>{escape(name)}</span>' for k, name in enumerate(names))
    return f'<div class="legend">{marks}{extra}</div>' if len(names) > 1 or extra else ""


def _interval_words(results: Results) -> str:
    method = results.method
    kinds = {"bca": "BCa bootstrap", "fisher": "Fisher's z", "jackknife": "jackknife t"}
    kind = kinds.get(method["interval"], f"{method['interval']} bootstrap")
    return f"{method['level']:.0%} intervals: {kind}, {method['resamples']:,} resamples"


def _block(results: Results, rows: Iterable[Row], label: Any, axis: Axis = R_AXIS, strong: Any = None) -> str:
    """Interval rows, one per label, with an interval for each scale."""
    by_label: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_label.setdefault(label(row), {})[row.scale] = row
    lines = [
        interval_row(
            name, [found.get(scale) for scale in results.scales], axis, strong=bool(strong and strong(name))
        )
        for name, found in by_label.items()
    ]
    return "".join(lines) + axis_row(axis) if lines else ""


def transfer(results: Results) -> str:
    out = [
        "<h2>Transfer</h2>",
        f'<p class="hint">Correlation over mixtures of a benchmark\'s value at {escape(results.method["stages"][0])} with its '
        f"value at {escape(results.method['stages'][1])}. {escape(_interval_words(results))}; n = number of mixtures, "
        f"{_n_words(results.rows('transfer', protocol='transfer'))}. A star marks a note (point at it).</p>",
        _legend(results.scales),
        "<h3>Category means</h3>",
        '<div class="grid">',
    ]
    for quantity in results.method["quantities"]:
        rows = results.rows("transfer", protocol="category_transfer", quantity=quantity)
        out.append(
            f"<div><h3>{escape(quantity.capitalize())}</h3>{_block(results, rows, _transfer_label)}</div>"
        )
    out.append('</div><h3>Benchmarks</h3><div class="grid">')
    for quantity in results.method["quantities"]:
        rows = results.rows("transfer", protocol="transfer", quantity=quantity)
        out.append(f"<div><h3>{escape(quantity.capitalize())}</h3>")
        for category, members in rows_by(rows, "category").items():
            out.append(
                f'<div class="hint">{escape(category)}</div>{_block(results, members, lambda r: r.name)}'
            )
        out.append("</div>")
    out.append("</div>")
    if results.contrast:
        out.append(_contrasts(results))
    return "".join(out)


def _n_words(rows: Sequence[Row]) -> str:
    counts = sorted({row.n for row in rows if math.isfinite(row.estimate)})
    if not counts:
        return "none"
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _transfer_label(row: Row) -> str:
    return f"{row.category} ({row.name})" if row.protocol == "category_transfer" else row.name


def _contrasts(results: Results) -> str:
    small, large = results.scales[0], results.scales[-1]
    out = [
        f"<details><summary>Differences between scales ({escape(large)} minus {escape(small)})</summary>"
        '<p class="hint">The same resamples on both sides.</p><div class="grid">'
    ]
    only = results._replace(method={**results.method, "scales": [results.contrast]})
    axis = Axis(-2.0, 2.0)
    for quantity in results.method["quantities"]:
        rows = results.rows("transfer", quantity=quantity, scale=str(results.contrast))
        out.append(f"<div><h3>{escape(quantity.capitalize())}</h3>")
        out.append(_block(only, rows, _transfer_label, axis))
        out.append("</div>")
    return "".join(out) + "</div></details>"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], wrap: int = -1) -> str:
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


def verdicts(results: Results) -> str:
    if not results.verdicts:
        return ""
    out = [
        "<h2>Verdicts</h2>",
        '<p class="hint">From intervals alone. Reliable: above 0 at every scale, p below 0.05. '
        "Scale-dependent: the difference between "
        "scales excludes 0. Unreliable: below 0.5 at every scale. Undecided: none of these. p: permutation test, the "
        "smallest over scales; q: Benjamini-Hochberg within a scale.</p>",
    ]
    for quantity in results.method["quantities"]:
        rows = []
        for v in (v for v in results.verdicts if v["quantity"] == quantity):
            mine = results.rows("transfer", protocol="transfer", quantity=quantity, name=v["benchmark"])
            mine = [r for r in mine if r.scale in results.scales and math.isfinite(r.p)]
            p = [f"{min(r.p for r in mine):.3f}", f"{min(r.q for r in mine):.3f}"] if mine else ["–", "–"]
            name = v["verdict"]
            rows.append(
                [v["benchmark"], f'<b class="badge {escape(name)}">{escape(name)}</b>', *p, v["because"]]
            )
        out.append(f"<h3>{escape(quantity.capitalize())}</h3>")
        out.append(_table(["benchmark", "verdict", "p", "q", "because"], rows, wrap=4))
    return "".join(out)


def matrices(results: Results) -> str:
    before, after = results.method["stages"]
    out = [
        "<h2>Correlation matrices</h2>",
        '<p class="hint">Point at a cell, or tap it, for r, its interval, n and the mixtures. A ring marks an interval that '
        'excludes 0; grey: no r, too little varies. <span class="nowrap">−1<span class="ramp"></span>+1</span></p>',
    ]
    kinds = (
        ("matrix_cross", f"{before} against {after}", before, after, False),
        (f"matrix_{before}", f"within {before}", before, before, True),
        (f"matrix_{after}", f"within {after}", after, after, True),
    )
    for k, (protocol, words, rows_at, columns_at, triangle) in enumerate(kinds):
        figures = []
        for quantity in results.method["quantities"]:
            for scale in results.scales:
                rows = results.rows("matrices", protocol=protocol, quantity=quantity, scale=scale)
                if not rows:
                    continue
                at = f", {scale}" if len(results.scales) > 1 else ""
                name = SEPARATOR.join((quantity, scale, protocol))
                drawing = heatmap(results, rows, name, rows_at, columns_at, triangle=triangle)
                figures.append(
                    f"<div><h3>{escape(quantity.capitalize() + at)}: {escape(words)}</h3>"
                    f'<div class="scroll">{drawing}</div></div>'
                )
        if figures:
            grid = f'<div class="grid">{"".join(figures)}</div>'
            out.append(
                grid
                if k == 0
                else f"<details><summary>{escape(words.capitalize())}</summary>{grid}</details>"
            )
    rows = results.rows("matrices", protocol="similarity")
    if any(math.isfinite(r.estimate) for r in rows):
        out.append(
            f"<h3>Similarity of the two within-stage matrices</h3>{_legend(results.scales)}"
            + _block(results, rows, lambda r: r.quantity)
            + '<p class="hint">Correlation over all pairs of benchmarks. Pairs share benchmarks and mixtures, so they are not '
            "so many independent observations; the interval resamples mixtures.</p>"
        )
    return "".join(out)


def coherence(results: Results) -> str:
    rows = results.tables.get("coherence", [])
    if not any(math.isfinite(r.estimate) for r in rows):
        return ""
    before, after = results.method["stages"]
    out = [
        "<h2>Coherence within categories</h2>",
        f'<p class="hint">Mean correlation over pairs of a category\'s benchmarks: both at {escape(before)}, both at '
        f"{escape(after)}, or one at each (cross).</p>",
        _legend(results.scales),
        '<div class="grid">',
    ]
    for quantity in results.method["quantities"]:
        mine = [r for r in rows if r.quantity == quantity]
        out.append(f"<div><h3>{escape(quantity.capitalize())}</h3>")
        out.append(_block(results, mine, lambda r: f"{r.category}, {r.name}") + "</div>")
    return "".join(out) + "</div>"


def alignment(results: Results) -> str:
    rows = results.tables.get("alignment", [])
    if not rows:
        return ""
    out = [
        "<h2>Alignment of confidence with accuracy</h2>",
        '<p class="hint">Correlation of accuracy with confidence, in three readings of its definition, and its persistence: '
        "the correlation over mixtures of the per-mixture value before and after.</p>",
        _legend(results.scales),
        '<div class="grid">',
    ]
    for reading, mine in rows_by(rows, "name").items():
        out.append(f"<div><h3>{escape(READINGS.get(reading, reading).capitalize())}</h3>")
        out.append(_block(results, mine, _alignment_label) + "</div>")
    return "".join(out) + "</div>"


def _alignment_label(row: Row) -> str:
    return row.category if row.name == "persistence" else f"{row.category}, {row.other}"


def calibration(results: Results) -> str:
    rows = results.rows("calibration", quantity="ece")
    if not rows:
        return ""
    stages = results.method["stages"]
    out = [
        "<h2>Calibration of items</h2>",
        '<p class="hint">Accuracy (up) against confidence (right) in 15 bins of equal size; the whiskers are t intervals over '
        "mixtures, the dashed line is perfect calibration.</p>",
        _legend(stages, "t"),
    ]
    for scale in reversed(results.scales):
        small = []
        for benchmark in results.method["benchmarks"]:
            curves = [
                [
                    c
                    for c in results.curves
                    if (c["scale"], c["stage"], c["benchmark"]) == (scale, stage, benchmark)
                ]
                for stage in stages
            ]
            usable = [[c for c in points if c["low"] is not None] for points in curves]
            if any(usable):
                small.append(reliability_curve(benchmark, usable))
        first = " open" if scale == results.scales[-1] else ""
        out.append(
            f'<details{first}><summary>{escape(scale)}</summary><div class="smalls">{"".join(small)}</div></details>'
        )
    words = {"ece": "ECE", "brier": "Brier", "nll": "NLL", "accuracy": "accuracy", "confidence": "confidence"}
    table = []
    for scale in results.scales:
        for benchmark in results.method["benchmarks"]:
            for stage in stages:
                line = [benchmark, scale, stage]
                for quantity in words:
                    row = one(
                        results.rows(
                            "calibration", quantity=quantity, scale=scale, name=benchmark, other=stage
                        )
                    )
                    line.append(_level(row))
                table.append([*line, str(row.n) if row else "–"])
    out.append("<details><summary>Means over mixtures, with intervals</summary>")
    out.append(_table(["benchmark", "scale", "stage", *words.values(), "n"], table) + "</details>")
    return "".join(out)


def _level(row: Row | None) -> str:
    if row is None or not math.isfinite(row.estimate):
        return "–"
    if not math.isfinite(row.low):
        return "–"
    return f"{row.estimate:.3f} [{row.low:.3f}, {row.high:.3f}]"


def effects(results: Results) -> str:
    shares = results.rows("mixture_effects", protocol="mixture_effect")
    sources = results.rows("mixture_effects", protocol="web_source")
    if not shares and not sources:
        return ""
    after = results.method["stages"][1]
    out = ["<h2>Effects of the mixture</h2>"]
    for quantity in results.method["quantities"]:
        mine = [r for r in shares if r.quantity == quantity]
        if mine:
            shown = {r.other for r in mine if r.other.endswith("code share")}
            shown = shown or {r.other for r in mine[: 2 * len(results.method["benchmarks"])]}
            first, rest = [r for r in mine if r.other in shown], [r for r in mine if r.other not in shown]
            out.append(
                f"<h3>{escape(quantity.capitalize())}: correlation over mixtures with the share in the data</h3>"
                f'{_legend(results.scales)}<div class="grid">'
            )
            out += [_effect(results, name, rows) for name, rows in rows_by(first, "other").items()]
            out.append("</div>")
            if rest:
                out.append('<details><summary>Other shares</summary><div class="grid">')
                out += [_effect(results, name, rows) for name, rows in rows_by(rest, "other").items()]
                out.append("</div></details>")
        web = [r for r in sources if r.quantity == quantity and r.other.startswith(f"{after}:")]
        if web:
            largest = max(max(abs(r.low), abs(r.high)) for r in web)
            axis = Axis(-math.ceil(100 * largest) / 100, math.ceil(100 * largest) / 100)
            out.append(
                f"<details><summary>{escape(quantity.capitalize())} at {escape(after)}: differences between web sources"
                f'</summary><p class="hint">{escape(web[0].note)}, additive model with the code share.</p><div class="grid">'
            )
            for name, rows in rows_by(web, "other").items():
                out.append(
                    f"<div><h3>{escape(name)}</h3>{_block(results, rows, lambda r: r.name, axis)}</div>"
                )
            out.append("</div></details>")
    return "".join(out)


def _effect(results: Results, name: str, rows: Sequence[Row]) -> str:
    return f"<div><h3>{escape(name)}</h3>{_block(results, rows, lambda r: r.name)}</div>"


def noise(results: Results) -> str:
    rows = [r for r in results.tables.get("reliability", []) if math.isfinite(r.estimate)]
    if not rows:
        return ""
    kinds = list(dict.fromkeys(r.other for r in rows))
    columns = ["benchmark", "quantity", "scale", *kinds, "r as measured", "n"]
    table = []
    for scale in results.scales:
        for quantity in results.method["quantities"]:
            for benchmark in results.method["benchmarks"]:
                mine = [r for r in rows if (r.scale, r.quantity, r.name) == (scale, quantity, benchmark)]
                if not mine:
                    continue
                by_kind = {r.other: r for r in mine}
                measured = one(
                    results.rows(
                        "transfer", protocol="transfer", scale=scale, quantity=quantity, name=benchmark
                    )
                )
                cells = [with_interval(by_kind.get(kind)) for kind in kinds]
                table.append([benchmark, quantity, scale, *cells, with_interval(measured), str(mine[0].n)])
    return (
        "<h2>Noise</h2>"
        '<p class="hint">Reliability: the share of the variance between mixtures that endless items would leave. The ceiling '
        "is the highest r that this noise allows; r without noise corrects for it and may leave −1 to 1 where there is "
        "little but noise.</p>"
        f"<details><summary>Reliability of each benchmark</summary>{_table(columns, table)}</details>"
    )


def decisions(results: Results) -> str:
    rows = results.tables.get("decisions", [])
    if not rows:
        return ""
    kinds = list(dict.fromkeys(r.other for r in rows))
    losses = any(r.quantity == "loss" for r in rows)
    unit = "" if losses else " (points)"
    words = {
        "pairwise agreement": "right of two (%)",
        "pairwise loss": f"lost by choosing of two{unit}",
        "top1": "best stays best (%)",
        "regret": f"lost by choosing the best{unit}",
    }
    table = []
    for scale in results.scales:
        mine = [r for r in rows if r.scale == scale]
        by_name: dict[tuple[str, str], dict[str, Row]] = {}
        for r in mine:
            by_name.setdefault((r.category, r.name), {})[r.other] = r
        for (category, name), found in by_name.items():
            cells = [
                share_with_interval(
                    found.get(kind), percent=not (losses and kind in ("pairwise loss", "regret"))
                )
                for kind in kinds
            ]
            label = f"{category} ({name})" if name.startswith("mean of") else name
            table.append([label, scale, *cells, str(next(iter(found.values())).n)])
    before, after = results.method["stages"]
    return (
        "<h2>Decisions</h2>"
        f'<p class="hint">Choosing mixtures at {escape(before)} and living with them at {escape(after)}. A coin is right of two '
        f"50% of the time, and finds the best of n one time in n. Intervals of the first two resample mixtures; those of the "
        "last two resample items and take the mixtures as given (percentile).</p>"
        "<details open><summary>Means over categories</summary>"
        + _table(
            ["benchmark", "scale", *(words[k] for k in kinds), "n"], [t for t in table if "(mean of" in t[0]]
        )
        + "</details><details><summary>Benchmarks</summary>"
        + _table(
            ["benchmark", "scale", *(words[k] for k in kinds), "n"],
            [t for t in table if "(mean of" not in t[0]],
        )
        + "</details>"
    )


def method(results: Results) -> str:
    m = results.method
    lines = [
        f"Statistic: {m['statistic']}; {_interval_words(results)} ({m['resampling']}), resampled: {m['resampled']}"
        + (f", seed {m['seed']}" if m["seed"] is not None else "")
        + ".",
        f"p-values: two-sided permutation tests over mixtures ({m['permutations']} orders), adjusted by Benjamini-Hochberg.",
        f"Mixtures: {', '.join(m['mixtures'][:40])}{' and more' if len(m['mixtures']) > 40 else ''}.",
    ]
    if m["metrics"]:
        scores = [f"{b} {s}" for b, s in zip(m["benchmarks"], m["metrics"], strict=True)]
        lines.append(f"Scores: {', '.join(scores)}.")
    lines.append(f"evalengine {m['evalengine']}. All tables are beside this file as csv, arrow and json.")
    return "<h2>Method</h2><ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
