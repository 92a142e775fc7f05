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

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from evalengine.analysis.claims import Claim, claim
from evalengine.analysis.explain.choices import Array, Choices
from evalengine.analysis.explain.design import by_mixture
from evalengine.analysis.explain.explainer import EVERYWHERE, Explainer, Findings, Study
from evalengine.analysis.explain.means import Member, grouped, joined, lines_of, over, partly
from evalengine.analysis.explain.twoway import two_way_mean
from evalengine.analysis.figure import Part, Table, blocks, with_benchmarks
from evalengine.analysis.groups import ALL
from evalengine.analysis.results import with_interval
from evalengine.labels import CHAT

FORMAT, KNOWLEDGE, GOLD, MASS = "log mass", "log p(gold | choices)", "log p(gold)", "mass"


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
class Decomposed(Member):
    """By stage, then measure, (M, I)."""

    value: dict[str, dict[str, Array]]
    above: float  # share of items and checkpoints whose mass exceeds 1


def rows(study: Study) -> list[FormatRow]:
    out = []
    for scale in study.design.scales:
        for category, benchmark, chosen in grouped(list(cells(study, scale))):
            stages = dict.fromkeys(stage for cell in chosen for stage in cell.value)
            for stage, minus in [*((stage, "") for stage in stages), *compared(study.design.stages)]:
                there = [cell for cell in chosen if {stage, minus or stage} <= cell.value.keys()]
                for measure in (GOLD, FORMAT, KNOWLEDGE, MASS) if there else ():
                    mean = two_way_mean(values(there, measure, stage, minus), study.options.level)
                    at = (scale, category, benchmark, measure, stage, minus)
                    out.append(FormatRow(*at, *mean, note_of(there, chosen)))
    return out


def values(cells: Sequence[Any], measure: str, stage: str, minus: str = "") -> list[Array]:
    """A measure of each benchmark at a stage, minus that at another one if it is named."""
    at_MI = [cell.value[stage][measure] for cell in cells]
    return [x - cell.value[minus][measure] for x, cell in zip(at_MI, cells, strict=True)] if minus else at_MI


def note_of(there: list[Decomposed], every: list[Decomposed]) -> str:
    above = float(np.mean([cell.above for cell in there]))
    said = f"choices begin with one another: mass above 1 on {above:.2%} of the items" if above > 0 else ""
    return joined(said, partly(there, every))


def cells(study: Study, scale: str) -> Iterator[Decomposed]:
    before, after = study.design.stages
    mixture_R = study.design.mixture_R(scale)
    names = {before: study.design.names(scale, False), after: study.design.names(scale, True)}
    names |= {stage + CHAT: [name + CHAT for name in of] for stage, of in list(names.items())}
    for choices in study.scores.benchmarks:
        if choices.own_contexts:
            continue
        value, above = {}, 0.0
        for stage, of in names.items():
            if (some := choices.of(of)) is None:
                continue
            parts = decomposed(some)
            above = max(above, float((parts[FORMAT] > 1e-6).mean()))
            value[stage] = {name: by_mixture(x_RI, mixture_R) for name, x_RI in parts.items()}
        if before in value and after in value:
            yield Decomposed(choices.category, choices.name, value, above)


def decomposed(some: Choices) -> dict[str, Array]:
    """By measure, (R, I) of R checkpoints."""
    mass_RI, gold_RI = some.log_mass(), some.gold()
    return {GOLD: gold_RI, FORMAT: mass_RI, KNOWLEDGE: gold_RI - mass_RI, MASS: np.exp(mass_RI)}


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
