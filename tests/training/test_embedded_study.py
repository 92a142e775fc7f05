"""What the embedded study shows: the counting, against values made by hand; and its seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from evalengine.analysis.embedded_study import chance, reranked, standard_errors
from evalengine.analysis.items import read_store
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


def test_sources_teach_what_they_tell(tmp_path: Path) -> None:
    """Two real models, a few seconds each: above chance by three errors on their source's subject; and routines,
    which one source alone tells, its reader knows better by three errors, item by item."""
    world.write(tmp_path, words=40_000, chats=50)
    study = tmp_path / "study.yaml"
    study.write_text(SCIENCE)
    ckpts, scores = tmp_path / "ckpts", tmp_path / "scores"
    train = ["train", str(study), "--data", str(tmp_path), "--out", str(ckpts), "--only", "*-pt"]
    assert main([*train, "--jobs", "1"]) == 0
    score = ["score", *(str(ckpts / f"tiny-{source}-pt") for source in LEARNT), "--out", str(scores)]
    assert main([*score, "--data", str(tmp_path / "bench"), "--benchmarks", ",".join(LEARNT.values())]) == 0
    store = read_store(scores)
    order = [checkpoint.mixture for checkpoint in store.checkpoints]
    found = {b.name: b.correct_KI.astype(np.float64) for b in store.benchmarks}
    for source, name in LEARNT.items():
        known = found[name][order.index(source)]
        guess = chance(scores / f"tiny-{source}-pt" / f"{name}.arrow")
        assert standard_errors(known, guess) >= 3, (name, known.mean())
    gain = found["hellaswag"][order.index("told")] - found["hellaswag"][order.index("taught")]
    assert gain.mean() >= 3 * gain.std(ddof=1) / np.sqrt(len(gain)), gain.mean()
