"""lm-evaluation-harness's multiple-choice tasks as benchmarks: `evalengine score --lm-eval-tasks mmlu,arc_easy`.

The harness reads the data, renders contexts and choices, and says which is right; this engine scores them into the
store, one benchmark a task. Groups (mmlu) become their tasks.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, Any, NamedTuple

from evalengine.errors import UserError

if TYPE_CHECKING:
    from evalengine.benchmarks import ItemSet

FEWSHOT_SEED = 1234  # the harness's own


class TaskItems(NamedTuple):
    """A task's items, and the score it is usually reported by."""

    items: ItemSet
    default_score: str


def load_tasks(
    names: str, *, limit: int | None = None, seed: int = 0, fewshot: int | None = None, manager: Any = None
) -> list[TaskItems]:
    """The multiple-choice tasks called `names` (commas between). Raises UserError for one that is not there or is none."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UserError("--lm-eval-tasks needs lm-eval: pip install lm-eval==0.4.13") from None
    manager = manager or TaskManager()
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = set(manager.all_tasks)
    for name in wanted:
        if name not in known:
            raise UserError(f"lm-eval has no task {name!r}: `lm_eval ls tasks` lists those it has")
    try:
        tasks = manager.load(wanted)["tasks"]
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"lm-eval cannot load {names}: {reason}; its data comes from the Hugging Face hub"
        ) from None
    return [task_items(str(name), task, limit, seed, fewshot) for name, task in tasks.items()]


def task_items(name: str, task: Any, limit: int | None, seed: int, fewshot: int | None) -> TaskItems:
    from evalengine.benchmarks import Item, ItemSet

    if task.OUTPUT_TYPE != "multiple_choice":
        raise UserError(
            f"lm-eval's {name} is no multiple-choice task ({task.OUTPUT_TYPE}): run it with lm_eval --model evalengine"
        )
    if fewshot:
        task.set_config(key="num_fewshot", value=fewshot)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    task.build_all_requests()
    grouped: dict[int, list[Any]] = {}
    for instance in task.instances:
        grouped.setdefault(instance.doc_id, []).append(instance)
    digest = hashlib.blake2b(digest_size=16)
    items = []
    for doc_id, instances in sorted(grouped.items()):
        doc = instances[0].doc
        choices = tuple(str(choice) for choice in task.doc_to_choice(doc))
        pairs = [
            instance.args for instance in instances[: len(choices)]
        ]  # beyond them: choices without context
        contexts, continuations = tuple(p[0] for p in pairs), tuple(p[1] for p in pairs)
        right = gold(name, task, doc, choices)
        digest.update(repr((contexts, continuations, right)).encode("utf-8", "surrogatepass"))
        items.append(Item(str(doc_id), contexts, continuations, choices, right))
    total = len(items)
    if limit is not None and limit < total:
        items = [items[i] for i in sorted(random.Random(seed).sample(range(total), limit))]
    default = "acc_norm" if "acc_norm" in task._metric_fn_list else "acc"
    version = f"lm_eval {task.VERSION}"
    return TaskItems(ItemSet(name, "lm_eval", version, None, items, digest.hexdigest(), total), default)


def gold(name: str, task: Any, doc: Any, choices: tuple[str, ...]) -> int:
    """The index of the right choice, by the rule of the harness's own `process_results`."""
    right = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(right, str) and right in choices:
        right = choices.index(right)
    if not isinstance(right, int) or not 0 <= right < len(choices):
        raise UserError(
            f"lm-eval's {name} has items without exactly one right choice: run it with lm_eval --model evalengine"
        )
    return right
