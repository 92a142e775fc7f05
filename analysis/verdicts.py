"""Verdicts on a benchmark's transfer, from intervals alone: see `verdicts`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import NamedTuple

import numpy as np

from evalengine.analysis import page
from evalengine.analysis.items import names
from evalengine.analysis.protocol import SUPPORTED, UNSUPPORTED, Claim
from evalengine.analysis.results import Results
from evalengine.analysis.tables import Row

ALPHA = 0.05
USEFUL_R = 0.5  # a transfer whose interval stays below this at every scale is called unreliable


class Verdict(NamedTuple):
    """One benchmark's verdict on one quantity, and the intervals it rests on."""

    quantity: str
    category: str
    benchmark: str
    verdict: str
    because: str


def verdicts(rows: list[Row], useful: float = USEFUL_R) -> list[Verdict]:
    """What the intervals of a benchmark's transfer allow to say.

    reliable: above 0 at every scale, and so says the permutation test (p below ALPHA: with few different values an
    interval alone is too sure). scale-dependent: not that, and the interval of the difference between the scales
    excludes 0. unreliable: below `useful` at every scale. undecided: the intervals are too wide for any of these.
    """
    out = []
    single = [row for row in rows if row.protocol == "transfer"]
    for quantity, category, benchmark in dict.fromkeys((r.quantity, r.category, r.name) for r in single):
        mine = [r for r in single if (r.quantity, r.name) == (quantity, benchmark)]
        scales = [r for r in mine if not r.contrast]
        contrast = [r for r in mine if r.contrast]
        known = [r for r in scales if np.isfinite([r.low, r.high]).all()]
        shown = "; ".join(
            f"{r.scale}: {r.estimate:.2f} [{r.low:.2f}, {r.high:.2f}], n = {r.n}" for r in known
        )
        if not known:
            verdict = "undefined"
            why = "; ".join(dict.fromkeys(r.note for r in scales if r.note)) or "no interval"
        elif len(known) == len(scales) and all(r.low > 0 and not r.p >= ALPHA for r in known):
            verdict, why = "reliable", f"the intervals lie above 0: {shown}"
        elif any(r.low > 0 or r.high < 0 for r in contrast if np.isfinite([r.low, r.high]).all()):
            r = contrast[0]
            verdict = "scale-dependent"
            why = f"{r.scale} is {r.estimate:.2f} [{r.low:.2f}, {r.high:.2f}], which excludes 0: {shown}"
        elif len(known) == len(scales) and all(r.high < useful for r in known):
            verdict, why = "unreliable", f"the intervals lie below {useful:g}: {shown}"
        else:
            verdict, why = "undecided", f"the intervals allow both none and a useful transfer: {shown}"
        out.append(Verdict(quantity, category, benchmark, verdict, why))
    return out


def verdict_section(results: Results) -> str:
    if not results.verdicts:
        return ""
    out = [
        "<h2>Verdicts</h2>",
        '<p class="hint">From intervals alone. Reliable: above 0 at every scale, p below 0.05. '
        "Scale-dependent: the difference between "
        "scales excludes 0. Unreliable: below 0.5 at every scale. Undecided: none of these. p: permutation test, the "
        "smallest over scales; q: Benjamini-Hochberg within a scale.</p>",
    ]
    for quantity in results.method["quantities"]:
        rows = []
        for v in (v for v in results.verdicts if v["quantity"] == quantity):
            mine = results.rows("transfer", protocol="transfer", quantity=quantity, name=v["benchmark"])
            mine = [r for r in mine if not r.contrast and math.isfinite(r.p)]
            p = [f"{min(r.p for r in mine):.3f}", f"{min(r.q for r in mine):.3f}"] if mine else ["–", "–"]
            name = v["verdict"]
            rows.append(
                [v["benchmark"], f'<b class="badge {escape(name)}">{escape(name)}</b>', *p, v["because"]]
            )
        out.append(f"<h3>{escape(quantity.capitalize())}</h3>")
        out.append(page.table(["benchmark", "verdict", "p", "q", "because"], rows, wrap=4))
    return "".join(out)


CLAIMS = {  # what a verdict allows to say
    "reliable": (
        SUPPORTED,
        "{count} benchmarks are reliable for {quantity} (interval above 0 and p below 0.05 at {scales}): {names}.",
    ),
    "unreliable": (
        SUPPORTED,
        "A useful transfer of {quantity} (r of 0.5 or more) is excluded at {scales} for {names}.",
    ),
    "scale-dependent": (
        SUPPORTED,
        "Transfer of {quantity} differs between scales on {names} (interval of the difference).",
    ),
    "undecided": (
        UNSUPPORTED,
        "Any verdict on {quantity} for {count} benchmarks; their intervals allow both no transfer and a strong one: {names}.",
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
