"""The plot that is usual and says little, accuracy by bins of dose, beside the slope within items: table `frequency_bins`.

A bin takes the items and mixtures of a tenth of the doses, of all benchmarks. Its mean differs from the next one's because other
items are in it, and means of many items hide how far items lie from the line: r over ten bins may be 0.9 where r over items is
0.2. The second line has the slope within items, through the mean of all.

Reference: Udandarao et al. (2024), arXiv 2404.04125, for plots of bins.

Dims: M mixtures, I items, K bins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from evalengine.analysis.explain import doses
from evalengine.analysis.explain.dose_slopes import X
from evalengine.analysis.explain.dosed_items import ACCURACY, DosedItems, When, dosed_items, whens
from evalengine.analysis.explain.explainer import Explainer, Study
from evalengine.analysis.explain.student import half_width
from evalengine.analysis.explain.within import fitted, varies

BINS = 10
OF_ITEMS, OF_SLOPE = "bins of items", "slope within items"


class BinRow(NamedTuple):
    """Accuracy in percent; intervals are over mixtures."""

    scale: str
    stage: str
    dose: str
    category: str  # bins of items, or slope within items
    bin: int
    at: float  # mean dose
    estimate: float
    low: float
    high: float
    items: int  # times mixtures


def rows(study: Study) -> list[BinRow]:
    out: list[BinRow] = []
    if (dose := doses.headline(study)) is None:
        return out
    for scale in study.design.scales:
        if (items := dosed_items(study, scale, {X: (dose, None)})) is None:
            continue
        for when in whens(study.design.stages)[:2]:
            found = _of(items, when, study.options.level)
            out += [row._replace(scale=scale, dose=str(dose)) for row in found]
    return out


def _of(items: DosedItems, when: When, level: float) -> Iterator[BinRow]:
    x, y = items.within()
    if not varies(x[X]):
        return
    slope, _ = fitted(np.stack([x[X], y[when, ACCURACY]]), level)
    x_MI, y_MI = items.x[X], 100.0 * items.y[when, ACCURACY]
    edges = np.unique(np.quantile(x_MI, np.arange(1, BINS) / BINS))
    bin_MI = np.searchsorted(edges, x_MI, side="right")
    for k in range(len(edges) + 1):
        mine = bin_MI == k
        count_M = mine.sum(axis=1)
        if not count_M.all():
            continue
        mean_M = np.where(mine, y_MI, 0.0).sum(axis=1) / count_M
        half, at, mean = half_width(mean_M, level), float(x_MI[mine].mean()), float(y_MI[mine].mean())
        items_K = int(mine.sum())
        yield BinRow("", when[0], "", OF_ITEMS, k, at, mean, mean - half, mean + half, items_K)
        away = 100.0 * (at - float(x_MI.mean()))
        middle = float(y_MI.mean())
        line, *ends = (middle + away * float(b[0]) for b in slope[:3])
        yield BinRow("", when[0], "", OF_SLOPE, k, at, line, min(ends), max(ends), items_K)


EXPLAINER = Explainer("frequency_bins", BinRow, rows)
