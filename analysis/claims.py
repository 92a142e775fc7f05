"""Claims, the sentences of the summary: what intervals and q support, and what they leave open."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from evalengine.analysis.results import with_interval

CLEAREST = 3  # claims of one kind


class Claim(NamedTuple):
    """A sentence of the summary.

    kind: one of the constants below. text: the whole sentence or, where there are numbers, the clause before them. said: the
    numbers, estimate, interval and n. at: the scale, "" where the text names it or there is but one. What is true at several
    scales is said once.
    """

    kind: str
    text: str
    said: str = ""
    at: str = ""

    @property
    def sentence(self) -> str:
        """What it says alone."""
        if not self.said:
            return self.text
        text = f"At {self.at}, {self.text}" if self.at else f"{self.text[0].upper()}{self.text[1:]}"
        return f"{text}: {self.said}."


SUPPORTED, UNSUPPORTED, CAUTION = "supported", "unsupported", "caution"
HEADINGS = {
    SUPPORTED: "What this data supports",
    UNSUPPORTED: "What it does not support",
    CAUTION: "Read with this in mind",
}


def by_kind(claims: Iterable[Claim]) -> dict[str, list[str]]:
    """The sentences under each of HEADINGS."""
    out: dict[str, dict[Claim, list[Claim]]] = {kind: {} for kind in HEADINGS}
    for one in dict.fromkeys(claims):
        alike = one._replace(said="", at="") if one.at else one
        out[one.kind].setdefault(alike, []).append(one)
    return {kind: list(map(_sentence, found.values())) for kind, found in out.items()}


def _sentence(alike: list[Claim]) -> str:
    """Claims of one text, each at a scale of its own, as one sentence with the numbers of each."""
    if len(alike) == 1:
        return alike[0].sentence
    *others, last = (one.at for one in alike)
    numbers = " ".join(f"{one.at}: {one.said}." for one in alike)
    return f"At {', '.join(others)} and {last}, {alike[0].text}. {numbers}"


def side(*rows: Any) -> int:
    """1 where the intervals of all rows lie above 0, -1 where all lie below; 0 where one holds 0 or there is none."""
    if all(row.low > 0 for row in rows):
        return 1
    return -1 if all(row.high < 0 for row in rows) else 0


def claim(
    *rows: Any, said: str, above: str, below: str = "", otherwise: str = "", tested: bool = True, at: str = ""
) -> Claim:
    """What the intervals of rows say together.

    above, below: the clause, without its numbers, that intervals above or below 0 support; "" where that side supports none.
    otherwise: the clause that is not supported, `above` by default. tested: whether a test beside the intervals (q, signs)
    agrees. said: the numbers. at: the scale.
    """
    what = {1: above, -1: below}.get(side(*rows), "") if tested else ""
    return supported(what, said, at) if what else unsupported(otherwise or above, said, at)


def supported(clause: str, said: str, at: str = "") -> Claim:
    return Claim(SUPPORTED, clause, said, at)


def unsupported(clause: str, said: str, at: str = "") -> Claim:
    return Claim(UNSUPPORTED, f"that {clause}", said, at)


def with_n(row: Any) -> str:
    """ "+0.57 [−0.15, +0.94], n = 9"."""
    return f"{with_interval(row)}, n = {row.n}"


def clearest(
    rows: Iterable[Any], alpha: float, words: Callable[[Any], Claim], left_open: str
) -> Iterator[Claim]:
    """Claims of the rows with the smallest q below alpha, and one of all that are not: its sentence says {count} for "2 of 9"."""
    tested = [row for row in rows if math.isfinite(row.q)]
    clear = sorted((row for row in tested if row.q < alpha), key=lambda row: row.q)
    yield from map(words, clear[:CLEAREST])
    if len(clear) < len(tested):
        count = f"{len(tested) - len(clear)} of {len(tested)}"
        yield Claim(UNSUPPORTED, left_open.replace("{count}", count))
