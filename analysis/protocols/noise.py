"""How much of the spread between mixtures is noise from having only so many items.

All checkpoints see the same items, so what blurs a comparison of mixtures is not the sampling error of each accuracy
but the mixture-by-item interaction: a two-way analysis of variance separates it. Reliability is the share of the
observed variance between mixtures that would remain with endless items; for scores over items this is Cronbach's alpha.

References: Hoyt (1941), "Test reliability estimated by analysis of variance", Psychometrika 6, 153-160;
Spearman (1904), "The proof and measurement of association between two things", Am. J. Psychol. 15, 72-101
(attenuation); Cronbach et al. (1972), "The dependability of behavioral measurements" (correlated errors, as
twins answer the same items).

Dims: M mixtures, I items, C columns of weights.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis.claims import CAUTION, Claim
from evalengine.analysis.data.items import names
from evalengine.analysis.data.panel import Array, Panel
from evalengine.analysis.estimates.groups import (
    ITEM_NOISE,
    NO_NOTE,
    UNDEFINED,
    Data,
    Group,
    Label,
    Note,
    Statistic,
    means_over,
)
from evalengine.analysis.estimates.tables import Row, plain_row
from evalengine.analysis.figure import File, Folded, Heading, Part, Table, blocks, by, pivot
from evalengine.analysis.protocols.protocol import Protocol, StudyData
from evalengine.analysis.results import Results, with_interval
from evalengine.analysis.statistics.bootstrap import DEGENERATE_MOST, Basis
from evalengine.analysis.statistics.correlation import (
    BlockNumbers,
    Sample,
    degrees_of_freedom,
    parts_of,
    weighted_sums,
    within,
)
from evalengine.analysis.statistics.latent import Latent, latent_r, pooled, symmetric
from evalengine.analysis.statistics.ranges import CORRELATION, Range, always

RELIABILITY = "reliability"  # and the stage
CEILING = "ceiling"
WITHOUT_NOISE = "r without noise"
LIKELIHOOD = "profile likelihood"  # the interval of `latent_r`
ALIKE = "all mixtures have the same value"
NOISY = Note(ITEM_NOISE, "the mixtures differ no more than item noise makes them")


class ItemNoise(NamedTuple):
    """Noise variance of a mean over items before and after, and the covariance of the two."""

    before: float
    after: float
    between: float


def from_items(x_MI: Array, y_MI: Array, block_M: BlockNumbers | None = None) -> ItemNoise:
    """Mean products of the mixture-by-item residuals (within blocks) over the number of items; shapes (M, I) at each stage."""
    M, items = x_MI.shape
    parts = parts_of(M, block_M)
    freedom = (M - len(parts)) * (items - 1) * items

    def residual(v_MI: Array) -> Array:
        return v_MI - v_MI.mean(axis=0) - v_MI.mean(axis=1, keepdims=True) + v_MI.mean()

    ex, ey = (np.concatenate([residual(v_MI[part]) for part in parts]) for v_MI in (x_MI, y_MI))
    before, after, between = (float((p * q).sum() / freedom) for p, q in ((ex, ex), (ey, ey), (ex, ey)))
    return ItemNoise(before, after, between)


def from_errors(x_TM: Array, stderr_TM: Array | None, items: int) -> ItemNoise | None:
    """Sampling error of accuracies without their items: by standard errors, else binomial; None where neither is known.

    Nothing is paired, so the difficulty that mixtures share is in it: an upper bound of the noise.
    """
    variance_TM = x_TM * (1 - x_TM) / (items - 1) if items > 1 else np.full_like(x_TM, np.nan)
    if stderr_TM is not None:
        variance_TM = np.where(np.isfinite(stderr_TM), stderr_TM**2, variance_TM)
    if not variance_TM.size or not np.isfinite(variance_TM).all():
        return None
    before, after = variance_TM.mean(axis=1).tolist()
    return ItemNoise(before, after, 0.0)


class Measured(NamedTuple):
    """A benchmark at one scale: its noise, and in each column the unbiased variances and covariance of its values."""

    noise: ItemNoise
    covariance_3C: Array  # of the values before, after, and of both
    used_M: NDArray[np.bool_]  # the mixtures that have both
    freedom: int  # how many they are less the means that are taken out: one, or one a block
    said: Note = NO_NOTE  # where the noise is that of some items alone

    @property
    def n(self) -> int:
        """Mixtures."""
        return int(self.used_M.sum())

    @property
    def lost_in_noise(self) -> bool:
        """Whether the mixtures differ no more than the noise makes them differ, at one stage at least."""
        before, after, _ = self.covariance_3C[:, 0]
        return bool(min(before - self.noise.before, after - self.noise.after) <= 0.0)


ByBenchmark = dict[int, Measured | Note]


def measured(data: Data, quantity: str, scale: str) -> ByBenchmark:
    """Every benchmark's noise and covariance at a scale, or why they are not known."""
    panel = data.panel
    B, s = len(panel.benchmarks), panel.scales.index(scale)
    sample = data.sample(quantity, scale)
    out: ByBenchmark = {}
    for b in range(B):
        keep = np.asarray(np.isfinite(sample.x_VMC[[b, B + b], :, 0]).all(axis=0))
        noise, said = _noise(panel, quantity, s, b, keep)
        freedom = int(degrees_of_freedom(keep[None], sample.block_M)[0])
        if freedom < 3:
            out[b] = Note.undefined(data.too_few(keep))
        elif noise is None:
            why = "neither the number of items nor all standard errors are known"
            why = why if quantity == "accuracy" else f"the noise of {quantity} is known only from items"
            out[b] = Note.undefined(why)
        else:
            found = covariances(replace(sample, x_VMC=sample.x_VMC[[b, B + b]]), keep)
            out[b] = Measured(noise, found, keep, freedom, said)
    return out


def measured_by_scale(data: Data, quantity: str) -> dict[str, ByBenchmark]:
    """`measured` at every scale."""
    return {scale: measured(data, quantity, scale) for scale in data.panel.scales}


def reliability(data: Data, quantity: str, known: Mapping[str, ByBenchmark]) -> Group:
    """Per benchmark: reliability at both stages, and the ceiling that r could reach if nothing but noise blurred it.

    In a resample the noise stays what it is and the variances are resampled. The ceiling is the r of rho = 1:
    (sqrt((var - noise) (var' - noise')) + noise covariance) / sqrt(var var').
    """
    panel = data.panel
    kinds = (*(f"{RELIABILITY} {stage}" for stage in panel.stages), CEILING)
    found: dict[str, list[Statistic]] = {}
    for scale in panel.scales:
        found[scale] = []
        M, columns = data.sample(quantity, scale).w_MC.shape
        for b, one in known[scale].items():
            if isinstance(one, Note):
                value_3C, used_M, notes = np.full((3, columns), np.nan), np.zeros(M, dtype=bool), [one] * 3
            else:
                value_3C, used_M = _reliabilities(one), one.used_M
                alike = [Note.undefined(ALIKE) if np.isnan(x) else NO_NOTE for x in value_3C[:2, 0]]
                of_ceiling = alike[0].also(alike[1]) if any(note.kind for note in alike) else NO_NOTE
                of_ceiling = NOISY if (value_3C[:2, 0] <= 0).any() else of_ceiling
                notes = [one.said.also(note) for note in (*alike, of_ceiling)]
            for kind, value_C, note in zip(kinds, value_3C, notes, strict=True):
                label = Label(panel.categories[b], panel.benchmarks[b], kind)
                found[scale].append(Statistic(label, value_C, used_M, note))
    # Below 0 where the mixtures differ less than noise makes them.
    return Group.of("reliability", quantity, found, range_of=_range_of)


def _range_of(label: Label) -> Range:
    return CORRELATION if label.other == CEILING else Range(-math.inf, 1.0)


def without_noise(study: StudyData, quantity: str, known: Mapping[str, ByBenchmark]) -> list[Row]:
    """r without noise of every benchmark (`latent_r`), and the mean of a category and of all (`pooled`)."""
    panel, out = study.panel, []
    for scale in panel.scales:
        at = "reliability", quantity, scale
        for b, found in known[scale].items():
            label = Label(panel.categories[b], panel.benchmarks[b], WITHOUT_NOISE)
            if isinstance(found, Note):
                out.append(plain_row(*at, label, [math.nan], 0, found))
            else:
                note = found.said.also(NOISY if found.lost_in_noise else NO_NOTE)
                r = latent_of(found, study.options.level)
                out.append(plain_row(*at, label, r, found.n, note, interval=LIKELIHOOD))
        usable = {
            b: m
            for b, m in known[scale].items()
            if isinstance(m, Measured) and min(m.noise.before, m.noise.after) > 0
        }
        means = []
        for label, used, note in means_over(panel, usable) if usable else ():
            chosen = [usable[b] for b in used]
            value_C = np.full(study.plan.weight_MC.shape[1], np.nan)
            if chosen:
                covariance_B3C = np.array([m.covariance_3C for m in chosen])
                value_C = pooled(covariance_B3C, np.array([m.noise for m in chosen]))
            noisy = NOISY if chosen and np.isnan(value_C[0]) else NO_NOTE
            partly = ", ".join(panel.benchmarks[b] for b in used if usable[b].said.text)
            note = note.also(Note(text=partly and f"item noise of some items of {partly}")).also(noisy)
            used_PM = np.array([m.used_M for m in chosen]).reshape(-1, len(panel.mixtures))
            label = label._replace(other=WITHOUT_NOISE)
            means.append(Statistic.of_parts(label, value_C, Basis.of(used_PM), note))
        how = {"interval": "jackknife", "range_of": always(CORRELATION)}
        group = Group.of("category_reliability", quantity, {scale: means}, **how)
        out += study.rows(group) if means else []
    return out


def latent_of(found: Measured, level: float) -> Latent:
    """`latent_r` of the sample."""
    return _latent_of(tuple(found.covariance_3C[:, 0].tolist()), found.noise, found.freedom + 1, level)


@functools.lru_cache(maxsize=4096)  # the decisions ask for it too
def _latent_of(covariance: tuple[float, ...], noise: ItemNoise, n: int, level: float) -> Latent:
    return latent_r(symmetric(*covariance), symmetric(*noise), n, level)


def _noise(
    panel: Panel, quantity: str, s: int, b: int, keep_M: NDArray[np.bool_]
) -> tuple[ItemNoise | None, Note]:
    """The noise, None where it is not known, and what has to be known of it."""
    if panel.items and panel.row is not None and quantity in ("accuracy", "confidence"):
        known = panel.items[b]
        block_M = None if panel.block_M is None else panel.block_M[keep_M]
        x_TMI = known.scores(quantity)[panel.row[s, :, :, b][:, keep_M]].astype(np.float64)
        finite_I = np.asarray(np.isfinite(x_TMI).all(axis=(0, 1)))
        some = f"item noise is that of the {finite_I.sum()} of {len(finite_I)} items on which all scores are finite"
        freedom = degrees_of_freedom(keep_M[None, keep_M], block_M)[0]
        if freedom < 1 or finite_I.sum() < 2:
            return None, NO_NOTE
        before_MI, after_MI = x_TMI[:, :, finite_I]
        return from_items(before_MI, after_MI, block_M), NO_NOTE if finite_I.all() else Note(text=some)
    if quantity != "accuracy":
        return None, NO_NOTE
    stderr_TM = None if panel.stderr is None else panel.stderr[s, :, :, b][:, keep_M]
    x_TM = panel.values["accuracy"][s, :, :, b][:, keep_M]
    return from_errors(x_TM, stderr_TM, int(panel.n_items[b])), NO_NOTE


def _units(keep_M: NDArray[np.bool_], sample: Sample) -> tuple[Array, Array]:
    """(C,): mixtures behind each column, one fewer where it is the jackknife's that leaves one of them out; and those less the
    means that are taken out."""
    M, C = sample.w_MC.shape
    m = np.arange(min(M, C - 1))
    kept_CM = np.tile(keep_M, (C if C <= M + 1 else M + 2, 1))
    kept_CM[m + 1, m] &= sample.w_MC[m, m + 1] != 0.0
    column_C = np.minimum(np.arange(C), len(kept_CM) - 1)
    freedom = degrees_of_freedom(kept_CM, sample.block_M)
    return kept_CM.sum(axis=1)[column_C].astype(np.float64), freedom[column_C].astype(np.float64)


def covariances(sample: Sample, keep_M: NDArray[np.bool_]) -> Array:
    """(3, C): variances of the two variables, before and after, and their covariance, unbiased for the mixtures behind each
    column."""
    keep_M1 = keep_M[:, None]
    pair_2MC = np.stack([np.where(keep_M1, v - v[keep_M, :1].mean(), 0.0) for v in sample.x_VMC])
    if sample.block_M is not None:
        pair_2MC = within(pair_2MC, sample.w_MC * keep_M1, sample.block_M) * keep_M1
    x_MC, y_MC = pair_2MC
    ones_MC = np.broadcast_to(keep_M1.astype(np.float64), x_MC.shape)
    terms_6MC = np.stack([ones_MC, x_MC, y_MC, x_MC**2, y_MC**2, x_MC * y_MC])
    total, x, y, xx, yy, xy = weighted_sums(terms_6MC, sample.w_MC)
    with np.errstate(invalid="ignore", divide="ignore"):
        units, freedom = _units(keep_M, sample)
        mean_x, mean_y = x / total, y / total
        factor = units / freedom
        return np.stack(
            [
                factor * (xx / total - mean_x**2),
                factor * (yy / total - mean_y**2),
                factor * (xy / total - mean_x * mean_y),
            ]
        )


def _reliabilities(known: Measured) -> Array:
    """(3, C): both reliabilities and the ceiling; NaN where a variance, or for the ceiling a corrected one, is not positive."""
    xx, yy, _ = known.covariance_3C
    with np.errstate(invalid="ignore", divide="ignore"):
        # In a resample of equal values the variance is zero but for rounding.
        rel_x, rel_y = (
            np.where(v > max(1e-18, 1e-12 * v[0]), 1.0 - e / v, np.nan)
            for v, e in ((xx, known.noise.before), (yy, known.noise.after))
        )
        product = np.maximum(rel_x, 0.0) * np.maximum(rel_y, 0.0)
        ceiling = np.where(product > 0.0, np.sqrt(product) + known.noise.between / np.sqrt(xx * yy), np.nan)
    return np.stack([rel_x, rel_y, ceiling])


def rows(study: StudyData) -> list[Row]:
    out = []
    for quantity in study.panel.quantities:
        known = measured_by_scale(study.data, quantity)
        out += study.rows(reliability(study.data, quantity, known))
        out += without_noise(study, quantity, known)
    return out


def shown(results: Results) -> Iterator[Part]:
    found = [r for r in results.rows("reliability", protocol="reliability") if math.isfinite(r.estimate)]
    if not found:
        return
    yield Heading("Noise")
    yield (
        "Reliability: the share of the variance between mixtures that endless items would leave. The ceiling is the r that this "
        "noise would leave of a perfect one; r without noise is the correlation that endless items would show."
    )
    yield File("noise", means_table(results))
    of_ceilings = by([r for r in results.rows("reliability", other=CEILING) if r.n], lambda row: row.quantity)
    blank = [
        f"{quantity.capitalize()}: {said}"
        for quantity, mine in of_ceilings.items()
        if (said := no_ceiling(mine))
    ]
    yield Folded("Reliability of each benchmark", [File("reliability", benchmarks_table(results)), *blank])


def no_ceiling(rows: Sequence[Row]) -> str:
    """Why ceilings are blank, for those of `rows` without an estimate; "" where none is."""
    blank = [row for row in rows if not math.isfinite(row.estimate)]
    every = by(rows, lambda row: row.name)
    said = []
    for why, mine in by(blank, _why_blank).items():
        of = [
            name if len(some) == len(every[name]) else f"{name} ({', '.join(row.scale for row in some)})"
            for name, some in by(mine, lambda row: row.name).items()
        ]
        said.append(f"No ceiling{f' for {names(of, 12)}' if len(mine) < len(rows) else ''}: {why}.")
    return " ".join(said)


def _why_blank(row: Row) -> str:
    if row.note_kind in (UNDEFINED, ITEM_NOISE):
        return row.note
    return f"in more than {DEGENERATE_MOST:.0%} of the resamples {NOISY.text}"  # `rows_of` leaves it out then


def means_table(results: Results) -> Table:
    """Mean r of the categories and of all, as measured and without noise."""
    at = operator.attrgetter("category", "quantity", "scale")
    observed = {at(r): r for r in results.rows("transfer", protocol="category_transfer")}
    lines = [
        [*at(r), with_interval(observed.get(at(r))), with_interval(r), r.note]
        for r in results.rows("reliability", protocol="category_reliability")
    ]
    columns = ["mean over", "quantity", "scale", "r as measured", WITHOUT_NOISE, "note"]
    return Table("mean r without item noise", columns, blocks(lines, 1, 2), texts=3, prose=True, stacked=True)


def benchmarks_table(results: Results) -> Table:
    """Reliability at both stages, ceiling and r, of each benchmark with items."""
    found = [r for r in results.rows("reliability", protocol="reliability") if r.n]
    kinds = list(dict.fromkeys(r.other for r in found))
    measured = {(r.name, r.quantity, r.scale): r for r in results.rows("transfer", protocol="transfer")}
    lines = []
    for about, by_kind in pivot(found, "name quantity scale", "other").items():
        shown = [*map(by_kind.get, kinds), measured.get(about)]
        lines.append([*about, *map(with_interval, shown), str(next(iter(by_kind.values())).n)])
    columns = ["benchmark", "quantity", "scale", *kinds, "r as measured", "n"]
    return Table("reliability", columns, blocks(lines, 1, 2), texts=3)


def claims(results: Results) -> Iterator[Claim]:
    ceilings = results.rows("reliability", other=CEILING)
    noisy = [r for r in ceilings if r.note_kind == ITEM_NOISE]
    low = [r for r in ceilings if r.high < 0.7 and math.isfinite(r.high)]
    said = {
        "On these the mixtures differ no more than item noise makes them differ, so no r means much: {}.": noisy,
        "Item noise alone keeps r below 0.7 (interval of the ceiling) on {}.": low,
    }
    for text, found in said.items():
        if found:
            listed = names([f"{r.name} ({r.scale}, {r.quantity})" for r in found], 12)
            yield Claim(CAUTION, text.format(listed))


PROTOCOL = Protocol("reliability", rows, shown, claims)
