"""What the embedded study shows: the counting, against stores made by hand; and the study itself, a part of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from evalengine.analysis.embedded_study import ERRORS, findings, moved_between, reranked, standard_errors
from evalengine.analysis.panel import load_panel
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


@pytest.mark.slow
def test_the_web_source_moves_some_benchmarks_up_and_others_down(tmp_path: Path) -> None:
    """Two mixtures with a third of the training: each knows what its web source is about."""
    raw = yaml.safe_load(reseeded("embedded", 0))
    raw["mixtures"] = {name: raw["mixtures"][name] for name in ("v1p0", "v2p0")}
    raw["scales"] = {"0.6M": raw["scales"]["0.6M"]}
    raw["scales"]["0.6M"]["pretrain"]["tokens"] = 120_000
    raw["sft"]["data"][0]["limit"] = 100
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw))
    train, score = commands(tmp_path, False, "exact", 0, str(tmp_path / "study.yaml"))[:2]
    train[train.index("--data") : train.index("--data") + 2] = []
    score[score.index("--data") + 1] = str(tmp_path / "ckpts/.study/world/bench")
    assert main(train) == 0 and main(score) == 0
    panel = load_panel(tmp_path / "scores", stages=("pt", "sft"))
    moved = moved_between(panel, 0, "pt", more=["v2p0"], less=["v1p0"])
    assert {"sciq", "openbookqa"} <= set(moved.up)
    assert {"copa", "siqa"} & set(moved.down)
    assert ERRORS == 3 and findings(tmp_path / "scores", "0.6M").above["pt"]
