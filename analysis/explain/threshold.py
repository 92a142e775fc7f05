"""Is there a probability below which fine-tuning does not teach an answer, or teaches it more? Table `threshold`.

Whether an item is right after, by x = log10 p(gold) before, with an intercept for each benchmark, three ways: a straight line, a
line with one kink (a + b x + d max(x - c, 0)), and a natural cubic spline with one coefficient more. A kink is found where it
predicts the mixtures that were left out better than the spline does: a smooth curve may be bent as well. Its place c is that of
the largest likelihood. The interval holds every c whose log-likelihood is within phi t^2 / 2 of the largest, t of M - 1 degrees
of freedom, phi the variance of d for other items and other mixtures over the one that the likelihood knows.

x is taken in bins of a twentieth of a decade, so that counts are all there is to fit.

References: Muggeo (2003), Statistics in Medicine 22, 3055-3071 (broken lines); Hastie, Tibshirani & Friedman (2009), "The
Elements of Statistical Learning", 5.2.1 (natural splines); Sun et al. (2025), arXiv 2504.09522, for the threshold of 1e-3.

Dims: R runs, M mixtures, N cells of benchmark and bin, P coefficients.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from evalengine.analysis import page
from evalengine.analysis.explain.choices import Array
from evalengine.analysis.explain.explainer import Explainer, Findings, Study
from evalengine.analysis.explain.item_level import ItemLevel, item_level
from evalengine.analysis.explain.logistic import Fit, clustered, dummies, fit
from evalengine.analysis.figure import Table
from evalengine.analysis.protocol import SUPPORTED, UNSUPPORTED, Claim

BINS = 20  # of a decade
GRID = 0.25  # decades between places tried
EDGE = 0.02  # share of the observations on either side of every place tried
KNOTS = (0.05, 0.35, 0.65, 0.95)  # quantiles of x
CLAIMED = -3.0


class ThresholdRow(NamedTuple):
    """One scale. gain: log-loss of the spline minus that of the kink, for each observation of the mixtures left out, over them.

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
    spline_loss: float
    n: int
    note: str


class Counts(NamedTuple):
    """Cells of a benchmark and a bin of x: mean x, trials and successes of each mixture, (N,) and (M, N)."""

    x_N: Array
    base_NB: Array  # which benchmark
    trials_MN: Array
    right_MN: Array


def rows(study: Study) -> list[ThresholdRow]:
    out = []
    for scale in study.design.scales:
        data = item_level(study, scale)
        if data is not None and len(np.unique(data.mixture_R)) >= 3 and 0 < data.right_after.mean() < 1:
            out.append(threshold(data, scale, study.options.level))
    return out


def threshold(data: ItemLevel, scale: str, level: float) -> ThresholdRow:
    from scipy.special import stdtrit

    x_RI = data.logp / np.log(10.0)
    counts = counted(x_RI, data)
    first, last = (float(np.quantile(x_RI, q)) for q in (EDGE, 1.0 - EDGE))
    places = np.arange(first, last, GRID)
    n = len(counts.trials_MN)
    if len(places) < 3:
        nan = float("nan")
        why = "p(gold) hardly varies"
        return ThresholdRow(scale, "no", nan, nan, nan, "", nan, nan, nan, nan, nan, nan, nan, nan, n, why)
    losses = np.array([held_out(counts, m, places) for m in range(n)])  # line, kink, spline
    line, kink, smooth = (float(loss) for loss in losses.mean(axis=0))
    gain_M = losses[:, 2] - losses[:, 1]
    t = float(stdtrit(n - 1, 0.5 + level / 2))
    half = t * float(gain_M.std(ddof=1)) / np.sqrt(n)
    mean = float(gain_M.mean())
    trials_N, right_N = counts.trials_MN.sum(axis=0), counts.right_MN.sum(axis=0)
    likelihood, best = profile(counts, trials_N, right_N, places)
    place = float(places[likelihood.argmax()])
    p = best.coefficient_P
    is_found = mean - half > 0.0
    note = "" if is_found else "no kink: a smooth curve predicts the mixtures left out as well"
    ends = (np.nan, np.nan)
    inside = ""
    if is_found:
        phi = design_effect(data, x_RI, place)
        within = places[likelihood >= likelihood.max() - 0.5 * phi * t**2]
        ends = (float(within.min()) - GRID / 2, float(within.max()) + GRID / 2)
        inside = "yes" if ends[0] <= CLAIMED <= ends[1] else "no"
    return ThresholdRow(
        scale,
        "yes" if is_found else "no",
        place if is_found else np.nan,
        *ends,
        inside,
        float(p[0]),
        float(p[0] + p[1]),
        mean,
        mean - half,
        mean + half,
        line,
        kink,
        smooth,
        n,
        note,
    )


def counted(x_RI: Array, data: ItemLevel) -> Counts:
    """The observations by benchmark, bin and mixture."""
    bin_RI = np.floor(x_RI * BINS).astype(np.int64)
    bin_RI -= bin_RI.min()
    cell_RI = data.benchmark_I * (bin_RI.max() + 1) + bin_RI
    cells, number = np.unique(cell_RI.ravel(), return_inverse=True)
    number_RI = number.reshape(x_RI.shape)
    N, mixtures = len(cells), np.unique(data.mixture_R)
    groups = [data.mixture_R == m for m in mixtures]
    trials, right = (
        np.stack(
            [np.bincount(number_RI[of].ravel(), w_RI[of].ravel(), N).astype(np.float64) for of in groups]
        )
        for w_RI in (np.ones_like(x_RI), data.right_after)
    )
    x_N = np.bincount(number, x_RI.ravel(), N) / np.bincount(number, minlength=N)
    return Counts(x_N, dummies(cells // (bin_RI.max() + 1)), trials, right)


def kinked(counts: Counts, place: float) -> Array:
    return np.column_stack([counts.x_N, np.maximum(counts.x_N - place, 0.0), counts.base_NB])


def profile(counts: Counts, trials_N: Array, right_N: Array, places: Array) -> tuple[Array, Fit]:
    """The log-likelihood at every place, and the best fit."""
    found: list[Fit] = []
    start = None
    for place in places:
        one = fit(kinked(counts, place), right_N, trials_N, start)
        start = one.coefficient_P
        found.append(one)
    likelihood = np.array([one.loglik for one in found])
    return likelihood, found[int(likelihood.argmax())]


def held_out(counts: Counts, m: int, places: Array) -> tuple[float, float, float]:
    """Log-loss for each observation of mixture m, by the line, the kink and the spline that the others give."""
    trials_N, right_N = (np.delete(of, m, axis=0).sum(axis=0) for of in (counts.trials_MN, counts.right_MN))
    likelihood, kink = profile(counts, trials_N, right_N, places)
    designs = [
        (np.column_stack([counts.x_N, counts.base_NB]), None),
        (kinked(counts, places[likelihood.argmax()]), kink),
        (np.column_stack([*spline(counts.x_N, trials_N).T, counts.base_NB]), None),
    ]
    out = []
    for x_NP, known in designs:
        one = known or fit(x_NP, right_N, trials_N)
        eta_N = x_NP @ one.coefficient_P
        loss = counts.trials_MN[m] @ np.logaddexp(0.0, eta_N) - counts.right_MN[m] @ eta_N
        out.append(float(loss / counts.trials_MN[m].sum()))
    return out[0], out[1], out[2]


def spline(x_N: Array, weight_N: Array) -> Array:
    """The natural cubic spline's columns of x, without the intercept: as many as there are knots, less one."""
    order = np.argsort(x_N)
    share = np.cumsum(weight_N[order]) / weight_N.sum()
    knots = np.array([x_N[order][np.searchsorted(share, q)] for q in KNOTS])

    def d(k: int) -> Array:
        cubes = [np.maximum(x_N - knots[j], 0.0) ** 3 for j in (k, -1)]
        return (cubes[0] - cubes[1]) / max(knots[-1] - knots[k], 1e-9)

    scale = max(float(knots[-1] - knots[0]), 1e-9) ** 2
    return np.column_stack([x_N, *((d(k) - d(len(knots) - 2)) / scale for k in range(len(knots) - 2))])


def design_effect(data: ItemLevel, x_RI: Array, place: float) -> float:
    """By how much the variance of the kink's size is larger, for other items and other mixtures, than likelihood says."""
    R, items = x_RI.shape
    item_N = np.tile(np.arange(items), R)
    x_N, y_N = x_RI.ravel(), data.right_after.ravel()
    x_NP = np.column_stack([x_N, np.maximum(x_N - place, 0.0), dummies(data.benchmark_I[item_N])])
    one = fit(x_NP, y_N)
    se_P = clustered(x_NP, y_N - one.probability_N, one.bread_PP, item_N, np.repeat(data.mixture_R, items))
    return max(1.0, float(se_P[1] ** 2 / one.bread_PP[1, 1]))


# --- the report


def table(findings: Findings) -> Table:
    lines = []
    for r in findings.tables["threshold"]:
        place = f"10^{r.place:.2f} [10^{r.low:.2f}, 10^{r.high:.2f}]" if r.found == "yes" else "none"
        losses = [f"{x:.4f}" for x in (r.line_loss, r.kink_loss, r.spline_loss)]
        lines.append([r.scale, place, r.inside or "–", *losses, f"{1e3 * r.gain:+.2f}", r.note])
    head = ["scale", "kink at p(gold)", "1e-3 inside", "log-loss of a line", "of a kink", "of a spline"]
    return Table(
        "a threshold", [*head, "gain of the kink (1e-3)", "note"], [lines], texts=1, prose=True, stacked=True
    )


def section(findings: Findings) -> str:
    if not findings.tables["threshold"]:
        return ""
    return (
        "<h3>A threshold?</h3>"
        '<p class="hint">Whether right after bends at one p(gold) before, judged on mixtures that were left out, against a line '
        f"and a smooth curve with one coefficient more.</p>{page.show(table(findings))}"
    )


def claims(findings: Findings) -> Iterator[Claim]:
    for r in findings.tables["threshold"]:
        if r.found == "yes":
            yield Claim(
                SUPPORTED,
                f"At {r.scale} what is right after bends at p(gold) = 10^{r.place:.2f} [10^{r.low:.2f}, 10^{r.high:.2f}] before "
                f"({r.slope_below:+.2f} log-odds for each decade below, {r.slope_above:+.2f} above); 1e-3 is "
                f"{'inside' if r.inside == 'yes' else 'outside'}, n = {r.n}.",
            )
        else:
            yield Claim(
                UNSUPPORTED,
                f"That there is a p(gold), such as 1e-3, at which what fine-tuning teaches bends at {r.scale}.",
            )


EXPLAINER = Explainer(
    "threshold",
    ThresholdRow,
    rows,
    section,
    latex=lambda f: {"threshold": table(f)} if f.tables["threshold"] else {},
    claims=claims,
)
