"""How many benchmarks have a transfer above a threshold: the share counted, and bounds on the true share.

The share of measured r above a threshold is no estimate of the share of true r above it: where all true r are 0.4, a third of
those measured over nine mixtures exceed 0.5, and resampling blurs them once more. What holds is a bound: of twenty tests
whether r is at most 0.5, how many hypotheses are false at least? Closed testing with Simes' inequality answers for all at
once. The same tests turned round bound the share from above.

References: Hommel (1988), Biometrika 75, 383-386; Goeman & Solari (2011), Statistical Science 26, 584-597. Simes' inequality
holds for independent tests and for those that depend positively.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from evalengine.analysis.estimates.groups import ALL, Group, Label, Note
from evalengine.analysis.estimates.inverting import p_at_most
from evalengine.analysis.estimates.tables import Row, plain_row
from evalengine.analysis.figure import Heading, Part, Table
from evalengine.analysis.protocols.protocol import Protocol, StudyData
from evalengine.analysis.protocols.transfer import transfer
from evalengine.analysis.results import Results, percent
from evalengine.analysis.statistics.bootstrap import ROUNDING, Array, Basis, Resamples

THRESHOLDS = (("above", 0.5), ("below", 0.3))


class Share(NamedTuple):
    """The share of measured values beyond a threshold, and bounds on that of the true ones."""

    estimate: float
    low: float
    high: float


def rows(study: StudyData) -> list[Row]:
    return [
        row
        for quantity in study.panel.quantities
        for row in benchmark_shares(transfer(study.data, quantity), study.plan, study.options.level)
    ]


def benchmark_shares(single: Group, plan: Resamples, level: float) -> list[Row]:
    """At each scale the shares of the benchmarks whose transfer lies above 0.5 and below 0.3."""
    out = []
    for scale, value_BC in single.values.items():
        known_B = np.isfinite(value_BC[:, 0])
        if not known_B.any():
            continue
        lost = [label.name for label, known in zip(single.labels, known_B, strict=True) if not known]
        note = Note.without(lost, " (no r)")
        for side, threshold in THRESHOLDS:
            basis = single.basis[scale].chosen(known_B)
            found = share_of(value_BC[known_B], plan, side, threshold, level, basis)
            label = Label(ALL, f"{side} {threshold:g}", f"share of {known_B.sum()}")
            n = int(basis.n_S.min())
            about = "transfer_share", single.quantity, scale, label
            out.append(plain_row(*about, found, n, note, interval="closed testing"))
    return out


def share_of(
    value_SC: Array,
    plan: Resamples,
    side: str,
    threshold: float,
    level: float = 0.95,
    basis: Basis | None = None,
) -> Share:
    """Of statistics that all have an estimate, at least one: the share that is "above" or "below" the threshold."""
    sign = 1.0 if side == "above" else -1.0
    p = p_at_most(sign * value_SC, plan, sign * threshold, basis)
    p = np.where(np.isnan(p), 0.5, p)  # no interval, no evidence either way
    low, not_low = (true_discoveries(p_S, (1.0 - level) / 2.0) / len(p) for p_S in (p, 1.0 - p))
    beyond = sign * value_SC[:, 0] > sign * threshold + ROUNDING  # Spearman's r of five mixtures may be 0.3
    return Share(float(beyond.mean()), low, 1.0 - not_low)


def true_discoveries(p: Array, alpha: float) -> int:
    """At least so many of the hypotheses are false, with an error of at most alpha (Hommel's number of the rest)."""
    p = np.sort(p)
    B = len(p)
    for i in range(B, 0, -1):  # of the i largest p-values: does Simes' test let all of them be true?
        if (p[B - i :] > alpha * np.arange(1, i + 1) / i).all():
            return B - i
    return B


def shown(results: Results) -> Iterator[Part]:
    lines = []
    for r in results.rows("shares"):
        shares = [f"{100 * x:.0f}%" for x in (r.estimate, r.low, r.high)]
        lines.append([r.quantity, r.scale, f"r {r.name}", *shares, str(r.n), r.note])
    if not lines:
        return
    columns = ["quantity", "scale", "benchmarks with", "measured"]
    columns += ["truly at least", "truly at most", "n", "note"]
    yield Heading("Shares of benchmarks")
    yield (
        "The share of measured r beyond a threshold is no estimate of the share of true ones: noise carries benchmarks across "
        f"it both ways. The bounds of a line hold in {percent(results.method['level'])} of studies (closed testing)."
    )
    yield Table("shares", columns, [lines], texts=3, prose=True)


PROTOCOL = Protocol("shares", rows, shown)
