"""Does emulation help to choose a mixture? Table `eft_decisions`: what ranks the mixtures as the large fine-tuned models do.

Three predictors of the accuracy of the large scale after fine-tuning are compared: the large base itself, the small scale after
fine-tuning, and emulated fine-tuning of the large base (up, beta 1). Agreement is the share of pairs of mixtures that a predictor
orders as fine-tuning does (a tie of one side counts one half, pairs tied on both are left out), r is Pearson's over mixtures.
All three see the same mixtures and items, so that they are compared paired; intervals leave out one mixture at a time.

Dims: M mixtures, B benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from evalengine.analysis.claims import Claim, claim
from evalengine.analysis.estimates.groups import ALL
from evalengine.analysis.explain.choices import Array
from evalengine.analysis.explain.corners import Answered, best_level, corners_of, lacks_corners, missing
from evalengine.analysis.explain.eft import both_ways
from evalengine.analysis.explain.explainer import EVERYWHERE, Explainer, Findings, StudyScores
from evalengine.analysis.explain.means import joined, notes, over
from evalengine.analysis.explain.ranking import LEAST, MEASURES, interval, over_benchmarks, with_and_without
from evalengine.analysis.figure import Part, Table, blocks, pivot, with_benchmarks
from evalengine.analysis.results import share_with_interval, with_interval

BASE, SMALL, EFT = "large base", "small fine-tuned", "emulated"
COMPARED = ((EFT, ""), (BASE, ""), (SMALL, ""), (EFT, BASE), (EFT, SMALL))  # predictor, minus


class DecisionRow(NamedTuple):
    """A predictor, or how much better emulation is than another one (`minus`)."""

    level: str  # of emulation
    predictor: str
    minus: str  # "" of a predictor by itself
    measure: str
    category: str
    benchmark: str  # "" of a mean over benchmarks
    estimate: float
    low: float
    high: float
    p: float  # of a difference
    n: int
    note: str


def rows(study: StudyScores) -> list[DecisionRow]:
    if (corners := corners_of(study)) is None or len(corners.mixtures) < LEAST:
        return []
    level = best_level(study, corners)
    if not (pairs := both_ways(study, corners, level)):
        return []

    def accuracies(found: Iterable[Answered]) -> Array:
        return np.stack([one.correct.mean(axis=1) for one in found], axis=1)

    accuracy = {
        EFT: accuracies(one.up.found for one in pairs),
        BASE: accuracies(one.up.base for one in pairs),
        SMALL: accuracies(one.down.tuned for one in pairs),
    }
    target_MB = accuracies(one.up.tuned for one in pairs)
    there = {one.benchmark for one in pairs}
    out, block_M = [], study.block_of(corners.mixtures)
    for measure in MEASURES:
        found_JB = {
            name: with_and_without(measure, x_MB, target_MB, block_M) for name, x_MB in accuracy.items()
        }
        known_B = np.all([np.isfinite(x_JB).all(axis=0) for x_JB in found_JB.values()], axis=0)
        for category, benchmark, used, tied in over_benchmarks(known_B, pairs):
            lost = "" if benchmark else missing(study, corners, level, category, there)
            for predictor, minus in COMPARED:
                value_JB = found_JB[predictor] - found_JB[minus] if minus else found_JB[predictor]
                found, why = interval(value_JB[:, used], measure, bool(minus), study.options.level, block_M)
                about = (level, predictor, minus, measure, category, benchmark)
                out.append(DecisionRow(*about, *found, len(target_MB), joined(lost, tied, why)))
    return out


def lacks(study: StudyScores) -> str:
    if (corners := corners_of(study)) is None:
        return lacks_corners(study)
    most = len(corners.mixtures)
    return f"{LEAST} mixtures at both scales, not {most}" if most < LEAST else EVERYWHERE


def table(findings: Findings, benchmarks: bool = False) -> Table:
    found = findings.means("eft_decisions", benchmarks)
    at = pivot(found, "measure category benchmark", "predictor minus")
    columns = (*COMPARED[1:3], COMPARED[0], *COMPARED[3:])
    lines = []
    for (measure, category, benchmark), of in at.items():
        show, unit = (share_with_interval, " (%)") if measure == MEASURES[0] else (with_interval, "")
        lines.append([benchmark or category, measure + unit, *(show(of.get(key)) for key in columns)])
    head = [over(benchmarks), "measure", *(f"{p} − {minus}" if minus else p for p, minus in columns)]
    return Table("choosing a mixture", head, blocks(lines, 1), texts=2)


def shown(findings: Findings) -> Iterator[Part]:
    found = findings.tables["eft_decisions"]
    yield (
        "What orders the mixtures as the large scale after fine-tuning does: its own base, the small scale after fine-tuning, or "
        f"emulation at beta 1. Jackknife intervals over mixtures, n = {found[0].n}."
    )
    yield from with_benchmarks("eft_decisions", table(findings), table(findings, True), notes(found))


def claims(findings: Findings) -> Iterator[Claim]:
    for row in findings.rows("eft_decisions", measure=MEASURES[0], category=ALL, minus=BASE):
        yield claim(
            row,
            above="emulated fine-tuning chooses mixtures better than the large base does",
            below="emulated fine-tuning chooses mixtures worse than the large base does",
            otherwise="emulated fine-tuning chooses mixtures better or worse than the large base does",
            said=f"{share_with_interval(row)} points of the pairs, n = {row.n}",
        )


EXPLAINER = Explainer(
    "eft_decisions",
    DecisionRow,
    rows,
    "Does emulation help to choose a mixture?",
    3,
    lacks=lacks,
    shown=shown,
    said=claims,
)
