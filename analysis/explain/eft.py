"""What emulated fine-tuning scores, beside the fine-tuning that it stands for: tables `eft` and `eft_means`, and the dial."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from evalengine.analysis.claims import Claim, claim
from evalengine.analysis.estimates.groups import ALL
from evalengine.analysis.explain.choices import Array
from evalengine.analysis.explain.corners import (
    DIRECTIONS,
    SEQUENCE,
    TOKEN,
    Answered,
    Corners,
    corners_of,
    dials,
    emulated,
    lacks_corners,
    missing,
    real,
)
from evalengine.analysis.explain.design import by_mixture
from evalengine.analysis.explain.explainer import EVERYWHERE, Explainer, Findings, StudyScores, once
from evalengine.analysis.explain.means import Member, grouped, joined
from evalengine.analysis.explain.student import Mean, quantile, two_way_mean
from evalengine.analysis.figure import File, Folded, Lines, Part, Table, blocks, pivot
from evalengine.analysis.results import share_with_interval
from evalengine.analysis.statistics.ranges import SHARE

MEASURES = ("accuracy", "confidence", "p_gold", "same picks", "gap closed")
BASE, TUNED = 0.0, math.nan  # beta of the base itself, and of the checkpoint that was really fine-tuned


class EftRow(NamedTuple):
    """One emulated checkpoint on one benchmark; several runs of a mixture are averaged."""

    direction: str
    level: str
    beta: float
    scale: str  # of the base
    mixture: str
    category: str
    benchmark: str
    accuracy: float
    confidence: float
    p_gold: float
    same_picks: float  # share of the items on which it picks what the fine-tuned checkpoint of the base picks


class MeanRow(NamedTuple):
    """Means over mixtures, of a benchmark or of a category's benchmarks: at each level those that every strength has, so that
    all strengths can be compared. gap closed: of the difference that fine-tuning makes to the base."""

    direction: str
    level: str
    beta: float  # 0: the base itself; NaN: the checkpoint that was really fine-tuned
    scale: str
    category: str
    benchmark: str  # "" of a mean over benchmarks
    measure: str
    estimate: float
    low: float
    high: float
    se: float
    n: int
    note: str


@dataclass(frozen=True)
class Emulation(Member):
    """At one strength: (M, I) of what is emulated, of the base, and of the real fine-tuned checkpoint."""

    found: Answered
    base: Answered
    tuned: Answered
    same_MI: Array


@dataclass(frozen=True)
class BothWays(Member):
    up: Emulation
    down: Emulation


@once
def cells(study: StudyScores, corners: Corners, direction: str, level: str, beta: float) -> list[Emulation]:
    """Every benchmark that all runs have at this level and strength."""
    out = []
    for choices in study.scores.benchmarks:
        base = real(study, choices.name, *(quartet.roles(direction)[0] for quartet in corners.quartets))
        tuned = real(study, choices.name, *(quartet.real(direction) for quartet in corners.quartets))
        if base is None or tuned is None:
            continue
        if math.isnan(beta):
            found: Answered | None = tuned
        else:
            found = emulated(study, corners, choices, direction, level, beta) if beta else base
        if found is not None:
            same_RI = (found.pick == tuned.pick).astype(np.float64)
            found, base, tuned = (one.mean(corners.mixture_R) for one in (found, base, tuned))
            same_MI = by_mixture(same_RI, corners.mixture_R)
            out.append(Emulation(choices.category, choices.name, found, base, tuned, same_MI))
    return out


def both_ways(study: StudyScores, corners: Corners, level: str) -> list[BothWays]:
    """Every benchmark that has both at beta 1."""
    up, down = (
        {cell.benchmark: cell for cell in cells(study, corners, way, level, 1.0)} for way in DIRECTIONS
    )
    return [BothWays(one.category, name, one, down[name]) for name, one in up.items() if name in down]


def eft_rows(study: StudyScores) -> list[EftRow]:
    if (corners := corners_of(study)) is None:
        return []
    out = []
    for direction, level, betas in dials(study):
        for beta in betas:
            for cell in cells(study, corners, direction, level, beta):
                means = [x.mean(axis=1) for x in (*cell.found[:3], cell.same_MI)]
                for m, mixture in enumerate(corners.mixtures):
                    at = (direction, level, beta, corners.base_scale(direction), mixture)
                    out.append(EftRow(*at, cell.category, cell.benchmark, *(float(x[m]) for x in means)))
    return out


def mean_rows(study: StudyScores) -> list[MeanRow]:
    if (corners := corners_of(study)) is None:
        return []
    out: list[MeanRow] = []
    for direction, level, betas in dials(study):
        found = {b: of for b in (*betas, BASE, TUNED) if (of := cells(study, corners, direction, level, b))}
        if not found.keys() & set(betas):
            continue
        everywhere = set.intersection(*({cell.benchmark for cell in of} for of in found.values()))
        for beta, of in sorted(found.items(), key=lambda one: (math.isnan(one[0]), one[0])):
            chosen = [cell for cell in of if cell.benchmark in everywhere]
            out += _means(study, corners, (direction, level, beta), chosen)
    return out


def _means(
    study: StudyScores, corners: Corners, at: tuple[str, str, float], every: Sequence[Emulation]
) -> Iterator[MeanRow]:
    direction, level, beta = at
    there = {cell.benchmark for cell in every}
    measures = MEASURES[:3] if math.isnan(beta) else MEASURES[:4] if beta == BASE else MEASURES
    for category, benchmark, chosen in grouped(every):
        lost = "" if benchmark else missing(study, corners, level, category, there)
        for measure in measures:
            mean, why = measured(chosen, measure, study.options.level)
            about = (*at, corners.base_scale(direction), category, benchmark, measure)
            yield MeanRow(*about, *mean, joined(why, lost))


def measured(chosen: Sequence[Emulation], measure: str, level: float) -> tuple[Mean, str]:
    """The mean of a measure over benchmarks, and why it is not defined."""
    if measure == "gap closed":
        gained = [cell.found.correct - cell.base.correct for cell in chosen]
        gap = [cell.tuned.correct - cell.base.correct for cell in chosen]
        return ratio(gained, gap, level)
    if measure == "same picks":
        value_BMI = [cell.same_MI for cell in chosen]
    else:
        field = "correct" if measure == "accuracy" else measure
        value_BMI = [getattr(cell.found, field) for cell in chosen]
    found = two_way_mean(value_BMI, level, SHARE)
    return found, found.without_ends


def ratio(over_BMI: Sequence[Array], under_BMI: Sequence[Array], level: float) -> tuple[Mean, str]:
    """The ratio of two means with Fieller's interval, which exists where that of the mean below the line does not hold 0.

    Reference: Fieller (1954), "Some problems in interval estimation", JRSS B 16, 175-185.
    """
    over, under = two_way_mean(over_BMI, level), two_way_mean(under_BMI, level)
    both = two_way_mean([x + y for x, y in zip(over_BMI, under_BMI, strict=True)], level)
    nothing = Mean(math.nan, math.nan, math.nan, math.nan, over.n)
    t2 = quantile(max(over.n, 2), level) ** 2
    a = under.estimate**2 - t2 * under.se**2
    if not a > 0.0:
        return nothing, "fine-tuning makes no difference that could be closed: its interval contains 0"
    most = over.se * under.se  # two-way variances are differences, and may exceed it
    covariance = min(max(0.5 * (both.se**2 - over.se**2 - under.se**2), -most), most)
    b = over.estimate * under.estimate - t2 * covariance
    c = over.estimate**2 - t2 * over.se**2
    half = math.sqrt(max(b * b - a * c, 0.0))
    estimate = over.estimate / under.estimate
    return Mean(estimate, (b - half) / a, (b + half) / a, half / a / math.sqrt(t2), over.n), ""


# --- the report


def shown_level(findings: Findings) -> str:
    """The token level where there is one."""
    levels = {row.level for row in findings.tables["eft_means"]}
    return TOKEN if TOKEN in levels else SEQUENCE


def strengths(rows: Iterable[MeanRow]) -> dict[str, str]:
    """Names of the strengths by `f"{beta:g}"`, from the weakest to the checkpoint that was really fine-tuned."""
    betas = sorted({row.beta for row in rows if not math.isnan(row.beta)})
    return {**{f"{beta:g}": f"{beta:g}" if beta else "base" for beta in betas}, f"{TUNED:g}": "fine-tuned"}


def dial(findings: Findings) -> Lines:
    """Accuracy against beta, from the base to the checkpoint that was really fine-tuned."""
    rows = findings.means("eft_means", measure="accuracy", level=shown_level(findings))
    names = strengths(rows)
    x, panel = lambda row: names[f"{row.beta:g}"], lambda row: f"{row.direction}: base {row.scale}"
    return Lines(rows, list(names.values()), x, panel, across="beta", up="accuracy")


def means_table(findings: Findings) -> Table:
    """Accuracy over the categories at every strength, from the base to the checkpoint that was really fine-tuned."""
    found = findings.means("eft_means", measure="accuracy", level=shown_level(findings))
    names = strengths(found)
    at = pivot(found, "category direction scale", lambda row: f"{row.beta:g}")
    lines = [[*place, *(share_with_interval(of.get(beta)) for beta in names)] for place, of in at.items()]
    head = [name if beta in ("0", "nan") else f"beta {name}" for beta, name in names.items()]
    return Table("accuracy (%)", ["mean over", "direction", "scale", *head], blocks(lines, 1, 2), texts=3)


def gap_table(findings: Findings) -> Table:
    """At beta 1: the share of the gap that is closed, and of the picks that are the same, beside the base's own."""
    level, rows = shown_level(findings), []
    shown = [row for row in findings.rows("eft_means", benchmark="", level=level) if row.beta in (BASE, 1.0)]
    at = {(row.category, row.direction, row.measure, row.beta): row for row in shown}
    for (category, direction, measure, beta), closed in at.items():
        if measure == "gap closed":
            same = [at.get((category, direction, "same picks", b)) for b in (beta, BASE)]
            cells = [share_with_interval(row) for row in (closed, *same)]
            rows.append([category, direction, closed.scale, *cells, closed.note])
    head = ["mean over", "direction", "scale", "gap closed (%)", "same picks (%)", "same picks, base (%)"]
    return Table("what beta 1 closes", [*head, "note"], [rows], texts=3, prose=True, stacked=True)


def shown(findings: Findings) -> Iterator[Part]:
    how = (
        "Shifted token by token, and normalised over the whole vocabulary."
        if shown_level(findings) == TOKEN
        else "From the stored scores of whole choices; `evalengine emulate` shifts token by token."
    )
    yield (
        "What a base model would score with the fine-tuning of another scale: logits = base + beta "
        f"(tuned − ref). Up: the larger scale is the base; down: the smaller one. {how} Intervals are for other mixtures and "
        "other items."
    )
    yield File("dial", dial(findings))
    yield File("eft_gap", gap_table(findings))
    yield Folded("Accuracy at every strength", [File("eft", means_table(findings))])


def claims(findings: Findings) -> Iterator[Claim]:
    at = {"measure": "gap closed", "category": ALL, "benchmark": "", "level": shown_level(findings)}
    for row in findings.rows("eft_means", beta=1.0, **at):
        if not math.isfinite(row.low):
            continue
        what = f"emulated fine-tuning of {row.scale} ({row.direction}, beta 1)"
        gap = "the gap from its base to its fine-tuned checkpoints"
        yield claim(
            row,
            above=f"{what} closes {gap}",
            below=f"{what} widens {gap}",
            said=f"{share_with_interval(row)}% of it, n = {row.n}",
        )


EXPLAINER = Explainer("eft", EftRow, eft_rows)
MEANS = Explainer(
    "eft_means",
    MeanRow,
    mean_rows,
    "Emulated fine-tuning",
    lacks=lambda study: lacks_corners(study) or EVERYWHERE,
    shown=shown,
    said=claims,
)
