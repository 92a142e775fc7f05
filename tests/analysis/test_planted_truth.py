"""Coverage: intervals hold what was planted about as often as they say, from simulated points and from whole
studies."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import planted
import pytest
import scipy.stats as st

from evalengine.analysis import contrast_coverage, coverage, power
from evalengine.analysis.coverage import KINDS, coherence_of, mean_of, single, verdict_rates
from evalengine.analysis.data.panel import load_panel
from evalengine.analysis.estimates.tables import rows_of
from evalengine.analysis.protocols.transfer import transfer
from evalengine.analysis.statistics.bootstrap import resamples
from evalengine.analysis.study import CorrelateOptions, analyse, fixed_data
from evalengine.cli import main
from evalengine.errors import UserError


@pytest.mark.parametrize("r", [0.0, 0.5, 0.8])
def test_coverage_at_nine_mixtures(r: float) -> None:
    """Percentile 0.905-0.92, BCa 0.94-0.96, Fisher 0.945-0.96 were measured with 400 draws; here 1,000, three
    sigma."""
    found = dict(zip(KINDS, single(r, "normal", 1000).covered, strict=True))
    assert 0.87 < found["percentile"] < 0.94
    assert 0.91 < found["bca"] < 0.975
    assert 0.93 < found["fisher"] < 0.975


def test_long_tails_break_fisher_more_than_bca() -> None:
    found = dict(zip(KINDS, single(0.5, "lognormal", 800).covered, strict=True))
    assert found["bca"] > found["fisher"] + 0.03


@pytest.mark.parametrize(("members", "r"), [(4, 0.5), (7, 0.0), (20, 0.8)])
def test_means_of_transfers_are_covered(members: int, r: float) -> None:
    found = dict(zip(KINDS, mean_of(members, r, "normal", 400).covered, strict=True))
    assert 0.92 < found["jackknife-z"] < 0.99  # three standard errors are 0.033
    assert found["bca"] < found["jackknife-z"]


@pytest.mark.parametrize("r", [0.0, 0.5])
def test_coherence_is_covered(r: float) -> None:
    found = dict(zip(KINDS, coherence_of(7, r, "normal", 400).covered, strict=True))
    assert 0.90 < found["bca-t"] < 0.98
    assert found["bca"] < found["bca-t"]


@pytest.mark.parametrize("members", [1, 4])
def test_differences_between_scales_are_covered(members: int) -> None:
    found = dict(zip(KINDS, mean_of(members, 0.5, "normal", 400, scales=2).covered, strict=True))
    assert 0.915 < found["jackknife"] < 0.99


def test_equal_transfer_at_both_scales_is_rarely_called_scale_dependent() -> None:
    """Without control of the false-discovery rate four studies of five hold one."""
    r = np.tile(np.resize([0.0, 0.3, 0.6, 0.9], 20), (2, 1))
    rates = verdict_rates("", r, "normal", 60)
    assert rates.any_scale_dependent <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 60)
    none = verdict_rates("", np.zeros((2, 20)), "normal", 60)
    assert none.any_reliable == 0.0


def test_a_clear_transfer_is_called_reliable() -> None:
    r = np.tile(np.where(np.arange(20) < 10, 0.99, 0.0), (2, 1))
    assert verdict_rates("", r, "normal", 10).reliable > 8.0


@pytest.mark.slow
def test_a_planted_study_is_recovered_at_the_stated_rate(tmp_path: Path) -> None:
    """Whole studies from items up: two scales, nine mixtures, benchmarks of known transfer, many items.

    The planted r is that of abilities; at 400 items and a spread of 1 the reliability is above 0.95, so accuracies
    carry it nearly whole.
    """
    truth = {"hellaswag": 0.9, "arc_easy": 0.5, "rte": 0.0}
    hits, total, claims_of_zero = 0, 0, 0
    plan = resamples(9, None)
    for seed in range(30):
        folder = tmp_path / str(seed)
        planted.write_study(folder, truth, seed=seed, items=400, spread=1.0)
        data = fixed_data(load_panel(folder), plan, "pearson")
        for row in rows_of(transfer(data, "accuracy"), plan, CorrelateOptions()):
            if not row.contrast:
                total += 1
                hits += row.low <= truth[row.name] <= row.high
                claims_of_zero += row.name == "rte" and (row.low > 0 or row.high < 0)
    assert total == 180
    assert 0.88 < hits / total <= 0.99
    assert claims_of_zero / 60 < 0.15


def test_verdicts_follow_the_planted_truth(tmp_path: Path) -> None:
    planted.write_study(tmp_path, {"hellaswag": 0.99, "rte": 0.0}, seed=3, items=600, spread=1.0)
    found = {
        v.benchmark: v
        for v in analyse(load_panel(tmp_path), CorrelateOptions()).verdicts
        if v.quantity == "accuracy"
    }
    assert found["hellaswag"].verdict == "reliable" and "n = 9" in found["hellaswag"].because
    assert found["rte"].verdict in ("undecided", "unreliable", "scale-dependent")


@pytest.mark.parametrize(("n", "r"), [(4, 0.9), (9, 0.59), (20, 0.6), (46, 0.4)])
def test_power_equals_simulation(n: int, r: float) -> None:
    rng = np.random.default_rng(n)
    x, z = rng.normal(size=(2, 40_000, n))
    y = r * x + math.sqrt(1 - r * r) * z
    seen = (st.pearsonr(x, y, axis=1).pvalue < 0.05).mean()
    assert power.power_of(r, n) == pytest.approx(seen, abs=0.012)
    assert power.power_of(-r, n) == pytest.approx(power.power_of(r, n), abs=1e-9)
    assert power.power_of(0.0, n) == pytest.approx(0.05, abs=1e-4)


def test_mixtures_needed_and_detectable_are_inverses() -> None:
    for r in (0.3, 0.6, 0.8):
        n = power.mixtures_needed(r)
        assert power.power_of(r, n) >= 0.8 > power.power_of(r, n - 1)
        assert power.detectable(n) <= r + 1e-6 < power.detectable(n - 1)
    with pytest.raises(UserError, match="more than 100,000"):
        power.mixtures_needed(0.001)


def test_power_with_seeds_equals_simulation() -> None:
    """Against the r that inherited seeds alone would show, at the 5% that it has where the true r is 0."""
    rng = np.random.default_rng(8)
    n, blur = 20, power.Blur(share=0.3, seeds=2, inherited=0.9)

    def z(true: float) -> np.ndarray:
        covariance = 0.7 * np.array([[1, true], [true, 1]]) + 0.15 * np.array([[1, 0.9], [0.9, 1]])
        x, y = np.moveaxis(rng.multivariate_normal([0, 0], covariance, (20_000, n)), 2, 0)
        r = st.pearsonr(x, y, axis=1).statistic
        assert np.tanh(np.arctanh(r).mean()) == pytest.approx(blur.seen(true), abs=0.03)
        return np.abs(np.arctanh(r) - np.arctanh(blur.seen(0.0)))

    seen = (z(0.7) > np.quantile(z(0.0), 0.95)).mean()
    assert power.plan(0.7, n, blur).power == pytest.approx(seen, abs=0.03)
    assert power.power_of(blur.distance(0.0), n) == pytest.approx(0.05, abs=1e-4)
    assert blur.true(blur.distance(0.7)) == pytest.approx(0.7)


def test_more_seeds_or_more_mixtures() -> None:
    assert power.Blur(0.8).seen(0.5) == pytest.approx(0.4)
    assert power.Blur(share=0.3, inherited=0.9).seen(0.0) == pytest.approx(0.27)
    ways = power.spend(27, blur=power.Blur(share=0.3))
    assert [(way.seeds, way.n) for way in ways] == [(1, 27), (2, 13), (3, 9), (4, 6), (5, 5)]
    for way in ways:
        seen = power.Blur(share=0.3, seeds=way.seeds).seen(way.r)
        assert seen == pytest.approx(power.detectable(way.n)) and way.r > seen
    # half of the variance is no reason to have fewer mixtures
    assert min(ways, key=lambda way: way.r).seeds == 1


def test_power_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["power", "--r", "0.59", "-n", "9"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "[-0.12, +0.90]" in said and "20" in said
    assert main(["power", "--r", "1.5"]) == 1
    assert "must lie between -1 and 1" in capsys.readouterr().err
    assert main(["power", "--ceiling", "0"]) == 1
    assert main(["power", "--seeds", "3"]) == 1 == main(["power", "--inherited", "0.5"])
    assert main(["power", "--seed-share", "0.3", "--inherited", "0.9", "-n", "9", "--seeds", "3"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "More seeds or more mixtures?" in said and "+0.27" in said and "+0.11" in said
    for more, says in (
        (["-n", "4", "--alpha", "1e-9"], "4 none: too few mixtures"),
        (["-n", "4", "--alpha", "0.001"], "4 above 0.99"),
        (["-n", "6", "--ceiling", "0.5"], "6 none: noise hides it"),
    ):
        assert main(["power", *more]) == 0
        assert says in " ".join(capsys.readouterr().out.split())
    assert main(["power", "-n", "4", "--alpha", "1e-9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["detectable"] == [{"n": 4, "r": None}]
    assert main(["power", "--seed-share", "1"]) == 1
    assert "--seed-share 1 must be at least 0 and below 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        (coverage, ["--mixtures", "9,x"], "'x' is no whole number from 4 up"),
        (coverage, ["--mixtures", "3"], "'3' is no whole number from 4 up"),
        (coverage, ["--draws", "0"], "'0' is no whole number from 1 up"),
        (contrast_coverage, ["--designs", "none"], "--designs none: choose from"),
    ],
)
def test_what_cannot_be_simulated_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["coverage", *arguments])
    with pytest.raises(SystemExit):
        module.main()
    found = capsys.readouterr()
    assert said in found.err and not found.out
