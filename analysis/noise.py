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

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalengine.analysis import page
from evalengine.analysis.correlation import weighted_sums
from evalengine.analysis.groups import ITEM_NOISE, UNDEFINED, Data, Group, Label, Note
from evalengine.analysis.items import names
from evalengine.analysis.panel import Array, Panel
from evalengine.analysis.protocol import CAUTION, Claim, Protocol, Study
from evalengine.analysis.results import Results, with_interval
from evalengine.analysis.tables import Row

CEILING = "ceiling"


class ItemNoise(NamedTuple):
    """Noise variance of a mean over items before and after, and the covariance of the two."""

    before: float
    after: float
    between: float


def from_items(x_MI: Array, y_MI: Array) -> ItemNoise:
    """Mean products of the mixture-by-item residuals over the number of items; shapes (M, I) at each stage."""
    M, items = x_MI.shape
    freedom = (M - 1) * (items - 1) * items

    def residual(v_MI: Array) -> Array:
        return v_MI - v_MI.mean(axis=0) - v_MI.mean(axis=1, keepdims=True) + v_MI.mean()

    ex, ey = residual(x_MI), residual(y_MI)
    before, after, between = (float((p * q).sum() / freedom) for p, q in ((ex, ex), (ey, ey), (ex, ey)))
    return ItemNoise(before, after, between)


def from_counts(x_M: Array, y_M: Array, items: int) -> ItemNoise:
    """Binomial sampling error of accuracies where only the number of items is known (no pairing, so an upper bound)."""
    before, after = (float(np.mean(v * (1 - v)) / (items - 1)) for v in (x_M, y_M))
    return ItemNoise(before, after, 0.0)


def reliability(data: Data, quantity: str) -> Group:
    """Per benchmark: reliability at both stages, the ceiling sqrt(rel * rel') that r could reach, and r without noise.

    r without noise = (cov - noise cov) / sqrt((var - noise) (var' - noise')), Spearman's correction with the errors'
    covariance where items are known. In a resample the noise stays what it is and the variances are resampled.
    """
    panel = data.panel
    B = len(panel.benchmarks)
    kinds = (f"reliability {panel.stages[0]}", f"reliability {panel.stages[1]}", CEILING, "r without noise")
    labels = [Label(panel.categories[b], panel.benchmarks[b], kind) for b in range(B) for kind in kinds]
    values, n, notes = {}, {}, {}
    for s, scale in enumerate(panel.scales):
        x_VMC, w_MC = data.sample(quantity, scale).x_VMC, data.sample(quantity, scale).w_MC
        rows, counts, said = [], [], []
        for b in range(B):
            keep = np.asarray(np.isfinite(x_VMC[[b, B + b], :, 0]).all(axis=0))
            noise = _noise(panel, quantity, s, b, keep)
            counts += [int(keep.sum())] * 4
            if noise is None or keep.sum() < 4:
                rows += [np.full(w_MC.shape[1], np.nan)] * 4
                why = "the number of items is unknown" if noise is None else "fewer than 4 mixtures"
                said += [Note(UNDEFINED, why)] * 4
                continue
            found = _corrected(x_VMC[b], x_VMC[B + b], w_MC, keep, noise)
            rows += list(found)
            low = any(found[k][0] <= 0 for k in range(2))
            noisy = Note(ITEM_NOISE, "the mixtures differ no more than item noise makes them")
            said += [Note(), Note()] + [noisy if low else Note()] * 2
        values[scale], n[scale], notes[scale] = np.array(rows), np.array(counts), said
    return Group("reliability", quantity, labels, values, n, notes)


def _noise(panel: Panel, quantity: str, s: int, b: int, keep_M: NDArray[np.bool_]) -> ItemNoise | None:
    if panel.items and panel.row is not None and quantity in ("accuracy", "confidence"):
        known = panel.items[b]
        values = known.correct_KI if quantity == "accuracy" else known.confidence_KI
        rows = panel.row[s, :, :, b][:, keep_M]
        if values.shape[1] < 2 or rows.shape[1] < 2:
            return None
        return from_items(*(values[rows[t]].astype(np.float64) for t in range(2)))
    items = int(panel.n_items[b]) if panel.n_items is not None else 0
    if quantity == "accuracy" and items > 1:
        x_TM = panel.values["accuracy"][s, :, :, b][:, keep_M]
        return from_counts(x_TM[0], x_TM[1], items)
    return None


def _units(keep_M: NDArray[np.bool_], w_MC: Array) -> Array:
    """(C,): mixtures behind each column, one fewer where it is the jackknife's that leaves one of them out."""
    M, C = w_MC.shape
    units_C = np.full(C, float(keep_M.sum()))
    m = np.arange(min(M, C - 1))
    units_C[m + 1] -= keep_M[m] & (w_MC[m, m + 1] == 0.0)
    return units_C


def _corrected(x_MC: Array, y_MC: Array, w_MC: Array, keep_M: NDArray[np.bool_], noise: ItemNoise) -> Array:
    """(4, C): both reliabilities, the ceiling, r without noise; NaN where a corrected variance is not positive."""
    keep_M1 = keep_M[:, None]
    x_MC, y_MC = (np.where(keep_M1, v - v[keep_M, :1].mean(), 0.0) for v in (x_MC, y_MC))
    ones_MC = np.broadcast_to(keep_M1.astype(np.float64), x_MC.shape)
    terms_6MC = np.stack([ones_MC, x_MC, y_MC, x_MC**2, y_MC**2, x_MC * y_MC])
    total, x, y, xx, yy, xy = weighted_sums(terms_6MC, w_MC)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Unbiased for the number of mixtures: a leave-one-out column has one fewer.
        units = _units(keep_M, w_MC)
        factor = units / (units - 1.0)
        mean_x, mean_y = x / total, y / total
        xx = factor * (xx / total - mean_x**2)
        yy = factor * (yy / total - mean_y**2)
        xy = factor * (xy / total - mean_x * mean_y)
        # In a resample of equal values the variance is zero but for rounding.
        rel_x, rel_y = (
            np.where(v > max(1e-18, 1e-12 * v[0]), 1.0 - e / v, np.nan)
            for v, e in ((xx, noise.before), (yy, noise.after))
        )
        ceiling = np.where(
            (rel_x > 0) & (rel_y > 0), np.sqrt(np.maximum(rel_x, 0) * np.maximum(rel_y, 0)), np.nan
        )
        clean = (xy - noise.between) / (np.sqrt(xx * yy) * ceiling)
    return np.stack([rel_x, rel_y, ceiling, clean])


def rows(study: Study) -> list[Row]:
    return [
        row for quantity in study.panel.quantities for row in study.rows(reliability(study.data, quantity))
    ]


def section(results: Results) -> str:
    found = [r for r in results.rows("reliability") if math.isfinite(r.estimate)]
    if not found:
        return ""
    kinds = list(dict.fromkeys(r.other for r in found))
    by_kind = {(r.scale, r.quantity, r.name, r.other): r for r in found}
    measured = {(r.scale, r.quantity, r.name): r for r in results.rows("transfer", protocol="transfer")}
    table = []
    for at in itertools.product(results.scales, results.method["quantities"], results.method["benchmarks"]):
        mine = [by_kind.get((*at, kind)) for kind in kinds]
        n = next((r.n for r in mine if r), None)
        if n is not None:
            scale, quantity, benchmark = at
            cells = [with_interval(r) for r in (*mine, measured.get(at))]
            table.append([benchmark, quantity, scale, *cells, str(n)])
    columns = ["benchmark", "quantity", "scale", *kinds, "r as measured", "n"]
    return (
        "<h2>Noise</h2>"
        '<p class="hint">Reliability: the share of the variance between mixtures that endless items would leave. The ceiling '
        "is the highest r that this noise allows; r without noise corrects for it and may leave −1 to 1 where there is "
        "little but noise.</p>"
        f"<details><summary>Reliability of each benchmark</summary>{page.table(columns, table)}</details>"
    )


def claims(results: Results) -> Iterator[Claim]:
    ceilings = results.rows("reliability", other=CEILING, contrast="")
    noisy = [r for r in ceilings if r.note_kind == ITEM_NOISE]
    low = [r for r in ceilings if r.high < 0.7 and math.isfinite(r.high)]
    for found, text in (
        (
            noisy,
            "On these the mixtures differ no more than item noise makes them differ, so no r means much: {}.",
        ),
        (low, "Item noise alone keeps r below 0.7 (interval of the ceiling) on {}."),
    ):
        if found:
            listed = names([f"{r.name} ({r.scale}, {r.quantity})" for r in found], 12)
            yield Claim(CAUTION, text.format(listed))


PROTOCOL = Protocol("reliability", rows, section, claims=claims)
