"""The product: checkpoints in, score store out.

    for checkpoint in checkpoints:
        backend.load(checkpoint)                            # weights swap in place
        for benchmark in pending(checkpoint):               # what the store does not hold yet
            scores = backend.score(plan.sequences)          # the plan is made once per tokenizer
            store.write(checkpoint, benchmark, scores)      # whole or not at all

One bad checkpoint does not stop the others: its reason is kept, shown at the end, and the exit code says so.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from evalengine import __version__, checkpoints, console, plans, remote, sealed, store
from evalengine.arrow import array_of, strings
from evalengine.checkpoints import Checkpoint
from evalengine.encoding import Encoded, Sequences, SequenceTooLarge
from evalengine.errors import UserError
from evalengine.outcomes import Outcome, Report, run_record

if TYPE_CHECKING:
    import pyarrow as pa

    from evalengine.benchmarks import Benchmark, ItemSet


class Scores(Protocol):
    """Per sequence: summed log-likelihood in nats (float64) and whether every target was the argmax."""

    @property
    def loglik(self) -> np.ndarray: ...
    @property
    def greedy(self) -> np.ndarray: ...


class Described(Protocol):
    """What a store's metadata says of a backend."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...


class Backend(Protocol):
    """What runs a model. It sees token ids, never text. `progress` is called with numbers of sequences finished."""

    name: str
    dtype: str
    notes: list[str]

    def load(self, checkpoint: Checkpoint) -> None: ...
    def score(self, sequences: Sequences, progress: Callable[[float], None] | None = None) -> Scores: ...


@dataclass(frozen=True)
class Options:
    """What a run scores. Two runs with equal options may share a store."""

    data: Path | None = None
    variant: str | None = None
    limit: int | None = None
    seed: int = 0
    fewshot: int | None = None  # None: each benchmark's own number, which is 0 but for lm-eval's tasks
    pmi: bool = False
    allow_pickle: bool = False
    trust_remote_code: bool = False
    fresh: bool = False

    def metadata(self, backend: Described) -> dict[str, str]:
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
        }


# An existing file that differs in one of these was asked for differently: refuse to mix. In the others (versions,
# hashes) it is out of date: score again.
ASKED = {
    "backend": "--backend",
    "dtype": "--dtype",
    "variant": "--variant",
    "limit": "--limit",
    "seed": "--seed",
    "fewshot": "--fewshot",
    "pmi": "--pmi",
}


class Task(NamedTuple):
    """One file to make: where, and the metadata it must carry."""

    items: ItemSet
    path: Path
    metadata: dict[str, str]


def score(
    found: list[Checkpoint],
    benchmarks: list[Benchmark],
    backend: Backend,
    out: Path,
    options: Options,
    more: Sequence[tuple[ItemSet, str]] = (),
    stored: Callable[[Path], None] = lambda path: None,
) -> list[Outcome]:
    """Scores every benchmark of every checkpoint into the store `out`, skipping what it already holds.

    `more` are items that are already rendered, with their default scores. `stored` is called with each file written.
    """
    item_sets = load_item_sets(benchmarks, options, more)
    planner = plans.Planner(options.trust_remote_code, options.pmi)
    whole = sum(len(items.items) for items, _ in item_sets)
    total = len(found) * whole
    outcomes = []
    with (
        store.lock(out),
        console.progress("scoring", total, "items") as progress,
        ReadAhead(found, options) as identities,
    ):
        for checkpoint in found:
            started = time.monotonic()
            report = Report()
            try:
                here, fingerprint = identities[checkpoint]
                common = checkpoint_metadata(here, fingerprint, options, backend)
                tasks = tasks_of(here, out, item_sets, common)
                score_checkpoint(here, tasks, planner, backend, options, report, progress, stored)
            except UserError as error:
                report.failure = str(error)
            except OSError:  # a full disk or a folder taken away concerns them all
                raise
            except Exception as error:
                if os.environ.get("EVALENGINE_DEBUG"):
                    raise
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                report.failure = f"{checkpoint.name} stopped with an error of its own: {reason} (EVALENGINE_DEBUG=1 shows where)"
            progress.update(whole - report.seen)
            outcomes.append(report.outcome(checkpoint, time.monotonic() - started))
        store.log_run(out, run_record(outcomes, backend, options))
    return outcomes


def load_item_sets(
    benchmarks: list[Benchmark], options: Options, more: Sequence[tuple[ItemSet, str]] = ()
) -> list[tuple[ItemSet, str]]:
    """The items of every benchmark with the name of its default score; `more` behind them."""
    from evalengine.benchmarks import load_items

    o = options
    loaded = [
        load_items(b, o.data, variant=o.variant, limit=o.limit, seed=o.seed, fewshot=o.fewshot or 0)
        for b in benchmarks
    ]
    return [*zip(loaded, (b.default_score for b in benchmarks), strict=True), *more]


def tasks_of(
    checkpoint: Checkpoint, out: Path, item_sets: list[tuple[ItemSet, str]], common: dict[str, str]
) -> list[Task]:
    """The files that a checkpoint has when all is scored; `common` is its own part of their metadata."""
    return [
        Task(
            items,
            out / checkpoint.name / f"{items.benchmark}.arrow",
            common | benchmark_metadata(items, default),
        )
        for items, default in item_sets
    ]


def score_checkpoint(
    checkpoint: Checkpoint,
    tasks: list[Task],
    planner: plans.Planner,
    backend: Backend,
    options: Options,
    report: Report,
    progress: console.Progress,
    stored: Callable[[Path], None] = lambda path: None,
) -> None:
    """Scores what is pending of one checkpoint. Raises UserError; what is done by then is stored and in the report."""
    pending = [t for t in tasks if not is_current(t, options, report.notes)]
    report.kept = len(tasks) - len(pending)
    report.seen = sum(len(t.items.items) for t in tasks) - sum(len(t.items.items) for t in pending)
    progress.update(report.seen)
    if pending:
        progress.describe(f"{checkpoint.name}: loading")
        backend.load(checkpoint)
        report.notes += backend.notes
    for t in pending:
        progress.describe(f"{checkpoint.name}: {t.items.benchmark}")
        encoded = planner.plan(checkpoint, t.items)
        whole = len(t.items.items)
        shown = 0.0

        def advance(sequences: float, share: float = whole / max(len(encoded.sequences), 1)) -> None:
            nonlocal shown
            shown += sequences * share
            progress.update(sequences * share)

        store.write(t.path, score_table(checkpoint, t.items, encoded, backend, advance), t.metadata)
        stored(t.path)
        progress.update(whole - shown)
        report.seen += len(t.items.items)
        report.items += len(t.items.items)
        report.scored += 1
        report.notes += encoded.notes
        if encoded.truncated:
            report.cut[t.items.benchmark] = encoded.truncated
    if pending:
        report.notes += (
            backend.notes
        )  # what scoring had to say, such as that memory ran out; each is shown once


class ReadAhead:
    """Checkpoints with their fingerprints, the next one read in the background while this one scores: it is then in memory.

    A remote checkpoint is brought to this machine, and may be dropped again when its turn is over.
    """

    def __init__(self, found: list[Checkpoint], options: Options) -> None:
        self._found, self._options = found, options
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._futures: dict[str, Future[tuple[Checkpoint, str]]] = {}
        self._stopped = threading.Event()

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()  # Ctrl-C does not wait for a checkpoint that nobody will score
        self._pool.shutdown(wait=True, cancel_futures=True)
        for checkpoint in self._found:
            remote.release(checkpoint)

    def __getitem__(self, checkpoint: Checkpoint) -> tuple[Checkpoint, str]:
        at = self._found.index(checkpoint)
        for before in self._found[max(0, at - 1) : at]:
            remote.release(before)
        for c in self._found[at : at + 2]:
            if c.name not in self._futures:
                self._futures[c.name] = self._pool.submit(
                    identify, c, self._options.allow_pickle, self._stop_here
                )
        return self._futures[checkpoint.name].result()

    def _stop_here(self) -> None:
        if self._stopped.is_set():
            raise CancelledError


def identify(
    checkpoint: Checkpoint, allow_pickle: bool, progress: Callable[[], None] = lambda: None
) -> tuple[Checkpoint, str]:
    """The checkpoint with all its files on this machine, and the hash of its weights. Raises UserError.

    `progress` is called on the way; what it raises stops the reading.
    """
    here = remote.fetch(checkpoint, progress)
    return here, checkpoints.fingerprint(here.path, allow_pickle, progress, here.base)


def checkpoint_metadata(
    checkpoint: Checkpoint, fingerprint: str, options: Options, backend: Described
) -> dict[str, str]:
    return options.metadata(backend) | {
        "checkpoint": checkpoint.name,
        "checkpoint_fingerprint": fingerprint,
        "tokenizer_hash": checkpoints.tokenizer_hash(checkpoint.tokenizer_folder, checkpoint.model_folder),
        "identity": "\t".join(v or "" for v in (checkpoint.scale, checkpoint.mixture, checkpoint.stage)),
    }


def benchmark_metadata(items: ItemSet, default_score: str) -> dict[str, str]:
    return {
        "benchmark": items.benchmark,
        "benchmark_version": str(items.version),
        "data_hash": items.data_hash,
        "data_items": str(items.total),
        "fewshot": str(items.fewshot),
        "default_score": default_score,
    }


def is_current(t: Task, options: Options, notes: list[str]) -> bool:
    """True if the store's file already holds what this task would write. Raises UserError rather than mix options."""
    if options.fresh or not t.path.exists():
        return False
    stored = store.read_metadata(t.path, verify=True)
    if stored is None:
        aside = sealed.set_aside(t.path)
        notes.append(f"{t.path.name} was damaged: set aside as {aside.name} and scored again")
        return False
    for key, flag in ASKED.items():
        if stored.get(key, "") != t.metadata[key]:
            was, now = stored.get(key) or "none", t.metadata[key] or "none"
            raise UserError(
                f"{t.path} was scored with {flag} {was}, not {now}: use the same options, another --out, or --fresh to replace it"
            )
    changed = [key for key, value in t.metadata.items() if stored.get(key) != value]
    if "checkpoint_fingerprint" in changed:
        notes.append("its weights have changed since it was scored: scored again")
    elif "data_hash" in changed:
        notes.append(f"{t.items.benchmark}: the data has changed since it was scored: scored again")
    return not changed


def score_table(
    checkpoint: Checkpoint,
    items: ItemSet,
    encoded: Encoded,
    backend: Backend,
    progress: Callable[[float], None] | None = None,
) -> pa.Table:
    """One forward pass over the benchmark, as the rows of the store."""
    scores = scores_of(backend, encoded, items.benchmark, progress)
    return table_of(checkpoint, items.benchmark, items.category, encoded, scores)


def scores_of(
    backend: Backend, encoded: Encoded, benchmark: str, progress: Callable[[float], None] | None = None
) -> Scores:
    """Scores of a benchmark's sequences. Raises UserError, with the item's name where one alone is too large."""
    try:
        return backend.score(encoded.sequences, progress)
    except SequenceTooLarge as error:
        choices = np.flatnonzero(encoded.sequence_C == error.sequence)
        if not len(choices):
            raise
        item = encoded.item[int(np.searchsorted(encoded.choice_offset, choices[0], side="right")) - 1]
        raise UserError(f"item {item} of {benchmark}: {error}") from None


def table_of(
    checkpoint: Checkpoint, benchmark: str, category: str, encoded: Encoded, scores: Scores
) -> pa.Table:
    """Scores of a benchmark's sequences as the rows of the store. Raises UserError where they are not finite."""
    import pyarrow as pa

    loglik_C = scores.loglik[encoded.sequence_C].astype(np.float32)
    if not np.isfinite(loglik_C).all():
        raise UserError(
            f"{checkpoint.name} gives NaN or infinite scores on {benchmark}: it is not stored; check its weights"
        )
    n = len(encoded.item)

    def lists(values: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(array_of(encoded.choice_offset.astype(np.int32)), array_of(values))

    def name(value: str | None) -> pa.Array:
        codes = pa.nulls(n, pa.int32()) if value is None else array_of(np.zeros(n, np.int32))
        return pa.DictionaryArray.from_arrays(codes, strings([] if value is None else [value]))

    uncond = None if encoded.uncond_C is None else scores.loglik[encoded.uncond_C].astype(np.float32)
    names = (
        checkpoint.name,
        checkpoint.scale,
        checkpoint.mixture,
        checkpoint.stage,
        benchmark,
        category,
    )
    columns = [
        *(name(value) for value in names),
        strings(encoded.item),
        array_of(encoded.gold),
        lists(loglik_C),
        lists(encoded.tokens_C),
        lists(encoded.chars_C),
        lists(encoded.bytes_C),
        lists(scores.greedy[encoded.sequence_C]),
        pa.nulls(n, pa.list_(pa.float32())) if uncond is None else lists(uncond),
    ]
    return pa.table(columns, schema=store.schema())
