"""The demonstration's command lines: real commands, the shipped study, shown short."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalengine.cli import main, parser
from evalengine.cli.demo import commands, shown
from evalengine.training.study import load, runs


def test_the_demo_runs_commands_that_exist_on_the_checkpoints_it_trains():
    train, score, expose, correlate, explain, report = commands(Path("demo"), False, "exact", 0)
    for command in (train, score, expose, correlate, explain, report):
        parser().parse_args(command)
    assert score[0] == "emulate" and correlate[1] == explain[1] == "demo/scores"
    assert expose[expose.index("--out") + 1] == explain[explain.index("--exposure") + 1]
    assert correlate[correlate.index("--study") + 1] == explain[explain.index("--study") + 1] == train[1]
    assert report[1] == correlate[correlate.index("--out") + 1] == explain[explain.index("--out") + 1]
    scored = {Path(part).name for part in score if part.startswith("demo/ckpts/")}
    assert scored == {run.name for run in runs(load("embedded"))}
    assert parser().parse_args(train).out == Path("demo/ckpts")
    assert parser().parse_args(score).data == Path("demo/world/bench")


def test_many_checkpoints_are_shown_as_a_glob():
    _, score, *_ = commands(Path("demo"), quick=True, bootstrap="exact", jobs=0)
    assert shown(score) == "score demo/ckpts/* --data demo/world/bench --out demo/scores --limit 150"


@pytest.mark.parametrize("seeds", ["-1", "0,-2", "1.5", "a"])
def test_seeds_that_cannot_be(seeds: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--quick", "--out", str(tmp_path / "demo"), f"--seeds={seeds}"]) == 1
    assert f"--seeds takes numbers such as 0,1,2, not '{seeds}'" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
