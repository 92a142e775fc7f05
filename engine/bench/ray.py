"""`evalengine bench ray`: what the scheduler costs, and what a second worker brings.

Two figures in one run on this machine: whole scoring with two Ray workers of one thread against one process of two threads on
the same work (and of one thread, whose bytes must be the same); and how many tiny units (a tiny model, one item) the scheduler
gets through in a minute, its start not counted.
"""

from __future__ import annotations

import shutil
import statistics
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

from evalengine import console
from evalengine.bench.harness import Result, Table, timed
from evalengine.bench.inputs import SHAPES, Shape, make_checkpoint, score_command, workplace, world_data

TINY = Shape(2_000, 32, 1, 2, 64)
UNITS = 1_000


class Units(NamedTuple):
    """What became of many small units."""

    finished: int  # after the first
    start: float  # seconds to the first result
    seconds: float  # of the others
    computed: float  # seconds that the workers computed, added up, by the median checkpoint


def run(quick: bool = False, data: Path | None = None, limit: int | None = None) -> Result:
    limit = limit or (4 if quick else 60)
    size, count = ("1M", 2) if quick else ("7M", 6)
    with workplace() as work:
        data = (data or world_data(work)).resolve()
        paths = [make_checkpoint(work / f"{size}-m{i}-pt", SHAPES[size], data, seed=i) for i in range(count)]
        score = partial(score_command, paths, data, limit)
        score(work / "plans", threads=2)  # plans and page cache warm for both
        one = timed(lambda: score(work / "one", threads=2))
        workers = ("--ray", "local", "--workers", "2", "--cpus-per-worker", "1")
        two = timed(lambda: score(work / "two", *workers, threads=2))
        alone = timed(lambda: score(work / "alone", threads=1))
        same = stored(work / "alone") == stored(work / "two")  # one thread a process in both: the same bits
        units = tiny_units(work, data, 100 if quick else UNITS)
    per_minute = 60 * units.finished / units.seconds
    console.say(
        f"{count} checkpoints ({size}), {limit} items a benchmark: with one thread a process the stores are"
        f" {'equal' if same else 'DIFFERENT'}"
    )
    rows = [
        ["one process, 2 threads", f"{one:.1f}", ""],
        ["one process, 1 thread", f"{alone:.1f}", f"{one / alone:.2f}x"],
        ["Ray, 2 workers of 1 thread, its start included", f"{two:.1f}", f"{one / two:.2f}x"],
        [f"{units.finished:,} tiny units, 2 workers", f"{units.seconds:.1f}", f"{per_minute:,.0f} a minute"],
        ["of which workers computed (both together)", f"{units.computed:.1f}", ""],
        ["start of the cluster and of two workers", f"{units.start:.1f}", ""],
    ]
    return Result(
        Table("Scale-out on this machine", ["what", "seconds", "ratio"], rows),
        {
            "one process / two workers": one / two,
            "tiny units a minute": per_minute,
            "same bytes": float(same),
        },
    )


def stored(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("*/*.arrow"))}


def tiny_units(work: Path, data: Path, units: int) -> Units:
    """Checkpoints x 20 benchmarks x 1 item. The files' own times say when each unit was done."""
    from evalengine import runner
    from evalengine.backends import BackendSpec
    from evalengine.benchmarks import benchmarks_in, resolve
    from evalengine.cluster import scoring
    from evalengine.cluster.pool import Cluster
    from evalengine.resolve import discover
    from evalengine.resume import Options

    first = make_checkpoint(work / "tiny-m0-pt", TINY, data)
    benchmarks = benchmarks_in(data, resolve("all"))
    copies = range(1, units // len(benchmarks))
    paths = [first, *(Path(shutil.copytree(first, work / f"tiny-m{i}-pt")) for i in copies)]
    options = Options(data=data, limit=1)
    item_sets = runner.load_item_sets(benchmarks, options)
    spec = BackendSpec("torch", "float32", {"device": "cpu"})
    out = work / "tiny"
    began = time.time()
    outcomes = scoring.score(discover(paths), item_sets, spec, out, options, Cluster("local", 2, 1))
    ends = sorted(path.stat().st_mtime for path in out.glob("*/*.arrow"))
    usual = statistics.median(o.seconds for o in outcomes)  # a worker's first checkpoint also loads PyTorch
    return Units(len(ends) - 1, ends[0] - began, ends[-1] - ends[0], usual * len(outcomes))
