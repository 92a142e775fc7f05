"""What seen early tells which mixture will be the better one: table `proxies`.

A quantity of one stage and scale (quantities.py) predicts the accuracies of a later stage or a larger scale. For each benchmark:
agreement (the share of pairs of mixtures that it orders as the target does), r over mixtures, and regret (the best target minus
that of the mixture it chooses). Means over benchmarks come with jackknife intervals over mixtures, and with the paired difference
to what accuracy itself tells. Which quantity is best is chosen on the other benchmarks and judged on the one that is left out.

No predictor can be right more often than the target's item noise allows: with the reliability R of the target (Hoyt 1941), r is
at most sqrt(R), and agreement at most 1/2 + asin(sqrt(R)) / pi, for normal values (Sheppard 1899).

Dims: J sets of mixtures (all, then without each), M mixtures, B benchmarks, I items.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.claims import Claim, side, supported, unsupported
from evalengine.analysis.estimates.groups import ALL
from evalengine.analysis.explain.choices import Array
from evalengine.analysis.explain.explainer import Explainer, Findings, StudyScores, lacks_mixtures
from evalengine.analysis.explain.means import grouped, joined, left_out, with_q
from evalengine.analysis.explain.quantities import ACCURACY, quantities_of
from evalengine.analysis.explain.ranking import (
    AGREEMENT,
    LEAST,
    MEASURES,
    R,
    interval,
    over_benchmarks,
    with_and_without,
    within,
)
from evalengine.analysis.explain.student import interaction
from evalengine.analysis.figure import File, Part, Table, pivot
from evalengine.analysis.results import p_value, share_with_interval, signed, with_interval
from evalengine.analysis.statistics.correlation import BlockNumbers, members_of

REGRET = "regret"
CHOSEN = "chosen on other benchmarks"
CEILING = "ceiling"


class ProxyRow(NamedTuple):
    """A proxy, or how much better it is than accuracy (`minus`). proxy: a quantity, "ceiling", or the choice of one that is
    cross-validated over benchmarks. q: Benjamini and Hochberg's over the proxies."""

    seen: str  # scale and stage of the proxy
    target: str  # of the accuracy that it predicts
    proxy: str
    minus: str
    measure: str
    category: str
    benchmark: str  # "" of a mean over benchmarks
    estimate: float
    low: float
    high: float
    p: float
    q: float
    n: int
    note: str


Where = tuple[str, bool]  # a scale, and whether after fine-tuning


def settings(scales: Sequence[str]) -> list[tuple[Where, Where]]:
    """What is seen and what it is to predict: at each scale after fine-tuning; of the smallest scale, the largest's."""
    pairs = [((scale, False), (scale, True)) for scale in scales]
    if len(scales) > 1:
        small, large = scales[0], scales[-1]
        pairs += [
            ((small, seen), (large, target)) for seen, target in ((False, False), (False, True), (True, True))
        ]
    return pairs


def rows(study: StudyScores) -> list[ProxyRow]:
    out = [row for pair in settings(study.design.scales) for row in _rows(study, *pair)]
    return with_q(out, attrgetter("seen", "target", "measure", "category", "benchmark"))


def _rows(study: StudyScores, seen: Where, target: Where) -> Iterator[ProxyRow]:
    """Regret and ceilings have no interval: no resampling of mixtures says how far the choice of the best one would move."""
    x, y = (quantities_of(study, *where) for where in (seen, target))
    all_x, all_y = (study.design.numbered(scale)[0] for scale, _ in (seen, target))
    mixtures, benchmarks = [m for m in all_x if m in all_y], [one for b, one in x.items() if b in y]
    if len(mixtures) < LEAST or not benchmarks:
        return
    of_x, of_y = ([every.index(m) for m in mixtures] for every in (all_x, all_y))
    names, nan = [one.benchmark for one in benchmarks], (np.nan,)
    proxies, n = list(benchmarks[0].value), len(mixtures)
    x_PMB = np.stack([np.stack([x[b].value[p][of_x].mean(axis=1) for b in names], axis=1) for p in proxies])
    items_BMI = [y[b].value[ACCURACY][of_y] for b in names]
    y_MB = np.stack([x_MI.mean(axis=1) for x_MI in items_BMI], axis=1)
    block_M, stages = study.block_of(mixtures), study.design.stages
    setting = f"{seen[0]} {stages[seen[1]]}", f"{target[0]} {stages[target[1]]}"
    ceilings = ceiling(items_BMI, block_M)
    for measure in MEASURES:
        value_PJB = np.stack([with_and_without(measure, x_MB, y_MB, block_M) for x_MB in x_PMB])
        # All proxies are compared over the same benchmarks.
        known_B = np.asarray(np.isfinite(value_PJB).all(axis=(0, 1)))
        lines = dict(zip(proxies, value_PJB, strict=True))
        if measure == AGREEMENT:
            lines[CHOSEN] = np.full(value_PJB.shape[1:], np.nan)
        if measure == AGREEMENT and known_B.sum() > 1:
            lines[CHOSEN][:, known_B] = chosen(value_PJB[:, :, known_B])
        for category, benchmark, used, tied in over_benchmarks(known_B, benchmarks):
            at = (measure, category, benchmark)
            without = joined(tied, "" if benchmark else left_out(study, names, category))
            for proxy, value_JB in lines.items():
                for minus in ("",) if benchmark or proxy == ACCURACY else ("", ACCURACY):
                    value_J = value_JB - lines[minus] if minus else value_JB
                    ends, why = interval(value_J[:, used], measure, bool(minus), study.options.level, block_M)
                    yield ProxyRow(*setting, proxy, minus, *at, *ends, np.nan, n, joined(without, why))
            most = float(ceilings[measure][used].mean()) if used else np.nan
            yield ProxyRow(*setting, CEILING, "", *at, most, *nan * 4, n, without)
    place = {b: k for k, b in enumerate(names)}
    for proxy, x_MB in zip(proxies, x_PMB, strict=True):
        lost_B = regret(x_MB, y_MB)
        for category, benchmark, of in grouped(benchmarks):
            lost = float(lost_B[[place[one.benchmark] for one in of]].mean())
            without = "" if benchmark else left_out(study, names, category)
            yield ProxyRow(*setting, proxy, "", REGRET, category, benchmark, lost, *nan * 4, n, without)


def chosen(value_PJB: Array) -> Array:
    """(J, B): for each benchmark, the value of the proxy that is best on average over the other benchmarks; the first on ties."""
    others_PJB = value_PJB.sum(axis=2, keepdims=True) - value_PJB
    best_JB = others_PJB.round(12).argmax(axis=0)
    return np.take_along_axis(value_PJB, best_JB[None], axis=0)[0]


def regret(x_MB: Array, y_MB: Array) -> Array:
    """(B,): the best target minus that of the mixture with the largest x; ties are broken at random, in expectation."""
    taken_MB = np.round(x_MB, 12) == np.round(x_MB, 12).max(axis=0)
    return y_MB.max(axis=0) - np.where(taken_MB, y_MB, 0.0).sum(axis=0) / taken_MB.sum(axis=0)


def ceiling(items_BMI: list[Array], block_M: BlockNumbers | None = None) -> dict[str, NDArray[np.float64]]:
    """What the item noise of a target leaves of a perfect predictor's agreement and r (within blocks), of each benchmark."""
    share_B = np.array([max(reliability(x_MI, block_M), 0.0) for x_MI in items_BMI])
    root_B = np.sqrt(share_B)
    return {AGREEMENT: 0.5 + np.arcsin(root_B) / np.pi, R: root_B}


def reliability(x_MI: Array, block_M: BlockNumbers | None = None) -> float:
    """Hoyt's (1941): the share of the variance between mixtures (within blocks) that infinitely many items would leave; NaN where
    none varies."""
    freedom = len(x_MI) - (1 if block_M is None else len(members_of(block_M)))
    variance = float((within(x_MI.mean(axis=1), block_M) ** 2).sum()) / freedom
    if x_MI.shape[1] < 2 or variance <= 0.0:
        return np.nan
    return 1.0 - interaction(x_MI, block_M) / x_MI.shape[1] / variance


# --- the report


def table(findings: Findings) -> Table:
    """Agreement over all benchmarks: a block for each setting, the proxies by what they get."""
    blocks = []
    every = findings.means("proxies", category=ALL)
    for setting, at in pivot(every, "seen target", "proxy minus measure").items():
        right = [r for (_, minus, measure), r in at.items() if measure == AGREEMENT and not minus]
        right = sorted((r for r in right if r.proxy not in (CEILING, CHOSEN)), key=lambda r: -r.estimate)
        order = [r.proxy for r in right[:6]]
        order += [p for p in (ACCURACY, CHOSEN, CEILING) if p not in order]
        block = []
        for proxy in order:
            own, r = at[proxy, "", AGREEMENT], at.get((proxy, "", R))
            more, lost = at.get((proxy, ACCURACY, AGREEMENT)), at.get((proxy, "", REGRET))
            block.append(
                [
                    *setting,
                    proxy,
                    f"{100 * own.estimate:.1f}" if proxy == CEILING else share_with_interval(own),
                    share_with_interval(more),
                    p_value(more.q) if more else "–",
                    signed(r.estimate) if r and proxy == CEILING else with_interval(r),
                    f"{100 * lost.estimate:.1f}" if lost else "–",
                ]
            )
        blocks.append(block)
    head = ["seen", "predicts", "by", "right of two (%)", "minus accuracy (points)", "q", "r"]
    head += ["regret (points)"]
    return Table("what predicts", head, blocks, texts=3)


def shown(findings: Findings) -> Iterator[Part]:
    yield (
        "Of two mixtures, which will have the higher accuracy later, or at the larger scale: how often each quantity that is "
        "seen earlier is right, as means over all benchmarks. The best six, accuracy itself, what one gets by choosing the "
        "quantity on the other benchmarks, and the most that the target's item noise allows. Jackknife intervals over mixtures, "
        f"n = {max(r.n for r in findings.tables['proxies'])}; q over the quantities. All are in the table proxies."
    )
    yield File("proxies", table(findings))


def claims(findings: Findings) -> Iterator[Claim]:
    every = findings.means("proxies", category=ALL, measure=AGREEMENT)
    open_: list[str] = []
    for (seen, target), at in pivot(every, "seen target", "proxy minus").items():
        better = [r for (p, minus), r in at.items() if minus and p != CHOSEN and r.q < 0.05 and side(r) > 0]
        if better:
            best = max(better, key=lambda r: r.estimate)
            yield supported(
                f"the quantity {best.proxy} predicts better than accuracy does, {seen} for {target}",
                f"by {share_with_interval(best)} points, q {p_value(best.q)}, n = {best.n}; accuracy is right of "
                f"{share_with_interval(at[ACCURACY, ''])}% of pairs",
            )
        elif math.isfinite(at[CHOSEN, ACCURACY].estimate):
            open_.append(f"{seen} for {target} {share_with_interval(at[CHOSEN, ACCURACY])}")
    if open_:
        yield unsupported(
            "another quantity predicts better than accuracy",
            "how many points more of the pairs are right by the quantity that is best on the other benchmarks: "
            f"{'; '.join(open_)}; n = {every[0].n}",
        )


EXPLAINER = Explainer(
    "proxies",
    ProxyRow,
    rows,
    "What predicts fine-tuning",
    lacks=lambda study: lacks_mixtures(study, LEAST),
    shown=shown,
    said=claims,
)
