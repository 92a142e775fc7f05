"""`evalengine bench ray`: what the scheduler costs, and what a second worker brings.

Two figures in one run on this machine: whole scoring with two Ray workers of one thread against one process of two threads on
the same work (and of one thread, whose bytes must be the same); and how many tiny units (a tiny model, one item) the scheduler
gets through in a minute, its start not counted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

from evalengine.backends import BackendSpec
from evalengine.bench.harness import Result, against, medians, timed
from evalengine.bench.inputs import SHAPES, Shape, make_checkpoint, read_items, workplace, world_data
from evalengine.cluster import scoring
from evalengine.cluster.pool import Cluster
from evalengine.resolve import discover
from evalengine.resume import Options

TINY = Shape(2_000, 32, 1, 2, 64)
ONE, ALONE, TWO = (
    "one process, 2 threads",
    "one process, 1 thread",
    "Ray, 2 workers of 1 thread, its start included",
)


class Units(NamedTuple):
    """What became of many small units."""

    finished: int  # after the first
    start: float  # seconds to the first result
    seconds: float  # of the others


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
        units = tiny_units(work, data, 100 if quick else 1_000)
    per_minute = 60 * units.finished / units.seconds
    rows = [
        *against(ONE, took),
        (f"{units.finished:,} tiny units, 2 workers", f"{units.seconds:.1f}", f"{per_minute:,.0f} a minute"),
        ("start of the cluster and of two workers", f"{units.start:.1f}", ""),
    ]
    title = (
        f"Scale-out on this machine: {count} checkpoints ({size}), {limit} items a benchmark; with one thread a process the"
        f" stores are {'equal' if same else 'DIFFERENT'}"
    )
    ratios = {
        "one process / two workers": took[ONE] / took[TWO],
        "tiny units a minute": per_minute,
        "same bytes": float(same),
    }
    return Result(title, ("side", "seconds", "ratio to one process"), rows, ratios)


def score(arguments: list[str], threads: int) -> None:
    """`evalengine score` as a process of its own."""
    command = [sys.executable, "-m", "evalengine", "score", *arguments, "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def stored(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("*/*.arrow"))}


def tiny_units(work: Path, data: Path, units: int) -> Units:
    """Checkpoints x 20 benchmarks x 1 item. The files' own times say when each unit was done."""
    first = make_checkpoint(work / "tiny-m0-pt", TINY, data)
    item_sets = [(items, "acc") for items in read_items(data, 1)]
    copies = range(1, units // len(item_sets))
    paths = [first, *(Path(shutil.copytree(first, work / f"tiny-m{i}-pt")) for i in copies)]
    options = Options(data=data, limit=1)
    spec = BackendSpec("torch", "float32", {"device": "cpu"})
    out = work / "tiny"
    began = time.time()
    scoring.score(discover(paths), item_sets, spec, out, options, Cluster("local", 2, 1))
    ends = sorted(path.stat().st_mtime for path in out.glob("*/*.arrow"))
    return Units(len(ends) - 1, ends[0] - began, ends[-1] - ends[0])
