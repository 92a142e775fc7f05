"""Runs a study: which runs are left, trained in worker processes, on a Ray cluster or under torchrun."""

from __future__ import annotations

import contextlib
import fnmatch
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from evalengine import console, files
from evalengine.errors import UserError
from evalengine.training import export
from evalengine.training.loop import Place, Step
from evalengine.training.mfu import Utilisation, peak_of
from evalengine.training.prepare import Prepared, clear_litter, prepare, work_folder
from evalengine.training.stages import Job, Result, fingerprint, steps_of, train
from evalengine.training.study import Run, Study, runs
from evalengine.training.workers import run_workers

if TYPE_CHECKING:
    from evalengine.cluster.pool import Cluster


class Outcome(NamedTuple):
    """What `run_study` did."""

    finished: list[Result]
    skipped: list[str]  # finished before
    failed: dict[str, str]  # run -> the reason, one sentence


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

    With `cluster`, Ray workers train the chains instead of local processes (ray_workers.py).
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
        todo = [Job(study, prepared, out.resolve() if cluster else out, run, place) for run in left]
        if cluster is not None:
            from evalengine.training.ray_workers import run_on

            finished, failed = run_on(cluster, todo)
        else:
            finished, failed = run_workers(todo, jobs or default_jobs(study, place.device))
    return Outcome(finished, skipped, failed)


def _begin(study: Study, data: Path | None, out: Path, chosen: list[Run], fresh: bool) -> Prepared:
    clear_litter(out)
    if fresh:
        work = work_folder(out)
        for folder in (work / "tokenizer", work / "state", *(out / run.name for run in chosen)):
            shutil.rmtree(folder, ignore_errors=True)
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
        return torch.cuda.device_count()
    largest = max(scale.d_model for scale in study.scales.values())
    return max(1, files.cores() // max(1, study.threads)) if largest <= 512 else 1


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
    return Outcome([_train_shown(Job(study, prepared, out, run, place)) for run in left], skipped, {})


def _train_shown(job: Job) -> Result:
    """Trains one run; the first process of the group shows its progress."""
    group = job.place.group
    steps, tokens = steps_of(job.study, job.prepared, job.run)
    used = Utilisation(peak_of(job.place.device, group.size))
    if group.rank:
        return train(job)
    with console.progress(job.run.name, tokens, "tokens") as line:

        def report(step: Step) -> None:
            line.update(tokens / steps, f"loss {step.loss:.3f}{used.add(step.flops)}")

        return train(job, report)


@contextlib.contextmanager
def lock(out: Path) -> Iterator[None]:
    """Refuses a second process on the same output folder."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked(work_folder(out) / "lock"))
        except BlockingIOError:
            raise UserError(
                f"another process is training into {out}: wait for it, or name another --out"
            ) from None
        yield
