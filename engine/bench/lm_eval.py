"""lm-evaluation-harness on this engine against lm-evaluation-harness's own HF model: `evalengine bench lm-eval`.

Five of the harness's own tasks over local items, one random checkpoint, float32 on a CPU, both sides in one process through the
harness's `simple_evaluate`, models already loaded. Its HF model runs at batch sizes 1, 8 and 32, and the fastest counts. What
the harness itself takes (rendering, metrics) is the time with its dummy model, which answers at once; it is part of both sides.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from evalengine import console
from evalengine.bench import local_tasks
from evalengine.bench.harness import Result, Table, medians, timed
from evalengine.bench.inputs import make_checkpoint, shape_of, workplace, world_data
from evalengine.errors import UserError

TASKS = ("arc_easy", "boolq", "copa", "sciq", "winogrande")
BATCH_SIZES = (1, 8, 32)


class Evaluation(NamedTuple):
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
) -> Result:
    size = (sizes or ("1M" if quick else "7M",))[0]
    shape = shape_of(size)
    limit = limit or (4 if quick else 100)
    batch_sizes = (8,) if quick else BATCH_SIZES
    with workplace() as work, console.progress("measuring", len(batch_sizes) + 1, "sides") as progress:
        data = data or world_data(work)
        path = make_checkpoint(work / f"{size}-bench-pt", shape, data)
        evaluate = partial(evaluated, data=data, limit=limit)
        theirs: dict[int, Evaluation] = {}
        for batch in batch_sizes:  # before vLLM, which changes transformers for its process
            theirs[batch] = evaluate(local_tasks.hf_model(path, batch))
            progress.update(1)
        from lm_eval.models.dummy import DummyLM

        ours, instant = our_model(path, backend), DummyLM()
        first = evaluate(ours)  # warms it
        sides = {"ours": lambda: evaluate(ours).seconds, "harness": lambda: evaluate(instant).seconds}
        took = medians(sides, 1 if quick else 3)
        progress.update(1)
        close(ours)
    seconds, harness = took["ours"], took["harness"]
    peer = min(theirs.values(), key=lambda evaluation: evaluation.seconds)
    of_metrics, of_loglik = largest_differences(first, peer)
    hf = {f"hf, batch {batch}": evaluation.seconds for batch, evaluation in theirs.items()}
    rows = [
        *((name, f"{peers:.2f}", f"{peers / seconds:.1f}") for name, peers in hf.items()),
        (f"evalengine, {backend}", f"{seconds:.2f}", "1.0"),
        ("the harness itself", f"{harness:.2f}", f"{harness / seconds:.2f}"),
    ]
    title = (
        f"lm-eval, {len(TASKS)} tasks x {limit} items, {size}: results differ by {of_metrics:.1e},"
        f" log-likelihoods by {of_loglik:.1e} at most"
    )
    without = (peer.seconds - harness) / max(seconds - harness, 1e-9)
    ratios = {
        f"lm-eval with hf / with evalengine ({backend})": round(peer.seconds / seconds, 2),
        "the same, without the harness's own time": round(without, 2),
        "largest difference of a result": of_metrics,
        "largest difference of a log-likelihood": of_loglik,
    }
    return Result(Table(title, ("model", "seconds", "ratio to ours"), rows), ratios)


def evaluated(model: Any, data: Path, limit: int, names: tuple[str, ...] = TASKS) -> Evaluation:
    """The harness's own evaluation of its own tasks, their rows read from `data`."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    loaded = list(local_tasks.tasks(data, names, limit=limit).values())
    manager = TaskManager(include_defaults=False)  # else it reads thousands of task files each time
    found: dict[str, Any] = {}

    def evaluate() -> None:
        with local_tasks.local_datasets(data), local_tasks.quiet():
            found.update(
                lm_eval.simple_evaluate(
                    model=model, tasks=loaded, limit=limit, bootstrap_iters=0, task_manager=manager
                )
            )

    seconds = timed(evaluate)
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


def close(model: Any) -> None:
    end = getattr(model.engine, "close", None)
    if end is not None:
        end()
