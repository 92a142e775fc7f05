"""`evalengine bench ray`: whole scoring with two Ray workers of one thread against one process of two threads."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from evalengine.bench.harness import Measurement, against, medians, score, timed
from evalengine.bench.inputs import make_checkpoints, workplace, world_data

ONE, TWO = "one process, 2 threads", "Ray, 2 workers of 1 thread, its start included"


def run(quick: bool = False, data: Path | None = None, limit: int | None = None) -> Measurement:
    limit = limit or (4 if quick else 60)
    size, count = ("1M", 2) if quick else ("7M", 6)
    with workplace() as work:
        data = (data or world_data(work)).resolve()
        paths = make_checkpoints(work, size, data, count)
        command = [*map(str, paths), "--data", str(data), "--limit", str(limit)]
        workers = ["--ray", "local", "--workers", "2", "--cpus-per-worker", "1"]
        sides = {
            ONE: partial(score, [*command, "--out", str(work / "one")], OMP_NUM_THREADS="2"),
            TWO: partial(score, [*command, "--out", str(work / "two"), *workers], OMP_NUM_THREADS="2"),
        }
        score([*command, "--out", str(work / "plans")])  # plans and page cache warm for all
        took = medians({name: partial(timed, side) for name, side in sides.items()}, 1)
    title = f"Scale-out on this machine: {count} checkpoints ({size}), {limit} items a benchmark"
    ratios = {"one process / two workers": took[ONE] / took[TWO]}
    return Measurement(title, ("side", "seconds", "ratio to one process"), against(ONE, took), ratios)
