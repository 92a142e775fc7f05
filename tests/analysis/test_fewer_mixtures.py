"""A scale or a benchmark with fewer mixtures than the panel: intervals and p are those of a study of these mixtures alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats as st
from test_protocols import NAMES, make

from evalengine.analysis.coverage import drawn, panel_of
from evalengine.analysis.data.cells import Cell
from evalengine.analysis.data.mixtures import Mixtures
from evalengine.analysis.data.orders import permutation_words
from evalengine.analysis.data.panel import Panel, assemble
from evalengine.analysis.estimates.contrasts import scale_contrast
from evalengine.analysis.estimates.inverting import inverted, jackknife_p_at_most
from evalengine.analysis.estimates.tables import Row
from evalengine.analysis.protocols import calibration
from evalengine.analysis.protocols.transfer import transfer
from evalengine.analysis.statistics.bootstrap import Basis, draw_resamples, intervals, jackknife_t
from evalengine.analysis.statistics.correlation import Sample, correlate
from evalengine.analysis.study import CorrelateOptions, analyse, fixed_data

CATEGORIES = {"a1": "A", "a2": "A", "a3": "A", "b1": "B", "b2": "B"}


def value(scale: str, stage: str, m: int, b: int, quantity: str) -> float:
    """The same number wherever it is asked for."""
    seed = [*map(ord, scale + stage + quantity), m, b]
    own, common = np.random.default_rng(seed).normal(), np.random.default_rng([m, b]).normal()
    return float(0.5 + 0.03 * own + 0.04 * common)


def study(mixtures: Sequence[int], at_small: Sequence[int] | None = None, lacking: str = "") -> Panel:
    """Of numbered mixtures; at_small: those that the smaller scale has, mixtures 5 and above lack the benchmark `lacking`."""
    cells = []
    for scale in ("1M", "2M"):
        for m in mixtures if scale == "2M" or at_small is None else at_small:
            for stage in ("pt", "sft"):
                for b, (name, category) in enumerate(CATEGORIES.items()):
                    if not (name == lacking and m > 4):
                        known = {q: value(scale, stage, m, b, q) for q in ("accuracy", "confidence")}
                        cells.append(
                            Cell(
                                f"{scale}-m{m:02}-{stage}",
                                scale,
                                f"m{m:02}",
                                stage,
                                name,
                                category,
                                known,
                                items=500,
                            )
                        )
    return assemble(cells, None)


def key(row: Row) -> tuple[str, ...]:
    return row.protocol, row.quantity, row.scale, row.category, row.name, row.other, row.contrast, row.minus


def jackknife_rows(panel: Panel, interval: str) -> dict[tuple[str, ...], Row]:
    """All rows with an interval of the jackknife; a resample changes nothing about those."""
    tables = analyse(panel, CorrelateOptions(bootstrap=100, interval=interval)).tables
    return {key(row): row for rows in tables.values() for row in rows if row.interval.startswith("jackknife")}


@pytest.mark.parametrize("interval", ["auto", "jackknife", "jackknife-z"])
def test_a_scale_with_fewer_mixtures_has_the_intervals_of_a_study_of_them_alone(interval: str) -> None:
    ours, alone = (jackknife_rows(panel, interval) for panel in (study(range(20), range(9)), study(range(9))))
    compared = [at for at in ours.keys() & alone.keys() if at[2] == "1M"]
    assert {ours[at].n for at in compared} == {9}
    assert len(compared) > 40
    for at in compared:
        for field in ("estimate", "low", "high"):
            assert getattr(ours[at], field) == pytest.approx(getattr(alone[at], field), abs=1e-9), at
        if interval == "auto" and ours[at].contrast:
            assert ours[at].p == pytest.approx(alone[at].p, abs=1e-9)


def test_a_mean_over_five_of_twenty_mixtures_has_their_t_interval_and_paired_test() -> None:
    panel = study(range(20), lacking="b2")
    plan = draw_resamples(20, 100, 0)
    group = calibration.means(panel, "accuracy", panel.values["accuracy"], plan.weight_MC)
    end = intervals(group.values["2M"], plan, 0.9, ["jackknife"], group.basis["2M"]).ends["jackknife"]
    before, after = panel.values["accuracy"][1, :, :, 4]
    for at, x in ((8, before), (9, after)):
        x = x[np.isfinite(x)]
        assert len(x) == 5
        np.testing.assert_allclose(end[at], st.t.interval(0.9, 4, x.mean(), st.sem(x)))
    p = inverted(group, plan)["stage", "2M"][0]
    assert p[4] == pytest.approx(st.ttest_rel(after, before, nan_policy="omit").pvalue)
    complete = panel.values["accuracy"][1, :, :, 0]
    assert p[0] == pytest.approx(st.ttest_rel(*complete).pvalue)


def test_bca_takes_its_acceleration_and_its_t_from_the_mixtures_of_the_statistic() -> None:
    plan = draw_resamples(20, 2000, 0)
    x = np.random.default_rng(1).lognormal(size=20)
    used = np.arange(20) < 6
    weight = plan.weight_MC * used[:, None]
    drawn = weight.sum(axis=0) > 0
    drawn_C = np.where(drawn, weight.sum(axis=0), 1.0)
    value_SC = np.where(drawn, (x * used) @ weight / drawn_C, np.nan)[None]
    found = intervals(value_SC, plan, 0.8, ["bca-t"], Basis(used[None], np.array([6]))).ends["bca-t"][0]
    # By hand, from the definition.
    left = np.array([np.delete(x[:6], m).mean() for m in range(6)])
    d = left.mean() - left
    a = (d**3).sum() / (6.0 * (d**2).sum() ** 1.5)
    resampled = value_SC[0, 21:]
    z0 = st.norm.ppf(np.nanmean(resampled < value_SC[0, 0]))
    z = z0 + st.t.ppf([0.1, 0.9], 5)
    expected = np.nanquantile(resampled, st.norm.cdf(z0 + z / (1.0 - a * z)))
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_a_mean_of_correlations_over_different_mixtures_goes_by_the_fewest() -> None:
    """Two r, over 20 and over 5 mixtures: with the degrees of freedom of 20 the interval holds the truth in 0.86 of draws."""
    rng = np.random.default_rng(2)
    plan, draws, r = draw_resamples(20, 100, 0), 1500, 0.3
    x = rng.normal(size=(draws, 2, 2, 20))
    x[:, :, 1] = r * x[:, :, 0] + np.sqrt(1 - r * r) * x[:, :, 1]
    x[:, 1, :, 5:] = np.nan
    x_VM, columns = x.reshape(-1, 20), plan.weight_MC[:, :21]
    two = correlate(
        Sample(x_VM[:, :, None], np.ascontiguousarray(columns)), np.arange(len(x_VM)).reshape(-1, 2)
    )
    difference = np.subtract(*two.reshape(draws, 2, -1).swapaxes(0, 1))
    basis = Basis(np.ones((draws, 20), dtype=bool), np.full(draws, 5))
    low, high = jackknife_t(difference, plan, 0.95, basis).T
    covered = float(((low <= 0) & (high >= 0)).mean())
    assert covered == pytest.approx(0.935, abs=0.02)  # three standard errors
    p = jackknife_p_at_most(difference, plan, basis=basis)
    assert ((np.minimum(p, 1 - p) < 0.025) == ((low > 0) | (high < 0))).all()


@pytest.mark.parametrize("data", ["normal", "t5"])
def test_a_difference_of_an_r_over_twenty_mixtures_and_one_over_five_is_covered(data: str) -> None:
    """3,000 differences of two r of 0 between scales: three standard errors are 0.012."""
    draws = 3000
    x = drawn(np.random.default_rng(4), (2, draws, 2), 20, 0.0, data)
    x[0, :, :, 5:] = np.nan
    panel = panel_of({"accuracy": np.ascontiguousarray(x.transpose(0, 2, 3, 1))}, ("A",) * draws)
    plan = draw_resamples(20, 100, 0)
    data_of = fixed_data(panel, plan, "pearson")
    contrast = scale_contrast(transfer(data_of, "accuracy"))
    (value_SC,), (basis,) = contrast.values.values(), contrast.basis.values()
    low, high = jackknife_t(value_SC, plan, 0.95, basis).T
    known = np.isfinite(low)
    assert known.mean() > 0.9 and set(basis.n_S) == {5}
    assert ((low <= 0) & (high >= 0))[known].mean() == pytest.approx(0.95, abs=0.014)
    used, freedom = plan.units(draws, basis)
    assert used.all() and set(freedom) == {3}
    alike = panel_of(
        {"accuracy": np.ascontiguousarray(x[1:].repeat(2, 0).transpose(0, 2, 3, 1)[..., :5])}, ("A",) * 5
    )
    complete = scale_contrast(transfer(fixed_data(alike, plan, "pearson"), "accuracy"))
    assert set(plan.units(5, complete.basis["2B"])[1]) == {19}


@pytest.mark.parametrize(("mixtures", "known"), [(20, 5), (12, 9), (12, 12)])
def test_intervals_of_means_hold_the_truth_as_often_as_they_say(mixtures: int, known: int) -> None:
    """4,000 means over normal values, so three standard errors are 0.01; with n - 1 of all mixtures 5 of 20 hold 0.918."""
    draws = 4000
    x_STMB = np.random.default_rng(3).normal(size=(1, 2, mixtures, draws // 2))
    x_STMB[:, :, known:] = np.nan
    panel = Panel(
        ("all",),
        ("pt", "sft"),
        tuple(map(str, range(mixtures))),
        tuple(map(str, range(draws // 2))),
        ("A",) * (draws // 2),
        {"accuracy": x_STMB},
        {},
        None,
        np.zeros(draws // 2, dtype=np.int64),
        (),
    )
    plan = draw_resamples(mixtures, 100, 0)
    group = calibration.means(panel, "accuracy", x_STMB, plan.weight_MC)
    low, high = jackknife_t(group.values["all"], plan, 0.95, group.basis["all"]).T
    assert ((low <= 0) & (high >= 0)).mean() == pytest.approx(0.95, abs=0.0105)


def test_the_orders_of_a_permutation_test_are_said_by_its_mixtures() -> None:
    def said(panel: Panel) -> str:
        return str(analyse(panel, CorrelateOptions(bootstrap=100)).method["permutations"])

    both = "all of up to 9 mixtures, 100000 sampled of more"
    assert said(study(range(9))) == "all"
    assert said(study(range(10))) == "100000 sampled"
    assert said(study(range(10), range(6))) == both
    # A scale of 20 whose benchmark b2 five have: that one, the mean of B and that of all are over these.
    panel = study(range(20), lacking="b2")
    assert said(panel) == both
    tables = analyse(panel, CorrelateOptions(bootstrap=100)).tables["transfer"]
    p = {
        row.name: row.p
        for row in tables
        if not row.contrast and (row.scale, row.quantity) == ("2M", "accuracy")
    }
    for name, orders in (("b2", 120), ("a1", 100_001)):
        assert orders * p[name] == pytest.approx(round(orders * p[name]), abs=1e-6)
    # Kendall's tau of 80 mixtures: 2^28 terms of 3,160 pairs.
    assert permutation_words(study(range(80)), "kendall") == "84947 sampled"


def test_the_orders_within_blocks_are_said_by_the_mixtures_of_each_test() -> None:
    sources = {f"m{m:02}": "xyz"[m // 3] for m in range(9)}
    factors = Mixtures({}, {"web_source": sources})
    options = CorrelateOptions(bootstrap=100)
    whole = analyse(study(range(9)), options, factors)
    assert whole.method["block"]["permutations"] == "216 orders, no p below 0.0046"
    part = analyse(study(range(9), range(8)), options, factors)
    assert part.method["block"]["permutations"] == "72 to 216 orders, no p below 0.0046"
    assert "(72 to 216 orders, no p below 0.0046)" in part.panel.notes[-1]


def test_similarity_of_the_matrices_has_the_n_of_both_and_a_mean_at_a_stage_that_of_its_benchmarks() -> None:
    panel = make(seed=5)
    panel.values["accuracy"][1, 1, 4, 2] = np.nan  # without a benchmark after fine-tuning alone
    rows = analyse(panel, CorrelateOptions()).tables["matrices"]
    n = {r.scale: r.n for r in rows if (r.protocol, r.quantity, r.contrast) == ("similarity", "accuracy", "")}
    assert n == {"240M": 9, "1B": 8}


def test_why_there_is_no_r_with_a_share() -> None:
    panel = make(seed=5)
    panel.values["accuracy"][0, 0, 5:, 0] = np.nan
    panel.values["accuracy"][0, 0, 4:, 1] = np.nan
    panel.values["accuracy"][0, 0, 3:, 2] = np.nan
    panel.values["accuracy"][0, 0, :, 3] = 0.5
    share = {m: 0.1 * k for k, m in enumerate(panel.mixtures)}
    rows = analyse(panel, CorrelateOptions(), Mixtures({"code share": share}, {})).tables["mixture_effects"]
    said = {
        r.name: r.note
        for r in rows
        if (r.protocol, r.quantity, r.scale, r.other)
        == ("mixture_effect", "accuracy", "240M", "pt: code share")
    }
    few, often, every, flat = (said[name] for name in (NAMES[2], NAMES[1], NAMES[0], NAMES[3]))
    assert few == "3 mixtures have both values, 4 are needed"
    # At most one of 4, or of 5, mixtures is in a resample of 9: none, or each alone.
    shares = [
        (5 / 9) ** 9 + 4 * ((6 / 9) ** 9 - (5 / 9) ** 9),
        (4 / 9) ** 9 + 5 * ((5 / 9) ** 9 - (4 / 9) ** 9),
    ]
    assert shares[0] > 0.05 > shares[1] and "no r" not in every and "not" not in every
    assert often == "4 mixtures vary too little: r is undefined in more than 5% of the resamples"
    assert flat == "9 mixtures vary too little: r is undefined in more than 5% of the resamples"
