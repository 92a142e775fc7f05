"""Verdicts on a benchmark's transfer, from intervals and tests held at a false-discovery rate: see `verdicts`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from evalengine.analysis.claims import SUPPORTED, UNSUPPORTED, Claim
from evalengine.analysis.data.items import names
from evalengine.analysis.estimates.groups import SCALE
from evalengine.analysis.estimates.tables import Row
from evalengine.analysis.figure import File, Heading, Mark, Part, Table
from evalengine.analysis.results import Results, excludes_zero, p_value

ALPHA = 0.05  # false-discovery rate over the benchmarks of a quantity
USEFUL_R = 0.5  # a transfer whose interval stays below this at every scale is called unreliable


class Verdict(NamedTuple):
    """One benchmark's verdict on one quantity, and the intervals it rests on."""

    quantity: str
    category: str
    benchmark: str
    verdict: str
    because: str


def verdicts(rows: list[Row]) -> list[Verdict]:
    """What the intervals and tests of a benchmark's transfer allow to say.

    reliable: the interval lies above 0 and the permutation test's q is below ALPHA, both at every scale. scale-dependent:
    not that, the interval of the difference between the scales excludes 0 and its q is below ALPHA. unreliable: below USEFUL_R
    at every scale. undecided: none of these. q is Benjamini and Hochberg's over all benchmarks of a quantity: without it, twenty
    benchmarks with equal transfer at both scales would hold a false "scale-dependent" in four studies of five.
    """
    out = []
    single = [row for row in rows if row.protocol == "transfer" and not row.contrast]
    between = {(r.quantity, r.name): r for r in rows if r.protocol == "transfer" and r.contrast == SCALE}
    for quantity, category, benchmark in dict.fromkeys((r.quantity, r.category, r.name) for r in single):
        scales = [r for r in single if (r.quantity, r.name) == (quantity, benchmark)]
        contrast = between.get((quantity, benchmark))
        known = [r for r in scales if np.isfinite([r.low, r.high]).all()]
        shown = "; ".join(
            f"{r.scale}: {r.estimate:.2f} [{r.low:.2f}, {r.high:.2f}], n = {r.n}" for r in known
        )
        if not known:
            verdict = "undefined"
            why = "; ".join(dict.fromkeys(r.note for r in scales if r.note)) or "no interval"
        elif len(known) == len(scales) and all(r.low > 0 and r.q < ALPHA for r in known):
            verdict, why = "reliable", f"the intervals lie above 0 and q is {_q(known)}: {shown}"
        elif contrast and excludes_zero(contrast) and contrast.q < ALPHA:
            r, verdict = contrast, "scale-dependent"
            why = f"{r.at} is {r.estimate:.2f} [{r.low:.2f}, {r.high:.2f}], q {_q([r])}: {shown}"
        elif len(known) == len(scales) and all(r.high < USEFUL_R for r in known):
            verdict, why = "unreliable", f"the intervals lie below {USEFUL_R:g}: {shown}"
        elif len(known) == len(scales) and all(r.low > 0 for r in known):
            verdict, why = "undecided", f"the intervals lie above 0, but q is {_q(known)}: {shown}"
        else:
            verdict, why = "undecided", f"the intervals allow both none and a useful transfer: {shown}"
        out.append(Verdict(quantity, category, benchmark, verdict, why))
    return out


def _q(rows: Iterable[Row]) -> str:
    q = [row.q for row in rows]
    return p_value(math.nan if any(map(math.isnan, q)) else max(q))


def verdict_section(results: Results) -> Iterator[Part]:
    if not results.verdicts:
        return
    yield Heading("Verdicts")
    yield (
        "Reliable: the interval lies above 0 and q is below 0.05, at every scale. Scale-dependent: the interval of the "
        "difference between scales excludes 0 and its q is below 0.05. Unreliable: the interval lies below 0.5 at every "
        "scale. Undecided: none of these. p: permutation test, the largest over scales; q: Benjamini-Hochberg over the "
        "benchmarks of a scale, the largest over scales; q of the difference: over the benchmarks."
    )
    for quantity, table in verdict_tables(results).items():
        yield Heading(quantity.capitalize(), 3)
        yield File(f"verdicts_{quantity}", table)


def verdict_tables(results: Results) -> dict[str, Table]:
    """By quantity: each benchmark's verdict, and the largest p and q over scales."""
    differences = ["q of the difference"] if len(results.scales) > 1 else []
    columns = ["benchmark", "verdict", "p", "q", *differences, "because"]
    out = {}
    for quantity in results.method["quantities"]:
        by_category: dict[str, list[list[str | Mark]]] = {}
        for v in (v for v in results.verdicts if v["quantity"] == quantity):
            at = {"protocol": "transfer", "quantity": quantity, "name": v["benchmark"]}
            single, between = (results.rows("transfer", contrast=kind, **at) for kind in ("", SCALE))
            found = [_largest(r.p for r in single), _largest(r.q for r in single)]
            if differences:
                found.append(_largest(r.q for r in between))
            verdict = Mark(v["verdict"], v["verdict"])
            row: list[str | Mark] = [v["benchmark"], verdict, *map(p_value, found), v["because"]]
            by_category.setdefault(v["category"], []).append(row)
        title, body = f"verdicts on {quantity}", list(by_category.values())
        out[quantity] = Table(title, columns, body, texts=2, prose=True, stacked=True)
    return out


def _largest(values: Iterable[float]) -> float:
    return max((value for value in values if not math.isnan(value)), default=math.nan)


CLAIMS = {  # what a verdict allows to say
    "reliable": (
        SUPPORTED,
        "{count} benchmarks are reliable for {quantity} (interval above 0 and q below 0.05 at {scales}): {names}.",
    ),
    "unreliable": (
        SUPPORTED,
        "A useful transfer of {quantity} (r of 0.5 or more) is excluded at {scales} for {names}.",
    ),
    "scale-dependent": (
        SUPPORTED,
        "Transfer of {quantity} differs between scales on {names} (q of the difference below 0.05).",
    ),
    "undecided": (
        UNSUPPORTED,
        "Any verdict on {quantity} for {count} benchmarks: neither no transfer nor a strong one is excluded for {names}.",
    ),
    "undefined": (
        UNSUPPORTED,
        "Anything about {quantity} on {names}: no correlation is defined (see the notes).",
    ),
}


def verdict_claims(results: Results, quantity: str) -> Iterator[Claim]:
    scales = "every scale" if len(results.scales) > 1 else "this scale"
    found = [v for v in results.verdicts if v["quantity"] == quantity]
    for verdict, (kind, text) in CLAIMS.items():
        if mine := [v["benchmark"] for v in found if v["verdict"] == verdict]:
            count = f"{len(mine)} of {len(found)}"
            yield Claim(
                kind, text.format(count=count, quantity=quantity, scales=scales, names=names(mine, 12))
            )
