"""How cost grows with the number of checkpoints: `evalengine bench scale`.

Synthetic stores (20 benchmarks, a hundredth of their real sizes, checkpoints {scale}-{mixture}-{pt,sft}) of growing N; then, each
in a process of its own: listing the store, a scoring run that finds everything done, and `correlate`. And planning as many
items as the real benchmarks have under one tokenizer. Seconds and peak memory; none of these figures is a ratio. A step imports
what it needs itself, because its process's imports are part of its cost.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from evalengine import store
from evalengine.bench.harness import Measurement, Row, alone, peak_memory
from evalengine.bench.inputs import make_checkpoints, read_items, workplace, world_data
from evalengine.checkpoints.resolve import discover
from evalengine.errors import UserError

COUNTS = (40, 100, 300, 1000)
SCALES = ("60M", "150M", "240M", "1B")
SHRINK = 100
FEWEST = 20  # items of a benchmark at least

# Items of the 20 benchmarks' usual splits, and choices of each item: 86,779 in all.
# fmt: off
SIZES = {
    "hellaswag": (10_042, 4), "piqa": (1_838, 2), "winogrande": (1_267, 2), "copa": (100, 2), "siqa": (1_954, 3),
    "commonsense_qa": (1_221, 5), "boolq": (3_270, 2), "arc_easy": (2_376, 4), "arc_challenge": (1_172, 4), "sciq": (1_000, 4),
    "openbookqa": (500, 4), "mnli": (9_815, 3), "qnli": (5_463, 2), "rte": (277, 2), "cb": (56, 3),
    "qqp": (40_430, 2), "mrpc": (408, 2), "wic": (638, 2), "wsc": (104, 2), "multirc": (4_848, 2),
}
# fmt: on
STORED = {name: (max(FEWEST, items // SHRINK), choices) for name, (items, choices) in SIZES.items()}


class ProcessCost(NamedTuple):
    seconds: float  # of a whole process
    peak_mb: float

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s, {self.peak_mb:,.0f} MB"


def run(quick: bool = False, data: Path | None = None) -> Measurement:
    """`data`: a folder of benchmark files for the plan (default: the embedded world)."""
    from evalengine.bench import synthetic

    rows: list[Row] = []
    spent: dict[str, ProcessCost] = {}
    with workplace() as work:
        for n in COUNTS[: 1 if quick else None]:
            folder, out = work / f"ckpts{n}", work / f"scores{n}"
            synthetic.score(synthetic.make_checkpoints(folder, names(n)), STORED, out)
            size = sum(p.stat().st_size for p in out.glob("*/*.arrow"))
            steps = {
                f"list {n}": measure(store.paths, out),
                f"resume {n}": measure(resume, folder, out),
                f"correlate {n}": measure(correlate, out),
            }
            rows.append([f"{n:,}", f"{n * len(SIZES):,}", f"{size / 1e6:.0f} MB", *map(str, steps.values())])
            spent |= steps
            shutil.rmtree(out)
            shutil.rmtree(folder)
        items = 40 if quick else 4_000
        data = (data or world_data(work, items=items, train_items=4, words=20_000, chats=20)).resolve()
        (checkpoint,) = make_checkpoints(work, "7M", data)
        shrink = 1000 if quick else 1
        spent["plan"] = measure(plan, data, checkpoint, shrink)
        spent["plan, from the cache"] = measure(plan, data, checkpoint, shrink)
    figures = {f"{step}: seconds": s.seconds for step, s in spent.items()}
    figures |= {f"{step}: peak MB": s.peak_mb for step, s in spent.items()}
    title = (
        "Cost against the number of checkpoints (whole processes, imports included). Planning the benchmarks' full size"
        f" / {shrink:,} under one tokenizer: {spent['plan']}; from the cache {spent['plan, from the cache']}"
    )
    columns = ["checkpoints", "files", "store", "listing", "resume decision", "correlate"]
    return Measurement(title, columns, rows, {}, figures)


def names(n: int) -> list[str]:
    """Twins of every mixture at every scale."""
    twins = [f"{SCALES[i % len(SCALES)]}-m{i // len(SCALES)}" for i in range(n // 2)]
    return [f"{twin}-{stage}" for twin in twins for stage in ("pt", "sft")]


def measure(step: Callable[..., object], *given: Any) -> ProcessCost:
    """A step in a process of its own."""
    started = time.perf_counter()
    peak = alone(peak_of, step, *given)
    return ProcessCost(time.perf_counter() - started, peak)


def peak_of(step: Callable[..., object], *given: Any) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        step(*given)
    return peak_memory()


def resume(folder: Path, out: Path) -> None:
    """A run over what is stored: fingerprints every checkpoint, compares every file."""
    from evalengine.bench import synthetic

    if synthetic.score(discover(sorted(folder.iterdir())), STORED, out):
        raise UserError(f"{out} was not complete")


def correlate(out: Path) -> None:
    from evalengine.cli import main

    if main(["correlate", str(out), "--out", str(out.parent / "analysis")]):
        raise UserError("correlate failed")


def plan(data: Path, checkpoint: Path, shrink: int) -> None:
    """Plans as many items as the benchmarks in a folder really have, over `shrink`.

    They are the folder's own again and again, each behind a number of its own, so that no two share a beginning: nothing is
    tokenised once for many, which makes this dearer than the real sets, where paragraphs recur.
    """
    from evalengine.plan import plans

    (found,) = discover([checkpoint])
    planner = plans.Planner()
    for given in read_items(data, None):
        made = []
        for i in range(SIZES[given.benchmark][0] // shrink):
            item = given.items[i % len(given.items)]
            contexts = tuple(f"{i} {context}" for context in item.contexts)
            made.append(item._replace(id=f"{item.id}-{i}", contexts=contexts))
        data_hash = f"{given.data_hash[:8]}{len(made):08d}"
        planner.plan(found, given._replace(items=made, total=len(made), data_hash=data_hash))
