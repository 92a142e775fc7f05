"""What the mixtures are made of, and what that does to the benchmarks.

Shares: corr over mixtures of a benchmark's value with each share, at both stages. The web source is a factor: with one web
source per mixture, differences between sources come from a linear model with the proportions as a second factor, which
is all that 3 x 3 points can carry.

Reference: Student (1908); any text on two-way analysis of variance without replication.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape

import numpy as np

from evalengine.analysis import page
from evalengine.analysis.correlation import correlate, degrees_of_freedom
from evalengine.analysis.figure import Figure, Intervals
from evalengine.analysis.groups import UNDEFINED, Data, Group, Label, Note
from evalengine.analysis.mixtures import Mixtures
from evalengine.analysis.panel import Array, Panel
from evalengine.analysis.protocol import Protocol, Study
from evalengine.analysis.results import Results
from evalengine.analysis.tables import Row, plain_row

CODE = "code share"


def rows(study: Study) -> list[Row]:
    out: list[Row] = []
    if study.mixtures is not None:
        for quantity in study.panel.quantities:
            effects = share_effects(study.data, quantity, study.mixtures)
            out += study.rows(effects) if effects else []
            out += web_source_differences(study.panel, quantity, study.mixtures, study.options.level)
    return out


def share_effects(data: Data, quantity: str, mixtures: Mixtures) -> Group | None:
    """corr over mixtures of a benchmark's value with each share, at both stages."""
    panel = data.panel
    shares = {
        name: np.array([by_mixture.get(m, np.nan) for m in panel.mixtures])
        for name, by_mixture in mixtures.shares.items()
    }
    shares = {name: x for name, x in shares.items() if np.isfinite(x).sum() >= 4 and np.nanstd(x) > 1e-12}
    if not shares:
        return None
    B, V = len(panel.benchmarks), 2 * len(panel.benchmarks)
    pairs = np.array([(v, V + k) for k in range(len(shares)) for v in range(V)])
    labels = [
        Label(panel.categories[v % B], panel.benchmarks[v % B], at_stage(panel.stages[v // B], name))
        for name in shares
        for v in range(V)
    ]
    values, n, notes = {}, {}, {}
    for scale in panel.scales:
        sample = data.sample(quantity, scale)
        x_VMC = sample.x_VMC
        extra = np.stack(list(shares.values()))[:, :, None]
        extra = np.broadcast_to(extra, (len(shares), *x_VMC.shape[1:]))
        joined = np.concatenate([x_VMC, extra])
        values[scale] = data.reportable(correlate(replace(sample, x_VMC=joined), pairs, data.statistic))
        known = np.isfinite(joined[:, :, 0])
        known_PM = known[pairs[:, 0]] & known[pairs[:, 1]]
        n[scale] = known_PM.sum(axis=1)
        values[scale][degrees_of_freedom(known_PM, sample.block_M) < 3] = np.nan
        few = Note(UNDEFINED, "fewer than 4 mixtures have a value")
        flat = Note(UNDEFINED, f"{quantity} hardly varies over the mixtures: no r")
        notes[scale] = [
            Note() if np.isfinite(value) else few if count < 4 else flat
            for value, count in zip(values[scale][:, 0], n[scale], strict=True)
        ]
    return Group("mixture_effect", quantity, labels, values, n, notes, data.statistic == "pearson")


def web_source_differences(panel: Panel, quantity: str, mixtures: Mixtures, level: float) -> list[Row]:
    """Differences between web sources in a benchmark's value, in its own unit, with t intervals.

    Model: value = web source + code share (as a factor) + error, least squares over mixtures. In a balanced factorial
    the difference is the plain difference of means; the error has n - sources - proportions + 1 degrees of freedom.
    """
    if not mixtures.web_source or any(m not in mixtures.web_source for m in panel.mixtures):
        return []
    source = [mixtures.web_source[m] for m in panel.mixtures]
    levels = list(dict.fromkeys(source))
    code = mixtures.shares.get(CODE, {})
    design = _design(source, levels, [f"{code.get(m, 0.0):.6f}" for m in panel.mixtures])
    rows = []
    for (s, scale), (t, stage), (b, benchmark) in itertools.product(
        enumerate(panel.scales), enumerate(panel.stages), enumerate(panel.benchmarks)
    ):
        y = panel.values[quantity][s, t, :, b]
        keep = np.isfinite(y)
        if {source[m] for m in np.flatnonzero(keep)} != set(levels):
            continue
        for i, j, estimate, half, freedom in _contrasts(design[keep], y[keep], len(levels), level):
            label = Label(panel.categories[b], benchmark, at_stage(stage, f"{levels[j]} - {levels[i]}"))
            known = {"low": estimate - half, "high": estimate + half, "n": int(keep.sum())}
            note = f"t interval, {freedom} degrees of freedom"
            rows.append(plain_row("web_source", quantity, scale, label, estimate, **known, note=note))
    return rows


def _contrasts(
    design: Array, y: Array, levels: int, level: float
) -> Iterator[tuple[int, int, float, float, int]]:
    """Each pair i < j of the first `levels` coefficients: their difference j - i, its half interval, the freedom."""
    from scipy.special import stdtrit

    freedom = len(y) - int(np.linalg.matrix_rank(design))
    if freedom < 1:
        return
    inverse = np.linalg.pinv(design)
    coefficient = inverse @ y
    residual = y - design @ coefficient
    covariance = inverse @ inverse.T * (residual @ residual / freedom)
    width = float(stdtrit(freedom, 0.5 + level / 2.0))
    for i, j in itertools.combinations(range(levels), 2):
        contrast = np.zeros(design.shape[1])
        contrast[[i, j]] = -1.0, 1.0
        variance = float(contrast @ covariance @ contrast)
        yield i, j, float(contrast @ coefficient), width * math.sqrt(max(variance, 0.0)), freedom


def _design(source: Sequence[str], levels: Sequence[str], second: Sequence[str]) -> Array:
    """Columns: one per web source (no intercept), then the proportions but the first."""
    others = list(dict.fromkeys(second))[1:]
    return np.array(
        [
            [float(s == level) for level in levels] + [float(p == o) for o in others]
            for s, p in zip(source, second, strict=True)
        ]
    )


def at_stage(stage: str, what: str) -> str:
    """The field `other` of a row."""
    return f"{stage}: {what}"


def section(results: Results) -> str:
    shares = results.rows("mixture_effects", protocol="mixture_effect")
    sources = results.rows("mixture_effects", protocol="web_source")
    if not shares and not sources:
        return ""
    out = ["<h2>Effects of the mixture</h2>"]
    for quantity in results.method["quantities"]:
        mine = [r for r in shares if r.quantity == quantity]
        if mine:
            shown = {r.other for r in mine} & _code_shares(results)
            shown = shown or {r.other for r in mine[: 2 * len(results.method["benchmarks"])]}
            first, rest = [r for r in mine if r.other in shown], [r for r in mine if r.other not in shown]
            out.append(
                f"<h3>{escape(quantity.capitalize())}: correlation over mixtures with the share in the data</h3>"
                f"{page.grid(results, _by_other(first))}"
            )
            if rest:
                grid = page.grid(results, _by_other(rest))
                out.append(f"<details><summary>Other shares</summary>{grid}</details>")
        web = [r for r in sources if r.quantity == quantity]
        out.append(_web_sources(results, quantity, web))
    return "".join(out)


def _web_sources(results: Results, quantity: str, rows: Sequence[Row]) -> str:
    stage = results.method["stages"][1]
    web = [r for r in rows if r.other.startswith(at_stage(stage, ""))]
    if not web:
        return ""
    largest = math.ceil(100 * max(max(abs(r.low), abs(r.high)) for r in web)) / 100
    differences = _by_other(web)._replace(limit=largest, measure="difference")
    return (
        f"<details><summary>{escape(quantity.capitalize())} at {escape(stage)}: differences between web sources"
        f'</summary><p class="hint">{escape(web[0].note)}, additive model with the code share.</p>'
        f"{page.grid(results, differences)}</details>"
    )


def _code_shares(results: Results) -> set[str]:
    return {at_stage(stage, CODE) for stage in results.method["stages"]}


def _by_other(rows: Sequence[Row]) -> Intervals:
    return Intervals(rows, lambda row: row.name, panel=lambda row: row.other, group=lambda row: row.category)


def figures(results: Results) -> Mapping[str, Figure]:
    shares = results.rows("mixture_effects", protocol="mixture_effect")
    code = [r for r in shares if r.other in _code_shares(results) and r.quantity != "confidence"]
    return {"mixture_effect": _by_other(code)}


PROTOCOL = Protocol("mixture_effects", rows, section, figures)
