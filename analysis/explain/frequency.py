"""Whether a benchmark follows how often its material stood in the mixture: table `frequency`, computed in dose_slopes.py."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import numpy as np

from evalengine.analysis import page
from evalengine.analysis.explain.dose_bins import OF_ITEMS
from evalengine.analysis.explain.dose_slopes import (
    ACROSS,
    AT_ZERO,
    CURVATURE,
    SLOPE,
    WHERE_TOLD,
    ZERO,
    FrequencyRow,
    rows,
)
from evalengine.analysis.explain.dosed_items import ACCURACY, MARGIN, OUTCOMES
from evalengine.analysis.explain.explainer import Explainer, Findings
from evalengine.analysis.figure import Figure, Intervals, Lines, Table
from evalengine.analysis.groups import ALL
from evalengine.analysis.page import p_value
from evalengine.analysis.protocol import CAUTION, SUPPORTED, UNSUPPORTED, Claim
from evalengine.analysis.results import with_interval

HIGH = 0.7  # an r over bins that someone could take for evidence
DETAILS = (SLOPE, ACROSS, WHERE_TOLD, ZERO, CURVATURE, AT_ZERO)


def _place(row: FrequencyRow) -> tuple[str, str]:
    return row.stage, row.minus


def _whens(findings: Findings) -> list[tuple[str, str, str]]:
    """Stage, minus, and what to call it."""
    first, last = findings.method["stages"]
    return [(first, "", first), (last, "", last), (last, first, f"{last} minus {first}")]


def slopes_table(findings: Findings, benchmarks: bool = False) -> Table:
    """Of the headline dose, by category or benchmark: margin and accuracy, at both stages and their difference."""
    found = findings.rows("frequency", headline=1, measure=SLOPE)
    at = {(r.scale, r.category, r.benchmark, r.stage, r.minus, r.outcome): r for r in found}
    blocks: dict[str, list[list[str]]] = {}
    for scale, category, benchmark in dict.fromkeys((r.scale, r.category, r.benchmark) for r in found):
        if bool(benchmark) != benchmarks:
            continue
        cells = [
            with_interval(at.get((scale, category, benchmark, *when[:2], outcome)))
            for outcome in (MARGIN, ACCURACY)
            for when in _whens(findings)
        ]
        first = at[scale, category, benchmark, *_whens(findings)[0][:2], MARGIN]
        blocks.setdefault(scale, []).append([benchmark or category, scale, *cells, f"{first.items:,}"])
    unit = {MARGIN: "nats", ACCURACY: "points"}
    head = [f"{outcome}, {when[2]} ({unit[outcome]})" for outcome in unit for when in _whens(findings)]
    columns = ["benchmark" if benchmarks else "items of", "scale", *head, "items"]
    return Table("slopes within items", columns, list(blocks.values()), texts=2, stacked=True)


def doses_table(findings: Findings) -> Table:
    """The margin's slope over all items on every dose."""
    every = findings.rows("frequency", measure=SLOPE, category=ALL, outcome=MARGIN, minus="")
    found = [r for r in every if math.isfinite(r.estimate)]
    blocks = [
        [
            [
                r.dose,
                r.scale,
                r.stage,
                with_interval(r),
                p_value(r.p),
                p_value(r.p_wild),
                p_value(r.p_permutation),
                p_value(r.q),
                f"{r.items:,}",
            ]
            for r in found
            if (r.scale, r.stage) == place
        ]
        for place in dict.fromkeys((r.scale, r.stage) for r in found)
    ]
    columns = ["dose", "scale", "stage", "nats", "p", "p of signs", "p of relabellings", "q", "items"]
    return Table("slopes on every dose", columns, blocks, texts=3)


def details_table(findings: Findings) -> Table:
    """All items, the headline dose: every measure."""
    found = findings.rows("frequency", headline=1, category=ALL, minus="")
    at = {(r.scale, r.measure, r.stage, r.outcome): r for r in found}
    stages = findings.method["stages"]
    blocks = []
    for scale in dict.fromkeys(r.scale for r in found):
        lines = []
        for measure in DETAILS:
            cells = [with_interval(at.get((scale, measure, s, o))) for o in OUTCOMES for s in stages]
            if any(cell != "–" for cell in cells):
                lines.append([measure, scale, *cells])
        blocks.append(lines)
    columns = ["", "scale", *(f"{outcome}, {stage}" for outcome in OUTCOMES for stage in stages)]
    return Table("what the dose does", columns, blocks, texts=2, stacked=True)


def errors_table(findings: Findings) -> Table:
    found = findings.rows("frequency", headline=1, category=ALL, measure=SLOPE, outcome=MARGIN)
    lines = [
        [
            f"{r.stage} minus {r.minus}" if r.minus else r.stage, r.scale, f"{r.estimate:+.3f}".replace("-", "−"),
            *(f"{se:.3f}" if math.isfinite(se) else "–" for se in (r.se_item, r.se_mixture, r.se)),
        ]
        for r in found
    ]  # fmt: skip
    columns = [
        "stage",
        "scale",
        "nats",
        "by item",
        "by mixture (CR1)",
        "by both (CR3 and items)",
    ]
    return Table("standard errors of the slope", columns, [lines], texts=2)


def bins(findings: Findings) -> Lines:
    found = findings.tables["frequency_bins"]
    places = [str(k + 1) for k in sorted({r.bin for r in found})]
    return Lines(
        found,
        places,
        lambda r: str(r.bin + 1),
        lambda r: f"accuracy (%) by dose, {r.scale} {r.stage}",
    )


def before_and_after(findings: Findings) -> Intervals:
    """A panel for each scale, a colour for each stage."""
    found = [
        r
        for r in findings.rows("frequency", headline=1, measure=SLOPE, outcome=MARGIN, minus="", benchmark="")
        if math.isfinite(r.estimate)
    ]
    ends = [abs(end) for r in found for end in (r.low, r.high) if math.isfinite(end)]
    limit = max([abs(r.estimate) for r in found] + ends, default=1.0)
    step = 10.0 ** math.floor(math.log10(limit)) / 2.0 if limit > 0 else 1.0
    return Intervals(
        found,
        lambda r: r.category,
        panel=lambda r: r.scale,
        limit=math.ceil(limit / step) * step,
        measure="nats for each log unit",
    )


def section(findings: Findings) -> str:
    found = findings.rows("frequency", headline=1, category=ALL, measure=SLOPE, outcome=MARGIN, minus="")
    if not found:
        return ""
    one = found[0]
    least = min((r.p_least for r in found if math.isfinite(r.p_least)), default=math.nan)
    relabelled = (
        f" The design is a grid, so the doses of its sources and of its proportions can change places: no p of relabellings is "
        f"below {least:.3f}."
        if math.isfinite(least)
        else ""
    )
    words = (
        "Each item is compared with itself under other mixtures. Its dose is the log of how often the runs of words that lead "
        f"from the question into the right choice were read in pretraining, minus the mean of its wrong choices ({one.dose}). "
        "What a mixture does to a benchmark as a whole is taken out, so a task that some mixture tells more of is not taken for "
        "knowledge of its items. The slope of the margin is in nats for each log unit of exposures, that of accuracy in points "
        f"for each factor of ten. Intervals are for other mixtures and items; n = {one.n} counts mixtures."
    )
    closer = (
        "More of the same dose. Across items: items against others of their benchmark, not against themselves. Never told: what "
        "a count of zero adds to the line through the others. Curvature: the square of the log dose. Value at zero dose: "
        "accuracy or p(gold) above chance where right and wrong choices were told equally often, so what does not come from "
        "having read the answer more often."
    )
    kinds = (
        "cross: n-grams from the question into the choice. task: documents that hold an n-gram of each. longest: words of the "
        "longest match, slopes for each word. context: n-grams of the question alone; it compares no choices, says how familiar "
        f"the task is, and is in no family of tests. q is over the doses, of p.{relabelled}"
    )
    return (
        "<h2>Does a benchmark follow its text?</h2>"
        f'<p class="hint">{escape(words)}</p>{page.show(slopes_table(findings))}'
        f"{page.grid(findings.drawing, before_and_after(findings))}"
        f"<details><summary>Benchmarks</summary>{page.show(slopes_table(findings, True))}</details>"
        f'<p class="hint">{escape(closer)}</p>{page.show(details_table(findings))}'
        f'<p class="hint">{escape(_errors_said(found))}</p>{page.show(errors_table(findings))}'
        f'<details><summary>Every dose</summary><p class="hint">{escape(kinds)}</p>'
        f"{page.show(doses_table(findings))}</details>{_bins_section(findings)}"
    )


def _errors_said(found: list[FrequencyRow]) -> str:
    ratios = [r.se / r.se_item for r in found if r.se_item > 0 and math.isfinite(r.se)]
    if not ratios:
        return "Errors of the slope: too few mixtures to say."
    span = f"{min(ratios):.1f} to {max(ratios):.1f}" if len(ratios) > 1 else f"{ratios[0]:.1f}"
    return (
        f"Errors of the slope. For other mixtures and items they are {span} times what clustering by item alone would say. "
        "Mixtures of one web source share its text: where that makes their slopes alike, even these are too small."
    )


def binned_r(findings: Findings) -> dict[tuple[str, str], float]:
    """r over the bins, by scale and stage."""
    out = {}
    for r in findings.rows("frequency_bins", category=OF_ITEMS, bin=0):
        mine = findings.rows("frequency_bins", category=OF_ITEMS, scale=r.scale, stage=r.stage)
        at, value = np.array([one.at for one in mine]), np.array([one.estimate for one in mine])
        if len(mine) > 2 and at.std() > 0 and value.std() > 0:
            out[r.scale, r.stage] = float(np.corrcoef(at, value)[0, 1])
    return out


def _bins_section(findings: Findings) -> str:
    if not findings.tables["frequency_bins"]:
        return ""
    found = "; ".join(f"{scale} {stage} {_signed(r)}" for (scale, stage), r in binned_r(findings).items())
    words = (
        "Mean accuracy of the items of each tenth of the doses, the lowest first (fewer bins where many are equal), beside the "
        f"line of the slope within items. r over bins: {found}. Bins hold different items, and averaging many of them can make "
        "r large whatever one item does: they are no evidence of what text teaches."
    )
    return (
        "<details><summary>Bins, as such plots are usually drawn</summary>"
        f'<p class="hint">{escape(words)}</p>{page.grid(findings.drawing, bins(findings))}</details>'
    )


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def figures(findings: Findings) -> Mapping[str, Figure]:
    out: dict[str, Figure] = {}
    if findings.tables["frequency_bins"]:
        out["frequency_bins"] = bins(findings)
    if any(math.isfinite(r.estimate) for r in findings.rows("frequency", headline=1, outcome=MARGIN)):
        out["frequency"] = before_and_after(findings)
    return out


def claims(findings: Findings) -> Iterator[Claim]:
    first, last = findings.method["stages"]
    at: dict[str, Any] = {"headline": 1, "category": ALL, "measure": SLOPE, "outcome": MARGIN}
    for before in findings.rows("frequency", **at, stage=first, minus=""):
        if not math.isfinite(before.low):
            continue
        scale, unit = before.scale, f"nats of margin for each log unit of exposures ({before.dose})"
        tests = f"p of signs {p_value(before.p_wild)}"
        if math.isfinite(before.p_permutation):
            tests += f", of relabellings {p_value(before.p_permutation)} (none is below {before.p_least:.3f})"
        said = (
            f"{with_interval(before)} {unit}, n = {before.n}; standard error {before.se:.2f} over mixtures and items, "
            f"{before.se_item:.2f} by item alone; {tests}"
        )
        follow = "follow how often a mixture tells their right choice rather than the wrong ones"
        if before.low > 0 and before.p_wild <= 0.05:
            yield Claim(
                SUPPORTED, f"Items at {scale} {first} {follow}, beyond the benchmark as a whole: {said}."
            )
        else:
            yield Claim(UNSUPPORTED, f"That items at {scale} {first} {follow}: {said}.")
        (change,) = findings.rows("frequency", **at, scale=scale, stage=last, minus=first)
        said = f"{with_interval(change)} {unit}, paired, n = {change.n}"
        if change.low <= 0 <= change.high:
            yield Claim(
                UNSUPPORTED, f"That {last} changes how items at {scale} follow the pretraining text: {said}."
            )
        else:
            way = "less" if change.high < 0 else "more"
            yield Claim(
                SUPPORTED,
                f"After {last} items at {scale} follow the pretraining text {way} than before: {said}.",
            )
        yield from _at_zero(findings, scale)
        if before.low > 0 and before.p_permutation > 0.05:
            yield Claim(
                CAUTION,
                f"Mixtures of one source read the same text, so {before.n} of them are fewer than {before.n} independent ones: "
                f"doses that change places within the design reach the slope at {scale} {first} in {before.p_permutation:.3f} of "
                "the cases.",
            )
    high = [
        f"{scale} {stage} {_signed(r)}" for (scale, stage), r in binned_r(findings).items() if abs(r) > HIGH
    ]
    if high:
        yield Claim(
            CAUTION,
            f"r over bins of dose is large ({', '.join(high)}) because bins average many items; the slope within items is the "
            "one to read.",
        )


def _at_zero(findings: Findings, scale: str) -> Iterator[Claim]:
    at = {"scale": scale, "headline": 1, "category": ALL, "outcome": ACCURACY, "measure": AT_ZERO}
    found = findings.rows("frequency", **at, minus="")
    said = ", ".join(f"{with_interval(r)} at {r.stage}" for r in found)
    where = f"where right and wrong choices were told equally often, points of accuracy at {scale}"
    if all(r.low > 0 for r in found):
        yield Claim(SUPPORTED, f"Models are above chance {where}: {said}, n = {found[0].n}.")
    else:
        yield Claim(UNSUPPORTED, f"That models are above chance {where}: {said}, n = {found[0].n}.")


EXPLAINER = Explainer(
    "frequency",
    FrequencyRow,
    rows,
    section,
    figures,
    latex=lambda f: (
        {
            "frequency": slopes_table(f),
            "frequency_doses": doses_table(f),
            "frequency_details": details_table(f),
        }
        if f.tables["frequency"]
        else {}
    ),
    claims=claims,
)
