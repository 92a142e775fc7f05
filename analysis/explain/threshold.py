"""Is there a probability below which fine-tuning does not teach an answer, or teaches it more? Table `threshold`.

Whether an item is right after, by x = log10 p(gold) before, three ways: a straight line, a line with one kink
(a + b x + d max(x - c, 0)), and natural cubic splines. All hold what else is known before: an intercept for each benchmark of the
items that were right and of those that were wrong, and for both a slope of the margin. Without these a model that gives one label
to every item makes a kink: items of that label are right and likely, the others wrong and unlikely.

A kink is found where it predicts better than the line and every spline do: a smooth curve may be bent as well. All are judged on
items and mixtures that were both left out; mixtures answer the same items, and leaving out mixtures alone would reward what is
peculiar to these items. The kink's place c is that of the largest likelihood. The interval holds every c whose log-likelihood is
within phi t^2 / 2 of the largest, t of M - 1 degrees of freedom, phi the variance of d for other items and other mixtures over
the one that the likelihood knows.

Right choices of less than 1e-12 are left out: those are sentences, of which no threshold was claimed. x is taken in bins of a
tenth of a decade and the margin in bins of half a nat, so that counts are all there is to fit.

References: Muggeo (2003), Statistics in Medicine 22, 3055-3071 (broken lines); Hastie, Tibshirani & Friedman (2009), "The
Elements of Statistical Learning", 5.2.1 (natural splines); Sun et al. (2025), arXiv 2504.09522, for the threshold of 1e-3.

Dims: R runs, M mixtures, I items, F folds of items, N cells, B columns that every model holds, P coefficients, C places.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.claims import Claim, supported, unsupported
from evalengine.analysis.explain.choices import Array
from evalengine.analysis.explain.design import by_mixture
from evalengine.analysis.explain.explainer import Explainer, Findings, StudyScores, lacks_mixtures
from evalengine.analysis.explain.item_level import ItemLevel, item_levels
from evalengine.analysis.explain.logistic import Fit, clustered, dummies, fit
from evalengine.analysis.explain.student import Mean, quantile, two_way_mean
from evalengine.analysis.figure import File, Part, Table
from evalengine.analysis.results import signed

LEAST = 3  # mixtures
LOWEST = -12.0  # log10 p
X_BINS, MARGIN_BINS = 10, 2  # of a decade, of a nat
GRID = 0.25  # decades between places tried
EDGE = 0.02  # share of the observations on either side of every place tried
KNOTS = (4, 8)  # of the splines, at quantiles of x from 0.05 to 0.95
FOLDS = 2
PRIOR = 0.01  # precision, on coefficients: some benchmarks' wrong items are never learned
CLAIMED = -3.0
NAN = float("nan")


class ThresholdRow(NamedTuple):
    """One scale. gain: log-loss of the best of the line and the splines minus that of the kink, for each observation of the items
    and mixtures left out, for other items and mixtures.

    place, low and high are log10 p; NaN, and inside "", where no kink is found.
    """

    scale: str
    found: str  # yes, no
    place: float
    low: float
    high: float
    inside: str  # whether 1e-3 is inside the interval: yes, no
    slope_below: float  # log-odds for each decade
    slope_above: float
    gain: float
    gain_low: float
    gain_high: float
    line_loss: float
    kink_loss: float
    spline_loss: float  # of the best spline
    n: int
    note: str


class Counts(NamedTuple):
    """Cells of alike observations: their mean x, what else every model holds, trials and successes of each fold and mixture."""

    x_N: Array
    base_NB: Array
    trials_FMN: Array
    right_FMN: Array
    cell_RI: NDArray[np.int64]  # -1 where an observation is left out


def rows(study: StudyScores) -> list[ThresholdRow]:
    level = study.options.level
    every = item_levels(study, LEAST)
    return [threshold(data, scale, level) for scale, data in every if 0 < data.right_after.mean() < 1]


def threshold(data: ItemLevel, scale: str, level: float) -> ThresholdRow:
    n = len(np.unique(data.mixture_R))
    x_RI = data.logp / np.log(10.0)
    used_RI = x_RI >= LOWEST
    first, last = np.quantile(x_RI[used_RI], (EDGE, 1.0 - EDGE)) if used_RI.any() else (0.0, 0.0)
    places_C = np.arange(first, last, GRID)
    if len(places_C) < 3:
        return ThresholdRow(scale, "no", NAN, NAN, NAN, "", *(NAN,) * 8, n, "p(gold) hardly varies")
    counts = counted(x_RI, used_RI, data)
    loss_KRI = held_out(counts, data, places_C)
    line, kink, *smooth = (loss_KRI.sum(axis=(1, 2)) / used_RI.sum()).tolist()
    others = loss_KRI[np.arange(len(loss_KRI)) != 1]
    gains = [over(loss_RI - loss_KRI[1], used_RI, data.mixture_R, level) for loss_RI in others]
    gain = min(gains, key=lambda one: one.low if np.isfinite(one.low) else -np.inf)
    trials_N, right_N = (of.sum(axis=(0, 1)) for of in (counts.trials_FMN, counts.right_FMN))
    likelihood_C, best = profile(counts, trials_N, right_N, places_C)
    place, low, high, inside = float(places_C[likelihood_C.argmax()]), NAN, NAN, ""
    slope, more = best.coefficient_P[:2]
    found = gain.low > 0.0
    if found:
        phi = design_effect(data, counts, best, place)
        within = places_C[likelihood_C >= likelihood_C.max() - 0.5 * phi * quantile(n, level) ** 2]
        low, high = float(within.min()) - GRID / 2, min(float(within.max()) + GRID / 2, 0.0)  # p is at most 1
        inside = "yes" if low <= CLAIMED <= high else "no"
    return ThresholdRow(
        scale,
        "yes" if found else "no",
        place if found else NAN,
        low,
        high,
        inside,
        float(slope),
        float(slope + more),
        *gain[:3],
        line,
        kink,
        min(smooth),
        n,
        "" if found else "no kink: a smooth curve predicts items and mixtures left out as well",
    )


def over(gain_RI: Array, used_RI: NDArray[np.bool_], mixture_R: NDArray[np.int64], level: float) -> Mean:
    """The mean gain of an observation that is used, and its interval."""
    mean = float(gain_RI.sum() / used_RI.sum())
    share = used_RI.mean()
    moved = two_way_mean([by_mixture(np.where(used_RI, gain_RI - mean, 0.0) / share, mixture_R)], level)
    return Mean(mean, float(mean + moved.low), float(mean + moved.high), moved.se, moved.n)


def counted(x_RI: Array, used_RI: NDArray[np.bool_], data: ItemLevel) -> Counts:
    """The observations by benchmark, right before, and bins of x and of the margin."""
    R, items = x_RI.shape
    B = int(data.benchmark_I.max()) + 1
    group_RI = data.right_before.astype(np.int64) * B + data.benchmark_I
    x_bin, margin_bin = (
        np.floor(v_RI * n).astype(np.int64) for v_RI, n in ((x_RI, X_BINS), (data.margin, MARGIN_BINS))
    )
    x_bin, margin_bin = (bin_RI - bin_RI[used_RI].min() for bin_RI in (x_bin, margin_bin))
    key_RI = (group_RI * (margin_bin[used_RI].max() + 1) + margin_bin) * (x_bin[used_RI].max() + 1) + x_bin
    cells, number = np.unique(key_RI[used_RI], return_inverse=True)
    N = len(cells)
    of_N = np.bincount(number, minlength=N)
    x_N, margin_N, group_N = (
        np.bincount(number, v_RI[used_RI], N) / of_N for v_RI in (x_RI, data.margin, group_RI)
    )
    was_N = group_N >= B
    known = dummies(np.unique(np.round(group_N).astype(np.int64), return_inverse=True)[1])
    mixtures, mixture_R = np.unique(data.mixture_R, return_inverse=True)
    M = len(mixtures)
    fold_I = np.arange(items) % FOLDS
    place = ((fold_I * M + mixture_R[:, None])[used_RI]) * N + number
    trials, right = (
        np.bincount(place, w_RI[used_RI], FOLDS * M * N).reshape(FOLDS, M, N).astype(np.float64)
        for w_RI in (np.ones_like(x_RI), data.right_after)
    )
    cell_RI = np.full((R, items), -1)
    cell_RI[used_RI] = number
    return Counts(x_N, np.column_stack([margin_N * was_N, margin_N * ~was_N, known]), trials, right, cell_RI)


def kinked(counts: Counts, place: float) -> Array:
    return np.column_stack([counts.x_N, np.maximum(counts.x_N - place, 0.0), counts.base_NB])


def profile(counts: Counts, trials_N: Array, right_N: Array, places_C: Array) -> tuple[Array, Fit]:
    """The log-likelihood at every place, and the best fit."""
    found: list[Fit] = []
    start = None
    for place in places_C:
        found.append(fit(kinked(counts, place), right_N, trials_N, start, PRIOR))
        start = found[-1].coefficient_P
    likelihood_C = np.array([one.loglik for one in found])
    return likelihood_C, found[int(likelihood_C.argmax())]


def held_out(counts: Counts, data: ItemLevel, places_C: Array) -> Array:
    """Log-loss of every observation by the line, the kink and the splines that other items of other mixtures give, (K, R, I);
    0 where an observation is left out."""
    loss_KRI = np.zeros((2 + len(KNOTS), *counts.cell_RI.shape))
    mixture_R = np.unique(data.mixture_R, return_inverse=True)[1]
    fold_I = np.arange(counts.cell_RI.shape[1]) % FOLDS
    trials_N = counts.trials_FMN.sum(axis=(0, 1))
    line_NP = np.column_stack([counts.x_N, counts.base_NB])
    smooth = [np.column_stack([spline(counts.x_N, trials_N, knots), counts.base_NB]) for knots in KNOTS]
    starts: list[Array | None] = [None] * len(loss_KRI)
    for f in range(FOLDS):
        for m in range(counts.trials_FMN.shape[1]):
            train, right_N = (
                np.delete(np.delete(of, f, axis=0), m, axis=1).sum(axis=(0, 1))
                for of in (counts.trials_FMN, counts.right_FMN)
            )
            line = fit(line_NP, right_N, train, starts[0], PRIOR)
            k = 2 * int(profile(counts, train, right_N, places_C[::2])[0].argmax())  # coarse, then near it
            near = places_C[max(k - 1, 0) : k + 2]
            place = float(near[profile(counts, train, right_N, near)[0].argmax()])
            mine_RI = (mixture_R == m)[:, None] & (fold_I == f) & (counts.cell_RI >= 0)
            cell, y = counts.cell_RI[mine_RI], data.right_after[mine_RI]
            for k, x_NP in enumerate([line_NP, kinked(counts, place), *smooth]):
                one = fit(x_NP, right_N, train, starts[k], PRIOR) if k else line
                starts[k] = one.coefficient_P
                eta_N = x_NP @ one.coefficient_P
                loss_KRI[k][mine_RI] = np.logaddexp(0.0, eta_N)[cell] - y * eta_N[cell]
    return loss_KRI


def spline(x_N: Array, weight_N: Array, knots: int) -> Array:
    """The natural cubic spline's columns of x, without the intercept: as many as there are knots, less one."""
    order = np.argsort(x_N)
    share = np.cumsum(weight_N[order]) / weight_N.sum()
    at = np.unique([x_N[order][np.searchsorted(share, q)] for q in np.linspace(0.05, 0.95, knots)])

    def d(k: int) -> Array:
        cubes = [np.maximum(x_N - at[j], 0.0) ** 3 for j in (k, -1)]
        return (cubes[0] - cubes[1]) / max(at[-1] - at[k], 1e-9)

    scale = max(float(at[-1] - at[0]), 1e-9) ** 2
    return np.column_stack([x_N, *((d(k) - d(len(at) - 2)) / scale for k in range(len(at) - 2))])


def design_effect(data: ItemLevel, counts: Counts, best: Fit, place: float) -> float:
    """By how much the variance of the kink's size is larger, for other items and other mixtures, than likelihood says."""
    run_N, item_N = np.nonzero(counts.cell_RI >= 0)
    cell = counts.cell_RI[run_N, item_N]
    residual = data.right_after[run_N, item_N] - best.probability_N[cell]
    se_P = clustered(kinked(counts, place)[cell], residual, best.bread_PP, item_N, data.mixture_R[run_N])
    return max(1.0, float(se_P[1] ** 2 / best.bread_PP[1, 1]))


# --- the report


def ends(row: ThresholdRow) -> str:
    return f"10^{row.place:.2f} [10^{row.low:.2f}, 10^{row.high:.2f}]"


def table(findings: Findings) -> Table:
    lines = []
    for r in findings.tables["threshold"]:
        losses = [f"{x:.4f}" for x in (r.line_loss, r.kink_loss, r.spline_loss)]
        place = ends(r) if r.found == "yes" else "none"
        lines.append([r.scale, place, r.inside or "–", *losses, signed(1e3 * r.gain), r.note])
    head = ["scale", "kink at p(gold)", "1e-3 inside", "log-loss of a line", "of a kink", "of a spline"]
    head += ["gain of the kink (1e-3)", "note"]
    return Table("a threshold", head, [lines], texts=1, prose=True, stacked=True)


def shown(findings: Findings) -> Iterator[Part]:
    yield (
        "Whether right after bends at one p(gold) before, judged on mixtures that were left out, against a line and a smooth "
        "curve with one coefficient more."
    )
    yield File("threshold", table(findings))


def claims(findings: Findings) -> Iterator[Claim]:
    for r in findings.tables["threshold"]:
        if r.found == "yes":
            yield supported(
                f"what is right after bends at p(gold) = {ends(r)} before",
                f"{r.slope_below:+.2f} log-odds for each decade below, {r.slope_above:+.2f} above; 1e-3 is "
                f"{'inside' if r.inside == 'yes' else 'outside'}, n = {r.n}",
                r.scale,
            )
        else:
            yield unsupported(
                "there is a p(gold), such as 1e-3, at which what fine-tuning teaches bends",
                f"{r.note.removeprefix('no kink: ')}, n = {r.n}",
                r.scale,
            )


EXPLAINER = Explainer(
    "threshold",
    ThresholdRow,
    rows,
    "A threshold?",
    3,
    lacks=lambda study: lacks_mixtures(study, LEAST),
    shown=shown,
    said=claims,
)
