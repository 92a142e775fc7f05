"""What a statistic can be: the range that its estimate and its interval are cut to.

An interval of the jackknife is symmetric and knows no bounds, and a ratio of variances less their noise may lie beyond what a
correlation can be. No true value lies beyond the range, so a cut interval holds it as often as before. A difference has the
range of what it is the difference of. p-values and verdicts are those of the uncut interval, which excludes a value where the
cut one does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Range(NamedTuple):
    """The least and the most that a value can be."""

    least: float
    most: float


ANY = Range(-math.inf, math.inf)
CORRELATION = Range(-1.0, 1.0)
SHARE = Range(0.0, 1.0)
POSITIVE = Range(0.0, math.inf)
# Of the mean of a quantity over items or mixtures. The debiased error of calibration has a sign.
QUANTITIES: Mapping[str, Range] = {
    "ece": CORRELATION,
    "loss": ANY,
    "brier": Range(0.0, 2.0),
    "entropy": POSITIVE,
    "nll": POSITIVE,
}
RangeOf = Callable[[Any], Range]  # of a statistic's label


def of_quantity(quantity: str) -> Range:
    """Of a mean of values of a panel: most of them are shares or probabilities."""
    return QUANTITIES.get(quantity, SHARE)


def unknown(label: Any) -> Range:
    """Of statistics that nothing is known about."""
    return ANY


def always(one: Range) -> RangeOf:
    """The same for every statistic of a group."""
    return lambda label: one


def difference(one: Range) -> Range:
    """Of a difference of two values of this range."""
    return Range(one.least - one.most, one.most - one.least)


def shifted(one: Range, by: float) -> Range:
    """Of a value of this range plus a constant."""
    return Range(one.least + by, one.most + by)


def of_difference(range_of: RangeOf) -> RangeOf:
    """Of differences of statistics."""
    return lambda label: difference(range_of(label))
