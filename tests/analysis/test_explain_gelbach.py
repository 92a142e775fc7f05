"""Count and similarity in one equation: statsmodels with dummies, and worlds in which one of the two is at work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm
from planted_exposure import write_similarity
from test_explain_frequency import CATEGORIES, SHARES, SOURCES, make_world, study_of

from evalengine.analysis.estimates.groups import ALL
from evalengine.analysis.explain import doses, gelbach, within
from evalengine.analysis.explain.exposed import Dose


def values(seed: int, count: float, similarity: float, shared: float) -> np.ndarray:
    """Count, similarity and margin of nine mixtures and 80 items; `shared`: of the similarity, what follows the count."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(9, 80))
    z = shared * x + rng.normal(size=(9, 80))
    y = (count + 0.3 * rng.normal(size=(9, 1))) * x + similarity * z + rng.normal(size=(9, 80))
    return np.stack([x, z, y]) + rng.normal(size=(3, 1, 80)) + rng.normal(size=(3, 9, 1))


def parts(v: np.ndarray) -> dict[str, np.ndarray]:
    return gelbach.parts(within.without_each(within.products(within.demeaned(v))))


def test_the_parts_are_those_of_least_squares_with_dummies() -> None:
    v = values(0, 0.5, 0.4, 0.7)
    found = parts(v)
    for left_out in (None, 4):
        kept = [m for m in range(9) if m != left_out]
        m, i = (a.ravel() for a in np.meshgrid(np.arange(len(kept)), np.arange(80), indexing="ij"))
        fixed = np.column_stack(
            [*(i == k for k in range(80)), *(m == k for k in range(1, len(kept)))]
        ).astype(float)
        x, z, y = (values.ravel() for values in v[:, kept])
        both = sm.OLS(y, np.column_stack([x, z, fixed])).fit()
        alone = sm.OLS(y, np.column_stack([x, fixed])).fit()
        other = sm.OLS(y, np.column_stack([z, fixed])).fit()
        none = sm.OLS(y, fixed).fit()
        j = 0 if left_out is None else 1 + left_out
        slope = sm.OLS(z, np.column_stack([x, fixed])).fit().params[0]
        for name, value in (
            (gelbach.ALONE[gelbach.COUNT], alone.params[0]),
            (gelbach.ALONE[gelbach.SIMILARITY], other.params[0]),
            (gelbach.ADJUSTED[gelbach.COUNT], both.params[0]),
            (gelbach.ADJUSTED[gelbach.SIMILARITY], both.params[1]),
            (gelbach.OWED, slope * both.params[1]),  # Gelbach's formula
            (gelbach.BOTH, 1 - both.ssr / none.ssr),
            (gelbach.ADDS[gelbach.COUNT], (other.ssr - both.ssr) / none.ssr),
            (gelbach.ADDS[gelbach.SIMILARITY], (alone.ssr - both.ssr) / none.ssr),
        ):
            assert found[name][j] == pytest.approx(value, abs=1e-10), name


def test_the_intervals_of_the_parts_hold() -> None:
    """Mixtures differ in what they make of the count, items in what they make of both."""
    truth = {
        gelbach.OWED: 0.28,
        gelbach.ALONE[gelbach.COUNT]: 0.78,
        gelbach.ADJUSTED[gelbach.COUNT]: 0.5,
        gelbach.ADJUSTED[gelbach.SIMILARITY]: 0.4,
    }
    hits = dict.fromkeys(truth, 0)
    for seed in range(300):
        v = values(seed, 0.5, 0.4, 0.7)
        of_items = np.random.default_rng(1000 + seed).normal(size=(2, 80))
        v[2] += 0.8 * of_items[0] * v[0] + 0.4 * of_items[1] * v[1]
        found = gelbach.estimates(within.demeaned(v))
        for name in truth:
            hits[name] += found[name].low <= truth[name] <= found[name].high
    assert all(0.92 <= count / 300 <= 0.99 for count in hits.values()), hits


def test_regressors_that_move_together_are_not_taken_apart() -> None:
    v = values(1, 0.5, 0.4, 0.7)
    v[1] = 2.0 * v[0] + 1.0
    found = parts(v)
    assert (
        np.isnan(found[gelbach.ADJUSTED[gelbach.COUNT]]).all()
        and np.isfinite(found[gelbach.ALONE[gelbach.COUNT]]).all()
    )


def test_the_count_is_told_from_a_similarity_that_does_nothing(tmp_path: Path) -> None:
    make_world(tmp_path, 0.6)
    rng = np.random.default_rng(3)
    value = {b: rng.normal(size=(len(SOURCES), 50, 2)) for b in CATEGORIES}
    rows = [
        (b, f"i{i}", j, source, "bm25", float(value[b][s, i, j]))
        for b in CATEGORIES
        for i in range(50)
        for j in range(2)
        for s, source in enumerate(SOURCES)
    ]
    write_similarity(tmp_path / "exposure", rows)
    study = study_of(tmp_path)
    dosed = doses.dosed(study, "1B")
    assert dosed is not None
    for one in dosed[1]:
        for m, mixture in enumerate(dosed[0]):
            share_S = np.array([SHARES[mixture].get(source, 0.0) for source in SOURCES])
            expected = np.log(share_S @ np.exp(value[one.choices.name].reshape(len(SOURCES), -1)))
            np.testing.assert_allclose(one.value[Dose("bm25", 0)][m], expected, rtol=1e-5, atol=1e-6)
    found = {r.part: r for r in gelbach.rows(study) if (r.category, r.stage, r.minus) == (ALL, "pt", "")}
    count, similar, owed = (
        found[name]
        for name in (gelbach.ADJUSTED[gelbach.COUNT], gelbach.ADJUSTED[gelbach.SIMILARITY], gelbach.OWED)
    )
    assert count.estimate == pytest.approx(0.6, abs=0.03) and count.low > 0.5
    assert similar.low < 0 < similar.high and abs(owed.estimate) < 0.05
    assert owed.estimate == pytest.approx(found[gelbach.ALONE[gelbach.COUNT]].estimate - count.estimate)
    assert (
        found[gelbach.ADDS[gelbach.COUNT]].estimate > 0.5 > found[gelbach.ADDS[gelbach.SIMILARITY]].estimate
    )
    write_similarity(tmp_path / "exposure", [row for row in rows if row[0] != "rte"])
    assert {r.note for r in gelbach.rows(study_of(tmp_path)) if r.category == ALL} == {
        f"without rte: {doses.UNKNOWN}"
    }


def test_similarities_that_are_damaged_are_refused(tmp_path: Path) -> None:
    from evalengine.errors import UserError

    make_world(tmp_path, items=8)
    (tmp_path / "exposure" / "similarity.arrow").write_bytes(b"nothing")
    with pytest.raises(UserError, match="holds no similarities"):
        gelbach.rows(study_of(tmp_path))
