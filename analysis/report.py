"""The report: one HTML file that stands alone.

Styles, script, drawings and data are inside the file; a content-security policy forbids it to load anything. Without
the script everything but the heatmaps' tooltips is there. Every text from outside (names of mixtures, benchmarks,
notes) is escaped.

Cost: 1.3 MB and less than a second at 20 benchmarks and two scales.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from evalengine.analysis.matrices import SEPARATOR
from evalengine.analysis.page import interval_words
from evalengine.analysis.registry import PROTOCOLS
from evalengine.analysis.results import Results, load_results
from evalengine.analysis.summary import summarise
from evalengine.errors import UserError
from evalengine.files import atomic

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def write_report(tables: Path, folder: Path) -> Path:
    """Writes `folder`/report.html from the tables that `correlate` wrote; returns its path."""
    results = load_results(tables)
    path = folder / "report.html"
    with atomic(path) as temporary:
        try:
            text = page(results)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
            if os.environ.get("EVALENGINE_DEBUG"):
                raise
            raise UserError(
                f"{tables} holds tables that do not fit each other: run `evalengine correlate STORE --out {tables}` again"
            ) from None
        temporary.write_text(text, encoding="utf-8", newline="")
    return path


def page(results: Results) -> str:
    """The whole document."""
    folder = files("evalengine.analysis")
    method = results.method
    before, after = method["stages"]
    title = f"What carries over from {before} to {after}"
    sections = [protocol.section(results) for protocol in PROTOCOLS]
    body = "".join([_head(results, title), _in_plain_words(results), *sections, _method(results)])
    data = json.dumps(_data(results), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{(folder / 'report.css').read_text(encoding='utf-8')}</style></head><body>{body}"
        f'<div id="tip" role="status"></div><script type="application/json" id="data">{data}</script>'
        f"<script>{(folder / 'report.js').read_text(encoding='utf-8')}</script></body></html>\n"
    )


def _head(results: Results, title: str) -> str:
    method = results.method
    items = sum(method["items"])
    parts = [
        f"{len(method['mixtures'])} mixtures",
        f"{len(method['scales'])} scale{'s' if len(method['scales']) > 1 else ''} ({', '.join(method['scales'])})",
        f"{len(method['benchmarks'])} benchmarks in {len(results.categories)} "
        + ("categories" if len(results.categories) > 1 else "category"),
    ] + ([f"{items:,} items"] if items else [])
    return f'<h1>{escape(title)}</h1><p class="lead">{escape(" · ".join(parts))}</p>'


def _in_plain_words(results: Results) -> str:
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


def _method(results: Results) -> str:
    m = results.method
    lines = [
        f"Statistic: {m['statistic']}; {interval_words(results)} ({m['resampling']}), resampled: {m['resampled']}"
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


def _data(results: Results) -> dict[str, Any]:
    """What the script needs: the panel's values, and each matrix's r, interval, n and note by cell."""
    m = results.method
    index = {benchmark: b for b, benchmark in enumerate(m["benchmarks"])}
    mixture = {name: k for k, name in enumerate(m["mixtures"])}
    B = len(index)
    values: dict[str, Any] = {
        q: {s: [[[None] * B for _ in mixture] for _ in range(2)] for s in m["scales"]}
        for q in m["quantities"]
    }
    for cell in results.cells:
        for q in m["quantities"]:
            stage = m["stages"].index(cell["stage"])
            value = cell[q]
            row = values[q][cell["scale"]][stage][mixture[cell["mixture"]]]
            row[index[cell["benchmark"]]] = None if value is None else round(value, 5)
    matrices: dict[str, dict[str, list[Any]]] = {}
    for r in results.tables["matrices"]:
        if r.protocol == "similarity" or r.contrast:
            continue
        key = index[r.name] * B + index[r.other]
        name = SEPARATOR.join((r.quantity, r.scale, r.protocol))
        matrices.setdefault(name, {})[str(key)] = [
            *(_round(v) for v in (r.estimate, r.low, r.high)),
            r.n,
            r.note,
        ]
    keep = ("mixtures", "benchmarks", "stages", "scales")
    return {**{k: m[k] for k in keep}, "level": f"{m['level']:.0%}", "values": values, "matrices": matrices}


def _round(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
