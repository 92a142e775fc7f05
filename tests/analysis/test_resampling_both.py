"""`--resample both` with rank correlations: every column against scipy on gathered copies of freshly drawn items."""

from __future__ import annotations

import numpy as np
import planted
import pytest
import scipy.stats as st

from evalengine.analysis.data.panel import Panel, load_panel
from evalengine.analysis.estimates.item_bootstrap import item_data
from evalengine.analysis.protocols.transfer import transfer
from evalengine.analysis.statistics.bootstrap import count_draws, draw_resamples
from evalengine.analysis.statistics.correlation import Sample, correlate
from evalengine.analysis.study import CorrelateOptions, analyse

OF = {"pearson": st.pearsonr, "spearman": st.spearmanr, "kendall": st.kendalltau}
COUNT = 150


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> Panel:
    """Seven mixtures on 25 items, so that many of their accuracies are equal."""
    folder = tmp_path_factory.mktemp("both")
    planted.write_study(folder, items=25, scales=["1B"], mixtures=tuple("abcdefg"), skip=["1B-c-sft"])
    return load_panel(folder)


@pytest.mark.parametrize("statistic", OF)
def test_every_column_is_the_correlation_of_drawn_mixtures_on_drawn_items(
    panel: Panel, statistic: str
) -> None:
    data, plan = item_data(panel, COUNT, 3, statistic, mixtures=True)
    found = transfer(data, "accuracy").values["1B"]
    M, B = len(panel.mixtures), len(panel.benchmarks)
    assert M == 6 and found.shape == (B, 1 + M + COUNT)
    seeds = np.random.SeedSequence([3, 1]).spawn(B)
    for b, known in enumerate(panel.items):
        right_KI = known.scores("accuracy")
        items = right_KI.shape[1]
        drawn = np.random.default_rng(seeds[b]).integers(0, items, (COUNT, items), dtype=np.uint32)
        tied = 0
        for c in range(1 + M + COUNT):
            # Jackknife columns leave out a mixture and hold all items.
            index = drawn[c - 1 - M] if c > M else np.arange(items)
            x, y = right_KI[panel.row[0, :, :, b]][:, :, index].mean(axis=2)
            copies = np.rint(plan.weight_MC[:, c] * (M - (1 <= c <= M))).astype(int)
            x, y = np.repeat(x, copies), np.repeat(y, copies)
            if np.ptp(x) < 1e-12 or np.ptp(y) < 1e-12:
                assert np.isnan(found[b, c])
                continue
            tied += len(set(x.round(9))) < (copies > 0).sum()
            assert found[b, c] == pytest.approx(OF[statistic](x.round(9), y.round(9))[0], abs=1e-9)
        assert tied > 10


@pytest.mark.parametrize("mixtures", [9, 70])  # ranks are counted up to 64 mixtures, above they are sorted
@pytest.mark.parametrize("statistic", OF)
def test_data_of_each_column_with_ties_and_missing_mixtures(statistic: str, mixtures: int) -> None:
    rng = np.random.default_rng(5)
    x_VMC = rng.integers(0, 6, (2, mixtures, 40)) / 6.0
    x_VMC[1, 3] = np.nan
    counts = count_draws(rng.integers(0, mixtures, (40, mixtures)), mixtures)
    found = correlate(Sample(x_VMC, counts.T / mixtures), np.array([[0, 1]]), statistic)[0]
    for c in range(40):
        copies = np.where(np.arange(mixtures) == 3, 0, counts[c])
        x, y = (np.repeat(x_VMC[v, :, c], copies) for v in range(2))
        assert found[c] == pytest.approx(OF[statistic](x, y)[0], abs=1e-9)


@pytest.mark.parametrize("statistic", ["spearman", "kendall"])
def test_intervals_of_both_are_percentiles_of_the_columns(panel: Panel, statistic: str) -> None:
    options = CorrelateOptions(
        bootstrap=COUNT, resample="both", statistic=statistic, seed=3, interval="percentile"
    )
    table = analyse(panel, options).tables["transfer"]
    rows = {r.name: r for r in table if r.quantity == "accuracy" and not r.contrast}
    found = transfer(item_data(panel, COUNT, 3, statistic, mixtures=True)[0], "accuracy").values["1B"]
    assert draw_resamples(6, COUNT, 3).count == COUNT
    for b, name in enumerate(panel.benchmarks):
        assert rows[name].estimate == pytest.approx(found[b, 0])
        ends = np.nanquantile(found[b, 7:], [0.025, 0.975])
        assert (rows[name].low, rows[name].high) == pytest.approx(tuple(ends), abs=1e-9)
        assert rows[name].n == 6
