"""Levels and calibration: the mean over mixtures of each benchmark's accuracy, confidence, ECE, Brier score, NLL, ...

And where it matters which confidence is taken: over raw log-likelihoods, or over the score that picks
(`evalengine.store.metrics`). Both are correlated between the stages (`transfer`); the one that was asked for is the quantity
`confidence` everywhere. On benchmarks that pick by log-likelihood per character the two can disagree about the sign of a
correlation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from evalengine.analysis.claims import CAUTION, Claim
from evalengine.analysis.data.items import names
from evalengine.analysis.data.panel import Panel
from evalengine.analysis.estimates.contrasts import contrast_group
from evalengine.analysis.estimates.groups import (
    ALL,
    NO_NOTE,
    SCALE,
    STAGE,
    Array,
    Group,
    Label,
    Mask,
    Note,
    Statistic,
    mean_over_mixtures,
)
from evalengine.analysis.estimates.inverting import inverted
from evalengine.analysis.estimates.tables import Row, rows_of
from evalengine.analysis.figure import Curves, File, Folded, Heading, Part, Table
from evalengine.analysis.protocols.protocol import Protocol, StudyData
from evalengine.analysis.results import Results, excludes_zero, signed
from evalengine.analysis.statistics.bootstrap import resamples
from evalengine.analysis.statistics.ranges import always, of_quantity

WORDS = {"ece": "ECE, debiased", "ece_plugin": "ECE, plug-in", "brier": "Brier", "nll": "NLL"}
WORDS |= {"accuracy": "accuracy", "confidence": "confidence"}
NONE = ("no mixture has a value", "no mixture has 30 items with a confidence")  # means, debiased ECE
OVER = {"raw": "the raw log-likelihoods", "own": "the score that picks"}


def rows(study: StudyData) -> list[Row]:
    """Mixtures are resampled, whatever the user resamples: the means are over them."""
    panel, options = study.panel, study.options
    plan = resamples(len(panel.mixtures), options.bootstrap, options.seed)
    out = []
    for quantity, value_STMB in {**panel.transferred, **panel.calibration}.items():
        group = means(panel, quantity, value_STMB, plan.weight_MC)
        out += rows_of(group, plan, options, inverted(group, plan))
    return out


def means(panel: Panel, quantity: str, value_STMB: Array, weight_MC: Array) -> Group:
    """Mean over mixtures of each benchmark's value at both stages; of the debiased ECE the root mean square, since it is the
    square that has no bias (`calibration_error`). Contrasts are over the mixtures that both sides have."""
    B = len(panel.benchmarks)
    before = panel.stages[0]
    labels = [
        Label(panel.categories[b], panel.benchmarks[b], stage) for b in range(B) for stage in panel.stages
    ]
    square = quantity == "ece"
    x_SLM = np.moveaxis(value_STMB, 3, 1).reshape(len(panel.scales), 2 * B, -1)
    found, of_stages = {}, {}
    later = [label._replace(minus=before) for label in labels[1::2]]
    for scale, x_LM in zip(panel.scales, x_SLM, strict=True):
        found[scale] = [
            Statistic(label, mean_C, known_M, NO_NOTE if known_M.any() else Note.undefined(NONE[square]))
            for label, mean_C, known_M in zip(labels, *_mean(x_LM, weight_MC, square), strict=True)
        ]
        of_stages[scale] = _differences(later, x_LM[1::2], x_LM[::2], weight_MC, square, "stages")
    how = {"interval": "jackknife", "contrast_interval": "jackknife"}
    group = Group.of("mean", quantity, found, range_of=always(of_quantity(quantity)), **how)
    contrasts = [contrast_group(group, STAGE, of_stages)]
    if len(panel.scales) > 1:
        minus = [label._replace(minus=panel.scales[0]) for label in labels]
        of_scales = _differences(minus, x_SLM[-1], x_SLM[0], weight_MC, square, "scales")
        contrasts.append(contrast_group(group, SCALE, {panel.scales[-1]: of_scales}))
    return replace(group, contrasts=tuple(contrasts))


def _mean(x_LM: Array, weight_MC: Array, square: bool) -> tuple[Array, Mask]:
    """(L, C) means over the mixtures with a value, or roots of the mean signed squares, and (L, M) which those are."""
    mean_LC = mean_over_mixtures(np.sign(x_LM) * x_LM**2 if square else x_LM, weight_MC)
    return np.sign(mean_LC) * np.sqrt(np.abs(mean_LC)) if square else mean_LC, np.isfinite(x_LM)


def _differences(
    labels: list[Label], minuend_LM: Array, subtrahend_LM: Array, weight_MC: Array, square: bool, sides: str
) -> list[Statistic]:
    known = [np.isfinite(side) for side in (minuend_LM, subtrahend_LM)]
    common = known[0] & known[1]
    (minuend_LC, _), (subtrahend_LC, _) = (
        _mean(np.where(common, side, np.nan), weight_MC, square) for side in (minuend_LM, subtrahend_LM)
    )
    notes = [
        Note.undefined(f"no mixture has a value at both {sides}")
        if not n
        else Note.partial(f"over the {n} mixtures that have a value at both {sides}")
        if n < most
        else NO_NOTE
        for n, most in zip(common.sum(axis=1), (known[0] | known[1]).sum(axis=1), strict=True)
    ]
    each = zip(labels, minuend_LC - subtrahend_LC, common, notes, strict=True)
    return [Statistic(*one) for one in each]


def shown(results: Results) -> Iterator[Part]:
    if not results.rows("calibration", quantity="ece"):
        return
    before, after = results.method["stages"]
    yield Heading("Calibration of items")
    yield (
        "Accuracy (up) against confidence (right) in 15 bins of equal size; the whiskers are t intervals over mixtures, the "
        "dashed line is perfect calibration. Calibration is always of the softmax over raw log-likelihoods. The debiased ECE is "
        "near 0, on either side, for a calibrated model; the plug-in one is above it, more so the fewer the items."
    )
    *smaller, largest = results.scales
    yield Folded(largest, [File("reliability", _curves(results, largest))], opened=True)
    for scale in reversed(smaller):
        yield Folded(scale, [_curves(results, scale)])
    yield Folded("Means over mixtures, with intervals", [_levels(results, "", [before, after])])
    yield Folded(f"{after} minus {before}, with intervals", [_levels(results, STAGE, [after])])


def _levels(results: Results, contrast: str, stages: Sequence[str]) -> Table:
    """A table of the means, or of their contrast."""
    rows = results.rows("calibration", contrast=contrast)
    at = {(row.quantity, row.scale, row.name, row.other): row for row in rows}
    words = WORDS | ({other: other} if (other := results.method["other_confidence"]) else {})
    lines = []
    for scale, benchmark, stage in itertools.product(results.scales, results.method["benchmarks"], stages):
        found = [at.get((quantity, scale, benchmark, stage)) for quantity in words]
        n = str(found[-1].n) if found[-1] else "–"
        lines.append([benchmark, scale, stage, *map(_level, found), n])
    columns = ["benchmark", "scale", "stage", *words.values(), "n"]
    title = "calibration, after minus before" if contrast else "calibration"
    return Table(title, columns, [lines], texts=3)


def _level(row: Row | None) -> str:
    if row is None or not math.isfinite(row.estimate) or not math.isfinite(row.low):
        return "–"
    return f"{row.estimate:.3f} [{row.low:.3f}, {row.high:.3f}]".replace("-", "−")


def _curves(results: Results, scale: str) -> Curves:
    """Of the points that have an interval."""
    return Curves([c for c in results.curves if c["scale"] == scale and c["low"] is not None])


def claims(results: Results) -> Iterator[Claim]:
    """One sentence, where there are two confidences: on which benchmarks and categories they tell different things."""
    taken = results.method["confidence"]
    if not results.method["other_confidence"]:
        return
    other = next(kind for kind in OVER if kind != taken)
    found = disagreements(results)
    yield Claim(
        CAUTION,
        f"Confidence is the softmax over {OVER[taken]}; over {OVER[other]} (--confidence {other}) "
        + (
            f"the sign of the transfer or the verdict would change on {names(found, 12)}."
            if found
            else "no verdict and no sign of a transfer whose interval excludes 0 would change."
        ),
    )


def disagreements(results: Results) -> list[str]:
    """Signs that differ although one interval excludes 0, and verdicts that differ; this confidence first, then the other."""
    other = results.method["other_confidence"]
    at = {(r.protocol, r.scale, r.category, r.name): r for r in results.rows("transfer", quantity=other)}
    out = []
    for row in results.rows("transfer", quantity="confidence"):
        twin = at.get((row.protocol, row.scale, row.category, row.name))
        if twin is None:
            continue
        if row.estimate * twin.estimate < 0.0 and (excludes_zero(row) or excludes_zero(twin)):
            of_mean = "all benchmarks" if row.category == ALL else row.category
            name = row.name if row.protocol == "transfer" else of_mean
            out.append(f"{name} ({row.scale}: r = {signed(row.estimate)} against {signed(twin.estimate)})")
    verdict = {(v["quantity"], v["benchmark"]): v["verdict"] for v in results.verdicts}
    for benchmark in results.method["benchmarks"]:
        mine, theirs = (verdict.get((quantity, benchmark)) for quantity in ("confidence", other))
        if mine != theirs:
            out.append(f"{benchmark} ({mine} against {theirs})")
    return out


PROTOCOL = Protocol("calibration", rows, shown, claims)
