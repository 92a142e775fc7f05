"""What every target shares: measurements in turns, medians, processes of their own, and one type of result.

Sides that are compared run in turns, every second round in reverse order, so that a machine that grows slower or faster meets
them alike; the median counts. A ratio is only as good as the machine is idle: a run on a busy one warns.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from evalengine import console, files
from evalengine.errors import UserError

BUSY = 0.25  # load average per core from which other work distorts the figures
Key = TypeVar("Key")
Side = Callable[
    [], "float | None"
]  # measures once: seconds, or whatever is compared; None where it cannot run


class Table(NamedTuple):
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Result(NamedTuple):
    """What a target measured. Fields that are None are not in the JSON."""

    table: Table
    ratios: dict[str, float]  # above 1: in favour of this project, unless the name says otherwise
    more: list[Table] | None = None
    figures: dict[str, float] | None = None  # numbers that are no ratios
    failures: list[str] | None = None  # measurements that failed, in words

    def as_json(self) -> dict[str, Any]:
        given: dict[str, Any] = {"figures": self.figures, "failures": self.failures}
        if self.more is not None:
            given["more"] = [table._asdict() for table in self.more]
        shown = {key: value for key, value in given.items() if value is not None}
        return {"ratios": self.ratios, **self.table._asdict(), **shown}

    def show(self) -> None:
        for table in (self.table, *(self.more or ())):
            console.table(*table, left=1)


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def milliseconds(call: Callable[[], object], device: str) -> float:
    """Milliseconds of a call; on a GPU between two events on its stream."""
    if not device.startswith("cuda"):
        return 1e3 * timed(call)
    import torch

    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def rounds(sides: Mapping[Key, Side], count: int | Mapping[Key, int]) -> dict[Key, list[float]]:
    """All measurements of each side, `count` of it, taken in turns."""
    counts = dict.fromkeys(sides, count) if isinstance(count, int) else count
    found: dict[Key, list[float]] = {key: [] for key in sides}
    for turn in range(max(counts.values(), default=0)):
        for key in list(sides)[:: -1 if turn % 2 else 1]:
            if turn < counts[key] and (value := sides[key]()) is not None:
                found[key].append(value)
    return found


def medians(sides: Mapping[Key, Side], count: int | Mapping[Key, int]) -> dict[Key, float]:
    """The median of each side's measurements, taken in turns."""
    return {key: statistics.median(values) for key, values in rounds(sides, count).items()}


class Quantiles(NamedTuple):
    p20: float
    p50: float
    p80: float


def quantiles(values: Sequence[float]) -> Quantiles:
    """Of at least one value."""
    if len(values) == 1:
        return Quantiles(values[0], values[0], values[0])
    return Quantiles(*(statistics.quantiles(values, n=10)[i] for i in (1, 4, 7)))


def alone(function: Callable[..., Any], *args: Any, limit: float | None = None) -> Any:
    """`function(*args)` in a fresh process, so that memory, settings and peaks do not leak from one measurement to the next.

    Raises UserError where the function raises, the process ends early, or `limit` seconds pass.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, args))
    process.start()
    theirs.close()
    try:
        if not ours.poll(limit):
            raise UserError(f"{function.__name__} gave no answer in {limit:.0f} s")
        value, failure = ours.recv()
    except EOFError:
        raise UserError("a measuring process ended early: see above, or free memory and run again") from None
    finally:
        if limit is not None:
            process.kill()  # it may hang, before its answer or behind it
        process.join()
    if failure:
        raise UserError(failure)
    return value


def _answer(pipe: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        answer = (function(*args), "")
    except Exception as error:
        answer = (None, f"{function.__name__} failed: {' '.join(str(error).split()) or type(error).__name__}")
    pipe.send(answer)


def peak_memory() -> float:
    """MiB: the largest resident memory that this process has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Hides what C++ code writes, such as the profiler's remarks on memory that is older than it."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


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
    processor = next(
        (x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.machine()
    )
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor,
        "cores": str(os.cpu_count()),
        "load": f"{load:.1f}",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
