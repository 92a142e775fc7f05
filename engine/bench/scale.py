"""How cost grows with the number of checkpoints: `evalengine bench scale`.

Synthetic stores (20 benchmarks, a hundredth of their real sizes, checkpoints {scale}-{mixture}-{pt,sft}) of growing N; then, each
in a process of its own: listing the store, a scoring run that finds everything done, and `correlate`. And planning all
items under one tokenizer, and as many as the real benchmarks have. Seconds and peak memory; none of these figures is a ratio.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from evalengine import console
from evalengine.bench.harness import Result, Table, alone, peak_memory, timed
from evalengine.bench.inputs import SHAPES, make_checkpoint, read_items, workplace, world_data
from evalengine.errors import UserError
from evalengine.resolve import discover

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


class Spent(NamedTuple):
    seconds: float  # of a whole process
    peak_mb: float


def run(quick: bool = False, data: Path | None = None) -> Result:
    """`data`: a folder of benchmark files for the plan (default: the embedded world)."""
    from evalengine.bench import synthetic

    rows: list[list[str]] = []
    figures: dict[str, float] = {}
    with workplace() as work:
        for n in (40,) if quick else COUNTS:
            folder, out = work / f"ckpts{n}", work / f"scores{n}"
            synthetic.write_store(synthetic.make_checkpoints(folder, names(n)), STORED, out)
            size = sum(p.stat().st_size for p in out.glob("*/*.arrow"))
            spent = {
                "list": measure(list_store, out),
                "resume": measure(resume, folder, out),
                "correlate": measure(correlate, out),
            }
            cells = [f"{s.seconds:.2f} s, {s.peak_mb:,.0f} MB" for s in spent.values()]
            rows.append([f"{n:,}", f"{n * len(SIZES):,}", f"{size / 1e6:.0f} MB", *cells])
            for what, s in spent.items():
                figures |= {f"{what} {n}: seconds": s.seconds, f"{what} {n}: peak MB": s.peak_mb}
            shutil.rmtree(out)
            shutil.rmtree(folder)
        plan = plan_cost(work, data, quick)
    console.say(
        f"Plan of {plan['items']:,.0f} items, one tokenizer: {plan['cold seconds']:.1f} s, peak {plan['cold peak MB']:,.0f} MB; "
        f"from the cache {plan['warm seconds']:.1f} s, {plan['warm peak MB']:,.0f} MB"
    )
    console.say(
        f"At the benchmarks' full size, {plan['full items']:,.0f} items made of these, no two with a common beginning: "
        f"{plan['full seconds']:.1f} s, peak {plan['full peak MB']:,.0f} MB"
    )
    columns = ["checkpoints", "files", "store", "listing", "resume decision", "correlate"]
    title = "Cost against the number of checkpoints (whole processes, imports included)"
    return Result(
        Table(title, columns, rows), {}, figures=figures | {f"plan {k}": value for k, value in plan.items()}
    )


def names(n: int) -> list[str]:
    """Twins of every mixture at every scale."""
    twins = [f"{SCALES[i % len(SCALES)]}-m{i // len(SCALES)}" for i in range(n // 2)]
    return [f"{twin}-{stage}" for twin in twins for stage in ("pt", "sft")]


def measure(step: Callable[..., object], *given: Any) -> Spent:
    """A step in a process of its own."""
    peak: list[float] = []
    seconds = timed(lambda: peak.append(alone(peak_of, step, *given)))
    return Spent(seconds, peak[0])


def peak_of(step: Callable[..., object], *given: Any) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        step(*given)
    return peak_memory()


def list_store(out: Path) -> None:
    from evalengine import store

    store.paths(out)


def resume(folder: Path, out: Path) -> None:
    from evalengine.bench import synthetic

    synthetic.check_complete(discover(sorted(folder.iterdir())), STORED, out)


def correlate(out: Path) -> None:
    from evalengine.cli import main

    if main(["correlate", str(out), "--out", str(out.parent / "analysis")]):
        raise UserError("correlate failed")


def plan(data: Path, checkpoint: Path, limit: int | None, shrink: int | None = None) -> None:
    """Plans the items of a folder; with `shrink`, as many as the 20 benchmarks have over `shrink`.

    Those are the folder's own again and again, each behind a number of its own, so that no two share a beginning: nothing is
    tokenised once for many, which makes this dearer than the real sets, where paragraphs recur.
    """
    from evalengine import plans

    (found,) = discover([checkpoint])
    planner = plans.Planner()
    for given in read_items(data, limit):
        if shrink is None:
            planner.plan(found, given)
            continue
        made = []
        for i in range(SIZES[given.benchmark][0] // shrink):
            item = given.items[i % len(given.items)]
            contexts = tuple(f"{i} {context}" for context in item.contexts)
            made.append(item._replace(id=f"{item.id}-{i}", contexts=contexts))
        data_hash = f"{given.data_hash[:8]}{len(made):08d}"
        planner.plan(found, given._replace(items=made, total=len(made), data_hash=data_hash))


def plan_cost(work: Path, data: Path | None, quick: bool) -> dict[str, float]:
    """Planning every item of a data folder, with an empty cache and with a full one; and at full size."""
    if data is None:
        items = 40 if quick else sum(n for n, _ in SIZES.values()) // len(SIZES)
        data = world_data(work, items=items, train_items=4, words=20_000, chats=20)
    data = data.resolve()
    checkpoint = make_checkpoint(work / "plan-a-pt", SHAPES["7M"], data)
    limit, shrink = (20, 1000) if quick else (None, 1)
    shutil.rmtree(os.environ["EVALENGINE_CACHE"], ignore_errors=True)
    sets = read_items(data, limit)
    found: dict[str, float] = {"items": sum(len(s.items) for s in sets)}
    for key in ("cold", "warm"):
        spent = measure(plan, data, checkpoint, limit)
        found |= {f"{key} seconds": spent.seconds, f"{key} peak MB": spent.peak_mb}
    full = measure(plan, data, checkpoint, None, shrink)
    found["full items"] = sum(SIZES[s.benchmark][0] // shrink for s in sets)
    return found | {"full seconds": full.seconds, "full peak MB": full.peak_mb}
