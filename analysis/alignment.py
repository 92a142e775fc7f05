"""Alignment of confidence with accuracy: r_align in the three readings of its definition, and its persistence.

cells: over the (benchmark, mixture) cells; mixtures: over the category's benchmarks, one r per mixture, then their mean;
benchmarks: over mixtures, one r per benchmark, then their mean. Persistence: corr over mixtures of the per-mixture r
before and after.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from evalengine.analysis import page
from evalengine.analysis.correlation import (
    Sample,
    bounded_ratio,
    correlate,
    degrees_of_freedom,
    standardise,
    weighted_sums,
)
from evalengine.analysis.figure import Figure, Intervals
from evalengine.analysis.groups import UNDEFINED, Array, Data, Group, Label, Note, mean_of_known
from evalengine.analysis.protocol import Protocol, Study
from evalengine.analysis.results import Results
from evalengine.analysis.tables import Row

READINGS = {
    "cells": "over (benchmark, mixture) cells",
    "mixtures": "over benchmarks, mean of the mixtures",
    "benchmarks": "over mixtures, mean of the benchmarks",
    "persistence": "persistence",
}


def rows(study: Study) -> list[Row]:
    known = {"accuracy", "confidence"} <= set(study.panel.quantities)
    return study.rows(alignment(study.data)) if known else []


def alignment(data: Data) -> Group:
    """r_align of each category and stage in each reading, and the persistence of each category."""
    panel = data.panel
    B = len(panel.benchmarks)
    labels = [
        Label(category, reading, stage)
        for category in panel.category_members()
        for reading in ("cells", "mixtures", "benchmarks")
        for stage in panel.stages
    ] + [Label(category, "persistence", "over mixtures") for category in panel.category_members()]
    values, n, notes = {}, {}, {}
    for scale in panel.scales:
        a, c = data.sample("accuracy", scale), data.sample("confidence", scale)
        rows: list[Array] = []
        persistence: list[Array] = []
        said: list[Note] = []
        for members in panel.category_members().values():
            by_stage = []
            for reading in ("cells", "mixtures", "benchmarks"):
                for t in range(2):
                    index = np.array(members) + t * B
                    x, y = a.x_VMC[index], c.x_VMC[index]
                    if reading == "cells":
                        rows.append(_over_cells(x, y, a, data.statistic))
                    elif reading == "mixtures":
                        per_mixture_MC = over_benchmarks(x, y, data.statistic)
                        by_stage.append(per_mixture_MC)
                        rows.append(_weighted_mean(per_mixture_MC, a.w_MC))
                    else:
                        rows.append(_mean_over_benchmarks(x, y, a, data))
                    few = len(members) < 3 and reading == "mixtures"
                    why = f"{len(members)} benchmarks are too few for an r in each mixture"
                    said.append(Note(UNDEFINED, why) if few else Note())
            pair = replace(a, x_VMC=np.stack(by_stage))
            persistence.append(correlate(pair, np.array([[0, 1]]), data.statistic)[0])
        values[scale] = data.reportable(np.array(rows + persistence))
        present = np.isfinite(panel.values["accuracy"][panel.scales.index(scale)]).any(axis=(0, 2))
        n[scale] = np.full(len(labels), int(present.sum()))
        if degrees_of_freedom(present[None], a.block_M)[0] < 3:
            values[scale][:] = np.nan
        notes[scale] = said + [Note()] * len(persistence)
    return Group("alignment", "accuracy,confidence", labels, values, n, notes)


def over_benchmarks(x_BMC: Array, y_BMC: Array, statistic: str) -> Array:
    """(M, C): each mixture's correlation over the benchmarks; NaN for fewer than 3 benchmarks."""
    B, M, last = x_BMC.shape
    if B < 3:
        return np.full((M, last), np.nan)
    both = np.concatenate([x_BMC.transpose(1, 0, 2), y_BMC.transpose(1, 0, 2)])
    pairs = np.stack([np.arange(M), M + np.arange(M)], axis=1)
    return correlate(Sample(np.ascontiguousarray(both), np.full((B, last), 1.0 / B)), pairs, statistic)


def _over_cells(x_BMC: Array, y_BMC: Array, sample: Sample, statistic: str) -> Array:
    """Correlation over all (benchmark, mixture) cells, each with its mixture's weight and block."""
    B, M, last = x_BMC.shape
    cells = np.stack([x_BMC.reshape(B * M, last), y_BMC.reshape(B * M, last)])
    if statistic == "pearson" and last == 1 and sample.block_M is None and np.isfinite(cells).all():
        x_BM, y_BM = standardise(cells)[:, :, 0].reshape(2, B, M)
        return _pooled(x_BM, y_BM, sample.w_MC)
    weights = np.tile(sample.w_MC, (B, 1)) / B
    block_M = None if sample.block_M is None else np.tile(sample.block_M, B)
    return correlate(Sample(cells, weights, block_M), np.array([[0, 1]]), statistic)[0]


def _pooled(x_BM: Array, y_BM: Array, w_MC: Array) -> Array:
    """Pearson's r over the cells of standardised variables: a mixture's cells share its weight, so their means suffice."""
    terms = np.stack([v.mean(axis=0) for v in (x_BM, y_BM, x_BM**2, y_BM**2, x_BM * y_BM)])
    x, y, xx, yy, xy = weighted_sums(terms[:, :, None], w_MC)
    return bounded_ratio(xy - x * y, xx - x * x, yy - y * y)


def _mean_over_benchmarks(x_BMC: Array, y_BMC: Array, sample: Sample, data: Data) -> Array:
    B = len(x_BMC)
    pairs = np.stack([np.arange(B), B + np.arange(B)], axis=1)
    both = replace(sample, x_VMC=np.concatenate([x_BMC, y_BMC]))
    value_BC = data.reportable(correlate(both, pairs, data.statistic))
    return mean_of_known(value_BC[np.isfinite(value_BC[:, 0])])


def _weighted_mean(value_MC: Array, w_MC: Array) -> Array:
    """Mean over mixtures in every column; mixtures without a value are left out."""
    known = np.isfinite(value_MC)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (np.where(known, value_MC, 0.0) * w_MC).sum(axis=0) / (known * w_MC).sum(axis=0)


def section(results: Results) -> str:
    found = results.rows("alignment")
    if not found:
        return ""
    return (
        "<h2>Alignment of confidence with accuracy</h2>"
        '<p class="hint">Correlation of accuracy with confidence, in three readings of its definition, and its persistence: '
        "the correlation over mixtures of the per-mixture value before and after.</p>"
        f"{page.grid(results, Intervals(found, _label, panel=lambda row: READINGS.get(row.name, row.name)))}"
    )


def _label(row: Row) -> str:
    return row.category if row.name == "persistence" else f"{row.category}, {row.other}"


def figures(results: Results) -> Mapping[str, Figure]:
    return {"alignment": Intervals(results.rows("alignment"), _label, panel=lambda row: row.name)}


PROTOCOL = Protocol("alignment", rows, section, figures)
