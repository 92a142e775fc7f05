"""The panel: every accuracy and confidence of a study in one array, (scale, stage, mixture, benchmark).

All protocols start here. A panel comes from a score store (with its items) or from an imported table of results
(without). It has exactly two stages, `before` and `after`; mixtures without both are left out and named.

Dims: S scales, T = 2 stages, M mixtures, B benchmarks, K checkpoints, I items.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.items import (
    ECE_BINS,
    BenchmarkItems,
    expected_calibration_error,
    names,
    read_store,
    reliability,
)
from evalengine.errors import UserError
from evalengine.metrics import Answers

Array = NDArray[np.float64]
DEFAULT_STAGES = ("pt", "sft")
CATEGORY_ORDER = ("Commonsense", "Science", "NLI", "Semantic")
RESULTS_FILE = "results.arrow"
QUANTITIES = ("accuracy", "confidence", "loss")
CALIBRATION = Answers._fields[2:]


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
    calibration: dict[str, Array]  # ece, brier, nll, p_gold, margin, entropy
    row: NDArray[np.int64]  # (S, 2, M, B): row of the checkpoint in items[b], -1 if missing
    n_items: NDArray[np.int64]  # (B,), 0 where unknown
    notes: tuple[str, ...]
    curves: Array | None = None  # reliability curves, (S, 2, M, B, bins, 3)
    items: tuple[BenchmarkItems, ...] = ()  # by benchmark, where the store was read
    metrics: tuple[str, ...] = ()  # the score behind each benchmark's accuracy
    blocks: Blocks | None = None  # None where all mixtures are exchangeable

    @property
    def quantities(self) -> tuple[str, ...]:
        return tuple(self.values)

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

    def variables(self, quantity: str, scale: int) -> Array:
        """(2B, M): the benchmarks before, then the benchmarks after."""
        x_TMB = self.values[quantity][scale]
        return np.concatenate([x_TMB[0].T, x_TMB[1].T])


class Cell(NamedTuple):
    """One checkpoint on one benchmark."""

    checkpoint: str
    scale: str | None
    mixture: str | None
    stage: str | None
    benchmark: str
    category: str
    values: dict[str, float]
    items: int
    row: int = -1

    @property
    def place(self) -> tuple[str, str, str]:
        """Scale, stage and mixture."""
        return self.scale or "all", str(self.stage), str(self.mixture)


def load_panel(
    source: Path | str, *, stages: Sequence[str] | None = None, metric: str | None = None
) -> Panel:
    """The panel of a score store, of a folder written by `evalengine import`, or of its results.arrow.

    stages: the two to compare, else pt and sft, else the only two there are. Raises UserError for everything that would
    make the comparison wrong.
    """
    source = Path(source)
    results = source if source.suffix == ".arrow" else source / RESULTS_FILE
    if results.is_file():
        if metric is not None:
            raise UserError(
                "--metric chooses a score of a score store; imported results already say which they are"
            )
        return _from_results(results, stages)
    return _from_store(source, stages, metric)


def _from_store(source: Path, stages: Sequence[str] | None, metric: str | None) -> Panel:
    store = read_store(source, metric)
    by_name = {checkpoint.name: checkpoint for checkpoint in store.checkpoints}
    cells, curve_of = [], {}
    for benchmark in store.benchmarks:
        curve_KB3 = reliability(benchmark.confidence_KI, benchmark.correct_KI, ECE_BINS)
        curve_of[benchmark.name] = curve_KB3
        by_quantity = {
            "accuracy": benchmark.correct_KI.mean(axis=1, dtype=np.float64),
            "confidence": benchmark.confidence_KI.mean(axis=1, dtype=np.float64),
            "ece": expected_calibration_error(curve_KB3),
            **dict(zip(CALIBRATION, benchmark.means_KF.T, strict=True)),
        }
        items = benchmark.correct_KI.shape[1]
        for k, name in enumerate(benchmark.checkpoints):
            values = {quantity: float(value_K[k]) for quantity, value_K in by_quantity.items()}
            cells.append(Cell(*by_name[name], benchmark.name, benchmark.category, values, items=items, row=k))
    panel = assemble(cells, stages, store.notes)
    of_name = {benchmark.name: benchmark for benchmark in store.benchmarks}
    ordered = tuple(of_name[name] for name in panel.benchmarks)
    curves = np.full((*panel.values["accuracy"].shape, ECE_BINS, 3), np.nan)
    for b, name in enumerate(panel.benchmarks):
        row_STM = panel.row[..., b]
        curves[:, :, :, b][row_STM >= 0] = curve_of[name][row_STM[row_STM >= 0]]
    return replace(
        panel, items=ordered, curves=curves, metrics=tuple(benchmark.metric for benchmark in ordered)
    )


def _from_results(path: Path, stages: Sequence[str] | None) -> Panel:
    from evalengine import sealed

    try:
        table = sealed.read(path)
        kinds = [str(field.type) for field in table.schema]
        if kinds != ["string"] * 7 + ["double", "int64"]:
            raise KeyError("columns")
        grouped: dict[tuple[str, str], Cell] = {}
        for record in table.to_pylist():
            key = (record["checkpoint"], record["benchmark"])
            if record["quantity"] not in QUANTITIES or None in key:
                raise KeyError("quantity")
            who = {name: record[name] for name in Cell._fields[:6]}
            cell = grouped.setdefault(key, Cell(**who, values={}, items=record["items"] or 0))
            value = record["value"]
            cell.values[record["quantity"]] = float("nan") if value is None else value
    except (sealed.Damaged, KeyError, OSError):
        raise UserError(
            f"{path} is damaged or no table of results: write one with `evalengine import`"
        ) from None
    return assemble(list(grouped.values()), stages)


def assemble(cells: Sequence[Cell], stages: Sequence[str] | None, notes: Iterable[str] = ()) -> Panel:
    """Puts cells into arrays: chooses the stages, orders the axes, leaves out and names what has no counterpart."""
    said = list(notes)
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
    pair = choose_stages(found, stages)
    others = sorted(found - set(pair), key=natural_key)
    if others and stages is None:
        said.append(f"stages left out: {names(others)} (--stages chooses which two are compared)")
    known = [cell for cell in known if cell.stage in pair]
    _refuse_twins(known)
    known = _drop_unpaired(known, pair, said)
    scales = tuple(sorted({cell.place[0] for cell in known}, key=scale_key))
    mixtures = tuple(sorted({cell.place[2] for cell in known}, key=natural_key))
    category_of = {cell.benchmark: cell.category or "Other" for cell in known}
    benchmarks = tuple(sorted(category_of, key=lambda name: (category_key(category_of[name]), name)))
    index = tuple({name: i for i, name in enumerate(axis)} for axis in (scales, pair, mixtures, benchmarks))
    shape = (len(scales), 2, len(mixtures), len(benchmarks))
    values, calibration = (
        {q: np.full(shape, np.nan) for q in quantities if any(q in cell.values for cell in known)}
        for quantities in (QUANTITIES, ("ece", *CALIBRATION))
    )
    arrays = {**values, **calibration}
    present = np.zeros(shape[:3], dtype=bool)
    row = np.full(shape, -1, dtype=np.int64)
    n_items = np.zeros(len(benchmarks), dtype=np.int64)
    for cell in known:
        at = tuple(axis[name] for axis, name in zip(index, (*cell.place, cell.benchmark), strict=True))
        present[at[:3]] = True
        row[at] = cell.row
        n_items[at[3]] = max(n_items[at[3]], cell.items)
        for q, value in cell.values.items():
            arrays[q][at] = value
    checkpoints = [
        (f"{scales[s]}-{mixtures[m]}-{pair[t]}", (s, t, m)) for s, t, m in np.argwhere(present).tolist()
    ]
    said += _missing_values(values, checkpoints, benchmarks)
    return Panel(
        scales,
        pair,
        mixtures,
        benchmarks,
        tuple(category_of[name] for name in benchmarks),
        values,
        calibration,
        row,
        n_items,
        tuple(dict.fromkeys(said)),
    )


def choose_stages(found: set[str], asked: Sequence[str] | None) -> tuple[str, str]:
    """The stage before and the stage after."""
    listed = sorted(found, key=natural_key)
    if asked is not None:
        if len(asked) != 2 or asked[0] == asked[1]:
            raise UserError("--stages takes two different stages, before and after: --stages pt,sft")
        for stage in asked:
            if stage not in found:
                raise UserError(
                    f"no checkpoint has the stage '{stage}': the stages here are {names(listed, 12)}"
                )
        return asked[0], asked[1]
    if found >= set(DEFAULT_STAGES):
        return DEFAULT_STAGES
    if len(found) == 1:
        raise UserError(
            f"all checkpoints have the stage '{listed[0]}': what carries over needs a second one "
            f"({' and '.join(DEFAULT_STAGES)}); score the other stage's checkpoints into the same store"
        )
    if len(found) > 2:
        raise UserError(
            f"there are {len(found)} stages ({names(listed, 12)}): choose two with --stages BEFORE,AFTER"
        )
    return listed[0], listed[1]


def _refuse_twins(cells: Sequence[Cell]) -> None:
    """Two checkpoints in one place would be mixed, even on different benchmarks."""
    holder: dict[tuple[str, str, str], str] = {}
    for cell in cells:
        other = holder.setdefault(cell.place, cell.checkpoint)
        if other != cell.checkpoint:
            scale, stage, mixture = cell.place
            raise UserError(
                f"{other} and {cell.checkpoint} both claim scale {scale}, mixture {mixture}, stage {stage}: "
                "give one of them another name, or a folder of its own (of imported results, --pattern may read the "
                "stage from the whole name)"
            )


def _drop_unpaired(cells: Sequence[Cell], pair: tuple[str, str], said: list[str]) -> list[Cell]:
    """Leaves out mixtures that lack a stage at a scale; names them."""
    stages_of: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))  # scale, mixture
    for cell in cells:
        scale, stage, mixture = cell.place
        stages_of[scale][mixture].add(stage)
    paired = {
        scale: {mixture for mixture, found in of_mixture.items() if len(found) == 2}
        for scale, of_mixture in stages_of.items()
    }
    for scale, missing in itertools.product(sorted(stages_of), sorted(pair)):
        lonely = [mixture for mixture, found in stages_of[scale].items() if missing not in found]
        if lonely:
            said.append(
                f"scale {scale}: no {missing} checkpoint for {names(sorted(lonely, key=natural_key))}; "
                f"left out, {len(paired[scale])} mixtures remain"
            )
    most = max(map(len, paired.values()))
    if most < 4:
        raise UserError(
            f"at most {most} mixture{'s' if most != 1 else ''} of one scale {'have' if most != 1 else 'has'} both a "
            f"{pair[0]} and a {pair[1]} checkpoint: a correlation with an interval needs at least 4"
        )
    said += [
        f"scale {scale} is left out: both stages are there for {len(paired[scale])} mixtures, a correlation needs 4"
        for scale in sorted(paired, key=scale_key)
        if len(paired[scale]) < 4
    ]
    enough = {(scale, mixture) for scale, found in paired.items() if len(found) >= 4 for mixture in found}
    return [cell for cell in cells if (cell.place[0], cell.place[2]) in enough]


def _missing_values(
    arrays: dict[str, Array],  # by quantity, (S, 2, M, B)
    checkpoints: Sequence[tuple[str, tuple[int, int, int]]],  # name, place in the first three axes
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


def natural_key(text: str) -> list[tuple[int, float, str]]:
    """Orders "step9" before "step10"."""
    return [
        (0, float(part), "") if part.replace(".", "", 1).isdigit() else (1, 0.0, part)
        for part in re.split(r"(\d+(?:\.\d+)?)", text)
        if part
    ]


def scale_key(text: str) -> tuple[float, list[tuple[int, float, str]]]:
    """Orders scales by size: 1m, 60M, 240M, 1B; others after, by name."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmbt])?", text.strip(), re.IGNORECASE)
    if not found:
        return float("inf"), natural_key(text)
    unit = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}.get((found[2] or "").lower(), 1.0)
    return float(found[1]) * unit, []


def category_key(category: str) -> tuple[int, str]:
    return (CATEGORY_ORDER.index(category) if category in CATEGORY_ORDER else len(CATEGORY_ORDER), category)
