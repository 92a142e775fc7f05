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

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis import page
from evalengine.analysis.correlation import benjamini_hochberg
from evalengine.analysis.explain.choices import Array
from evalengine.analysis.explain.design import by_mixture
from evalengine.analysis.explain.design import rows as rows_in
from evalengine.analysis.explain.explainer import Explainer, Findings, Study
from evalengine.analysis.explain.grouped import grouped
from evalengine.analysis.explain.quantities import ACCURACY, quantities
from evalengine.analysis.explain.ranking import AGREEMENT, MEASURES, R, interval, with_and_without
from evalengine.analysis.figure import Table
from evalengine.analysis.groups import ALL
from evalengine.analysis.protocol import SUPPORTED, UNSUPPORTED, Claim
from evalengine.analysis.results import share_with_interval, with_interval

REGRET = "regret"
CHOSEN = "chosen on other benchmarks"
CEILING = "ceiling"
LEAST = 4  # mixtures


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


class Named(NamedTuple):
    """A benchmark and its category."""

    category: str
    benchmark: str


class Values(NamedTuple):
    """One scale and stage: by quantity, item by item, (M, I) of each benchmark."""

    mixtures: tuple[str, ...]
    benchmarks: dict[str, dict[str, Array]]  # by benchmark, then quantity
    categories: dict[str, str]


def values_of(study: Study, scale: str, after: bool) -> Values:
    """Runs of a mixture averaged; benchmarks that a run lacks are left out."""
    return study.once(("quantities", scale, after), lambda: _values_of(study, scale, after))


def _values_of(study: Study, scale: str, after: bool) -> Values:
    runs, mixture_R = study.design.runs[scale], study.design.mixture_R(scale)
    names = [run.after if after else run.before for run in runs]
    found, categories = {}, {}
    for choices in study.scores.benchmarks:
        if (k := rows_in(choices, names)) is not None:
            every = {str(q): by_mixture(x_RI, mixture_R) for q, x_RI in quantities(choices, k)}
            found[choices.name], categories[choices.name] = every, choices.category
    mixtures = tuple(study.design.mixtures[m] for m in np.unique(mixture_R))
    return Values(mixtures, found, categories)


def settings(study: Study) -> Iterator[tuple[str, Values, str, Values]]:
    """What is seen and what it is to predict: at each scale after fine-tuning; of the smallest scale, the largest's."""
    (before, after), scales = study.design.stages, study.design.scales
    for scale in scales:
        yield (
            f"{scale} {before}",
            values_of(study, scale, False),
            f"{scale} {after}",
            values_of(study, scale, True),
        )
    if len(scales) > 1:
        small, large = scales[0], scales[-1]
        for seen, target in ((False, False), (False, True), (True, True)):
            words = (f"{small} {after if seen else before}", f"{large} {after if target else before}")
            yield words[0], values_of(study, small, seen), words[1], values_of(study, large, target)


def rows(study: Study) -> list[ProxyRow]:
    out = []
    for seen, x, target, y in settings(study):
        mixtures = [m for m in x.mixtures if m in y.mixtures]
        benchmarks = [b for b in x.benchmarks if b in y.benchmarks]
        if len(mixtures) >= LEAST and benchmarks:
            out += [
                row._replace(seen=seen, target=target) for row in _rows(study, x, y, mixtures, benchmarks)
            ]
    return out


def _rows(
    study: Study, x: Values, y: Values, mixtures: list[str], benchmarks: list[str]
) -> Iterator[ProxyRow]:
    of_x, of_y = ([v.mixtures.index(m) for m in mixtures] for v in (x, y))
    proxies = list(x.benchmarks[benchmarks[0]])
    x_PMB = np.stack(
        [np.stack([x.benchmarks[b][p][of_x].mean(axis=1) for b in benchmarks], axis=1) for p in proxies]
    )
    items_BMI = [y.benchmarks[b][ACCURACY][of_y] for b in benchmarks]
    y_MB = np.stack([x_MI.mean(axis=1) for x_MI in items_BMI], axis=1)
    categories = [x.categories[b] for b in benchmarks]
    named = [Named(*one) for one in zip(categories, benchmarks, strict=True)]
    place, n, ceilings = {b: k for k, b in enumerate(benchmarks)}, len(mixtures), ceiling(items_BMI)

    for measure in MEASURES:
        value_PJB = np.stack([with_and_without(measure, x_MB, y_MB) for x_MB in x_PMB])
        known_B = np.asarray(
            np.isfinite(value_PJB).all(axis=(0, 1))
        )  # all proxies are compared over the same benchmarks
        lines = dict(zip(proxies, value_PJB, strict=True))
        if measure == AGREEMENT and known_B.any():
            lines[CHOSEN] = np.full(value_PJB.shape[1:], np.nan)
            lines[CHOSEN][:, known_B] = chosen(value_PJB[:, :, known_B])
        for category, benchmark, of in grouped(named):
            index = [place[one.benchmark] for one in of]
            used = [b for b in index if known_B[b]]
            tied = [benchmarks[b] for b in index if not known_B[b]]
            note = f"without {', '.join(tied)} (mixtures tied)" if tied else ""
            at, made = (measure, category, benchmark), []
            for proxy, value_JB in lines.items():
                for minus in ("",) if benchmark or proxy == ACCURACY else ("", ACCURACY):
                    value_J = value_JB - lines[minus] if minus else value_JB
                    ends, why = interval(value_J[:, used], measure, bool(minus), study.options.level)
                    said = "; ".join(filter(None, [note, why]))
                    row = ProxyRow("", "", proxy, minus, *at, *ends, np.nan, n, said)
                    made.append(row)
            yield from adjusted(made)
            most = float(ceilings[measure][used].mean()) if used else np.nan
            yield _plain(CEILING, *at, most, n, note)
    lost_PB = np.stack([regret(x_MB, y_MB) for x_MB in x_PMB])
    for proxy, lost_B in zip(proxies, lost_PB, strict=True):
        for category, benchmark, of in grouped(named):
            lost = float(lost_B[[place[one.benchmark] for one in of]].mean())
            yield _plain(proxy, REGRET, category, benchmark, lost, n, "")


def adjusted(made: list[ProxyRow]) -> list[ProxyRow]:
    """With q over the proxies whose difference to accuracy has a p."""
    tested = [k for k, row in enumerate(made) if np.isfinite(row.p)]
    out = list(made)
    if tested:
        for k, q in zip(tested, benjamini_hochberg(np.array([made[k].p for k in tested])), strict=True):
            out[k] = made[k]._replace(q=float(q))
    return out


def _plain(
    proxy: str, measure: str, category: str, benchmark: str, estimate: float, n: int, note: str
) -> ProxyRow:
    """Without an interval: no resampling of mixtures says how far the choice of the best one would move."""
    ends = (np.nan,) * 4
    return ProxyRow("", "", proxy, "", measure, category, benchmark, estimate, *ends, n, note)


def chosen(value_PJB: Array) -> Array:
    """(J, B): for each benchmark, the value of the proxy that is best on average over the other benchmarks; the first on ties."""
    others_PJB = value_PJB.sum(axis=2, keepdims=True) - value_PJB
    best_JB = others_PJB.round(12).argmax(axis=0)
    return np.take_along_axis(value_PJB, best_JB[None], axis=0)[0]


def regret(x_MB: Array, y_MB: Array) -> Array:
    """(B,): the best target minus that of the mixture with the largest x; ties are broken at random, in expectation."""
    taken_MB = np.round(x_MB, 12) == np.round(x_MB, 12).max(axis=0)
    found: Array = y_MB.max(axis=0) - np.where(taken_MB, y_MB, 0.0).sum(axis=0) / taken_MB.sum(axis=0)
    return found


def ceiling(items_BMI: list[Array]) -> dict[str, NDArray[np.float64]]:
    """What the item noise of a target leaves of a perfect predictor's agreement and r, of each benchmark."""
    share_B = np.array([max(reliability(x_MI), 0.0) for x_MI in items_BMI])
    root_B = np.sqrt(share_B)
    return {AGREEMENT: 0.5 + np.arcsin(root_B) / np.pi, R: root_B}


def reliability(x_MI: Array) -> float:
    """Hoyt's (1941): the share of the variance between mixtures that infinitely many items would leave; NaN where none varies."""
    M, items = x_MI.shape
    rest_MI = x_MI - x_MI.mean(axis=1, keepdims=True) - x_MI.mean(axis=0) + x_MI.mean()
    variance = float(x_MI.mean(axis=1).var(ddof=1))
    if items < 2 or variance <= 0.0:
        return np.nan
    return 1.0 - float((rest_MI**2).sum()) / ((M - 1) * (items - 1)) / items / variance


# --- the report


def table(findings: Findings) -> Table:
    """Agreement over all benchmarks: a block for each setting, the proxies by what they get."""
    blocks = []
    every = findings.rows("proxies", benchmark="", category=ALL)
    for seen, target in dict.fromkeys((r.seen, r.target) for r in every):
        mine = [r for r in every if (r.seen, r.target) == (seen, target)]
        at = {(r.proxy, r.minus, r.measure): r for r in mine}
        proxies = [
            r for r in mine if r.measure == AGREEMENT and not r.minus and r.proxy not in (CEILING, CHOSEN)
        ]
        proxies.sort(key=lambda r: -r.estimate)
        order = [r.proxy for r in proxies[:6]]
        order += [p for p in (ACCURACY, CHOSEN, CEILING) if p not in order]
        blocks.append(
            [
                [
                    seen,
                    target,
                    proxy,
                    f"{100 * at[proxy, '', AGREEMENT].estimate:.1f}"
                    if proxy == CEILING
                    else share_with_interval(at.get((proxy, "", AGREEMENT))),
                    share_with_interval(at.get((proxy, ACCURACY, AGREEMENT))),
                    page.p_value(at[proxy, ACCURACY, AGREEMENT].q)
                    if (proxy, ACCURACY, AGREEMENT) in at
                    else "–",
                    f"{at[proxy, '', R].estimate:+.2f}"
                    if proxy == CEILING
                    else with_interval(at.get((proxy, "", R))),
                    f"{100 * at[proxy, '', REGRET].estimate:.1f}" if (proxy, "", REGRET) in at else "–",
                ]
                for proxy in order
            ]
        )
    head = [
        "seen",
        "predicts",
        "by",
        "right of two (%)",
        "minus accuracy (points)",
        "q",
        "r",
        "regret (points)",
    ]
    return Table("what predicts", head, blocks, texts=3)


def section(findings: Findings) -> str:
    found = findings.tables["proxies"]
    if not found:
        return ""
    return (
        "<h2>What predicts fine-tuning</h2>"
        '<p class="hint">Of two mixtures, which will have the higher accuracy later, or at the larger scale: how often each '
        "quantity that is seen earlier is right, as means over all benchmarks. The best six, accuracy itself, what one gets by "
        "choosing the quantity on the other benchmarks, and the most that the target's item noise allows. Jackknife intervals "
        f"over mixtures, n = {max(r.n for r in found)}; q over the quantities. All are in the table proxies.</p>"
        f"{page.show(table(findings))}"
    )


def claims(findings: Findings) -> Iterator[Claim]:
    every = findings.rows("proxies", benchmark="", category=ALL, measure=AGREEMENT)
    open_: list[str] = []
    for seen, target in dict.fromkeys((r.seen, r.target) for r in every):
        mine = [r for r in every if (r.seen, r.target) == (seen, target)]
        better = [r for r in mine if r.minus and r.proxy != CHOSEN and r.q < 0.05 and r.low > 0]
        own = next(r for r in mine if r.proxy == ACCURACY)
        honest = next(r for r in mine if r.minus and r.proxy == CHOSEN)
        said = f"{seen} for {target}: accuracy is right of {share_with_interval(own)}% of pairs"
        if better:
            best = max(better, key=lambda r: r.estimate)
            yield Claim(
                SUPPORTED,
                f"{best.proxy} predicts better than accuracy does ({said}), by {share_with_interval(best)} points, "
                f"q {page.p_value(best.q)}, n = {best.n}.",
            )
        else:
            open_.append(f"{seen} for {target} {share_with_interval(honest)}")
    if open_:
        yield Claim(
            UNSUPPORTED,
            "That another quantity predicts better than accuracy: chosen on the other benchmarks it is right of so many points "
            f"of the pairs more, {'; '.join(open_)}; n = {every[0].n}.",
        )


EXPLAINER = Explainer(
    "proxies",
    ProxyRow,
    rows,
    section,
    latex=lambda f: {"proxies": table(f)} if f.tables["proxies"] else {},
    claims=claims,
)
