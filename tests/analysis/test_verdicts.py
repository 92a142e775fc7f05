"""Verdicts from rows: what intervals and tests must both say."""

from __future__ import annotations

import math

import pytest

from evalengine.analysis.estimates.groups import Label
from evalengine.analysis.estimates.tables import Row, plain_row
from evalengine.analysis.protocols.verdicts import verdicts


def row(scale: str, estimate: float, low: float, high: float, q: float, minus: str = "") -> Row:
    tests = {"p": q / 2, "q": q, "contrast": "scale" if minus else ""}
    label = Label("NLI", "rte", minus=minus)
    return plain_row("transfer", "accuracy", scale, label, (estimate, low, high), 9, **tests)


SURE = [row("1B", 0.9, 0.6, 0.99, 0.01), row("240M", 0.8, 0.5, 0.95, 0.04)]


@pytest.mark.parametrize(
    ("rows", "verdict", "because"),
    [
        (SURE, "reliable", "q is 0.040"),
        ([SURE[0], SURE[1]._replace(q=0.06)], "undecided", "the intervals lie above 0, but q is 0.060"),
        ([SURE[0], SURE[1]._replace(q=math.nan)], "undecided", "but q is –"),  # no test, no claim
        ([SURE[0], SURE[1]._replace(low=-0.1)], "undecided", "allow both"),
        ([row("1B", 0.0, -0.4, 0.4, 0.9), row("240M", 0.1, -0.3, 0.45, 0.8)], "unreliable", "below 0.5"),
        (
            [SURE[0], row("240M", -0.7, -0.9, 0.2, 0.3), row("1B", 1.6, 0.9, 1.9, 0.03, "240M")],
            "scale-dependent",
            "q 0.030",
        ),
        (  # an interval that excludes 0 is no verdict: of twenty, one does by chance
            [SURE[0], row("240M", -0.7, -0.9, 0.2, 0.3), row("1B", 1.6, 0.9, 1.9, 0.08, "240M")],
            "undecided",
            "allow both",
        ),
    ],
)
def test_verdict(rows: list[Row], verdict: str, because: str) -> None:
    (found,) = verdicts(rows)
    assert found.verdict == verdict
    assert because in found.because
