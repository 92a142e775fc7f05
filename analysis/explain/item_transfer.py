"""What about an item before fine-tuning says that it is answered right after: table `item_transfer`.

Logistic models of "right after" over items and runs, with an intercept for each benchmark: on log p(gold) before, on the margin
before, on both, and on the margin with a slope for each mixture. Standard errors are for other items and other mixtures at once
(logistic.py), tests with Student's t and one degree of freedom less than there are mixtures.

What log p gains regressed on what it was is no evidence, and is shown so that it is not taken for it: the slope is negative for
any noisy quantity (regression to the mean). Wrong choices show it without any learning of the right answer, and a "before"
that is taken from other mixtures' models has none of the same noise.

References: Cameron, Gelbach & Miller (2011), JBES 29, 238-249; McFadden (1974) for the pseudo-R2. The slope of
log(after / before) on log(before) is what Sun et al. (2025), arXiv 2504.09522, read as priming.

Dims: R runs, I items, N observations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.claims import Claim, claim
from evalengine.analysis.explain.choices import Array
from evalengine.analysis.explain.explainer import Explainer, Findings, StudyScores, lacks_mixtures
from evalengine.analysis.explain.item_level import ItemLevel, item_levels
from evalengine.analysis.explain.logistic import clustered, dummies, fit
from evalengine.analysis.explain.student import Interval, half_width, interval
from evalengine.analysis.explain.within import varies
from evalengine.analysis.figure import File, Part, Table, blocks, pivot
from evalengine.analysis.results import with_interval

MODELS = ("benchmarks", "+ log p", "+ margin", "+ both", "+ margin of each mixture")
SLOPES = (
    "slope of the right choice",
    "slope of wrong choices",
    "slope on other mixtures' before",
    "slope of wrong choices on other mixtures' before",
)
LOGP, MARGIN = "log p(gold)", "margin"
SEPARATED = 1.0 - 1e-4  # pseudo-R2 of a model that is right of nearly every answer
NAN = float("nan")


class TransferRow(NamedTuple):
    """A coefficient of a model (log-odds for each nat), the model's pseudo-R2 (term ""), or a slope of nats gained on nats."""

    scale: str
    model: str
    term: str
    estimate: float
    low: float
    high: float
    se: float
    p: float
    pseudo_r2: float
    n: int  # mixtures
    observations: int


def rows(study: StudyScores) -> list[TransferRow]:
    out = []
    for scale, data in item_levels(study, mixtures=2):
        out += [*models(data, scale, study.options.level), *slopes(data, scale, study.options.level)]
    return out


def models(data: ItemLevel, scale: str, level: float) -> Iterator[TransferRow]:
    R, items = data.margin.shape
    y_N = data.right_after.ravel()
    if not 0.0 < y_N.mean() < 1.0:
        return
    item_N, run_N = np.tile(np.arange(items), R), np.repeat(np.arange(R), items)
    mixture_N = data.mixture_R[run_N]
    base_NP = dummies(data.benchmark_I[item_N])
    logp_N, margin_N = data.logp.ravel(), data.margin.ravel()
    null = fit(np.ones((len(y_N), 1)), y_N).loglik
    n = len(np.unique(data.mixture_R))
    mixtures_NM = dummies(mixture_N)
    designs: dict[str, tuple[list[str], list[Array]]] = {
        MODELS[0]: ([], []),
        MODELS[1]: ([LOGP], [logp_N]),
        MODELS[2]: ([MARGIN], [margin_N]),
        MODELS[3]: ([LOGP, MARGIN], [logp_N, margin_N]),
        MODELS[4]: ([], [*(margin_N[:, None] * mixtures_NM).T, *mixtures_NM.T[1:]]),
    }
    for model, (terms, columns) in designs.items():
        x_NP = np.column_stack([*columns, base_NP])
        found = fit(x_NP, y_N)
        r2 = 1.0 - found.loglik / null
        rest = (r2, n, len(y_N))
        yield TransferRow(scale, model, "", *(NAN,) * 5, *rest)
        if r2 > SEPARATED:  # coefficients of any size explain as much, so there is none to give
            terms, columns = [], []
        if terms:
            se_P = clustered(x_NP, y_N - found.probability_N, found.bread_PP, item_N, mixture_N)
            for term, value, se in zip(terms, found.coefficient_P, se_P, strict=False):
                yield TransferRow(scale, model, term, *_ends(float(value), float(se), n, level), *rest)
        elif columns:
            slope_M = found.coefficient_P[:n]
            mean, half = float(slope_M.mean()), half_width(slope_M, level)
            se = float(slope_M.std(ddof=1) / np.sqrt(n))
            ends = (mean, mean - half, mean + half, se, NAN)
            yield TransferRow(scale, model, "mean slope of the margin", *ends, *rest)


def slopes(data: ItemLevel, scale: str, level: float) -> Iterator[TransferRow]:
    """What is gained regressed on what was there, within benchmarks."""
    n = len(np.unique(data.mixture_R))
    items = data.margin.shape[1]
    gained, wrong_gained = data.logp_after - data.logp, data.wrong_after - data.wrong
    for name, x_RX, gain_RX, item_X in (
        (SLOPES[0], data.logp, gained, np.arange(items)),
        (SLOPES[1], data.wrong, wrong_gained, data.item_W),
        (SLOPES[2], _of_others(data.logp, data.mixture_R), gained, np.arange(items)),
        (SLOPES[3], _of_others(data.wrong, data.mixture_R), wrong_gained, data.item_W),
    ):
        slope, se, count = _slope(x_RX, gain_RX, item_X, data)
        yield TransferRow(scale, name, "", *_ends(slope, se, n, level), NAN, n, count)


def _of_others(x_RI: Array, mixture_R: NDArray[np.int64]) -> Array:
    """For each run the mean over the runs of other mixtures."""
    same_RR = mixture_R[:, None] == mixture_R
    weight_RR = np.where(same_RR, 0.0, 1.0 / np.maximum((~same_RR).sum(axis=1, keepdims=True), 1))
    return weight_RR @ x_RI


def _slope(x_RX: Array, y_RX: Array, item_X: NDArray[np.int64], data: ItemLevel) -> tuple[float, float, int]:
    """OLS within benchmarks, its clustered standard error, and the observations; NaN where nothing was other before."""
    R = len(x_RX)
    benchmark_N = np.tile(data.benchmark_I[item_X], R)
    x_N, y_N = (_within(v.ravel(), benchmark_N) for v in (x_RX, y_RX))
    xx = float(x_N @ x_N)
    if not varies(x_N):
        return NAN, NAN, len(x_N)
    slope = float(x_N @ y_N) / xx
    mixture_N = np.repeat(data.mixture_R, x_RX.shape[1])
    residual_N = y_N - slope * x_N
    se_P = clustered(x_N[:, None], residual_N, np.array([[1.0 / xx]]), np.tile(item_X, R), mixture_N)
    return slope, float(se_P[0]), len(x_N)


def _within(x_N: Array, group_N: NDArray[np.int64]) -> Array:
    return x_N - (np.bincount(group_N, x_N) / np.maximum(np.bincount(group_N), 1))[group_N]


def _ends(estimate: float, se: float, n: int, level: float) -> Interval:
    found = interval(np.array([estimate]), np.array([se]), n, level).at(0)
    return found if se > 0 else found._replace(p=NAN)


# --- the report


def models_table(findings: Findings) -> Table:
    found = pivot(findings.tables["item_transfer"], "model scale", "term")
    lines = [
        [*place, *(with_interval(at.get(term)) for term in (LOGP, MARGIN)), f"{at[''].pseudo_r2:.3f}"]
        for place, at in found.items()
        if place[0] in MODELS
    ]
    return Table("right after", ["model", "scale", LOGP, MARGIN, "pseudo-R2"], blocks(lines, 1), texts=2)


def slopes_table(findings: Findings) -> Table:
    found = [r for r in findings.tables["item_transfer"] if r.model in SLOPES]
    lines = [[r.model, r.scale, with_interval(r)] for r in found]
    return Table("slopes", ["log gain on log before", "scale", "nats per nat"], blocks(lines, 1), texts=2)


def shown(findings: Findings) -> Iterator[Part]:
    before, after = findings.method["stages"]
    yield (
        f"Logistic models of right at {after} on what is known at {before}, an intercept for each benchmark, in log-odds for "
        "each nat, and how much each model explains. Intervals are for other items and other mixtures, n = "
        f"{findings.tables['item_transfer'][0].n}."
    )
    yield File("item_transfer", models_table(findings))
    yield (
        "The slope of what the right choice gains on what it had is negative in any noisy data, and no sign that unlikely "
        "answers are primed: wrong choices, which nobody taught, show what it is without learning, and for both a before "
        "that is taken from other mixtures' models shows it without the shared noise."
    )
    yield File("item_slopes", slopes_table(findings))


def claims(findings: Findings) -> Iterator[Claim]:
    rows = findings.tables["item_transfer"]
    for scale, at in pivot(rows, "scale", "model term").items():
        if (MODELS[3], MARGIN) not in at:
            continue
        logp, margin = at[MODELS[3], LOGP], at[MODELS[3], MARGIN]
        shares = [f"{at[model, ''].pseudo_r2:.3f}" for model in MODELS[:3]]
        r2 = f"pseudo-R2 {shares[0]} by benchmarks, {shares[1]} with log p(gold), {shares[2]} with the margin"
        adjusted = f"log-odds for each nat beside log p(gold), n = {margin.n}"
        yield claim(
            margin,
            above="the margin before fine-tuning says which items are right after",
            said=f"{r2}; {with_interval(margin)} {adjusted}",
            at=scale,
        )
        more = "log p(gold) before fine-tuning says more than the margin alone does"
        yield claim(
            logp,
            above=more,
            below=more,
            said=f"{with_interval(logp)} log-odds for each nat, n = {logp.n}",
            at=scale,
        )


EXPLAINER = Explainer(
    "item_transfer",
    TransferRow,
    rows,
    "Which items are answered right after fine-tuning",
    lacks=lambda study: lacks_mixtures(study, 2),
    shown=shown,
    said=claims,
)
