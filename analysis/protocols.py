"""The study's protocols as functions of weighted columns.

Each returns a `Group`: labelled statistics whose values are known in every column (the sample, the jackknife,
the resamples), scale by scale. What to do with the columns (intervals, contrasts between scales) is the same
for all and lives in `tables`.

Source of the definitions: "The Magic Correlations" (arXiv 2602.11217), restated in docs/analysis.md.
Dims: V = 2B variables (benchmarks before, then after), M mixtures, C columns, S statistics, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.correlation import Sample, correlate
from evalengine.analysis.panel import Panel

Array = NDArray[np.float64]
Pairs = NDArray[np.int64]
COLUMN_BYTES = 192 << 20  # replicates held at once by a protocol over many pairs
ALL = "All"


class Label(NamedTuple):
    """What a statistic is about: `other` is the second benchmark, stage or level, where there is one."""

    category: str
    name: str
    other: str = ""


@dataclass(frozen=True)
class Group:
    """Statistics of one protocol and quantity: per scale (S, C) values, and (S,) how many mixtures they rest
    on."""

    protocol: str
    quantity: str
    labels: list[Label]
    values: dict[str, Array]
    n: dict[str, NDArray[np.int64]]
    notes: dict[str, list[str]] = field(default_factory=dict)
    is_correlation: bool = False  # of single pairs, so that Fisher's z applies
    pairs: Pairs | None = None  # where the statistics are correlations of pairs of variables
    members: list[list[int]] | None = None  # where they are means of transfers: the benchmarks


@dataclass(frozen=True)
class Data:
    """A panel with weights: one `Sample` per scale and quantity."""

    panel: Panel
    samples: dict[tuple[str, str], Sample]  # by (quantity, scale)
    statistic: str = "pearson"

    def sample(self, quantity: str, scale: str) -> Sample:
        return self.samples[quantity, scale]

    def n(self, quantity: str, scale: str, pairs: Pairs) -> NDArray[np.int64]:
        known = np.isfinite(self.sample(quantity, scale).x_VMC[:, :, 0])
        return (known[pairs[:, 0]] & known[pairs[:, 1]]).sum(axis=1)

    def correlate(self, quantity: str, scale: str, pairs: Pairs) -> Array:
        """(P, C); NaN for pairs with fewer than 4 mixtures."""
        value_PC = correlate(self.sample(quantity, scale), pairs, self.statistic)
        value_PC[self.n(quantity, scale, pairs) < 4] = np.nan
        return value_PC


def column_parts(sample: Sample, rows: int) -> Iterator[slice]:
    """Slices of columns such that `rows` float64 rows of them stay below COLUMN_BYTES."""
    columns = sample.w_MC.shape[1]
    step = max(256, COLUMN_BYTES // (8 * max(1, rows)))
    for start in range(0, columns, step):
        yield slice(start, min(start + step, columns))


def over_columns(data: Data, quantity: str, scale: str, rows: int, reduce: Callable[[Data], Array]) -> Array:
    """Applies a column-wise reduction part by part, so that memory stays bounded for many pairs."""
    sample = data.sample(quantity, scale)
    found = []
    for part in column_parts(sample, rows):
        x = sample.x_VMC if sample.x_VMC.shape[2] == 1 else sample.x_VMC[:, :, part]
        piece = Sample(x, np.ascontiguousarray(sample.w_MC[:, part]))
        found.append(reduce(Data(data.panel, {(quantity, scale): piece}, data.statistic)))
    return np.concatenate(found, axis=1)


def transfer(data: Data, quantity: str) -> Group:
    """Cross-stage transfer of each benchmark: corr over mixtures of its value before with its value after."""
    panel = data.panel
    B = len(panel.benchmarks)
    pairs = np.stack([np.arange(B), B + np.arange(B)], axis=1)
    values, n, notes = {}, {}, {}
    for s, scale in enumerate(panel.scales):
        values[scale] = data.correlate(quantity, scale, pairs)
        n[scale] = data.n(quantity, scale, pairs)
        notes[scale] = [_why_nan(panel, quantity, s, b, int(n[scale][b])) for b in range(B)]
    labels = [Label(panel.categories[b], panel.benchmarks[b]) for b in range(B)]
    return Group("transfer", quantity, labels, values, n, notes, data.statistic == "pearson", pairs)


def _why_nan(panel: Panel, quantity: str, s: int, b: int, n: int) -> str:
    """The reason why a benchmark's transfer cannot be computed at a scale; empty if it can."""
    if n < 4:
        return f"only {n} mixtures have both values (4 needed)"
    x_TM = panel.values[quantity][s, :, :, b]
    x_TM = x_TM[:, np.isfinite(x_TM).all(axis=0)]
    for t, stage in enumerate(panel.stages):
        if np.ptp(x_TM[t]) <= 1e-12 * np.abs(x_TM[t]).max(initial=0.0):
            return f"{quantity} at {stage} is {x_TM[t, 0]:.4g} for every mixture: no spread to correlate"
    return ""


def category_transfer(single: Group, panel: Panel) -> Group:
    """The mean of a category's benchmark transfers, and of all; benchmarks without an r are left out and said
    so."""
    members = [*panel.category_members().items(), (ALL, list(range(len(panel.benchmarks))))]
    values, n, notes = {}, {}, {}
    for scale, value_BC in single.values.items():
        rows, counts, said = [], [], []
        for _, index in members:
            defined = [b for b in index if np.isfinite(value_BC[b, 0])]
            with np.errstate(invalid="ignore"):
                mean = value_BC[defined].mean(axis=0) if defined else np.full(value_BC.shape[1], np.nan)
            rows.append(mean)
            counts.append(min((int(single.n[scale][b]) for b in defined), default=0))
            lost = [panel.benchmarks[b] for b in index if b not in defined]
            said.append(f"without {', '.join(lost)} (no r)" if lost else "")
        values[scale], n[scale], notes[scale] = np.array(rows), np.array(counts), said
    labels = [Label(category, f"mean of {len(index)}") for category, index in members]
    return Group(
        "category_transfer",
        single.quantity,
        labels,
        values,
        n,
        notes,
        members=[index for _, index in members],
    )
