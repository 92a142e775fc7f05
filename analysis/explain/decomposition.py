"""What scaling pretraining does and what scaling fine-tuning does: table `decomposition`.

With XY for pretraining at scale X and fine-tuning at scale Y (S small, L large), SS and LL are real checkpoints, LS is the large
base with the small scale's fine-tuning and SL the small base with the large scale's, both emulated at beta 1:

    pretraining scale = ((LS - SS) + (LL - SL)) / 2
    fine-tuning scale = ((SL - SS) + (LL - LS)) / 2
    interaction       = LL - LS - SL + SS

item by item and mixture by mixture.

Reference: Mitchell et al. (2024), "An emulator for fine-tuning large language models using small language models".
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import NamedTuple

import numpy as np

from evalengine.analysis import page
from evalengine.analysis.correlation import benjamini_hochberg
from evalengine.analysis.explain.choices import Array
from evalengine.analysis.explain.corners import TOKEN, best_level, corners_of, left_out
from evalengine.analysis.explain.eft import cells
from evalengine.analysis.explain.explainer import Explainer, Findings, Study
from evalengine.analysis.explain.grouped import grouped, notes
from evalengine.analysis.explain.twoway import two_way_mean
from evalengine.analysis.figure import Table
from evalengine.analysis.groups import ALL
from evalengine.analysis.protocol import SUPPORTED, UNSUPPORTED, Claim
from evalengine.analysis.results import excludes_zero, share_with_interval

PRETRAINING, FINE_TUNING, INTERACTION = "pretraining scale", "fine-tuning scale", "interaction"
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


def rows(study: Study) -> list[DecompositionRow]:
    from scipy.special import stdtr

    if (corners := corners_of(study)) is None:
        return []
    level = best_level(study, corners)
    up = list(cells(study, corners, "up", level, 1.0))
    down = {cell.benchmark: cell for cell in cells(study, corners, "down", level, 1.0)}
    whole = [cell for cell in up if cell.benchmark in down]
    there = {cell.benchmark for cell in whole}
    out = []
    for category, benchmark, chosen in grouped(whole):
        note = "" if benchmark else left_out(study, corners, level, category, there)
        for measure in ("accuracy", "p_gold"):
            field = "correct" if measure == "accuracy" else measure
            corner = [
                {
                    "LS": getattr(cell.found, field),
                    "LL": getattr(cell.tuned, field),
                    "SL": getattr(down[cell.benchmark].found, field),
                    "SS": getattr(down[cell.benchmark].tuned, field),
                }
                for cell in chosen
            ]
            for effect in (PRETRAINING, FINE_TUNING, INTERACTION):
                mean = two_way_mean([_effect(effect, x) for x in corner], study.options.level)
                t = -abs(mean.estimate / mean.se) if mean.se > 0 else np.nan
                p = float(2.0 * stdtr(mean.n - 1, t))
                at = (level, measure, effect, corners.small, corners.large, category, benchmark)
                out.append(DecompositionRow(*at, *mean[:4], p, p, mean.n, note))
    return _adjusted(out)


def _effect(effect: str, x: dict[str, Array]) -> Array:
    if effect == PRETRAINING:
        return 0.5 * ((x["LS"] - x["SS"]) + (x["LL"] - x["SL"]))
    if effect == FINE_TUNING:
        return 0.5 * ((x["SL"] - x["SS"]) + (x["LL"] - x["LS"]))
    return x["LL"] - x["LS"] - x["SL"] + x["SS"]


def _adjusted(every: list[DecompositionRow]) -> list[DecompositionRow]:
    """q within each family: an effect on a measure, over the categories or over the benchmarks; of all it is p."""
    family: dict[tuple[str, str, bool], list[int]] = {}
    for k, row in enumerate(every):
        if row.category != ALL:
            family.setdefault((row.measure, row.effect, bool(row.benchmark)), []).append(k)
    out = list(every)
    for places in family.values():
        q = benjamini_hochberg(np.array([every[k].p for k in places]))
        for k, value in zip(places, q, strict=True):
            out[k] = every[k]._replace(q=float(value))
    return out


def table(findings: Findings, benchmarks: bool = False) -> Table:
    """Effects on accuracy in points: of the categories and all, or of the benchmarks."""
    found = [r for r in findings.rows("decomposition", measure="accuracy") if bool(r.benchmark) == benchmarks]
    by_effect = {(r.category, r.benchmark, r.effect): r for r in found}
    effects = (PRETRAINING, FINE_TUNING, INTERACTION)
    lines = [
        [benchmark or category, *(share_with_interval(by_effect[category, benchmark, e]) for e in effects)]
        for category, benchmark in dict.fromkeys((r.category, r.benchmark) for r in found)
    ]
    head = ["benchmark" if benchmarks else "mean over", *(f"{effect} (points)" for effect in effects)]
    return Table("what scale does", head, [lines])


def section(findings: Findings) -> str:
    found = findings.tables["decomposition"]
    if not found:
        return ""
    first = found[0]
    small, large = escape(first.small), escape(first.large)
    how = "token by token" if first.level == TOKEN else "from the scores of whole choices"
    return (
        "<h2>Pretraining scale and fine-tuning scale</h2>"
        f'<p class="hint">What {large} instead of {small} does to accuracy, in pretraining and in fine-tuning, with '
        f"emulation at beta 1 ({how}) for the checkpoints that nobody trained. Interaction: whether the two add up. Intervals "
        f"are for other mixtures and other items, n = {first.n} mixtures.</p>{page.show(table(findings))}{notes(found)}"
        f"<details><summary>Benchmarks</summary>{page.show(table(findings, benchmarks=True))}</details>"
    )


def claims(findings: Findings) -> Iterator[Claim]:
    found = list(findings.rows("decomposition", measure="accuracy", benchmark=""))
    for effect, what in ((PRETRAINING, "Pretraining"), (FINE_TUNING, "Fine-tuning")):
        mine = [row for row in found if row.effect == effect]
        every = [row for row in mine if row.category == ALL]
        clear = [row for row in mine if row.category != ALL and row.q < ALPHA and excludes_zero(row)]
        most = [
            f"{r.category} {share_with_interval(r)}" for r in sorted(clear, key=lambda r: -abs(r.estimate))
        ]
        for row in every:
            at = f"at {row.large} instead of {row.small}"
            said = f"{share_with_interval(row)} points of accuracy over all benchmarks"
            if excludes_zero(row):
                numbers = "; ".join([said, *most])
                yield Claim(
                    SUPPORTED, f"{what} {at} makes a difference by emulation: {numbers}, n = {row.n}."
                )
                continue
            yield Claim(
                UNSUPPORTED,
                f"That {what.lower()} {at} changes accuracy on average, by emulation: {said}, n = {row.n}.",
            )
            if most:
                numbers = f"{'; '.join(most)} points of accuracy"
                yield Claim(
                    SUPPORTED,
                    f"{what} {at} makes a difference in places, by emulation: {numbers}, n = {row.n}.",
                )


EXPLAINER = Explainer(
    "decomposition",
    DecompositionRow,
    rows,
    section,
    latex=lambda f: {"decomposition": table(f)} if f.tables["decomposition"] else {},
    claims=claims,
)
