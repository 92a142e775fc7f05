"""More than two stages: what carries over from each to the next, from the first, and to the last.

The transfer of each benchmark, and the mean of a category and of all, as in transfer.py, between consecutive stages, from
the first to each later one and from each earlier one to the last. What separates two later stages that both come from the
first, as several fine-tuning recipes of one base do, is the difference of their transfers: on the same resamples, with p and
q by swapping the two within mixtures (transfer_tests.py). A mixture that lacks a stage is left out of the pairs with it. Mixtures
are resampled, whatever the user resamples.

Cost: 3 T - 6 pairs of T stages, each as much as the table `transfer`.

Dims: S scales, T stages, M mixtures, B benchmarks, C columns of weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from evalengine.analysis.data.items import mean_of_known
from evalengine.analysis.data.panel import Panel, Steps
from evalengine.analysis.estimates.contrasts import contrast_group, differences
from evalengine.analysis.estimates.groups import (
    ALL,
    STAGE,
    Array,
    Data,
    Group,
    Statistic,
    mean_over_mixtures,
    means_over,
)
from evalengine.analysis.estimates.tables import CorrelateOptions, Row, rows_of
from evalengine.analysis.figure import File, Folded, Heading, Lines, Part, Table, pivot
from evalengine.analysis.protocols.protocol import Protocol, StudyData
from evalengine.analysis.protocols.transfer import category_transfer, transfer
from evalengine.analysis.protocols.transfer_tests import swapped, tests
from evalengine.analysis.results import Results, p_value, with_interval
from evalengine.analysis.statistics.bootstrap import Basis, Resamples, resamples
from evalengine.analysis.statistics.correlation import Sample
from evalengine.analysis.statistics.ranges import always, of_quantity

COMPARED = 6  # later stages up to which all are compared with each other


def pairs(count: int) -> list[tuple[int, int]]:
    """Consecutive stages, the first with each later one, each earlier one with the last; each pair once."""
    last = count - 1
    found = {pair for t in range(last) for pair in ((t, t + 1), (0, t + 1), (t, last))}
    return sorted(found)


def rows(study: StudyData) -> list[Row]:
    panel, options, steps = study.panel, study.options, study.panel.steps
    if steps is None:
        return []
    if panel.blocks is not None and steps.mixtures != panel.mixtures:  # whose blocks alone are known
        index = [steps.mixtures.index(mixture) for mixture in panel.mixtures]
        values = {quantity: x_STMB[:, :, index] for quantity, x_STMB in steps.values.items()}
        steps = steps._replace(mixtures=panel.mixtures, values=values)
    plan = study.plan
    if options.resample == "items" or steps.mixtures != panel.mixtures:
        plan = resamples(len(steps.mixtures), options.bootstrap, options.seed, panel.block_M)
    B = len(panel.benchmarks)
    out = []
    for quantity, (s, scale) in itertools.product(steps.values, enumerate(panel.scales)):
        recipes: list[Transfers] = []
        x_VM = steps.values[quantity][s].swapaxes(1, 2).reshape(-1, len(steps.mixtures))
        sample = Sample(x_VM[:, :, None], plan.weight_MC, panel.block_M)
        for t, u in pairs(len(steps.stages)):
            two = _two_stages(panel, steps, quantity, s, (t, u))
            of_two = sample.of(np.concatenate([t * B + np.arange(B), u * B + np.arange(B)]))
            single = transfer(Data(two, {(quantity, scale): of_two}, options.statistic, plan), quantity)
            found = Transfers(two, _between(single, two), _between(category_transfer(single, two), two))
            for group, p_and_q in zip(found[1:], tests(single, two, options, plan), strict=True):
                out += rows_of(group, plan, options, p_and_q)
            if t == 0 and len(steps.stages) - 1 <= COMPARED:
                recipes.append(found)
        for earlier, later in itertools.combinations(recipes, 2):
            out += _compared(earlier, later, plan, options)
        out += rows_of(_levels(panel, steps, quantity, s, scale, plan.weight_MC), plan, options)
    return out


class Transfers(NamedTuple):
    """Between two stages: of each benchmark, and the means of categories and of all."""

    two: Panel
    single: Group
    means: Group


def _between(group: Group, two: Panel) -> Group:
    """The same, with the stages in the labels: a comma is in no name that --stages can give."""
    return replace(group, labels=[label._replace(other=",".join(two.stages)) for label in group.labels])


def _two_stages(panel: Panel, steps: Steps, quantity: str, s: int, pair: tuple[int, int]) -> Panel:
    """One scale and quantity at two of the stages."""
    return replace(
        panel,
        scales=panel.scales[s : s + 1],
        stages=(steps.stages[pair[0]], steps.stages[pair[1]]),
        mixtures=steps.mixtures,
        values={quantity: steps.values[quantity][s : s + 1, pair]},
        calibration={},
        curves=None,
        items=(),
        runs={},
        steps=None,
    )


def _compared(earlier: Transfers, later: Transfers, plan: Resamples, options: CorrelateOptions) -> list[Row]:
    """Transfer to the later of two stages minus that to the earlier, both from the first: of benchmarks and of means."""
    quantity, (scale,), B = later.single.quantity, later.two.scales, len(later.single.labels)
    before_2BM, after_2BM = (of.two.variables(quantity, 0).reshape(2, B, -1) for of in (earlier, later))
    difference_BC = later.single.values[scale] - earlier.single.values[scale]
    tested = swapped(before_2BM, after_2BM, difference_BC, later.two, options, plan)
    out = []
    for ours, theirs, p_and_q in zip(later[1:], earlier[1:], tested, strict=True):
        labels = [label._replace(minus=",".join(earlier.two.stages)) for label in ours.labels]
        found = {scale: differences(labels, (ours, scale), (theirs, scale), "at both stages")}
        out += rows_of(contrast_group(ours, STAGE, found), plan, options, {(STAGE, scale): p_and_q})
    return out


def _levels(panel: Panel, steps: Steps, quantity: str, s: int, scale: str, w_MC: Array) -> Group:
    """The mean over mixtures and over a category's benchmarks at each stage, of those that every stage has."""
    x_TMB = steps.values[quantity][s]
    known = np.isfinite(x_TMB)
    mean_TBC = [mean_over_mixtures(x_MB.T, w_MC) for x_MB in x_TMB]
    everywhere = np.flatnonzero(known.any(axis=1).all(axis=0)).tolist()
    found = []
    for label, used, note in means_over(panel, everywhere, " (not at every stage)"):
        for t, stage in enumerate(steps.stages):
            mean_C, parts = mean_of_known(mean_TBC[t][used], 0), Basis.of(known[t][:, used].T)
            found.append(Statistic.of_parts(label._replace(other=stage), mean_C, parts, note))
    how = {"interval": "jackknife", "range_of": always(of_quantity(quantity))}
    return Group.of("stage_mean", quantity, {scale: found}, **how)


def shown(results: Results) -> Iterator[Part]:
    if not results.rows("stages"):
        return
    stages = results.method["all_stages"]
    yield Heading("Stages")
    yield (
        f"{' → '.join(stages)}. Mean r over mixtures of a category's benchmarks between two stages, with its interval, "
        "and the mean of their values at each stage; mixtures that lack a stage are left out of the pairs with it. All other "
        "sections compare the first stage with the last."
    )
    yield from _lines(results, stages)
    yield Folded("Transfer between stages", [_means_table(results, "", ["from", "to"])])
    if results.rows("stages", protocol="category_transfer", contrast=STAGE):
        yield Folded("Later stages compared", [_means_table(results, STAGE, ["r of", "minus r of"])])
    elif len(stages) - 1 > COMPARED:
        yield f"With more than {COMPARED} later stages they are not compared pairwise."


def _means_table(results: Results, contrast: str, sides: list[str]) -> Table:
    """The means of the categories and of all: a line for each pair of stages, or for each two pairs that are compared."""
    categories = [*results.categories, ALL]
    found = results.rows("stages", protocol="category_transfer", contrast=contrast)
    body = []
    for (quantity, scale, pair, minus), of in pivot(found, "quantity scale other minus", "category").items():
        cells = [with_interval(of.get(category)) for category in categories]
        names = [" to ".join(stages.split(",")) for stages in (pair, minus)] if contrast else pair.split(",")
        body.append([*names, quantity, scale, *cells, p_value(of[ALL].q), str(of[ALL].n)])
    head = [*sides, "quantity", "scale", *categories, f"q ({ALL})", "n"]
    return Table("", head, [body], texts=4)


def _lines(results: Results, stages: list[str]) -> Iterator[File]:
    means = results.rows("stages", protocol="category_transfer", contrast="")
    first = [row for row in means if row.other.split(",")[0] == stages[0]]
    last = [row for row in means if row.other.split(",")[1] == stages[-1]]
    levels = results.rows("stages", protocol="stage_mean", contrast="")

    def lines(rows: list[Row], places: list[str], side: int, title: str) -> Lines:
        x, panel = lambda row: row.other.split(",")[side], lambda row: f"{title}{row.quantity}, {row.scale}"
        return Lines(rows, places, x, panel, (-1.0, 1.0))

    yield File("stages_from_first", lines(first, stages[1:], 1, f"r from {stages[0]}: "))
    yield File("stages_to_last", lines(last, stages[:-1], 0, f"r to {stages[-1]}: "))
    yield File("stages_mean", lines(levels, stages, 0, "mean ")._replace(limits=None))


PROTOCOL = Protocol("stages", rows, shown)
