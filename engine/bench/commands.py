"""Whole commands: `evalengine score` of several checkpoints against lm-evaluation-harness in a shell loop.

Checkpoints of one shape with random weights, in float32 on a CPU and bfloat16 on a GPU, and the same items for both. Every
command is a process of its own, timed from its start to its end. Ours runs twice: with empty caches, and once more into another
store, where plans and compiled code are those of the first run. lm-eval 0.4.13 scores one checkpoint a process: one of them is
timed and counts for each. It reads the definitions of the tasks that run and no others, and makes no bootstrap, which spares it
seconds that its own command takes.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from evalengine import store
from evalengine.bench import local_tasks
from evalengine.bench.harness import Result, against, alone, score, timed
from evalengine.bench.inputs import first_items, make_checkpoints, sizes_of, workplace, world_data
from evalengine.metrics import accuracy

CHECKPOINTS = 6
FIRST, AGAIN, THEIRS = "evalengine score", "again, with its caches", "lm-eval, a process each"


def run(
    quick: bool = False,
    data: Path | None = None,
    sizes: str = "",
    limit: int | None = None,
    device: str = "cpu",
) -> Result:
    """`limit`: the first items of each benchmark (default: 20 on a CPU, all on a GPU)."""
    cpu = device == "cpu"
    size = sizes_of(sizes or ("1M" if quick else "7M" if cpu else "240M"))[0]
    limit = limit or (4 if quick else 20 if cpu else None)
    with workplace() as work:
        data = first_items(data or world_data(work), limit, work / "items")
        paths = make_checkpoints(work, size, data, 2 if quick else CHECKPOINTS, device)
        options = ["--data", str(data), "--device", device, "--variant", "lm_eval"]
        command = [*map(str, paths), *options, "--out"]
        took = {side: timed(partial(score, [*command, str(work / side)])) for side in (FIRST, AGAIN)}
        theirs: dict[str, float] = {}  # accuracy on each benchmark, by that benchmark's own score
        one = partial(alone, local_tasks.command, paths[0], data, 8 if cpu else 128, device)
        took[THEIRS] = len(paths) * timed(lambda: theirs.update(one()))
        files = (work / FIRST / paths[0].name).glob("*.arrow")
        tables = {file.stem: store.read(file) for file in files}
    items = sum(map(len, tables.values()))
    gap = max(abs(accuracy(table) - theirs[name]) for name, table in tables.items())
    title = (
        f"Whole commands, seconds: {len(paths)} checkpoints ({size}) x {items:,} items, {device}; accuracies of a benchmark"
        f" differ by {gap:.1e} at most"
    )
    ratios = {f"lm-eval / {side}": took[THEIRS] / took[side] for side in (FIRST, AGAIN)}
    figures = {f"{side}: seconds": s for side, s in took.items()}
    figures["largest difference of an accuracy"] = gap
    return Result(title, ("command", "seconds", "ratio to ours"), against(FIRST, took), ratios, figures)
