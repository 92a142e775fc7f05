"""Format, proxies and items: brute force, statsmodels, planted worlds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import planted
import pytest
import scipy.stats as st

from evalengine import store
from evalengine.analysis.estimates.groups import ALL
from evalengine.analysis.explain import flips, format, item_transfer, proxies, snr, threshold
from evalengine.analysis.explain.choices import read_choices
from evalengine.analysis.explain.design import design_of
from evalengine.analysis.explain.explainer import ExplainOptions, Findings, StudyScores
from evalengine.analysis.explain.item_level import ItemLevel, item_level
from evalengine.analysis.explain.logistic import clustered, dummies, fit
from evalengine.errors import UserError

MIXTURES = ("a", "b", "c", "d", "e", "f")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyScores:
    folder = tmp_path_factory.mktemp("items")
    planted.write_study(folder, items=60, mixtures=MIXTURES, spread=0.8)
    scores = read_choices(folder)
    return StudyScores(scores, design_of(scores), ExplainOptions())


def stored(
    folder: Path,
    scores_of: Callable[[str, str, str], np.ndarray | None],
    gold: np.ndarray,
    mixtures: Sequence[str] = MIXTURES,
    stages: Sequence[str] = ("pt", "sft"),
    benchmarks: Mapping[str, str] = {"boolq": "Commonsense"},
) -> StudyScores:
    """A store of one scale; `scores_of`: mixture, stage and benchmark to log-likelihoods (I, C), None of what is not scored."""
    for mixture, stage, (name, category) in itertools.product(mixtures, stages, benchmarks.items()):
        if (x := scores_of(mixture, stage, name)) is not None:
            checkpoint = f"1B-{mixture}-{stage}"
            who = {"checkpoint": checkpoint, "scale": "1B", "mixture": mixture, "stage": stage}
            table = planted.item_table({**who, "benchmark": name, "category": category}, x, gold)
            store.write(folder / checkpoint / f"{name}.arrow", table, planted.metadata())
    scores = read_choices(folder)
    return StudyScores(scores, design_of(scores), ExplainOptions())


def loglik(study: StudyScores, name: str, benchmark: str) -> tuple[np.ndarray, np.ndarray]:
    """(I, 4) scores and the right choices."""
    choices = next(one for one in study.scores.benchmarks if one.name == benchmark)
    return choices.loglik_KC[choices.row(name)].astype(np.float64).reshape(-1, 4), choices.gold_I


def test_format_and_knowledge_add_up(study: StudyScores) -> None:
    rows = {(r.scale, r.category, r.benchmark, r.measure, r.stage, r.minus): r for r in format.rows(study)}
    for benchmark, stage in itertools.product(planted.BENCHMARKS, ("pt", "sft")):
        each = []
        for m in MIXTURES:
            x, gold = loglik(study, f"1B-{m}-{stage}", benchmark)
            mass = np.log(np.exp(x).sum(1))
            each.append([x[np.arange(60), gold].mean(), mass.mean(), np.exp(mass).mean()])
        of_gold, mass, share = np.mean(each, axis=0)
        at = ("1B", planted.BENCHMARKS[benchmark], benchmark)
        found = {
            m: rows[(*at, m, stage, "")].estimate
            for m in (format.GOLD, format.FORMAT, format.KNOWLEDGE, format.MASS)
        }
        assert found[format.GOLD] == pytest.approx(of_gold, rel=1e-6)
        assert found[format.FORMAT] == pytest.approx(mass, rel=1e-6)
        assert found[format.MASS] == pytest.approx(share, rel=1e-6)
        assert found[format.FORMAT] + found[format.KNOWLEDGE] == pytest.approx(found[format.GOLD], abs=1e-6)
    change = rows["1B", ALL, "", format.FORMAT, "sft", "pt"]
    first, last = (rows["1B", ALL, "", format.FORMAT, stage, ""].estimate for stage in ("pt", "sft"))
    assert change.estimate == pytest.approx(last - first)
    assert "mass above 1" in change.note  # random scores are no log-probabilities


def test_format_compares_the_stages_in_both_formats(tmp_path: Path) -> None:
    """Fine-tuning in each format, and each stage with its own +chat; winogrande's choices have no common mass."""
    rng = np.random.default_rng(0)
    gold, stages, mass = rng.integers(0, 4, 20), ("pt", "sft", "pt+chat", "sft+chat"), {}

    def scores_of(m: str, stage: str, name: str) -> np.ndarray | None:
        if (m, stage, name) == ("a", "pt+chat", "cb"):
            return None
        x = rng.normal(-4.0, 1.0, (20, 4)).astype(np.float32)
        mass[m, stage, name] = np.exp(x).sum(1).mean()
        return x

    study = stored(tmp_path, scores_of, gold, "ab", stages, {"rte": "NLI", "cb": "NLI", "winogrande": "NLI"})
    rows = {(r.benchmark, r.category, r.measure, r.stage, r.minus): r for r in format.rows(study)}
    assert {key[0] for key in rows} == {"", "rte", "cb"}
    pairs = [
        ("sft", "pt"),
        ("sft+chat", "pt"),
        ("sft+chat", "pt+chat"),
        ("pt+chat", "pt"),
        ("sft+chat", "sft"),
    ]
    assert {(stage, minus) for *_, stage, minus in rows if minus} == set(pairs)
    for stage, minus in pairs:
        change = np.mean([mass[m, stage, "rte"] - mass[m, minus, "rte"] for m in "ab"])
        assert rows["rte", "NLI", format.MASS, stage, minus].estimate == pytest.approx(change, rel=1e-5)
    assert "over the 1 of 2 benchmarks" in rows["", "NLI", format.MASS, "pt+chat", "pt"].note
    assert "over the" not in rows["", "NLI", format.MASS, "sft+chat", "sft"].note
    assert ("cb", "NLI", format.MASS, "pt+chat", "") not in rows


def test_proxies_by_hand(study: StudyScores) -> None:
    rows = {
        (r.seen, r.target, r.proxy, r.minus, r.measure, r.category, r.benchmark): r
        for r in proxies.rows(study)
    }
    target, x = (
        [],
        {"correct_prob": [], "logit margin": [], "norm_correct_prob per character": [], "accuracy": []},
    )
    for m in MIXTURES:
        after, gold = loglik(study, f"1B-{m}-sft", "rte")
        target.append((after.argmax(1) == gold).mean())
        before, _ = loglik(study, f"1B-{m}-pt", "rte")
        right = before[np.arange(60), gold]
        wrong = np.where(np.arange(4) == gold[:, None], -np.inf, before).max(1)
        per = before / 5.0  # every choice has five characters
        x["correct_prob"].append(np.exp(right).mean())
        x["logit margin"].append((right - wrong).clip(-5, 5).mean())
        x["norm_correct_prob per character"].append(
            (np.exp(per) / np.exp(per).sum(1, keepdims=True))[np.arange(60), gold].mean()
        )
        x["accuracy"].append((before.argmax(1) == gold).mean())
    y = np.array(target)
    for proxy, value in x.items():
        at = ("1B pt", "1B sft", proxy, "")
        r = rows[(*at, "r", "NLI", "rte")]
        assert r.estimate == pytest.approx(st.pearsonr(value, y).statistic)
        pairs = [
            0.5 + 0.5 * np.sign(round(value[i] - value[j], 12)) * np.sign(round(y[i] - y[j], 12))
            for i, j in itertools.combinations(range(6), 2)
            if round(value[i] - value[j], 12) or round(y[i] - y[j], 12)
        ]
        assert rows[(*at, "pair agreement", "NLI", "rte")].estimate == pytest.approx(np.mean(pairs))
        best = np.flatnonzero(np.round(value, 12) == np.round(value, 12).max())
        assert rows[(*at, "regret", "NLI", "rte")].estimate == pytest.approx(y.max() - y[best].mean())
    seen = {(r[0], r[1]) for r in rows}
    assert seen == {
        ("240M pt", "240M sft"), ("1B pt", "1B sft"), ("240M pt", "1B pt"), ("240M pt", "1B sft"), ("240M sft", "1B sft"),
    }  # fmt: skip


def test_the_choice_of_a_proxy_is_judged_on_the_benchmark_that_is_left_out() -> None:
    value_PJB = np.random.default_rng(0).uniform(size=(4, 3, 6))
    found = proxies.chosen(value_PJB)
    for j, b in itertools.product(range(3), range(6)):
        others = np.delete(value_PJB[:, j], b, axis=1).mean(axis=1)
        assert found[j, b] == value_PJB[others.argmax(), j, b]


def test_no_proxy_is_said_to_be_better_where_none_is() -> None:
    """Twenty proxies that are accuracy with independent noise: q below 0.05 in at most 5% of studies."""
    from evalengine.analysis.explain.ranking import agreement
    from evalengine.analysis.explain.student import jackknife
    from evalengine.analysis.statistics.correlation import benjamini_hochberg

    rng, wrong, studies = np.random.default_rng(5), 0, 200
    sets = [np.arange(9), *(np.delete(np.arange(9), m) for m in range(9))]
    for _ in range(studies):
        truth = rng.normal(size=(9, 20))
        y = truth + 0.5 * rng.normal(size=(9, 20))
        x = truth + 0.7 * rng.normal(size=(21, 9, 20))
        value = np.stack([np.stack([agreement(one[k], y[k]).mean() for k in sets]) for one in x])
        minus = value[1:] - value[0]
        p = jackknife(minus[:, 0], minus[:, 1:].T).p
        wrong += bool((benjamini_hochberg(p) < 0.05).any())
    assert wrong / studies <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / studies)


def test_values_that_are_alike_but_for_rounding_have_no_signal_and_no_noise() -> None:
    item_I = np.random.default_rng(0).normal(size=50)
    alike_MI = np.tile(item_I, (9, 1)) * (1.0 + 1e-16 * np.arange(9)[:, None])
    alike_MI[1::2] = np.nextafter(alike_MI[1::2], np.inf)
    _, signal, spread, noise, ratio, share = snr.signal_and_noise(alike_MI)
    assert (signal, spread, noise) == (0.0, 0.0, 0.0) and np.isnan([ratio, share]).all()
    shifted_MI = alike_MI + 0.1 * np.arange(9)[:, None]  # every item moves alike
    _, signal, _, noise, ratio, share = snr.signal_and_noise(shifted_MI)
    assert signal == pytest.approx(0.1 * np.arange(9).std(ddof=1)) and noise == 0.0
    assert np.isnan(ratio) and share == 1.0


def test_signal_and_noise_are_the_analysis_of_variance() -> None:
    x_MI = np.random.default_rng(1).normal(size=(5, 30)) + np.arange(5)[:, None]
    mean, signal, spread, noise, ratio, share = snr.signal_and_noise(x_MI)
    assert (mean, spread) == pytest.approx((x_MI.mean(), np.ptp(x_MI.mean(1))))
    assert signal == pytest.approx(x_MI.mean(1).std(ddof=1)) and ratio == pytest.approx(signal / noise)
    assert share == pytest.approx(proxies.reliability(x_MI))
    covariance = np.cov(x_MI.T)  # Cronbach's alpha, items in its rows
    alpha = 30 / 29 * (1 - np.trace(covariance) / covariance.sum())
    assert share == pytest.approx(alpha)


def test_the_interval_of_the_rank_correlation_has_the_level_that_was_asked_for(study: StudyScores) -> None:
    tables = {"snr": snr.rows(study), "proxies": proxies.rows(study)}
    before = [r for r in tables["snr"] if (r.scale, r.stage, r.quantity) == ("1B", "pt", "accuracy")]
    at = ("1B pt", "1B sft", "accuracy", "", "pair agreement")
    right = {r.benchmark: r.estimate for r in tables["proxies"] if r[:5] == at}
    rho = st.spearmanr([r.snr for r in before], [right[r.benchmark] for r in before]).statistic
    for level in 0.9, 0.95:
        findings = Findings({"stages": ("pt", "sft"), "scales": ["1B"], "level": level}, tables)
        half = st.norm.ppf(0.5 + level / 2) * np.sqrt((1 + rho**2 / 2) / (5 - 3))
        low, high = np.tanh(np.arctanh(rho) - half), np.tanh(np.arctanh(rho) + half)
        said = f"rank correlation {rho:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−")
        assert said in next(snr._relation(findings))


def test_logistic_regression_is_that_of_statsmodels() -> None:
    sm = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(2)
    n, item, mixture = 1800, np.tile(np.arange(200), 9), np.repeat(np.arange(9), 200)
    x = np.column_stack([rng.normal(size=n), rng.normal(size=n), dummies(item % 3)])
    effect = 0.5 * rng.normal(size=200)[item] + 0.3 * rng.normal(size=9)[mixture]
    y = (rng.uniform(size=n) < 1 / (1 + np.exp(-(x @ [0.6, -0.3, 0.2, 0.0, -0.4] + effect)))).astype(float)
    ours, theirs = fit(x, y), sm.Logit(y, x).fit(disp=0)
    np.testing.assert_allclose(ours.coefficient_P, theirs.params, rtol=1e-7)
    assert ours.loglik == pytest.approx(theirs.llf)
    np.testing.assert_allclose(ours.bread_PP, theirs.cov_params(), rtol=1e-6)
    variance = {}
    for name, groups in (("item", item), ("mixture", mixture), ("both", np.arange(n))):
        robust = sm.Logit(y, x).fit(
            disp=0, cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}
        )
        g = len(np.unique(groups))
        variance[name] = np.diag(robust.cov_params()) * g / (g - 1)
    expected = np.sqrt(variance["item"] + variance["mixture"] - variance["both"])
    np.testing.assert_allclose(
        clustered(x, y - ours.probability_N, ours.bread_PP, item, mixture), expected, rtol=1e-6
    )
    # Counts say the same as single trials.
    key = np.round(x[:, 0]).astype(int) + 5
    rows = np.array([[k - 5.0, 1.0] for k in np.unique(key)])
    trials, right = np.bincount(key)[np.unique(key)], np.bincount(key, y)[np.unique(key)]
    np.testing.assert_allclose(
        fit(rows, right, trials.astype(float)).coefficient_P,
        sm.Logit(y, np.column_stack([key - 5.0, np.ones(n)])).fit(disp=0).params,
        rtol=1e-6,
    )


def test_the_models_are_nested_and_the_terms_those_of_statsmodels(study: StudyScores) -> None:
    sm = pytest.importorskip("statsmodels.api")
    data = item_level(study, "1B")
    assert data is not None
    rows = {(r.model, r.term): r for r in item_transfer.rows(study) if r.scale == "1B"}
    y = data.right_after.ravel()
    x = np.column_stack(
        [data.logp.ravel(), data.margin.ravel(), dummies(np.tile(data.benchmark_I, len(data.margin)))]
    )
    theirs = sm.Logit(y, x).fit(disp=0)
    assert rows["+ both", "log p(gold)"].estimate == pytest.approx(theirs.params[0], rel=1e-6)
    assert rows["+ both", "margin"].estimate == pytest.approx(theirs.params[1], rel=1e-6)
    assert rows["+ both", "margin"].pseudo_r2 == pytest.approx(
        1 - theirs.llf / sm.Logit(y, np.ones(len(y))).fit(disp=0).llf
    )
    r2 = [rows[model, ""].pseudo_r2 for model in item_transfer.MODELS]
    assert r2[0] <= min(r2[1:3]) and max(r2[1:3]) <= r2[3]


def made(
    rng: np.random.Generator,
    chance,
    mixtures: int = 6,
    items: int = 500,
    low: float = -7.0,
    sd: float = 0.3,
    x=None,
) -> ItemLevel:  # type: ignore[no-untyped-def]
    """Items of two benchmarks whose log10 p before is uniform, or `x`; right after with `chance` of it, and an ease of their own
    of this standard deviation on every mixture."""
    x = rng.uniform(low, 0.0, size=items) if x is None else x
    x = x + 0.3 * rng.normal(size=(mixtures, items))
    ease = sd * rng.normal(size=items) + 0.1 * rng.normal(size=(mixtures, 1))
    after = (rng.uniform(size=x.shape) < 1 / (1 + np.exp(-(chance(x) + ease)))).astype(float)
    logp = x * np.log(10.0)
    nothing = np.zeros_like(x)
    return ItemLevel(
        ("p", "q"), ("NLI", "NLI"), np.arange(mixtures), np.repeat([0, 1], items // 2), tuple(map(str, range(items))),
        nothing, after, nothing, logp, logp, np.zeros(0, np.int64), np.zeros((mixtures, 0)), np.zeros((mixtures, 0)),
    )  # fmt: skip


def test_a_planted_kink_is_found_and_its_interval_holds_it() -> None:
    rng, found = np.random.default_rng(6), []
    for _ in range(10):
        data = made(rng, lambda x: -1.5 + 2.5 * np.maximum(x + 3.0, 0.0), items=2000)
        row = threshold.threshold(data, "1B", 0.95)
        if row.found == "yes":
            found.append(row.low <= -3.0 <= row.high)
            assert row.inside == ("yes" if found[-1] else "no")
            assert row.slope_below == pytest.approx(0.0, abs=0.4) and row.slope_above > 1.5
    assert len(found) >= 5 and sum(found) >= len(found) - 1


def test_no_kink_is_found_where_the_truth_is_smooth() -> None:
    rng, found = np.random.default_rng(7), 0
    for chance in (lambda x: 0.4 * (x + 3.0), lambda x: 2.0 - 0.15 * x**2):
        for _ in range(10):
            found += threshold.threshold(made(rng, chance), "1B", 0.95).found == "yes"
    assert found <= 1


def test_items_that_are_easy_on_every_mixture_make_no_kink() -> None:
    """Leaving out mixtures alone, which answer the same items, finds one in 14 of 100 such studies."""
    rng = np.random.default_rng(1)
    found = [threshold.threshold(made(rng, lambda x: 0 * x, 9, 2000, sd=2.0), "1B", 0.95) for _ in range(40)]
    assert sum(row.found == "yes" for row in found) <= 2


def test_a_smooth_step_in_one_part_of_a_long_axis_is_no_kink() -> None:
    rng = np.random.default_rng(2)
    for _ in range(10):
        long, short = rng.uniform(-60, 0, size=2000), rng.uniform(-8, 0, size=2000)
        x = np.where(rng.uniform(size=2000) < 0.5, long, short)
        data = made(rng, lambda x: 1.5 * np.tanh(x + 5.0), 9, 2000, x=x)
        assert threshold.threshold(data, "1B", 0.95).found == "no"


def test_a_model_that_gives_every_item_one_label_makes_no_kink() -> None:
    """Its items are right and likely, or wrong and unlikely, before and after: a step that no teaching made."""
    rng = np.random.default_rng(4)
    for _ in range(10):
        data = made(rng, lambda x: 0 * x, 9, 2000)
        label, shape = data.benchmark_I == 0, data.logp.shape
        gold = rng.uniform(size=2000) < 0.5
        before = np.where(label, gold, rng.uniform(size=shape) < 0.4)
        after = np.where(label, gold ^ (rng.uniform(size=shape) < 0.02), data.right_after)
        x = np.where(label, np.where(gold, -3.0, -6.0) + 0.2 * rng.normal(size=shape), data.logp / np.log(10))
        margin = np.where(before, 1.0, -1.0) * rng.uniform(0, 5, size=shape)
        data = data._replace(
            right_before=before.astype(float),
            right_after=after.astype(float),
            margin=margin,
            logp=x * np.log(10),
        )
        assert threshold.threshold(data, "1B", 0.95).found == "no"


def test_a_fit_that_overshoots_or_is_separated_ends() -> None:
    """From a start far away, and where one group is never right: plain Newton steps leave the first for ever."""
    rng = np.random.default_rng(3)
    x = np.column_stack([np.ones(500), rng.normal(size=500)])
    y = (rng.uniform(size=500) < 1 / (1 + np.exp(-x @ [0.3, 1.0]))).astype(float)
    far = fit(x, y, start_P=np.array([8.0, -9.0]))
    np.testing.assert_allclose(far.coefficient_P, fit(x, y).coefficient_P, rtol=1e-6)
    group = np.column_stack([x, np.arange(500) < 100])
    found = fit(group, np.where(np.arange(500) < 100, 0.0, y), prior=0.01)
    p = found.probability_N
    score = group.T @ (np.where(np.arange(500) < 100, 0.0, y) - p) - 0.01 * found.coefficient_P
    np.testing.assert_allclose(score, 0.0, atol=1e-4)


def test_the_slope_of_the_gain_is_negative_without_any_priming() -> None:
    """Before and after are one truth with noise of their own: the slope of the gain on the before is minus the noise's share of
    its variance, for wrong choices as well, and nearly nothing against what other mixtures gave before."""
    rng = np.random.default_rng(8)
    truth, wrong = rng.normal(size=(1, 4000)), rng.normal(size=(1, 4000))
    draws = [t + 0.6 * rng.normal(size=(6, 4000)) for t in (truth, truth, wrong, wrong)]
    nothing, benchmark = np.zeros((6, 4000)), np.zeros(4000, np.int64)
    data = ItemLevel(
        ("p",), ("NLI",), np.arange(6), benchmark, tuple(map(str, range(4000))),
        nothing, nothing, nothing, draws[0], draws[1], np.arange(4000), draws[2], draws[3],
    )  # fmt: skip
    rows = {r.model: r for r in item_transfer.slopes(data, "1B", 0.95)}
    share = -0.36 / 1.36
    for name in item_transfer.SLOPES[:2]:
        assert rows[name].estimate == pytest.approx(share, abs=0.02) and rows[name].high < 0
    for name in item_transfer.SLOPES[2:]:
        assert abs(rows[name].estimate) < 0.02


def test_flips_by_hand(study: StudyScores) -> None:
    data = item_level(study, "1B")
    assert data is not None
    before, after = data.right_before, data.right_after
    rows = {(r.measure, r.against): r for r in flips.flip_rows(study) if (r.scale, r.category) == ("1B", ALL)}
    assert rows["learned", ""].estimate == pytest.approx(((1 - before) * after).mean())
    assert rows["lost", ""].estimate == pytest.approx((before * (1 - after)).mean())
    assert sum(rows[m, ""].estimate for m in ("learned", "lost", "kept", "never")) == pytest.approx(1.0)
    twin = [(1 - before[other]) * after[m] for m in range(6) for other in range(6) if other != m]
    assert rows["learned", "twin"].estimate == pytest.approx(np.mean(twin))
    curves = [r for r in flips.curve_rows(study) if r.scale == "1B" and r.axis == "margin"]
    assert sum(r.items for r in curves) == before.size
    total = sum(r.estimate * r.items for r in curves if r.category == flips.WRONG)
    assert total == pytest.approx(((1 - before) * after).sum())


def test_shares_and_their_differences_end_where_they_can_be(tmp_path: Path) -> None:
    """Few items: the t interval of a share alone reaches below 0 and above 1, as by statsmodels for one mean over mixtures."""
    rng = np.random.default_rng(1)
    gold = rng.integers(0, 2, 12)

    def scores_of(mixture: str, stage: str, name: str) -> np.ndarray:
        x = rng.normal(-3.0, 0.3, (12, 2))
        x[np.arange(12), gold] += rng.choice([0.1, 0.5])
        return np.log(np.exp(x) / (np.exp(x).sum(axis=1, keepdims=True) + rng.uniform(0.0, 0.02))).astype(
            np.float32
        )

    study = stored(tmp_path, scores_of, gold, "abc", benchmarks={"rte": "NLI", "cb": "NLI"})
    one, sign = {"flips": (0.0, 1.0), "format": (0.0, 1.0), "log": (-np.inf, 0.0)}, (-1.0, 1.0)
    cut = 0
    flipped = [(r, one["flips"] if r.against != flips.EXCESS else sign) for r in flips.flip_rows(study)]
    curves = [(r, one["flips"]) for r in flips.curve_rows(study)]
    parts = [
        (r, one["format" if r.measure == format.MASS else "log"]) for r in format.rows(study) if not r.minus
    ]
    for row, (least, most) in [*flipped, *curves, *parts]:
        if np.isfinite(row.low) and getattr(row, "measure", "") != flips.HYSTERESIS:
            assert least <= row.low <= row.estimate <= row.high <= most
            half = max(row.high - row.estimate, row.estimate - row.low)
            assert row.low == pytest.approx(max(least, row.estimate - half)) or row.high == most
            assert row.high == pytest.approx(min(most, row.estimate + half)) or row.low == least
            cut += row.low == least or row.high == most
    assert cut > 20


def test_means_name_the_benchmarks_that_a_checkpoint_lacks(tmp_path: Path) -> None:
    rng, gold = np.random.default_rng(3), np.arange(20) % 2
    categories = {
        "rte": "NLI",
        "cb": "NLI",
        "sciq": "Science",
        "winogrande": "Commonsense",
        "copa": "Commonsense",
    }
    study = stored(
        tmp_path,
        lambda m, stage, name: (
            None if (m, stage, name) == ("b", "sft", "cb") else rng.normal(-3.0, 1.0, (20, 2))
        ),
        gold,
        "abcd",
        benchmarks=categories,
    )
    said = "without cb (not on every checkpoint)"
    own = "without winogrande (contexts differ by choice)"
    for row in [*flips.flip_rows(study), *proxies.rows(study)]:
        lacks = (
            row.category in ("NLI", ALL)
            and not row.benchmark
            and getattr(row, "measure", "") != flips.HYSTERESIS
        )
        assert (said in row.note) == lacks and own not in row.note
    for row in format.rows(study):
        assert (said in row.note) == (row.category in ("NLI", ALL) and not row.benchmark)
        assert (own in row.note) == (row.category in ("Commonsense", ALL) and not row.benchmark)


def test_hysteresis_is_found_where_it_was_put() -> None:
    rng = np.random.default_rng(9)
    margin = rng.uniform(-4, 4, size=(6, 3000))
    before = (margin > 0).astype(float)
    for gap in (0.0, 1.5):
        chance = 1 / (1 + np.exp(-1.5 * (margin - np.where(before == 1.0, 0.4 + gap, 0.4 - 1.0))))
        after = (rng.uniform(size=margin.shape) < chance).astype(float)
        data = ItemLevel(
            ("p",), ("NLI",), np.arange(6), np.zeros(3000, np.int64), tuple(map(str, range(3000))),
            before, after, margin, margin, margin, np.zeros(0, np.int64), np.zeros((6, 0)), np.zeros((6, 0)),
        )  # fmt: skip
        row = flips.hysteresis(data, "1B", 0.95)
        assert row.estimate == pytest.approx(1.0 + gap, abs=0.15)
        assert row.low < row.estimate < row.high < row.estimate + 0.5


def test_the_items_that_turned_most_come_with_their_texts(tmp_path: Path, small_world: Path) -> None:
    from evalengine.benchmarks import BENCHMARKS, load_items

    loaded = load_items(BENCHMARKS["wic"], small_world / "bench")
    items = loaded.items
    planted.write_study(
        tmp_path, items=len(items), choices=2, mixtures=MIXTURES, categories={"wic": "Semantic"}
    )
    from evalengine import store

    for path in tmp_path.glob("*/*.arrow"):
        rows = store.read(path).to_pylist()
        for row, item in zip(rows, items, strict=True):
            row["item"] = item.id
        table = type(store.read(path)).from_pylist(rows, schema=store.schema())
        store.write(path, table, planted.metadata(data_hash=loaded.data_hash))
    scores = read_choices(tmp_path)
    found = flips.item_rows(
        StudyScores(scores, design_of(scores), ExplainOptions(data=small_world / "bench"))
    )
    assert found
    by_id = {item.id: item for item in items}
    for row in found:
        assert (
            row.runs == 12
            and row.text.split()[-1] == by_id[row.item].choices[by_id[row.item].gold].split()[-1]
        )
        assert (row.learned > row.lost) == (row.direction == "learned")
    other = tmp_path / "other"
    other.mkdir()
    lines = (small_world / "bench" / "wic.jsonl").read_text().splitlines(keepends=True)
    (other / "wic.jsonl").write_text("".join(lines[::-1]))
    with pytest.raises(UserError, match=r"wic: .*other holds other items than were scored"):
        flips.item_rows(StudyScores(scores, design_of(scores), ExplainOptions(data=other)))


def test_choices_that_were_all_alike_before_have_no_slope(tmp_path: Path) -> None:
    """Every wrong choice has the log-likelihood -1 on every checkpoint: nothing to regress on, and no number."""
    rng = np.random.default_rng(0)

    def scores_of(mixture: str, stage: str, name: str) -> np.ndarray:
        x = np.tile(np.float32([-2.0, -1.0]), (20, 1))
        x[: rng.integers(4, 17), 0] = 0.0
        return x

    study = stored(tmp_path, scores_of, np.zeros(20, dtype=np.int64), "abcd")
    rows = {r.model: r for r in item_transfer.rows(study)}
    right, wrong = (rows[name] for name in item_transfer.SLOPES[:2])
    assert np.isfinite([right.estimate, right.low, right.se, right.p]).all()
    assert np.isnan([wrong.estimate, wrong.low, wrong.high, wrong.se, wrong.p]).all()
    assert wrong.observations == right.observations == 80


def written(folder: Path, label: bool) -> StudyScores:
    """A benchmark of which every model answers all items by one label, or whose fine-tuned models are the pretrained ones."""
    rng = np.random.default_rng(0)
    gold, drawn = rng.integers(0, 2, 40), {}

    def scores_of(mixture: str, stage: str, name: str) -> np.ndarray:
        x = drawn.setdefault(mixture, rng.normal(-3.0, 1.0, (40, 2)).astype(np.float32))
        if label:
            x = rng.normal(-3.0, 1.0, (40, 2)).astype(np.float32)
            x[:, 0] = x.max(axis=1) + 1.0
        return x

    return stored(folder, scores_of, gold)


def test_a_label_for_every_item_says_nothing_of_quantities(tmp_path: Path) -> None:
    study = written(tmp_path, label=True)
    rows = proxies.rows(study)
    chosen = [
        r for r in rows if (r.proxy, r.minus, r.measure) == (proxies.CHOSEN, "accuracy", "pair agreement")
    ]
    assert chosen and all(np.isnan(r.estimate) for r in chosen)
    findings = Findings({}, {"proxies": rows})
    assert not list(proxies.claims(findings)) and proxies.table(findings).blocks


def test_no_quantity_is_chosen_on_other_benchmarks_where_there_are_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    study = stored(tmp_path, lambda *_: rng.normal(-3.0, 1.0, (40, 2)), rng.integers(0, 2, 40))
    rows = {(r.proxy, r.minus, r.measure, r.category): r for r in proxies.rows(study)}
    assert np.isfinite(rows[proxies.ACCURACY, "", "pair agreement", ALL].estimate)
    assert all(np.isnan(r.estimate) for (proxy, *_), r in rows.items() if proxy == proxies.CHOSEN)


def test_models_that_are_right_of_every_answer_have_no_coefficients(tmp_path: Path) -> None:
    study = written(tmp_path, label=False)
    rows = item_transfer.rows(study)
    at = {(r.model, r.term): r for r in rows}
    assert at["+ margin", ""].pseudo_r2 == pytest.approx(1.0, abs=1e-3)
    assert ("+ log p", item_transfer.LOGP) in at and ("+ both", item_transfer.LOGP) not in at
    assert not list(item_transfer.claims(Findings({}, {"item_transfer": rows})))


def test_a_model_that_knows_nothing_has_no_slopes(tmp_path: Path) -> None:
    rows = item_transfer.rows(stored(tmp_path, lambda *_: np.full((40, 2), -2.0), np.arange(40) % 2))
    slopes = [r for r in rows if r.model in item_transfer.SLOPES]
    assert len(slopes) == 4 and all(np.isnan([r.estimate, r.low, r.high]).all() for r in slopes)
