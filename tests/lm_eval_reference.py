"""The reference, run for real: what lm-evaluation-harness 0.4.13's own tasks render and how they judge, on local files."""

from __future__ import annotations

from typing import Any, NamedTuple

from evalengine.bench.local_tasks import SEED, TASK_OF, quiet, tasks

__all__ = ["SEED", "TASK_OF", "Request", "Score", "quiet", "requests", "scores", "tasks"]


class Request(NamedTuple):
    """What the reference scores for one item: `continuations[i]` after `contexts[i]`."""

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int


class Score(NamedTuple):
    """What the reference says of one item."""

    loglik: tuple[float, ...]
    greedy: tuple[bool, ...]
    acc: float
    acc_norm: float | None  # None where the task does not report it


def requests(task: Any) -> list[Request]:
    """The rendered requests of a task, one per item in the data's order."""
    grouped: dict[int, list[Any]] = {}
    for instance in task.instances:
        grouped.setdefault(instance.doc_id, []).append(instance)
    return [
        Request(
            tuple(instance.args[0] for instance in instances),
            tuple(instance.args[1] for instance in instances),
            _gold(task, instances[0].doc),
        )
        for _, instances in sorted(grouped.items())
    ]


def scores(task: Any, model: Any) -> list[Score]:
    """Scores every item of a task with one of lm-eval's own models (an `HFLM`) and its own metrics."""
    with quiet():
        results = model.loglikelihood(task.instances, disable_tqdm=True)
    grouped: dict[int, list[tuple[Any, tuple[float, bool]]]] = {}
    for instance, result in zip(task.instances, results, strict=True):
        grouped.setdefault(instance.doc_id, []).append((instance.doc, result))
    out = []
    for _, pairs in sorted(grouped.items()):
        judged = task.process_results(pairs[0][0], [result for _, result in pairs])
        loglik = tuple(float(result[0]) for _, result in pairs)
        greedy = tuple(bool(result[1]) for _, result in pairs)
        out.append(Score(loglik, greedy, judged["acc"], judged.get("acc_norm")))
    return out


def _gold(task: Any, doc: Any) -> int:
    """The index of the right choice by the rule of the reference's `process_results`."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    return gold if isinstance(gold, int) else list(task.doc_to_choice(doc)).index(gold)
