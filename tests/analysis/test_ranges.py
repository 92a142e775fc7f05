"""No estimate and no end of an interval lies beyond what the statistic can be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_protocols import make

from evalengine.analysis.data.mixtures import Mixtures
from evalengine.analysis.estimates.tables import Row
from evalengine.analysis.study import CorrelateOptions, analyse, curve_rows

KINDS = ("", "bca_", "percentile_", "basic_", "fisher_")


def expected(row: Row) -> tuple[float, float]:
    """Written down apart from the product: of a statistic, then of a difference of two."""
    least, most = -1.0, 1.0
    if row.protocol in ("mean", "web_source") or row.other.startswith(("pairwise agreement", "top1")):
        least = -1.0 if row.quantity in ("ece", "r_align") else 0.0
    if row.other.startswith("reliability"):
        least = -math.inf
    if row.other.startswith(("pairwise loss", "regret")):
        least, most = 0.0, math.inf
    differences = (bool(row.contrast) or row.protocol == "web_source") + (
        row.quantity == "accuracy − confidence"
    )
    for _ in range(differences):
        least, most = least - most, most - least
    return least, most


@pytest.mark.parametrize("interval", ["auto", "jackknife", "basic"])
@pytest.mark.parametrize("block", ["none", "source"])
def test_every_interval_lies_in_the_range_of_its_statistic(interval: str, block: str) -> None:
    panel = make(seed=11)
    for x in panel.values.values():  # close to 0, with an outlier, and of r from -1 to 1
        x[...] = 0.004 + 0.003 * (x - x.min()) / np.ptp(x)
        x[:, :, 0] = 0.06
        x[:, 1, 1:, :2] = 0.011 - x[:, 0, 1:, :2]
    labels = {m: "abc"[k // 3] for k, m in enumerate(panel.mixtures)}
    mixtures = Mixtures(
        {"code share": {m: k % 3 / 3 for k, m in enumerate(panel.mixtures)}},
        {"source": labels, "web_source": labels},
    )
    options = CorrelateOptions(bootstrap=500, interval=interval, block=block)
    tables = analyse(panel, options, mixtures).tables
    checked, at_the_end = 0, set()
    for row in (row for rows in tables.values() for row in rows):
        if row.protocol in ("departure", "transfer_share"):
            continue
        least, most = expected(row)
        ends = [getattr(row, f"{kind}{end}") for kind in KINDS for end in ("low", "high")]
        for value in (row.estimate, *ends):
            if not math.isnan(value):
                assert least <= value <= most, row
                checked += 1
        if {least, most} & set(ends):
            at_the_end.add(row.protocol)
    assert checked > 5000 and len(at_the_end) > 4


def test_a_jackknife_interval_of_a_difference_of_correlations_ends_at_two() -> None:
    """Of r = 1 and r = -1, one of them by an outlier: the uncut interval of the difference ends beyond."""
    panel = make(seed=3)
    rng = np.random.default_rng(1)
    x = panel.values["accuracy"]
    x[0, 1, :, 0] = 1.0 - x[0, 0, :, 0]
    x[1, 0, :, 0] = x[1, 1, :, 0] + 0.05 * rng.normal(size=9)
    rows = analyse(panel, CorrelateOptions()).tables["transfer"]
    (row,) = (
        r for r in rows if (r.quantity, r.name, r.contrast) == ("accuracy", panel.benchmarks[0], "scale")
    )
    assert row.interval == "jackknife" and row.low < row.estimate < row.high == 2.0


def test_bands_of_reliability_curves_end_at_nought_and_one() -> None:
    panel = make(seed=5)
    S, _, M, B = panel.values["accuracy"].shape
    curves = np.zeros((S, 2, M, B, 15, 3))
    curves[..., 0] = 1 / 15
    curves[..., 2] = 1.0
    curves[:, :, 0, :, :, 2] = 0.7  # mean 0.967, half of the interval 0.077
    columns, rows = curve_rows(panel.__class__(**{**panel.__dict__, "curves": curves}), 0.95)
    ends = np.array([[row[columns.index(end)] for end in ("low", "high")] for row in rows])
    half = 2.306004 * 0.3 / 9
    np.testing.assert_allclose(ends, [[2.9 / 3 - half, 1.0]] * len(rows), rtol=1e-6)
