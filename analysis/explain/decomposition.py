"""What scaling pretraining does and what scaling fine-tuning does: table `decomposition`.

With XY for pretraining at scale X and fine-tuning at scale Y (S small, L large), SS and LL are real checkpoints, LS is the large
base with the small scale's fine-tuning and SL the small base with the large scale's, both emulated at beta 1:

    pretraining scale = ((LS - SS) + (LL - SL)) / 2
    fine-tuning scale = ((SL - SS) + (LL - LS)) / 2
    interaction       = LL - LS - SL + SS

item by item and mixture by mixture (Mitchell et al. 2024, see corners.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from evalengine.analysis.claims import Claim, claim, side, supported
from evalengine.analysis.estimates.groups import ALL
from evalengine.analysis.explain.choices import Array
from evalengine.analysis.explain.corners import TOKEN, best_level, corners_of, lacks_corners, missing
from evalengine.analysis.explain.eft import both_ways
from evalengine.analysis.explain.explainer import EVERYWHERE, Explainer, Findings, StudyScores
from evalengine.analysis.explain.means import grouped, joined, notes, over, with_q
from evalengine.analysis.explain.student import p_below, two_way_mean
from evalengine.analysis.figure import Part, Table, pivot, with_benchmarks
from evalengine.analysis.results import share_with_interval
from evalengine.analysis.statistics.ranges import SHARE, difference

PRETRAINING, FINE_TUNING, INTERACTION = "pretraining scale", "fine-tuning scale", "interaction"
MEASURES = {"accuracy": "correct", "p_gold": "p_gold"}  # and the field of Answered
EFFECTS: dict[str, Callable[[Array, Array, Array, Array], Array]] = {
    PRETRAINING: lambda LS, LL, SL, SS: 0.5 * ((LS - SS) + (LL - SL)),
    FINE_TUNING: lambda LS, LL, SL, SS: 0.5 * ((SL - SS) + (LL - LS)),
    INTERACTION: lambda LS, LL, SL, SS: LL - LS - SL + SS,
}
ALPHA = 0.05


class DecompositionRow(NamedTuple):
    """One effect on one measure. q: Benjamini and Hochberg's over the categories, or over the benchmarks."""

    level: str  # of emulation
    measure: str  # accuracy or p_gold
    effect: str
    small: str  # scales
    large: str
    category: str
    benchmark: str  # "" of a mean over benchmarks
    estimate: float
    low: float
    high: float
    se: float
    p: float
    q: float
    n: int
    note: str


def rows(study: StudyScores) -> list[DecompositionRow]:
    if (corners := corners_of(study)) is None:
        return []
    level = best_level(study, corners)
    pairs = both_ways(study, corners, level)
    there = {one.benchmark for one in pairs}
    out = []
    for category, benchmark, chosen in grouped(pairs):
        note = "" if benchmark else missing(study, corners, level, category, there)
        four = [(one.up.found, one.up.tuned, one.down.found, one.down.tuned) for one in chosen]
        for (measure, field), (effect, of) in itertools.product(MEASURES.items(), EFFECTS.items()):
            possible = difference(SHARE) if effect != INTERACTION else difference(difference(SHARE))
            value_BMI = [of(*(getattr(one, field) for one in corner)) for corner in four]
            mean = two_way_mean(value_BMI, study.options.level, possible)
            t = np.nan if mean.without_ends else -abs(mean.estimate / mean.se)
            p = float(2.0 * p_below(t, mean.n))
            at = (level, measure, effect, corners.small, corners.large, category, benchmark)
            out.append(DecompositionRow(*at, *mean[:4], p, p, mean.n, joined(note, mean.without_ends)))
    return with_q(out, _family)


def _family(row: DecompositionRow) -> tuple[str, str, bool] | None:
    """An effect on a measure, over the categories or over the benchmarks; of all, q is p."""
    return None if row.category == ALL else (row.measure, row.effect, bool(row.benchmark))


def table(findings: Findings, benchmarks: bool = False) -> Table:
    """Effects on accuracy in points: of the categories and all, or of the benchmarks."""
    found = findings.means("decomposition", benchmarks, measure="accuracy")
    lines = [
        [benchmark or category, *map(share_with_interval, map(of.get, EFFECTS))]
        for (category, benchmark), of in pivot(found, "category benchmark", "effect").items()
    ]
    head = [over(benchmarks), *(f"{effect} (points)" for effect in EFFECTS)]
    return Table("what scale does", head, [lines])


def shown(findings: Findings) -> Iterator[Part]:
    found = findings.tables["decomposition"]
    first = found[0]
    how = "token by token" if first.level == TOKEN else "from the scores of whole choices"
    yield (
        f"What {first.large} instead of {first.small} does to accuracy, in pretraining and in fine-tuning, with emulation at "
        f"beta 1 ({how}) for the checkpoints that nobody trained. Interaction: whether the two add up. Intervals are for other "
        f"mixtures and other items, n = {first.n} mixtures."
    )
    yield from with_benchmarks("decomposition", table(findings), table(findings, True), notes(found))


def claims(findings: Findings) -> Iterator[Claim]:
    found = findings.means("decomposition", measure="accuracy")
    for effect, what in ((PRETRAINING, "Pretraining"), (FINE_TUNING, "Fine-tuning")):
        mine = [row for row in found if row.effect == effect]
        clear = [row for row in mine if row.category != ALL and row.q < ALPHA and side(row)]
        most = [
            f"{r.category} {share_with_interval(r)}" for r in sorted(clear, key=lambda r: -abs(r.estimate))
        ]
        for row in mine:
            if row.category != ALL:
                continue
            at = f"at {row.large} instead of {row.small}"
            differs = f"{what} {at} makes a difference by emulation"
            numbers = [
                f"{share_with_interval(row)} points of accuracy over all benchmarks",
                *(most if side(row) else []),
            ]
            yield claim(
                row,
                above=differs,
                below=differs,
                otherwise=f"{what.lower()} {at} changes accuracy on average, by emulation",
                said=f"{'; '.join(numbers)}, n = {row.n}",
            )
            if most and not side(row):
                yield supported(
                    f"{what} {at} makes a difference in places, by emulation",
                    f"{'; '.join(most)} points of accuracy, n = {row.n}",
                )


EXPLAINER = Explainer(
    "decomposition",
    DecompositionRow,
    rows,
    "Pretraining scale and fine-tuning scale",
    lacks=lambda study: lacks_corners(study) or EVERYWHERE,
    shown=shown,
    said=claims,
)
