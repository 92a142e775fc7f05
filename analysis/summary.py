"""What the data does and does not support, in plain words, from the intervals.

Every sentence carries its estimate, its interval and n. A claim needs an interval that excludes what it denies.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from evalengine.analysis.bootstrap import fisher
from evalengine.analysis.claims import CAUTION, Claim, by_kind
from evalengine.analysis.power import detectable
from evalengine.analysis.registry import PROTOCOLS
from evalengine.analysis.results import Results

FEW = 20  # mixtures below which the summary warns of small n


def summarise(results: Results, more: Iterable[Claim] = ()) -> dict[str, list[str]]:
    """The claims of every protocol, `more` of them, and what to keep in mind about the design, by kind."""
    found = by_kind([*(claim for protocol in PROTOCOLS for claim in protocol.claims(results)), *more])
    return found | {CAUTION: [*_small_n(results), *found[CAUTION], *_design(results)]}


def _small_n(results: Results) -> list[str]:
    counts = {  # by scale: mixtures of the benchmark that has most
        scale: max((row.n for row in results.rows("transfer", protocol="transfer", scale=scale)), default=0)
        for scale in results.scales
    }
    fewest = min(counts, key=counts.__getitem__)
    at = f" at {fewest}" if len(set(counts.values())) > 1 else ""
    mixtures, labels = counts[fewest], results.method["block"].get("labels", {})
    n = mixtures - max(len(set(labels.values())) - 1, 0)  # of a plain r with as many degrees of freedom
    if not 4 <= n < FEW:
        return []
    shown = 0.6
    low, high = fisher(np.array(shown), n)
    as_many = f", which compared within blocks say as much as {n}" if n < mixtures else ""
    return [
        f"There are {mixtures} mixtures{at}{as_many}. A true r below {detectable(n):.2f} is missed more than "
        f"one time in five, and a measured {shown:.2f} has a 95% interval of about [{low:.2f}, {high:.2f}]: read the "
        "intervals, not the points."
    ]


def _design(results: Results) -> list[str]:
    others = {
        "mixtures": "mixtures of this kind, on the same items.",
        "items": "items, with the same mixtures.",
    }.get(results.method["resampled"], "mixtures and other items.")
    return [
        f"Resampled: {results.method['resampled']}. The intervals say how far the result would move with other {others}",
        *(f"{note}." for note in results.method["notes"]),
    ]
