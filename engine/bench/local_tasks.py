"""lm-evaluation-harness 0.4.13's own task definitions over local files, and its own model: what this engine is compared with.

Its tasks call `datasets.load_dataset`; that call is answered from a folder of `<benchmark>.jsonl` and
`<benchmark>_train.jsonl` files, looked up by the hub path and configuration the task itself asks for. Nothing of the harness is
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
from typing import Any, NamedTuple
from unittest import mock

from evalengine.errors import UserError

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

SEED = 1234  # of few-shot draws: the harness's own default


class Source(NamedTuple):
    """Where the harness finds a benchmark: its task, its folder, the hub path and config."""

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
    data: Path, names: Sequence[str] = (), *, limit: int | None = None, fewshot: int = 0
) -> dict[str, Any]:
    """lm-eval's tasks over the files of `data` by benchmark name, requests built; all twenty unless `names`.

    `limit` takes the first items of each, as the harness does.
    """
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    names = list(names) or list(SOURCES)
    root = Path(lm_eval.tasks.__file__).parent
    folders = sorted({str(root / SOURCES[name].folder) for name in names})
    wanted = [SOURCES[name].task for name in names]
    with local_datasets(data), quiet():
        manager = TaskManager(include_path=folders, include_defaults=False)  # indexing all of them takes long
        loaded = manager.load(wanted)["tasks"]
        found = {name: loaded[SOURCES[name].task] for name in names}
        for task in found.values():
            task.set_config(key="num_fewshot", value=fewshot)
            task.set_fewshot_seed(seed=SEED)
            task.build_all_requests(limit=limit)
    return found


@contextlib.contextmanager
def local_datasets(data: Path) -> Iterator[None]:
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
def quiet() -> Iterator[None]:
    """Without what the harness writes to its log and to standard error."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w") as sink, contextlib.redirect_stderr(sink):
            yield
    finally:
        logging.disable(previous)
