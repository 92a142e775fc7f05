"""Two real processes on gloo, as copies and sharded, against one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from several_processes import MODES, STEPS, STOPPED, stopped_run, whole_run
from test_training_loop import losses

from evalengine.training.fitting.parallel import SHARD_FROM
from evalengine.training.prepare import shape_of
from evalengine.training.study import load


@pytest.fixture(scope="module")
def ran_both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each way, written by the same two processes."""
    folder = tmp_path_factory.mktemp("several")
    for mode in MODES:
        stopped_run(folder / mode / "from_single")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("several_processes.py")
    done = subprocess.run(
        [*command, str(script), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module", params=MODES)
def ran(request: pytest.FixtureRequest, ran_both: Path) -> Path:
    return ran_both / request.param


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("single")
    weights = whole_run(folder).state_dict()
    return losses(folder / "log"), weights


def close(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(weights) == set(expected)
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, atol=2e-4, rtol=0, msg=name)


@pytest.mark.slow
def test_they_follow_the_single_process_curve_to_the_same_weights(ran: Path, single):
    assert losses(ran / "whole/log") == pytest.approx(single[0], rel=1e-4)
    close(torch.load(ran / "whole/weights.pt"), single[1])


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_same_bits(ran: Path):
    assert losses(ran / "resumed/log") == losses(ran / "whole/log")
    whole, resumed = (torch.load(ran / f"{name}/weights.pt") for name in ("whole", "resumed"))
    for name, weight in whole.items():
        assert torch.equal(resumed[name], weight), name


@pytest.mark.slow
def test_one_process_goes_on_with_the_state_of_two_and_two_with_that_of_one(ran: Path, single):
    assert len(losses(ran / "for_single/log")) == STOPPED < STEPS
    model = whole_run(ran / "for_single", state=ran / "for_single/state.pt")
    assert losses(ran / "for_single/log") == pytest.approx(single[0], rel=1e-4)
    close(model.state_dict(), single[1])
    assert losses(ran / "from_single/log") == pytest.approx(single[0], rel=1e-4)


def test_the_papers_larger_scale_is_sharded_and_the_smaller_is_not():
    params = {name: shape_of(scale, 100_864).params for name, scale in load("paper").scales.items()}
    assert params["240M"] < SHARD_FROM <= params["1B"]
