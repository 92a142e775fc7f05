"""What emulated fine-tuning scores, beside the fine-tuning that it stands for: tables `eft` and `eft_means`, and the dial."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from evalengine.analysis import page
from evalengine.analysis.explain.choices import Array, Choices
from evalengine.analysis.explain.corners import (
    SEQUENCE,
    TOKEN,
    Answered,
    Corners,
    corners_of,
    dials,
    emulated,
    real,
)
from evalengine.analysis.explain.design import by_mixture
from evalengine.analysis.explain.explainer import Explainer, Findings, Study
from evalengine.analysis.explain.grouped import grouped
from evalengine.analysis.explain.twoway import Mean, two_way_mean
from evalengine.analysis.figure import Figure, Lines, Table
from evalengine.analysis.groups import ALL
from evalengine.analysis.results import share_with_interval

MEASURES = ("accuracy", "confidence", "p_gold", "same picks", "gap closed")
REAL = "real"  # level of a checkpoint that was fine-tuned, or that no shift was added to


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
    """Means over mixtures, of a benchmark or of a category's benchmarks. level: "real" for the base (beta 0) and for the
    fine-tuned checkpoint itself (beta NaN). gap closed: of the difference that fine-tuning makes to the base."""

    direction: str
    level: str
    beta: float
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


class Cell(NamedTuple):
    """A benchmark at one strength: (M, I) of what is emulated, of the base, and of the real fine-tuned checkpoint."""

    category: str
    benchmark: str
    found: Answered
    base: Answered
    tuned: Answered
    same_MI: Array


def cells(study: Study, corners: Corners, direction: str, level: str, beta: float) -> list[Cell]:
    """Every benchmark that all runs have at this level. beta 0 and NaN: the base and the fine-tuned checkpoint themselves."""
    key = (direction, level, f"{beta:g}")
    return study.once(key, lambda: list(_cells(study, corners, direction, level, beta)))


def _cells(study: Study, corners: Corners, direction: str, level: str, beta: float) -> Iterator[Cell]:
    for choices in study.scores.benchmarks:
        whose = [quartet.roles(direction)[0] for quartet in corners.quartets]
        base = _real(study, choices, whose)
        tuned = _real(study, choices, [quartet.real(direction) for quartet in corners.quartets])
        if base is None or tuned is None:
            continue
        if level == REAL:
            found: Answered | None = tuned if math.isnan(beta) else base
        else:
            found = emulated(study, corners, choices, direction, level, beta)
        if found is not None:
            same_RI = (found.pick == tuned.pick).astype(np.float64)
            found, base, tuned = (one.mean(corners.mixture_R) for one in (found, base, tuned))
            same_MI = by_mixture(same_RI, corners.mixture_R)
            yield Cell(choices.category, choices.name, found, base, tuned, same_MI)


def _real(study: Study, choices: Choices, names: list[str]) -> Answered | None:
    return study.once((choices.name, *names), lambda: real(choices, names))


def eft_rows(study: Study) -> list[EftRow]:
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


def mean_rows(study: Study) -> list[MeanRow]:
    if (corners := corners_of(study)) is None:
        return []
    out = []
    for direction, level, betas in dials(study):
        for beta in betas:
            out += _means(study, corners, direction, level, beta)
        if level == SEQUENCE:  # once a direction
            out += _means(study, corners, direction, REAL, 0.0) + _means(
                study, corners, direction, REAL, math.nan
            )
    return out


def _means(study: Study, corners: Corners, direction: str, level: str, beta: float) -> list[MeanRow]:
    every = cells(study, corners, direction, level, beta)
    there = {cell.benchmark for cell in every}
    lost = [one.name for one in study.scores.benchmarks if one.name not in there]
    out = []
    for category, benchmark, chosen in grouped(every):
        without = [] if benchmark else [one for one in lost if _in(study, one, category)]
        at = (direction, level, beta, corners.base_scale(direction), category, benchmark)
        for measure in MEASURES[:3] if level == REAL else MEASURES:
            found, note = measured(chosen, measure, study.options.level)
            if without:
                why = "contexts differ by choice" if level == SEQUENCE else "not emulated"
                note = "; ".join(filter(None, [note, f"without {', '.join(without)} ({why})"]))
            out.append(MeanRow(*at, measure, *found, note))
    return out


def _in(study: Study, benchmark: str, category: str) -> bool:
    of = next(one.category for one in study.scores.benchmarks if one.name == benchmark)
    return category in (of, ALL)


def measured(chosen: Sequence[Cell], measure: str, level: float) -> tuple[Mean, str]:
    """The mean of a measure over benchmarks, and why it is not defined."""
    if measure == "gap closed":
        gained = [cell.found.correct - cell.base.correct for cell in chosen]
        gap = [cell.tuned.correct - cell.base.correct for cell in chosen]
        return ratio(gained, gap, level)
    value = {
        "accuracy": lambda cell: cell.found.correct,
        "confidence": lambda cell: cell.found.confidence,
        "p_gold": lambda cell: cell.found.p_gold,
        "same picks": lambda cell: cell.same_MI,
    }[measure]
    return two_way_mean([value(cell) for cell in chosen], level), ""


def ratio(over_BMI: Sequence[Array], under_BMI: Sequence[Array], level: float) -> tuple[Mean, str]:
    """The ratio of two means with Fieller's interval, which exists where that of the mean below the line does not hold 0.

    Reference: Fieller (1954), "Some problems in interval estimation", JRSS B 16, 175-185.
    """
    from scipy.special import stdtrit

    over, under = two_way_mean(over_BMI, level), two_way_mean(under_BMI, level)
    both = two_way_mean([x + y for x, y in zip(over_BMI, under_BMI, strict=True)], level)
    nothing = Mean(math.nan, math.nan, math.nan, math.nan, over.n)
    t2 = float(stdtrit(max(over.n - 1, 1), 0.5 + level / 2)) ** 2
    a = under.estimate**2 - t2 * under.se**2
    if not a > 0.0:
        return nothing, "fine-tuning makes no difference that could be closed: its interval holds 0"
    covariance = 0.5 * (both.se**2 - over.se**2 - under.se**2)
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


def dial(findings: Findings) -> Lines:
    """Accuracy against beta, from the base to the checkpoint that was really fine-tuned."""
    level = shown_level(findings)
    rows = [
        row
        for row in findings.rows("eft_means", measure="accuracy", benchmark="")
        if row.level in (level, REAL)
    ]
    betas = sorted({row.beta for row in rows if row.level == level})
    places = ["base", *(f"{beta:g}" for beta in betas), "fine-tuned"]

    def x(row: MeanRow) -> str:
        return "fine-tuned" if math.isnan(row.beta) else "base" if row.level == REAL else f"{row.beta:g}"

    return Lines(rows, places, x, lambda row: f"{row.direction}: base {row.scale}")


def means_table(findings: Findings, measure: str = "accuracy") -> Table:
    """Means over the categories at every strength, from the base to the checkpoint that was really fine-tuned."""
    level = shown_level(findings)
    found = [
        row for row in findings.rows("eft_means", measure=measure, benchmark="") if row.level in (level, REAL)
    ]
    betas = sorted({row.beta for row in found if row.level == level})
    blocks = []
    for direction, scale in dict.fromkeys((row.direction, row.scale) for row in found):
        mine = {
            (row.category, row.level, f"{row.beta:g}"): row for row in found if row.direction == direction
        }
        columns = [(REAL, "0"), *((level, f"{beta:g}") for beta in betas), (REAL, "nan")]
        blocks.append(
            [
                [
                    category,
                    direction,
                    scale,
                    *(share_with_interval(mine.get((category, *at))) for at in columns),
                ]
                for category in dict.fromkeys(row.category for row in found)
            ]
        )
    head = ["mean over", "direction", "base", "base itself", *(f"beta {b:g}" for b in betas), "fine-tuned"]
    return Table(f"{measure} (%)", head, blocks, texts=3)


def gap_table(findings: Findings) -> Table:
    """At beta 1: the share of the gap that is closed, and of the picks that are the same."""
    level, rows = shown_level(findings), []
    for category, direction in dict.fromkeys((r.category, r.direction) for r in findings.tables["eft_means"]):
        at = {"category": category, "direction": direction, "benchmark": "", "level": level, "beta": 1.0}
        closed, same = (
            next(iter(findings.rows("eft_means", measure=measure, **at)), None)
            for measure in MEASURES[4:2:-1]
        )
        if closed is not None and same is not None:
            rows.append(
                [
                    category,
                    direction,
                    closed.scale,
                    share_with_interval(closed),
                    share_with_interval(same),
                    closed.note,
                ]
            )
    columns = ["mean over", "direction", "base", "gap closed (%)", "same picks (%)", "note"]
    return Table("what beta 1 closes", columns, [rows], texts=3, prose=True, stacked=True)


def section(findings: Findings) -> str:
    if not findings.tables["eft_means"]:
        return ""
    level = shown_level(findings)
    how = (
        "Shifted token by token, and normalised over the whole vocabulary."
        if level == TOKEN
        else "From the stored scores of whole choices; <code>evalengine emulate</code> shifts token by token."
    )
    return (
        "<h2>Emulated fine-tuning</h2>"
        '<p class="hint">What a base model would score with the fine-tuning of another scale: logits = base + beta '
        f"(tuned − ref). Up: the larger scale is the base; down: the smaller one. {how} Intervals are for other mixtures and "
        f"other items.</p>{page.grid(findings.drawing, dial(findings))}"
        f"{page.show(gap_table(findings))}"
        f"<details><summary>{escape('Accuracy at every strength')}</summary>{page.show(means_table(findings))}</details>"
    )


def figures(findings: Findings) -> Mapping[str, Figure]:
    return {"dial": dial(findings)} if findings.tables["eft_means"] else {}


EXPLAINER = Explainer("eft", EftRow, eft_rows)
MEANS = Explainer(
    "eft_means",
    MeanRow,
    mean_rows,
    section,
    figures,
    latex=lambda findings: (
        {"eft": means_table(findings), "eft_gap": gap_table(findings)} if findings.tables["eft_means"] else {}
    ),
)
