"""How often a nominal 95% interval holds the truth with nine mixtures: the simulation behind the default.

    python tests/analysis/coverage_of_intervals.py [--draws 2000] [--mixtures 9]

Draws studies whose true correlation is known, takes every kind of interval from all distinct resamples, and counts.
Beside single correlations it does so for the means that the protocols report (a category's transfer, its coherence).

Cost: about 0.1 s per 1,000 draws and kind of data on one core, for single correlations.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np

from evalengine.analysis.bootstrap import Array, Resamples, fisher, intervals, resamples
from evalengine.analysis.correlation import Sample, correlate

DISTRIBUTIONS = ("normal", "heavy-tailed")  # heavy-tailed: multivariate t with 3 degrees of freedom
KINDS = ("percentile", "basic", "bca", "jackknife", "fisher")


class Coverage(NamedTuple):
    """Share of draws whose interval holds the truth, and the intervals' mean width; by kind in the order of KINDS."""

    statistic: str
    distribution: str
    truth: float
    draws: int
    covered: tuple[float, ...]
    width: tuple[float, ...]


def correlated(rng: np.random.Generator, draws: int, n: int, r: float, distribution: str) -> Array:
    """(2 * draws, n): pairs of variables with correlation r, rows 2k and 2k + 1."""
    z = rng.normal(size=(draws, 2, n))
    z[:, 1] = r * z[:, 0] + np.sqrt(1.0 - r * r) * z[:, 1]
    if distribution == "heavy-tailed":
        z /= np.sqrt(rng.chisquare(3, size=(draws, 1, n)) / 3.0)
    return z.reshape(2 * draws, n)


def single(r: float, distribution: str, draws: int, n: int = 9, seed: int = 0) -> Coverage:
    """Coverage for one Pearson r. With heavy tails r is that of the scatter matrix, to which the sample's converges."""
    plan = resamples(n, None)
    x = correlated(np.random.default_rng([seed, int(100 * r), len(distribution)]), draws, n, r, distribution)
    pairs = np.arange(2 * draws).reshape(-1, 2)
    value = _correlate(x, pairs, plan)
    return _count("one r", distribution, r, value, plan, fisher(value[:, 0], n))


def mean_of(kind: str, members: int, r: float, draws: int, n: int = 9, seed: int = 0) -> Coverage:
    """Coverage for a mean of correlations of normal data.

    kind "transfer": the mean r of `members` independent benchmarks, each correlated with itself after. kind
    "coherence": the mean over pairs of `members` variables that all share the correlation r.
    """
    plan = resamples(n, None)
    rng = np.random.default_rng([seed, members, int(100 * r)])
    value = []
    for _ in range(draws):
        if kind == "transfer":
            x = correlated(rng, members, n, r, "normal")
            pairs = np.arange(2 * members).reshape(-1, 2)
        else:
            x = np.sqrt(r) * rng.normal(size=n) + np.sqrt(1 - r) * rng.normal(size=(members, n))
            pairs = np.stack(np.triu_indices(members, 1), axis=-1)
        value.append(_correlate(x, pairs, plan).mean(axis=0))
    name = f"mean of {members} transfers" if kind == "transfer" else f"coherence of {members}"
    found = np.array(value)
    return _count(name, "normal", r, found, plan, np.full((draws, 2), np.nan))


def _correlate(x_VM: Array, pairs: np.ndarray, plan: Resamples) -> Array:
    return correlate(Sample(x_VM[:, :, None], plan.weight_MC), pairs)


def _count(
    statistic: str, distribution: str, truth: float, value: Array, plan: Resamples, fisher_ends: Array
) -> Coverage:
    found = intervals(value, plan)
    ends = [found.percentile, found.basic, found.bca, found.jackknife, fisher_ends]
    covered = tuple(
        float(np.mean((e[:, 0] <= truth) & (truth <= e[:, 1]))) if np.isfinite(e).any() else float("nan")
        for e in ends
    )
    width = tuple(
        float(np.nanmean(e[:, 1] - e[:, 0])) if np.isfinite(e).any() else float("nan") for e in ends
    )
    return Coverage(statistic, distribution, truth, len(value), covered, width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--mixtures", type=int, default=9)
    args = parser.parse_args()
    print("| statistic | data | truth | draws | " + " | ".join(KINDS) + " |")
    print("|---" * (4 + len(KINDS)) + "|")
    found = [single(r, d, args.draws, args.mixtures) for d in DISTRIBUTIONS for r in (0.0, 0.5, 0.8)]
    for kind, members in (("transfer", 7), ("transfer", 4), ("coherence", 7), ("coherence", 4)):
        found += [mean_of(kind, members, r, args.draws // 4, args.mixtures) for r in (0.0, 0.5)]
    for row in found:
        cells = " | ".join(
            f"{c:.3f} ({w:.2f})" if c == c else "-" for c, w in zip(row.covered, row.width, strict=True)
        )
        print(f"| {row.statistic} | {row.distribution} | {row.truth:g} | {row.draws} | {cells} |")
    print("\nEach cell: share of draws whose nominal 95% interval holds the truth (mean width).")


if __name__ == "__main__":
    main()
