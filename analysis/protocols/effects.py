"""What the mixtures are made of, and what that does to the benchmarks, to categories, and to the alignment of confidence.

Shares: corr over mixtures of a value with each share, at both stages. The web source is a factor: with one web source per
mixture, differences between sources come from a linear model with the proportions as a second factor, which is all that
3 x 3 points can carry. Whether a value rises or falls steadily with the code share is tested by permuting mixtures.

Reference: Student (1908); any text on two-way analysis of variance without replication.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from evalengine.analysis.data.items import names
from evalengine.analysis.data.mixtures import Mixtures
from evalengine.analysis.data.panel import Array, Panel
from evalengine.analysis.estimates.groups import NO_NOTE, Data, Group, Label, Note, means_of
from evalengine.analysis.estimates.tables import Row, plain_row
from evalengine.analysis.figure import File, Folded, Heading, IntervalPlot, Part, Table, by
from evalengine.analysis.protocols.alignment import over_benchmarks
from evalengine.analysis.protocols.protocol import Protocol, StudyData
from evalengine.analysis.results import Results, p_value, signed
from evalengine.analysis.statistics.correlation import (
    BlockNumbers,
    benjamini_hochberg,
    orders_within,
    residuals,
)
from evalengine.analysis.statistics.ranges import CORRELATION, difference, of_quantity

CODE = "code share"
R_ALIGN = "r_align"
TOGETHER = "the mixtures with a value do not tell these web sources from the code shares"


class Variables(NamedTuple):
    """What is related to the mixtures' make-up: (V, M, C) values before, then after, and what each half of them is about."""

    x_VMC: Array
    names: list[tuple[str, str]]  # category and benchmark


def rows(study: StudyData) -> list[Row]:
    out: list[Row] = []
    if study.mixtures is not None:
        quantities = [*study.panel.quantities]
        if {"accuracy", "confidence"} <= set(quantities):
            quantities.append(R_ALIGN)
        for quantity in quantities:
            for group in share_effects(study.data, quantity, study.mixtures):
                out += study.rows(group)
            out += web_source_differences(study.data, quantity, study.mixtures, study.options.level)
            out += departures(study.data, quantity, study.mixtures, study.options.seed)
    return out


def variables(data: Data, quantity: str, scale: str) -> Variables:
    """The benchmarks' values; of r_align, each mixture's correlation of accuracy with confidence over a category's
    benchmarks, for the categories of 3 or more."""
    panel = data.panel
    if quantity != R_ALIGN:
        names = list(zip(panel.categories, panel.benchmarks, strict=True))
        return Variables(data.sample(quantity, scale).x_VMC, names)
    accuracy, confidence = (data.sample(q, scale).x_VMC for q in ("accuracy", "confidence"))
    B = len(panel.benchmarks)
    members = {c: index for c, index in panel.category_members().items() if len(index) >= 3}
    found = [
        over_benchmarks(accuracy[at], confidence[at], data.statistic)
        for t in range(2)
        for at in (np.array(index) + t * B for index in members.values())
    ]
    names = [(category, f"over {len(index)} benchmarks") for category, index in members.items()]
    return Variables(np.array(found).reshape(len(found), *accuracy.shape[1:]), names)


def share_effects(data: Data, quantity: str, mixtures: Mixtures) -> list[Group]:
    """corr over mixtures of each value with each share, at both stages; and the mean r of a category's benchmarks and of all."""
    panel = data.panel
    shares = {
        name: np.array([by_mixture.get(m, np.nan) for m in panel.mixtures])
        for name, by_mixture in mixtures.shares.items()
    }
    shares = {name: x for name, x in shares.items() if np.isfinite(x).sum() >= 4 and np.nanstd(x) > 1e-12}
    names = variables(data, quantity, panel.scales[0]).names
    if not shares or not names:
        return []
    B, V = len(names), 2 * len(names)
    pairs = np.array([(v, V + k) for k in range(len(shares)) for v in range(V)])
    labels = [Label(*names[v % B], at_stage(panel.stages[v // B], name)) for name in shares for v in range(V)]
    samples = {}
    for scale in panel.scales:
        sample = data.sample(panel.quantities[0] if quantity == R_ALIGN else quantity, scale)
        x_VMC = variables(data, quantity, scale).x_VMC
        extra = np.stack(list(shares.values()))[:, :, None]
        extra = np.broadcast_to(extra, (len(shares), *x_VMC.shape[1:]))
        samples[quantity, scale] = replace(sample, x_VMC=np.concatenate([x_VMC, extra]))
    single = replace(data, samples=samples).correlations("mixture_effect", quantity, labels, pairs)
    return [single] if quantity == R_ALIGN else [single, _means(single, panel)]


def _means(single: Group, panel: Panel) -> Group:
    """The mean r of a category's benchmarks, and of all, with each share and stage."""
    B, members = len(panel.benchmarks), panel.with_all()
    others = list(dict.fromkeys(label.other for label in single.labels))
    labels = [Label(c, f"mean of {len(index)}", other) for other in others for c, index in members.items()]
    every = [[k * B + b for b in index] for k in range(len(others)) for index in members.values()]
    return means_of(single, "category_effect", labels, every)


def web_source_differences(data: Data, quantity: str, mixtures: Mixtures, level: float) -> list[Row]:
    """Differences between web sources in a benchmark's value, a category's mean and the mean of all, in their own unit, with
    t intervals; where one cannot be had its row says why.

    Model: value = web source + code share (as a factor) + error, least squares over the mixtures that have the value. In a
    balanced factorial the difference is the plain difference of means; the error has n - sources - proportions + 1 degrees of
    freedom.
    """
    panel = data.panel
    if not mixtures.web_source or any(m not in mixtures.web_source for m in panel.mixtures):
        return []
    source_M = np.array([mixtures.web_source[m] for m in panel.mixtures])
    code = mixtures.shares.get(CODE, {})
    code_M = np.array([f"{code.get(m, 0.0):.6f}" for m in panel.mixtures])
    levels, shares = (list(dict.fromkeys(of_M.tolist())) for of_M in (source_M, code_M))
    # A column for each web source, then for each share but the first; no intercept.
    columns = [*(source_M == source for source in levels), *(code_M == share for share in shares[1:])]
    design = np.stack(columns, axis=1).astype(np.float64)
    within = difference(CORRELATION if quantity == R_ALIGN else of_quantity(quantity))
    if np.linalg.matrix_rank(design) >= len(design):  # there is no error to judge a difference by
        return []
    rows = []
    for scale, stage, (category, name), y in _values(data, quantity):
        keep = np.isfinite(y)
        n = int(keep.sum())
        freedom = n - int(np.linalg.matrix_rank(design[keep])) if n else 0
        found = _contrasts(design[keep], y[keep], len(levels), level, freedom)
        for i, j in itertools.combinations(range(len(levels)), 2):
            label = Label(category, name, at_stage(stage, f"{levels[j]} - {levels[i]}"))
            if (i, j) in found:
                estimate, half = found[i, j]
                three = estimate, *np.clip([estimate - half, estimate + half], *within)
                note = Note(text=f"t interval, {freedom} degrees of freedom")
            else:
                lacking = [source for source in (levels[i], levels[j]) if source not in source_M[keep]]
                why = "too few mixtures have a value" if freedom < 1 else TOGETHER
                why = f"no mixture of {' or '.join(lacking)} has a value" if lacking else why
                three, note = (math.nan,), Note.undefined(why)
            rows.append(plain_row("web_source", quantity, scale, label, three, n, note))
    return rows


def _values(data: Data, quantity: str) -> Iterator[tuple[str, str, tuple[str, str], Array]]:
    """Scale, stage, category and name of every variable and mean (of a category's benchmarks, of all), its values over mixtures;
    a mean is of the mixtures that have all of its benchmarks."""
    panel = data.panel
    for scale, (t, stage) in itertools.product(panel.scales, enumerate(panel.stages)):
        found = variables(data, quantity, scale)
        x_VM = np.split(found.x_VMC[:, :, 0], 2)[t]
        for name, x_M in zip(found.names, x_VM, strict=True):
            yield scale, stage, name, x_M
        for category, index in panel.with_all().items() if quantity != R_ALIGN else ():
            yield scale, stage, (category, f"mean of {len(index)}"), x_VM[index].mean(axis=0)


def departures(data: Data, quantity: str, mixtures: Mixtures, seed: int) -> list[Row]:
    """How far a value is from rising or falling steadily with the code share, with a permutation test.

    The estimate is the largest amount by which the mean at one level of the share lies above (positive) or below (negative)
    means at lower and at higher levels alike; 0 where the means are monotonic. Means are of what is left once each web
    source's mean is taken out. p: the share of orders of the mixtures (within web sources, where they are known) that give
    one as large. Every level needs two mixtures. q: Benjamini-Hochberg over the variables of a scale and stage.

    Reference: Laska & Meisner (1989), Biometrics 45, 1139-1151, the min test of one treatment against several; equal means
    are the least favourable monotonic case, so under others it rejects less often than it says.
    """
    panel = data.panel
    code = mixtures.shares.get(CODE, {})
    share_M = np.array([round(code.get(m, math.nan), 6) for m in panel.mixtures])
    web = mixtures.web_source
    source_M = [web[m] if all(n in web for n in panel.mixtures) else "" for m in panel.mixtures]
    block_M = np.unique(source_M, return_inverse=True)[1].astype(np.int64)
    if not _enough_levels(share_M[np.isfinite(share_M)]):
        return []
    rows: list[Row] = []
    for (scale, stage), of in itertools.groupby(_values(data, quantity), key=lambda value: value[:2]):
        found = []
        for _, _, name, y_M in of:
            keep = np.isfinite(y_M) & np.isfinite(share_M)
            estimate, p = departure(y_M[keep], share_M[keep], block_M[keep], seed)
            label, note = Label(*name, at_stage(stage, CODE)), NO_NOTE
            if math.isnan(estimate):
                note = Note.undefined("a level of the share has fewer than two mixtures with a value")
            found.append(
                plain_row("departure", quantity, scale, label, [estimate], int(keep.sum()), note, p=p)
            )
        q = benjamini_hochberg(np.array([row.p for row in found]))
        rows += [row._replace(q=float(one)) for row, one in zip(found, q, strict=True)]
    return rows


def _enough_levels(share_M: Array) -> bool:
    """Whether the mixtures have three levels of a share or more, each in two of them or more."""
    counts_K = np.unique(share_M, return_counts=True)[1]
    return len(counts_K) >= 3 and bool(counts_K.min() >= 2)


def departure(y_M: Array, share_M: Array, block_M: BlockNumbers, seed: int = 0) -> tuple[float, float]:
    """The largest departure of the means of `y_M` from a monotonic order of the shares, and its p; see `departures`.

    NaN with fewer than 3 levels of the share, or a level with fewer than 2 mixtures.
    """
    if not _enough_levels(share_M):
        return math.nan, math.nan
    levels, level_M = np.unique(share_M, return_inverse=True)
    left_M = residuals(y_M[None], block_M)[0]
    unit = float(y_M.std())
    order_MN, exact = orders_within(block_M, seed)
    shuffled_NM = np.concatenate([left_M[None], left_M[order_MN.T]])
    mean_NK = np.stack([shuffled_NM[:, level_M == k].mean(axis=1) for k in range(len(levels))], axis=1)
    departure_N = _departure(mean_NK)
    hits = int((np.abs(departure_N[1:]) >= abs(departure_N[0]) - 1e-12).sum())
    N = order_MN.shape[1]
    return unit * float(departure_N[0]), hits / N if exact else (1 + hits) / (1 + N)


def _departure(mean_NK: Array) -> Array:
    """(N,): how far the level that stands out most lies above or below means on both of its sides."""
    best_N = np.zeros(len(mean_NK))
    for k in range(1, mean_NK.shape[1] - 1):
        mean_N, left, right = mean_NK[:, k], mean_NK[:, :k], mean_NK[:, k + 1 :]
        above = mean_N - np.maximum(left.min(axis=1), right.min(axis=1))
        below = mean_N - np.minimum(left.max(axis=1), right.max(axis=1))
        for found in (np.maximum(above, 0.0), np.minimum(below, 0.0)):
            best_N = np.where(np.abs(found) > np.abs(best_N), found, best_N)
    return best_N


def _contrasts(
    design: Array, y: Array, levels: int, level: float, freedom: int
) -> dict[tuple[int, int], tuple[float, float]]:
    """By pair i < j of the first `levels` coefficients, their difference j - i and its half interval; of those whose difference
    the design tells from that of the other columns; none where there is no freedom."""
    from scipy.special import stdtrit

    found: dict[tuple[int, int], tuple[float, float]] = {}
    if freedom < 1:
        return found
    inverse = np.linalg.pinv(design)
    coefficient = inverse @ y
    residual = y - design @ coefficient
    covariance = inverse @ inverse.T * (residual @ residual / freedom)
    width = float(stdtrit(freedom, 0.5 + level / 2.0))
    for i, j in itertools.combinations(range(levels), 2):
        contrast = np.zeros(design.shape[1])
        contrast[[i, j]] = -1.0, 1.0
        if not np.allclose(contrast @ inverse @ design, contrast):  # it is not in the space of the rows
            continue
        variance = float(contrast @ covariance @ contrast)
        found[i, j] = float(contrast @ coefficient), width * math.sqrt(max(variance, 0.0))
    return found


def at_stage(stage: str, what: str) -> str:
    """The field `other` of a row."""
    return f"{stage}: {what}"


def shown(results: Results) -> Iterator[Part]:
    kinds = ("category_effect", "mixture_effect")
    shares = [row for kind in kinds for row in results.rows("mixture_effects", protocol=kind)]
    sources = results.rows("mixture_effects", protocol="web_source")
    if not shares and not sources:
        return
    yield Heading("Effects of the mixture")
    for quantity in dict.fromkeys(row.quantity for row in [*shares, *sources]):
        mine = [r for r in shares if r.quantity == quantity]
        if mine:
            shown = {r.other for r in mine} & _code_shares(results)
            shown = shown or set(list(dict.fromkeys(r.other for r in mine))[:2])
            first, rest = [r for r in mine if r.other in shown], [r for r in mine if r.other not in shown]
            yield Heading(f"{_words(quantity)}: correlation over mixtures with the share in the data", 3)
            yield _by_other(first)
            if rest:
                yield Folded("Other shares", [_by_other(rest)])
        yield from _web_sources(results, quantity, [r for r in sources if r.quantity == quantity])
    yield from _departures(results)
    code = _code_shares(results)
    chosen = [r for r in shares if r.protocol == "mixture_effect" and r.other in code]
    figure = _by_other([r for r in chosen if r.quantity != "confidence"])
    yield File("mixture_effect", figure, shown=False)


def _words(quantity: str) -> str:
    return quantity if quantity == R_ALIGN else quantity.capitalize()


def _departures(results: Results) -> Iterator[Part]:
    """Means over categories, and every variable whose departure is found."""
    rows = [
        [
            *(row.category, row.name, row.quantity, row.scale, row.other.partition(":")[0]),
            *(signed(row.estimate, 3), p_value(row.p), p_value(row.q)),
        ]
        for row in results.rows("mixture_effects", protocol="departure")
        if row.p < 0.05 or (row.name not in results.method["benchmarks"] and math.isfinite(row.estimate))
    ]
    if not rows:
        return
    columns = ["category", "of", "quantity", "scale", "stage", "departure", "p", "q"]
    words = (
        "Departure: how far the mean at one level of the share lies above (+) or below (-) the means at lower and at higher "
        "levels alike, web sources' means taken out; p from permuting mixtures within web sources. Means over categories, and "
        "benchmarks with p below 0.05."
    )
    yield Folded("Not monotonic in the code share?", [words, Table("", columns, [rows], texts=5)])


def _web_sources(results: Results, quantity: str, rows: Sequence[Row]) -> Iterator[Part]:
    stage = results.method["stages"][1]
    mine = [r for r in rows if r.other.startswith(at_stage(stage, ""))]
    web = [r for r in mine if math.isfinite(r.estimate)]
    if not web:
        return
    largest = math.ceil(100 * max(max(abs(r.low), abs(r.high)) for r in web)) / 100
    differences = _by_other(web)._replace(limit=largest, measure="difference")
    words = f"{'; '.join(dict.fromkeys(r.note for r in web))}; additive model with the code share."
    for why, without in by([r for r in mine if math.isnan(r.estimate)], lambda row: row.note).items():
        words += f" Not of {names(dict.fromkeys(_label(r) for r in without))}: {why}."
    yield Folded(f"{_words(quantity)} at {stage}: differences between web sources", [words, differences])


def _code_shares(results: Results) -> set[str]:
    return {at_stage(stage, CODE) for stage in results.method["stages"]}


def _by_other(rows: Sequence[Row]) -> IntervalPlot:
    return IntervalPlot(rows, _label, panel=lambda row: row.other, group=lambda row: row.category)


def _label(row: Row) -> str:
    """A benchmark, or a category with what is taken over it."""
    if row.quantity == R_ALIGN:
        return f"{R_ALIGN}, {row.category}"
    return f"{row.category} ({row.name})" if row.name.startswith("mean of") else row.name


PROTOCOL = Protocol("mixture_effects", rows, shown)
