"""The reference, run for real: lm-evaluation-harness 0.4.13's own task definitions on local files.

Its tasks call `datasets.load_dataset`; here that call is answered from a folder of `<benchmark>.jsonl` and
`<benchmark>_train.jsonl` files, looked up by the hub path and configuration the task itself asks for. Nothing
of the reference is replaced but where its rows come from, so that what its tasks render and how they judge is
the oracle of the tests and the baseline of the speed comparisons. Cost: about a millisecond an item.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

SEED = 1234  # of few-shot draws: the reference's own default


class Source(NamedTuple):
    """Where the reference finds a benchmark: its task, its folder, the hub path and config."""

    task: str
    folder: str
    path: str
    config: str | None
    split: str


SOURCES: dict[str, Source] = {
    "hellaswag": Source("hellaswag", "hellaswag", "Rowan/hellaswag", None, "validation"),
    "piqa": Source("piqa", "piqa", "baber/piqa", None, "validation"),
    "winogrande": Source("winogrande", "winogrande", "allenai/winogrande", "winogrande_xl", "validation"),
    "copa": Source("copa", "super_glue/copa", "aps/super_glue", "copa", "validation"),
    "siqa": Source("social_iqa", "siqa", "lighteval/siqa", None, "validation"),
    "commonsense_qa": Source("commonsense_qa", "commonsense_qa", "tau/commonsense_qa", None, "validation"),
    "boolq": Source("boolq", "super_glue/boolq", "aps/super_glue", "boolq", "validation"),
    "arc_easy": Source("arc_easy", "arc", "allenai/ai2_arc", "ARC-Easy", "test"),
    "arc_challenge": Source("arc_challenge", "arc", "allenai/ai2_arc", "ARC-Challenge", "test"),
    "sciq": Source("sciq", "sciq", "allenai/sciq", None, "test"),
    "openbookqa": Source("openbookqa", "openbookqa", "allenai/openbookqa", "main", "test"),
    "mnli": Source("mnli", "glue/mnli", "nyu-mll/glue", "mnli", "validation_matched"),
    "qnli": Source("qnli", "glue/qnli", "nyu-mll/glue", "qnli", "validation"),
    "rte": Source("rte", "glue/rte", "nyu-mll/glue", "rte", "validation"),
    "cb": Source("cb", "super_glue/cb", "aps/super_glue", "cb", "validation"),
    "qqp": Source("qqp", "glue/qqp", "nyu-mll/glue", "qqp", "validation"),
    "mrpc": Source("mrpc", "glue/mrpc", "nyu-mll/glue", "mrpc", "validation"),
    "wic": Source("wic", "super_glue/wic", "aps/super_glue", "wic", "validation"),
    "wsc": Source("wsc", "super_glue/wsc", "aps/super_glue", "wsc.fixed", "validation"),
    "multirc": Source("multirc", "super_glue/multirc", "aps/super_glue", "multirc", "validation"),
}


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


def tasks(
    data: Path, names: Sequence[str] = (), *, limit: int | None = None, fewshot: int = 0
) -> dict[str, Any]:
    """lm-eval's tasks over the files of `data` by benchmark name, requests built; all twenty unless `names`.

    `limit` takes the first items of each, as the reference does.
    """
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    names = list(names) or list(SOURCES)
    root = Path(lm_eval.tasks.__file__).parent
    folders = sorted({str(root / SOURCES[name].folder) for name in names})
    wanted = [SOURCES[name].task for name in names]
    with _local_datasets(data), _quiet():
        manager = TaskManager(include_path=folders, include_defaults=False)  # indexing all of them takes long
        loaded = manager.load(wanted)["tasks"]
        found = {name: loaded[SOURCES[name].task] for name in names}
        for task in found.values():
            task.set_config(key="num_fewshot", value=fewshot)
            task.set_fewshot_seed(seed=SEED)
            task.build_all_requests(limit=limit)
    return found


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
    with _quiet():
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


@contextlib.contextmanager
def _local_datasets(data: Path) -> Iterator[None]:
    import datasets

    by_hub = {(source.path, source.config): name for name, source in SOURCES.items()}

    def load_dataset(path: str, name: str | None = None, **_: Any) -> Any:
        benchmark = by_hub[path, name]
        rows = _rows(data, benchmark, "")
        train = _rows(data, benchmark, "_train") or rows
        splits = {"train": train, "validation": rows, "test": rows, SOURCES[benchmark].split: rows}
        return datasets.DatasetDict({split: datasets.Dataset.from_list(r) for split, r in splits.items()})

    with mock.patch.object(datasets, "load_dataset", load_dataset):
        yield


def _rows(data: Path, benchmark: str, ending: str) -> list[dict[str, Any]]:
    names = (benchmark, "social_iqa") if benchmark == "siqa" else (benchmark,)
    path = next((p for name in names if (p := data / f"{name}{ending}.jsonl").is_file()), None)
    rows = [json.loads(line) for line in path.read_text().split("\n") if line.strip()] if path else []
    for row in rows:
        if benchmark == "boolq" and "label" not in row:  # the original BoolQ's name for it
            row["label"] = int(row["answer"])
    return rows


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The reference reports its progress on standard error; tests read better without."""
    import logging

    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w") as sink, contextlib.redirect_stderr(sink):
            yield
    finally:
        logging.disable(previous)
