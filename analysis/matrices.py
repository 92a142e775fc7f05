"""Correlation matrices of the benchmarks, across the stages and within each, and how alike the two within are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from evalengine.analysis.correlation import Sample, bounded_ratio
from evalengine.analysis.figure import File, Folded, Heading, Heatmaps, Intervals, Part, file_part
from evalengine.analysis.groups import ALL, Array, Data, Group, Label, Pairs
from evalengine.analysis.protocol import Protocol, Study
from evalengine.analysis.results import Results, excludes_zero
from evalengine.analysis.tables import Row

BLOCK_BYTES = 16 << 20  # replicates at once: the allocator reuses such blocks, larger ones fault pages in


def rows(study: Study) -> list[Row]:
    out = []
    for quantity in study.panel.quantities:
        for group in matrices(study.data, quantity):
            out += study.rows(group)
        out += study.rows(similarity(study.data, quantity))
    return out


def matrices(data: Data, quantity: str) -> Iterator[Group]:
    """The full cross-stage matrix (row: benchmark before, column: benchmark after) and both within-stage ones.

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
        values[scale] = _similarity(data, quantity, scale, usable, B)
        n[scale] = np.array([data.n(quantity, scale, usable).min(initial=len(panel.mixtures))])
    before, after = panel.stages
    count = B * (B - 1) // 2
    return Group("similarity", quantity, [Label(ALL, f"{count} pairs", f"{before}, {after}")], values, n)


def _similarity(data: Data, quantity: str, scale: str, pairs: Pairs, benchmarks: int) -> Array:
    """(1, C); in blocks of columns, so that memory stays bounded for many pairs."""
    sample = data.sample(quantity, scale)
    columns = sample.w_MC.shape[1]
    r_C = np.full((1, columns), np.nan)
    step = max(256, BLOCK_BYTES // (8 * max(1, len(pairs))))
    for start in range(0, columns if len(pairs) >= 3 else 0, step):
        part = slice(start, start + step)
        x_VMC = sample.x_VMC if sample.x_VMC.shape[2] == 1 else sample.x_VMC[:, :, part]
        piece = Sample(x_VMC, np.ascontiguousarray(sample.w_MC[:, part]), sample.block_M)
        block = Data(data.panel, {(quantity, scale): piece}, data.statistic)
        before, after = (block.correlate(quantity, scale, p) for p in (pairs, pairs + benchmarks))
        r_C[0, part] = _pearson_over_rows(before, after)
    return r_C


def _pearson_over_rows(x_PC: Array, y_PC: Array) -> Array:
    """Pearson r over the first axis, column by column; a row that is NaN in a column is left out of that column.

    NaN where a side does not vary: in a resample of two different mixtures every r is 1 or -1, and all may be alike.
    """
    known = np.isfinite(x_PC) & np.isfinite(y_PC)
    count = known.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        dx = np.where(known, x_PC, 0.0) - np.where(known, x_PC, 0.0).sum(axis=0) / count
        dy = np.where(known, y_PC, 0.0) - np.where(known, y_PC, 0.0).sum(axis=0) / count
        dx, dy = np.where(known, dx, 0.0), np.where(known, dy, 0.0)
        xy, xx, yy = ((a * b).sum(axis=0) / count for a, b in ((dx, dy), (dx, dx), (dy, dy)))
        r = bounded_ratio(xy, xx, yy)
    return np.where(count >= 3, r, np.nan)


def shown(results: Results) -> Iterator[Part]:
    before, after = results.method["stages"]
    yield Heading("Correlation matrices")
    yield (
        "r, bold where its interval excludes 0; grey: no r, too little varies. Intervals and n are in the table matrices."
    )
    for name, rows_of, columns_of, title in (
        ("cross", before, after, f"{before} (rows) against {after} (columns)"),
        (before, before, before, f"Within {before}"),
        (after, after, after, f"Within {after}"),
    ):
        found = results.rows("matrices", protocol=f"matrix_{name}")
        counted = f"{'; '.join(by_chance(found, results.method['level']))}."
        file = File(f"matrix_{file_part(name)}", Heatmaps(found, rows_of, columns_of))
        yield Folded(title, [counted, file], opened=name == "cross")
    similar = results.rows("matrices", protocol="similarity")
    if any(math.isfinite(row.estimate) for row in similar):
        title = "similarity of the two within-stage matrices"
        yield Intervals(similar, lambda row: row.quantity, panel=lambda row: title)
        yield (
            "Correlation over all pairs of benchmarks. Pairs share benchmarks and mixtures, so they are not so many independent "
            "observations; the interval resamples mixtures."
        )


def by_chance(rows: Sequence[Row], level: float) -> list[str]:
    """Of each quantity and scale: how many intervals of two different benchmarks exclude 0, and how many would if no r were
    other than 0, whatever the dependence between them."""
    counts: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        if row.name != row.other and math.isfinite(row.low):
            count = counts.setdefault((row.quantity, row.scale), [0, 0])
            count[0] += excludes_zero(row)
            count[1] += 1
    return [
        f"{quantity} at {scale}: {found} of {total} intervals of two different benchmarks exclude 0, where about "
        f"{(1.0 - level) * total:.0f} would by chance alone"
        for (quantity, scale), (found, total) in counts.items()
    ] or ["no intervals"]


PROTOCOL = Protocol("matrices", rows, shown)
