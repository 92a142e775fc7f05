"""Correlation matrices of the benchmarks, across the stages and within each, and how alike the two within are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from evalengine.analysis.data.cells import CROSS
from evalengine.analysis.estimates.groups import (
    ALL,
    NO_NOTE,
    Array,
    Data,
    Group,
    Label,
    Note,
    Pairs,
    Statistic,
)
from evalengine.analysis.estimates.tables import Row
from evalengine.analysis.figure import File, Folded, Heading, Heatmaps, IntervalPlot, Part, by, file_part
from evalengine.analysis.protocols.protocol import Protocol, StudyData
from evalengine.analysis.results import Results, excludes_zero
from evalengine.analysis.statistics.correlation import bounded_ratio
from evalengine.analysis.statistics.ranges import CORRELATION, always

FEWEST_PAIRS = 3  # of benchmarks, for the similarity of two matrices
BLOCK_BYTES = 16 << 20  # replicates at once: the allocator reuses such blocks, larger ones fault pages in


def rows(study: StudyData) -> list[Row]:
    out: list[Row] = []
    for quantity in study.panel.quantities:
        found: dict[str, list[Row]] = {}
        for group in matrices(study.data, quantity):
            found.setdefault(group.protocol, []).extend(study.rows(group))
        out += itertools.chain.from_iterable(found.values())
    return out


def matrices(data: Data, quantity: str) -> Iterator[Group]:
    """The full cross-stage matrix (row: benchmark before, column: benchmark after), both within-stage ones, and how alike these
    are.

    In blocks of pairs, so that no more than a few blocks of replicates exist at a time.
    """
    panel = data.panel
    B = len(panel.benchmarks)
    columns = data.sample(quantity, panel.scales[0]).w_MC.shape[1]
    step = max(1, BLOCK_BYTES // (8 * columns))
    square = np.array([(i, B + j) for i in range(B) for j in range(B)])
    for start in range(0, len(square), step):
        yield _matrix(data, quantity, CROSS, square[start : start + step])
    upper = np.stack(np.triu_indices(B, 1), axis=-1)
    sums = {scale: np.zeros((6, columns)) for scale in panel.scales}
    n = {scale: len(panel.mixtures) for scale in panel.scales}
    lost = dict.fromkeys(panel.scales, 0)
    used = {scale: np.zeros(len(panel.mixtures), dtype=bool) for scale in panel.scales}
    for start in range(0, len(upper), step):
        pairs = upper[start : start + step]
        before, after = (
            _matrix(data, quantity, stage, pairs + t * B) for t, stage in enumerate(panel.stages)
        )
        yield from (before, after)
        for scale in panel.scales:
            x_PC, y_PC = before.values[scale], after.values[scale]
            sums[scale] += _sums_over_rows(x_PC, y_PC)
            known_P = np.isfinite(x_PC[:, 0] + y_PC[:, 0])
            lost[scale] += int((~known_P).sum())
            for side in (before, after):
                behind = side.basis[scale].chosen(known_P)
                n[scale] = int(behind.n_S.min(initial=n[scale]))
                used[scale] |= behind.used_SM.any(axis=0)
    label = Label(ALL, f"{len(upper)} pairs", ", ".join(panel.stages))
    found = {}
    for scale in panel.scales:
        note = Note.partial(f"without {lost[scale]} of the pairs (no r)") if lost[scale] else NO_NOTE
        value_C, known = _pearson_of_sums(sums[scale]), len(upper) - lost[scale]
        if known < FEWEST_PAIRS:  # two would have an r of 1 or -1
            said = f"{known} pair{'s have' if known != 1 else ' has'} an r at both stages, {FEWEST_PAIRS} are needed"
            value_C, note = np.full(columns, np.nan), Note.undefined(said)
        found[scale] = [Statistic(label, value_C, used[scale], note, n[scale])]
    # The pairs share benchmarks and mixtures, so they are far from independent: the interval comes from resampling mixtures,
    # and a p-value that takes the pairs for so many observations would be wrong.
    yield Group.of("similarity", quantity, found, range_of=always(CORRELATION))


def _matrix(data: Data, quantity: str, name: str, pairs: Pairs) -> Group:
    panel = data.panel
    B = len(panel.benchmarks)
    labels = [
        Label(panel.categories[i % B], panel.benchmarks[i % B], panel.benchmarks[j % B]) for i, j in pairs
    ]
    return data.correlations(f"matrix_{name}", quantity, labels, pairs)


def _sums_over_rows(x_PC: Array, y_PC: Array) -> Array:
    """(6, C): how many rows are known on both sides in a column, and over these the sums of x, y, x^2, y^2 and x y."""
    known_PC = np.isfinite(x_PC) & np.isfinite(y_PC)
    x, y = np.where(known_PC, x_PC, 0.0), np.where(known_PC, y_PC, 0.0)
    return np.stack([a.sum(axis=0) for a in (known_PC, x, y, x * x, y * y, x * y)])


def _pearson_of_sums(sum_6C: Array) -> Array:
    """Pearson r over rows, column by column, of `_sums_over_rows`.

    NaN where a side does not vary: in a resample of two different mixtures every r is 1 or -1, and all may be alike.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y, xx, yy, xy = sum_6C[1:] / sum_6C[0]
        r = bounded_ratio(xy - x * y, xx - x * x, yy - y * y)
    return np.where(sum_6C[0] >= 3, r, np.nan)


def shown(results: Results) -> Iterator[Part]:
    before, after = results.method["stages"]
    yield Heading("Correlation matrices")
    yield (
        "r, bold where its interval excludes 0; grey: no r, too little varies. Intervals and n are in the table matrices."
    )
    for name, rows_of, columns_of, title in (
        (CROSS, before, after, f"{before} (rows) against {after} (columns)"),
        (before, before, before, f"Within {before}"),
        (after, after, after, f"Within {after}"),
    ):
        found = results.rows("matrices", protocol=f"matrix_{name}")
        counted = f"{'; '.join(by_chance(found, results.method['level']))}."
        file = File(f"matrix_{file_part(name)}", Heatmaps(found, rows_of, columns_of))
        yield Folded(title, [counted, file], opened=name == CROSS)
    similar = results.rows("matrices", protocol="similarity")
    if any(math.isfinite(row.estimate) for row in similar):
        title = "similarity of the two within-stage matrices"
        yield IntervalPlot(similar, lambda row: row.quantity, panel=lambda row: title)
        yield (
            "Correlation over all pairs of benchmarks. Pairs share benchmarks and mixtures, so they are not so many independent "
            f"observations; the interval resamples {results.method['resampled']}."
        )


def by_chance(rows: Sequence[Row], level: float) -> list[str]:
    """Of each quantity and scale: how many intervals of two different benchmarks exclude 0, and how many would if no r were
    other than 0, whatever the dependence between them."""
    known = [row for row in rows if row.name != row.other and math.isfinite(row.low)]
    return [
        f"{quantity} at {scale}: {sum(map(excludes_zero, mine))} of {len(mine)} intervals of two different benchmarks exclude 0, "
        f"where about {(1.0 - level) * len(mine):.0f} would by chance alone"
        for (quantity, scale), mine in by(known, lambda row: (row.quantity, row.scale)).items()
    ] or ["no intervals"]


PROTOCOL = Protocol("matrices", rows, shown)
