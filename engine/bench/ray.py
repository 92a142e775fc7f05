"""`evalengine bench ray`: what a second worker brings on this machine.

Whole scoring with two Ray workers of one thread against one process of two threads on the same work, and of one thread, whose
bytes must be the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from evalengine.bench.harness import Result, against, medians, timed
from evalengine.bench.inputs import SHAPES, make_checkpoint, workplace, world_data

ONE, ALONE, TWO = (
    "one process, 2 threads",
    "one process, 1 thread",
    "Ray, 2 workers of 1 thread, its start included",
)


def run(quick: bool = False, data: Path | None = None, limit: int | None = None) -> Result:
    limit = limit or (4 if quick else 60)
    size, count = ("1M", 2) if quick else ("7M", 6)
    with workplace() as work:
        data = (data or world_data(work)).resolve()
        paths = [make_checkpoint(work / f"{size}-m{i}-pt", SHAPES[size], data, seed=i) for i in range(count)]
        command = [*map(str, paths), "--data", str(data), "--limit", str(limit)]
        workers = ["--ray", "local", "--workers", "2", "--cpus-per-worker", "1"]
        sides = {
            ONE: partial(score, [*command, "--out", str(work / "one")], 2),
            ALONE: partial(score, [*command, "--out", str(work / "alone")], 1),
            TWO: partial(score, [*command, "--out", str(work / "two"), *workers], 2),
        }
        score([*command, "--out", str(work / "plans")], 2)  # plans and page cache warm for all
        took = medians({name: partial(timed, side) for name, side in sides.items()}, 1)
        same = stored(work / "alone") == stored(work / "two")  # one thread a process in both: the same bits
    title = (
        f"Scale-out on this machine: {count} checkpoints ({size}), {limit} items a benchmark; with one thread a process the"
        f" stores are {'equal' if same else 'DIFFERENT'}"
    )
    ratios = {"one process / two workers": took[ONE] / took[TWO], "same bytes": float(same)}
    return Result(title, ("side", "seconds", "ratio to one process"), against(ONE, took), ratios)


def score(arguments: list[str], threads: int) -> None:
    """`evalengine score` as a process of its own."""
    command = [sys.executable, "-m", "evalengine", "score", *arguments, "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def stored(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("*/*.arrow"))}
