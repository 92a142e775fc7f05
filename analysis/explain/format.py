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
from collections.abc import Iterator
from html import escape
from typing import NamedTuple

import numpy as np

from evalengine.analysis import page
from evalengine.analysis.explain.choices import Array, Choices
from evalengine.analysis.explain.design import by_mixture
from evalengine.analysis.explain.design import rows as rows_in
from evalengine.analysis.explain.explainer import Explainer, Findings, Study
from evalengine.analysis.explain.grouped import grouped
from evalengine.analysis.explain.twoway import two_way_mean
from evalengine.analysis.figure import Table
from evalengine.analysis.groups import ALL
from evalengine.analysis.protocol import SUPPORTED, UNSUPPORTED, Claim
from evalengine.analysis.results import excludes_zero, with_interval
from evalengine.labels import CHAT

FORMAT, KNOWLEDGE, GOLD, MASS = "log mass", "log p(gold | choices)", "log p(gold)", "mass"
CHANGE = "change"


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
    pairs = [
        (after, before),
        (after + CHAT, before),
        (after + CHAT, before + CHAT),
        (before + CHAT, before),
        (after + CHAT, after),
    ]
    return list(dict.fromkeys(pairs))


class Cell(NamedTuple):
    """One benchmark: by stage, then measure, (M, I)."""

    category: str
    benchmark: str
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
                    value = [cell.value[stage][measure] for cell in there]
                    if minus:
                        value = [x - cell.value[minus][measure] for x, cell in zip(value, there, strict=True)]
                    mean = two_way_mean(value, study.options.level)
                    at = (scale, category, benchmark, measure, stage, minus)
                    out.append(FormatRow(*at, *mean, note_of(there, chosen)))
    return out


def note_of(there: list[Cell], every: list[Cell]) -> str:
    above = float(np.mean([cell.above for cell in there]))
    notes = [f"choices begin with one another: mass above 1 on {above:.2%} of the items"] if above > 0 else []
    if len(there) < len(every):
        notes.append(f"over the {len(there)} of {len(every)} benchmarks that every run was scored on")
    return "; ".join(notes)


def cells(study: Study, scale: str) -> Iterator[Cell]:
    runs, (before, after) = study.design.runs[scale], study.design.stages
    mixture_R = study.design.mixture_R(scale)
    names = {before: [run.before for run in runs], after: [run.after for run in runs]}
    names |= {stage + CHAT: [name + CHAT for name in of] for stage, of in list(names.items())}
    for choices in study.scores.benchmarks:
        if choices.own_contexts:
            continue
        value, above = {}, 0.0
        for stage, of in names.items():
            k = rows_in(choices, of)
            if k is None:
                continue
            parts = decomposed(choices.at(k))
            above = max(above, float((parts[FORMAT] > 1e-6).mean()))
            value[stage] = {name: by_mixture(x_RI, mixture_R) for name, x_RI in parts.items()}
        if before in value and after in value:
            yield Cell(choices.category, choices.name, value, above)


def decomposed(some: Choices) -> dict[str, Array]:
    """By measure, (R, I) of R checkpoints."""
    mass_RI, gold_RI = some.log_mass(), some.loglik_KC[:, some.gold_C]
    return {GOLD: gold_RI, FORMAT: mass_RI, KNOWLEDGE: gold_RI - mass_RI, MASS: np.exp(mass_RI)}


def table(findings: Findings, benchmarks: bool = False) -> Table:
    """The change of each part, beside the mass at each stage."""
    found = [r for r in findings.tables["format"] if bool(r.benchmark) == benchmarks]
    at = {(r.scale, r.category, r.benchmark, r.measure, r.stage, r.minus): r for r in found}
    blocks: dict[tuple[str, str, str], list[list[str]]] = {}
    for scale, category, benchmark, stage, minus in dict.fromkeys(
        (r.scale, r.category, r.benchmark, r.stage, r.minus) for r in found if r.minus
    ):
        place = (scale, category, benchmark)
        change = [at[*place, measure, stage, minus] for measure in (GOLD, FORMAT, KNOWLEDGE)]
        mass = [f"{at[*place, MASS, s, ''].estimate:.3f}" for s in (minus, stage)]
        line = [benchmark or category, scale, f"{minus} → {stage}", *map(with_interval, change), *mass]
        blocks.setdefault((scale, minus, stage), []).append(line)
    head = [
        "benchmark" if benchmarks else "mean over",
        "scale",
        "stages",
        f"change of {GOLD}",
        FORMAT,
        KNOWLEDGE,
    ]
    return Table("format and knowledge", [*head, "mass before", "mass after"], list(blocks.values()), texts=3)


def section(findings: Findings) -> str:
    found = findings.tables["format"]
    if not found:
        return ""
    before, after = map(escape, findings.method["stages"])
    notes = dict.fromkeys(
        f"{r.benchmark} ({r.scale}): {r.note}" for r in found if r.note and r.benchmark and not r.minus
    )
    hint = "".join(f'<p class="hint">{escape(note)}.</p>' for note in list(notes)[:6])
    return (
        "<h2>Format and knowledge</h2>"
        f'<p class="hint">What {before} to {after} changes of the probability of the right choice, in nats: {FORMAT}, what all '
        "choices together get, is whether the answer has the form that is asked for; log p(gold | choices) is which of them it "
        "is. The two add up. Prompts are as a pretrained model reads them, unless the stage ends in +chat: a fine-tuned model "
        "asked outside its own format may give the choices less without knowing less. Benchmarks whose choices stand behind "
        "contexts of their own (winogrande) are left out. Intervals are for other mixtures and other items.</p>"
        f"{page.show(table(findings))}"
        f"<details><summary>Benchmarks</summary>{page.show(table(findings, benchmarks=True))}</details>{hint}"
    )


def claims(findings: Findings) -> Iterator[Claim]:
    parts = {FORMAT: "the probability of all choices together", KNOWLEDGE: "the right one's share of it"}
    at = {"category": ALL, "benchmark": ""}
    for scale in findings.method["scales"]:
        for (after, before), (measure, what) in itertools.product(
            compared(tuple(findings.method["stages"])), parts.items()
        ):
            for row in findings.rows("format", **at, scale=scale, measure=measure, stage=after, minus=before):
                said = f"{with_interval(row)} nats over all benchmarks at {scale}, n = {row.n}"
                if excludes_zero(row):
                    word = "raises" if row.estimate > 0 else "lowers"
                    yield Claim(SUPPORTED, f"{before} to {after} {word} {what}: {said}.")
                else:
                    yield Claim(UNSUPPORTED, f"That {before} to {after} changes {what}: {said}.")


EXPLAINER = Explainer(
    "format",
    FormatRow,
    rows,
    section,
    latex=lambda f: {"format": table(f), "format_benchmarks": table(f, True)} if f.tables["format"] else {},
    claims=claims,
)
