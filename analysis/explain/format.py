"""Format against knowledge: table `format`.

What a model gives the right choice is what it gives all choices together, times the right one's share of that:

    log p(gold) = log sum_j p_j + log (p(gold) / sum_j p_j)
                  format          knowledge

The first says whether the model answers in the form that is asked for at all, the second what it knows once it does. Fine-tuning
may change either. Where one choice begins with another the sum counts text twice, and may exceed 1. Where choices stand behind
contexts of their own (winogrande) it is no probability, and the benchmark is left out.

Where a stage was also scored in chat format, the format's own effect is a stage against its +chat, and that of fine-tuning is
seen in both formats.

Reference: the identity; the question is that of Kung & Peng (2023), "Do models really learn to follow instructions?".

Dims: R runs, M mixtures, I items.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from evalengine.analysis.claims import Claim, claim
from evalengine.analysis.estimates.groups import ALL
from evalengine.analysis.explain.choices import Array, Choices
from evalengine.analysis.explain.design import PairedRun, by_mixture, numbered
from evalengine.analysis.explain.explainer import EVERYWHERE, Explainer, Findings, StudyScores
from evalengine.analysis.explain.means import Member, grouped, joined, left_out, lines_of, over, partly
from evalengine.analysis.explain.student import Mean, two_way_mean
from evalengine.analysis.figure import Part, Table, blocks, with_benchmarks
from evalengine.analysis.results import with_interval
from evalengine.analysis.statistics.ranges import ANY, POSITIVE, SHARE, Range, difference, shifted
from evalengine.labels import CHAT

FORMAT, KNOWLEDGE, GOLD, MASS = "log mass", "log p(gold | choices)", "log p(gold)", "mass"
ACCURACY, ABOVE = "accuracy", "mass above 1"
UNIFORM = "uniform"  # a choice without a model, among the stages of `arms`


class FormatRow(NamedTuple):
    """One measure at a stage, or its change from the first stage (`minus`), in nats (mass: a share)."""

    scale: str
    category: str
    benchmark: str  # "" of a mean over benchmarks
    measure: str
    stage: str
    minus: str  # "" at a stage
    estimate: float
    low: float
    high: float
    se: float
    n: int
    note: str


def compared(stages: tuple[str, str]) -> list[tuple[str, str]]:
    """Pairs of a stage and the one it is compared with, whether or not both were scored."""
    before, after = stages
    in_chat = [(after + CHAT, stage) for stage in (before, before + CHAT)]
    by_format = [(stage + CHAT, stage) for stage in (before, after)]
    return list(dict.fromkeys([(after, before), *in_chat, *by_format]))


@dataclass(frozen=True)
class MeasuredStages(Member):
    """A benchmark at several stages; `value`: by stage, then measure, (M, I)."""

    choices: Choices
    value: dict[str, dict[str, Array]]

    @functools.cached_property
    def above(self) -> float:
        """The share of items whose mass exceeds 1, at the stage where most do."""
        return max(float(at[ABOVE].mean()) if ABOVE in at else 0.0 for at in self.value.values())


def rows(study: StudyScores) -> list[FormatRow]:
    out = []
    before, after = study.design.stages
    for scale, runs in study.design.runs.items():
        every = measured(study, (before, after, before + CHAT, after + CHAT), runs)
        with_mass = [
            cell for cell in every if not cell.choices.own_contexts and {before, after} <= cell.value.keys()
        ]
        names = {cell.benchmark for cell in with_mass}
        for category, benchmark, chosen in grouped(with_mass):
            without = "" if benchmark else left_out(study, names, category, masses=True)
            stages = dict.fromkeys(stage for cell in chosen for stage in cell.value)
            for stage, minus in [*((stage, "") for stage in stages), *compared(study.design.stages)]:
                there = [cell for cell in chosen if {stage, minus or stage} <= cell.value.keys()]
                for measure in (GOLD, FORMAT, KNOWLEDGE, MASS) if there else ():
                    mean = mean_of(there, measure, stage, minus, study.options.level)
                    at = (scale, category, benchmark, measure, stage, minus)
                    out.append(FormatRow(*at, *mean, joined(note_of(there, chosen), without)))
    return out


def values(cells: Sequence[Any], measure: str, stage: str, minus: str = "") -> list[Array]:
    """A measure of each benchmark at a stage, minus that at another one if it is named."""
    at_MI = [cell.value[stage][measure] for cell in cells]
    return [x - cell.value[minus][measure] for x, cell in zip(at_MI, cells, strict=True)] if minus else at_MI


def mean_of(cells: Sequence[MeasuredStages], measure: str, stage: str, minus: str, level: float) -> Mean:
    """The mean over benchmarks of a measure at a stage, or of its difference to `minus`. Of items of which no choice begins with
    another, a mass is a probability."""
    more = any(cell.above > 0.0 for cell in cells)
    log = ANY if more and measure != KNOWLEDGE else Range(-math.inf, 0.0)
    possible = {ACCURACY: SHARE, MASS: POSITIVE if more else SHARE}.get(measure, log)
    value_BMI = values(cells, measure, stage, minus)
    if minus == UNIFORM:
        guessed = [float(cell.value[UNIFORM][measure].mean()) for cell in cells]
        possible = shifted(possible, -float(np.mean(guessed)))
    elif minus:
        possible = difference(possible)
    return two_way_mean(value_BMI, level, possible)


def note_of(there: list[MeasuredStages], every: list[MeasuredStages]) -> str:
    above = float(np.mean([cell.above for cell in there]))
    said = f"choices begin with one another: mass above 1 on {above:.2%} of the items" if above > 0 else ""
    return joined(said, partly(there, every))


def measured(
    study: StudyScores, stages: Iterable[str], runs: Sequence[PairedRun]
) -> Iterator[MeasuredStages]:
    """Every benchmark, at those of the stages at which all of the runs were scored on it."""
    mixture_R = numbered(run.mixture for run in runs)[1]
    for choices in study.scores.benchmarks:
        value = {}
        for stage in stages:
            if (some := choices.of([run.by_stage.get(stage, "") for run in runs])) is not None:
                value[stage] = {name: by_mixture(x_RI, mixture_R) for name, x_RI in measures(some).items()}
        if value:
            yield MeasuredStages(choices.category, choices.name, choices, value)


def measures(some: Choices) -> dict[str, Array]:
    """By measure, (R, I) of R checkpoints; accuracy alone where choices stand behind contexts of their own."""
    if some.own_contexts:
        return {ACCURACY: some.right()}
    mass_RI, gold_RI = some.log_mass(), some.gold()
    parts = {GOLD: gold_RI, FORMAT: mass_RI, KNOWLEDGE: gold_RI - mass_RI, MASS: np.exp(mass_RI)}
    return {ACCURACY: some.right(), **parts, ABOVE: (mass_RI > 1e-6).astype(np.float64)}


def table(findings: Findings, benchmarks: bool = False) -> Table:
    """The change of each part, beside the mass at each stage."""
    lines = []
    for name, scale, at in lines_of(findings, "format", benchmarks, "stage minus measure"):
        for stage, minus in dict.fromkeys(key[:2] for key in at if key[1]):
            change = [with_interval(at[stage, minus, measure]) for measure in (GOLD, FORMAT, KNOWLEDGE)]
            mass = [f"{at[s, '', MASS].estimate:.3f}" for s in (minus, stage)]
            lines.append([name, scale, f"{minus} → {stage}", *change, *mass])
    head = [over(benchmarks), "scale", "stages", f"change of {GOLD}", FORMAT, KNOWLEDGE]
    head += ["mass before", "mass after"]
    return Table("format and knowledge", head, blocks(lines, 1, 2), texts=3)


def shown(findings: Findings) -> Iterator[Part]:
    before, after = findings.method["stages"]
    of_benchmarks = [r for r in findings.means("format", benchmarks=True, minus="") if r.note]
    notes = dict.fromkeys(f"{r.benchmark} ({r.scale}): {r.note}." for r in of_benchmarks)
    yield (
        f"What {before} to {after} changes of the probability of the right choice, in nats: {FORMAT}, what all choices "
        "together get, is whether the answer has the form that is asked for; log p(gold | choices) is which of them it is. "
        "The two add up. Prompts are as a pretrained model reads them, unless the stage ends in +chat: a fine-tuned model "
        "asked outside its own format may give the choices less without knowing less. Benchmarks whose choices stand behind "
        "contexts of their own (winogrande) are left out. Intervals are for other mixtures and other items."
    )
    yield from with_benchmarks("format", table(findings), table(findings, True))
    yield from list(notes)[:6]


def claims(findings: Findings) -> Iterator[Claim]:
    parts = {
        FORMAT: "the probability of all choices together",
        KNOWLEDGE: "the right choice's share of that probability",
    }
    pairs = compared(tuple(findings.method["stages"]))
    for scale, (after, before), measure in itertools.product(findings.method["scales"], pairs, parts):
        at = {"category": ALL, "scale": scale, "measure": measure, "stage": after, "minus": before}
        for row in findings.means("format", **at):
            what = f"{before} to {after}"
            yield claim(
                row,
                above=f"{what} raises {parts[measure]}",
                below=f"{what} lowers {parts[measure]}",
                otherwise=f"{what} changes {parts[measure]}",
                said=f"{with_interval(row)} nats over all benchmarks, n = {row.n}",
                at=scale,
            )


EXPLAINER = Explainer(
    "format",
    FormatRow,
    rows,
    "Format and knowledge",
    lacks=lambda study: f"{EVERYWHERE}, of items with one context",
    shown=shown,
    said=claims,
)
