"""Which items fine-tuning turns: tables `flips`, `flip_curves` and `flipped_items`.

An item is learned where it was wrong and is right after, lost the other way round. Many would turn without any teaching: near the
border an item is answered by luck. A twin shows how many: the same item before, answered by the other mixtures' models, which
this fine-tuning did not start from. The curves are the share right after, by the margin and by log10 p(gold) before, of the
items that were wrong and of those that were right. If only the margin counted, both would lie on one curve; the hysteresis is the
horizontal distance of the two logistic curves at one half, 0 without memory.

Dims: R runs, M mixtures, I items, K bins.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.claims import CAUTION, Claim, side, supported
from evalengine.analysis.estimates.groups import ALL
from evalengine.analysis.explain.choices import CLIP, Array
from evalengine.analysis.explain.design import by_mixture
from evalengine.analysis.explain.explainer import Explainer, Findings, StudyScores
from evalengine.analysis.explain.item_level import ItemLevel, item_levels
from evalengine.analysis.explain.logistic import fit
from evalengine.analysis.explain.means import Member, grouped, left_out, lines_of, over, over_bins
from evalengine.analysis.explain.student import jackknife, pooled, two_way_mean
from evalengine.analysis.figure import File, Folded, Part, Table, blocks, pivot, with_benchmarks
from evalengine.analysis.results import share_with_interval, with_interval
from evalengine.analysis.statistics.ranges import SHARE, Range, difference
from evalengine.errors import UserError

LEARNED, LOST, KEPT, NEVER = "learned", "lost", "kept", "never"
TWIN, EXCESS = "twin", "minus twin"
HYSTERESIS = "hysteresis"
BINS = 10
WRONG, RIGHT = "wrong before", "right before"
AXES = ("margin", "log10 p(gold)")
LISTED = 40  # items on the page
TEXT = 400  # characters of an item's text


class FlipRow(NamedTuple):
    """A share of the items, the same with a twin's before, or their difference; the hysteresis is in nats."""

    scale: str
    category: str
    benchmark: str  # "" of a mean over benchmarks
    measure: str
    against: str  # "", "twin" or "minus twin"
    estimate: float
    low: float
    high: float
    n: int
    note: str


class CurveRow(NamedTuple):
    """One of equally large bins of all items and runs; the interval is over mixtures."""

    scale: str
    axis: str
    category: str  # which items: wrong before, right before
    bin: int
    at: float  # mean on the axis
    estimate: float  # share right after
    low: float
    high: float
    items: int


class ItemRow(NamedTuple):
    """An item that more runs learned than lost, or the other way round."""

    benchmark: str
    item: str
    direction: str
    learned: int  # runs of all scales
    lost: int
    runs: int
    text: str


@dataclass(frozen=True)
class Turned(Member):
    value: dict[tuple[str, str], Array]  # by measure and against, (M, I)


def flip_rows(study: StudyScores) -> list[FlipRow]:
    out = []
    for scale, data in item_levels(study):
        for category, benchmark, chosen in grouped(list(cells(data))):
            without = "" if benchmark else left_out(study, data.benchmarks, category)
            for measure, against in chosen[0].value:
                possible = difference(SHARE) if against == EXCESS else SHARE
                each = [cell.value[measure, against] for cell in chosen]
                mean = two_way_mean(each, study.options.level, possible)
                out.append(FlipRow(scale, category, benchmark, measure, against, *mean[:3], mean.n, without))
        out.append(hysteresis(data, scale, study.options.level))
    return out


def cells(data: ItemLevel) -> Iterator[Turned]:
    mixtures = np.unique(data.mixture_R)
    before_MI, after_MI = (by_mixture(x, data.mixture_R) for x in (data.right_before, data.right_after))
    right_MI = by_mixture(data.right_before * data.right_after, data.mixture_R)
    others_MI = (before_MI.sum(axis=0) - before_MI) / max(len(mixtures) - 1, 1)
    value = {
        (LEARNED, ""): after_MI - right_MI,
        (LOST, ""): before_MI - right_MI,
        (KEPT, ""): right_MI,
        (NEVER, ""): 1.0 - before_MI - after_MI + right_MI,
    }
    if len(mixtures) > 1:
        value[LEARNED, TWIN] = (1.0 - others_MI) * after_MI
        value[LOST, TWIN] = others_MI * (1.0 - after_MI)
        for measure in (LEARNED, LOST):
            value[measure, EXCESS] = value[measure, ""] - value[measure, TWIN]
    for b, benchmark in enumerate(data.benchmarks):
        mine = data.benchmark_I == b
        yield Turned(data.categories[b], benchmark, {key: x_MI[:, mine] for key, x_MI in value.items()})


def hysteresis(data: ItemLevel, scale: str, level: float) -> FlipRow:
    """The margin at which half of the right items stay right, minus that at which half of the wrong ones turn."""
    mixtures = np.unique(data.mixture_R)
    kept = [data.mixture_R >= 0, *(data.mixture_R != m for m in mixtures)]
    distances, inside = zip(*(_distance(data, keep_R) for keep_R in kept), strict=True)
    value = np.array(distances)
    known = len(mixtures) > 1 and np.isfinite(value).all() and inside[0]
    ends = jackknife(value[:1], value[1:, None], level, possible=Range(-2.0 * CLIP, 2.0 * CLIP))
    found = (float(value[0]), float(ends.low[0]), float(ends.high[0])) if known else (np.nan,) * 3
    note = "" if known else "one of the two curves does not reach one half where there are items"
    return FlipRow(scale, ALL, "", HYSTERESIS, "", *found, len(mixtures), note)


def _distance(data: ItemLevel, keep_R: Array) -> tuple[float, bool]:
    """In nats, and whether both curves reach one half within the margins of 98% of their items."""
    at, inside = [], True
    for was in (1.0, 0.0):
        mine = data.right_before[keep_R] == was
        x, y = data.margin[keep_R][mine], data.right_after[keep_R][mine]
        if len(y) < 10 or not 0.0 < y.mean() < 1.0:
            return np.nan, False
        a, b = fit(np.column_stack([np.ones(len(x)), x]), y).coefficient_P
        at.append(-a / b if b != 0 else np.nan)
        low, high = np.quantile(x, (0.01, 0.99))
        inside = inside and b > 0 and bool(low <= at[-1] <= high)
    return at[0] - at[1], inside


def curve_rows(study: StudyScores) -> list[CurveRow]:
    out = []
    for scale, data in item_levels(study):
        for axis, x_RI in zip(AXES, (data.margin, data.logp / np.log(10.0)), strict=True):
            edges = np.quantile(x_RI, np.arange(1, BINS) / BINS)
            bin_RI = np.searchsorted(edges, x_RI, side="right")
            for (category, was), k in itertools.product(((WRONG, 0.0), (RIGHT, 1.0)), range(BINS)):
                mine = (bin_RI == k) & (data.right_before == was)
                if not mine.any():
                    continue
                found = pooled(data.right_after, mine, data.mixture_R, study.options.level, SHARE)
                place = (scale, axis, category, k, float(x_RI[mine].mean()))
                out.append(CurveRow(*place, *found, int(mine.sum())))
    return out


def item_rows(study: StudyScores) -> list[ItemRow]:
    """The items that turned most consistently, over all scales."""
    turned: dict[tuple[str, str], NDArray[np.int64]] = {}  # learned, lost, runs
    for _, data in item_levels(study):
        gained_I, lost_I = (
            ((data.right_before == was) & (data.right_after != was)).sum(axis=0) for was in (0, 1)
        )
        counts_I3 = np.stack([gained_I, lost_I, np.full_like(lost_I, len(data.margin))], axis=1)
        for b, item, counts in zip(data.benchmark_I, data.item_I, counts_I3, strict=True):
            key = data.benchmarks[b], item
            turned[key] = turned.get(key, 0) + counts
    found = []
    for direction, sign in ((LEARNED, 1), (LOST, -1)):
        more = {key: sign * int(learned - lost) for key, (learned, lost, _) in turned.items()}
        order = sorted(turned, key=lambda key: (-more[key], key))[:LISTED]
        found += [(key, direction) for key in order if more[key] > 0]
    texts = texts_of(study, {key for key, _ in found})
    return [
        ItemRow(*key, direction, learned, lost, runs, texts.get(key, ""))
        for key, direction in found
        for learned, lost, runs in [turned[key].tolist()]
    ]


def texts_of(study: StudyScores, keys: set[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """The last of each item's context and its right choice, where the folder of the data is given and holds the benchmark.

    Raises UserError where it holds other rows than were scored, whose ids may be the same."""
    if study.options.data is None:
        return {}
    from evalengine.benchmarks import BENCHMARKS, held, load_items

    wanted = {name: BENCHMARKS[name] for name, _ in sorted(keys) if name in BENCHMARKS}
    hashes = {one.name: one.data_hash for one in study.scores.benchmarks}
    found: dict[tuple[str, str], str] = {}
    for benchmark in held(study.options.data, wanted.values()) if wanted else []:
        some = load_items(benchmark, study.options.data)
        if hashes[benchmark.name] not in ("", some.data_hash):
            raise UserError(
                f"{benchmark.name}: {study.options.data} holds other items than were scored: give --data the folder that they"
                " were scored from"
            )
        for item in some.items:
            if (benchmark.name, item.id) in keys:
                text = f"{item.contexts[item.gold]}{item.continuations[item.gold]}"
                cut = "…" if len(text) > TEXT else ""
                found[benchmark.name, item.id] = cut + " ".join(text[-TEXT:].split())
    return found


# --- the report


def table(findings: Findings, benchmarks: bool = False) -> Table:
    columns = [(KEPT, ""), (LEARNED, ""), (LEARNED, TWIN), (LEARNED, EXCESS), (LOST, ""), (LOST, TWIN)]
    lines = [
        [name, scale, *map(share_with_interval, map(at.get, columns))]
        for name, scale, at in lines_of(findings, "flips", benchmarks, "measure against")
    ]
    head = [f"{measure}{', ' + against if against else ''} (%)" for measure, against in columns]
    return Table("flips", [over(benchmarks), "scale", *head], blocks(lines, 1), texts=2)


def items_table(findings: Findings) -> Table:
    found: list[Any] = findings.tables["flipped_items"]
    texts = any(r.text for r in found)
    head = ["benchmark", "item", "mostly", LEARNED, LOST, "runs", "text"]
    columns = len(head) if texts else len(head) - 1
    lines = [list(map(str, r[:columns])) for r in found]  # the columns are the fields
    return Table("flipped items", head[:columns], blocks(lines, 2), texts=3, prose=texts, stacked=texts)


def shown(findings: Findings) -> Iterator[Part]:
    before, after = findings.method["stages"]
    yield (
        f"From {before} to {after}: the share of the items that were right and stayed right, that were learned, and that "
        "were lost. A twin is the same item before, answered by other mixtures' models: what turns from there is the "
        "item's own ease, and luck. Below the twin, a model keeps what it had. Intervals are for other mixtures and items."
    )
    yield from with_benchmarks("flips", table(findings), table(findings, True))
    rows, across = findings.tables["flip_curves"], "tenth of the items, smallest first"
    yield File("flips", over_bins(rows, lambda r: f"by {r.axis}, {r.scale}", across, "share right after"))
    yield "Tenths of all items, the smallest on the left; of those that were wrong, and that were right."
    for r in findings.rows("flips", measure=HYSTERESIS):
        yield f"Hysteresis at {r.scale}: {f'{with_interval(r)} nats' if r.estimate == r.estimate else r.note}."
    ask = " Give explain the benchmarks' folder (--data) to see their texts."
    words = f"Over the runs of all scales.{'' if findings.method['data'] else ask}"
    yield Folded("The items that turned most consistently", [words, items_table(findings)])


def claims(findings: Findings) -> Iterator[Claim]:
    every = findings.means("flips", category=ALL, measure=LEARNED)
    for scale, at in pivot(every, "scale", "against").items():
        if TWIN not in at:
            continue
        turned, twin = (share_with_interval(at[against]) for against in ("", TWIN))
        said = f"{turned}% of the items, and {twin}% from another mixture's model before"
        if side(at[EXCESS]) > 0:
            what = "fine-tuning turns more items from wrong to right than mixtures differ by"
            yield supported(what, f"{said}, n = {at[EXCESS].n}", scale)
        else:
            what = "items that turn from wrong to right are no sign of what fine-tuning teaches, as any two models differ so"
            yield Claim(CAUTION, what, said, scale)


EXPLAINER = Explainer("flips", FlipRow, flip_rows, "Items that turn", shown=shown, said=claims)
CURVES = Explainer("flip_curves", CurveRow, curve_rows)
ITEMS = Explainer("flipped_items", ItemRow, item_rows)
