"""What every test folder shares: the real data, where there is any."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Triton kernels run in Triton's interpreter unless there is a GPU; decided before anything imports Triton.
if not Path("/proc/driver/nvidia/version").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Two of pytest-xdist's workers that each use all cores wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.pop("COLUMNS", None)  # the width of the terminal that nothing is shown on

# Started in the background of a script, pytest and its children would ignore Ctrl-C, which some tests are about.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where files are handed out whole, those of tests/cluster go to one process: they share one Ray."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "tests/cluster" if nodeid.startswith("tests/cluster/") else super()._split_scope(nodeid)

    return Files(config, log)


@pytest.fixture(scope="session")
def cuda() -> str:
    """The CUDA device of a test that needs one."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return "cuda"


@pytest.fixture(autouse=True)
def lines_not_json() -> None:
    """A command that ran with --json leaves its process so."""
    from evalengine import console

    console.set_json(False)


@pytest.fixture(scope="session")
def forked_workers() -> Iterator[None]:
    """Training workers of this process start at once: see forked.py."""
    from evalengine.training import workers
    from forked import context

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "mp", context())
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder EVALENGINE_DATA (bench/, corpora/, results/): third-party, in no repository."""
    folder = os.environ.get("EVALENGINE_DATA")
    if not folder or not (Path(folder) / "bench").is_dir():
        pytest.skip(
            "needs real benchmark data: set EVALENGINE_DATA to a folder with bench/, corpora/, results/"
        )
    return Path(folder)


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small embedded world (corpora/, bench/, sft.jsonl): what tests read where real data is not needed."""
    from evalengine.benchmarks import world

    folder = tmp_path_factory.mktemp("world")
    world.write(folder, seed=3, items=24, train_items=12, words=4_000, chats=120)
    return folder
