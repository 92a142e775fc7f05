"""Whole commands: `evalengine score` of several checkpoints against lm-evaluation-harness in a shell loop.

Checkpoints of one shape with random weights, in float32 on a CPU and bfloat16 on a GPU, and the same items for both. Every
command is a process of its own, timed from its start to its end. Ours runs twice: with empty caches, and once more with
`--fresh`, where plans and compiled code are those of the first run; a stopwatch inside says where its seconds go. lm-eval
0.4.13 scores one checkpoint a process: one of them is timed and counts for each. It reads the definitions of the tasks that
run and no others, and makes no bootstrap, which spares it seconds that its own command takes.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from evalengine import console
from evalengine.bench import local_tasks, stopwatch
from evalengine.bench.harness import Measurement, Row, alone
from evalengine.bench.inputs import first_items, make_checkpoints, sizes_of, workplace, world_data

CHECKPOINTS = 6
FIRST, AGAIN, THEIRS = "evalengine score", "again, with its caches", "lm-eval, a process each"


def run(
    quick: bool = False,
    data: Path | None = None,
    sizes: str = "",
    limit: int | None = None,
    device: str = "cpu",
) -> Measurement:
    """`limit`: the first items of each benchmark (default: 20 on a CPU, all on a GPU)."""
    cpu = device == "cpu"
    size = sizes_of(sizes or ("1M" if quick else "7M" if cpu else "240M"))[0]
    limit = limit or (4 if quick else 20 if cpu else None)
    with workplace() as work:
        data = first_items(data or world_data(work), limit, work / "items")
        paths = make_checkpoints(work, size, data, 2 if quick else CHECKPOINTS, device)
        score = partial(our_seconds, paths, data, device=device)
        ours = {FIRST: score(work / "first"), AGAIN: score(work / "again")}
        scored = work / "first" / paths[0].name
        seconds, theirs = lm_eval_seconds(paths[0], data, device)
        items, accuracy = stored(scored)
    whole = {side: sum(took.values()) for side, took in ours.items()} | {THEIRS: len(paths) * seconds}
    rows: list[Row] = [
        (phase, *(f"{took[phase]:.2f}" for took in ours.values()), "") for phase in stopwatch.PHASES
    ]
    rows.append(("all", *(f"{s:.2f}" for s in whole.values())))
    gap = max(abs(accuracy[name] - theirs[name]) for name in accuracy)
    title = (
        f"Whole commands, seconds: {len(paths)} checkpoints ({size}) x {items:,} items, {device}; accuracies of a benchmark"
        f" differ by {gap:.1e} at most"
    )
    ratios = {f"lm-eval / {side}": whole[THEIRS] / whole[side] for side in ours}
    figures = {f"{side}: seconds": s for side, s in whole.items()}
    figures |= {f"{side}: {phase}": s for side, took in ours.items() for phase, s in took.items()}
    figures["largest difference of an accuracy"] = gap
    return Measurement(title, ("phase", *whole), rows, ratios, figures)


def our_seconds(paths: list[Path], data: Path, out: Path, device: str) -> dict[str, float]:
    """Seconds of one `evalengine score`, by phase, to the end of its process."""
    options = ["--data", str(data), "--out", str(out), "--device", device, "--variant", "lm_eval"]
    started = time.perf_counter()
    took = alone(stopwatch.score, started, [*map(str, paths), *options])
    seconds = time.perf_counter() - started
    took |= {stopwatch.END: seconds - sum(took.values())}
    console.say(f"{FIRST}: {seconds:.1f} s ({', '.join(f'{phase} {s:.1f}' for phase, s in took.items())})")
    return took


def lm_eval_seconds(path: Path, data: Path, device: str) -> tuple[float, dict[str, float]]:
    """(seconds of a process that scores one checkpoint, its accuracy on each benchmark by that benchmark's own score)."""
    started = time.perf_counter()
    found = alone(local_tasks.command, path, data, 8 if device == "cpu" else 128, device)
    seconds = time.perf_counter() - started
    console.say(f"lm-eval, one process: {seconds:.1f} s")
    return seconds, found


def stored(folder: Path) -> tuple[int, dict[str, float]]:
    """(items, accuracy on each benchmark) of a checkpoint in a store."""
    from evalengine import store
    from evalengine.store.metrics import accuracy

    tables = {file.stem: store.read(file) for file in folder.glob("*.arrow")}
    return sum(map(len, tables.values())), {name: accuracy(table) for name, table in tables.items()}
