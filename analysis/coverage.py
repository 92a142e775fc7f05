"""Do the intervals hold the truth as often as they say, and how often is a verdict false? A simulation with known truths.

    python -m evalengine.analysis.coverage [--draws 1000] [--studies 200] [--mixtures 6,9,12,20]

Draws studies whose true correlations are known, takes every kind of interval from the resamples that `correlate` takes, and
counts. It is the reason for each default in docs/analysis.md: one r takes BCa, a category's mean of transfers the jackknife
on Fisher's z, a difference between scales the plain jackknife, coherence BCa with Student's t.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from evalengine.analysis.data.panel import Panel
from evalengine.analysis.protocols.protocol import CorrelateOptions, StudyData
from evalengine.analysis.protocols.transfer import rows
from evalengine.analysis.protocols.verdicts import verdicts
from evalengine.analysis.statistics.bootstrap import Array, Resamples, fisher, intervals, resamples
from evalengine.analysis.statistics.correlation import BlockNumbers, Sample, correlate
from evalengine.analysis.study import fixed_data

# t5: multivariate t, 5 degrees of freedom; lognormal: exp of a normal
DISTRIBUTIONS = ("normal", "t5", "lognormal")
KINDS = ("percentile", "bca", "bca-t", "jackknife", "jackknife-z", "fisher")
BENCHMARKS = 20
RESAMPLES = 2000  # where not all can be taken: enough to count coverage


class Coverage(NamedTuple):
    """Share of draws whose interval holds the truth, and the intervals' mean width; by kind in the order of KINDS."""

    statistic: str
    distribution: str
    truth: float
    draws: int
    covered: tuple[float, ...]
    width: tuple[float, ...]


def drawn(rng: np.random.Generator, shape: tuple[int, ...], n: int, r: float, distribution: str) -> Array:
    """(*shape, n): variables over n mixtures, along the last axis but one, of which any two have the correlation r.

    A lognormal's variables are exp of standard normal ones, whose correlation is log(1 + (e - 1) r); r above -0.37.
    """
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"no distribution '{distribution}': {', '.join(DISTRIBUTIONS)}")
    rho = np.log1p((np.e - 1.0) * r) if distribution == "lognormal" else r
    z = rng.normal(size=(*shape, n))
    common = rng.normal(size=(*shape[:-1], 1, n))
    if shape[-1] == 2:  # may have a negative correlation
        z[..., 1, :] = rho * z[..., 0, :] + np.sqrt(1.0 - rho * rho) * z[..., 1, :]
    else:
        z = np.sqrt(rho) * common + np.sqrt(1.0 - rho) * z
    if distribution == "t5":
        z /= np.sqrt(rng.chisquare(5, size=(*shape[:-1], 1, n)) / 5.0)
    return np.exp(z) if distribution == "lognormal" else z


def single(r: float, distribution: str, draws: int, n: int = 9, seed: int = 0) -> Coverage:
    """Coverage for one Pearson r."""
    plan = planned(n)
    x = drawn(np.random.default_rng([seed, int(100 * r), len(distribution)]), (draws, 2), n, r, distribution)
    value = correlations(x, plan)
    return counted("one r", distribution, r, value, plan, fisher(value[:, 0], n))


def mean_of(
    members: int,
    r: float,
    distribution: str,
    draws: int,
    n: int = 9,
    *,
    scales: int = 1,
    sizes: Sequence[int] = (),
    seed: int = 0,
) -> Coverage:
    """Coverage for the mean r of `members` independent benchmarks, or for its difference between two scales with equal r.

    sizes: of blocks of mixtures, within which r is taken. The share of the variance that blocks have does not matter: their
    means are taken out of every variable.
    """
    block_M = np.repeat(np.arange(len(sizes)), sizes) if sizes else None
    plan = planned(n, block_M)
    rng = np.random.default_rng([seed, *([n] if sizes else []), members, int(100 * r), scales])
    value = []
    for _ in range(draws):
        means = [
            correlations(drawn(rng, (members, 2), n, r, distribution), plan, block_M).mean(axis=0)
            for _ in range(scales)
        ]
        value.append(means[0] if scales == 1 else means[1] - means[0])
    found = np.array(value)
    z = fisher(found[:, 0], n - len(sizes) + 1) if sizes and (members, scales) == (1, 1) else None
    name = "one r" if members == 1 else f"mean of {members} transfers"
    name = name if scales == 1 else f"difference of {name}"
    name += f" within {' + '.join(map(str, sizes))}" if sizes else ""
    return counted(name, distribution, r if scales == 1 else 0.0, found, plan, z)


def coherence_of(
    members: int, r: float, distribution: str, draws: int, n: int = 9, seed: int = 0
) -> Coverage:
    """Coverage for the mean over pairs of `members` variables that all share the correlation r."""
    plan = planned(n)
    rng = np.random.default_rng([seed, members, int(100 * r), 9])
    pairs = np.stack(np.triu_indices(members, 1), axis=-1)
    value = []
    for _ in range(draws):
        x = drawn(rng, (members,), n, r, distribution)
        value.append(correlate(Sample(x[:, :, None], plan.weight_MC), pairs).mean(axis=0))
    return counted(f"coherence of {members}", distribution, r, np.array(value), plan)


def planned(n: int, block_M: BlockNumbers | None = None) -> Resamples:
    return resamples(n, None if n <= 10 else RESAMPLES, block_M=block_M)


def correlations(x_S2M: Array, plan: Resamples, block_M: BlockNumbers | None = None) -> Array:
    """(S, C): r of each pair of variables in every column (within blocks)."""
    x_VM = x_S2M.reshape(-1, x_S2M.shape[-1])
    pairs = np.arange(len(x_VM)).reshape(-1, 2)
    return correlate(Sample(np.ascontiguousarray(x_VM[:, :, None]), plan.weight_MC, block_M), pairs)


def counted(
    statistic: str, distribution: str, truth: float, value: Array, plan: Resamples, z: Array | None = None
) -> Coverage:
    found = intervals(value, plan, kinds=[kind for kind in KINDS if kind != "fisher"]).ends
    found["fisher"] = np.full((len(value), 2), np.nan) if z is None else z
    ends = [found[kind] for kind in KINDS]
    covered, width = [], []
    for end in ends:
        known = np.isfinite(end).all(axis=1)
        enough = known.mean() > 0.5
        covered.append(
            float(((end[:, 0] <= truth) & (truth <= end[:, 1]))[known].mean()) if enough else np.nan
        )
        width.append(float((end[:, 1] - end[:, 0])[known].mean()) if enough else np.nan)
    return Coverage(statistic, distribution, truth, len(value), tuple(covered), tuple(width))


BLOCKS = ((3, 3, 3), (4, 4, 4), (3, 3, 3, 3, 3))  # sizes of the blocks of a study


def panel_of(values: dict[str, Array], categories: tuple[str, ...]) -> Panel:
    """A panel of simulated values (S, 2, M, B) by quantity."""
    S, _, M, B = shape = next(iter(values.values())).shape
    return Panel(
        scales=tuple(f"{s + 1}B" for s in range(S)),
        stages=("pt", "sft"),
        mixtures=tuple(f"m{m}" for m in range(M)),
        benchmarks=tuple(f"b{b}" for b in range(B)),
        categories=categories,
        values=values,
        calibration={},
        row=np.full(shape, -1),
        n_items=np.zeros(B, dtype=np.int64),
        notes=(),
    )


class VerdictErrors(NamedTuple):
    """Of simulated studies: the share that holds any false verdict of a kind, and false verdicts a study."""

    study: str
    mixtures: int
    distribution: str
    any_reliable: float
    any_scale_dependent: float
    reliable: float  # benchmarks a study, of BENCHMARKS
    scale_dependent: float


def verdict_rates(
    name: str, r_SB: Array, distribution: str, studies: int, n: int = 9, seed: int = 0
) -> VerdictErrors:
    """How often benchmarks of true correlations `r_SB` (scales, benchmarks) are called reliable and scale-dependent."""
    rng = np.random.default_rng([seed, n, len(distribution)])
    said = []
    for _ in range(studies):
        x_SBTM = np.stack(
            [np.stack([drawn(rng, (2,), n, float(r), distribution) for r in r_B]) for r_B in r_SB]
        )
        values = np.ascontiguousarray(x_SBTM.transpose(0, 2, 3, 1))
        panel = panel_of({"accuracy": values}, ("All of them",) * r_SB.shape[1])
        plan = planned(n)
        study = StudyData(fixed_data(panel, plan, "pearson"), plan, CorrelateOptions())
        found = [verdict.verdict for verdict in verdicts(rows(study))]
        said.append([found.count("reliable"), found.count("scale-dependent")])
    count = np.array(said)
    return VerdictErrors(
        name, n, distribution, *(count > 0).mean(axis=0).tolist(), *count.mean(axis=0).tolist()
    )


def studies_of(studies: int, n: int, distribution: str) -> Iterator[VerdictErrors]:
    """Verdicts on studies of BENCHMARKS benchmarks and two scales: nothing transfers; all do alike; planted truths."""

    def rates(name: str, *r: Array) -> VerdictErrors:
        return verdict_rates(name, np.stack(r), distribution, studies, n)

    zero, one = np.zeros(BENCHMARKS), np.ones(BENCHMARKS)
    mixed = np.resize([0.0, 0.3, 0.6, 0.9], BENCHMARKS)
    quarter = np.where(np.arange(BENCHMARKS) % 4 == 0, 1.0, 0.0)
    yield rates("r = 0 at both scales", zero, zero)
    yield rates("r = 0.6 at both scales", 0.6 * one, 0.6 * one)
    yield rates("r of 0, 0.3, 0.6, 0.9, equal at both scales", mixed, mixed)
    yield rates("5 of 20 with r = 0.95 at both scales, else 0", 0.95 * quarter, 0.95 * quarter)
    if distribution != "lognormal":
        yield rates("5 of 20 with r = -0.9 and 0.9, else 0", -0.9 * quarter, 0.9 * quarter)


def at_least(least: int) -> Callable[[str], int]:
    """Reads a whole number; not argparse's own words, which name a type."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"'{text}' is no whole number from {least} up")
        return int(text)

    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=at_least(1), default=1000, help="draws a cell")
    parser.add_argument("--studies", type=at_least(1), default=200, help="studies a row of the verdicts")
    parser.add_argument("--mixtures", default="6,9,12,20", help="numbers of mixtures")
    args = parser.parse_args()
    try:
        sizes = [at_least(4)(n) for n in args.mixtures.split(",")]
    except argparse.ArgumentTypeError as error:
        parser.error(f"--mixtures {args.mixtures}: {error}")
    heading("statistic", "data", "n", "truth", *KINDS)
    for n in sizes:
        for row in cells(args.draws, n):
            both = zip(row.covered, row.width, strict=True)
            found = (f"{share:.3f} ({width:.2f})" if share == share else "-" for share, width in both)
            line(row.statistic, row.distribution, n, f"{row.truth:g}", *found)
    print(
        f"\nEach cell: share of {args.draws} draws whose nominal 95% interval holds the truth (mean width).\n"
    )
    counts = "any reliable", "any scale-dependent", "reliable", "scale-dependent"
    heading("studies of 20 benchmarks, two scales", "data", "n", *counts)
    for n, distribution in itertools.product(sizes, DISTRIBUTIONS):
        for e in studies_of(args.studies, n, distribution):
            any_of = f"{e.any_reliable:.3f}", f"{e.any_scale_dependent:.3f}"
            line(e.study, distribution, n, *any_of, f"{e.reliable:.2f}", f"{e.scale_dependent:.2f}")
    print(f"\nShares of {args.studies} studies that hold any such verdict; benchmarks so called, a study.")


def heading(*columns: str) -> None:
    """The first two lines of a table in Markdown."""
    line(*columns)
    print("|---" * len(columns) + "|")


def line(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def cells(draws: int, n: int) -> Iterator[Coverage]:
    for d in DISTRIBUTIONS:
        for r in (0.0, 0.5, 0.8):
            yield single(r, d, draws, n)
        for members in (4, 7, 20):
            for r in (0.0, 0.5, 0.8):
                yield mean_of(members, r, d, draws, n)
        for members in (4, 7):
            for r in (0.0, 0.5):
                yield coherence_of(members, r, d, draws, n)
        for members in (1, 4):
            for r in (0.0, 0.5, 0.8):
                yield mean_of(members, r, d, draws, n, scales=2)
        for sizes in (sizes for sizes in BLOCKS if sum(sizes) == n):
            for members, scales in ((1, 1), (4, 1), (7, 1), (1, 2), (4, 2)):
                for r in (0.0, 0.5, 0.8):
                    yield mean_of(members, r, d, draws, n, scales=scales, sizes=sizes)


if __name__ == "__main__":
    main()
