"""lm-evaluation-harness's multiple-choice tasks as benchmarks: `evalengine score --lm-eval-tasks mmlu,arc_easy`.

The harness reads the data, renders contexts and choices and gives the gold choice; this engine scores them into the
store, one benchmark a task. Groups (mmlu) become their tasks. The harness draws few-shot examples for each item anew;
where a draw holds the item itself (its issue 4145), that example is replaced.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

from evalengine import console
from evalengine.benchmarks import Item, ItemSet
from evalengine.benchmarks.load import check_choices, check_options, sample, text_key
from evalengine.errors import UserError
from evalengine.untrusted import reason

FEWSHOT_SEED = 1234  # the harness's own


def load_tasks(
    names: str, *, limit: int | None = None, seed: int = 0, fewshot: int | None = None, manager: Any = None
) -> list[tuple[ItemSet, str]]:
    """The multiple-choice tasks called `names` (commas between), each with the score that it is usually reported by.

    `fewshot` None keeps each task's own number. Raises UserError for a task that does not exist or is not multiple-choice.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UserError("--lm-eval-tasks needs lm-eval: pip install lm-eval==0.4.13") from None
    check_options(limit, fewshot, seed)
    manager = manager or TaskManager()
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in manager.all_tasks:
            raise UserError(f"lm-eval has no task {name!r}: `lm_eval ls tasks` lists those it has")
    try:
        with console.quiet_hub():
            tasks = manager.load(wanted)["tasks"]
    except Exception as error:
        raise UserError(
            f"lm-eval cannot load {names}: {reason(error)}; its data comes from the Hugging Face hub"
        ) from None
    return [task_items(str(name), task, limit, seed, fewshot) for name, task in tasks.items()]


def task_items(
    name: str, task: Any, limit: int | None, seed: int, fewshot: int | None
) -> tuple[ItemSet, str]:
    if task.OUTPUT_TYPE != "multiple_choice":
        raise UserError(
            f"lm-eval's {name} is not a multiple-choice task ({task.OUTPUT_TYPE}): run it with evalengine lm-eval"
        )
    if fewshot is not None:
        task.set_config(key="num_fewshot", value=fewshot)
    shots = task.config.num_fewshot or 0
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    if shots:
        keep_item_out(name, task)
    try:
        task.build_all_requests()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"lm-eval cannot render {name}: {reason(error)}; try it with lm_eval itself"
        ) from None
    grouped: dict[int, list[Any]] = {}
    for instance in task.instances:
        grouped.setdefault(instance.doc_id, []).append(instance)
    digest = hashlib.blake2b(digest_size=16)
    items = []
    for doc_id, instances in sorted(grouped.items()):
        doc = instances[0].doc
        choices = tuple(str(choice) for choice in task.doc_to_choice(doc))
        check_choices(choices, f"lm-eval's {name}, item {doc_id}")
        # instances after these are the choices without context
        pairs = [instance.args for instance in instances[: len(choices)]]
        contexts, continuations = tuple(p[0] for p in pairs), tuple(p[1] for p in pairs)
        right = gold(name, task, doc, choices)
        digest.update(repr((contexts, continuations, right)).encode("utf-8", "surrogatepass"))
        items.append(Item(str(doc_id), contexts, continuations, choices, right))
    if not items:
        raise UserError(f"lm-eval's {name} has no items: leave it out")
    total, items = len(items), sample(items, limit, seed)
    default = "acc_norm" if "acc_norm" in task._metric_fn_list else "acc"
    version = f"lm_eval {task.VERSION}"
    return ItemSet(name, "lm_eval", version, None, items, digest.hexdigest(), total, shots), default


def keep_item_out(name: str, task: Any) -> None:
    """Replaces a few-shot example that is the item itself: where the splits overlap, the harness may draw it."""
    if not hasattr(task, "sampler"):
        raise UserError(f"lm-eval's {name} has no data to draw few-shot examples from: use --fewshot 0")
    build, draw, rng = task.fewshot_context, task.sampler.sample, random.Random(FEWSHOT_SEED)
    asked: set[str] = set()

    def fewshot_context(doc: Any, *args: Any, **kwargs: Any) -> Any:
        asked.clear()
        asked.update(scored_by(task, doc))
        return build(doc, *args, **kwargs)

    def sample(n: int, **kwargs: Any) -> Any:
        try:
            drawn = draw(n, **kwargs)
        except (ValueError, AssertionError):  # the harness's words for a draw of more than there are
            drawn = []
        kept = [doc for doc in drawn if solved(task, doc) not in asked]
        if len(kept) == n:
            return kept
        others = [doc for doc in task.sampler.fewshot_docs() if solved(task, doc) not in asked]
        if n > len(others):
            raise UserError(
                f"lm-eval's {name} has {len(others)} few-shot examples besides the item itself, but {n} are requested:"
                " lower --fewshot"
            )
        return kept + rng.sample([doc for doc in others if doc not in kept], n - len(kept))

    task.fewshot_context, task.sampler.sample = fewshot_context, sample


def scored_by(task: Any, doc: Any) -> set[str]:
    """The keys of the texts that an item scores, without its examples."""
    text, choices = task.doc_to_text(doc), [str(choice) for choice in task.doc_to_choice(doc)]
    if task.multiple_input:
        return {text_key(f"{choice} {task.doc_to_target(doc)}") for choice in choices}
    return {text_key(f"{text} {choice}") for choice in choices}


def solved(task: Any, doc: Any) -> str:
    """The key of an example's text: its question and its right answer, as the harness takes them."""
    shown = task.fewshot_cfg
    text, target = task.doc_to_text(doc, shown.doc_to_text), task.doc_to_target(doc, shown.doc_to_target)
    choices = task.doc_to_choice(doc, shown.doc_to_choice) if shown.doc_to_choice else None
    if task.multiple_input and choices:
        text = choices[text]
    elif choices and isinstance(target, int):
        target = choices[target]
    elif isinstance(target, list):
        target = target[0]
    return text_key(f"{text} {target}")


def gold(name: str, task: Any, doc: Any, choices: tuple[str, ...]) -> int:
    """The index of the right choice, by the rule of the harness's own `process_results`."""
    right = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(right, str) and right in choices:
        right = choices.index(right)
    if not isinstance(right, int) or not 0 <= right < len(choices):
        raise UserError(
            f"lm-eval's {name} has items without exactly one right choice: run it with evalengine lm-eval"
        )
    return right
