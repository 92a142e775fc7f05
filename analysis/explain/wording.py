"""What an interval lets one say: the one place that words a claim as supported or not."""

from __future__ import annotations

from typing import Any

from evalengine.analysis.protocol import SUPPORTED, UNSUPPORTED, Claim


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
