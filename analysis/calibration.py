"""Levels and calibration: the mean over mixtures of each benchmark's accuracy, confidence, ECE, Brier score, NLL, ..."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from html import escape

import numpy as np

from evalengine.analysis import page
from evalengine.analysis.bootstrap import resamples
from evalengine.analysis.confidence import claims
from evalengine.analysis.figure import Curves, Figure, Table
from evalengine.analysis.groups import Array, Group, Label
from evalengine.analysis.panel import Panel
from evalengine.analysis.protocol import Protocol, Study
from evalengine.analysis.results import Results
from evalengine.analysis.tables import Row, rows_of

WORDS = {
    "ece": "ECE, debiased",
    "ece_plugin": "ECE, plug-in",
    "brier": "Brier",
    "nll": "NLL",
    "accuracy": "accuracy",
    "confidence": "confidence",
}


def rows(study: Study) -> list[Row]:
    """Mixtures are resampled, whatever the user resamples: the means are over them."""
    panel, options = study.panel, study.options
    plan = resamples(len(panel.mixtures), options.bootstrap, options.seed)
    out = []
    for quantity, value_STMB in {**panel.transferred, **panel.calibration}.items():
        out += rows_of(means(panel, quantity, value_STMB, plan.weight_MC), plan, options)
    return out


def means(panel: Panel, quantity: str, value_STMB: Array, weight_MC: Array) -> Group:
    """Mean over mixtures of each benchmark's value at both stages; of the debiased ECE the root mean square, since it is the
    square that has no bias (`items.debiased_calibration_error`)."""
    B = len(panel.benchmarks)
    labels = [
        Label(panel.categories[b], panel.benchmarks[b], stage) for b in range(B) for stage in panel.stages
    ]
    values, n = {}, {}
    for s, scale in enumerate(panel.scales):
        x_LM = np.stack([value_STMB[s, t, :, b] for b in range(B) for t in range(2)])
        if quantity == "ece":
            x_LM = np.sign(x_LM) * x_LM**2
        known = np.isfinite(x_LM)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_LC = (np.where(known, x_LM, 0.0) @ weight_MC) / (known.astype(np.float64) @ weight_MC)
        values[scale] = np.sign(mean_LC) * np.sqrt(np.abs(mean_LC)) if quantity == "ece" else mean_LC
        n[scale] = known.sum(axis=1)
    return Group("mean", quantity, labels, values, n)


def section(results: Results) -> str:
    if not results.rows("calibration", quantity="ece"):
        return ""
    stages = results.method["stages"]
    out = [
        "<h2>Calibration of items</h2>",
        '<p class="hint">Accuracy (up) against confidence (right) in 15 bins of equal size; the whiskers are t intervals over '
        "mixtures, the dashed line is perfect calibration. Calibration is always of the softmax over raw log-likelihoods. The "
        "debiased ECE is near 0, on either side, for a calibrated model; the plug-in one is above it, more so the fewer the "
        "items.</p>",
    ]
    for scale in reversed(results.scales):
        first = " open" if scale == results.scales[-1] else ""
        curves = page.grid(results, _curves(results, scale))
        out.append(f"<details{first}><summary>{escape(scale)}</summary>{curves}</details>")
    at = {(row.quantity, row.scale, row.name, row.other): row for row in results.rows("calibration")}
    words = WORDS | ({other: other} if (other := results.method["other_confidence"]) else {})
    rows = []
    for scale, benchmark, stage in itertools.product(results.scales, results.method["benchmarks"], stages):
        found = [at.get((quantity, scale, benchmark, stage)) for quantity in words]
        n = str(found[-1].n) if found[-1] else "–"
        rows.append([benchmark, scale, stage, *map(_level, found), n])
    table = Table("calibration", ["benchmark", "scale", "stage", *words.values(), "n"], [rows], texts=3)
    out.append("<details><summary>Means over mixtures, with intervals</summary>")
    out.append(page.show(table) + "</details>")
    return "".join(out)


def _level(row: Row | None) -> str:
    if row is None or not math.isfinite(row.estimate) or not math.isfinite(row.low):
        return "–"
    return f"{row.estimate:.3f} [{row.low:.3f}, {row.high:.3f}]"


def figures(results: Results) -> Mapping[str, Figure]:
    return {"reliability": _curves(results, results.scales[-1])}


def _curves(results: Results, scale: str) -> Curves:
    """Of the points that have an interval."""
    return Curves([c for c in results.curves if c["scale"] == scale and c["low"] is not None])


PROTOCOL = Protocol("calibration", rows, section, figures, claims)
