"""Every causal architecture of transformers, scored by the engine, by plain transformers and by lm-evaluation-harness.

    python tests/architectures/sweep.py [--names llama,bloom] [--dtypes float32,bfloat16] [--device cpu] [--items N]
        [--orders] [--out docs/architectures.md] [--json FILE] [--jobs 2]

Models run in worker processes that serve many names, each under a time limit; a crash costs one name and a new worker. With
EVALENGINE_DATA set to a folder with bench/, the first N items of COPA and Winogrande are scored beside the items of
contract.py. Exit code 1 where a cell breaks the contract.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import queue
import selectors
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
LIMIT = 240  # seconds for one name in all dtypes
EARLY = 0.1  # gain of the checkpoint with flat logits


class Task(NamedTuple):
    name: str
    dtypes: list[str]
    device: str
    items: int
    orders: bool


# --- one architecture, in a worker


def examine(task: Task) -> dict[str, Any]:
    """All cells of one architecture; what cannot be built or run plainly is said in `unscored`."""
    import contract
    import tiny_configs

    with tempfile.TemporaryDirectory() as folder:
        late, early = Path(folder) / "late", Path(folder) / "early"
        try:
            tiny_configs.save(late, task.name)
            habits = contract.habits(late)
        except Exception as error:
            return {"name": task.name, "unscored": brief(error), "cells": []}
        if task.orders:
            tiny_configs.save(early, task.name, seed=1, gain=EARLY)
        bench = Bench(task, late, early)
        cells = [bench.cell(dtype) for dtype in task.dtypes]
        return {"name": task.name, "unscored": "", "habits": habits._asdict(), "cells": cells}


class Bench:
    """What is scored with two checkpoints of one architecture, and the truth about it."""

    def __init__(self, task: Task, late: Path, early: Path) -> None:
        import contract

        data = Path(os.environ.get("EVALENGINE_DATA", "")) / "bench"
        real = contract.benchmark_pairs(data, task.items) if task.items and data.is_dir() else []
        self.task, self.late, self.early = task, late, early
        self.mixed = contract.encoded(late, contract.mixed() + real)
        self.shots = contract.encoded(late, contract.shots())
        self.without = contract.encoded(late, contract.mixed(long=False) + real)
        self.parts = (self.mixed.sequences, self.shots.sequences)
        self.exact = {
            path: contract.plain(path, "float32", *self.parts, device=task.device)
            for path in [late, *([early] if task.orders else [])]
        }

    def cell(self, dtype: str) -> dict[str, Any]:
        """One architecture in one dtype: how it ran, how far from the truth, the same in other orders and batches."""
        import contract
        import numpy as np

        device = self.task.device
        right = self.truth(self.late, dtype)
        found: dict[str, Any] = {
            "dtype": dtype,
            "plain_error": right.error,
            "plain_raises": right.why,
            "checks": {},
        }
        try:
            backend = contract.engine(dtype, device=device)
            began = time.perf_counter()
            scores = self.check(found, "alone", backend, self.late, right)
            found |= {"path": scores.path, "notes": scores.notes, "seconds": time.perf_counter() - began}
            if self.task.orders and scores.loglik is not None:
                self.other_orders(found, dtype, right)
        except Exception as error:
            found |= {"path": "error", "notes": [brief(error)]}
        try:
            ours = [contract.harness(self.late, dtype, items, device) for items in (self.mixed, self.shots)]
            base = right.loglik if right.plain is None else right.plain
            found["harness"] = float(np.abs(np.concatenate(ours) - base).max())
        except Exception as error:
            found["harness_raises"] = brief(error)
        return found

    def other_orders(self, found: dict[str, Any], dtype: str, right: Any) -> None:
        """Two checkpoints in both orders, small batches, and without the longest item."""
        import contract
        import numpy as np

        truths = {"late": right, "early": self.truth(self.early, dtype)}
        for order in (("early", "late"), ("late", "early")):
            backend = contract.engine(dtype, device=self.task.device)
            for which in order:
                path = self.late if which == "late" else self.early
                self.check(found, f"{which} of {', '.join(order)}", backend, path, truths[which])
        small = contract.engine(dtype, device=self.task.device, batch_tokens=256)
        self.check(found, "batches of 256 tokens", small, self.late, right)
        alone = contract.score(
            contract.engine(dtype, device=self.task.device), self.late, self.without.sequences
        )
        if alone.loglik is not None:
            place = dict(zip(self.mixed.pairs, self.mixed.sequence_P, strict=True))
            same = np.array([place[pair] for pair in self.without.pairs])
            some = contract.Truth(right.loglik[same], None if right.plain is None else right.plain[same])
            verdict = contract.verdict(alone.loglik[self.without.sequence_P], some, dtype)
            found["checks"]["without the long item"] = verdict._asdict()

    def check(self, found: dict[str, Any], name: str, backend: Any, path: Path, right: Any) -> Any:
        import contract

        scores = contract.score(backend, path, *self.parts)
        if scores.loglik is not None:
            found["checks"][name] = contract.verdict(scores.loglik, right, found["dtype"])._asdict()
        return scores

    def truth(self, path: Path, dtype: str) -> Any:
        import contract

        return contract.truth(path, dtype, *self.parts, device=self.task.device, exact=self.exact[path])


def brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:160]}"


def serve() -> None:
    """The worker: a task a line on stdin, a result a line on stdout."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore")
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(examine(Task(**json.loads(line)))), file=out, flush=True)


# --- the parent


class Worker:
    """A process that examines names one after another, replaced where it dies or hangs."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def run(self, task: Task) -> dict[str, Any]:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "sweep.py"), "--worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        failure = f"no answer in {LIMIT} seconds"
        try:
            self.process.stdin.write(json.dumps(task._asdict()) + "\n")
            self.process.stdin.flush()
            with selectors.DefaultSelector() as ready:
                ready.register(self.process.stdout, selectors.EVENT_READ)
                if ready.select(LIMIT):
                    line = self.process.stdout.readline()
                    if line:
                        answer: dict[str, Any] = json.loads(line)
                        return answer
                    failure = f"the process ended with code {self.process.wait()}"
        except BrokenPipeError:
            failure = f"the process ended with code {self.process.wait()}"
        self.stop()
        dead = {"path": "error", "notes": [failure], "checks": {}, "plain_error": 0.0, "plain_raises": ""}
        return {
            "name": task.name,
            "unscored": "",
            "habits": {},
            "cells": [{"dtype": dtype, **dead} for dtype in task.dtypes],
        }

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def run_all(tasks: list[Task], jobs: int) -> Iterator[dict[str, Any]]:
    """Results as they come."""
    waiting: queue.Queue[Task] = queue.Queue()
    done: queue.Queue[dict[str, Any]] = queue.Queue()
    for task in tasks:
        waiting.put(task)

    def work() -> None:
        worker = Worker()
        while True:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                break
            done.put(worker.run(task))
        worker.stop()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for _ in tasks:
        yield done.get()
    for thread in threads:
        thread.join()


# --- verdicts and the table


CAUSAL = 1e-3  # nats that earlier tokens may move when a later one changes


def quirks(result: dict[str, Any]) -> list[str]:
    """What the plain forward of this architecture depends on beside the tokens before."""
    habits = result.get("habits") or {}
    found = {
        "ahead": "attends to later tokens",
        "longer": "early tokens depend on the length",
        "again": "two equal calls differ",
        "kept": "a call leaves state behind",
    }
    return [text for key, text in found.items() if habits.get(key, 0.0) > CAUSAL]


def judge(result: dict[str, Any], cell: dict[str, Any]) -> tuple[bool, str]:
    """Whether a cell keeps the contract, and the reason if not.

    A model that is not causal, is half an encoder-decoder, or whose plain forward is random or cannot run in this dtype may be
    refused; any other is scored.
    """
    habits = result.get("habits") or {}
    excused = any(
        (
            habits.get("ahead", 0) > CAUSAL,
            habits.get("again", 0) > CAUSAL,
            bool(cell["plain_raises"]),
            result["name"] in encoder_decoders(),
        )
    )
    if cell["path"] == "error":
        return False, "; ".join(cell["notes"])
    if cell["path"] == "refused":
        return excused, "refused"
    broken = [name for name, check in cell["checks"].items() if not check["kept"]]
    return not broken, f"beyond the contract: {', '.join(broken)}" if broken else ""


@functools.cache
def encoder_decoders() -> frozenset[str]:
    """Model types that are also registered as encoder-decoders: what is causal of them is the decoder alone."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

    return frozenset(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)


def beside_harness(results: list[dict[str, Any]]) -> str:
    """One paragraph: where lm-evaluation-harness gives what the plain forward gives."""
    near = 0
    others: dict[str, list[str]] = {
        "whole encoder-decoders there": [],
        "other numbers": [],
        "stops there": [],
    }
    for result in results:
        for cell in result["cells"]:
            where = f"{result['name']} {cell['dtype']}"
            if cell.get("harness", 1.0) <= CAUSAL:
                near += 1
            elif result["name"] in encoder_decoders():
                others["whole encoder-decoders there"].append(where)
            elif "harness" in cell:
                others["other numbers"].append(f"{where} ({number(cell['harness'])} nats)")
            else:
                others["stops there"].append(where)
    total = near + sum(map(len, others.values()))
    return "\n".join(
        [
            "lm-evaluation-harness's HFLM at batch size 1, its softmax in float32, is within 0.001 nats of the plain forward",
            f"in the same precision in {near} of {total} cells.",
            *(f"{kind.capitalize()}: {', '.join(names)}." for kind, names in others.items() if names),
        ]
    )


def worst(cell: dict[str, Any]) -> dict[str, Any] | None:
    checks = list(cell["checks"].values())
    return max(checks, key=lambda check: check["largest"] / check["allowed"]) if checks else None


def shown(result: dict[str, Any], cell: dict[str, Any]) -> str:
    """A cell of the table: path, largest difference / allowed."""
    kept, _ = judge(result, cell)
    check = worst(cell)
    text = cell["path"]
    if check is not None:
        text += f" {number(check['largest'])} / {number(check['allowed'])}"
    return text if kept else f"**{text}**"


def number(value: float) -> str:
    return f"{value:.1g}" if value < 0.01 else f"{value:.2f}"


def why(result: dict[str, Any]) -> str:
    """Notes of the engine, faults, and quirks of the plain forward, in one line."""
    said: list[str] = []
    for one in result["cells"]:
        kept, reason = judge(result, one)
        notes = [*one["notes"], *([] if kept or one["path"] == "error" else [reason])]
        if one["plain_raises"]:
            notes.append(f"transformers cannot run it in {one['dtype']}: {one['plain_raises']}")
        said += [note for note in notes if note not in said]
    return "; ".join([*said, *quirks(result)]).replace("|", "\\|").replace("\n", " ")


CHECKS = (
    " Each cell is scored alone, after and before a checkpoint with flat logits,\nin batches of 256 tokens, and without"
    " the longest item; the worst is shown."
)


def table(
    results: list[dict[str, Any]], dtypes: list[str], command: str, seconds: float, orders: bool
) -> str:
    """The Markdown page."""
    scored = [result for result in results if not result["unscored"]]
    lines = [
        "# Architectures",
        "",
        "Every model type that `AutoModelForCausalLM` of transformers knows, and variants of some (rotary scalings, windows,",
        "layouts), as a tiny checkpoint with random weights. A cell says how the engine runs it, then the largest distance of",
        "a choice's log-likelihood from the plain float32 forward of that sequence alone, and what is allowed, in nats: 0.001",
        "in float32; in half precision twice the largest error of the plain forward in that precision, plus 0.05. Cells in",
        "bold break that." + (CHECKS if orders else ""),
        "Models that pick experts or keys by rank are limited by noise in half precision: where two are nearly equal, rounding decides,",
        "and the plain forward's own error differs from machine to machine as much as the engine's.",
        "",
        f"`{command}`, {seconds / 60:.0f} minutes on {os.cpu_count()} cores; {versions()}.",
        "",
        "| | " + " | ".join(dtypes) + " |",
        "|---|" + "---:|" * len(dtypes),
    ]
    counts = {
        dtype: Counter(c["path"] for r in scored for c in r["cells"] if c["dtype"] == dtype)
        for dtype in dtypes
    }
    lines += [
        f"| {path} | " + " | ".join(str(counts[dtype][path]) for dtype in dtypes) + " |"
        for path in sorted({path for count in counts.values() for path in count})
    ]
    broken = [
        sum(not judge(r, c)[0] for r in scored for c in r["cells"] if c["dtype"] == dtype) for dtype in dtypes
    ]
    lines += [
        "| beyond the contract | " + " | ".join(map(str, broken)) + " |",
        "",
        beside_harness(scored),
        "",
    ]
    lines += ["| model type | " + " | ".join(dtypes) + " | why |", "|---|" + "---|" * len(dtypes) + "---|"]
    lines += [
        f"| {r['name']} | " + " | ".join(shown(r, c) for c in r["cells"]) + f" | {why(r)} |" for r in scored
    ]
    rest = [result for result in results if result["unscored"]]
    if rest:
        lines += ["", "Not built:", ""]
        lines += [f"- {result['name']}: {result['unscored']}" for result in rest]
    return "\n".join(lines) + "\n"


def versions() -> str:
    from importlib.metadata import version

    packages = ("transformers", "torch", "lm-eval")
    return ", ".join(
        [*(f"{name} {version(name)}" for name in packages), f"Python {platform.python_version()}"]
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--names", help="comma-separated model types and variants (default: all)")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--items", type=int, default=4, help="items of each real benchmark, with EVALENGINE_DATA"
    )
    parser.add_argument("--orders", action="store_true", help="also other orders, batch sizes and companions")
    parser.add_argument("--out", type=Path, help="Markdown file, beside stdout")
    parser.add_argument("--json", type=Path, help="all results")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.worker:
        serve()
        return 0
    import tiny_configs

    known = tiny_configs.names()
    names = args.names.split(",") if args.names else known
    unknown = sorted(set(names) - set(known))
    if unknown:
        parser.error(f"no such model type: {', '.join(unknown)}")
    dtypes = args.dtypes.split(",")
    tasks = [Task(name, dtypes, args.device, args.items, args.orders) for name in names]
    began, results = time.monotonic(), []
    for result in run_all(tasks, args.jobs):
        results.append(result)
        state = result["unscored"] or "; ".join(shown(result, one) for one in result["cells"])
        print(f"{len(results)}/{len(tasks)} {result['name']}: {state}", file=sys.stderr, flush=True)
    results.sort(key=lambda result: names.index(result["name"]))
    command = " ".join(["python tests/architectures/sweep.py", *(arguments or sys.argv[1:])])
    page = table(results, dtypes, command, time.monotonic() - began, args.orders)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if args.out:
        args.out.write_text(page, encoding="utf-8")
    print(page)
    return int(any(not judge(result, one)[0] for result in results for one in result["cells"]))


if __name__ == "__main__":
    sys.exit(main())
