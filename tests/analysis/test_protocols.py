"""Every protocol of the study against a few lines of NumPy and SciPy, on the sample and on gathered resamples."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats as st
from planted import MIXTURES
from test_panel import cell

from evalengine.analysis.data.mixtures import Mixtures, from_sources
from evalengine.analysis.data.panel import Cell, Panel, assemble
from evalengine.analysis.protocols import decisions
from evalengine.analysis.protocols.alignment import alignment
from evalengine.analysis.protocols.coherence import coherence
from evalengine.analysis.protocols.effects import (
    TOGETHER,
    departure,
    departures,
    share_effects,
    web_source_differences,
)
from evalengine.analysis.protocols.matrices import by_chance, matrices
from evalengine.analysis.protocols.matrices import rows as matrix_rows
from evalengine.analysis.protocols.protocol import StudyData
from evalengine.analysis.protocols.transfer import category_transfer, transfer
from evalengine.analysis.protocols.true_regret import TOP1_JUDGED
from evalengine.analysis.statistics.bootstrap import draw_resamples, enumerate_resamples
from evalengine.analysis.study import CorrelateOptions, analyse, fixed_data
from evalengine.errors import UserError

CATEGORY = {"a1": "Science", "a2": "Science", "a3": "Science", "b1": "NLI", "b2": "NLI", "c1": "Semantic"}
NAMES = ["a1", "a2", "a3", "b1", "b2", "c1"]  # in the panel's order: Science, NLI, Semantic


def make(seed: int = 0, mixtures: int = 9, scales: tuple[str, ...] = ("240M", "1B")) -> Panel:
    rng = np.random.default_rng(seed)
    names = [f"V{v}P{p}" for v in (1, 2, 3) for p in (0, 1, 2)][:mixtures]
    cells = []
    for scale, mixture, stage, name in itertools.product(scales, names, ("pt", "sft"), NAMES):
        made = cell(scale, mixture, stage, benchmark=name, category=CATEGORY[name])
        cells.append(
            made._replace(values={"accuracy": rng.uniform(0.2, 0.9), "confidence": rng.uniform(0.3, 0.9)})
        )
    return assemble(cells, None)


@pytest.fixture(scope="module")
def setup():
    """The panel, its data, and the mixtures of column 0 and of three resamples as index lists."""
    panel = make()
    plan = draw_resamples(9, 100, seed=3)
    index = np.random.default_rng(3).integers(0, 9, (100, 9))
    columns = {0: np.arange(9), **{1 + 9 + r: index[r] for r in (0, 5, 99)}}
    columns |= {1 + m: np.delete(np.arange(9), m) for m in (0, 8)}
    return panel, fixed_data(panel, plan, "pearson"), columns


def r(x, y) -> float:
    return st.pearsonr(x, y)[0]


def test_transfer_and_category_means(setup) -> None:
    panel, data, columns = setup
    single = transfer(data, "confidence")
    means = category_transfer(single, panel)
    assert [label.name for label in single.labels] == NAMES
    for (s, scale), (c, chosen) in itertools.product(enumerate(panel.scales), columns.items()):
        x = panel.values["confidence"][s][:, chosen]
        expected = [r(x[0, :, b], x[1, :, b]) for b in range(6)]
        np.testing.assert_allclose(single.values[scale][:, c], expected, atol=1e-9)
        grouped = [np.mean(expected[:3]), np.mean(expected[3:5]), expected[5], np.mean(expected)]
        np.testing.assert_allclose(means.values[scale][:, c], grouped, atol=1e-9)
    assert [label.category for label in means.labels] == ["Science", "NLI", "Semantic", "All"]


def test_a_resample_without_spread_in_a_benchmark_averages_the_others() -> None:
    """a1 takes one value in 6 of 9 mixtures: 2.6% of the resamples have only those."""
    panel = make(seed=1)
    panel.values["accuracy"][:, 0, :6, 0] = 0.25
    data = fixed_data(panel, enumerate_resamples(9), "pearson")
    single = transfer(data, "accuracy")
    means = category_transfer(single, panel)
    known = np.isfinite(single.values["1B"])
    lost = ~known[0] & known[1:].all(axis=0)
    assert data.plan is not None and lost.sum() > 1_000
    assert data.plan.multiplicity_R[lost[10:]].sum() / data.plan.multiplicity_R.sum() == pytest.approx(
        (6 / 9) ** 9, rel=1e-3
    )
    science, everything = means.values["1B"][0], means.values["1B"][-1]
    np.testing.assert_allclose(science[lost], single.values["1B"][1:3, lost].mean(axis=0))
    np.testing.assert_allclose(
        everything[known.all(axis=0)], single.values["1B"][:, known.all(axis=0)].mean(axis=0)
    )


@pytest.mark.parametrize(("benchmarks", "said"), [(1, "0 pairs have"), (2, "1 pair has"), (3, "")])
def test_similarity_of_matrices_takes_three_pairs(benchmarks: int, said: str) -> None:
    """Two would have an r of 1 or -1 with each other."""
    panel = make()
    names = [f"a{b}" for b in range(4)]
    index = range(benchmarks)
    few = replace(
        panel,
        benchmarks=tuple(names[:benchmarks]),
        categories=("A",) * benchmarks,
        values={q: x[..., index].copy() for q, x in panel.values.items()},
        row=panel.row[..., index],
        n_items=panel.n_items[index],
    )
    plan = draw_resamples(9, 100, seed=3)
    *_, group = matrices(fixed_data(few, plan, "pearson"), "accuracy")
    (found,), (note,) = group.values["1B"], group.notes["1B"]
    assert np.isfinite(found[0]) != bool(said)
    assert note.text == (f"{said} an r at both stages, 3 are needed" if said else "")
    if benchmarks == 3:  # one of three pairs lost
        few.values["accuracy"][1, 0, 5:, 0] = np.nan
        few.values["accuracy"][1, 0, :4, 1] = np.nan
        *_, group = matrices(fixed_data(few, plan, "pearson"), "accuracy")
        assert np.isnan(group.values["1B"][0]).all() and "2 pairs have" in group.notes["1B"][0].text


def test_coherence_averages_the_pairs_that_a_resample_defines() -> None:
    panel = make(seed=1)
    panel.values["accuracy"][:, 0, :6, 0] = 0.25
    data = fixed_data(panel, enumerate_resamples(9), "pearson")
    science = panel.category_members()["Science"]
    pairs = np.array([(i, j) for i in science for j in science if i < j])
    assert 0 in science and len(science) >= 3
    each = data.correlate("accuracy", "1B", pairs)
    found = coherence(data, "accuracy")
    row = [label[:2] for label in found.labels].index(("Science", panel.stages[0]))
    known = np.isfinite(each)
    some = known.any(axis=0)  # not where a resample holds one mixture nine times
    assert (some & ~known.all(axis=0)).sum() > 1_000
    expected = [column[np.isfinite(column)].mean() for column in each[:, some].T]
    np.testing.assert_allclose(found.values["1B"][row][some], expected, rtol=1e-12)
    assert np.isnan(found.values["1B"][row][~some]).all()


def test_matrices_and_their_similarity(setup) -> None:
    panel, data, columns = setup
    groups: dict[str, dict[tuple[str, str], np.ndarray]] = {}
    *of_pairs, similarity = matrices(data, "accuracy")
    for group in of_pairs:
        at = groups.setdefault(group.protocol, {})
        at |= {(label.name, label.other): group.values["1B"][k] for k, label in enumerate(group.labels)}
    assert {name: len(found) for name, found in groups.items()} == {
        "matrix_cross": 36,
        "matrix_pt": 15,
        "matrix_sft": 15,
    }
    alike = similarity.values["1B"]
    for c, chosen in columns.items():
        x = panel.values["accuracy"][1][:, chosen]
        for (i, a), (j, b) in itertools.product(enumerate(NAMES), repeat=2):
            assert groups["matrix_cross"][a, b][c] == pytest.approx(r(x[0, :, i], x[1, :, j]), abs=1e-9)
        pairs = list(itertools.combinations(range(6), 2))
        before, after = ([r(x[t, :, i], x[t, :, j]) for i, j in pairs] for t in range(2))
        np.testing.assert_allclose(
            [groups["matrix_pt"][NAMES[i], NAMES[j]][c] for i, j in pairs], before, atol=1e-9
        )
        assert alike[0, c] == pytest.approx(r(before, after), abs=1e-9)


def test_matrices_in_blocks_are_the_same_rows(setup, monkeypatch: pytest.MonkeyPatch) -> None:
    _, data, _ = setup
    study = StudyData(data, draw_resamples(9, 100, seed=3), CorrelateOptions())
    whole = {(*row[:6], row.contrast): row for row in matrix_rows(study)}
    monkeypatch.setattr("evalengine.analysis.protocols.matrices.BLOCK_BYTES", 4 * 110 * 8)  # four pairs of 15
    parts = matrix_rows(study)
    assert len(parts) == len(whole)
    for row in parts:
        same = whole[(*row[:6], row.contrast)]
        assert (row.n, row.estimate, row.low) == pytest.approx((same.n, same.estimate, same.low), abs=1e-9)


def test_the_matrix_says_how_many_intervals_exclude_zero_by_chance() -> None:
    """With nothing planted, as many of the 30 pairs of different benchmarks as the sentence says, give or take."""
    shares = []
    for seed in range(6):
        rows = analyse(make(seed, scales=("1B",)), CorrelateOptions(bootstrap=400)).tables["matrices"]
        cross = [row for row in rows if row.protocol == "matrix_cross" and row.quantity == "accuracy"]
        off = [row for row in cross if row.name != row.other]
        found = sum(row.low > 0 or row.high < 0 for row in off)
        (said,) = by_chance(cross, 0.95)
        assert said.startswith(f"accuracy at 1B: {found} of 30 intervals") and "about 2 would" in said
        shares.append(found / 30)
    assert 0.0 < np.mean(shares) < 0.15


def test_a_stage_whose_correlations_are_all_alike_has_no_similarity() -> None:
    """They differ by rounding alone, and a correlation of that would be a number all the same."""
    panel = make()
    panel.values["accuracy"][1, 0] = np.outer(np.linspace(0.2, 0.7, 9), np.linspace(0.5, 1.0, 6))
    data = fixed_data(panel, draw_resamples(9, 100, 0), "pearson")
    *_, similarity = matrices(data, "accuracy")
    assert similarity.protocol == "similarity" and np.isnan(similarity.values["1B"]).all()


def test_coherence(setup) -> None:
    panel, data, columns = setup
    found = coherence(data, "accuracy")
    at = {(label.category, label.name): k for k, label in enumerate(found.labels)}
    for c, chosen in columns.items():
        x = panel.values["accuracy"][0][:, chosen]
        value = found.values["240M"][:, c]
        for t, stage in enumerate(("pt", "sft")):
            expected = np.mean([r(x[t, :, i], x[t, :, j]) for i, j in ((0, 1), (0, 2), (1, 2))])
            assert value[at["Science", stage]] == pytest.approx(expected, abs=1e-9)
        cross = np.mean([r(x[0, :, i], x[1, :, j]) for i, j in itertools.permutations(range(3), 2)])
        assert value[at["Science", "cross"]] == pytest.approx(cross, abs=1e-9)
        assert np.isnan(value[at["Semantic", "pt"]])
    assert "one benchmark, so no pairs" in found.notes["240M"][at["Semantic", "pt"]].text


def test_alignment_in_three_readings_and_its_persistence(setup) -> None:
    panel, data, columns = setup
    found = alignment(data)
    assert [group.labels[0].name for group in found] == [
        "within models", "persistence", "cells", "across mixtures",
    ]  # fmt: skip
    for c, chosen in columns.items():
        a, conf = (panel.values[q][1][:, chosen][:, :, :3] for q in ("accuracy", "confidence"))
        value = {
            tuple(label[:3]): x[c] for g in found for label, x in zip(g.labels, g.values["1B"], strict=True)
        }
        each = [[r(a[t, m], conf[t, m]) for m in range(len(chosen))] for t in range(2)]
        for t, stage in enumerate(("pt", "sft")):
            assert value["Science", "cells", stage] == pytest.approx(
                r(a[t].ravel(), conf[t].ravel()), abs=1e-9
            )
            assert value["Science", "within models", stage] == pytest.approx(np.mean(each[t]), abs=1e-9)
            expected = np.mean([r(a[t, :, b], conf[t, :, b]) for b in range(3)])
            assert value["Science", "across mixtures", stage] == pytest.approx(expected, abs=1e-9)
        assert value["Science", "persistence", "over mixtures"] == pytest.approx(r(*each), abs=1e-9)


def test_pairwise_decisions(setup) -> None:
    panel, data, columns = setup
    found = decisions.pairwise(data, "accuracy")
    for c, chosen in columns.items():
        x, y = panel.values["accuracy"][0][:, chosen, 0]
        pairs = [(i, j) for i, j in itertools.combinations(range(len(chosen)), 2) if chosen[i] != chosen[j]]
        right = np.mean([(x[i] - x[j]) * (y[i] - y[j]) > 0 for i, j in pairs])
        lost = np.mean([max(y[i], y[j]) - (y[i] if x[i] > x[j] else y[j]) for i, j in pairs])
        np.testing.assert_allclose(found.values["240M"][:2, c], [right, lost], atol=1e-9)


def test_ties_in_decisions() -> None:
    cells = [cell("1B", f"m{m}", t, v) for m, pair in enumerate([(1, 1), (1, 2), (2, 2), (3, 1)])
             for t, v in zip(("pt", "sft"), pair, strict=True)]  # fmt: skip
    panel = assemble(cells, None)
    found = decisions.pairwise(fixed_data(panel, draw_resamples(4, 100, 0), "pearson"), "accuracy")
    # pairs (x, y): 01 tied/up .5, 02 up/up 1, 03 up/tied .5, 12 up/tied .5, 13 up/down 0, 23 up/down 0
    np.testing.assert_allclose(found.values["1B"][:2, 0], [2.5 / 6, (0.5 * 1 + 1 + 1) / 6])


def test_share_effects_and_web_sources() -> None:
    panel = make()
    plan = draw_resamples(9, 100, 0)
    sources = {m: {f"web_{m[1]}": 0.65 - 0.2 * int(m[3]), "code": 0.25 + 0.1 * int(m[3]), "books": 0.1 + 0.1 * int(m[3])}
               for m in MIXTURES}  # fmt: skip
    mixtures = from_sources(sources)
    assert mixtures.web_source["V2P1"] == "web_2"
    assert mixtures.shares["code share"]["V1P2"] == pytest.approx(0.45)
    code = [sources[m]["code"] for m in panel.mixtures]
    data = fixed_data(panel, plan, "pearson")
    found, means = share_effects(data, "accuracy", mixtures)
    at = {(label.name, label.other): k for k, label in enumerate(found.labels)}
    expected = r(panel.values["accuracy"][1, 1, :, 2], code)
    assert found.values["1B"][at["a3", "sft: code share"], 0] == pytest.approx(expected, abs=1e-9)

    of_means = {(label.category, label.other): k for k, label in enumerate(means.labels)}
    r_of = [r(panel.values["accuracy"][1, 1, :, b], code) for b in range(6)]
    for category, members in (("Science", r_of[:3]), ("All", r_of)):
        value = means.values["1B"][of_means[category, "sft: code share"], 0]
        assert value == pytest.approx(np.mean(members), abs=1e-9)

    rows = web_source_differences(data, "accuracy", mixtures, 0.95)
    row = next(x for x in rows if (x.scale, x.name, x.other) == ("1B", "a3", "sft: web_3 - web_1"))
    y = panel.values["accuracy"][1, 1, :, 2].reshape(3, 3)  # web source by proportion
    residual = y - y.mean(axis=0) - y.mean(axis=1, keepdims=True) + y.mean()
    half = st.t.ppf(0.975, 4) * np.sqrt((residual**2).sum() / 4 * 2 / 3)
    np.testing.assert_allclose(
        [row.estimate, row.low, row.high], y[2].mean() - y[0].mean() + np.array([0, -half, half])
    )
    mean = next(x for x in rows if (x.scale, x.name, x.other) == ("1B", "mean of 3", "sft: web_3 - web_1"))
    y = panel.values["accuracy"][1, 1, :, :3].mean(axis=1).reshape(3, 3)
    assert mean.category == "Science" and mean.estimate == pytest.approx(y[2].mean() - y[0].mean())

    align = np.array(
        [r(*(panel.values[q][1, 1, m, :3] for q in ("accuracy", "confidence"))) for m in range(9)]
    )
    (of_align,) = share_effects(data, "r_align", mixtures)
    assert [label.category for label in of_align.labels][:1] == ["Science"]  # the one of 3 benchmarks
    k = next(k for k, label in enumerate(of_align.labels) if label.other == "sft: code share")
    assert of_align.values["1B"][k, 0] == pytest.approx(r(align, code), abs=1e-9)
    rows = web_source_differences(data, "r_align", mixtures, 0.95)
    row = next(x for x in rows if (x.scale, x.category, x.other) == ("1B", "Science", "sft: web_3 - web_1"))
    assert row.estimate == pytest.approx(align[6:].mean() - align[:3].mean())


def test_web_sources_of_different_proportions_are_not_told_from_them() -> None:
    """Two sources, each in proportions of its own, two mixtures each: no line of the model says what the source alone does."""
    names = [f"V{v}P{p}{k}" for v in (1, 2) for p in (0, 1, 2) for k in "ab"]
    rng = np.random.default_rng(2)
    cells = [cell("1B", m, t, rng.uniform(0.2, 0.9), "a1") for m in names for t in ("pt", "sft")]
    data = fixed_data(assemble(cells, None), draw_resamples(len(names), 100, 0), "pearson")

    def differences(apart: float) -> list:
        share = {m: 0.1 * int(m[3]) + apart * (m[1] == "2") for m in names}
        mixtures = from_sources({m: {f"web_{m[1]}": 1 - code, "code": code} for m, code in share.items()})
        return web_source_differences(data, "accuracy", mixtures, 0.95)

    untold = differences(0.5)
    assert len(untold) == 6 and all(np.isnan(row.estimate) and row.note == TOGETHER for row in untold)
    y = data.panel.values["accuracy"][0, 1, :, 0].reshape(2, 6)
    row = next(row for row in differences(0.0) if row.name == "a1" and row.other.startswith("sft"))
    assert row.estimate == pytest.approx(y[1].mean() - y[0].mean())


def test_a_web_source_without_a_value_is_said_and_the_others_are_compared() -> None:
    """Of a benchmark that no mixture of web_2 has, web_3 minus web_1 is that of the six others; two rows say why not."""
    panel = make()
    panel.values["accuracy"][:, 1, 3:6, 2] = np.nan
    code = {m: 0.25 + 0.1 * int(m[3]) for m in MIXTURES}
    mixtures = from_sources({m: {f"web_{m[1]}": 1 - code[m], "code": code[m]} for m in MIXTURES})
    data = fixed_data(panel, draw_resamples(9, 100, 0), "pearson")
    rows = [
        row
        for row in web_source_differences(data, "accuracy", mixtures, 0.95)
        if (row.scale, row.name) == ("1B", "a3") and row.other.startswith("sft")
    ]
    y = panel.values["accuracy"][1, 1, [0, 1, 2, 6, 7, 8], 2].reshape(2, 3)
    paired = st.ttest_rel(y[1], y[0]).confidence_interval()
    found = {row.other.removeprefix("sft: "): row for row in rows}
    row = found.pop("web_3 - web_1")
    np.testing.assert_allclose([row.estimate, row.low, row.high], [(y[1] - y[0]).mean(), *paired])
    assert row.n == 6 and row.note == "t interval, 2 degrees of freedom"
    assert {(np.isnan(row.estimate), row.note) for row in found.values()} == {
        (True, "no mixture of web_2 has a value")
    }


def test_a_departure_from_a_monotonic_order_of_shares() -> None:
    """All orders within web sources, one by one; three levels of the share in three web sources."""
    rng = np.random.default_rng(12)
    web, share = np.repeat(np.arange(3), 3), np.tile([0.25, 0.35, 0.45], 3)
    y = rng.normal(size=9) + 10.0 * web - 1.5 * (share == 0.35)

    def of(y: np.ndarray) -> float:
        low, middle, high = y.reshape(3, 3).mean(axis=0)
        return max(middle - max(low, high), 0.0) or -max(min(low, high) - middle, 0.0)

    every = itertools.product(itertools.permutations(range(3)), repeat=3)
    moved = [
        of(np.concatenate([y[3 * g :][list(order)] for g, order in enumerate(orders)])) for orders in every
    ]
    found, p = departure(y, share, web)
    assert found == pytest.approx(of(y)) and found < 0
    assert p == pytest.approx(np.mean(np.abs(moved) >= abs(found) - 1e-9))
    assert departure(10.0 * web + share, share, web) == (0.0, 1.0)
    assert np.isnan(departure(y, np.arange(9.0), web)[1])  # one mixture at each level


def test_a_departure_that_a_missing_value_forbids_is_said() -> None:
    """Three shares in two mixtures each; b1 lacks one of the mixtures of the middle one."""
    panel = make(mixtures=6)
    panel.values["accuracy"][:, :, 2, 3] = np.nan
    share = {m: 0.1 * (k // 2) for k, m in enumerate(panel.mixtures)}
    data = fixed_data(panel, draw_resamples(6, 100, 0), "pearson")
    rows = departures(data, "accuracy", Mixtures({"code share": share}, {}), 0)
    said = {row.name: row.note for row in rows if (row.scale, row.other[:2]) == ("1B", "pt")}
    few = "a level of the share has fewer than two mixtures with a value"
    assert said == {
        **dict.fromkeys(NAMES, ""),
        "b1": few,
        "mean of 3": "",
        "mean of 2": few,
        "mean of 1": "",
        "mean of 6": few,
    }
    assert all(np.isnan(row.estimate) == bool(row.note) for row in rows)
    assert (
        departures(data, "accuracy", Mixtures({"code share": dict(zip(share, range(6), strict=True))}, {}), 0)
        == []
    )


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_monotonic_means_are_seldom_called_otherwise(slope: float) -> None:
    rng = np.random.default_rng(13)
    web, share = np.repeat(np.arange(3), 3), np.tile([0.0, 1.0, 2.0], 3)
    p = [departure(rng.normal(size=9) + slope * share, share, web)[1] for _ in range(600)]
    assert np.mean(np.array(p) < 0.05) < 0.05 + 3.5 * np.sqrt(0.05 * 0.95 / 600)


def test_an_interval_without_width_gives_way_or_is_said() -> None:
    """Kendall's tau of 1 without any one mixture, of a value that differs once; and of values in one order throughout."""
    swapped, same = np.array([1.0, 2, 3, 5, 4, 6]), np.arange(6.0)
    cells = []
    for (name, after), m in itertools.product(
        {"a1": np.array([1.0, 0, 3, 2, 5, 4]), "a2": same, "a3": swapped}.items(), range(6)
    ):
        for stage, x in (("pt", same), ("sft", after)):
            cells.append(cell("1B", f"m{m}", stage, 0.1 + 0.1 * x[m], name))
    panel = assemble(cells, None)
    options = CorrelateOptions(interval="jackknife", statistic="kendall")
    rows = {row.name: row for row in analyse(panel, options).tables["transfer"] if not row.contrast}
    tau = [
        st.kendalltau(np.delete(same, m), np.delete(panel.values["accuracy"][0, 1, :, 0], m))[0]
        for m in range(6)
    ]
    assert np.ptp(tau) < 1e-12  # 0.6 whichever of the six is left out
    assert rows["a1"].interval == "percentile" and rows["a1"].low < rows["a1"].estimate < rows["a1"].high
    assert rows["a1"].note.startswith("percentile interval: jackknife has no width here")
    assert rows["a2"].low == rows["a2"].high == 1.0
    assert rows["a2"].note.startswith("no width: no resample")
    assert rows["a3"].interval == "jackknife" and rows["a3"].high > rows["a3"].low


def test_scale_contrast_uses_the_same_resamples() -> None:
    panel = make()
    same = panel.values["accuracy"].copy()
    same[1] = same[0]  # the two scales are equal, so every resample's difference is zero
    panel = assemble_like(panel, same)
    rows = analyse(panel, CorrelateOptions()).tables["transfer"]
    contrast = [row for row in rows if row.contrast == "scale" and row.quantity == "accuracy"]
    assert len(contrast) == 6 + 4
    assert all((row.estimate, row.low, row.high) == (0.0, 0.0, 0.0) for row in contrast)


def assemble_like(panel: Panel, accuracy: np.ndarray) -> Panel:
    cells = [
        Cell(f"{s}{t}{m}", panel.scales[s], panel.mixtures[m], panel.stages[t], panel.benchmarks[b], panel.categories[b],
             {"accuracy": accuracy[s, t, m, b]}, 10)
        for s, t, m, b in np.ndindex(accuracy.shape)
    ]  # fmt: skip
    return assemble(cells, None)


@pytest.mark.parametrize("statistic", ["spearman", "kendall"])
def test_other_statistics_run_through_all_protocols(statistic: str) -> None:
    panel = make()
    tables = analyse(panel, CorrelateOptions(statistic=statistic, bootstrap=200)).tables
    oracle = st.spearmanr if statistic == "spearman" else st.kendalltau
    row = next(x for x in tables["transfer"] if (x.scale, x.quantity, x.name) == ("1B", "accuracy", "b2"))
    x = panel.values["accuracy"][1, :, :, 4]
    assert row.estimate == pytest.approx(oracle(x[0], x[1])[0], abs=1e-9)
    assert np.isnan(row.fisher_low) and np.isfinite(row.low)


def test_constant_missing_and_few(setup) -> None:
    panel, _, _ = setup
    x = panel.values["accuracy"].copy()
    x[0, 1, :, 0] = 0.25  # constant after
    x[0, 0, 2, 1] = np.nan  # one mixture missing
    x[0, 0, 2:8, 2] = np.nan  # three mixtures left
    rows = analyse(assemble_like(panel, x), CorrelateOptions(bootstrap=500)).tables["transfer"]
    at = {(row.scale, row.name): row for row in rows if row.protocol == "transfer"}
    assert np.isnan(at["240M", "a1"].estimate) and "sft is 0.25 for every mixture" in at["240M", "a1"].note
    keep = np.arange(9) != 2
    assert at["240M", "a2"].n == 8
    assert at["240M", "a2"].estimate == pytest.approx(r(x[0, 0, keep, 1], x[0, 1, keep, 1]), abs=1e-9)
    assert "3 mixtures have both values" in at["240M", "a3"].note and np.isnan(at["240M", "a3"].low)
    category = next(
        row for row in rows if (row.scale, row.category) == ("240M", "Science") and row.protocol != "transfer"
    )
    assert category.estimate == pytest.approx(at["240M", "a2"].estimate) and "without a1, a3" in category.note


def test_a_benchmark_that_few_of_the_mixtures_have_says_so() -> None:
    """4 of 9: 9% of the resamples hold one of them at most, though all of their values differ."""
    panel = make()
    panel.values["accuracy"][1, 1, 4:, 0] = np.nan
    single = transfer(fixed_data(panel, enumerate_resamples(9), "pearson"), "accuracy")
    assert np.isnan(single.values["1B"][0, 0]) and np.isfinite(single.values["240M"][0, 0])
    assert single.notes["1B"][0].text == (
        "4 of 9 mixtures have both values: r is undefined in more than 5% of the resamples"
    )


def test_options_are_checked() -> None:
    panel = make()
    for options, said in (
        (CorrelateOptions(interval="magic"), "no interval 'magic'"),
        (CorrelateOptions(statistic="eta"), "no statistic 'eta'"),
        (CorrelateOptions(interval="fisher", statistic="kendall"), "Fisher's z is an interval for Pearson"),
        (CorrelateOptions(level=2.0), "--level 2.0"),
        (CorrelateOptions(resample="items"), "imported results hold no items"),
        (CorrelateOptions(resample="items", bootstrap="exact"), "cannot be resampled exactly"),
    ):
        with pytest.raises(UserError, match=said):
            analyse(panel, options)


def test_one_mixture_that_differs_is_no_correlation(setup) -> None:
    """Eight equal values and an outlier: r is +-1 wherever it is defined, so nothing may be reported."""
    panel, _, _ = setup
    x = panel.values["accuracy"].copy()
    x[0, :, :, 0] = 0.25
    x[0, :, 4, 0] = 0.75
    tables = analyse(assemble_like(panel, x), CorrelateOptions()).tables
    row = next(r for r in tables["transfer"] if (r.scale, r.name) == ("240M", "a1"))
    assert np.isnan([row.estimate, row.low, row.high, row.p, row.q]).all()
    assert "only 2 different values over 9 mixtures" in row.note
    category = next(
        r for r in tables["transfer"] if (r.scale, r.category) == ("240M", "Science") and "mean" in r.name
    )
    assert np.isfinite([category.estimate, category.low, category.p]).all() and "without a1" in category.note
    cell = next(
        r
        for r in tables["matrices"]
        if (r.protocol, r.scale, r.name, r.other) == ("matrix_cross", "240M", "a1", "b1")
    )
    assert np.isnan(cell.estimate)
    for table in tables.values():
        known = [r for r in table if np.isfinite(r.estimate) and r.other != TOP1_JUDGED]
        assert all(np.isfinite([r.low, r.high]).all() for r in known)


def test_a_scale_with_too_few_mixtures_is_left_out() -> None:
    panel = make()
    x = panel.values["accuracy"]
    cells = [
        Cell(f"{s}{t}{m}", s, m, t, "rte", "NLI", {"accuracy": x[0, i, j, 0]}, 10)
        for s, count in (("240M", 9), ("1B", 2))
        for i, t in enumerate(("pt", "sft"))
        for j, m in enumerate(panel.mixtures[:count])
    ]
    small = assemble(cells, None)
    assert small.scales == ("240M",)
    assert any("scale 1B is left out: both stages are there for 2 mixtures" in note for note in small.notes)
