"""Seeds: what the runs of one mixture differ by, and the correlation between mixtures without it.

A mixture's mean over R runs is what the mixture does plus the seeds' noise. A fine-tuned run that inherits its seed carries
that noise into the second stage, where it looks like transfer: with one run a mixture, 30% of the variance from seeds and 0.9
of it inherited, mixtures that do not transfer at all show r = 0.27. Runs that share a mixture tell the two apart. With
(x, y) the deviations of paired runs from their mixture's mean,

    seeds   = the variances and covariance of (x, y) within mixtures, divided by the runs behind each mean
    between = the variances and covariance of the mixtures' means, minus those of the seeds

Where every mixture has all runs at both stages, what the r-th runs of all mixtures have in common is taken out first: runs
of equal seeds may share it, and then it moves no mixture against another. The correlation between mixtures of one benchmark
is `latent_r` with the seeds as the noise, the mean of many `pooled`. What seeds do includes what they do to the answers
of single items; the noise of having only so many items is in the mixtures' part (noise.py).

Reference: Searle, Casella & McCulloch (1992), "Variance Components", ch. 3 (analysis of variance, unbalanced data).

Dims: M mixtures, R runs, C columns of weights, B benchmarks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.claims import CAUTION, Claim, with_n
from evalengine.analysis.data.items import mean_of_known
from evalengine.analysis.data.panel import Panel
from evalengine.analysis.estimates.groups import (
    ALL,
    NO_NOTE,
    Array,
    Group,
    Label,
    Note,
    Statistic,
    means_over,
)
from evalengine.analysis.estimates.tables import Row, plain_row, rows_of
from evalengine.analysis.figure import Heading, Part, Table, pivot, with_benchmarks
from evalengine.analysis.protocols.noise import LIKELIHOOD, covariances
from evalengine.analysis.protocols.protocol import Protocol, StudyData
from evalengine.analysis.results import Results, share_with_interval, with_interval
from evalengine.analysis.statistics.bootstrap import Basis, Resamples, resamples
from evalengine.analysis.statistics.correlation import Sample, weighted_sums
from evalengine.analysis.statistics.latent import latent_r, pooled, symmetric
from evalengine.analysis.statistics.ranges import CORRELATION, SHARE, Range

ABOUT = "protocol quantity scale category name"
CEILING = "ceiling"
BETWEEN = "r between mixtures"
ALL_SEEDS = "the mixtures differ no more than seeds make them"
UNPAIRED = Note.partial("no seed has runs at both stages, so nothing is taken as inherited")


class Components(NamedTuple):
    """One benchmark's variances before and after and their covariance, (3, C).

    of_means: of the mixtures' means over runs. seeds: the part of it that seeds have. single: what seeds have in single
    runs. used_M: the mixtures that have both.
    """

    of_means_3C: Array
    seeds_3C: Array
    single_3C: Array
    used_M: NDArray[np.bool_]
    paired: bool  # whether the seeds' covariance is known

    @property
    def n(self) -> int:
        """Mixtures."""
        return int(self.used_M.sum())

    @property
    def note(self) -> Note:
        return Note() if self.paired else UNPAIRED

    @property
    def share_2C(self) -> Array:
        """The seeds' share of the variance of single runs before and after, at most 1."""
        single_2C = self.single_3C[:2]
        run_2C = self.of_means_3C[:2] - self.seeds_3C[:2] + single_2C
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.minimum(np.where(run_2C > 0.0, single_2C / run_2C, np.nan), 1.0)

    @property
    def ceiling_C(self) -> Array:
        """The r of the means over runs if that between mixtures were 1; NaN where seeds explain a whole variance."""
        between_2C = np.maximum(self.of_means_3C[:2] - self.seeds_3C[:2], 0.0)
        both_C = between_2C.prod(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            r_C = (np.sqrt(both_C) + self.seeds_3C[2]) / np.sqrt(self.of_means_3C[:2].prod(axis=0))
        return np.where(both_C > 0.0, r_C, np.nan)


def components(x_2MR: Array, w_MC: Array) -> Components | None:
    """From single runs before and after, NaN where there is none; None without two runs of a mixture at both stages.

    Runs are paired between the stages by their place in R.
    """
    known_2MR = np.isfinite(x_2MR)
    runs_2M = known_2MR.sum(axis=2)
    keep_M = (runs_2M > 0).all(axis=0)
    n = int(keep_M.sum())
    known_2MR &= keep_M[:, None]
    if n < 4 or not (known_2MR.sum(axis=2) > 1).any(axis=1).all():
        return None
    paired_MR = known_2MR[0] & known_2MR[1]
    pairs_M = paired_MR.sum(axis=1)
    lost = 1.0
    if known_2MR[:, keep_M].all():
        common_21R = x_2MR[:, keep_M].mean(axis=1, keepdims=True)
        x_2MR = x_2MR - common_21R + common_21R.mean(axis=2, keepdims=True)
        lost = n / (n - 1.0)
    means = [_deviations(x_MR, known_MR) for x_MR, known_MR in zip(x_2MR, known_2MR, strict=True)]
    dx_MR, dy_MR = (_deviations(x_MR, paired_MR)[1] for x_MR in x_2MR)
    runs_2M = np.maximum(runs_2M, 1)
    squares_3M = [*((d_MR**2).sum(axis=1) for _, d_MR in means), (dx_MR * dy_MR).sum(axis=1)]
    freedom_3M = [*(runs_2M - 1), np.maximum(pairs_M - 1, 0)]
    behind_3M = [*(1.0 / runs_2M), pairs_M / runs_2M.prod(axis=0)]
    terms = np.array([*squares_3M, *freedom_3M, *behind_3M, np.ones(len(keep_M))]) * keep_M
    sums = weighted_sums(terms[:, :, None], w_MC)
    paired = bool((pairs_M > 1).any())
    with np.errstate(invalid="ignore", divide="ignore"):
        single_3C = lost * sums[:3] / sums[3:6]
        if not paired:
            single_3C[2] = 0.0
        seeds_3C = single_3C * sums[6:9] / sums[9]
    x_MC, y_MC = (mean_M1 for mean_M1, _ in means)
    pair = Sample(np.stack([x_MC, y_MC]), w_MC)
    return Components(covariances(pair, keep_M), seeds_3C, single_3C, keep_M, paired)


def _deviations(x_MR: Array, known_MR: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Each mixture's mean over the known runs, (M, 1), NaN without any, and their deviations from it, 0 elsewhere."""
    with np.errstate(invalid="ignore"):
        mean_M1 = np.where(known_MR, x_MR, 0.0).sum(axis=1, keepdims=True) / known_MR.sum(
            axis=1, keepdims=True
        )
    return mean_M1, np.where(known_MR, x_MR - mean_M1, 0.0)


def rows(study: StudyData) -> list[Row]:
    """Mixtures are resampled, whatever the user resamples; the parts of the variance are of all of them, without blocks."""
    study = study.across or study
    panel, options = study.panel, study.options
    if not panel.runs:
        return []
    plan = study.plan
    if options.resample == "items":
        plan = resamples(len(panel.mixtures), options.bootstrap, options.seed)
    out: list[Row] = []
    for quantity, x_STMBR in panel.runs.items():
        for s, scale in enumerate(panel.scales):
            found = [components(x_STMBR[s, :, :, b], plan.weight_MC) for b in range(len(panel.benchmarks))]
            known = {b: one for b, one in enumerate(found) if one is not None}
            out += _rows(study, plan, ("seeds", quantity, scale), _of_benchmarks(panel, known))
            out += _between(study, quantity, scale, known)
            out += _rows(study, plan, ("category_seeds", quantity, scale), _of_means(panel, known))
    return out


def _shares(panel: Panel) -> tuple[str, str]:
    before, after = panel.stages
    return f"seeds' share {before}", f"seeds' share {after}"


def _of_benchmarks(panel: Panel, known: dict[int, Components]) -> Iterator[Statistic]:
    """The seeds' shares of the variance, and the ceiling, of each benchmark."""
    for b, one in known.items():
        for kind, value_C in zip((*_shares(panel), CEILING), [*one.share_2C, one.ceiling_C], strict=True):
            label, said = Label(panel.categories[b], panel.benchmarks[b], kind), NO_NOTE
            if kind == CEILING:
                said = one.note.also(Note.undefined(ALL_SEEDS) if np.isnan(value_C[0]) else NO_NOTE)
            yield Statistic(label, value_C, one.used_M, said)


def _between(study: StudyData, quantity: str, scale: str, known: dict[int, Components]) -> list[Row]:
    """The r between mixtures of each benchmark."""
    rows = []
    for b, one in known.items():
        of_means, seeds = (symmetric(*x_3C[:, 0]) for x_3C in (one.of_means_3C, one.seeds_3C))
        r = latent_r(of_means, seeds, one.n, study.options.level)
        label = Label(study.panel.categories[b], study.panel.benchmarks[b], BETWEEN)
        rows.append(plain_row("seeds", quantity, scale, label, r, one.n, one.note, interval=LIKELIHOOD))
    return rows


def _of_means(panel: Panel, known: dict[int, Components]) -> Iterator[Statistic]:
    """The mean shares, and the mean r between mixtures, of each category and of all."""
    differing = {b for b, one in known.items() if (one.seeds_3C[:2, 0] > 0.0).all()}
    for label, used, note in means_over(panel, differing):
        if not used:
            continue
        chosen = [known[b] for b in used]
        shares_2C = [mean_of_known(np.array([one.share_2C[t] for one in chosen]), 0) for t in range(2)]
        of_means_B3C = np.array([one.of_means_3C for one in chosen])
        seeds_B3C = np.array([one.seeds_3C for one in chosen])
        unit_B3 = seeds_B3C[:, :, 0]
        # `pooled` subtracts the same noise in every column: what the seeds' differs from it by goes before.
        between_C = pooled(of_means_B3C - (seeds_B3C - unit_B3[:, :, None]), unit_B3)
        if not all(one.paired for one in chosen):
            note = note.also(UNPAIRED)
        parts = Basis.of(np.array([one.used_M for one in chosen]))
        for kind, value_C in zip((*_shares(panel), BETWEEN), [*shares_2C, between_C], strict=True):
            said = note.also(Note.undefined(ALL_SEEDS)) if np.isnan(value_C[0]) else note
            yield Statistic.of_parts(label._replace(other=kind), value_C, parts, said)


def _rows(
    study: StudyData, plan: Resamples, at: tuple[str, str, str], found: Iterable[Statistic]
) -> list[Row]:
    """Rows at a protocol, quantity and scale, with jackknife intervals.

    Resampling mixtures would keep to them, but of two copies of a mixture the seeds look like all of the difference: BCa-t
    held 0.3 in 67% of simulated means of seven shares, the jackknife in 95%.
    """
    protocol, quantity, scale = at
    if not (listed := list(found)):
        return []
    group = Group.of(protocol, quantity, {scale: listed}, interval="jackknife", range_of=_range_of)
    return rows_of(group, plan, study.options)


def _range_of(label: Label) -> Range:
    return CORRELATION if label.other in (BETWEEN, CEILING) else SHARE


def shown(results: Results) -> Iterator[Part]:
    found = results.rows("seeds")
    if not found:
        return
    measured = {  # means under no name: theirs says over how many benchmarks
        (r.quantity, r.scale, r.category, r.name if r.protocol == "transfer" else ""): r
        for r in results.rows("transfer")
    }
    means, single = [], []
    for about, by_kind in pivot(found, ABOUT, "other").items():
        protocol, quantity, scale, category, name = about
        *shares, r = (by_kind[kind] for kind in by_kind if kind != CEILING)
        intervals = [share_with_interval(row) for row in shares]
        if protocol == "category_seeds":
            observed = with_interval(measured.get((quantity, scale, category, "")))
            means.append([category, quantity, scale, *intervals, observed, with_interval(r), r.note])
        else:
            observed = with_interval(measured.get((quantity, scale, category, name)))
            intervals.append(with_interval(by_kind[CEILING]))
            single.append([name, quantity, scale, *intervals, observed, with_interval(r), str(r.n)])
    before, after = results.method["stages"]
    head = ["quantity", "scale", f"seeds at {before} (%)", f"seeds at {after} (%)"]
    columns = ["mean over", *head, "r as measured", BETWEEN, "note"]
    of_means = Table("seeds", columns, [means], texts=3, prose=True)
    columns = ["benchmark", *head, CEILING, "r as measured", BETWEEN, "n"]
    of_benchmarks = Table("seeds", columns, [single], texts=3)
    yield Heading("Seeds")
    yield (
        "Several runs of a mixture are averaged. Seeds: their share of the variance of single runs. r between mixtures: the "
        "correlation without what seeds do at either stage and carry from one to the other; the ceiling is the r of the means "
        "over runs if that were 1."
    )
    yield from with_benchmarks("seeds", of_means, of_benchmarks)


def claims(results: Results) -> Iterator[Claim]:
    before, after = results.method["stages"]
    means = results.rows("seeds", protocol="category_seeds", category=ALL)
    for (quantity, scale), by_kind in pivot(means, "quantity scale", "other").items():
        first, second, r = by_kind.values()
        if math.isfinite(first.estimate) and math.isfinite(second.estimate):
            yield Claim(
                CAUTION,
                f"seeds account for part of the variance of {quantity} between single runs",
                f"{share_with_interval(first)}% at {before}, {share_with_interval(second)}% at {after}; between mixtures, "
                f"without them, mean r = {with_n(r)}",
                results.where(scale),
            )


PROTOCOL = Protocol("seeds", rows, shown, claims)
