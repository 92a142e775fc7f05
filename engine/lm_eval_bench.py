"""lm-evaluation-harness on this engine against lm-evaluation-harness's own HF model: `evalengine bench lm-eval`.

Five of the harness's own tasks over local items, one random checkpoint, float32 on a CPU, both sides in one process through the
harness's `simple_evaluate`, models already loaded. Its HF model runs at batch sizes 1, 8 and 32, and the fastest counts. What
the harness itself takes (rendering, metrics) is the time with a model that answers at once; it is part of both sides.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from evalengine import bench, console
from evalengine.errors import UserError

TASKS = ("arc_easy", "boolq", "copa", "sciq", "winogrande")


class Run(NamedTuple):
    """One `simple_evaluate`: its seconds, every metric it reports, and the log-likelihood of every request, by task."""

    seconds: float
    metrics: dict[tuple[str, str], float]
    loglik: dict[str, list[float]]


def run(
    quick: bool = False,
    data: Path | None = None,
    sizes: tuple[str, ...] = (),
    limit: int | None = None,
    backend: str = "torch",
) -> dict[str, Any]:
    """Rows for the table and the ratios, and how far the two sides' results are apart."""
    size = (sizes or ("1M" if quick else "7M",))[0]
    if size not in bench.SHAPES:
        raise UserError(f"no model size {size!r}: choose from {', '.join(bench.SHAPES)}")
    limit = limit or (4 if quick else 100)
    repeats = 1 if quick else 3
    with tempfile.TemporaryDirectory(prefix="evalengine-bench-") as folder:
        data = data or bench.world_data(Path(folder))
        path = bench.make_checkpoint(Path(folder) / f"{size}-bench-pt", bench.SHAPES[size], data)
        evaluate = partial(evaluated, data=data, limit=limit)
        with console.progress("measuring", 3 if quick else 5, "sides") as progress:
            theirs: dict[int, Run] = {}
            for batch in (
                (8,) if quick else bench.BATCH_SIZES
            ):  # before vLLM, which changes transformers for its process
                theirs[batch] = evaluate(hf_model(path, batch))
                progress.update(1)
            best = min(theirs, key=lambda batch: theirs[batch].seconds)
            harness = statistics.median(evaluate(instant_model()).seconds for _ in range(repeats))
            progress.update(1)
            ours = our_model(path, backend)
            evaluate(ours)  # warms it
            runs = [evaluate(ours) for _ in range(repeats)]
            progress.update(1)
            close(ours)
    seconds = statistics.median(r.seconds for r in runs)
    peer = theirs[best]
    of_metrics, of_loglik = largest_differences(runs[0], peer)
    rows = [
        (f"hf, batch {batch}", f"{r.seconds:.2f}", f"{r.seconds / seconds:.1f}")
        for batch, r in theirs.items()
    ]
    rows += [
        (f"evalengine, {backend}", f"{seconds:.2f}", "1.0"),
        ("the harness itself", f"{harness:.2f}", f"{harness / seconds:.2f}"),
    ]
    return {
        "title": f"lm-eval, {len(TASKS)} tasks x {limit} items, {size}: results differ by {of_metrics:.1e},"
        f" log-likelihoods by {of_loglik:.1e} at most",
        "columns": ("model", "seconds", "ratio to ours"),
        "rows": rows,
        "ratios": {
            f"lm-eval with hf / with evalengine ({backend})": round(peer.seconds / seconds, 2),
            "the same, without the harness's own time": round(
                (peer.seconds - harness) / max(seconds - harness, 1e-9), 2
            ),
            "largest difference of a result": of_metrics,
            "largest difference of a log-likelihood": of_loglik,
        },
    }


def evaluated(model: Any, data: Path, limit: int, names: tuple[str, ...] = TASKS) -> Run:
    """The harness's own evaluation of its own tasks, their rows read from `data`."""
    reference = local_tasks()
    import lm_eval
    from lm_eval.tasks import TaskManager

    loaded = list(reference.tasks(data, names, limit=limit).values())
    manager = TaskManager(include_defaults=False)  # else it reads thousands of task files each time
    found: list[Any] = []

    def evaluate() -> None:
        with reference._local_datasets(data), reference._quiet():
            found.append(
                lm_eval.simple_evaluate(
                    model=model, tasks=loaded, limit=limit, bootstrap_iters=0, task_manager=manager
                )
            )

    seconds = bench.timed(evaluate)
    metrics = {
        (task, name): float(value)
        for task, values in found[0]["results"].items()
        for name, value in values.items()
        if isinstance(value, float)
    }
    loglik = {
        task: [float(response[0][0]) for sample in samples for response in sample["resps"]]
        for task, samples in found[0]["samples"].items()
    }
    return Run(seconds, metrics, loglik)


def largest_differences(a: Run, b: Run) -> tuple[float, float]:
    """(of a metric, of a log-likelihood) between two runs of the same tasks."""
    if a.metrics.keys() != b.metrics.keys() or a.loglik.keys() != b.loglik.keys():
        raise UserError("the two sides report different tasks or metrics: run both on the same data")
    logliks = ((x, y) for task in a.loglik for x, y in zip(a.loglik[task], b.loglik[task], strict=True))
    return (
        max(abs(a.metrics[key] - b.metrics[key]) for key in a.metrics),
        max(abs(x - y) for x, y in logliks),
    )


def local_tasks() -> Any:
    """tests/lm_eval_reference.py, which points the harness's tasks at local files."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise UserError("this benchmark needs lm-eval: pip install lm-eval==0.4.13 accelerate") from None
    tests = Path(__file__).resolve().parent.parent / "tests"
    if not (tests / "lm_eval_reference.py").is_file():
        raise UserError("`bench lm-eval` needs the repository's tests folder: run it from a clone")
    if str(tests) not in sys.path:
        sys.path.append(str(tests))
    import importlib

    return importlib.import_module("lm_eval_reference")


def our_model(path: Path, backend: str) -> Any:
    from evalengine.lm_eval.model import EvalengineLM

    return EvalengineLM(pretrained=str(path), backend=backend, device="cpu" if backend == "torch" else None)


def close(model: Any) -> None:
    end = getattr(model.engine, "close", None)
    if end is not None:
        end()


def hf_model(path: Path, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(path), batch_size=batch_size, dtype="float32", device="cpu")


def instant_model() -> Any:
    """Answers every request at once, to time the harness without a model."""
    from lm_eval.api.model import LM

    class Instant(LM):
        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return [(-float(i % 7), False) for i in range(len(requests))]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            return [0.0] * len(requests)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return [""] * len(requests)

    return Instant()
