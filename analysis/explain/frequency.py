"""Whether a benchmark follows how often its material stood in the mixture: table `frequency`, computed in dose_slopes.py.

Beside it the plot that is usual and says little, accuracy by bins of dose: table `frequency_bins`. A bin takes the items and
mixtures of a tenth of the doses, of all benchmarks. Its mean differs from the next one's because other items are in it, and means
of many items hide how far items lie from the line: r over ten bins may be 0.9 where r over items is 0.2. The second line has the
slope within items, through the mean of all.

Reference: Udandarao et al. (2024), arXiv 2404.04125, for plots of bins.

Dims: M mixtures, I items, K bins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from evalengine.analysis.claims import CAUTION, Claim, claim, side
from evalengine.analysis.estimates.groups import ALL
from evalengine.analysis.explain import doses, exposed
from evalengine.analysis.explain.choices import Array
from evalengine.analysis.explain.dose_slopes import (
    ACROSS,
    AT_ZERO,
    CURVATURE,
    SLOPE,
    WHERE_SEEN,
    ZERO,
    FrequencyRow,
    X,
    rows,
)
from evalengine.analysis.explain.doses import (
    ACCURACY,
    MARGIN,
    OUTCOMES,
    Dosages,
    DosedItems,
    When,
    dosed_items,
    together,
    whens,
)
from evalengine.analysis.explain.explainer import Explainer, Findings, StudyScores
from evalengine.analysis.explain.means import lines_of, over_bins, when_said
from evalengine.analysis.explain.student import pooled
from evalengine.analysis.explain.within import fitted, varies
from evalengine.analysis.figure import (
    File,
    Folded,
    IntervalPlot,
    Part,
    Table,
    blocks,
    pivot,
    with_benchmarks,
)
from evalengine.analysis.results import p_value, signed, with_interval
from evalengine.analysis.statistics.ranges import Range

HIGH = 0.7  # an r over bins that someone could take for evidence
BINS = 10
PERCENT = Range(0.0, 100.0)
OF_ITEMS, OF_SLOPE = "bins of items", "slope within items"
DETAILS = (SLOPE, ACROSS, WHERE_SEEN, ZERO, CURVATURE, AT_ZERO)
# The slope of the dose that is looked at closely.
HEADLINE: dict[str, Any] = {"headline": 1, "measure": SLOPE}


class BinRow(NamedTuple):
    """Accuracy in percent; intervals are over mixtures."""

    scale: str
    stage: str
    dose: str
    category: str  # bins of items, or slope within items
    bin: int
    at: float  # mean dose
    estimate: float
    low: float
    high: float
    items: int  # times mixtures


def bin_rows(study: StudyScores) -> list[BinRow]:
    out: list[BinRow] = []
    if (dose := doses.headline(study)) is None:
        return out
    for scale in study.design.scales:
        items = dosed_items(study, scale, {X: (dose, None)})
        if items is None or not items.benchmarks:
            continue
        for when in whens(study.design.stages)[:2]:
            out += _bins_of(items, (scale, when[0], str(dose)), when, study.options.level)
    return out


def _bins_of(items: Dosages, place: tuple[str, str, str], when: When, level: float) -> Iterator[BinRow]:
    def both(every: list[DosedItems]) -> tuple[Array, Array]:
        return together(one.x[X] for one in every), together(one.y[when, ACCURACY] for one in every)

    within = both([one.within() for one in items.benchmarks])
    if not varies(within[0]):
        return
    slope, _ = fitted(np.stack(within), level)
    x_MI, right_MI = both(items.benchmarks)
    y_MI = 100.0 * right_MI
    edges = np.unique(np.quantile(x_MI, np.arange(1, BINS) / BINS))
    bin_MI = np.searchsorted(edges, x_MI, side="right")
    for k in range(len(edges) + 1):
        mine = bin_MI == k
        if not mine.any(axis=1).all():
            continue
        at, items_K = float(x_MI[mine].mean()), int(mine.sum())
        found = pooled(y_MI, mine, np.arange(len(y_MI)), level, PERCENT)
        yield BinRow(*place, OF_ITEMS, k, at, *found, items_K)
        away = 100.0 * (at - float(x_MI.mean()))
        middle = float(y_MI.mean())
        line, *ends = np.clip([middle + away * float(b[0]) for b in slope[:3]], *PERCENT).tolist()
        yield BinRow(*place, OF_SLOPE, k, at, line, min(ends), max(ends), items_K)


def lacks(study: StudyScores) -> str:
    if why := exposed.lacks(study):
        return why
    known = any(doses.dosed(study, scale) for scale in study.design.scales)
    return doses.NO_HEADLINE if known else "mixtures and scales that the exposures know"


# --- the report


def slopes_table(findings: Findings, benchmarks: bool = False) -> Table:
    """Of the headline dose, by category or benchmark: margin and accuracy, at both stages and their difference."""
    every, unit = whens(findings.method["stages"]), {MARGIN: "nats", ACCURACY: "points"}
    keys = [(outcome, *when) for outcome in unit for when in every]
    lines = [
        [name, scale, *map(with_interval, map(of.get, keys)), f"{of[keys[0]].items:,}"]
        for name, scale, of in lines_of(findings, "frequency", benchmarks, "outcome stage minus", **HEADLINE)
    ]
    head = [f"{outcome}, {when_said(*when)} ({unit[outcome]})" for outcome in unit for when in every]
    columns = ["benchmark" if benchmarks else "items of", "scale", *head, "items"]
    return Table("slopes within items", columns, blocks(lines, 1), texts=2, stacked=True)


def doses_table(findings: Findings) -> Table:
    """The margin's slope over all items on every dose."""
    lines = []
    for r in findings.rows("frequency", measure=SLOPE, category=ALL, outcome=MARGIN, minus=""):
        if math.isfinite(r.estimate):
            tests = map(p_value, (r.p, r.p_wild, r.p_permutation, r.q))
            lines.append([r.dose, r.scale, r.stage, with_interval(r), *tests, f"{r.items:,}"])
    columns = ["dose", "scale", "stage", "nats", "p", "p of signs", "p of relabellings", "q", "items"]
    return Table("slopes on every dose", columns, blocks(lines, 1, 2), texts=3)


def details_table(findings: Findings) -> Table:
    """All items, the headline dose: every measure."""
    found = findings.rows("frequency", headline=1, category=ALL, minus="")
    at = pivot(found, "scale", "measure outcome stage")
    places = [(outcome, stage) for outcome in OUTCOMES for stage in findings.method["stages"]]
    lines = [
        [measure, scale, *(with_interval(of.get((measure, *place))) for place in places)]
        for scale, of in at.items()
        for measure in DETAILS
    ]
    lines = [line for line in lines if set(line[2:]) != {"–"}]
    columns = ["", "scale", *(f"{outcome}, {stage}" for outcome, stage in places)]
    return Table("what the dose does", columns, blocks(lines, 1), texts=2, stacked=True)


def errors_table(findings: Findings) -> Table:
    lines = []
    for r in findings.rows("frequency", **HEADLINE, category=ALL, outcome=MARGIN):
        errors = [f"{se:.3f}" if math.isfinite(se) else "–" for se in (r.se_item, r.se_mixture, r.se)]
        lines.append([when_said(r.stage, r.minus), r.scale, signed(r.estimate, 3), *errors])
    columns = ["stage", "scale", "nats", "by item", "by mixture (CR1)", "by both (CR3 and items)"]
    return Table("standard errors of the slope", columns, [lines], texts=2)


def before_and_after(findings: Findings) -> IntervalPlot:
    """A panel for each scale, a colour for each stage."""
    every = findings.means("frequency", **HEADLINE, outcome=MARGIN, minus="")
    found = [r for r in every if math.isfinite(r.estimate)]
    ends = [abs(end) for r in found for end in (r.estimate, r.low, r.high) if math.isfinite(end)]
    limit = max(ends, default=1.0)
    step = 10.0 ** math.floor(math.log10(limit)) / 2.0 if limit > 0 else 1.0
    figure = IntervalPlot(found, lambda r: r.category, panel=lambda r: r.scale)
    return figure._replace(limit=math.ceil(limit / step) * step, measure="nats for each log unit")


def shown(findings: Findings) -> Iterator[Part]:
    found = findings.rows("frequency", **HEADLINE, category=ALL, outcome=MARGIN, minus="")
    if not found:
        return
    one = found[0]
    least = min((r.p_least for r in found if math.isfinite(r.p_least)), default=math.nan)
    relabelled = (
        " The design is a grid, so the doses of its sources and of its proportions can change places: no p of relabellings is "
        f"below {least:.3f}."
        if math.isfinite(least)
        else ""
    )
    yield (
        "Each item is compared with itself under other mixtures. Its dose is the log of how often the runs of words that lead "
        f"from the question into the right choice were read in pretraining, minus the mean of its wrong choices ({one.dose}). "
        "What a mixture does to a benchmark as a whole is taken out, so a task of which some mixture holds more is not taken for "
        "knowledge of its items. The slope of the margin is in nats for each log unit of exposures, that of accuracy in points "
        f"for each factor of ten. Intervals are for other mixtures and items; n = {one.n} counts mixtures."
    )
    figure = File("frequency", before_and_after(findings))
    yield from with_benchmarks("frequency", slopes_table(findings), slopes_table(findings, True), [figure])
    yield (
        "More of the same dose. Across items: items against others of their benchmark, not against themselves. Never seen: what "
        "a count of zero adds to the line through the others. Curvature: the square of the log dose. Value at zero dose: "
        "accuracy or p(gold) above chance where right and wrong choices were seen equally often, so what does not come from "
        "having read the answer more often."
    )
    yield File("frequency_details", details_table(findings))
    yield _errors_said(found)
    yield errors_table(findings)
    kinds = (
        "cross: n-grams from the question into the choice. task: documents that hold an n-gram of each. longest: words of the "
        "longest match, slopes for each word. context: n-grams of the question alone; it compares no choices, says how familiar "
        f"the task is, and is in no family of tests. q is over the doses, of p.{relabelled}"
    )
    yield Folded("Every dose", [kinds, File("frequency_doses", doses_table(findings))])
    if findings.tables["frequency_bins"]:
        yield _bins_part(findings)


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
    found = findings.rows("frequency_bins", category=OF_ITEMS)
    for place, of in pivot(found, "scale stage", "bin").items():
        at, value = (np.array([getattr(r, field) for r in of.values()]) for field in ("at", "estimate"))
        if len(of) > 2 and at.std() > 0 and value.std() > 0:
            out[place] = float(np.corrcoef(at, value)[0, 1])
    return out


def _bins_part(findings: Findings) -> Folded:
    found = "; ".join(f"{scale} {stage} {signed(r)}" for (scale, stage), r in binned_r(findings).items())
    words = (
        "Mean accuracy of the items of each tenth of the doses, the lowest first (fewer bins where many are equal), beside the "
        f"line of the slope within items. r over bins: {found}. Bins hold different items, and averaging many of them can make "
        "r large whatever one item does: they are no evidence of what text teaches."
    )
    rows = findings.tables["frequency_bins"]
    bins = over_bins(rows, lambda r: f"{r.scale} {r.stage}", "bin of dose, lowest first", "accuracy (%)")
    return Folded("Bins, as such plots are usually drawn", [words, File("frequency_bins", bins)])


def claims(findings: Findings) -> Iterator[Claim]:
    first, last = findings.method["stages"]
    at: dict[str, Any] = {**HEADLINE, "category": ALL, "outcome": MARGIN}
    for before in findings.rows("frequency", **at, stage=first, minus=""):
        if not math.isfinite(before.low):
            continue
        scale, unit = before.scale, f"nats of margin for each log unit of exposures ({before.dose})"
        tests = f"p of signs {p_value(before.p_wild)}"
        if math.isfinite(before.p_permutation):
            tests += f", of relabellings {p_value(before.p_permutation)} (none is below {before.p_least:.3f})"
        follow = "follow how often a mixture's text holds their right choice rather than the wrong ones"
        yield claim(
            before,
            above=f"items at {first} {follow}, beyond the benchmark as a whole",
            otherwise=f"items at {first} {follow}",
            at=scale,
            tested=before.p_wild <= 0.05,
            said=f"{with_interval(before)} {unit}, n = {before.n}; standard error {before.se:.2f} over mixtures and items, "
            f"{before.se_item:.2f} by item alone; {tests}",
        )
        (change,) = findings.rows("frequency", **at, scale=scale, stage=last, minus=first)
        after = f"after {last} items follow the pretraining text"
        yield claim(
            change,
            above=f"{after} more than before",
            below=f"{after} less than before",
            otherwise=f"{last} changes how items follow the pretraining text",
            at=scale,
            said=f"{with_interval(change)} {unit}, paired, n = {change.n}",
        )
        zero = {**at, "measure": AT_ZERO, "outcome": ACCURACY}
        found = findings.rows("frequency", **zero, scale=scale, minus="")
        values = ", ".join(f"{with_interval(r)} at {r.stage}" for r in found)
        yield claim(
            *found,
            above="models are above chance where right and wrong choices were seen equally often",
            said=f"points of accuracy {values}, n = {found[0].n}",
            at=scale,
        )
        if side(before) > 0 and before.p_permutation > 0.05:
            yield Claim(
                CAUTION,
                f"mixtures of one source read the same text, so {before.n} of them are fewer than {before.n} independent ones",
                f"doses exchanged within the design reach the slope at {first} in {before.p_permutation:.3f} of the cases",
                scale,
            )
    if findings.rows("frequency") and (wording := findings.method.get("exposure_wording")):
        yield Claim(
            CAUTION,
            f"{wording[0].upper()}{wording[1:]}: what a prompt words otherwise, or puts before an item, has no dose.",
        )
    binned = binned_r(findings).items()
    high = [f"{scale} {stage} {signed(r)}" for (scale, stage), r in binned if abs(r) > HIGH]
    if high:
        yield Claim(
            CAUTION,
            f"r over bins of dose is large ({', '.join(high)}) because bins average many items; the slope within items is the "
            "one to read.",
        )


EXPLAINER = Explainer(
    "frequency",
    FrequencyRow,
    rows,
    "Does a benchmark follow its text?",
    opens=lambda rows: any(row.headline for row in rows),
    lacks=lacks,
    shown=shown,
    said=claims,
)
BINNED = Explainer("frequency_bins", BinRow, bin_rows)
