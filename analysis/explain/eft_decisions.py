"""Does emulation help to choose a mixture? Table `eft_decisions`: what ranks the mixtures as the large fine-tuned models do.

Three predictors of the accuracy of the large scale after fine-tuning are compared: the large base itself, the small scale after
fine-tuning, and emulated fine-tuning of the large base (up, beta 1). Agreement is the share of pairs of mixtures that a predictor
orders as fine-tuning does (a tie of one side counts one half, pairs tied on both are left out), r is Pearson's over mixtures.
All three see the same mixtures and items, so that they are compared paired; intervals leave out one mixture at a time.

Dims: M mixtures, B benchmarks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from evalengine.analysis import page
from evalengine.analysis.explain.choices import Array
from evalengine.analysis.explain.corners import best_level, corners_of
from evalengine.analysis.explain.eft import cells
from evalengine.analysis.explain.explainer import Explainer, Findings, Study
from evalengine.analysis.explain.jackknife import jackknife, of_correlation, of_share
from evalengine.analysis.figure import Table
from evalengine.analysis.groups import ALL
from evalengine.analysis.panel import category_key
from evalengine.analysis.protocol import SUPPORTED, UNSUPPORTED, Claim
from evalengine.analysis.results import excludes_zero, share_with_interval, with_interval

BASE, SMALL, EFT = "large base", "small fine-tuned", "emulated"
PREDICTORS = (EFT, BASE, SMALL)
MEASURES = ("pair agreement", "r")


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
    every = list(cells(study, corners, "up", level, 1.0))
    small = {cell.benchmark: cell for cell in cells(study, corners, "down", level, 1.0)}
    every = [cell for cell in every if cell.benchmark in small]
    if not every:
        return []
    accuracy = {
        EFT: np.stack([cell.found.correct.mean(axis=1) for cell in every], axis=1),
        BASE: np.stack([cell.base.correct.mean(axis=1) for cell in every], axis=1),
        SMALL: np.stack([small[cell.benchmark].tuned.correct.mean(axis=1) for cell in every], axis=1),
    }
    target_MB = np.stack([cell.tuned.correct.mean(axis=1) for cell in every], axis=1)
    n = len(target_MB)
    keep = [np.arange(n), *(np.delete(np.arange(n), m) for m in range(n))]  # all, then without each
    members = {
        c: [b for b, cell in enumerate(every) if cell.category == c] for c in {x.category for x in every}
    }
    groups = [(c, "", members[c]) for c in sorted(members, key=category_key)]
    groups += [(ALL, "", list(range(len(every))))]
    groups += [(cell.category, cell.benchmark, [b]) for b, cell in enumerate(every)]
    out = []
    for measure, statistic in zip(MEASURES, (agreement, correlation), strict=True):
        found_JB = {
            name: np.stack([statistic(x_MB[k], target_MB[k]) for k in keep])
            for name, x_MB in accuracy.items()
        }
        for category, benchmark, index in groups:
            value_J = {name: _mean(x_JB[:, index]) for name, x_JB in found_JB.items()}
            made = [(name, "", value_J[name]) for name in PREDICTORS]
            made += [(EFT, other, value_J[EFT] - value_J[other]) for other in (BASE, SMALL)]
            for predictor, minus, x_J in made:
                interval_of = jackknife if minus else of_share if measure == MEASURES[0] else of_correlation
                ends = interval_of(x_J[:1], x_J[1:, None], study.options.level)
                known = bool(np.isfinite(x_J).all())
                note = "" if known else "the mixtures are tied, with or without one of them"
                interval = (float(ends.low[0]), float(ends.high[0])) if known else (np.nan, np.nan)
                p = float(ends.p[0]) if minus and known else np.nan
                out.append(
                    DecisionRow(
                        level,
                        predictor,
                        minus,
                        measure,
                        category,
                        benchmark,
                        float(x_J[0]),
                        *interval,
                        p,
                        n,
                        note,
                    )
                )
    return out


def _mean(x_JB: Array) -> Array:
    """Over the benchmarks that have a value in every one."""
    known_B = np.isfinite(x_JB).all(axis=0)
    return x_JB[:, known_B].mean(axis=1) if known_B.any() else np.full(len(x_JB), np.nan)


def agreement(x_MB: Array, y_MB: Array) -> Array:
    """Share of pairs of mixtures that x orders as y does, of each benchmark."""
    a, b = (np.array(k) for k in zip(*itertools.combinations(range(len(x_MB)), 2), strict=True))
    dx, dy = (np.sign(np.round(v[a] - v[b], 12)) for v in (x_MB, y_MB))
    counted = (dx != 0) | (dy != 0)
    with np.errstate(invalid="ignore"):
        found: Array = np.where(counted, 0.5 + 0.5 * dx * dy, 0.0).sum(axis=0) / counted.sum(axis=0)
    return found


def correlation(x_MB: Array, y_MB: Array) -> Array:
    """Pearson's r of each benchmark."""
    dx, dy = x_MB - x_MB.mean(axis=0), y_MB - y_MB.mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        r: Array = (dx * dy).sum(axis=0) / np.sqrt((dx**2).sum(axis=0) * (dy**2).sum(axis=0))
    return np.where(np.isfinite(r), r, np.nan)


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
        f"{page.show(table(findings))}"
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
