"""The panel: every accuracy and confidence of a study in one array, (scale, stage, mixture, benchmark).

All protocols start here. A panel comes from a score store (with its items) or from an imported table of results
(without). It has exactly two stages, `before` and `after`; mixtures without both are left out and named. Of more
stages it is the first and the last, and `steps` has all of them. Several runs of one mixture (seeds) are averaged:
the mixtures are what is compared and resampled; `runs` has each run.

Dims: S scales, T stages, M mixtures, B benchmarks, R runs of a mixture, K checkpoints, I items.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.data.cells import (
    ALL,
    Cell,
    categories_of,
    category_key,
    choose_stages,
    lacking,
    paired_cells,
    refuse_twins,
    stages_of,
)
from evalengine.analysis.data.items import (
    BenchmarkItems,
    averaged,
    factors_of,
    mean_by_row,
    mean_of_known,
    names,
    read_store,
    rows_of_runs,
)
from evalengine.analysis.statistics.calibration_error import ECE_BINS, calibration_errors
from evalengine.errors import UserError
from evalengine.labels import natural_key, scale_key
from evalengine.store.metrics import Answers

Array = NDArray[np.float64]

RESULTS_FILE = "results.arrow"
QUANTITIES = ("accuracy", "confidence", "loss")
CALIBRATION = ("ece", "ece_plugin", *Answers._fields[2:])
OTHER_CONFIDENCE = {"raw": "confidence (own)", "own": "confidence (raw)"}  # beside the one that was asked for
RESULT_KINDS = ("string",) * 7 + ("double", "int64", "double", "double", "string")  # columns of results.arrow


class Steps(NamedTuple):
    """All of three stages or more, in order: values (S, T, M, B) of the mixtures that have at least two of them."""

    stages: tuple[str, ...]
    mixtures: tuple[str, ...]
    values: dict[str, Array]


class Blocks(NamedTuple):
    """A factor of the design that mixtures share, as it is printed, and its label for each mixture of the panel."""

    factor: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Panel:
    """Values of a study. Arrays are (S, 2, M, B), NaN where a checkpoint or a benchmark is missing."""

    scales: tuple[str, ...]
    stages: tuple[str, str]
    mixtures: tuple[str, ...]
    benchmarks: tuple[str, ...]
    categories: tuple[str, ...]  # of each benchmark
    values: dict[str, Array]  # by quantity: accuracy, confidence, loss
    calibration: dict[str, Array]  # CALIBRATION, over raw log-likelihoods
    row: NDArray[np.int64]  # (S, 2, M, B): row of the mixture in items[b], -1 if missing
    n_items: NDArray[np.int64]  # (B,), 0 where unknown
    notes: tuple[str, ...]
    curves: Array | None = None  # reliability curves, (S, 2, M, B, bins, 3)
    items: tuple[BenchmarkItems, ...] = ()  # by benchmark, where the store was read
    metrics: tuple[str, ...] = ()  # the score behind each benchmark's accuracy
    stderr: Array | None = None  # (S, 2, M, B): standard errors of the accuracies, where an import gave them
    chance: Array | None = None  # (B,): accuracy of guessing, NaN where unknown
    runs: dict[str, Array] = field(default_factory=dict)  # (S, 2, M, B, R) of `values`; empty if R is 1
    steps: Steps | None = None
    confidence: str = ""  # of `metrics.CONFIDENCES`; "" where results were imported
    other_confidence: dict[str, Array] = field(
        default_factory=dict
    )  # the other confidence, where a benchmark's differ
    blocks: Blocks | None = None  # None where all mixtures are exchangeable
    # of the store's manifest: label by mixture
    factors: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def quantities(self) -> tuple[str, ...]:
        return tuple(self.values)

    @property
    def transferred(self) -> dict[str, Array]:
        """The values, and beside them the other confidence, of which transfer and means are shown."""
        return {**self.values, **self.other_confidence}

    @property
    def block_M(self) -> NDArray[np.int64] | None:
        """The number of each mixture's block."""
        if self.blocks is None:
            return None
        return np.unique(self.blocks.labels, return_inverse=True)[1].astype(np.int64)

    def category_members(self) -> dict[str, list[int]]:
        members: dict[str, list[int]] = defaultdict(list)
        for b, category in enumerate(self.categories):
            members[category].append(b)
        return dict(members)

    def with_all(self) -> dict[str, list[int]]:
        """The benchmarks of each category, and of all."""
        return {**self.category_members(), ALL: list(range(len(self.benchmarks)))}

    def variables(self, quantity: str, scale: int) -> Array:
        """(2B, M): the benchmarks before, then the benchmarks after."""
        x_TMB = self.transferred[quantity][scale]
        return np.concatenate([x_TMB[0].T, x_TMB[1].T])


def load_panel(
    source: Path | str,
    *,
    stages: Sequence[str] | None = None,
    metric: str | None = None,
    confidence: str | None = None,
) -> Panel:
    """The panel of a score store, of a folder written by `evalengine import`, or of its results.arrow.

    stages: those to compare, in order, else pt and sft, else the only two there are. confidence: one of
    `metrics.CONFIDENCES`, of a score store; raw where it is not given. Raises UserError for everything that would make the
    comparison wrong.
    """
    source = Path(source)
    results = source if source.suffix == ".arrow" else source / RESULTS_FILE
    if results.is_file():
        if metric is not None:
            raise UserError(
                "--metric chooses a score of a score store; imported results already say which they are"
            )
        if confidence is not None:
            raise UserError(
                "--confidence chooses the confidence of a score store; imported results hold the one they were made with"
            )
        return _from_results(results, stages)
    return _from_store(source, stages, metric, confidence or "raw")


def _from_store(source: Path, stages: Sequence[str] | None, metric: str | None, confidence: str) -> Panel:
    store = read_store(source, metric, confidence)
    by_name = {checkpoint.name: checkpoint for checkpoint in store.checkpoints}
    differ = any(benchmark.other_KI is not benchmark.confidence_KI for benchmark in store.benchmarks)
    shown = ("accuracy", "confidence", *([OTHER_CONFIDENCE[confidence]] if differ else []))
    cells, curve_of, items_of = [], {}, {}
    for benchmark in store.benchmarks:
        raw_KI = benchmark.confidence_KI if confidence == "raw" else benchmark.other_KI
        curve_KB3, *errors = calibration_errors(raw_KI, benchmark.correct_KI)
        calibration = (*errors, *benchmark.means_KF.T)
        by_quantity = {
            **{quantity: mean_of_known(benchmark.scores(quantity), 1) for quantity in shown},
            **dict(zip(CALIBRATION, calibration, strict=True)),
        }
        who = [by_name[name] for name in benchmark.checkpoints]
        row_K, items = rows_of_runs(who), benchmark.correct_KI.shape[1]
        for k, one in enumerate(who):
            values = {quantity: float(value_K[k]) for quantity, value_K in by_quantity.items()}
            cell = Cell(*one[:4], benchmark.name, benchmark.category, values, items, int(row_K[k]))
            cells.append(cell._replace(replicate=one.seed))
        items_of[benchmark.name] = averaged(benchmark, row_K)
        curve_of[benchmark.name] = mean_by_row(curve_KB3, row_K)
    panel = assemble(cells, stages, store.notes)
    ordered = tuple(items_of[name] for name in panel.benchmarks)
    curves = np.full((*panel.values["accuracy"].shape, ECE_BINS, 3), np.nan)
    for b, name in enumerate(panel.benchmarks):
        row_STM = panel.row[..., b]
        curves[:, :, :, b][row_STM >= 0] = curve_of[name][row_STM[row_STM >= 0]]
    return replace(
        panel,
        items=ordered,
        curves=curves,
        metrics=tuple(benchmark.metric for benchmark in ordered),
        chance=np.array([benchmark.chance for benchmark in ordered]),
        confidence=confidence,
        factors=factors_of(store.checkpoints),
    )


def _from_results(path: Path, stages: Sequence[str] | None) -> Panel:
    from evalengine.store import sealed

    try:
        table = sealed.read(path)
        kinds = tuple(str(field.type) for field in table.schema)
        if kinds not in (RESULT_KINDS, RESULT_KINDS[:9]):  # of before standard errors, chance and replicates
            raise KeyError("columns")
        grouped: dict[tuple[str, str], Cell] = {}
        for record in table.to_pylist():
            key = (record["checkpoint"], record["benchmark"])
            if record["quantity"] not in QUANTITIES or None in key:
                raise KeyError("quantity")
            who = {name: record[name] for name in Cell._fields[:6]}
            items, replicate = record["items"] or 0, record.get("replicate") or ""
            cell = grouped.get(key) or Cell(**who, values={}, items=items, replicate=replicate)
            cell.values[record["quantity"]] = _number(record["value"])
            if record["quantity"] == "accuracy":
                stderr, chance = (_number(record.get(name)) for name in ("stderr", "chance"))
                cell = cell._replace(stderr=stderr, chance=chance)
            grouped[key] = cell
    except (sealed.Damaged, KeyError, OSError):
        raise UserError(
            f"{path} is damaged or no table of results: write one with `evalengine import`"
        ) from None
    cells = list(grouped.values())
    noisy = dict.fromkeys(c.benchmark for c in cells if c.items > 1 or c.stderr == c.stderr)
    bound = (
        f"item noise of {names(noisy)} is the sampling error of each accuracy, an upper bound, as all mixtures answer the "
        "same items: reliability is at least what is shown, and r without noise no larger"
    )
    return assemble(cells, stages, [bound] if noisy else [])


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def assemble(cells: Sequence[Cell], stages: Sequence[str] | None, notes: Iterable[str] = ()) -> Panel:
    """Puts cells into arrays: chooses the stages, orders the axes, leaves out and names what has no counterpart."""
    said = list(notes)
    every, order = _of_stages(cells, stages, said)
    pair = order[0], order[-1]
    refuse_twins(every)
    known = paired_cells([cell for cell in every if cell.stage in pair], pair, said)
    category_of = categories_of(known)
    axes = Axes(
        tuple(sorted({cell.place[0] for cell in known}, key=scale_key)),
        pair,
        tuple(sorted({cell.place[2] for cell in known}, key=natural_key)),
        tuple(sorted(category_of, key=lambda name: (category_key(category_of[name]), name))),
    )
    places = axes.places(known)
    by_run = _fill(known, axes, places)
    means = {quantity: mean_of_known(x_STMBR, 4) for quantity, x_STMBR in by_run.items()}
    values, other_confidence, calibration = (
        {quantity: means[quantity] for quantity in quantities if quantity in means}
        for quantities in (QUANTITIES, OTHER_CONFIDENCE.values(), CALIBRATION)
    )
    row = np.full(axes.shape, -1, dtype=np.int64)
    n_items = np.zeros(len(axes.benchmarks), dtype=np.int64)
    stderr, chance = np.full(axes.shape, np.nan), np.full(len(axes.benchmarks), np.nan)
    for cell, at in zip(known, places, strict=True):
        row[at] = cell.row
        n_items[at[3]] = max(n_items[at[3]], cell.items)
        stderr[at] = np.fmax(stderr[at], cell.stderr)  # of several runs the largest: they share their items
        chance[at[3]] = np.fmax(chance[at[3]], cell.chance)
    checkpoints = [
        (f"{axes.scales[s]}-{axes.mixtures[m]}-{pair[t]}", (s, t, m))
        for s, t, m in sorted({(s, t, m) for s, t, m, _ in places})
    ]
    said += _missing_values(values, checkpoints, axes.benchmarks)
    several = any(x_STMBR.shape[-1] > 1 for x_STMBR in by_run.values())
    runs = {quantity: by_run[quantity] for quantity in values} if several else {}
    said += _unequal_runs(runs, checkpoints, axes.benchmarks)
    steps = _steps(every, order, axes, said) if len(order) > 2 else None
    return Panel(
        axes.scales,
        pair,
        axes.mixtures,
        axes.benchmarks,
        tuple(category_of[name] for name in axes.benchmarks),
        values,
        calibration,
        row,
        n_items,
        tuple(dict.fromkeys(said)),
        stderr=stderr,
        chance=chance,
        runs=runs,
        steps=steps,
        other_confidence=other_confidence,
    )


def _of_stages(
    cells: Sequence[Cell], stages: Sequence[str] | None, said: list[str]
) -> tuple[list[Cell], tuple[str, ...]]:
    """The cells of the stages that are compared, and these in order; what is left out is named in `said`."""
    known = [cell for cell in cells if cell.mixture is not None and cell.stage is not None]
    if len(known) < len(cells):
        unknown = sorted({cell.checkpoint for cell in cells if cell.mixture is None or cell.stage is None})
        said.append(
            f"left out, mixture or stage unknown: {names(unknown)} (named by a --manifest at scoring, by --pattern at import)"
        )
    if not known:
        raise UserError(
            "no checkpoint has a mixture and a stage, so nothing can be correlated: name checkpoints "
            "{scale}-{mixture}-{stage}, or give `evalengine score` a --manifest FILE.yaml or `evalengine import` a --pattern"
        )
    found = {str(cell.stage) for cell in known}
    order = choose_stages(found, stages)
    # Emulated stages are for `explain`.
    others = sorted((s for s in found - set(order) if not s.startswith("eft")), key=natural_key)
    if others and stages is None:
        said.append(f"stages left out: {names(others)} (--stages chooses others)")
    return [cell for cell in known if cell.stage in order], order


Place = tuple[int, int, int, int]  # scale, stage, mixture, benchmark


class Axes(NamedTuple):
    """Of the arrays of a panel."""

    scales: tuple[str, ...]
    stages: tuple[str, ...]
    mixtures: tuple[str, ...]
    benchmarks: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(len, self))

    def places(self, cells: Iterable[Cell]) -> list[Place]:
        """Where each cell belongs."""
        scale, stage, mixture, benchmark = ({name: i for i, name in enumerate(axis)} for axis in self)
        return [
            (scale[s], stage[t], mixture[m], benchmark[cell.benchmark])
            for cell in cells
            for s, t, m in [cell.place]
        ]


def _steps(cells: Sequence[Cell], order: tuple[str, ...], axes: Axes, said: list[str]) -> Steps:
    """All stages of the scales and benchmarks of the panel; mixtures that lack one in between are named."""
    used = {at: has for at, has in stages_of(cells).items() if at[0] in axes.scales and len(has) > 1}
    for scale, stage in itertools.product(axes.scales, order[1:-1]):
        if left := lacking(used, scale, stage):
            said.append(
                f"scale {scale}: no {stage} checkpoint for {names(left)}; left out of the pairs with {stage}"
            )
    axes = axes._replace(stages=order, mixtures=tuple(sorted({m for _, m in used}, key=natural_key)))
    chosen = [c for c in cells if (c.place[0], c.place[2]) in used and c.benchmark in axes.benchmarks]
    arrays = _fill(chosen, axes, axes.places(chosen))
    return Steps(order, axes.mixtures, {q: mean_of_known(arrays[q], 4) for q in QUANTITIES if q in arrays})


def _fill(cells: Sequence[Cell], axes: Axes, places: Sequence[Place]) -> dict[str, Array]:
    """By quantity, (S, T, M, B, R), the cells in their places; a mixture's run has one place in R at all stages of a scale."""
    replicates: dict[tuple[int, int], set[str]] = defaultdict(set)  # of scale and mixture
    for cell, (s, _, m, _) in zip(cells, places, strict=True):
        replicates[s, m].add(cell.replicate)
    number = {
        (*mixture, replicate): r
        for mixture, found in replicates.items()
        for r, replicate in enumerate(sorted(found, key=natural_key))
    }
    shape = (*axes.shape, 1 + max(number.values()))
    known = {quantity for cell in cells for quantity in cell.values}
    quantities = (*QUANTITIES, *OTHER_CONFIDENCE.values(), *CALIBRATION)
    arrays = {q: np.full(shape, np.nan) for q in quantities if q in known}
    for cell, at in zip(cells, places, strict=True):
        run = *at, number[at[0], at[2], cell.replicate]
        for q, value in cell.values.items():
            arrays[q][run] = value
    return arrays


def _missing_values(
    arrays: dict[str, Array],  # by quantity, (S, 2, M, B)
    checkpoints: Sequence[tuple[str, tuple[int, ...]]],  # name, place in the first three axes
    benchmarks: Sequence[str],
) -> list[str]:
    """Notes on checkpoints without a value that others have."""
    said = []
    for (q, x_STMB), (b, benchmark) in itertools.product(arrays.items(), enumerate(benchmarks)):
        holes = [name for name, at in checkpoints if not np.isfinite(x_STMB[(*at, b)])]
        if len(holes) == len(checkpoints) and len(arrays) > 1:
            continue  # of another quantity: a loss beside accuracies
        if holes:
            of = "value" if len(arrays) == 1 else q
            said.append(
                f"{benchmark} has no {of} for {names(holes, 3)}: its correlations leave those mixtures out"
            )
    return said


def _unequal_runs(
    runs: dict[str, Array],  # by quantity, (S, 2, M, B, R)
    checkpoints: Sequence[tuple[str, tuple[int, ...]]],
    benchmarks: Sequence[str],
) -> list[str]:
    """Notes on what the means over runs rest on."""
    if not runs:
        return []
    known_STMBR = np.any([np.isfinite(x) for x in runs.values()], axis=0)
    count_STM = known_STMBR.any(axis=3).sum(axis=3)
    most = int(count_STM.max())
    fewer = [f"{name} ({count_STM[at]})" for name, at in checkpoints if count_STM[at] < most]
    said = [f"{most} runs of each mixture are averaged"]
    if fewer:
        said = [f"up to {most} runs of a mixture are averaged; fewer for {names(fewer)}"]
    count_STMB = known_STMBR.sum(axis=4)
    partial_B = ((count_STMB > 0) & (count_STMB < count_STM[..., None])).any(axis=(0, 1, 2))
    if partial_B.any():
        listed = names(name for name, partial in zip(benchmarks, partial_B, strict=True) if partial)
        said.append(f"not on every run: {listed}; averaged over the runs that have a value")
    return said
