"""Runs a study: which runs are left, in worker processes or under torchrun, with one line of progress.

A worker takes a chain (a checkpoint's pretraining, then its fine-tuning) at a time, the costliest first.
Workers are plain spawned processes, one device each; a run that fails does not stop the others.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import multiprocessing as mp
import os
import queue
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evalengine import console
from evalengine.errors import UserError
from evalengine.training import export
from evalengine.training.loop import Place, Step
from evalengine.training.mfu import Utilisation, peak_of
from evalengine.training.prepare import Prepared, clear_litter, prepare, work_folder
from evalengine.training.shards import cores
from evalengine.training.stages import Job, Result, fingerprint, steps_of, train
from evalengine.training.study import Run, Study, runs

if TYPE_CHECKING:
    from evalengine.cluster.pool import Cluster

POLL_S = 1.0
REPORT_EVERY_S = 0.5


class Outcome(NamedTuple):
    """What `run_study` did."""

    finished: list[Result]
    skipped: list[str]  # finished before
    failed: dict[str, str]  # run -> the reason, one sentence


class Message(NamedTuple):
    """From a worker: `kind` is step, done, failed or idle."""

    kind: str
    worker: int
    name: str
    value: Any


def selected(study: Study, only: str | None) -> list[Run]:
    """The runs whose name matches the glob `only`; a fine-tuning run brings its pretraining along."""
    everything = runs(study)
    if only is None:
        return everything
    wanted = {run for run in everything if fnmatch.fnmatchcase(run.name, only)}
    if not wanted:
        raise UserError(f"--only {only} matches none of the study's runs, such as {everything[0].name}")
    wanted |= {Run(run.scale, run.mixture, "pt") for run in wanted}
    return [run for run in everything if run in wanted]


def run_study(
    study: Study,
    *,
    data: Path | None,
    out: Path,
    only: str | None = None,
    jobs: int = 0,
    fresh: bool = False,
    place: Place | None = None,
    cluster: Cluster | None = None,
) -> Outcome:
    """Trains what is left of a study into `out`. `jobs` 0: chosen by the machine and the models' size.

    With `cluster`, Ray workers train the chains instead of processes here (ray_workers.py).
    """
    chosen = selected(study, only)
    place = place or Place()
    if place.group.size > 1:
        return _run_together(study, data, out, chosen, fresh, place)
    with lock(out):
        prepared = _begin(study, data, out, chosen, fresh)
        left, skipped = _left(study, prepared, out, chosen)
        if not left:
            return Outcome([], skipped, {})
        todo = [Job(study, prepared, out, run, place) for run in left]
        if cluster is not None:
            from evalengine.training.ray_workers import run_on

            finished, failed = run_on(cluster, [j._replace(out=out.resolve()) for j in todo])
        else:
            finished, failed = _run_workers(todo, jobs or default_jobs(study, place.device))
    return Outcome(finished, skipped, failed)


def _begin(study: Study, data: Path | None, out: Path, chosen: list[Run], fresh: bool) -> Prepared:
    clear_litter(out)
    if fresh:
        shutil.rmtree(work_folder(out) / "tokenizer", ignore_errors=True)
        shutil.rmtree(work_folder(out) / "state", ignore_errors=True)
        for run in chosen:
            shutil.rmtree(out / run.name, ignore_errors=True)
    return prepare(study, data, out)


def _left(study: Study, prepared: Prepared, out: Path, chosen: list[Run]) -> tuple[list[Run], list[str]]:
    left, skipped = [], []
    for run in chosen:
        about = export.metadata(out / run.name)
        if about is None:
            left.append(run)
        elif about.get("fingerprint") == fingerprint(study, prepared, run):
            (work_folder(out) / "state" / f"{run.name}.pt").unlink(missing_ok=True)
            skipped.append(run.name)
        else:
            raise UserError(
                f"{out / run.name} was trained with other settings, data or another tokenizer: "
                "use --fresh to train it again, or another --out"
            )
    return left, skipped


def default_jobs(study: Study, device: str) -> int:
    """One worker a GPU; on the CPU one a core for models that one core feeds well, else one."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.device_count()
    largest = max(scale.d_model for scale in study.scales.values())
    return max(1, cores() // max(1, study.threads)) if largest <= 512 else 1


def _chains(todo: list[Job]) -> list[list[Job]]:
    chains: dict[tuple[str, str], list[Job]] = {}
    for job in todo:
        chains.setdefault((job.run.scale, job.run.mixture), []).append(job)
    return list(chains.values())


def _run_workers(todo: list[Job], jobs: int) -> tuple[list[Result], dict[str, str]]:
    chains = _chains(todo)
    jobs = min(jobs, len(chains))
    study = todo[0].study
    threads = study.threads or max(1, cores() // jobs)
    context = mp.get_context("spawn")
    tasks, messages = context.Queue(), context.Queue()
    for chain in chains:
        tasks.put(chain)
    for _ in range(jobs):
        tasks.put(None)
    workers = [
        context.Process(target=_work, args=(i, threads, tasks, messages), daemon=True) for i in range(jobs)
    ]
    steps = {job.run.name: steps_of(study, job.prepared, job.run) for job in todo}
    try:
        for worker in workers:
            worker.start()
        return _follow(todo, steps, workers, messages)
    finally:
        for worker in workers:
            worker.kill()  # one that is stopped or stuck would not end on SIGTERM
            worker.join()


def _follow(
    todo: list[Job], steps: dict[str, tuple[int, int]], workers: list[Any], messages: Any
) -> tuple[list[Result], dict[str, str]]:
    """Shows the workers' progress until all are idle."""
    idle: set[int] = set()
    peak = peak_of(todo[0].place.device, _devices(len(workers)))
    with Board(todo, steps, peak) as board:
        while len(idle) < len(workers):
            try:
                message: Message = messages.get(timeout=POLL_S)
            except queue.Empty:
                _check_alive(workers, idle)
                continue
            if message.kind == "idle":
                idle.add(message.worker)
            else:
                board.take(message)
    return board.finished, board.failed


def _devices(workers: int) -> int:
    """GPUs that so many workers keep busy."""
    import torch

    return min(workers, torch.cuda.device_count())


class Board:
    """What the runs have come to, and the one line that shows it."""

    def __init__(self, todo: list[Job], steps: dict[str, tuple[int, int]], peak: float | None = None) -> None:
        self.finished: list[Result] = []
        self.failed: dict[str, str] = {}
        self._runs, self._steps = len(todo), steps
        self._shown: dict[str, float] = {}
        self._used, self._seen = Utilisation(peak), dict[str, int]()
        self._started = time.monotonic()
        total = sum(tokens for _, tokens in steps.values())
        self._progress = console.progress("training", total, "tokens")

    def __enter__(self) -> Board:
        self.line = self._progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._progress.__exit__(*error)

    def take(self, message: Message) -> None:
        """A step, an end or a failure of a run."""
        if message.kind == "failed":
            self.failed[message.name] = message.value
            console.warn(f"{message.name}: {message.value}")
            return
        result = message.value if message.kind == "done" else None
        part = 1.0 if result else message.value.step / message.value.steps
        tokens = part * self._steps[message.name][1]
        advance = tokens - self._shown.get(message.name, 0.0)
        self._shown[message.name] = tokens
        if result:
            self.finished.append(result)
        loss = result.train_loss if result else message.value.loss
        rate = sum(self._shown.values()) / max(time.monotonic() - self._started, 1e-9)
        ready = f"{len(self.finished)}/{self._runs} runs"
        mfu = "" if result else self._utilisation(message)
        self.line.update(advance, f"{ready}, {message.name} loss {loss:.3f}, {rate:,.0f} tokens/s{mfu}")

    def _utilisation(self, message: Message) -> str:
        step: Step = message.value
        new = step.step - self._seen.get(message.name, step.step)  # a resumed run's first report adds none
        self._seen[message.name] = step.step
        return self._used.add(new * step.flops)


def _check_alive(workers: list[Any], idle: set[int]) -> None:
    for index, worker in enumerate(workers):
        if index not in idle and worker.exitcode is not None:
            raise UserError(
                f"a training process ended with code {worker.exitcode}, most likely out of memory: "
                "lower --jobs or the scale's micro_rows and run the same command again"
            )


def _work(index: int, threads: int, tasks: Any, messages: Any) -> None:
    """A worker process: one chain after another until there are none."""
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops us
    keep_freed_memory()
    parent = os.getppid()
    torch.set_num_threads(threads)

    def alive() -> None:
        if os.getppid() != parent:
            os._exit(1)  # the parent was killed

    while (chain := _next_task(tasks, parent)) is not None:
        train_chain(index, chain, messages.put, alive)
    messages.put(Message("idle", index, "", None))


def train_chain(
    index: int, chain: list[Job], put: Callable[[Message], None], alive: Callable[[], None] = lambda: None
) -> None:
    """Trains one run of a chain after another, up to the first that fails; `alive` is called at every step."""
    import torch

    for job in chain:
        last = 0.0

        def report(step: Step, name: str = job.run.name) -> None:
            nonlocal last
            alive()
            if time.monotonic() - last >= REPORT_EVERY_S:
                last = time.monotonic()
                put(Message("step", index, name, step))

        try:
            place = job.place
            if place.device == "cuda":
                place = replace(place, device=f"cuda:{index % torch.cuda.device_count()}")
            put(Message("done", index, job.run.name, train(job._replace(place=place), report)))
        except Exception as error:
            if os.environ.get("EVALENGINE_DEBUG"):
                raise
            put(Message("failed", index, job.run.name, _reason(error)))
            break


def _reason(error: Exception) -> str:
    """One sentence for the user; `EVALENGINE_DEBUG=1` shows the traceback instead."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}; mend that and run the same command again"
    if isinstance(error, MemoryError):
        return "out of memory: lower --jobs or the scale's micro_rows"
    return f"{type(error).__name__}: {error}; EVALENGINE_DEBUG=1 shows where"


def keep_freed_memory() -> None:
    """Tells glibc to reuse large blocks instead of returning them: a step frees what the next one allocates.

    Without it a fifth of a tiny model's processor time goes to page faults (17 of 74 s, measured on 640k tokens).
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def _next_task(tasks: Any, parent: int) -> list[Job] | None:
    while True:
        try:
            return tasks.get(timeout=POLL_S)  # type: ignore[no-any-return]
        except queue.Empty:
            if os.getppid() != parent:
                os._exit(1)


def _run_together(
    study: Study, data: Path | None, out: Path, chosen: list[Run], fresh: bool, place: Place
) -> Outcome:
    """Under torchrun: every process takes its rows of each run, one run after another."""
    group = place.group
    if group.rank == 0:
        with lock(out):
            _begin(study, data, out, chosen, fresh)
    group.wait()
    prepared = prepare(study, data, out)
    left, skipped = _left(study, prepared, out, chosen)
    group.wait()
    finished = []
    for run in left:
        steps, tokens = steps_of(study, prepared, run)
        shown = console.progress(run.name, tokens, "tokens") if group.rank == 0 else contextlib.nullcontext()
        used = Utilisation(peak_of(place.device, group.size))
        with shown as line:

            def report(
                step: Step, line: Any = line, tokens: int = tokens, steps: int = steps, used: Any = used
            ) -> None:
                if line is not None:
                    line.update(tokens / steps, f"loss {step.loss:.3f}{used.add(step.flops)}")

            finished.append(train(Job(study, prepared, out, run, place), report))
    return Outcome(finished, skipped, {})


@contextlib.contextmanager
def lock(out: Path) -> Iterator[None]:
    """Refuses a second process on the same output folder."""
    work_folder(out).mkdir(parents=True, exist_ok=True)
    with (work_folder(out) / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another process is training into {out}: wait for it, or name another --out"
            ) from None
        yield
