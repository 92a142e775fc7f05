"""Signal and noise of every benchmark and quantity: table `snr`.

Signal is how far the mixtures lie apart, noise how far a mixture's mean would move with other items. All mixtures answer the same
items, so the noise that blurs a comparison is the mixture-by-item interaction: what an item does to all of them alike is none.
Where a mixture has several runs, the standard deviation between them is shown beside it. Noise between mixtures is no part of it:
to pool all checkpoints of a scale into the noise would divide the signal by itself.

Dims: M mixtures, I items.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from evalengine.analysis.claims import CAUTION, Claim
from evalengine.analysis.explain.choices import Array
from evalengine.analysis.explain.explainer import Explainer, Findings, StudyScores, lacks_mixtures
from evalengine.analysis.explain.proxies import AGREEMENT
from evalengine.analysis.explain.quantities import ACCURACY, quantities_of
from evalengine.analysis.explain.student import interaction
from evalengine.analysis.figure import File, Folded, Part, Table, blocks, pivot
from evalengine.analysis.results import signed


class SnrRow(NamedTuple):
    """One quantity of one benchmark. signal: standard deviation of the mixtures' means; range: largest minus smallest."""

    scale: str
    stage: str
    quantity: str
    category: str
    benchmark: str
    mean: float
    signal: float
    range: float
    noise: float  # standard error of a mixture's mean, other items
    snr: float  # signal / noise
    reliability: float  # 1 - noise^2 / signal^2
    seeds: float  # standard deviation between runs of a mixture, NaN with one run
    n: int


def rows(study: StudyScores) -> list[SnrRow]:
    out = []
    for scale in study.design.scales:
        for after, stage in enumerate(study.design.stages):
            for one in quantities_of(study, scale, bool(after)).values():
                for quantity, x_MI in one.value.items() if study.design.paired[scale] > 1 else ():
                    at = (scale, stage, quantity, one.category, one.benchmark)
                    out.append(SnrRow(*at, *signal_and_noise(x_MI), one.between_runs[quantity], len(x_MI)))
    return out


def signal_and_noise(x_MI: Array) -> tuple[float, float, float, float, float, float]:
    """Mean, signal, range, noise, their ratio, and reliability. What rounding makes of values that are alike counts as 0."""
    mean_M, items = x_MI.mean(axis=1), x_MI.shape[1]
    signal, spread = float(mean_M.std(ddof=1)), float(mean_M.max() - mean_M.min())
    noise = float(np.sqrt(interaction(x_MI) / items)) if items > 1 else np.nan
    rounding = 1e-12 * float(np.abs(x_MI).max())
    signal, spread, noise = (0.0 if x <= rounding else x for x in (signal, spread, noise))
    ratio = signal / noise if noise > 0 else np.nan
    share = 1.0 - (noise / signal) ** 2 if signal > 0 else np.nan
    return float(mean_M.mean()), signal, spread, noise, ratio, share


def table(findings: Findings) -> Table:
    """Accuracy's, and the quantity with the largest ratio, before fine-tuning."""
    before = findings.method["stages"][0]
    lines = []
    rows = findings.rows("snr", stage=before)
    for (scale, benchmark), at in pivot(rows, "scale benchmark", "quantity").items():
        own = at[ACCURACY]
        best = max(at.values(), key=lambda r: r.snr if r.snr == r.snr else -1.0)
        numbers = [f"{100 * own.signal:.2f}", f"{100 * own.noise:.2f}", f"{own.snr:.1f}"]
        lines.append([benchmark, own.category, scale, *numbers, best.quantity, f"{best.snr:.1f}"])
    head = ["benchmark", "category", "scale", "signal (points)", "noise (points)", "ratio"]
    head += ["quantity of the largest ratio", "its ratio"]
    return Table("signal and noise", head, blocks(lines, 2), texts=3)


def shown(findings: Findings) -> Iterator[Part]:
    yield (
        "Signal: standard deviation of the mixtures. Noise: how far a mixture would move with other items, within the mixture; "
        "both of accuracy before fine-tuning. A ratio of 1 is what noise alone makes."
    )
    yield from _relation(findings)
    yield Folded("Benchmarks", [File("snr", table(findings))])


def _relation(findings: Findings) -> Iterator[str]:
    """Over benchmarks: do those with the larger ratio predict better?"""
    from scipy.special import ndtri
    from scipy.stats import spearmanr

    before, after = findings.method["stages"]
    for scale in findings.method["scales"]:
        ratio = findings.rows("snr", scale=scale, stage=before, quantity=ACCURACY)
        at = {"seen": f"{scale} {before}", "target": f"{scale} {after}", "proxy": ACCURACY, "minus": ""}
        right = {
            r.benchmark: r.estimate for r in findings.rows("proxies", measure=AGREEMENT, **at) if r.benchmark
        }
        pairs = [(r.snr, right.get(r.benchmark, np.nan)) for r in ratio]
        pairs = [pair for pair in pairs if np.isfinite(pair).all()]
        if len(pairs) < 5:
            continue
        found = spearmanr(*zip(*pairs, strict=True))
        rho = float(found.statistic)
        z = float(ndtri(0.5 + findings.method["level"] / 2))
        half = z * np.sqrt((1 + rho**2 / 2) / (len(pairs) - 3))  # Bonett & Wright (2000)
        low, high = np.tanh(np.arctanh(rho) - half), np.tanh(np.arctanh(rho) + half)
        yield (
            f"Over {len(pairs)} benchmarks at {scale}, the ratio and how often accuracy is right of two have Spearman's rank "
            f"correlation {signed(rho)} [{signed(low)}, {signed(high)}]."
        )


def claims(findings: Findings) -> Iterator[Claim]:
    before = findings.method["stages"][0]
    for scale in findings.method["scales"]:
        found = findings.rows("snr", scale=scale, stage=before, quantity=ACCURACY)
        weak = [r.benchmark for r in found if not r.reliability >= 0.5]  # tied mixtures too
        if weak:
            what = (
                f"more than half of what separates the mixtures at {before} is item noise on some benchmarks"
            )
            yield Claim(CAUTION, what, f"{len(weak)} of {len(found)} ({', '.join(weak)})", scale)


EXPLAINER = Explainer(
    "snr",
    SnrRow,
    rows,
    "Signal and noise",
    3,
    lacks=lambda study: lacks_mixtures(study, 2),
    shown=shown,
    said=claims,
)
