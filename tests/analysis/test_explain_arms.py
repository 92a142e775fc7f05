"""Arms of fine-tuning: paired differences, tests of equivalence, and what exchanged labels tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import planted
import pytest
import scipy.stats as st

from evalengine import store
from evalengine.analysis.explain import arms
from evalengine.analysis.explain.arms import DIFFERS, EQUIVALENT, GUESSING, OPEN, ArmRow, equivalence
from evalengine.analysis.explain.choices import read_choices
from evalengine.analysis.explain.design import design_of
from evalengine.analysis.explain.explainer import ExplainOptions, Findings, StudyScores
from evalengine.analysis.explain.student import Mean, two_way_mean
from evalengine.analysis.report.page import html

MIXTURES = ("a", "b", "c", "d", "e", "f")
ITEMS = 400


def write(
    folder: Path,
    theta: dict[str, float],
    *,
    benchmarks: Sequence[str] = ("rte", "wic"),
    choices: int = 2,
    skip: Sequence[str] = (),
    chars: np.ndarray | None = None,
    alike: float = 0.0,
    seed: int = 0,
) -> None:
    """A store in which stage s gives the right choice theta[s] more than the others, on average over items and mixtures.

    A stage's choices share the part `alike` of their noise with the other stages'.
    """
    rng = np.random.default_rng(seed)
    for benchmark in benchmarks:
        gold = rng.integers(0, choices, ITEMS)
        for mixture in MIXTURES:
            common = rng.normal(size=(ITEMS, choices)) * alike
            for stage, effect in theta.items():
                name = f"1B-{mixture}-{stage}"
                score = common + rng.normal(size=(ITEMS, choices)) * np.sqrt(1 - alike**2)
                score[np.arange(ITEMS), gold] += effect
                if f"{name}/{benchmark}" in skip or name in skip:
                    continue
                who = {
                    "checkpoint": name, "scale": "1B", "mixture": mixture, "stage": stage,
                    "benchmark": benchmark, "category": "NLI" if benchmark == "rte" else "Semantic",
                }  # fmt: skip
                table = planted.item_table(who, (score - 3).astype(np.float32), gold, chars=chars)
                store.write(folder / name / f"{benchmark}.arrow", table, planted.metadata())


def findings_of(folder: Path, stages: Sequence[str] | None = None) -> Findings:
    scores = read_choices(folder)
    study = StudyScores(scores, design_of(scores, stages), ExplainOptions())
    return Findings({"stages": study.design.stages}, {"arms": arms.rows(study)})


def one(
    findings: Findings, stage: str, measure: str = "accuracy", minus: str = "", at: str = "All"
) -> ArmRow:
    fixed = {"category": at, "benchmark": ""} if at[0].isupper() else {"benchmark": at}
    (row,) = findings.rows("arms", stage=stage, measure=measure, minus=minus, **fixed)
    return row


def test_equivalence_is_two_one_sided_t_tests() -> None:
    rng = np.random.default_rng(0)
    for mean in (-0.03, 0.0, 0.015, 0.02):
        x = mean + 0.02 * rng.normal(size=9)
        above = st.ttest_1samp(x, -0.02, alternative="greater").pvalue
        below = st.ttest_1samp(x, 0.02, alternative="less").pvalue
        assert equivalence(two_way_mean([x[:, None]])) == pytest.approx(max(above, below))
    assert np.isnan(equivalence(two_way_mean([x[:1, None]]))) and np.isnan(
        equivalence(Mean(0, np.nan, np.nan, 0, 9))
    )


def test_a_difference_of_the_margin_is_rarely_called_equivalent() -> None:
    """At the margin itself, over mixtures and items: at most 5% of studies."""
    rng, called = np.random.default_rng(1), 0
    for _ in range(600):
        x = (
            0.02
            + 0.01 * rng.normal(size=(9, 1))
            + 0.05 * rng.normal(size=80)
            + 0.2 * rng.normal(size=(9, 80))
        )
        called += equivalence(two_way_mean([x])) < 0.05
    assert called / 600 < 0.05 + 2 * np.sqrt(0.05 * 0.95 / 600)


def test_rows_are_paired_means_over_items_and_mixtures(tmp_path: Path) -> None:
    write(tmp_path, {"pt": 0.3, "sft": 1.0, "sft_shuffled": 0.6}, choices=3)
    findings = findings_of(tmp_path)
    value: dict[str, list[np.ndarray]] = {}
    for stage in ("pt", "sft", "sft_shuffled"):
        for mixture in MIXTURES:
            table = store.read(tmp_path / f"1B-{mixture}-{stage}" / "rte.arrow")
            L, gold = np.array(table["loglik"].to_pylist()), table["gold"].to_numpy()
            right = L[np.arange(ITEMS), gold]
            mass = np.log(np.exp(L).sum(axis=1))
            value.setdefault(stage, []).append(np.stack([L.argmax(axis=1) == gold, right - mass, mass]))
    x = {stage: np.stack(of, axis=1) for stage, of in value.items()}
    uniform = np.array([1 / 3, -np.log(3), np.nan])[:, None, None]
    for m, measure in enumerate(("accuracy", "log p(gold | choices)", "log mass")):
        for stage, minus, expected in (
            ("sft", "", x["sft"]),
            ("sft_shuffled", "sft", x["sft_shuffled"] - x["sft"]),
            ("sft_shuffled", "pt", x["sft_shuffled"] - x["pt"]),
            ("sft_shuffled", "uniform", x["sft_shuffled"] - uniform),
        ):
            if minus == "uniform" and measure == "log mass":
                assert not findings.rows("arms", measure=measure, minus=minus)
                continue
            row = one(findings, stage, measure, minus, at="rte")
            direct = two_way_mean([expected[m]])
            assert row[6:10] == pytest.approx(direct[:4], rel=1e-5) and row.n == 6
    assert one(findings, "sft_shuffled", minus="sft").verdict == DIFFERS
    assert "At 1B, sft_shuffled is below sft" in " ".join(claim.sentence for claim in arms.claims(findings))


def test_what_is_gained_on_a_uniform_choice_is_at_most_what_is_left(tmp_path: Path) -> None:
    """Of three choices accuracy gains 2/3 at most, and log p(gold | choices) log 3. Two mixtures have wide intervals."""
    theta = {"pt": 0.3, "sft": 1.0, "sft_shuffled": 2.5}
    few = [f"1B-{mixture}-{stage}" for mixture in MIXTURES[2:] for stage in theta]
    write(tmp_path, theta, choices=3, skip=few)
    found = findings_of(tmp_path).rows("arms", minus="uniform")
    assert len(found) > 4
    for row in found:
        most = 2 / 3 if row.measure == "accuracy" else np.log(3)
        assert row.high <= most + 1e-12 and row.estimate <= row.high
    assert {round(row.high, 9) for row in found} & {round(2 / 3, 9), round(float(np.log(3)), 9)}


def test_exchanged_labels_turn_accuracy_over_if_the_mapping_is_learnt(tmp_path: Path) -> None:
    for theta, learnt in ((-1.2, 1.0), (1.2, 0.0), (0.0, 0.5)):
        folder = tmp_path / str(learnt)
        write(folder, {"pt": 0.0, "sft": 1.2, "sft_delusive": theta})
        findings = findings_of(folder)
        kept, wrong = one(findings, "sft"), one(findings, "sft_delusive")
        assert wrong.estimate == pytest.approx(
            learnt * (1 - kept.estimate) + (1 - learnt) * kept.estimate, abs=0.02
        )
        row = one(findings, "sft_delusive", "mapping learnt")
        assert row.low < learnt < row.high and row.high - row.low < 0.2
        assert row.note == "of rte, wic"
        said = [claim for claim in arms.claims(findings) if "turns exchanged labels over" in claim.text]
        assert [claim.kind for claim in said] == ["supported" if learnt else "unsupported"]
    assert one(findings, "sft", "log p(gold | choices)", "uniform").estimate > 0
    assert "mapping learnt" in html(arms.EXPLAINER.section(findings), findings.method)


def test_choices_behind_contexts_of_their_own_share_no_mass(tmp_path: Path) -> None:
    write(tmp_path, {"pt": 0.0, "sft": 1.0, "sft_emptied": 0.5}, benchmarks=("rte", "winogrande"))
    findings = findings_of(tmp_path)
    assert one(findings, "sft_emptied", minus="sft", at="winogrande").n == 6
    assert not findings.rows("arms", benchmark="winogrande", measure="log mass")
    row, alone = one(findings, "sft", "log mass"), one(findings, "sft", "log mass", at="rte")
    assert row.note == "without winogrande (contexts differ by choice)" and row.estimate == alone.estimate


def test_choices_of_their_own_have_no_mapping(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(2, 9, (ITEMS, 2))
    write(tmp_path, {"pt": 0.0, "sft": 1.2, "sft_delusive": 0.0}, chars=lengths)
    assert not findings_of(tmp_path).rows("arms", measure="mapping learnt")


def test_what_is_alike_is_equivalent_and_what_guesses_is_not_compared(tmp_path: Path) -> None:
    write(tmp_path / "alike", {"pt": 0.0, "sft": 1.2, "sft_emptied": 1.2}, alike=0.995)
    findings = findings_of(tmp_path / "alike")
    row = one(findings, "sft_emptied", minus="sft")
    assert row.verdict == EQUIVALENT and row.p < 0.05 and abs(row.estimate) < 0.02
    assert "At 1B, sft_emptied is within 2 points of sft" in next(iter(arms.claims(findings))).sentence
    write(tmp_path / "noisy", {"pt": 0.0, "sft": 0.3, "sft_emptied": 0.3})
    assert one(findings_of(tmp_path / "noisy"), "sft_emptied", minus="sft", at="rte").verdict == OPEN
    write(tmp_path / "guess", {"pt": 0.0, "sft": 0.0, "sft_emptied": 1.2, "sft_delusive": 0.0})
    findings = findings_of(tmp_path / "guess")
    assert one(findings, "sft_emptied", minus="sft").verdict == GUESSING
    (claim,) = arms.claims(findings)
    assert "sft itself is not above guessing" in claim.sentence
    row = one(findings, "sft_delusive", "mapping learnt")
    assert np.isnan(row.estimate) and row.note == "of rte, wic; sft is not above guessing"


def test_an_arm_of_some_mixtures_is_paired_with_those(tmp_path: Path) -> None:
    skip = ["1B-a-sft_emptied", "1B-b-sft_emptied", "1B-c-sft_shuffled/wic", "1B-f-sft"]
    theta = {
        "pt": 0.0,
        "sft": 1.0,
        "sft_emptied": 0.9,
        "sft_shuffled": 0.5,
        "sft+chat": 1.0,
        "sft_emptied+chat": 0.2,
    }
    write(tmp_path, theta, skip=skip)
    findings = findings_of(tmp_path)
    assert one(findings, "sft_emptied", minus="sft").n == 3
    assert one(findings, "sft").n == 5
    shuffled = one(findings, "sft_shuffled", minus="sft")
    assert shuffled.n == 5 and shuffled.note == "without wic (not on every checkpoint)"
    assert one(findings, "sft_emptied+chat", minus="sft+chat").estimate < -0.1
    assert not findings.rows("arms", stage="sft_emptied+chat", minus="sft")
    assert findings_of(tmp_path, ["sft", "sft_shuffled"]).rows("arms", stage="sft_shuffled", minus="sft")
    write(tmp_path / "none", {"pt": 0.0, "sft": 1.0})
    none = findings_of(tmp_path / "none")
    assert none.tables["arms"] == [] and arms.EXPLAINER.section(none) == []
