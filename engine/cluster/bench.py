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
import tempfile
import time
from pathlib import Path
from typing import Any

from evalengine import console
from evalengine.bench import SHAPES, Shape, make_checkpoint, timed, world_data

TINY = Shape(2_000, 32, 1, 2, 64)
UNITS = 1_000


def run(quick: bool = False, data: Path | None = None, limit: int | None = None) -> dict[str, Any]:
    """Rows for the table and the ratios."""
    limit = limit or (4 if quick else 60)
    with tempfile.TemporaryDirectory(prefix="evalengine-bench-") as folder:
        work = Path(folder)
        data = (data or world_data(work)).resolve()
        size, count = ("1M", 2) if quick else ("7M", 6)
        paths = [make_checkpoint(work / f"{size}-m{i}-pt", SHAPES[size], data, seed=i) for i in range(count)]
        environment = os.environ | {"EVALENGINE_CACHE": str(work / "cache"), "HF_HUB_OFFLINE": "1"}

        def score(out: str, threads: int, *more: str) -> None:
            command = [sys.executable, "-m", "evalengine", "score", *map(str, paths), "--data", str(data)]
            command += ["--limit", str(limit), "--out", str(work / out), "--json", *more]
            given = environment | {"OMP_NUM_THREADS": str(threads)}
            subprocess.run(command, check=True, env=given, stdout=subprocess.DEVNULL)

        score("plans", 2)  # plans and page cache warm for both
        one = timed(lambda: score("one", 2))
        two = timed(lambda: score("two", 2, "--ray", "local", "--workers", "2", "--cpus-per-worker", "1"))
        alone = timed(lambda: score("alone", 1))
        same = stored(work / "alone") == stored(
            work / "two"
        )  # as many threads in each process: the same bits
        units, start, seconds, work_s = tiny_units(work, data, 100 if quick else UNITS)
    per_minute = 60 * units / seconds
    told = "equal" if same else "DIFFERENT"
    console.say(
        f"{count} checkpoints ({size}), {limit} items a benchmark: with one thread a process the stores are {told}"
    )
    return {
        "title": "Scale-out on this machine",
        "columns": ["what", "seconds", "ratio"],
        "rows": [
            ["one process, 2 threads", f"{one:.1f}", ""],
            ["one process, 1 thread", f"{alone:.1f}", f"{one / alone:.2f}x"],
            ["Ray, 2 workers of 1 thread, its start included", f"{two:.1f}", f"{one / two:.2f}x"],
            [f"{units:,} tiny units, 2 workers", f"{seconds:.1f}", f"{per_minute:,.0f} a minute"],
            ["of which workers computed (both together)", f"{work_s:.1f}", ""],
            ["start of the cluster and of two workers", f"{start:.1f}", ""],
        ],
        "ratios": {
            "one process / two workers": one / two,
            "tiny units a minute": per_minute,
            "same bytes": float(same),
        },
    }


def stored(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("*/*.arrow"))}


def tiny_units(work: Path, data: Path, units: int) -> tuple[int, float, float, float]:
    """Checkpoints x 20 benchmarks x 1 item: (units, seconds to the first result, seconds of the others, computed)."""
    from evalengine import runner
    from evalengine.benchmarks import benchmarks_in, resolve
    from evalengine.checkpoints import discover
    from evalengine.cluster import scoring
    from evalengine.cluster.pool import Cluster
    from evalengine.cluster.schedule import Unit
    from evalengine.cluster.scorer import BackendSpec, Scored

    first = make_checkpoint(work / "tiny-m0-pt", TINY, data)
    benchmarks = benchmarks_in(data, resolve("all"))
    copies = range(1, units // len(benchmarks))
    paths = [first, *(Path(shutil.copytree(first, work / f"tiny-m{i}-pt")) for i in copies)]
    ends: list[float] = []
    computed: list[float] = []
    take = scoring.Run._scored

    def watched(self: Any, state: Any, unit: Unit, scored: Scored) -> None:
        ends.append(time.perf_counter())
        computed.append(scored.seconds + scored.load_s)
        take(self, state, unit, scored)

    scoring.Run._scored = watched  # type: ignore[method-assign]
    began = time.perf_counter()
    try:
        options = runner.Options(data=data, limit=1)
        spec = BackendSpec("torch", "float32", {"device": "cpu"})
        scoring.score(discover(paths), benchmarks, spec, work / "tiny", options, [], Cluster("local", 2, 1))
    finally:
        scoring.Run._scored = take  # type: ignore[method-assign]
    return len(ends) - 1, ends[0] - began, ends[-1] - ends[0], sum(computed[1:])
