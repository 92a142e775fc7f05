"""What the embedded study shows: the counting, against values made by hand; and its seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from evalengine.analysis.embedded_study import chance, reranked, standard_errors
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
