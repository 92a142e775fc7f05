"""What the data does and does not support, in plain words, from the intervals.

Every sentence carries its estimate, its interval and n. A claim needs an interval that excludes what it denies.
"""

from __future__ import annotations

from typing import NamedTuple

from evalengine.analysis.power import detectable
from evalengine.analysis.protocol import CAUTION, SUPPORTED, UNSUPPORTED
from evalengine.analysis.registry import PROTOCOLS
from evalengine.analysis.results import Results

FEW = 20  # mixtures below which the summary warns of small n


class Summary(NamedTuple):
    supported: list[str]
    unsupported: list[str]
    cautions: list[str]


def summarise(results: Results) -> Summary:
    """The claims of every protocol, and what to keep in mind about the design."""
    found = [claim for protocol in PROTOCOLS for claim in protocol.claims(results)]
    supported, unsupported, cautions = (
        [claim.text for claim in found if claim.kind == kind] for kind in (SUPPORTED, UNSUPPORTED, CAUTION)
    )
    return Summary(supported, unsupported, [*_small_n(results), *cautions, *_design(results)])


def _small_n(results: Results) -> list[str]:
    n = len(results.method["mixtures"])
    if not 4 <= n < FEW:
        return []
    return [
        f"There are {n} mixtures. A true r below {detectable(n):.2f} is missed more than one time in five, and an "
        "estimate near 0.6 is compatible with almost no transfer: read the intervals, not the points."
    ]


def _design(results: Results) -> list[str]:
    others = {
        "mixtures": "mixtures of this kind, on the same items.",
        "items": "items, with the same mixtures.",
    }.get(results.method["resampled"], "mixtures and other items.")
    return [
        "Intervals of single correlations hold the truth about 93 to 95 times in 100 at n = 9 (BCa, normal data), those of "
        "means over a category about 90 times: take the latter as somewhat too narrow.",
        f"Resampled: {results.method['resampled']}. The intervals say how far the result would move with other {others}",
        *(f"{note}." for note in results.method["notes"]),
    ]
