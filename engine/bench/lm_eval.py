"""lm-evaluation-harness on this engine against lm-evaluation-harness's own HF model: `evalengine bench lm-eval`.

Five of the harness's own tasks over local items, one random checkpoint, float32 on a CPU, both sides in one process through the
harness's `simple_evaluate`, models already loaded. Its HF model runs at batch sizes 1, 8 and 32, and the fastest counts. What
the harness itself takes (rendering, metrics) is the time with its dummy model, which answers at once; it is part of both sides.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from evalengine.bench import local_tasks
from evalengine.bench.harness import Measurement, against, medians
from evalengine.bench.inputs import make_checkpoints, sizes_of, workplace, world_data
from evalengine.errors import UserError

TASKS = ("arc_easy", "boolq", "copa", "sciq", "winogrande")


class Evaluation(NamedTuple):
    """One `simple_evaluate`: its seconds, every metric it reports, and the log-likelihood of every request, by task."""

    seconds: float
    metrics: dict[tuple[str, str], float]
    loglik: dict[str, list[float]]


def run(
    quick: bool = False,
    data: Path | None = None,
    sizes: str = "",
    limit: int | None = None,
    backend: str = "torch",
) -> Measurement:
    size = sizes_of(sizes or ("1M" if quick else "7M"))[0]
    limit = limit or (4 if quick else 100)
    with workplace() as work:
        data = data or world_data(work)
        (path,) = make_checkpoints(work, size, data)
        evaluate = partial(evaluated, data=data, limit=limit)
        theirs = {  # before vLLM, which changes transformers for its process
            f"hf, batch {batch}": evaluate(local_tasks.hf_model(path, batch))
            for batch in ((8,) if quick else (1, 8, 32))
        }
        model = our_model(path, backend)
        first = evaluate(model)  # warms it
        ours = f"evalengine, {backend}"
        took = medians({ours: lambda: evaluate(model).seconds}, 1 if quick else 3)
        model.engine.close()
    peer = min(theirs.values(), key=lambda evaluation: evaluation.seconds)
    of_metrics, of_loglik = largest_differences(first, peer)
    title = (
        f"lm-eval, {len(TASKS)} tasks x {limit} items, {size}: results differ by {of_metrics:.1e},"
        f" log-likelihoods by {of_loglik:.1e} at most"
    )
    ratios = {
        f"lm-eval with hf / with evalengine ({backend})": round(peer.seconds / took[ours], 2),
        "largest difference of a result": of_metrics,
        "largest difference of a log-likelihood": of_loglik,
    }
    seconds = {name: evaluation.seconds for name, evaluation in theirs.items()} | took
    return Measurement(title, ("model", "seconds", "ratio to ours"), against(ours, seconds), ratios)


def evaluated(model: Any, data: Path, limit: int) -> Evaluation:
    """The harness's own evaluation of its own tasks, their rows read from `data`."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    loaded = list(local_tasks.tasks(data, TASKS, limit=limit).values())
    manager = TaskManager(include_defaults=False)  # else it reads thousands of task files each time
    started = time.perf_counter()
    with local_tasks.local_datasets(data), local_tasks.quiet():
        found = lm_eval.simple_evaluate(
            model=model, tasks=loaded, limit=limit, bootstrap_iters=0, task_manager=manager
        )
    seconds = time.perf_counter() - started
    metrics = {
        (task, name): float(value)
        for task, values in found["results"].items()
        for name, value in values.items()
        if isinstance(value, float)
    }
    loglik = {
        task: [float(response[0][0]) for sample in samples for response in sample["resps"]]
        for task, samples in found["samples"].items()
    }
    return Evaluation(seconds, metrics, loglik)


def largest_differences(a: Evaluation, b: Evaluation) -> tuple[float, float]:
    """(of a metric, of a log-likelihood) between two evaluations of the same tasks."""
    if a.metrics.keys() != b.metrics.keys() or a.loglik.keys() != b.loglik.keys():
        raise UserError("the two sides report different tasks or metrics: run both on the same data")
    logliks = ((x, y) for task in a.loglik for x, y in zip(a.loglik[task], b.loglik[task], strict=True))
    return (
        max(abs(a.metrics[key] - b.metrics[key]) for key in a.metrics),
        max(abs(x - y) for x, y in logliks),
    )


def our_model(path: Path, backend: str) -> Any:
    from evalengine.lm_eval.model import EvalengineLM

    return EvalengineLM(pretrained=str(path), backend=backend, device="cpu" if backend == "torch" else None)
