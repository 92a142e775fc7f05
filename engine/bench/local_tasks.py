"""lm-evaluation-harness 0.4.13's own task definitions over local files, and its own model: what this engine is compared with.

Its tasks call `datasets.load_dataset`; that call is answered from a folder of `<benchmark>` and `<benchmark>_train` files, found
as every command's --data is and looked up by the hub path and configuration the task itself asks for. Nothing of the harness is
replaced but where its rows come from. Cost: about a millisecond an item. Importing this module puts the hub's libraries
offline, unless the environment says otherwise.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from evalengine.bench.inputs import lines_of
from evalengine.benchmarks import BENCHMARKS, Benchmark, benchmarks_in
from evalengine.benchmarks.load import data_file
from evalengine.errors import UserError

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

SEED = 1234  # of few-shot draws: the harness's own default
TASK_OF = {name: name for name in BENCHMARKS} | {"siqa": "social_iqa"}  # the harness's name of each benchmark
# The harness's folders that define them: to read all that it has takes long.
FOLDERS = (
    "arc", "commonsense_qa", "glue", "hellaswag", "openbookqa", "piqa", "sciq", "siqa", "super_glue", "winogrande",
)  # fmt: skip


def hf_model(path: Path, batch_size: int, device: str = "cpu") -> Any:
    """lm-eval's own model of a checkpoint: float32 on a CPU, bfloat16 elsewhere. Raises UserError without lm-eval."""
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        raise UserError("this comparison needs lm-eval: pip install lm-eval==0.4.13 accelerate") from None
    dtype = "float32" if device == "cpu" else "bfloat16"
    with quiet():
        return HFLM(pretrained=str(path), batch_size=batch_size, dtype=dtype, device=device)


def tasks(
    data: Path, names: Sequence[str] = tuple(TASK_OF), *, limit: int | None = None, fewshot: int = 0
) -> dict[str, Any]:
    """lm-eval's tasks over the files of `data` by benchmark name, requests built.

    `limit` takes the first items of each, as the harness does.
    """
    with local_datasets(data), quiet():
        loaded = task_manager().load([TASK_OF[name] for name in names])["tasks"]
        found = {name: loaded[TASK_OF[name]] for name in names}
        for task in found.values():
            task.set_config(key="num_fewshot", value=fewshot)
            task.set_fewshot_seed(seed=SEED)
            task.build_all_requests(limit=limit)
    return found


def task_manager() -> Any:
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    return lm_eval.tasks.TaskManager(include_path=[str(root / f) for f in FOLDERS], include_defaults=False)


def command(path: Path, data: Path, batch_size: int, device: str) -> dict[str, float]:
    """What `lm_eval --model hf` does, over the files of `data`: the accuracy on each benchmark, by that one's own score."""
    import lm_eval

    there = [b for b in benchmarks_in(data, list(BENCHMARKS.values())) if b.name in TASK_OF]
    model = hf_model(path, batch_size, device)
    with local_datasets(data), quiet():
        found = lm_eval.simple_evaluate(
            model, tasks=[TASK_OF[b.name] for b in there], bootstrap_iters=0, task_manager=task_manager()
        )
    return {b.name: found["results"][TASK_OF[b.name]][f"{b.default_score},none"] for b in there}


@contextlib.contextmanager
def local_datasets(data: Path) -> Iterator[None]:
    import datasets

    by_hub = {(b.hub.path, b.hub.config): b for b in BENCHMARKS.values() if b.hub}

    def load_dataset(path: str, name: str | None = None, **_: Any) -> Any:
        benchmark = by_hub[path, name]
        rows = read_rows(benchmark, data)
        splits = dict.fromkeys(("validation", "validation_matched", "test"), rows)
        splits["train"] = read_rows(benchmark, data, train=True) or rows
        return datasets.DatasetDict({split: datasets.Dataset.from_list(r) for split, r in splits.items()})

    with mock.patch.object(datasets, "load_dataset", load_dataset):
        yield


def read_rows(benchmark: Benchmark, data: Path, train: bool = False) -> list[dict[str, Any]]:
    """The raw rows of a file, none where there is no such file. The loader's own reader is what tests hold this against."""
    path = data_file(benchmark, data, train=train)
    rows = [json.loads(line) for line in lines_of(path)] if path else []
    for row in rows:
        if benchmark.name == "boolq" and "label" not in row:  # the original BoolQ's name for it
            row["label"] = int(row["answer"])
    return rows


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the harness writes to its log and to standard error."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w") as sink, contextlib.redirect_stderr(sink):
            yield
    finally:
        logging.disable(previous)
