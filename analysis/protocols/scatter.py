"""Scatters: each mixture's value after fine-tuning against its value before, on one benchmark.

The error bars are the item noise that the reliability table rests on: 1 - reliability is its share of the variance
between mixtures (within blocks, where there are any).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from evalengine.analysis.figure import Points, Scatters
from evalengine.analysis.results import Results
from evalengine.analysis.statistics.correlation import Array, members_of

UNITS = {"accuracy": 100.0, "confidence": 100.0}


def scatters(results: Results, quantity: str, scale: str) -> Scatters:
    """Every benchmark that has an r at a scale."""
    stages = results.method["stages"]
    value = results.values(quantity, scale)
    reliability = {
        (row.name, row.other): row.estimate
        for row in results.rows("reliability", protocol="reliability", quantity=quantity, scale=scale)
    }
    label_of = results.method["block"].get("labels", {})
    points = []
    for row in results.rows("transfer", protocol="transfer", quantity=quantity, scale=scale):
        pairs = {
            mixture: [value.get((row.name, stage, mixture)) for stage in stages]
            for mixture in results.method["mixtures"]
        }
        known = {mixture: pair for mixture, pair in pairs.items() if None not in pair}
        if len(known) < 4 or not math.isfinite(row.estimate):
            continue
        xy_2M = np.array(list(known.values()), dtype=np.float64).T
        share = np.array([reliability.get((row.name, f"reliability {stage}"), math.nan) for stage in stages])
        before, after = xy_2M.tolist()
        variance = _variance(xy_2M, [label_of.get(mixture, "") for mixture in known])
        x_error, y_error = np.sqrt((1.0 - share) * variance).tolist()
        chance = results.chance.get(row.name, math.nan) if quantity == "accuracy" else math.nan
        points.append(
            Points(row.name, row.category, list(known), before, after, (x_error, y_error), chance, row)
        )
    return Scatters(points, tuple(stages), UNITS.get(quantity, 1.0))


def _variance(x_VM: Array, labels: Sequence[str]) -> Array:
    """Of each variable over mixtures, (V,): within the blocks that the labels name."""
    number_M = np.unique(labels, return_inverse=True)[1]
    parts = [x_VM[:, at_M] for at_M in members_of(number_M)]
    squares_V = sum(((x_Vm - x_Vm.mean(axis=1, keepdims=True)) ** 2).sum(axis=1) for x_Vm in parts)
    return np.asarray(squares_V) / (x_VM.shape[1] - len(parts))
