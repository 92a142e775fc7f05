"""What every target shares: measurements in turns, medians, processes of their own, and one type of result.

Sides that are compared run in turns, every second round in reverse order, so that a machine that grows slower or faster meets
them alike; the median counts. A ratio is only as good as the machine is idle: a run on a busy one warns.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from evalengine import console, files
from evalengine.errors import UserError

BUSY = 0.25  # load average per core from which other work distorts the figures
Key = TypeVar("Key")
Answer = TypeVar("Answer")
Row = Sequence[str]


class Measurement(NamedTuple):
    """What a target measured: a table, and its numbers. Fields that are None are not in the JSON."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    ratios: dict[str, float]  # above 1: in favour of this project, unless the name says otherwise
    figures: dict[str, float] | None = None  # numbers that are no ratios
    failures: list[str] | None = None  # measurements that failed, in words

    def as_json(self) -> dict[str, Any]:
        return {key: value for key, value in self._asdict().items() if value is not None}

    def show(self) -> None:
        console.table(self.title, self.columns, self.rows)


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def rounds(sides: Mapping[Key, Callable[[], float | None]], count: int) -> dict[Key, list[float]]:
    """All measurements of each side that can run, `count` of it, taken in turns.

    A side measures once: seconds, or whatever is compared; None where it cannot run.
    """
    found: dict[Key, list[float]] = {key: [] for key in sides}
    for turn in range(count):
        for key in list(sides)[:: -1 if turn % 2 else 1]:
            if (value := sides[key]()) is not None:
                found[key].append(value)
    return {key: values for key, values in found.items() if values}


def medians(sides: Mapping[Key, Callable[[], float | None]], count: int) -> dict[Key, float]:
    """The median of the measurements of each side that can run, taken in turns."""
    return {key: statistics.median(values) for key, values in rounds(sides, count).items()}


def against(ours: str, seconds: Mapping[str, float]) -> list[Row]:
    """A row of a table for each side: its name, its seconds, and how many times as long as ours it takes."""
    return [(name, f"{s:.4g}", f"{s / seconds[ours]:.2f}x") for name, s in seconds.items()]


def alone(function: Callable[..., Answer], *args: Any) -> Answer:
    """`function(*args)` in a fresh process, so that memory, settings and peaks do not leak from one measurement to the next.

    Raises UserError where the function raises or the process ends early.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(function, *args).result()
        except BrokenProcessPool:
            raise UserError(
                "a measuring process ended early: see above, or free memory and run again"
            ) from None
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{function.__name__} failed: {reason}") from None


def score(arguments: Sequence[str], **environment: str) -> None:
    """`evalengine score` as a process of its own. Raises UserError where it fails."""
    command = [sys.executable, "-m", "evalengine", "score", *arguments, "--json"]
    if subprocess.run(command, env=os.environ | environment, stdout=subprocess.DEVNULL).returncode:
        raise UserError("evalengine score failed: see above")


def peak_memory() -> float:
    """MiB: the largest resident memory that this process has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def load_average(quick: bool = False) -> float:
    """Of the last minute, to be asked before measuring. Warns, unless `quick`, where other work runs."""
    load, cores = os.getloadavg()[0], files.cores()
    if load > BUSY * cores and not quick:
        console.warn(
            f"the machine is busy (load average {load:.1f} on {cores} cores): times and ratios may be far off; run again"
            " when nothing else runs"
        )
    return load


def machine(load: float) -> dict[str, str]:
    """What a figure needs with it: date, processor, versions, and the load average before the measurement."""
    import torch

    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = (x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    processor = next(names, platform.machine())
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor,
        "cores": str(os.cpu_count()),
        "load": f"{load:.1f}",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
