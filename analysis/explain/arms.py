"""Arms of fine-tuning beside the one that keeps its data as they are: table `arms`.

Every arm is compared with `sft` mixture by mixture and item by item. No difference that is found is no proof that there is none,
so accuracy is also tested for equivalence: two one-sided t tests of a difference of 2 points at least, on the two-way standard
error of other mixtures and other items. Where `sft` itself is not above guessing, an arm has nothing to lose: none is compared.

Where a task has two labels, exchanging them in fine-tuning turns accuracy a into 1 - a if the mapping is learnt from it, and
leaves it at a if the form alone is. `mapping learnt` is how far the arm went: (a - delusive) / (2 a - 1).

References: Schuirmann (1987), "A comparison of the two one-sided tests procedure", J. Pharmacokinetics and Biopharmaceutics 15,
657-680; Kung & Peng (2023), "Do models really learn to follow instructions?".

Dims: R runs of a scale, M mixtures, I items.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from evalengine.analysis.claims import Claim, claim, side, supported, unsupported
from evalengine.analysis.data.items import names
from evalengine.analysis.estimates.groups import ALL
from evalengine.analysis.explain.choices import Choices
from evalengine.analysis.explain.design import PairedRun
from evalengine.analysis.explain.eft import ratio
from evalengine.analysis.explain.explainer import Explainer, Findings, StudyScores
from evalengine.analysis.explain.format import (
    ACCURACY,
    FORMAT,
    KNOWLEDGE,
    UNIFORM,
    MeasuredStages,
    mean_of,
    measured,
    values,
)
from evalengine.analysis.explain.means import grouped, joined, left_out, lines_of, notes, over
from evalengine.analysis.explain.student import Mean, p_below
from evalengine.analysis.figure import File, Lines, Part, Table, with_benchmarks
from evalengine.analysis.results import p_value, share_with_interval, with_interval
from evalengine.labels import CHAT, natural_key

KEPT, DELUSIVE = "sft", "sft_delusive"
MAPPING = "mapping learnt"
MARGIN = 0.02  # of accuracy: what counts as no difference
EQUIVALENT, DIFFERS, OPEN, GUESSING = "equivalent", "differs", "open", "sft guesses"


class ArmRow(NamedTuple):
    """One measure of an arm, or its paired difference to `minus`: `sft`, the first stage, or a uniform choice.

    p: of the equivalence test, of accuracy minus `sft` alone. verdict: EQUIVALENT where p is below 1 - level, DIFFERS where the
    interval leaves out 0, else OPEN; GUESSING where `sft` is not above a uniform choice.
    """

    scale: str
    category: str
    benchmark: str  # "" of a mean over benchmarks
    stage: str
    measure: str
    minus: str  # "" at a stage
    estimate: float
    low: float
    high: float
    se: float
    p: float
    verdict: str
    n: int
    note: str


Place = tuple[str, str, str, str]  # scale, category, benchmark, stage


def rows(study: StudyScores) -> list[ArmRow]:
    out: list[ArmRow] = []
    for scale, runs in study.design.runs.items():
        stages = sorted({stage for run in runs for stage in run.by_stage if is_arm(stage)}, key=natural_key)
        for kept in dict.fromkeys(kept_of(stage) for stage in stages):
            of_kept = [stage for stage in stages if kept_of(stage) == kept]
            paired = [run for run in runs if kept in run.by_stage and run.by_stage.keys() & set(of_kept)]
            for stage in (kept, *of_kept):
                chosen = [run for run in paired if stage in run.by_stage]
                if chosen:
                    out += _of_stage(study, scale, stage, kept, chosen)
    return out


def is_arm(stage: str) -> bool:
    return stage.startswith(f"{KEPT}_")


def kept_of(stage: str) -> str:
    return KEPT + (CHAT if stage.endswith(CHAT) else "")


def _of_stage(
    study: StudyScores, scale: str, stage: str, kept: str, runs: Sequence[PairedRun]
) -> Iterator[ArmRow]:
    """The rows of an arm or of `sft` itself, on the runs that have both."""
    first = study.design.stages[0]
    stages = list(dict.fromkeys((first, kept, stage)))
    every = [with_uniform(cell) for cell in measured(study, stages, runs) if len(cell.value) == len(stages)]
    there = {cell.benchmark for cell in every}
    for category, benchmark, chosen in grouped(every):
        at = (scale, category, benchmark, stage)
        without = "" if benchmark else left_out(study, there, category)
        for row in _of_cells(chosen, at, kept, first, study.options.level):
            yield row._replace(note=joined(row.note, without))


def _row(at: Place, measure: str, minus: str, mean: Mean, note: str = "") -> ArmRow:
    why = mean.without_ends if math.isfinite(mean.estimate) else ""
    return ArmRow(*at, measure, minus, *mean[:4], math.nan, "", mean.n, joined(why, note))


def _of_cells(
    cells: Sequence[MeasuredStages], at: Place, kept: str, first: str, level: float
) -> Iterator[ArmRow]:
    stage = at[3]
    for measure in (ACCURACY, KNOWLEDGE, FORMAT):
        there = [cell for cell in cells if measure in cell.value[stage]]
        if not there:
            continue
        own = names(cell.benchmark for cell in cells if measure not in cell.value[stage])
        note = f"without {own} (contexts differ by choice)" if own else ""
        yield _row(at, measure, "", mean_of(there, measure, stage, "", level), note)
        for minus in dict.fromkeys((UNIFORM, first, kept)):
            if minus == stage or (minus == UNIFORM and measure == FORMAT):
                continue
            difference = mean_of(there, measure, stage, minus, level)
            if (measure, minus) != (ACCURACY, kept):
                yield _row(at, measure, minus, difference, note)
                continue
            above = mean_of(cells, ACCURACY, kept, UNIFORM, level)
            p = equivalence(difference)
            found = _row(at, measure, minus, difference)
            yield found._replace(p=p, verdict=verdict(difference, p, above, level))
    labels = [cell for cell in cells if two_labels(cell.choices)]
    if labels and stage.removesuffix(CHAT) == DELUSIVE:
        turned = [2.0 * cell.value[kept][ACCURACY] - 1.0 for cell in labels]
        mean, why = ratio(values(labels, ACCURACY, kept, stage), turned, level)
        of = f"of {names(cell.benchmark for cell in labels)}"
        yield _row(at, MAPPING, "", mean, f"{of}; {kept} is not above guessing" if why else of)


def with_uniform(cell: MeasuredStages) -> MeasuredStages:
    """The same with a choice without a model among the stages."""
    count_I, M = np.diff(cell.choices.offset_I1), len(next(iter(cell.value.values()))[ACCURACY])
    uniform = {ACCURACY: 1.0 / count_I, KNOWLEDGE: -np.log(count_I)}
    at_uniform = {measure: np.tile(x_I, (M, 1)) for measure, x_I in uniform.items()}
    return replace(cell, value={**cell.value, UNIFORM: at_uniform})


def two_labels(choices: Choices) -> bool:
    """Whether every item has the same two choices, as far as their lengths say."""
    if choices.own_contexts or (np.diff(choices.offset_I1) != 2).any():
        return False
    return bool((choices.chars_C.reshape(-1, 2) == choices.chars_C[:2]).all())


def equivalence(difference: Mean, margin: float = MARGIN) -> float:
    """p of two one-sided t tests that a difference is as large as `margin` either way; NaN without a standard error."""
    if not math.isfinite(difference.low):
        return math.nan
    return float(p_below((abs(difference.estimate) - margin) / difference.se, difference.n))


def verdict(difference: Mean, p: float, above: Mean, level: float) -> str:
    """What a difference to `sft` says, `above` being what that gains on a uniform choice; "" without an interval."""
    if not math.isfinite(difference.low):
        return ""
    if not above.low > 0.0:
        return GUESSING
    if p < 1.0 - level:
        return EQUIVALENT
    return DIFFERS if side(difference) else OPEN


# --- the report


def table(findings: Findings, benchmarks: bool = False) -> Table:
    """Accuracy of every arm, and what it differs by from `sft`."""
    blocks = []
    for name, scale, at in lines_of(findings, "arms", benchmarks, "stage measure minus"):
        block = []
        for stage in dict.fromkeys(stage for stage, *_ in at):
            kept, own = kept_of(stage), at[stage, ACCURACY, ""]
            paired = at.get((stage, ACCURACY, kept))
            points = [share_with_interval(r) for r in (own, at[stage, ACCURACY, UNIFORM], paired)]
            nats = [with_interval(at.get((stage, measure, kept))) for measure in (KNOWLEDGE, FORMAT)]
            test = [p_value(paired.p), paired.verdict] if paired else ["–", ""]
            block.append([name, scale, stage, *points, *nats, *test, str(own.n)])
        blocks.append(block)
    head = [over(benchmarks), "scale", "arm", "accuracy (%)", "minus uniform", f"minus {KEPT}"]
    nats = [f"{measure} minus {KEPT}" for measure in (KNOWLEDGE, FORMAT)]
    return Table("arms of fine-tuning", [*head, *nats, "p (2 points)", "verdict", "n"], blocks, texts=3)


def mapping_table(findings: Findings) -> Table:
    found = findings.rows("arms", measure=MAPPING)
    body = [[r.benchmark or r.category, r.scale, share_with_interval(r), r.note] for r in found]
    head = ["mean over", "scale", f"{MAPPING} (%)", "note"]
    return Table(MAPPING, head, [body], texts=2, prose=True, stacked=True)


def shown(findings: Findings) -> Iterator[Part]:
    yield (
        f"The same fine-tuning with other instructions or exchanged responses, minus {KEPT}, item by item. "
        f"{EQUIVALENT.capitalize()}: within 2 points of accuracy by two one-sided tests; {DIFFERS}: the interval leaves out "
        f"0; {OPEN}: neither; {GUESSING}: {KEPT} itself is not above a uniform choice, so no arm can be compared. "
        "Intervals are for other mixtures and other items."
    )
    yield File("arms", accuracies(findings))
    mapping: list[Part] = []
    if findings.rows("arms", measure=MAPPING):
        mapping = [
            "Of tasks of two labels, exchanged in fine-tuning: 0% where accuracy stays what it is with the right labels, 100% "
            "where it turns over.",
            mapping_table(findings),
        ]
    others = [row for row in findings.tables["arms"] if row.measure != MAPPING]
    yield from with_benchmarks("arms", table(findings), table(findings, True), [*mapping, *notes(others)])


def accuracies(findings: Findings) -> Lines:
    """Accuracy of `sft` and its arms, by category."""
    found = findings.rows("arms", measure=ACCURACY, minus="", benchmark="")
    stages = list(dict.fromkeys(row.stage for row in found))
    return Lines(found, stages, lambda row: row.stage, lambda row: str(row.scale), up="accuracy")


def claims(findings: Findings) -> Iterator[Claim]:
    guessing = set()
    for row in findings.rows("arms", category=ALL, benchmark="", measure=ACCURACY):
        said = f"{share_with_interval(row)} points of accuracy over all benchmarks, n = {row.n}"
        arm, kept = row.stage, row.minus
        if row.verdict == GUESSING and (row.scale, kept) not in guessing:
            guessing.add((row.scale, kept))
            yield unsupported("arms of fine-tuning differ", f"{kept} itself is not above guessing", row.scale)
        elif row.verdict == EQUIVALENT:
            test = f"p = {row.p:.2g} (two one-sided tests)"
            yield supported(f"{arm} is within 2 points of {kept}", f"{said}, {test}", row.scale)
        elif row.verdict in (DIFFERS, OPEN):
            yield claim(
                row,
                above=f"{arm} is above {kept}",
                below=f"{arm} is below {kept}",
                otherwise=f"{arm} differs from {kept}, or is within 2 points of it",
                at=row.scale,
                said=said,
            )
    for row in findings.rows("arms", category=ALL, benchmark="", measure=MAPPING):
        if math.isfinite(row.low):
            turns = f"{row.stage} turns exchanged labels over"
            said = f"{share_with_interval(row)}% of the way from a to 1 - a, {row.note}, n = {row.n}"
            yield claim(row, above=turns, said=said, at=row.scale)


EXPLAINER = Explainer(
    "arms",
    ArmRow,
    rows,
    "Arms of fine-tuning",
    lacks=lambda study: f"stages called {KEPT}_ARM beside {KEPT}",
    shown=shown,
    said=claims,
)
