"""Cross-stage transfer: does a mixture that is better before stay better after?

Of each benchmark: corr over mixtures of its value before with its value after. Of a category and of all: the mean of its
benchmarks' r. With permutation p-values, adjusted within a scale. And their contrasts: between scales, between categories, and
of accuracy with confidence, whose transfer may change with scale in opposite directions.

Source of the definitions here and in the other protocols: "The Magic Correlations" (arXiv 2602.11217), restated in
docs/analysis.md.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from evalengine.analysis.claims import (
    CAUTION,
    SUPPORTED,
    UNSUPPORTED,
    Claim,
    claim,
    supported,
    unsupported,
    with_n,
)
from evalengine.analysis.data.panel import Panel
from evalengine.analysis.estimates.contrasts import category_contrasts, differences, scale_contrast
from evalengine.analysis.estimates.groups import (
    ALL,
    CATEGORY,
    OFTEN_UNDEFINED,
    QUANTITY,
    SCALE,
    Data,
    Group,
    Label,
    mean_name,
    means_of,
)
from evalengine.analysis.estimates.tables import Row
from evalengine.analysis.figure import File, Folded, Heading, IntervalPlot, Part, file_part
from evalengine.analysis.protocols.protocol import Protocol, StudyData
from evalengine.analysis.protocols.scatter import scatters
from evalengine.analysis.protocols.transfer_table import transfer_table, words
from evalengine.analysis.protocols.transfer_tests import tests
from evalengine.analysis.protocols.verdicts import ALPHA, verdict_claims, verdict_section
from evalengine.analysis.results import (
    Results,
    excludes_zero,
    interval_words,
    n_words,
    percent,
    with_interval,
)
from evalengine.analysis.statistics.correlation import residuals
from evalengine.analysis.statistics.ranges import of_difference

BOTH = "accuracy − confidence"  # the quantity of the difference of both


def rows(study: StudyData) -> list[Row]:
    panel = study.panel
    singles = {quantity: transfer(study.data, quantity) for quantity in panel.transferred}
    out = []
    for single in singles.values():
        means = category_transfer(single, panel)
        means = replace(means, contrasts=category_contrasts(means))
        for group, p_and_q in zip(
            (single, means), tests(single, panel, study.options, study.plan), strict=True
        ):
            out += study.rows(group, p_and_q)
    if {"accuracy", "confidence"} <= set(singles):
        for group in quantity_contrasts(singles["accuracy"], singles["confidence"], panel):
            out += study.rows(group)
    return out


def transfer(data: Data, quantity: str) -> Group:
    """Cross-stage transfer of each benchmark: corr over mixtures of its value before with its value after."""
    panel = data.panel
    B = len(panel.benchmarks)
    pairs = np.stack([np.arange(B), B + np.arange(B)], axis=1)
    labels = list(map(Label, panel.categories, panel.benchmarks))
    why = functools.partial(_why_nan, panel, quantity)
    return data.correlations("transfer", quantity, labels, pairs, why, contrast_interval="jackknife")


def _why_nan(panel: Panel, quantity: str, scale: str, b: int) -> str:
    """The reason why a benchmark's transfer is not reported at a scale where enough mixtures have both values."""
    within = f" within {panel.blocks.factor}" if panel.blocks else ""
    x_TM = panel.transferred[quantity][panel.scales.index(scale), :, :, b]
    known_M = np.isfinite(x_TM).all(axis=0)
    n, x_TM = int(known_M.sum()), x_TM[:, known_M]
    for t, stage in enumerate(panel.stages):
        if np.ptp(x_TM[t]) <= 1e-12 * np.abs(x_TM[t]).max(initial=0.0):
            return f"{quantity} at {stage} is {x_TM[t, 0]:.4g} for every mixture: no spread to correlate"
        if panel.block_M is not None and not residuals(x_TM[t : t + 1], panel.block_M[known_M]).any():
            return f"{quantity} at {stage} does not vary{within}: no spread to correlate"
    different = min(len(np.unique(np.round(x, 12))) for x in x_TM)
    if different == n:  # the mixtures that are resampled are all, and some resamples hold hardly one of these
        return f"{n} of {len(panel.mixtures)} mixtures have both values: r{within} is {OFTEN_UNDEFINED}"
    return f"{quantity} takes only {different} different values over {n} mixtures, so unevenly that r is {OFTEN_UNDEFINED}"


def category_transfer(single: Group, panel: Panel) -> Group:
    """The mean of a category's benchmark transfers, and of all (`means_of`)."""
    members = panel.with_all()
    values = single.values.values()
    labels = [Label(category, mean_name(values, index)) for category, index in members.items()]
    means = means_of(single, "category_transfer", labels, list(members.values()))
    return replace(means, contrast_interval="jackknife")


def quantity_contrasts(accuracy: Group, confidence: Group, panel: Panel) -> Iterator[Group]:
    """The transfer of accuracy minus that of confidence, of benchmarks and as means over those that have both; and the
    difference of these differences between the largest scale and the smallest, of the quantity BOTH.
    """
    found = {
        scale: differences(accuracy.labels, (accuracy, scale), (confidence, scale), "")
        for scale in accuracy.values
    }
    how = {"contrast_interval": accuracy.contrast_interval, "range_of": of_difference(accuracy.range_of)}
    single = Group.of("transfer", BOTH, found, **how)
    for group in (single, category_transfer(single, panel)):
        labels = [label._replace(minus=confidence.quantity) for label in group.labels]
        kind = group.contrast_interval
        yield replace(group, quantity=accuracy.quantity, labels=labels, interval=kind, contrast=QUANTITY)
        if len(found) > 1:
            yield scale_contrast(group)


def shown(results: Results) -> Iterator[Part]:
    method = results.method
    before, after = method["stages"]
    means, single = (_shown(results, protocol=protocol) for protocol in ("category_transfer", "transfer"))
    yield Heading("Transfer")
    yield (
        f"Correlation over mixtures of a benchmark's value at {before} with its value at {after}. "
        f"{interval_words(results)}; {n_words(single)} mixtures. A star marks a note below."
    )
    yield Heading("Category means", 3)
    yield File("category_transfer", _of_means(means))
    yield Heading("Benchmarks", 3)
    yield File("benchmark_transfer", _of_benchmarks(single))
    if other := method["other_confidence"]:
        grids = [
            draw(results.rows("transfer", protocol=protocol, quantity=other))
            for protocol, draw in (("category_transfer", _of_means), ("transfer", _of_benchmarks))
        ]
        yield Folded(other.capitalize(), grids)
    for quantity in method["quantities"]:
        table = transfer_table(results, quantity, results.scales)
        yield Folded(f"{quantity.capitalize()}: the numbers", [table, words(results, quantity)])
        for scale in results.scales:
            one = transfer_table(results, quantity, [scale])
            yield File(f"transfer_{quantity}_{file_part(scale)}", one, shown=False)
    yield Heading("Before against after", 3)
    yield "Each mixture's value at both stages, and r with its interval."
    for scale in reversed(results.scales):
        for quantity in method["quantities"]:
            file = File(f"scatter_{quantity}_{file_part(scale)}", scatters(results, quantity, scale))
            yield Folded(f"{quantity.capitalize()}, {scale}", [file])
    yield from _differences(results)
    yield from verdict_section(results)


def _differences(results: Results) -> Iterator[Part]:
    """Between the scales, the quantities and the categories; no part where there are none."""
    both = _of_benchmarks(results.rows("transfer", contrast=QUANTITY))
    changes = _of_benchmarks(results.rows("transfer", quantity=BOTH, contrast=SCALE))
    pairs = IntervalPlot(_shown(results, contrast=CATEGORY), lambda row: f"{row.category} − {row.minus}")
    for title, figures in (
        (
            f"Differences between scales ({results.scales[-1]} minus {results.scales[0]})",
            [_of_benchmarks(_shown(results, contrast=SCALE)).of_differences()],
        ),
        (
            "Transfer of accuracy minus transfer of confidence",
            [
                both._replace(panel=lambda row: BOTH).of_differences(),
                changes._replace(panel=lambda row: f"{BOTH}, {row.at}").of_differences(4.0),
            ],
        ),
        ("Differences between the means of categories", [pairs.of_differences()]),
    ):
        if any(figure.rows for figure in figures):
            yield Folded(title, ["The same resamples on both sides.", *figures])


def _shown(results: Results, **fixed: str) -> list[Row]:
    """Rows of the quantities, without the confidence that was not asked for."""
    return [r for r in results.rows("transfer", **fixed) if r.quantity in results.method["quantities"]]


def _of_means(rows: Sequence[Row]) -> IntervalPlot:
    # Not their names: how many benchmarks a mean is over may differ between quantities, and it is one line all the same.
    return IntervalPlot(rows, lambda row: row.category)


def _of_benchmarks(rows: Sequence[Row]) -> IntervalPlot:
    def label(row: Row) -> str:
        return "mean" if row.protocol == "category_transfer" else row.name

    return IntervalPlot(rows, label, group=lambda row: row.category)


def claims(results: Results) -> Iterator[Claim]:
    for quantity in results.method["quantities"]:
        yield from _overall(results, quantity)
        yield from verdict_claims(results, quantity)
        yield from _tests(results, quantity)
    yield from _inverse_dynamics(results)
    single = _shown(results, protocol="transfer")
    if widths := [row.high - row.low for row in single if math.isfinite(row.low)]:
        width = statistics.median(widths)
        yield Claim(
            CAUTION,
            f"The median {percent(results.method['level'])} interval of a benchmark's r is "
            f"{width:{'.2f' if width >= 0.01 else '.1g'}} wide, of a possible 2.",
        )


def _overall(results: Results, quantity: str) -> Iterator[Claim]:
    before, after = results.method["stages"]
    means = {"protocol": "category_transfer", "quantity": quantity}
    for row in results.rows("transfer", **means, category=ALL):
        if not math.isfinite(row.estimate):
            continue
        r = f"mean r = {with_n(row)}"
        clean = results.rows(
            "reliability", protocol="category_reliability", quantity=quantity, scale=row.scale, category=ALL
        )
        if clean and math.isfinite(clean[0].low):
            r += f"; without item noise {with_interval(clean[0])}"
        yield claim(
            row,
            above=f"mixtures with higher {quantity} at {before} tend to have higher {quantity} at {after}, over all benchmarks",
            below=f"{quantity} reverses from {before} to {after}, over all benchmarks",
            otherwise=f"{quantity} carries over on average over the benchmarks",
            said=r,
            at=results.where(row.scale),
        )
    for row in results.rows("transfer", **means, contrast=SCALE):
        clear = excludes_zero(row) and row.q < ALPHA
        if clear or (row.category == ALL and math.isfinite(row.estimate)):
            name = "all benchmarks" if row.category == ALL else row.category
            what, where = f"transfer of {quantity} on {name}", f"at {row.scale} than at {row.minus}"
            yield claim(
                row,
                above=f"{what} is higher {where}",
                below=f"{what} is lower {where}",
                otherwise=f"{what} changes from {row.minus} to {row.scale}",
                tested=clear,
                said=f"difference of the mean r {with_n(row)}",
            )


def _inverse_dynamics(results: Results) -> Iterator[Claim]:
    """Whether accuracy's transfer and confidence's change with scale in opposite directions."""
    fixed = {"protocol": "category_transfer", "category": ALL, "contrast": SCALE}
    known = {q: results.rows("transfer", quantity=q, **fixed) for q in ("accuracy", "confidence", BOTH)}
    if not all(rows and math.isfinite(rows[0].low) for rows in known.values()):
        return
    accuracy, confidence, both = (rows[0] for rows in known.values())
    clear = excludes_zero(accuracy) and excludes_zero(confidence)
    opposite = clear and accuracy.estimate * confidence.estimate < 0
    said = (
        f"mean r over all benchmarks, {both.at}, of accuracy {with_interval(accuracy)}, of confidence "
        f"{with_interval(confidence)}, difference {with_n(both)}"
    )
    change = "the transfers of accuracy and of confidence change with scale"
    if not opposite and excludes_zero(both):
        yield supported(f"{change} differently", said)
    yield (supported if opposite else unsupported)(f"{change} in opposite directions", said)


def _tests(results: Results, quantity: str) -> Iterator[Claim]:
    single = results.rows("transfer", protocol="transfer", quantity=quantity)
    rows = [r for r in single if math.isfinite(r.q)]
    if rows:
        lost = sum(r.q >= 0.05 for r in rows)
        yield Claim(
            UNSUPPORTED if lost else SUPPORTED,
            f"A non-zero transfer of {quantity} in {lost or len(rows)} of {len(rows)} tests (benchmark and scale) once the "
            f"false-discovery rate is held at 5% within each scale (permutation tests, Benjamini-Hochberg).",
        )


PROTOCOL = Protocol("transfer", rows, shown, claims)
