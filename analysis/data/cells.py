"""Cells: one checkpoint on one benchmark. Which stages are compared, and which cells have a counterpart there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

from evalengine.analysis.data.items import names
from evalengine.errors import UserError
from evalengine.labels import TRAINED, natural_key, scale_key, stage_key

DEFAULT_STAGES = ("pt", "sft")
CROSS = "cross"  # from one stage to the other, so no stage's name
ALL = "All"  # the mean over all benchmarks, so no category's name
CATEGORY_ORDER = ("Commonsense", "Science", "NLI", "Semantic")


class Cell(NamedTuple):
    """One checkpoint on one benchmark. stderr: of its accuracy. replicate: which of a mixture's runs it is, such as its seed."""

    checkpoint: str
    scale: str | None
    mixture: str | None
    stage: str | None
    benchmark: str
    category: str
    values: dict[str, float]
    items: int
    row: int = -1
    stderr: float = float("nan")
    chance: float = float("nan")
    replicate: str = ""

    @property
    def place(self) -> tuple[str, str, str]:
        """Scale, stage and mixture."""
        return self.scale or "all", str(self.stage), str(self.mixture)


def category_key(category: str) -> tuple[int, str]:
    """The order of categories."""
    return (CATEGORY_ORDER.index(category) if category in CATEGORY_ORDER else len(CATEGORY_ORDER), category)


def categories_of(cells: Iterable[Cell]) -> dict[str, str]:
    """Each benchmark's category. Raises UserError where it has two, and as `refuse_all`."""
    found: dict[str, Cell] = {}
    for cell in cells:
        first = found.setdefault(cell.benchmark, cell)
        if cell.category != first.category:
            raise UserError(
                f"{cell.benchmark} is in category '{first.category}' ({first.checkpoint}) and '{cell.category}' "
                f"({cell.checkpoint}): give it one, such as by `evalengine import --category '{cell.benchmark}={first.category}'`"
            )
    categories = {benchmark: cell.category or "Other" for benchmark, cell in found.items()}
    refuse_all(categories)
    return categories


def refuse_all(categories: Mapping[str, str]) -> None:
    """Raises UserError where a benchmark's category (by benchmark) has the name of the mean over all benchmarks."""
    if taken := [benchmark for benchmark, category in categories.items() if category == ALL]:
        raise UserError(
            f"{names(taken)}: the category is called {ALL}, as the mean over all benchmarks is: give it another name"
        )


def choose_stages(found: set[str], asked: Sequence[str] | None) -> tuple[str, ...]:
    """The stages to compare, in order: two, or as many as were asked for."""
    listed = sorted(found, key=natural_key)
    if CROSS in found:
        raise UserError(
            f"a stage is called {CROSS}, as what correlates one stage with the other is: give it another name"
        )
    if all(stage_key(stage)[0] < len(TRAINED) for stage in found):  # of others nothing is known
        listed.sort(key=stage_key)
    if asked is not None:
        if len(set(asked)) < max(2, len(asked)):
            raise UserError("--stages takes two different stages or more, in order: --stages pt,sft")
        for stage in asked:
            if stage not in found:
                raise UserError(
                    f"no checkpoint has the stage '{stage}': the stages here are {names(listed, 12)}"
                )
        return tuple(asked)
    if found >= set(DEFAULT_STAGES):
        return DEFAULT_STAGES
    if len(found) == 1:
        raise UserError(
            f"the only stage here is '{listed[0]}', and what carries over needs a second one "
            f"({' and '.join(DEFAULT_STAGES)}); score the other stage's checkpoints into the same store"
        )
    if len(found) > 2:
        raise UserError(
            f"there are {len(found)} stages ({names(listed, 12)}): choose two or more with --stages FIRST,...,LAST"
        )
    return listed[0], listed[1]


def refuse_twins(cells: Sequence[Cell]) -> None:
    """Two checkpoints in one place would be mixed, even on different benchmarks, unless they are two runs by name."""
    holders: dict[tuple[str, str, str], set[tuple[str, str]]] = defaultdict(set)
    for cell in cells:
        run = cell.replicate, cell.checkpoint
        for replicate, other in holders[cell.place] - {run}:
            if replicate in ("", cell.replicate) or not cell.replicate:
                scale, stage, mixture = cell.place
                raise UserError(
                    f"{other} and {cell.checkpoint} both claim scale {scale}, mixture {mixture}, stage {stage}: "
                    "give one of them another name, or a folder of its own (of imported results, --pattern may read the "
                    "stage from the whole name); if they are runs of one mixture, give each a seed of its own (`seed` in "
                    "the manifest, or import --replicate COLUMN)"
                )
        holders[cell.place].add(run)


StagesOf = dict[tuple[str, str], set[str]]  # by scale and mixture


def stages_of(cells: Iterable[Cell]) -> StagesOf:
    """The stages that each mixture has at each scale."""
    found: StagesOf = defaultdict(set)
    for cell in cells:
        scale, stage, mixture = cell.place
        found[scale, mixture].add(stage)
    return dict(found)


def lacking(found: StagesOf, scale: str, stage: str) -> list[str]:
    """The mixtures of a scale that have no such stage."""
    return sorted((m for (s, m), has in found.items() if s == scale and stage not in has), key=natural_key)


def paired_cells(cells: Sequence[Cell], pair: tuple[str, str], said: list[str]) -> list[Cell]:
    """The cells of mixtures that have both stages, at scales with four of them or more; what is left out is named in `said`."""
    found = stages_of(cells)
    scales = sorted({scale for scale, _ in found})
    paired = {scale: {m for (s, m), has in found.items() if s == scale and len(has) == 2} for scale in scales}
    for scale, missing in product(scales, sorted(pair)):
        if lonely := lacking(found, scale, missing):
            said.append(
                f"scale {scale}: no {missing} checkpoint for {names(lonely)}; "
                f"left out, {len(paired[scale])} mixtures remain"
            )
    most = max(map(len, paired.values()))
    if most < 4:
        raise UserError(
            f"at most {most} mixture{'s' if most != 1 else ''} of one scale {'have' if most != 1 else 'has'} checkpoints of both "
            f"stages, {pair[0]} and {pair[1]}: a correlation with an interval needs at least 4"
        )
    few = [scale for scale in sorted(paired, key=scale_key) if len(paired[scale]) < 4]
    said += [
        f"scale {scale} is left out: both stages are there for {len(paired[scale])} mixtures, a correlation needs 4"
        for scale in few
    ]
    return [c for c in cells if c.place[0] not in few and c.place[2] in paired[c.place[0]]]
