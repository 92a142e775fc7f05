"""Runs a study: which runs are left, trained in worker processes, on a Ray cluster or under torchrun."""

from __future__ import annotations

import contextlib
import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from evalengine import files
from evalengine.errors import UserError
from evalengine.training.decoder import export
from evalengine.training.fitting.state import Place
from evalengine.training.job import Job, fingerprint, state_of
from evalengine.training.prepare import check_data, clear_litter, locked, prepare, work_folder
from evalengine.training.selection import selections
from evalengine.training.stages import Trained
from evalengine.training.study import Run, Study, needed, runs
from evalengine.training.workers import run_together, run_workers

if TYPE_CHECKING:
    from evalengine.cluster.pool import Cluster


class StudyOutcome(NamedTuple):
    """What `run_study` did."""

    finished: list[Trained]
    skipped: list[str]  # finished before
    failed: dict[str, str]  # run -> the reason, one sentence
    not_run: dict[str, str]  # run -> the failed one because of which it was not begun


def selected(study: Study, only: str | None) -> list[Run]:
    """The runs whose name matches the glob `only`, and those that they need."""
    everything = runs(study)
    if only is None:
        return everything
    wanted = {run for run in everything if fnmatch.fnmatchcase(run.name, only)}
    if not wanted:
        raise UserError(f"--only {only} matches none of the study's runs, such as {everything[0].name}")
    wanted = wanted.union(*(needed(study, run) for run in wanted))
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
) -> StudyOutcome:
    """Trains what is left of a study into `out`: under torchrun where `place` has a group, on Ray with a `cluster`,
    else in `jobs` processes (0: chosen by the machine and the models' size).
    """
    chosen, place = selected(study, only), place or Place()
    group = place.group
    check_data(study, data, study.sources)  # before OUT is made
    if cluster is not None:
        out = out.resolve()  # workers may start in another folder
    alone = locked(work_folder(out), f"training into {out}") if group.rank == 0 else contextlib.nullcontext()
    with alone:
        if group.rank == 0:  # the others find everything made
            clear_litter(out)
            if fresh:
                _discard(out, chosen)
            prepared = prepare(study, data, out)
        group.wait()
        if group.rank:
            prepared = prepare(study, data, out)
        left, skipped = _left([Job(study, prepared, out, run, place) for run in chosen])
        group.wait()
        if not left:
            return StudyOutcome([], skipped, {}, {})
        if cluster is not None:
            from evalengine.training.ray_workers import run_on

            finished, failed = run_on(cluster, left)
        elif group.size > 1:
            finished, failed = run_together(left)
        else:
            finished, failed = run_workers(left, jobs or default_jobs(study, place.device))
    ended = {result.name for result in finished} | failed.keys()
    not_run = {job.run.name: _cause(job, failed) for job in left if failed and job.run.name not in ended}
    return StudyOutcome(finished, skipped, failed, not_run)


def _cause(job: Job, failed: dict[str, str]) -> str:
    """The failed run that this one needs; under torchrun the first failure ends the command, so it may be any other."""
    names = {run.name for run in needed(job.study, job.run)}
    return next((name for name in failed if name in names), next(iter(failed)))


def _discard(out: Path, chosen: list[Run]) -> None:
    """What `--fresh` makes again. Token shards and conversations stay: their names say what they were made of."""
    work = work_folder(out)
    paths = [path for run in chosen for path in (out / run.name, state_of(out, run))]
    paths += [selections.path_of(work, run) for run in chosen if run.stage.startswith("sft")]
    for path in (work / "tokenizer", *paths):
        files.remove(path)


def _left(jobs: list[Job]) -> tuple[list[Job], list[str]]:
    """(those to train, names of the finished ones). Raises UserError where a checkpoint was made from something else."""
    left, skipped = [], []
    for job in jobs:
        about = export.metadata(job.path)
        if about is None:
            left.append(job)
        elif about.get("fingerprint") == fingerprint(job):
            job.state.unlink(missing_ok=True)
            skipped.append(job.run.name)
        else:
            raise UserError(
                f"{job.path} was trained with other settings, data or another tokenizer: "
                "use --fresh to train it again, or another --out"
            )
    return left, skipped


def default_jobs(study: Study, device: str) -> int:
    """One worker a GPU; on the CPU one a core for models that one core feeds well, else one."""
    if device.startswith("cuda"):
        return torch.cuda.device_count()
    largest = max(scale.d_model for scale in study.scales.values())
    return max(1, files.cores() // max(1, study.threads)) if largest <= 512 else 1
