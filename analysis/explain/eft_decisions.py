"""Does emulation help to choose a mixture? Table `eft_decisions`: what ranks the mixtures as the large fine-tuned models do.

Three predictors of the accuracy of the large scale after fine-tuning are compared: the large base itself, the small scale after
fine-tuning, and emulated fine-tuning of the large base (up, beta 1). Agreement is the share of pairs of mixtures that a predictor
orders as fine-tuning does (a tie of one side counts one half, pairs tied on both are left out), r is Pearson's over mixtures.
All three see the same mixtures and items, so that they are compared paired; intervals leave out one mixture at a time.

Dims: M mixtures, B benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from evalengine.analysis import page
from evalengine.analysis.explain.corners import best_level, corners_of, left_out
from evalengine.analysis.explain.eft import cells
from evalengine.analysis.explain.explainer import Explainer, Findings, Study
from evalengine.analysis.explain.grouped import grouped, notes
from evalengine.analysis.explain.ranking import MEASURES, interval, with_and_without
from evalengine.analysis.figure import Table
from evalengine.analysis.groups import ALL
from evalengine.analysis.protocol import SUPPORTED, UNSUPPORTED, Claim
from evalengine.analysis.results import excludes_zero, share_with_interval, with_interval

BASE, SMALL, EFT = "large base", "small fine-tuned", "emulated"


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


def rows(study: Study) -> list[DecisionRow]:
    if (corners := corners_of(study)) is None or len(corners.mixtures) < 4:
        return []
    level = best_level(study, corners)
    small = {cell.benchmark: cell for cell in cells(study, corners, "down", level, 1.0)}
    every = [cell for cell in cells(study, corners, "up", level, 1.0) if cell.benchmark in small]
    if not every:
        return []
    accuracy = {
        EFT: np.stack([cell.found.correct.mean(axis=1) for cell in every], axis=1),
        BASE: np.stack([cell.base.correct.mean(axis=1) for cell in every], axis=1),
        SMALL: np.stack([small[cell.benchmark].tuned.correct.mean(axis=1) for cell in every], axis=1),
    }
    target_MB = np.stack([cell.tuned.correct.mean(axis=1) for cell in every], axis=1)
    n, place = len(target_MB), {cell.benchmark: b for b, cell in enumerate(every)}
    out = []
    for measure in MEASURES:
        found_JB = {name: with_and_without(measure, x_MB, target_MB) for name, x_MB in accuracy.items()}
        known_B = np.all([np.isfinite(x_JB).all(axis=0) for x_JB in found_JB.values()], axis=0)
        for category, benchmark, chosen in grouped(every):
            index = [place[cell.benchmark] for cell in chosen]
            used = [b for b in index if known_B[b]]
            note = "" if benchmark else left_out(study, corners, level, category, place)
            if tied := [every[b].benchmark for b in index if not known_B[b]]:
                note = "; ".join(filter(None, [note, f"without {', '.join(tied)} (mixtures tied)"]))
            for predictor, minus in ((EFT, ""), (BASE, ""), (SMALL, ""), (EFT, BASE), (EFT, SMALL)):
                value_J = found_JB[predictor] - found_JB[minus] if minus else found_JB[predictor]
                found, why = interval(value_J[:, used], measure, bool(minus), study.options.level)
                said = "; ".join(filter(None, [note, why]))
                about = (level, predictor, minus, measure, category, benchmark)
                out.append(DecisionRow(*about, *found, n, said))
    return out


def table(findings: Findings, benchmarks: bool = False) -> Table:
    found = [r for r in findings.tables["eft_decisions"] if bool(r.benchmark) == benchmarks]
    at = {(r.measure, r.category, r.benchmark, r.predictor, r.minus): r for r in found}
    blocks = []
    for measure in MEASURES:
        show = share_with_interval if measure == MEASURES[0] else with_interval
        blocks.append(
            [
                [benchmark or category, measure + " (%)" * (measure == MEASURES[0])]
                + [show(at.get((measure, category, benchmark, p, ""))) for p in (BASE, SMALL, EFT)]
                + [show(at.get((measure, category, benchmark, EFT, other))) for other in (BASE, SMALL)]
                for category, benchmark in dict.fromkeys((r.category, r.benchmark) for r in found)
            ]
        )
    head = ["mean over" if not benchmarks else "benchmark", "measure", BASE, SMALL, EFT]
    return Table("choosing a mixture", [*head, f"{EFT} − {BASE}", f"{EFT} − {SMALL}"], blocks, texts=2)


def section(findings: Findings) -> str:
    found = findings.tables["eft_decisions"]
    if not found:
        return ""
    return (
        "<h3>Does emulation help to choose a mixture?</h3>"
        '<p class="hint">What orders the mixtures as the large scale after fine-tuning does: its own base, the small scale after '
        f"fine-tuning, or emulation at beta 1. Jackknife intervals over mixtures, n = {found[0].n}.</p>"
        f"{page.show(table(findings))}{notes(found)}"
        f"<details><summary>Benchmarks</summary>{page.show(table(findings, benchmarks=True))}</details>"
    )


def claims(findings: Findings) -> Iterator[Claim]:
    for row in findings.rows("eft_decisions", measure=MEASURES[0], category=ALL, minus=BASE):
        said = f"{share_with_interval(row)} points of the pairs, n = {row.n}"
        if excludes_zero(row):
            word = "better" if row.estimate > 0 else "worse"
            yield Claim(
                SUPPORTED, f"Emulated fine-tuning chooses mixtures {word} than the large base does: {said}."
            )
        else:
            yield Claim(
                UNSUPPORTED,
                f"That emulated fine-tuning chooses mixtures better or worse than the large base does: {said}.",
            )


EXPLAINER = Explainer(
    "eft_decisions",
    DecisionRow,
    rows,
    section,
    latex=lambda f: {"eft_decisions": table(f)} if f.tables["eft_decisions"] else {},
    claims=claims,
)
