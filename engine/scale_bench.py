"""How cost grows with the number of checkpoints: `evalengine bench scale`.

Synthetic stores (20 benchmarks, a hundredth of their real sizes, checkpoints {scale}-{mixture}-{pt,sft}) of growing N, written
through the store's own writer; then, each in a process of its own: listing the store, deciding what a resumed run has left to do,
and `correlate`. Beside it the plan of all items under one tokenizer, and of as many as the real benchmarks have. Seconds and peak
memory; nothing here is a ratio.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evalengine import console, runner, store
from evalengine.checkpoints import Checkpoint, discover
from evalengine.encoding import Encoded, Sequences
from evalengine.errors import UserError

COUNTS = (40, 100, 300, 1000)
SCALES = ("60M", "150M", "240M", "1B")
SHRINK = 100
FEWEST = 20  # items of a benchmark at least

# Items of the 20 benchmarks' usual splits, and choices of each item: 86,779 in all.
SIZES = {
    "hellaswag": (10_042, 4),
    "piqa": (1_838, 2),
    "winogrande": (1_267, 2),
    "copa": (100, 2),
    "siqa": (1_954, 3),
    "commonsense_qa": (1_221, 5),
    "boolq": (3_270, 2),
    "arc_easy": (2_376, 4),
    "arc_challenge": (1_172, 4),
    "sciq": (1_000, 4),
    "openbookqa": (500, 4),
    "mnli": (9_815, 3),
    "qnli": (5_463, 2),
    "rte": (277, 2),
    "cb": (56, 3),
    "qqp": (40_430, 2),
    "mrpc": (408, 2),
    "wic": (638, 2),
    "wsc": (104, 2),
    "multirc": (4_848, 2),
}


class Spent(NamedTuple):
    seconds: float
    peak_mb: float


def run(quick: bool = False, data: Path | None = None, device: str = "cpu") -> dict[str, Any]:
    """Rows for the table. `data`: a folder of benchmark files for the plan (default: the embedded world)."""
    counts = (40,) if quick else COUNTS
    rows: list[list[str]] = []
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="evalengine-bench-") as folder:
        work = Path(folder)
        for n in counts:
            checkpoints = synthetic_checkpoints(work / f"ckpts{n}", n)
            out = work / f"scores{n}"
            write_store(checkpoints, out)
            size = sum(p.stat().st_size for p in out.glob("*/*.arrow"))
            spent = {
                what: measure(what, work, out, checkpoints[0].path.parent)
                for what in ("list", "resume", "correlate")
            }
            cells = [f"{s.seconds:.2f} s, {s.peak_mb:,.0f} MB" for s in spent.values()]
            rows.append([f"{n:,}", f"{n * len(SIZES):,}", f"{size / 1e6:.0f} MB", *cells])
            for what, s in spent.items():
                figures |= {f"{what} {n}: seconds": s.seconds, f"{what} {n}: peak MB": s.peak_mb}
            shutil.rmtree(out)
        plan = plan_cost(work, data, quick)
        figures |= {f"plan {key}": value for key, value in plan.items()}
    console.say(
        f"Plan of {plan['items']:,.0f} items, one tokenizer: {plan['cold seconds']:.1f} s, peak {plan['cold peak MB']:,.0f} MB; "
        f"from the cache {plan['warm seconds']:.1f} s, {plan['warm peak MB']:,.0f} MB"
    )
    console.say(
        f"At the benchmarks' full size, {plan['full items']:,.0f} items made of these, no two with a common beginning: "
        f"{plan['full seconds']:.1f} s, peak {plan['full peak MB']:,.0f} MB"
    )
    return {
        "title": "Cost against the number of checkpoints (whole processes, imports included)",
        "columns": ["checkpoints", "files", "store", "listing", "resume decision", "correlate"],
        "rows": rows,
        "ratios": {},
        "figures": figures,
    }


def synthetic_checkpoints(folder: Path, n: int) -> list[Checkpoint]:
    """Checkpoint folders with a configuration, a tokenizer file and a few bytes of weights: what a resume decision reads."""
    for i in range(n):
        scale, mixture, stage = (
            SCALES[i // 2 % len(SCALES)],
            f"m{i // 2 // len(SCALES)}",
            ("pt", "sft")[i % 2],
        )
        path = folder / f"{scale}-{mixture}-{stage}"
        path.mkdir(parents=True)
        (path / "config.json").write_text('{"model_type": "llama"}')
        (path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "filler": "x" * 2_000_000}))
        (path / "model.safetensors").write_bytes(i.to_bytes(8, "little"))
    return discover(sorted(folder.iterdir()))


class Torch(NamedTuple):
    """What a store's metadata says of a backend."""

    name: str = "torch"
    dtype: str = "float32"


def item_sets() -> list[tuple[Any, str]]:
    """Empty item sets of the 20 benchmarks' names: their metadata is what a resume decision compares."""
    from evalengine.benchmarks import ItemSet, resolve

    return [
        (ItemSet(b.name, b.category, str(b.version), None, [], "0" * 16, items_of(b.name)), b.default_score)
        for b in resolve("all")
    ]


def items_of(benchmark: str) -> int:
    return max(FEWEST, SIZES[benchmark][0] // SHRINK)


def tasks_of(checkpoint: Checkpoint, out: Path, sets: list[tuple[Any, str]]) -> list[runner.Task]:
    here, fingerprint = runner.identify(checkpoint, False)
    common = runner.checkpoint_metadata(here, fingerprint, runner.Options(), Torch())
    return runner.tasks_of(here, out, sets, common)


def write_store(checkpoints: list[Checkpoint], out: Path) -> None:
    """Scores in which each checkpoint has an ability of its own, so that there is something to correlate."""
    draw = np.random.default_rng(0)
    sets = item_sets()
    for checkpoint in checkpoints:
        ability = draw.normal()
        for task in tasks_of(checkpoint, out, sets):
            items, choices = items_of(task.items.benchmark), SIZES[task.items.benchmark][1]
            gold = (np.arange(items) % choices).astype(np.int16)
            loglik = draw.normal(-20, 3, size=(items, choices))
            loglik[np.arange(items), gold] += ability
            flat = loglik.reshape(-1)
            length = np.full(len(flat), 5, np.int32)
            encoded = Encoded(
                Sequences(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, np.int32)),
                np.arange(len(flat), dtype=np.int32),
                None,
                np.arange(0, len(flat) + 1, choices, dtype=np.int64),
                length,
                length,
                length,
                [f"{task.items.benchmark}-{i}" for i in range(items)],
                gold,
                0,
            )
            scores = Flat(flat, flat > -18)
            table = runner.table_of(checkpoint, task.items.benchmark, task.items.category, encoded, scores)
            store.write(task.path, table, task.metadata)


class Flat(NamedTuple):
    loglik: np.ndarray
    greedy: np.ndarray


def measure(what: str, work: Path, *given: Path | str) -> Spent:
    """One step in a process of its own: seconds of the step with its imports, and the peak of resident memory."""
    code = (
        "import sys, time; t = time.perf_counter()\n"
        "from evalengine.scale_bench import steps\n"
        "more = steps[sys.argv[1]](*sys.argv[2:])\n"
        "s = time.perf_counter() - t\n"
        "peak = [l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')][0]\n"
        "print(s, int(peak) / 1024, more or 0)"
    )
    environment = os.environ | {"EVALENGINE_CACHE": str(work / "cache")}
    command = [sys.executable, "-c", code, what, *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=work)
    if done.returncode:
        raise UserError(f"{what} failed: {' '.join(done.stderr.split())[-300:]}")
    seconds, peak, _ = done.stdout.split()[-3:]
    return Spent(float(seconds), float(peak))


def step_list(out: str, ckpts: str) -> None:
    assert sum(1 for _ in store.files(out)) > 0


def step_resume(out: str, ckpts: str) -> None:
    """Every checkpoint fingerprinted, every stored file compared (and its checksum verified): nothing is left to do."""
    sets = item_sets()
    options = runner.Options()
    for checkpoint in discover(sorted(Path(ckpts).iterdir())):
        tasks = tasks_of(checkpoint, Path(out), sets)
        if not all(runner.is_current(task, options, []) for task in tasks):
            raise UserError(f"{checkpoint.name} is not whole")


def step_correlate(out: str, ckpts: str) -> None:
    from evalengine.cli import main

    if main(["correlate", out, "--out", str(Path(out).parent / "analysis")]):
        raise UserError("correlate failed")


def step_plan(data: str, checkpoint: str, limit: str) -> int:
    from evalengine import plans
    from evalengine.bench import read_items

    (found,) = discover([Path(checkpoint)])
    planner = plans.Planner()
    return sum(len(planner.plan(found, items).gold) for items in read_items(Path(data), int(limit) or None))


def step_plan_full(data: str, checkpoint: str, shrink: str) -> int:
    """As many items as the 20 benchmarks have, over `shrink`: the folder's own again and again, no two of them alike.

    Each stands behind a number of its own, so that no two share a beginning: nothing is tokenised once for many, which makes
    this dearer than the real sets, where paragraphs recur.
    """
    from evalengine import plans
    from evalengine.bench import read_items

    (found,) = discover([Path(checkpoint)])
    planner = plans.Planner()
    planned = 0
    for given in read_items(Path(data), None):
        count = SIZES[given.benchmark][0] // int(shrink)
        made = []
        for i in range(count):
            item = given.items[i % len(given.items)]
            contexts = tuple(f"{i} {context}" for context in item.contexts)
            made.append(item._replace(id=f"{item.id}-{i}", contexts=contexts))
        full = given._replace(items=made, total=count, data_hash=f"{given.data_hash[:8]}{count:08d}")
        planned += len(planner.plan(found, full).gold)
    return planned


steps = {
    "list": step_list,
    "resume": step_resume,
    "correlate": step_correlate,
    "plan": step_plan,
    "plan_full": step_plan_full,
}


def plan_cost(work: Path, data: Path | None, quick: bool) -> dict[str, float]:
    """Planning every item of a data folder, with an empty cache and with a full one."""
    from evalengine.bench import SHAPES, make_checkpoint, read_items

    if data is None:
        from evalengine.benchmarks import world

        size = {"items": 40} if quick else {"items": sum(n for n, _ in SIZES.values()) // len(SIZES)}
        world.write(work / "world", seed=0, train_items=4, words=20_000, chats=20, **size)
        data = work / "world" / "bench"
    data = data.resolve()
    checkpoint = make_checkpoint(work / "plan-a-pt", SHAPES["7M"], data)
    limit = "20" if quick else "0"
    shrink = "1000" if quick else "1"
    shutil.rmtree(work / "cache", ignore_errors=True)
    sets = read_items(data, int(limit) or None)
    cold = measure("plan", work, data, checkpoint, limit)
    warm = measure("plan", work, data, checkpoint, limit)
    full = measure("plan_full", work, data, checkpoint, shrink)
    return {
        "items": sum(len(s.items) for s in sets),
        "cold seconds": cold.seconds,
        "cold peak MB": cold.peak_mb,
        "warm seconds": warm.seconds,
        "warm peak MB": warm.peak_mb,
        "full items": sum(SIZES[s.benchmark][0] // int(shrink) for s in sets),
        "full seconds": full.seconds,
        "full peak MB": full.peak_mb,
    }
