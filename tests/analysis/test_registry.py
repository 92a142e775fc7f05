"""A protocol is one file and one line: with that line it is computed, stored, reported, drawn and summarised. The same
for a metric."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import planted
import pytest

from evalengine.analysis import study
from evalengine.analysis.claims import SUPPORTED, Claim
from evalengine.analysis.data.items import read_store
from evalengine.analysis.data.panel import load_panel
from evalengine.analysis.estimates.groups import Data, Group, Label, Statistic
from evalengine.analysis.estimates.tables import Row
from evalengine.analysis.figure import File, Heading, IntervalPlot
from evalengine.analysis.protocols import registry
from evalengine.analysis.protocols.protocol import Protocol
from evalengine.analysis.report import report, summary
from evalengine.analysis.results import load_results
from evalengine.analysis.study import CorrelateOptions, analyse
from evalengine.cli import main
from evalengine.errors import UserError
from evalengine.store import metrics


def gain(data: Data) -> Group:
    """The mean over mixtures of after minus before, of each benchmark."""
    panel = data.panel
    B = len(panel.benchmarks)
    labels = [Label(panel.categories[b], panel.benchmarks[b]) for b in range(B)]
    found = {}
    for scale in panel.scales:
        sample = data.sample("accuracy", scale)
        gain_BM = sample.x_VMC[B:, :, 0] - sample.x_VMC[:B, :, 0]
        each = zip(labels, gain_BM @ sample.w_MC, np.isfinite(gain_BM), strict=True)
        found[scale] = [Statistic(*one) for one in each]
    return Group.of("gain", "accuracy", found)


def label(row: Row) -> str:
    return row.name


GAIN = Protocol(
    "gain",
    rows=lambda study: study.rows(gain(study.data)),
    shown=lambda results: [
        Heading("Gain"),
        f"{len(results.rows('gain'))} rows",
        File("gain", IntervalPlot(results.rows("gain"), label)),
    ],
    claims=lambda results: [Claim(SUPPORTED, f"{len(results.tables['gain'])} gains.")],
)


def test_a_protocol_in_the_registry_is_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (study, report, summary):
        monkeypatch.setattr(module, "PROTOCOLS", (*registry.PROTOCOLS, GAIN))
    planted.write_study(tmp_path / "scores", {"hellaswag": 0.8, "piqa": 0.8, "rte": 0.8}, items=40)
    panel = load_panel(tmp_path / "scores")
    analyse(panel, CorrelateOptions()).write(tmp_path)
    stored = json.loads((tmp_path / "gain.json").read_text())
    x_TMB = panel.values["accuracy"][panel.scales.index("1B")]
    expected = dict(zip(panel.benchmarks, (x_TMB[1] - x_TMB[0]).mean(axis=0), strict=True))
    large = {row["name"]: row["estimate"] for row in stored if row["scale"] == "1B" and not row["contrast"]}
    assert large == pytest.approx(expected)
    difference = [row for row in stored if row["contrast"]]
    assert {(row["contrast"], row["scale"], row["minus"]) for row in difference} == {("scale", "1B", "240M")}
    assert len(stored) == 3 * len(difference) == 3 * len(panel.benchmarks)
    html = report.write_report(tmp_path, tmp_path).read_text()
    assert '<h2>Gain</h2><p class="hint">6 rows</p>' in html and "9 gains." in html
    first, second = (
        report.write_figures(tmp_path, tmp_path / name, list(report.FORMATS)) for name in ("a", "b")
    )
    assert tmp_path / "a" / "gain.svg" in first
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize("scales", [("1B", "1B-240M"), ("240M-chat", "1B-base")])
def test_scales_with_a_minus_in_their_name(
    tmp_path: Path, scales: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """They are scales like others on the terminal, in the tables, the verdicts and the report."""
    planted.write_study(tmp_path / "scores", {"rte": 0.5, "piqa": 0.9}, items=40, scales=scales)
    assert main(["correlate", str(tmp_path / "scores"), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    results = load_results(tmp_path)
    small, large = results.scales
    assert (small, large) == scales and f"{large} − {small}" in " ".join(said.split())
    single = results.rows("transfer", protocol="transfer")
    assert {row.scale for row in single} == set(scales)
    between = results.rows("transfer", protocol="transfer", contrast="scale")
    assert {(row.scale, row.minus) for row in between} == {(large, small)}
    at = {(row.scale, row.quantity, row.name): row.estimate for row in single}
    assert {row.quantity for row in between} == {"accuracy", "confidence", "accuracy − confidence"}
    for row in (row for row in between if row.quantity in results.method["quantities"]):
        values = [at[scale, row.quantity, row.name] for scale in (large, small)]
        assert row.estimate == pytest.approx(values[0] - values[1])
    for verdict in results.verdicts:
        mine = [r for r in single if (r.quantity, r.name) == (verdict["quantity"], verdict["benchmark"])]
        assert (verdict["verdict"] == "reliable") == all(r.low > 0 and r.q < 0.05 for r in mine)
    html = report.write_report(tmp_path, tmp_path).read_text()
    assert f"{large} minus {small}" in html and f">{large}<" in html


def test_tables_of_the_version_before_are_refused(tmp_path: Path) -> None:
    (tmp_path / "analysis.json").write_text(json.dumps({"tables": ["transfer"], "checksums": {}}))
    with pytest.raises(UserError, match="another version of evalengine: run `evalengine correlate STORE"):
        load_results(tmp_path)


def test_a_metric_in_the_table_is_a_choice_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(metrics.METRICS, "worst", metrics.Metric(lambda loglik_C, _: -loglik_C))
    planted.write_study(tmp_path / "scores", {"rte": 0.5}, items=40, choices=2)
    best, worst = (read_store(tmp_path / "scores", metric).benchmarks[0] for metric in ("acc", "worst"))
    assert (best.correct_KI + worst.correct_KI == 1).all()
    run = ["correlate", str(tmp_path / "scores"), "--out", str(tmp_path / "o"), "--metric"]
    assert main([*run, "worst"]) == 0 and "Transfer" in capsys.readouterr().out
    assert main([*run, "best"]) == 1 and "acc_pmi, worst" in capsys.readouterr().err
