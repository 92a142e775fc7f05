"""Frequency and similarity in one equation, and what the one loses when the other enters: table `gelbach`.

The margin is regressed within items (within.py) on the dose of counts that `frequency` looks at most closely, on a similarity of
the item with the mixture's text, and on both. With b the slopes beside each other and g the slope of similarity on the count,

    slope of the count alone = b_count + g b_similarity

exactly, so the second part is what the count's slope owes to similarity, without an order in which regressors enter. The
semi-partial R2 of one is what it adds to the R2 within items of the other. Intervals of slopes and of their difference are for
other mixtures and items (within.py), from the influence of each item on it; those of shares and of r are the jackknife over
mixtures.

A regressor that is measured badly loses to one that is measured well: the parts say what predicts, not what causes.

References: Gelbach (2016), "When do covariates matter?", Journal of Labor Economics 34, 509-543. That similarity may not be
enough: Mayilvahanan et al. (2024), arXiv 2310.09562.

Dims: J the study, then the study without each mixture; M mixtures; I items; P parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from evalengine.analysis.claims import Claim, claim
from evalengine.analysis.estimates.groups import ALL
from evalengine.analysis.explain import doses, exposed
from evalengine.analysis.explain.choices import Array
from evalengine.analysis.explain.doses import MARGIN, dosed_items, together, whens
from evalengine.analysis.explain.explainer import Explainer, Findings, StudyScores
from evalengine.analysis.explain.exposed import SIMILARITIES, Dose
from evalengine.analysis.explain.means import joined, when_said
from evalengine.analysis.explain.student import Interval, jackknife, of_correlation
from evalengine.analysis.explain.within import (
    clustered,
    influence,
    interval,
    products,
    slopes,
    varies,
    without_each,
)
from evalengine.analysis.figure import File, Part, Table, blocks, pivot
from evalengine.analysis.results import with_interval
from evalengine.analysis.statistics.ranges import SHARE

COUNT, SIMILARITY = "count", "similarity"
ALONE = {COUNT: "count alone", SIMILARITY: "similarity alone"}
ADJUSTED = {COUNT: "count beside similarity", SIMILARITY: "similarity beside count"}
OWED = "owed to similarity"
BOTH = "R2 of both"
ADDS = {COUNT: "R2 that count adds", SIMILARITY: "R2 that similarity adds"}
TOGETHER = "r of count and similarity"


class GelbachRow(NamedTuple):
    """A part at a stage, or of the change from the first stage (`minus`).

    Slopes of the count are nats for each log unit, those of similarity nats for each of its nats. p: of the part being 0.
    """

    scale: str
    stage: str
    minus: str  # "" at a stage
    dose: str
    similarity: str
    category: str
    benchmark: str  # "" of several
    part: str
    estimate: float
    low: float
    high: float
    se: float
    p: float
    n: int  # mixtures
    items: int
    note: str


def rows(study: StudyScores) -> list[GelbachRow]:
    out: list[GelbachRow] = []
    if (dose := doses.headline(study)) is None:
        return out
    for scale in study.design.scales:
        known = doses.dosed(study, scale)
        kinds = {one.kind for benchmark in (known[1] if known else ()) for one in benchmark.value}
        for kind in (kind for kind in SIMILARITIES if kind in kinds):
            out += _of_kind(study, scale, dose, kind)
    return out


def _of_kind(study: StudyScores, scale: str, dose: Dose, kind: str) -> Iterator[GelbachRow]:
    items = dosed_items(study, scale, {COUNT: (dose, None), SIMILARITY: (Dose(kind, 0), None)})
    if items is None or not items.benchmarks:
        return
    inside = {one.benchmark: one.within() for one in items.benchmarks}
    for category, benchmark, cells in items.groups():
        within = [inside[one.benchmark] for one in cells]
        x_2MI = [together(one.x[name] for one in within) for name in (COUNT, SIMILARITY)]
        for when in whens(study.design.stages):
            place = (scale, *when, str(dose), kind, category, benchmark)
            within_VMI = np.stack([*x_2MI, together(one.y[when, MARGIN] for one in within)])
            for name, found in estimates(within_VMI, study.options.level).items():
                apart = "" if np.isfinite(found.estimate) else "count and similarity do not vary apart"
                without = "" if benchmark else items.without(category)
                note = joined(apart, without, exposed.wording(study))
                yield GelbachRow(*place, name, *found, len(items.mixtures), within_VMI.shape[2], note)


def estimates(within_VMI: Array, level: float = 0.95) -> dict[str, Interval]:
    """Every part of a count, a similarity and an outcome, demeaned."""
    found = parts(without_each(products(within_VMI)))
    if not all(map(varies, within_VMI[:2])):
        return {name: Interval(*(np.nan,) * 5) for name in found}
    both_KMI = influence(within_VMI, np.array([found[ADJUSTED[k]][0] for k in (COUNT, SIMILARITY)]))
    one_MI, other_MI = (
        influence(within_VMI[[k, 2]], found[ALONE[name]][:1])[0] for k, name in enumerate((COUNT, SIMILARITY))
    )
    of = {
        ALONE[COUNT]: one_MI,
        ADJUSTED[COUNT]: both_KMI[0],
        OWED: one_MI - both_KMI[0],
        ALONE[SIMILARITY]: other_MI,
        ADJUSTED[SIMILARITY]: both_KMI[1],
    }
    out = {}
    for name, value_J in found.items():
        if name in of:
            out[name] = interval(value_J[:, None], clustered(of[name][None]), level).at(0)
        else:
            given = value_J[:1], value_J[1:, None], level
            interval_of = of_correlation(*given) if name == TOGETHER else jackknife(*given, possible=SHARE)
            out[name] = interval_of.at(0)._replace(p=np.nan)
    return out


def parts(total_JVV: Array) -> dict[str, Array]:
    """Every part, (J,), from cross-products of the count, the similarity and the outcome (within.without_each)."""
    both_JK = slopes(total_JVV)
    one_J, other_J = (slopes(total_JVV[:, [k, 2]][:, :, [k, 2]])[:, 0] for k in (0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        yy_J = total_JVV[:, 2, 2]
        r2_JK = np.stack([one_J, other_J], axis=1) * total_JVV[:, :2, 2] / yy_J[:, None]
        r2_J = (both_JK * total_JVV[:, :2, 2]).sum(axis=1) / yy_J
        r_J = total_JVV[:, 0, 1] / np.sqrt(total_JVV[:, 0, 0] * total_JVV[:, 1, 1])
    return {
        ALONE[COUNT]: one_J,
        ADJUSTED[COUNT]: both_JK[:, 0],
        OWED: one_J - both_JK[:, 0],
        ALONE[SIMILARITY]: other_J,
        ADJUSTED[SIMILARITY]: both_JK[:, 1],
        BOTH: r2_J,
        ADDS[COUNT]: r2_J - r2_JK[:, 1],
        ADDS[SIMILARITY]: r2_J - r2_JK[:, 0],
        TOGETHER: r_J,
    }


def lacks(study: StudyScores) -> str:
    if (found := exposed.exposed(study)) is None:
        return exposed.lacks(study)
    similar = any(dose.kind in SIMILARITIES for one in found.counts for dose in one.value)
    return doses.NO_HEADLINE if similar else "similarities of `evalengine expose --similarity`"


# --- the report


def parts_table(findings: Findings) -> Table:
    """Of all items: a line for each similarity, scale and stage."""
    slopes = ALONE[COUNT], ADJUSTED[COUNT], OWED, ALONE[SIMILARITY], ADJUSTED[SIMILARITY]
    shown = (*slopes, *ADDS.values(), TOGETHER)
    at = pivot(findings.rows("gelbach", category=ALL), "similarity scale stage minus", "part")
    lines = [
        [similarity, scale, when_said(*when)]
        + [(_percent if part in ADDS.values() else with_interval)(of[part]) for part in shown]
        for (similarity, scale, *when), of in at.items()
    ]
    head = ["similarity", "scale", "stage"]
    head += [f"{part} (%)" if part in ADDS.values() else part for part in shown]
    return Table("count and similarity", head, blocks(lines, 1), texts=3, stacked=True)


def _percent(row: GelbachRow) -> str:
    """R2 within items are small: hundredths of a percent."""
    if not np.isfinite(row.estimate):
        return "–"
    return f"{100 * row.estimate:.2f} [{100 * row.low:.2f}, {100 * row.high:.2f}]"


def shown(findings: Findings) -> Iterator[Part]:
    first = findings.tables["gelbach"][0]
    yield (
        "The same comparison of items with themselves, of the margin, in one equation: how often the right choice was seen "
        f"rather than the wrong ones ({first.dose}), and how similar the mixture's text is to it rather than to them. What the "
        "count's slope owes to similarity is the difference between its slope alone and beside it. R2 are of what is left within "
        "items, which is mostly noise. Of two measures of one thing the better one takes the slope. Intervals are for other "
        f"mixtures and items, those of R2 and r for other mixtures, n = {first.n}."
    )
    yield File("gelbach", parts_table(findings))


def claims(findings: Findings) -> Iterator[Claim]:
    first = findings.method["stages"][0]
    rows = findings.rows("gelbach", category=ALL, stage=first)
    for scale, at in pivot(rows, "scale", "similarity part").items():
        kinds = [kind for kind in SIMILARITIES if (kind, OWED) in at and np.isfinite(at[kind, OWED].low)]
        if not kinds:
            continue
        counts, similar = ([at[kind, ADJUSTED[what]] for kind in kinds] for what in (COUNT, SIMILARITY))
        given_other = [f"{with_interval(r)} beside {kind}" for kind, r in zip(kinds, counts, strict=True)]
        alone = [
            f"{kind} {with_interval(at[kind, ALONE[SIMILARITY]])} alone and {with_interval(r)} beside the count"
            for kind, r in zip(kinds, similar, strict=True)
        ]
        predicts = f"predicts the margin at {first} beyond how"
        for rows_, words, numbers in (
            (
                counts,
                f"how often a choice was seen {predicts} similar the text is to it",
                [f"{with_interval(at[kinds[0], ALONE[COUNT]])} alone", *given_other],
            ),
            (similar, f"how similar the text is to a choice {predicts} often it was seen", alone),
        ):
            said = f"slopes of the margin {'; '.join(numbers)}; n = {rows_[0].n}"
            yield claim(*rows_, above=words, said=said, at=scale)


EXPLAINER = Explainer(
    "gelbach", GelbachRow, rows, "How often, or how similarly?", lacks=lacks, shown=shown, said=claims
)
