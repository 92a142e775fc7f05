"""Shares of answer formats by hand, the stages that are compared, and stores without formats."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import planted
import pytest

from evalengine import store
from evalengine.analysis.data.items import read_store
from evalengine.analysis.estimates.groups import ALL
from evalengine.analysis.explain import format_shares as fs
from evalengine.analysis.explain.choices import read_choices
from evalengine.analysis.explain.explainer import ExplainOptions
from evalengine.analysis.explain.findings import explain
from evalengine.cli import main
from evalengine.errors import UserError

FORMATS = {"plain": " {choice}", "answer": " Answer: {choice}", "letter": " ({letter})"}
NAMES = {"rte": "NLI", "cb": "NLI", "sciq": "Science"}
MIXTURES = ("a", "b", "c", "d")
STAGES = ("pt", "sft", "sft_emptied", "dpo")
ITEMS, F = planted.FORMAT_ITEMS, len(FORMATS)

Logs = dict[tuple[str, str, str], np.ndarray]


def write(
    folder: Path, stages: tuple[str, ...] = STAGES, skip: tuple[str, ...] = ()
) -> tuple[Logs, np.ndarray]:
    """An ordinary store of pt and sft, and formats of all stages; later stages prefer `answer`."""
    planted.write_study(
        folder, dict.fromkeys(NAMES, 0.5), items=ITEMS, scales=["1B"], mixtures=MIXTURES, categories=NAMES
    )  # fmt: skip
    return planted.write_formats(folder, FORMATS, NAMES, ["1B"], MIXTURES, stages, skip, {"cb": ["i3"]})


def shares(x: np.ndarray) -> np.ndarray:
    mass = np.exp(x).sum(axis=2)
    return mass / mass.sum(axis=1, keepdims=True)


def entropy(share_F: np.ndarray) -> float:
    return float(-(share_F * np.log(share_F)).sum())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Logs, np.ndarray]:
    folder = tmp_path_factory.mktemp("formats")
    return folder, *write(folder)


def test_shares_entropy_accuracy_and_winner_by_hand(world: tuple[Path, Logs, np.ndarray]) -> None:
    folder, logs, gold = world
    findings = explain(folder, ExplainOptions())
    assert findings.method["formats"] == FORMATS
    keep = {name: np.array([name != "cb" or i != 3 for i in range(ITEMS)]) for name in NAMES}
    for stage, (category, names) in itertools.product(STAGES, ((ALL, list(NAMES)), ("NLI", ["rte", "cb"]))):
        of_mixture = {
            m: np.mean([shares(logs[m, stage, n][keep[n]]).mean(axis=0) for n in names], axis=0)
            for m in MIXTURES
        }
        at = {"scale": "1B", "category": category, "benchmark": "", "stage": stage}
        for m, share_F in {"": np.mean(list(of_mixture.values()), axis=0), **of_mixture}.items():
            found = {
                r.format: r
                for r in findings.rows("format_shares", **at, mixture=m, measure="share", minus="")
            }
            np.testing.assert_allclose([found[f].estimate for f in FORMATS], share_F, rtol=1e-9)
            (row,) = findings.rows("format_shares", **at, mixture=m, measure="entropy", minus="")
            expected = np.mean([entropy(of_mixture[one]) for one in ([m] if m else MIXTURES)])
            assert row.estimate == pytest.approx(expected, rel=1e-9)
            (won,) = findings.rows("format_winners", **at, mixture=m)
            assert won.winner == list(FORMATS)[int(share_F.argmax())] and won.share == pytest.approx(
                share_F.max()
            )
            assert (
                won.entropy == row.estimate and row.n == (1 if m else 4) and np.isfinite(row.low) == (m == "")
            )
            right = np.mean([
                [(logs[one, stage, n][keep[n]].argmax(2) == gold[keep[n], None]).mean(0) for n in names]
                for one in ([m] if m else MIXTURES)
            ], axis=(0, 1))  # fmt: skip
            assert won.accuracy == pytest.approx(right[share_F.argmax()])
    masses = np.mean([np.exp(logs[m, "pt", "rte"]).sum(axis=(1, 2)).mean() for m in MIXTURES])
    (row,) = findings.rows("format_shares", stage="pt", benchmark="rte", measure="mass", minus="")
    assert row.estimate == pytest.approx(masses) and 0.0 <= row.low <= row.high


def test_each_stage_is_compared_with_the_one_it_comes_from(world: tuple[Path, Logs, np.ndarray]) -> None:
    folder, *_ = world
    findings = explain(folder, ExplainOptions())
    won = {w.stage: w for w in findings.rows("format_winners", category=ALL, benchmark="", mixture="")}
    assert {stage: w.before for stage, w in won.items()} == {
        "pt": "", "sft": "pt", "sft_emptied": "pt", "dpo": "sft",
    }  # fmt: skip
    dpo = won["dpo"]
    assert dpo.winner == dpo.winner_before == "answer" and dpo.share_before == won["sft"].share < dpo.share
    assert dpo.drop == pytest.approx(won["sft"].entropy - dpo.entropy) and dpo.drop > 0
    assert np.isnan(won["pt"].drop) and won["pt"].winner_before == ""
    (change,) = findings.rows(
        "format_shares", category=ALL, benchmark="", mixture="", stage="dpo", minus="sft", measure="entropy"
    )
    assert change.estimate == pytest.approx(-dpo.drop) and change.high < 0
    said = [claim.sentence for claim in fs.claims(findings)]
    assert len(said) == 3 and "sft to dpo narrows the formats of answers" in said[-1]
    assert (
        f"answer has {100 * dpo.share:.1f}% of the answers in these formats, before {100 * dpo.share_before:.1f}%: a "
        in said[-1]
    )
    chat = {"pt+chat": 0, "sft+chat": 0, "dpo+chat": 0, "pt": 0}
    assert [fs.previous(s, chat, "pt") for s in chat] == ["", "pt+chat", "sft+chat", ""]
    assert fs.previous("dpo", {"pt": 0, "dpo": 0}, "pt") == "pt"
    assert fs.previous("tuned", {"base": 0, "tuned": 0}, "base") == "base" and not fs.previous(
        "base", chat, "base"
    )
    order = ["other", "dpo", "sft_emptied", "sft+chat", "pt+chat", "sft", "pt"]
    assert sorted(order, key=fs.stage_key) == [
        "pt",
        "pt+chat",
        "sft",
        "sft+chat",
        "sft_emptied",
        "dpo",
        "other",
    ]


def test_the_interval_of_the_entropy_holds_for_other_items_and_mixtures() -> None:
    """Mixtures and items drawn anew, against the entropy of the shares of all of them."""
    rng = np.random.default_rng(3)

    def draw(mixtures: int, items: int) -> np.ndarray:
        x = (
            rng.normal(size=(mixtures, F, 1)) * 0.4
            + rng.normal(size=(1, F, items))
            + np.array([2.0, 0, 0])[:, None]
        )
        x = x + 0.7 * rng.normal(size=(mixtures, F, items))
        return np.asarray(np.exp(x) / np.exp(x).sum(axis=1, keepdims=True))

    many = [entropy(s) for s in draw(400, 4000).mean(axis=2)]
    hits = 0
    for _ in range(300):
        share = draw(9, 100)
        one = fs.Shares(share, share, share[:, 0])
        values = fs.measures([fs.Shared("NLI", "rte", {"pt": one})], "pt", list(range(9)), ("x", "y", "z"))
        mean = fs.two_way_mean(values[fs.ENTROPY, ""])
        hits += mean.low <= np.mean(many) <= mean.high
    assert 0.92 <= hits / 300 <= 0.99


def test_ordinary_protocols_do_not_see_them(world: tuple[Path, Logs, np.ndarray], tmp_path: Path) -> None:
    folder, _, _ = world
    assert {c.stage for c in read_store(folder).checkpoints} == {"pt", "sft"}
    assert {c.stage for c in read_choices(folder).checkpoints.values()} == {"pt", "sft"}
    assert main(["correlate", str(folder), "--out", str(tmp_path / "a"), "--bootstrap", "100"]) == 0
    assert json.loads((tmp_path / "a" / "analysis.json").read_text())["stages"] == ["pt", "sft"]
    assert main(["explain", str(folder), "--out", str(tmp_path / "a")]) == 0
    assert main(["report", str(tmp_path / "a"), "--figures", "none"]) == 0
    page = (tmp_path / "a" / "report.html").read_text()
    assert "<h2>Answer formats</h2>" in page and "Shares of all formats" in page
    for read in (read_store, read_choices):
        with pytest.raises(UserError, match="was scored with --formats: give the store"):
            read(folder / "formats")
    with pytest.raises(UserError, match="was scored without --formats"):
        read_choices(folder, formats=True)


def test_stages_of_other_mixtures_are_compared_where_both_are(tmp_path: Path) -> None:
    logs, _ = write(tmp_path, ("pt", "sft"), skip=("1B-d-sft",))
    findings = explain(tmp_path, ExplainOptions())
    at = {"category": "Science", "benchmark": "sciq", "mixture": "", "measure": "share", "format": "answer"}
    (row,) = findings.rows("format_shares", **at, stage="sft", minus="pt")
    change = [
        (shares(logs[m, "sft", "sciq"]) - shares(logs[m, "pt", "sciq"]))[:, 1].mean() for m in MIXTURES[:3]
    ]
    assert row.n == 3 and row.estimate == pytest.approx(np.mean(change))
    (pt,) = findings.rows("format_winners", category=ALL, mixture="", benchmark="", stage="pt")
    (claim,) = fs.claims(findings)
    assert pt.winner != "answer" and f"%, when {pt.winner} had the most: " in claim.sentence
    (won,) = findings.rows("format_winners", benchmark="sciq", stage="sft")
    assert won.note == "the stage before has 4 mixtures"


def test_a_file_that_is_not_what_it_says_is_refused(tmp_path: Path) -> None:
    write(tmp_path, ("pt", "sft"))
    for path in (tmp_path / "formats").glob("*/rte.arrow"):
        about = {
            **(store.read_metadata(path) or {}),
            "formats": json.dumps({"cue": "", "formats": {"a": "", "b": ""}}),
        }
        store.write(path, store.read(path), about)
    with pytest.raises(UserError, match="were scored in different formats"):
        explain(tmp_path, ExplainOptions())
    for path in (tmp_path / "formats").glob("*/*.arrow"):
        about = {
            **(store.read_metadata(path) or {}),
            "formats": json.dumps({"cue": "", "formats": dict.fromkeys("abcd", "")}),
        }
        store.write(path, store.read(path), about)
    with pytest.raises(UserError, match="does not hold every choice in every format"):
        explain(tmp_path, ExplainOptions())


def test_a_store_without_formats_has_no_shares(tmp_path: Path) -> None:
    planted.write_study(tmp_path, dict.fromkeys(NAMES, 0.5), items=20, scales=["1B"], categories=NAMES)
    findings = explain(tmp_path, ExplainOptions())
    assert not findings.tables["format_shares"] and not findings.tables["format_winners"]
    assert not fs.EXPLAINER.section(findings) and not findings.method["formats"]
