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
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from evalengine.analysis import report_sections as sections
from evalengine.analysis.report_sections import SEPARATOR
from evalengine.analysis.results import Results, load_results
from evalengine.analysis.tables import replacing
from evalengine.errors import UserError

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def write_report(tables: Path, folder: Path) -> Path:
    """Writes `folder`/report.html from the tables that `correlate` wrote; returns its path."""
    results = load_results(tables)
    path = folder / "report.html"
    with replacing(path) as handle:
        try:
            handle.write(page(results))
        except (
            KeyError,
            TypeError,
            ValueError,
            IndexError,
            AttributeError,
            OverflowError,
            ZeroDivisionError,
        ):
            if os.environ.get("EVALENGINE_DEBUG"):
                raise
            raise UserError(
                f"{tables} holds tables that do not fit each other: run `evalengine correlate STORE --out {tables}` again"
            ) from None
    return path


def page(results: Results) -> str:
    """The whole document."""
    here = files("evalengine.analysis")
    method = results.method
    before, after = method["stages"]
    title = f"What carries over from {before} to {after}"
    body = "".join(
        [
            sections.head(results, title),
            sections.in_plain_words(results),
            sections.transfer(results),
            sections.verdicts(results),
            sections.matrices(results),
            sections.coherence(results),
            sections.alignment(results),
            sections.calibration(results),
            sections.effects(results),
            sections.noise(results),
            sections.decisions(results),
            sections.method(results),
        ]
    )
    data = json.dumps(_data(results), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{(here / 'report.css').read_text(encoding='utf-8')}</style></head><body>{body}"
        f'<div id="tip" role="status"></div><script type="application/json" id="data">{data}</script>'
        f"<script>{(here / 'report.js').read_text(encoding='utf-8')}</script></body></html>\n"
    )


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
        if not r.protocol.startswith("matrix_") or r.scale not in m["scales"]:
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
