"""Claims, the sentences of the summary: what intervals and q support, and what they leave open."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from evalengine.analysis.results import with_interval

CLEAREST = 3  # claims of one kind


class Claim(NamedTuple):
    """A sentence of the summary, with its estimate, its interval and n. kind: one of the constants below."""

    kind: str
    text: str


SUPPORTED, UNSUPPORTED, CAUTION = "supported", "unsupported", "caution"
HEADINGS = {
    SUPPORTED: "What this data supports",
    UNSUPPORTED: "What it does not support",
    CAUTION: "Read with this in mind",
}


def by_kind(claims: Iterable[Claim]) -> dict[str, list[str]]:
    """The sentences under each of HEADINGS."""
    listed = list(claims)
    return {kind: [claim.text for claim in listed if claim.kind == kind] for kind in HEADINGS}


def side(*rows: Any) -> int:
    """1 where the intervals of all rows lie above 0, -1 where all lie below; 0 where one holds 0 or there is none."""
    if all(row.low > 0 for row in rows):
        return 1
    return -1 if all(row.high < 0 for row in rows) else 0


def claim(
    *rows: Any, said: str, above: str = "", below: str = "", otherwise: str, tested: bool = True
) -> Claim:
    """What the intervals of rows say together.

    above, below: the sentence, without its numbers, that intervals above or below 0 support; "" where that side supports none.
    otherwise: the clause that is not supported, as it follows "That". tested: whether a test beside the intervals (q, signs)
    agrees. said: the numbers.
    """
    what = {1: above, -1: below}.get(side(*rows), "") if tested else ""
    return supported(what, said) if what else unsupported(otherwise, said)


def supported(what: str, said: str) -> Claim:
    return Claim(SUPPORTED, f"{what}: {said}.")


def unsupported(clause: str, said: str) -> Claim:
    return Claim(UNSUPPORTED, f"That {clause}: {said}.")


def either(is_supported: bool, what: str, left_open: str) -> Claim:
    """The sentence that applies."""
    return Claim(SUPPORTED, what) if is_supported else Claim(UNSUPPORTED, left_open)


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
