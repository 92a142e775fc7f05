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
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.bootstrap import DEGENERATE_MOST, Resamples, degenerate_share
from evalengine.analysis.correlation import Sample, correlate, standardise
from evalengine.analysis.panel import Panel

Array = NDArray[np.float64]
Pairs = NDArray[np.int64]
BLOCK_BYTES = 16 << 20  # replicates at once: the allocator reuses such blocks, larger ones fault pages in
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
    members: dict[str, list[list[int]]] | None = None  # what means are the means of, by scale


@dataclass(frozen=True)
class Data:
    """A panel with weights: one `Sample` per scale and quantity."""

    panel: Panel
    samples: dict[tuple[str, str], Sample]  # by (quantity, scale)
    statistic: str = "pearson"
    plan: Resamples | None = None  # None in a part of the columns

    def sample(self, quantity: str, scale: str) -> Sample:
        return self.samples[quantity, scale]

    def n(self, quantity: str, scale: str, pairs: Pairs) -> NDArray[np.int64]:
        known = np.isfinite(self.sample(quantity, scale).x_VMC[:, :, 0])
        return (known[pairs[:, 0]] & known[pairs[:, 1]]).sum(axis=1)

    def correlate(self, quantity: str, scale: str, pairs: Pairs) -> Array:
        """(P, C); NaN for pairs with fewer than 4 mixtures, and for those that too many resamples leave undefined."""
        value_PC = correlate(self.sample(quantity, scale), pairs, self.statistic)
        value_PC[self.n(quantity, scale, pairs) < 4] = np.nan
        return self.reportable(value_PC)

    def reportable(self, value_SC: Array) -> Array:
        """The same, NaN throughout where more than DEGENERATE_MOST of the resamples are undefined.

        Where one mixture alone differs from the others, r is 1 or -1 in every resample that holds it and undefined in
        the rest: an interval from the former would look exact.
        """
        if self.plan is not None:
            value_SC[degenerate_share(value_SC, self.plan) > DEGENERATE_MOST] = np.nan
        return value_SC


def column_parts(sample: Sample, rows: int) -> Iterator[slice]:
    """Slices of columns such that `rows` float64 rows of them stay below BLOCK_BYTES."""
    columns = sample.w_MC.shape[1]
    step = max(256, BLOCK_BYTES // (8 * max(1, rows)))
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
        notes[scale] = [
            "" if np.isfinite(values[scale][b, 0]) else _why_nan(panel, quantity, s, b, int(n[scale][b]))
            for b in range(B)
        ]
    labels = [Label(panel.categories[b], panel.benchmarks[b]) for b in range(B)]
    return Group("transfer", quantity, labels, values, n, notes, data.statistic == "pearson")


def _why_nan(panel: Panel, quantity: str, s: int, b: int, n: int) -> str:
    """The reason why a benchmark's transfer is not reported at a scale."""
    if n < 4:
        return f"{n} mixture{'s have' if n != 1 else ' has'} both values, 4 are needed"
    x_TM = panel.values[quantity][s, :, :, b]
    x_TM = x_TM[:, np.isfinite(x_TM).all(axis=0)]
    for t, stage in enumerate(panel.stages):
        if np.ptp(x_TM[t]) <= 1e-12 * np.abs(x_TM[t]).max(initial=0.0):
            return f"{quantity} at {stage} is {x_TM[t, 0]:.4g} for every mixture: no spread to correlate"
    different = min(len(np.unique(np.round(x, 12))) for x in x_TM)
    return (
        f"{quantity} takes only {different} different values over {n} mixtures, so unevenly that r is undefined in more than "
        f"{DEGENERATE_MOST:.0%} of the resamples"
    )


def category_transfer(single: Group, panel: Panel) -> Group:
    """The mean of a category's benchmark transfers, and of all; benchmarks without an r are left out and said so.

    In a resample the mean is over the benchmarks that have an r in it: each lacks one in few (`reportable`), but
    one or other of twenty does in many.
    """
    members = [*panel.category_members().items(), (ALL, list(range(len(panel.benchmarks))))]
    values, n, notes, defined_at = {}, {}, {}, {}
    for scale, value_BC in single.values.items():
        rows, counts, said = [], [], []
        defined_at[scale] = [[b for b in index if np.isfinite(value_BC[b, 0])] for _, index in members]
        for _, index in members:
            defined = [b for b in index if np.isfinite(value_BC[b, 0])]
            rows.append(_mean_of_known(value_BC[defined]))
            counts.append(min((int(single.n[scale][b]) for b in defined), default=0))
            lost = [panel.benchmarks[b] for b in index if b not in defined]
            said.append(f"without {', '.join(lost)} (no r)" if lost else "")
        values[scale], n[scale], notes[scale] = np.array(rows), np.array(counts), said
    labels = []
    for k, (category, index) in enumerate(members):
        sizes = {len(defined[k]) for defined in defined_at.values()}
        of = f"{sizes.pop()} of {len(index)}" if len(sizes) == 1 else f"up to {len(index)}"
        labels.append(
            Label(
                category,
                f"mean of {len(index)}" if of == f"{len(index)} of {len(index)}" else f"mean of {of}",
            )
        )
    return Group(
        "category_transfer",
        single.quantity,
        labels,
        values,
        n,
        notes,
        members=defined_at,
    )


def _mean_of_known(value_SC: Array) -> Array:
    """(C,): each column's mean over the statistics that it defines; NaN where it defines none."""
    known_SC = np.isfinite(value_SC)
    with np.errstate(invalid="ignore"):
        mean_C: Array = np.where(known_SC, value_SC, 0.0).sum(axis=0) / known_SC.sum(axis=0)
    return mean_C


def matrices(data: Data, quantity: str) -> Iterator[Group]:
    """The full cross-stage matrix (row: benchmark before, column: benchmark after) and both within-stage
    ones.

    In blocks of pairs, so that no more than a few blocks of replicates exist at a time.
    """
    panel = data.panel
    B = len(panel.benchmarks)
    square = np.array([(i, B + j) for i in range(B) for j in range(B)])
    upper = np.stack(np.triu_indices(B, 1), axis=-1)
    columns = data.sample(quantity, panel.scales[0]).w_MC.shape[1]
    step = max(1, BLOCK_BYTES // (8 * columns))
    before, after = panel.stages
    for name, every in (("cross", square), (before, upper), (after, upper + B)):
        for start in range(0, len(every), step):
            pairs = every[start : start + step]
            values = {scale: data.correlate(quantity, scale, pairs) for scale in panel.scales}
            n = {scale: data.n(quantity, scale, pairs) for scale in panel.scales}
            labels = [
                Label(panel.categories[i % B], panel.benchmarks[i % B], panel.benchmarks[j % B])
                for i, j in pairs
            ]
            yield Group(f"matrix_{name}", quantity, labels, values, n, {}, data.statistic == "pearson")


def similarity(data: Data, quantity: str) -> Group:
    """Correlation of the two within-stage matrices over their off-diagonal pairs (190 for 20 benchmarks).

    The pairs share benchmarks and mixtures, so they are far from independent: the interval comes from
    resampling mixtures, and a p-value that takes the pairs for so many observations would be wrong.
    """
    panel = data.panel
    B = len(panel.benchmarks)
    upper = np.stack(np.triu_indices(B, 1), axis=-1)
    values, n = {}, {}
    for scale in panel.scales:
        itself = np.stack([np.arange(2 * B)] * 2, axis=1)
        varies = np.isfinite(data.correlate(quantity, scale, itself)[:, 0])
        usable = upper[varies[upper].all(axis=1) & varies[upper + B].all(axis=1)]
        values[scale] = np.full((1, data.sample(quantity, scale).w_MC.shape[1]), np.nan)
        if len(usable) >= 3:
            reduce = partial(_similarity, quantity=quantity, scale=scale, pairs=usable, benchmarks=B)
            values[scale] = over_columns(data, quantity, scale, len(usable), reduce)
        n[scale] = np.array([data.n(quantity, scale, usable).min(initial=len(panel.mixtures))])
    before, after = panel.stages
    count = B * (B - 1) // 2
    return Group("similarity", quantity, [Label(ALL, f"{count} pairs", f"{before}, {after}")], values, n)


def _similarity(data: Data, quantity: str, scale: str, pairs: Pairs, benchmarks: int) -> Array:
    before = data.correlate(quantity, scale, pairs)
    return _pearson_over_rows(before, data.correlate(quantity, scale, pairs + benchmarks))[None]


def _pearson_over_rows(x_PC: Array, y_PC: Array) -> Array:
    """Pearson r over the first axis, column by column; a row that is NaN in a column is left out of that
    column."""
    known = np.isfinite(x_PC) & np.isfinite(y_PC)
    count = known.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        dx = np.where(known, x_PC, 0.0) - np.where(known, x_PC, 0.0).sum(axis=0) / count
        dy = np.where(known, y_PC, 0.0) - np.where(known, y_PC, 0.0).sum(axis=0) / count
        dx, dy = np.where(known, dx, 0.0), np.where(known, dy, 0.0)
        r = (dx * dy).sum(axis=0) / np.sqrt((dx**2).sum(axis=0) * (dy**2).sum(axis=0))
    return np.where(count >= 3, r, np.nan)


def coherence(data: Data, quantity: str) -> Group:
    """Intra-category coherence: mean r over pairs of a category's benchmarks; both before, both after, and
    across."""
    panel = data.panel
    B = len(panel.benchmarks)
    labels: list[Label] = []
    chosen: list[Pairs] = []
    for category, members in panel.category_members().items():
        pairs = np.array([(i, j) for i in members for j in members if i < j], dtype=np.int64).reshape(-1, 2)
        across = np.concatenate([pairs, pairs[:, ::-1]]) + np.array([0, B])
        for name, these in ((panel.stages[0], pairs), (panel.stages[1], pairs + B), ("cross", across)):
            labels.append(Label(category, name, f"{len(these)} pairs"))
            chosen.append(these)
    values, n, notes, defined_at = {}, {}, {}, {}
    for scale in panel.scales:
        rows, counts, said, kept = [], [], [], []
        for label, pairs in zip(labels, chosen, strict=True):
            value_PC = data.correlate(quantity, scale, pairs)
            defined = np.isfinite(value_PC[:, 0]) if len(pairs) else np.zeros(0, dtype=bool)
            kept.append(np.flatnonzero(defined).tolist())
            rows.append(_mean_of_known(value_PC[defined]))
            counts.append(data.n(quantity, scale, pairs).min(initial=len(panel.mixtures)))
            lost = len(pairs) - int(defined.sum())
            why = f"{label.category} has one benchmark, so no pairs" if not len(pairs) else ""
            said.append(why or (f"without {lost} of the pairs (no r)" if lost else ""))
        values[scale], n[scale], notes[scale] = np.array(rows), np.array(counts), said
        defined_at[scale] = kept
    return Group("coherence", quantity, labels, values, n, notes, members=defined_at)


def alignment(data: Data) -> Group:
    """r_align = corr(accuracy, confidence) of each category and stage, in the three readings of its
    definition.

    cells: over the (benchmark, mixture) cells; mixtures: over the category's benchmarks, one r per mixture,
    then their mean; benchmarks: over mixtures, one r per benchmark, then their mean. Persistence: corr over
    mixtures of the per-mixture r before and after.
    """
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
        total = len(panel.mixtures)
        rows: list[Array] = []
        persistence: list[Array] = []
        said: list[str] = []
        for members in panel.category_members().values():
            by_stage = []
            for reading in ("cells", "mixtures", "benchmarks"):
                for t in range(2):
                    index = np.array(members) + t * B
                    x, y = a.x_VMC[index], c.x_VMC[index]
                    if reading == "cells":
                        rows.append(_over_cells(x, y, a.w_MC, data.statistic))
                    elif reading == "mixtures":
                        per_mixture_MC = _over_benchmarks(x, y, data.statistic)
                        by_stage.append(per_mixture_MC)
                        rows.append(_weighted_mean(per_mixture_MC, a.w_MC))
                    else:
                        rows.append(_mean_over_benchmarks(x, y, a.w_MC, data))
                    few = len(members) < 3 and reading == "mixtures"
                    said.append(
                        f"{len(members)} benchmarks are too few for an r in each mixture" if few else ""
                    )
            pair = Sample(np.stack(by_stage), a.w_MC)
            persistence.append(correlate(pair, np.array([[0, 1]]), data.statistic)[0])
        values[scale] = data.reportable(np.array(rows + persistence))
        present = np.isfinite(panel.values["accuracy"][panel.scales.index(scale)]).any(axis=(0, 2))
        n[scale] = np.full(len(labels), min(total, int(present.sum())))
        values[scale][n[scale] < 4] = np.nan
        notes[scale] = said + [""] * len(persistence)
    return Group("alignment", "accuracy,confidence", labels, values, n, notes)


def _over_benchmarks(x_BMC: Array, y_BMC: Array, statistic: str) -> Array:
    """(M, C): each mixture's correlation over the benchmarks; NaN for fewer than 3 benchmarks."""
    B, M, last = x_BMC.shape
    if B < 3:
        return np.full((M, last), np.nan)
    both = np.concatenate([x_BMC.transpose(1, 0, 2), y_BMC.transpose(1, 0, 2)])
    pairs = np.stack([np.arange(M), M + np.arange(M)], axis=1)
    return correlate(Sample(np.ascontiguousarray(both), np.full((B, last), 1.0 / B)), pairs, statistic)


def _over_cells(x_BMC: Array, y_BMC: Array, w_MC: Array, statistic: str) -> Array:
    """Correlation over all (benchmark, mixture) cells, each with its mixture's weight."""
    B, M, last = x_BMC.shape
    cells = np.stack([x_BMC.reshape(B * M, last), y_BMC.reshape(B * M, last)])
    if statistic == "pearson" and last == 1 and np.isfinite(cells).all():
        x_BM, y_BM = standardise(cells)[:, :, 0].reshape(2, B, M)
        return _pooled(x_BM, y_BM, w_MC)
    weights = np.tile(w_MC, (B, 1)) / B
    return correlate(Sample(cells, weights), np.array([[0, 1]]), statistic)[0]


def _pooled(x_BM: Array, y_BM: Array, w_MC: Array) -> Array:
    """Pearson's r over the cells of standardised variables: a mixture's cells share its weight, so their means suffice."""
    from evalengine.analysis.resampling_kernels import TINY, weighted_sums

    terms = np.stack([v.mean(axis=0) for v in (x_BM, y_BM, x_BM**2, y_BM**2, x_BM * y_BM)])
    x, y, xx, yy, xy = weighted_sums(terms, w_MC)
    xx, yy, xy = xx - x * x, yy - y * y, xy - x * y
    varies = (xx > TINY) & (yy > TINY)
    r_C = np.full(len(xy), np.nan)
    r_C[varies] = (xy[varies] / np.sqrt(xx[varies] * yy[varies])).clip(-1.0, 1.0)
    return r_C


def _mean_over_benchmarks(x_BMC: Array, y_BMC: Array, w_MC: Array, data: Data) -> Array:
    B = len(x_BMC)
    pairs = np.stack([np.arange(B), B + np.arange(B)], axis=1)
    value_BC = data.reportable(correlate(Sample(np.concatenate([x_BMC, y_BMC]), w_MC), pairs, data.statistic))
    return _mean_of_known(value_BC[np.isfinite(value_BC[:, 0])])


def _weighted_mean(value_MC: Array, w_MC: Array) -> Array:
    """Mean over mixtures in every column; mixtures without a value are left out."""
    known = np.isfinite(value_MC)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (np.where(known, value_MC, 0.0) * w_MC).sum(axis=0) / (known * w_MC).sum(axis=0)


def means(panel: Panel, quantity: str, value_STMB: Array, weight_MC: Array) -> Group:
    """Mean over mixtures of each benchmark's value at both stages: levels and calibration (ECE, Brier, NLL,
    ...)."""
    B = len(panel.benchmarks)
    labels = [
        Label(panel.categories[b], panel.benchmarks[b], stage) for b in range(B) for stage in panel.stages
    ]
    values, n = {}, {}
    for s, scale in enumerate(panel.scales):
        x_LM = np.stack([value_STMB[s, t, :, b] for b in range(B) for t in range(2)])
        known = np.isfinite(x_LM)
        with np.errstate(invalid="ignore", divide="ignore"):
            values[scale] = (np.where(known, x_LM, 0.0) @ weight_MC) / (known.astype(np.float64) @ weight_MC)
        n[scale] = known.sum(axis=1)
    return Group("mean", quantity, labels, values, n)
