"""Alignment of confidence with accuracy: r_align in the three readings of its definition, and its persistence.

within models: over the benchmarks of a category within one model (mixture, stage, scale), one r per mixture, then their mean.
This is the paper's reading and comes first; its persistence is the correlation over mixtures of that r before and after.
cells: over the (benchmark, mixture) cells. across mixtures: one r per benchmark, then their mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from evalengine.analysis.claims import clearest, with_n
from evalengine.analysis.contrasts import Difference, contrast_group
from evalengine.analysis.correlation import (
    Sample,
    bounded_ratio,
    correlate,
    degrees_of_freedom,
    standardise,
    weighted_sums,
)
from evalengine.analysis.figure import File, Folded, Heading, Intervals, Part, numbers
from evalengine.analysis.groups import STAGE, UNDEFINED, Array, Data, Group, Label, Note, mean_of_known
from evalengine.analysis.protocol import Claim, Protocol, Study
from evalengine.analysis.results import Results
from evalengine.analysis.tables import Row
from evalengine.analysis.verdicts import ALPHA

WITHIN, PERSISTENCE, CELLS, ACROSS = "within models", "persistence", "cells", "across mixtures"
READINGS = {
    WITHIN: "over a category's benchmarks within each model, mean of the mixtures",
    PERSISTENCE: "persistence over mixtures of the r within models",
    CELLS: "over (benchmark, mixture) cells",
    ACROSS: "over mixtures, mean of the benchmarks",
}


def rows(study: Study) -> list[Row]:
    known = {"accuracy", "confidence"} <= set(study.panel.quantities)
    return [row for group in alignment(study.data) for row in study.rows(group)] if known else []


# r_align of a category in one reading, (C,): before, after, and after minus before over what both have.
Reading = list[Array]


def alignment(data: Data) -> list[Group]:
    """r_align of each category and stage, after minus before, and its persistence; a group for each reading, in the order of
    READINGS."""
    panel = data.panel
    found: dict[str, dict[str, list[Array]]] = {name: {} for name in READINGS}
    n, few = {}, {}
    for scale in panel.scales:
        a, c = data.sample("accuracy", scale), data.sample("confidence", scale)
        present = np.isfinite(panel.values["accuracy"][panel.scales.index(scale)]).any(axis=(0, 2))
        n[scale] = int(present.sum())
        few[scale] = bool(degrees_of_freedom(present[None], a.block_M)[0] < 3)
        for members in panel.category_members().values():
            stages = [np.array(members) + t * len(panel.benchmarks) for t in range(2)]
            sides = [(a.x_VMC[index], c.x_VMC[index]) for index in stages]
            within, persistence = _within_models(sides, a, data.statistic)
            for name, values in (
                (WITHIN, within),
                (PERSISTENCE, [persistence]),
                (CELLS, _over_cells(sides, a, data.statistic)),
                (ACROSS, _across_mixtures(sides, a, data)),
            ):
                found[name].setdefault(scale, []).extend(values)
    return [_group(data, name, by_scale, n, few) for name, by_scale in found.items()]


def _group(
    data: Data,
    name: str,
    by_scale: Mapping[str, Sequence[Array]],
    n: Mapping[str, int],
    few: Mapping[str, bool],
) -> Group:
    """From the values of all categories: of each category one (persistence), or a `Reading`; none of `few` mixtures."""
    panel = data.panel
    before, after = panel.stages
    others = ("over mixtures",) if name == PERSISTENCE else (before, after)
    labels = [Label(category, name, other) for category in panel.category_members() for other in others]
    values, counts, notes, differences = {}, {}, {}, {}
    for scale, listed in by_scale.items():
        value_SC = data.reportable(np.array(listed))
        if few[scale]:
            value_SC[:] = np.nan
        plain = np.arange(len(listed)) % 3 < 2 if len(others) == 2 else np.ones(len(listed), dtype=bool)
        values[scale] = value_SC[plain]
        counts[scale] = np.full(len(labels), n[scale])
        notes[scale] = [
            Note(UNDEFINED, f"{len(members)} benchmarks are too few for an r in each mixture")
            if len(members) < 3 and name in (WITHIN, PERSISTENCE)
            else Note()
            for members in panel.category_members().values()
            for _ in others
        ]
        differences[scale] = Difference(value_SC[~plain], counts[scale][1::2], notes[scale][1::2])
    group = Group("alignment", "accuracy,confidence", labels, values, counts, notes)
    if name == WITHIN:  # a mean over the mixtures, of values that atanh makes less skew
        group = replace(group, interval="jackknife-z", contrast_interval="jackknife")
    if len(others) == 1:
        return group
    later = [label._replace(minus=before) for label in labels if label.other == after]
    return replace(group, contrasts=(contrast_group(group, STAGE, later, differences),))


def _within_models(
    sides: Sequence[tuple[Array, Array]], sample: Sample, statistic: str
) -> tuple[Reading, Array]:
    """The mean over mixtures of each one's r over the benchmarks, and the correlation of these r before and after."""
    before_MC, after_MC = (over_benchmarks(x, y, statistic) for x, y in sides)
    every = (before_MC, after_MC, after_MC - before_MC)
    both = replace(sample, x_VMC=np.stack([before_MC, after_MC]))
    persistence = correlate(both, np.array([[0, 1]]), statistic)[0]
    return [_weighted_mean(r_MC, sample.w_MC) for r_MC in every], persistence


def over_benchmarks(x_BMC: Array, y_BMC: Array, statistic: str) -> Array:
    """(M, C): each mixture's correlation over the benchmarks; NaN for fewer than 3 benchmarks."""
    B, M, last = x_BMC.shape
    if B < 3:
        return np.full((M, last), np.nan)
    both = np.concatenate([x_BMC.transpose(1, 0, 2), y_BMC.transpose(1, 0, 2)])
    pairs = np.stack([np.arange(M), M + np.arange(M)], axis=1)
    return correlate(Sample(np.ascontiguousarray(both), np.full((B, last), 1.0 / B)), pairs, statistic)


def _over_cells(sides: Sequence[tuple[Array, Array]], sample: Sample, statistic: str) -> Reading:
    before, after = (_cells(x, y, sample, statistic) for x, y in sides)
    known = [np.isfinite(x + y) for x, y in sides]
    if (known[0] == known[1]).all():
        return [before, after, after - before]
    common = known[0] & known[1]
    first, second = (_cells(np.where(common, x, np.nan), y, sample, statistic) for x, y in sides)
    return [before, after, second - first]


def _cells(x_BMC: Array, y_BMC: Array, sample: Sample, statistic: str) -> Array:
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


def _across_mixtures(sides: Sequence[tuple[Array, Array]], sample: Sample, data: Data) -> Reading:
    B = len(sides[0][0])
    pairs = np.stack([np.arange(B), B + np.arange(B)], axis=1)
    before_BC, after_BC = (
        data.reportable(correlate(replace(sample, x_VMC=np.concatenate([x, y])), pairs, data.statistic))
        for x, y in sides
    )
    every = (before_BC, after_BC, after_BC - before_BC)
    return [mean_of_known(r_BC[np.isfinite(r_BC[:, 0])]) for r_BC in every]


def _weighted_mean(value_MC: Array, w_MC: Array) -> Array:
    """Mean over mixtures in every column; mixtures without a value are left out."""
    known = np.isfinite(value_MC)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (np.where(known, value_MC, 0.0) * w_MC).sum(axis=0) / (known * w_MC).sum(axis=0)


def shown(results: Results) -> Iterator[Part]:
    found = results.rows("alignment")
    if not found:
        return
    before, after = results.method["stages"]

    def readings(rows: list[Row], limit: float = 1.0) -> Intervals:
        return Intervals(rows, _label, panel=lambda row: READINGS.get(row.name, row.name), limit=limit)

    yield Heading("Alignment of confidence with accuracy")
    yield (
        "r_align: the correlation of accuracy with confidence over the benchmarks of a category within one model, then its mean "
        f"over mixtures; its persistence is the correlation over mixtures of that r at {before} and at {after}."
    )
    yield readings([row for row in found if row.name in (WITHIN, PERSISTENCE)])
    yield Folded(f"{after} minus {before}", [readings(results.rows("alignment", contrast=STAGE), 2.0)])
    yield Folded("Two other readings of r_align", [readings([r for r in found if r.name in (CELLS, ACROSS)])])
    # In two files: persistence has no stages, so other lines.
    for name, lines in (
        ("alignment", [row for row in found if row.name != PERSISTENCE]),
        ("alignment_persistence", [row for row in found if row.name == PERSISTENCE]),
    ):
        yield File(name, Intervals(lines, _label, panel=lambda row: row.name), shown=False)
    table = numbers("alignment", found, results.scales, ("category", "name", "other"))
    yield File("alignment", table, shown=False)


def _label(row: Row) -> str:
    return row.category if row.name == PERSISTENCE or row.contrast else f"{row.category}, {row.other}"


def claims(results: Results) -> Iterator[Claim]:
    """Of the first reading, after minus before."""
    before, after = results.method["stages"]

    def words(row: Row) -> str:
        word = "better" if row.estimate > 0 else "worse"
        at = f" ({row.scale})" if len(results.scales) > 1 else ""
        return (
            f"On {row.category} confidence follows accuracy {word} at {after} than at {before}{at}: r_align within models, "
            f"{after} minus {before}, {with_n(row)}."
        )

    return clearest(
        results.rows("alignment", name=WITHIN, contrast=STAGE),
        ALPHA,
        words,
        lambda count: (
            f"That r_align within models changes from {before} to {after} in {count} cases (category, scale; q over "
            "the categories)."
        ),
    )


PROTOCOL = Protocol("alignment", rows, shown, claims)
