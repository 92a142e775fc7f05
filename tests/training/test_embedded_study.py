"""What the embedded study shows: the counting, against values made by hand; and its seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats as st

from evalengine.analysis.data.items import read_store
from evalengine.analysis.embedded_study import chance, reranked, standard_errors
from evalengine.benchmarks import world
from evalengine.cli import main
from evalengine.cli.demo import commands, reseeded
from evalengine.training.study import load, runs


def test_standard_errors_of_a_guesser_and_of_paired_differences() -> None:
    right = np.array([1.0] * 60 + [0.0] * 40)
    # 60% against 50%: 0.1 / sqrt(0.25 / 100) = 2
    assert standard_errors(right, 0.5) == pytest.approx(2.0)
    assert standard_errors(right, 0.6) == pytest.approx(0.0)


def test_a_reversal_needs_both_orders_beyond_the_errors() -> None:
    good, poor = np.ones(40), np.array([1.0, 0.0] * 20)
    assert reranked(np.stack([good, poor]), np.stack([poor, good]))
    assert not reranked(np.stack([good, poor]), np.stack([good, poor]))
    nearly = np.array([0.0] + [1.0] * 39)  # one item in forty: one standard error
    assert not reranked(np.stack([good, poor]), np.stack([nearly, good]))


def test_a_seed_changes_the_world_and_the_training_and_nothing_else(tmp_path: Path) -> None:
    shipped = load("embedded")
    file = tmp_path / "study.yaml"
    file.write_text(reseeded("embedded", 7))
    other = load(file)
    assert (other.seed, other.world.seed if other.world else None) == (7, 7)
    assert (other.mixtures, other.scales, other.sources) == (
        shipped.mixtures,
        shipped.scales,
        shipped.sources,
    )
    train, score = commands(Path("d"), False, "exact", 0, str(file), "0.6M-")[:2]
    assert train[-2:] == ["--only", "0.6M-*"]
    names = {Path(part).name for part in score if part.startswith("d/ckpts/")}
    assert names == {run.name for run in runs(other) if run.scale == "0.6M"} and len(names) == 18


@pytest.mark.parametrize(
    ("chars", "expected"), [([[2, 3]] * 4, 0.75), ([[2, 3], [4, 1], [5, 5], [2, 2]], 0.5)]
)
def test_a_position_is_a_guess_only_where_it_is_a_label(chars: list, expected: float, tmp_path: Path) -> None:
    """Three of four right answers stand first: worth 75% to who always says "yes", nothing where texts differ."""
    table = pa.table({"loglik": [[-1.0, -2.0]] * 4, "gold": [0, 0, 0, 1], "chars": chars})
    file = tmp_path / "m.arrow"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert chance(file) == pytest.approx(expected)


SCIENCE = """
seed: 0
threads: 1
tokenizer: {vocab: 1536, sample_mb: 8}
sources:
  web_a: {path: corpora/web_a.txt}
  web_b: {path: corpora/web_b.txt}
mixtures:
  told: {web_a: 1.0}
  taught: {web_b: 1.0}
scales:
  tiny:
    {d_model: 128, layers: 2, heads: 4, head_dim: 32, ffn: 384, context: 128,
     pretrain: {tokens: 64_000, lr: 6.0e-3, batch_rows: 1}, sft: {epochs: 1, lr: 2.0e-3, batch_examples: 8}}
sft:
  data:
    - {path: sft.jsonl}
"""
LEARNT = {
    "told": "hellaswag",
    "taught": "arc_easy",
}  # source -> what a model of it alone knows after 500 steps


@pytest.fixture(scope="module")
def told_and_taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real models, a few seconds each, scored on what their sources tell and on the planted facts."""
    folder = tmp_path_factory.mktemp("told")
    world.write(folder, words=40_000, chats=50)
    study = folder / "study.yaml"
    study.write_text(SCIENCE)
    ckpts, scores = folder / "ckpts", folder / "scores"
    train = ["train", str(study), "--data", str(folder), "--out", str(ckpts), "--only", "*-pt"]
    assert main([*train, "--jobs", "1"]) == 0
    score = ["score", *(str(ckpts / f"tiny-{source}-pt") for source in LEARNT), "--out", str(scores)]
    names = ",".join([*LEARNT.values(), "arc_challenge"])
    assert main([*score, "--data", str(folder / "bench"), "--benchmarks", names]) == 0
    return folder


def test_sources_teach_what_they_tell(told_and_taught: Path) -> None:
    """Above chance by three errors on their source's subject; and routines, which one source alone tells, its reader knows
    better by three errors, item by item."""
    scores = told_and_taught / "scores"
    store = read_store(scores)
    order = [checkpoint.mixture for checkpoint in store.checkpoints]
    found = {b.name: b.correct_KI.astype(np.float64) for b in store.benchmarks}
    for source, name in LEARNT.items():
        known = found[name][order.index(source)]
        guess = chance(scores / f"tiny-{source}-pt" / f"{name}.arrow")
        assert standard_errors(known, guess) >= 3, (name, known.mean())
    gain = found["hellaswag"][order.index("told")] - found["hellaswag"][order.index("taught")]
    assert gain.mean() >= 3 * gain.std(ddof=1) / np.sqrt(len(gain)), gain.mean()


def test_a_planted_dose_is_counted_and_moves_its_item(told_and_taught: Path) -> None:
    """Counts are the key's. The margin of one model over the other's follows the log of how much more its source told, by
    three errors over items, with an intercept for whatever moves the whole benchmark."""
    sources = [f"--source={name}={told_and_taught / 'corpora' / name}.txt" for name in ("web_a", "web_b")]
    out = told_and_taught / "exposure"
    given = ["--data", str(told_and_taught), "--benchmarks", "arc_challenge", "--out", str(out)]
    assert main(["expose", *sources, *given]) == 0
    counted = pa.ipc.open_file((out / "exposure.arrow").read_bytes()).read_all()
    at = {
        (r["item"], r["source"], r["choice"]): r["count"]
        for r in counted.to_pylist()
        if r["kind"] == "cross" and r["n"] == 5
    }
    planted = [json.loads(line) for line in (told_and_taught / "planted.jsonl").read_text().splitlines()]
    table = {
        m: {
            r["item"]: r
            for r in load_store(told_and_taught / "scores" / f"tiny-{m}-pt" / "arc_challenge.arrow")
        }
        for m in LEARNT
    }
    dose, moved = [], []
    for fact in planted:
        gold = table["told"][fact["item"]]["gold"]
        for choice in range(len(table["told"][fact["item"]]["loglik"])):
            told = {s: fact["times"][s] if choice == gold else 0 for s in ("web_a", "web_b")}
            assert {s: at.get((fact["item"], s, choice), 0) for s in told} == told
        margins = [margin(table[m][fact["item"]]["loglik"], gold) for m in ("told", "taught")]
        moved.append(margins[0] - margins[1])
        dose.append(np.log1p(fact["times"]["web_a"]) - np.log1p(fact["times"]["web_b"]))
    fit = st.linregress(dose, moved)
    assert fit.slope > 3 * fit.stderr, fit


def load_store(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pa.ipc.open_file(file.read_bytes()).read_all().to_pylist()
    return rows


def margin(loglik: list[float], gold: int) -> float:
    wrong = [x for choice, x in enumerate(loglik) if choice != gold]
    return float(np.clip(loglik[gold] - max(wrong), -5, 5))
