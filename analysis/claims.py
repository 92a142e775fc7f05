"""How a claim of the summary is worded: what the interval and q support, and what they leave open."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from evalengine.analysis.protocol import SUPPORTED, UNSUPPORTED, Claim
from evalengine.analysis.results import with_interval

CLEAREST = 3  # claims of one kind


def claim(is_supported: bool, supported: str, left_open: str) -> Claim:
    """The sentence that applies."""
    return Claim(SUPPORTED, supported) if is_supported else Claim(UNSUPPORTED, left_open)


def with_n(row: Any) -> str:
    """ "+0.57 [−0.15, +0.94], n = 9"."""
    return f"{with_interval(row)}, n = {row.n}"


def clearest(
    rows: Iterable[Any], alpha: float, words: Callable[[Any], str], left_open: Callable[[str], str]
) -> Iterator[Claim]:
    """Claims of the rows with the smallest q below alpha, and one of all that are not: `left_open` is given "2 of 9"."""
    tested = [row for row in rows if math.isfinite(row.q)]
    clear = sorted((row for row in tested if row.q < alpha), key=lambda row: row.q)
    for row in clear[:CLEAREST]:
        yield Claim(SUPPORTED, words(row))
    if len(clear) < len(tested):
        yield Claim(UNSUPPORTED, left_open(f"{len(tested) - len(clear)} of {len(tested)}"))
