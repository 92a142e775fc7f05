"""What a run has to make, and what of it the store already holds: decided without changing anything."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from evalengine import __version__, store
from evalengine.checkpoints import Checkpoint

if TYPE_CHECKING:
    from evalengine.benchmarks import ItemSet


class Named(Protocol):
    """What the store says of how a model ran: of a backend, or of one that is made elsewhere."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str: ...


@dataclass(frozen=True)
class ScoreOptions:
    """What a run scores. Two runs with equal options may share a store."""

    data: Path | None = None
    variant: str | None = None
    limit: int | None = None
    seed: int = 0
    fewshot: int | None = None  # None: each benchmark's own number, which is 0 but for lm-eval's tasks
    pmi: bool = False
    chat: bool = False
    allow_pickle: bool = False
    trust_remote_code: bool = False
    fresh: bool = False

    def metadata(self, backend: Named) -> dict[str, str]:
        return {
            "store_version": store.STORE_VERSION,
            "evalengine_version": __version__,
            "backend": backend.name,
            "dtype": backend.dtype,
            "variant": self.variant or "",
            "limit": "" if self.limit is None else str(self.limit),
            "seed": str(self.seed),
            "fewshot": str(self.fewshot or 0),
            "pmi": str(self.pmi).lower(),
            **({"chat": "true"} if self.chat else {}),
        }


class Asked(NamedTuple):
    """What a run is to score, and into which store."""

    item_sets: Sequence[tuple[ItemSet, str]]  # each with the name of its default score
    out: Path
    options: ScoreOptions


# Metadata that the user's options decide: a file that differs in one of them is not replaced. One that differs in the others
# (versions, hashes) is out of date and scored again.
ASKED = {
    key: f"--{key.removeprefix('eft_')}"
    for key in (
        *("backend", "dtype", "variant", "limit", "seed", "fewshot", "pmi"),
        *("eft_beta", "eft_base", "eft_tuned", "eft_ref", "chat", "formats"),
    )
}


# Metadata that decides no score: written anew, nothing is scored for it.
LABELS = {
    "identity": "scale, mixture or stage",
    "checkpoint_seed": "seed",
    "blocks": "blocks",
    "category": "category",
    "contexts": "",  # this and the next one are new: where an earlier version wrote neither, nobody changed them
    "rows_hash": "",
}


class Task(NamedTuple):
    """One file to make: its items, its place, the metadata it must carry, and what it must not."""

    items: ItemSet
    path: Path
    metadata: dict[str, str]
    without: tuple[str, ...] = ()


class Decision(NamedTuple):
    """What is to be done about a checkpoint's tasks."""

    pending: list[Task]
    kept: list[Task]  # stored already
    relabelled: list[Task]  # those of them whose labels have changed
    damaged: list[Path]  # files of pending tasks that are not what was written
    conflict: str | None  # why nothing may be scored: a file holds scores with other options
    notes: list[str]


def tasks_of(checkpoint: Checkpoint, asked: Asked, backend: Named, more: dict[str, str]) -> list[Task]:
    """The files that an identified checkpoint has when all is scored, one for each item set. `more`: metadata of its own."""
    common = asked.options.metadata(backend) | {"code": checkpoint.code_hash} | more
    if not (asked.options.trust_remote_code and common["code"]):
        del common["code"]
    common |= {"checkpoint": checkpoint.name, "checkpoint_fingerprint": checkpoint.fingerprint}
    identity = "\t".join(v or "" for v in (checkpoint.scale, checkpoint.mixture, checkpoint.stage))
    common |= {"tokenizer_hash": checkpoint.tokenizer_hash, "identity": identity}
    if asked.options.chat:
        common["chat_template"] = checkpoint.chat_template_hash
    if checkpoint.seed is not None:
        common["checkpoint_seed"] = checkpoint.seed
    if checkpoint.blocks:
        common["blocks"] = json.dumps(dict(checkpoint.blocks))
    # what an earlier run was told of them stays, unless a manifest says otherwise
    optional = ("checkpoint_seed", "blocks")
    without = tuple(key for key in optional if checkpoint.described and key not in common)
    tasks = []
    for items, default_score in asked.item_sets:
        about = {
            "benchmark": items.benchmark,
            "category": items.category,
            "benchmark_version": str(items.version),
            "data_hash": items.data_hash,
            "data_items": str(items.total),
            "fewshot": str(items.fewshot),
            "default_score": default_score,
        }
        about |= {"contexts": "own"} if own_contexts(items) else {}
        about |= {"formats": items.formats} if items.formats else {}
        about |= {"rows_hash": items.rows_hash} if items.fewshot and items.rows_hash else {}
        path = asked.out / checkpoint.name / f"{items.benchmark}.arrow"
        tasks.append(Task(items, path, common | about, without))
    return tasks


def own_contexts(items: ItemSet) -> bool:
    """Whether choices of an item stand behind contexts of their own, so that their likelihoods share no normaliser."""
    return any(len(set(item.contexts)) > 1 for item in items.items)


def kind(metadata: Mapping[str, str]) -> str:
    """What a file's scores are of: a benchmark, or a task of lm-eval (lm_eval/tasks.py), which may have the same name."""
    of_task = metadata.get("benchmark_version", "").startswith("lm_eval ")
    return "lm-eval's task" if of_task else "the benchmark"


def decide(tasks: Iterable[Task], fresh: bool = False) -> Decision:
    """Which tasks are pending, by the metadata of the files that exist; every byte of those is checked. `fresh`: all are."""
    found = Decision([], [], [], [], None, [])
    for task in tasks:
        if fresh or not task.path.exists():
            found.pending.append(task)
            continue
        stored = store.read_metadata(task.path)
        if stored is None:
            found.pending.append(task)
            found.damaged.append(task.path)
            continue
        for key, flag in ASKED.items():
            was, now = stored.get(key, ""), task.metadata.get(key, "")
            if was != now:
                return found._replace(
                    conflict=f"{task.path} was scored with {flag} {was or 'none'}, not {now or 'none'}: use the same options, "
                    "another --out, or --fresh to replace it"
                )
        theirs, ours = kind(stored), kind(task.metadata)
        if theirs != ours:
            return found._replace(
                conflict=f"{task.path} holds the scores of {theirs} {task.items.benchmark}, not of {ours}: use another --out, or"
                " --fresh to replace it"
            )
        # "code": of the checkpoint's own, which an earlier run may have used
        wanted = dict.fromkeys(("code", *task.without)) | task.metadata
        differ = [key for key, value in wanted.items() if stored.get(key) != value]
        changed = [key for key in differ if key not in LABELS]
        (found.pending if changed else found.kept).append(task)
        if differ and not changed:
            found.relabelled.append(task)
            if what := ", ".join(name for key, name in LABELS.items() if name and key in differ):
                found.notes.append(
                    f"its {what} changed since it was scored: labelled anew, nothing is scored again"
                )
        if "checkpoint_fingerprint" in changed:
            found.notes.append("its weights have changed since it was scored: scored again")
        elif "data_hash" in changed:
            found.notes.append(
                f"{task.items.benchmark}: the data has changed since it was scored: scored again"
            )
        elif changed:
            found.notes.append(
                f"its {changed[0].replace('_', ' ')} has changed since it was scored: scored again"
            )
    return found
