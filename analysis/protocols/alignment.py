"""Alignment of confidence with accuracy: r_align in the three readings of its definition, and its persistence.

within models: over the benchmarks of a category within one model (mixture, stage, scale), one r per mixture, then their mean.
This is the paper's reading and comes first; its persistence is the correlation over mixtures of that r before and after.
cells: over the (benchmark, mixture) cells. across mixtures: one r per benchmark, then their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.claims import Claim, clearest, supported, with_n
from evalengine.analysis.estimates.contrasts import contrast_group, stage_contrast
from evalengine.analysis.estimates.groups import (
    SCALE,
    STAGE,
    Array,
    Data,
    Group,
    Label,
    Means,
    Note,
    Statistic,
    group_of_means,
)
from evalengine.analysis.estimates.tables import Row
from evalengine.analysis.figure import File, Folded, Heading, IntervalPlot, Part, numbers
from evalengine.analysis.protocols.protocol import Protocol, StudyData
from evalengine.analysis.protocols.verdicts import ALPHA
from evalengine.analysis.results import Results
from evalengine.analysis.statistics.correlation import (
    Sample,
    bounded_ratio,
    correlate,
    standardise,
    weighted_sums,
)
from evalengine.analysis.statistics.ranges import CORRELATION, always

ALIGNED = "accuracy,confidence"  # the quantity
WITHIN, PERSISTENCE, CELLS, ACROSS = "within models", "persistence", "cells", "across mixtures"
READINGS = {
    WITHIN: "over a category's benchmarks within each model, mean of the mixtures",
    PERSISTENCE: "persistence over mixtures of the r within models",
    CELLS: "over (benchmark, mixture) cells",
    ACROSS: "over mixtures, mean of the benchmarks",
}


def rows(study: StudyData) -> list[Row]:
    known = {"accuracy", "confidence"} <= set(study.panel.quantities)
    return [row for group in alignment(study.data) for row in study.rows(group)] if known else []


# Accuracy and confidence of a category's benchmarks at one stage and scale, each (B, M, C).
Side = tuple[Array, Array]


class Found(NamedTuple):
    """r_align of a category in one reading, or a difference of two, (C,). known_M: the mixtures that it is of; one_side_M: those
    that only one side of the difference has."""

    value_C: Array
    known_M: NDArray[np.bool_]
    one_side_M: NDArray[np.bool_]


def alignment(data: Data) -> list[Group]:
    """r_align of each category and stage, and its persistence; a group for each reading, in the order of READINGS. Differences
    between stages and between scales are over the mixtures, cells or benchmarks that both sides have."""
    sides = {scale: _sides(data, scale) for scale in data.panel.scales}
    within = {scale: [over_benchmarks(*side, data.statistic) for side in of] for scale, of in sides.items()}
    # A mean over the mixtures, of values that atanh makes less skew.
    how = {"interval": "jackknife-z", "contrast_interval": "jackknife"}
    return [
        _group(data, WITHIN, within, _over_mixtures, **how),
        _persistence(data, within),
        _group(data, CELLS, sides, _over_cells),
        _across_mixtures(data),
    ]


def _sides(data: Data, scale: str) -> list[Side]:
    """Before and after, of one category after the other."""
    accuracy, confidence = (data.sample(q, scale).x_VMC for q in ("accuracy", "confidence"))
    B = len(data.panel.benchmarks)
    return [
        (accuracy[index], confidence[index])
        for members in data.panel.category_members().values()
        for index in (np.array(members), np.array(members) + B)
    ]


def _group(
    data: Data, name: str, by_scale: Mapping[str, Sequence[Any]], find: Callable[..., Found], **how: str
) -> Group:
    """Of every category and stage `find(data, side)`, of two stages or scales `find(data, later, earlier)`."""
    panel = data.panel
    before, after = panel.stages
    labels = [Label(category, name, t) for category in panel.category_members() for t in (before, after)]
    values = {
        scale: [_statistic(data, label, find(data, side)) for label, side in zip(labels, of, strict=True)]
        for scale, of in by_scale.items()
    }
    group = Group.of("alignment", ALIGNED, values, range_of=always(CORRELATION), **how)

    def differences(kind: str, minus: str, of: list[Label], *sides: Sequence[Any]) -> list[Statistic]:
        return [
            _statistic(data, label._replace(minus=minus), find(data, *pair), kind)
            for label, *pair in zip(of, *sides, strict=True)
        ]

    of_stages = {s: differences(STAGE, before, labels[1::2], of[1::2], of[::2]) for s, of in by_scale.items()}
    contrasts = [contrast_group(group, STAGE, of_stages)]
    if len(by_scale) > 1:
        small, *_, large = by_scale
        of_scales = differences(SCALE, small, labels, by_scale[large], by_scale[small])
        contrasts.append(contrast_group(group, SCALE, {large: of_scales}))
    return replace(group, contrasts=tuple(contrasts))


def _statistic(data: Data, label: Label, found: Found, kind: str = "") -> Statistic:
    """What is reported of it, and why nothing is; kind: of a contrast."""
    value_C, n = data.reportable(found.value_C[None].copy())[0], int(found.known_M.sum())
    benchmarks = data.panel.categories.count(label.category)
    if label.name in (WITHIN, PERSISTENCE) and benchmarks < 3:
        note = Note.undefined(f"{benchmarks} benchmarks are too few for an r in each mixture")
    elif few := data.too_few(found.known_M):
        value_C, note = np.full_like(value_C, np.nan), Note.undefined(few)
    elif np.isnan(value_C[0]):
        note = Note.undefined(data.too_little(found.known_M))
    elif found.one_side_M.any():
        note = Note.partial(f"over the {n} mixtures that have a value at both {kind}s")
    else:
        note = Note()
    return Statistic(label, value_C, found.known_M, note)


def _over_mixtures(data: Data, r_MC: Array, earlier_MC: Array | None = None) -> Found:
    """The mean over mixtures of each one's r over the benchmarks."""
    known_M = np.isfinite(r_MC[:, 0])
    either_M = known_M
    if earlier_MC is not None:
        either_M = known_M | np.isfinite(earlier_MC[:, 0])
        r_MC = r_MC - earlier_MC
        known_M = np.isfinite(r_MC[:, 0])
    return Found(_weighted_mean(r_MC, _weights(data)), known_M, either_M & ~known_M)


def _weights(data: Data) -> Array:
    return next(iter(data.samples.values())).w_MC


def _persistence(data: Data, within: Mapping[str, Sequence[Array]]) -> Group:
    """Of each category the correlation over mixtures of their r over the benchmarks before and after."""
    labels = [Label(category, PERSISTENCE, "over mixtures") for category in data.panel.category_members()]
    values: dict[str, list[Statistic]] = {}
    for scale, of in within.items():
        values[scale] = []
        for label, before_MC, after_MC in zip(labels, of[::2], of[1::2], strict=True):
            both = Sample(np.stack([before_MC, after_MC]), _weights(data), data.panel.block_M)
            r_C = correlate(both, np.array([[0, 1]]), data.statistic)[0]
            known_M = np.isfinite(before_MC[:, 0] + after_MC[:, 0])
            values[scale].append(_statistic(data, label, Found(r_C, known_M, np.zeros_like(known_M))))
    return Group.of("alignment", ALIGNED, values, range_of=always(CORRELATION))


def over_benchmarks(x_BMC: Array, y_BMC: Array, statistic: str) -> Array:
    """(M, C): each mixture's correlation over the benchmarks; NaN for fewer than 3 benchmarks."""
    B, M, last = x_BMC.shape
    if B < 3:
        return np.full((M, last), np.nan)
    both = np.concatenate([x_BMC.transpose(1, 0, 2), y_BMC.transpose(1, 0, 2)])
    pairs = np.stack([np.arange(M), M + np.arange(M)], axis=1)
    return correlate(Sample(np.ascontiguousarray(both), np.full((B, last), 1.0 / B)), pairs, statistic)


def _over_cells(data: Data, side: Side, earlier: Side | None = None) -> Found:
    """The correlation over (benchmark, mixture) cells; a difference is over those that both sides have."""
    sides = [side] if earlier is None else [side, earlier]
    known = [np.isfinite(x[:, :, 0] + y[:, :, 0]) for x, y in sides]
    common_BM, either_BM = np.logical_and.reduce(known), np.logical_or.reduce(known)
    if not (common_BM == either_BM).all():
        sides = [(np.where(common_BM[:, :, None], x, np.nan), y) for x, y in sides]
    first, *others = (_cells(x, y, data) for x, y in sides)
    known_M = common_BM.any(axis=0)
    return Found(first - others[0] if others else first, known_M, either_BM.any(axis=0) & ~known_M)


def _cells(x_BMC: Array, y_BMC: Array, data: Data) -> Array:
    """Correlation over all (benchmark, mixture) cells, each with its mixture's weight and block."""
    B, M, last = x_BMC.shape
    w_MC, block_M = _weights(data), data.panel.block_M
    cells = np.stack([x_BMC.reshape(B * M, last), y_BMC.reshape(B * M, last)])
    if data.statistic == "pearson" and last == 1 and block_M is None and np.isfinite(cells).all():
        x_BM, y_BM = standardise(cells)[:, :, 0].reshape(2, B, M)
        return _pooled(x_BM, y_BM, w_MC)
    weights = np.tile(w_MC, (B, 1)) / B
    block_M = None if block_M is None else np.tile(block_M, B)
    return correlate(Sample(cells, weights, block_M), np.array([[0, 1]]), data.statistic)[0]


def _pooled(x_BM: Array, y_BM: Array, w_MC: Array) -> Array:
    """Pearson's r over the cells of standardised variables: a mixture's cells share its weight, so their means suffice."""
    terms = np.stack([v.mean(axis=0) for v in (x_BM, y_BM, x_BM**2, y_BM**2, x_BM * y_BM)])
    x, y, xx, yy, xy = weighted_sums(terms[:, :, None], w_MC)
    return bounded_ratio(xy - x * y, xx - x * x, yy - y * y)


def _across_mixtures(data: Data) -> Group:
    """The mean over a category's benchmarks of each one's r over mixtures."""
    panel = data.panel
    B, members = len(panel.benchmarks), panel.category_members()
    # accuracy with confidence, of the benchmarks before, then after
    pairs = np.arange(4 * B).reshape(2, -1).T
    labels = [Label(category, ACROSS, stage) for category in members for stage in panel.stages]
    index = [[b + start for b in listed] for listed in members.values() for start in (0, B)]
    means = {}
    for scale in panel.scales:
        accuracy, confidence = (data.sample(q, scale) for q in ("accuracy", "confidence"))
        both = replace(accuracy, x_VMC=np.concatenate([accuracy.x_VMC, confidence.x_VMC]))
        joined = replace(data, samples={(ALIGNED, scale): both})
        at = ALIGNED, scale, pairs
        means[scale] = Means(joined.correlate(*at), joined.basis(*at), index)

    def said(scale: str, label: Label, every: Sequence[int], lost: Sequence[int]) -> Note:
        return Note.without([panel.benchmarks[v % B] for v in lost], " (no r)")

    group = group_of_means("alignment", ALIGNED, labels, means, said, range_of=always(CORRELATION))
    before, after = range(0, len(labels), 2), range(1, len(labels), 2)
    return replace(group, contrasts=(stage_contrast(group, before, after, panel.stages[0]),))


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

    def readings(rows: list[Row]) -> IntervalPlot:
        return IntervalPlot(rows, _label, panel=lambda row: READINGS.get(row.name, row.name))

    yield Heading("Alignment of confidence with accuracy")
    yield (
        "r_align: the correlation of accuracy with confidence over the benchmarks of a category within one model, then its mean "
        f"over mixtures; its persistence is the correlation over mixtures of that r at {before} and at {after}."
    )
    yield readings([row for row in found if row.name in (WITHIN, PERSISTENCE)])
    changes = readings(results.rows("alignment", contrast=STAGE))
    yield Folded(f"{after} minus {before}", [changes.of_differences()])
    yield Folded("Two other readings of r_align", [readings([r for r in found if r.name in (CELLS, ACROSS)])])
    # In two files: persistence has no stages, so other lines.
    for name, lines in (
        ("alignment", [row for row in found if row.name != PERSISTENCE]),
        ("alignment_persistence", [row for row in found if row.name == PERSISTENCE]),
    ):
        yield File(name, IntervalPlot(lines, _label, panel=lambda row: row.name), shown=False)
    table = numbers("alignment", found, results.scales, "category name other")
    yield File("alignment", table, shown=False)


def _label(row: Row) -> str:
    return row.category if row.name == PERSISTENCE or row.contrast else f"{row.category}, {row.other}"


def claims(results: Results) -> Iterator[Claim]:
    """Of the first reading, after minus before."""
    before, after = results.method["stages"]

    def words(row: Row) -> Claim:
        word = "better" if row.estimate > 0 else "worse"
        what = f"confidence follows accuracy {word} at {after} than at {before} on {row.category}"
        said = f"r_align within models, {after} minus {before}, {with_n(row)}"
        return supported(what, said, results.where(row.scale))

    open_ = (
        f"That r_align within models changes from {before} to {after} in {{count}} cases (category, scale; q over the "
        "categories)."
    )
    return clearest(results.rows("alignment", name=WITHIN, contrast=STAGE), ALPHA, words, open_)


PROTOCOL = Protocol("alignment", rows, shown, claims)
