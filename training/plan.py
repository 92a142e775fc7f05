"""What a study will cost, before it starts: runs, parameters, tokens, FLOPs and an estimate of hours.

FLOPs are 6 a token and matrix parameter and 12 * L * H * E a token and attended position (half a window at
most). Hours divide them by a rate: `--flops`, or this machine's matrix-product rate, measured for a second,
times the share of it that training was measured to use (`EFFICIENCY`).
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from evalengine import console
from evalengine.training.arms import changed
from evalengine.training.chat import render
from evalengine.training.data import preferences
from evalengine.training.data.conversations import load, read, within
from evalengine.training.data.tokenizer import Tokenizer
from evalengine.training.decoder import export
from evalengine.training.job import finetuned_tokens, preferred_tokens
from evalengine.training.prepare import BYTES_PER_TOKEN, conversations_name, shape_of, work_folder
from evalengine.training.runner import default_jobs, selected
from evalengine.training.study import Run, Study, settings_of

# Share of the rate of bare matrix products, on a CPU with tiny models as on a GPU with large ones.
EFFICIENCY = 0.4
GUESSED_VOCAB = 32_000  # of a tokenizer that is not read yet
MEASURE_S = 0.5


class PlannedRun(NamedTuple):
    name: str
    parameters: int
    tokens: int | None  # None: data of a later stage on the hub, or not yet tokenised
    flops: float | None
    finished: bool


class StudyPlan(NamedTuple):
    runs: dict[Run, PlannedRun]
    jobs: int
    rate: float  # FLOP/s, sustained, of the whole machine
    measured: bool

    @property
    def flops(self) -> float:
        return sum(p.flops or 0.0 for p in self.runs.values() if not p.finished)

    @property
    def hours(self) -> float:
        return self.flops / self.rate / 3600


def make(
    study: Study,
    *,
    out: Path,
    only: str | None,
    jobs: int,
    rate: float | None,
    device: str = "cpu",
    data: Path | None = None,
) -> StudyPlan:
    """The plan of the runs chosen by `only`; reads what is prepared already, makes nothing.

    Fine-tuning tokens are those of the tokenised conversations, or a guess from local ones.
    """
    tokenizer = work_folder(out) / "tokenizer"
    size = Tokenizer(tokenizer).size if (tokenizer / "tokenizer.json").is_file() else study.tokenizer.vocab
    lengths = cache(partial(_conversation_lengths, study, data, out))
    preferred = cache(partial(_preference_lengths, study, data, out))
    planned = {}
    for run in selected(study, only):
        scale = study.scales[run.scale]
        shape = shape_of(replace(scale, vocab=scale.vocab or size or GUESSED_VOCAB), size)
        scored = 0  # tokens of one forward pass, a third of a step's FLOPs
        if run.stage == "pt":
            tokens: int | None = scale.pretraining_rows * scale.context
        elif run.stage == "dpo":
            tokens = None
            if (of_question := preferred(scale.context)) is not None:
                scored = sum(map(sum, of_question))
                tokens = preferred_tokens(study, scale, of_question)
        else:
            of_arm = lengths(run.arm, scale.context)
            tokens = None if of_arm is None else finetuned_tokens(study, scale, of_arm)
        flops = None if tokens is None else (tokens + scored / 3) * shape.flops_per_token()
        finished = export.metadata(out / run.name) is not None
        planned[run] = PlannedRun(run.name, shape.params, tokens, flops, finished)
    devices = torch.cuda.device_count() if device.startswith("cuda") else 1
    return StudyPlan(
        planned,
        jobs or default_jobs(study, device),
        rate or EFFICIENCY * product_rate(device) * devices,
        measured=rate is None,
    )


def _conversation_lengths(
    study: Study, data: Path | None, out: Path, arm: str, context: int
) -> list[int] | None:
    """In tokens: of the tokenised ones, else guessed from those under `data`; None where some are on the hub."""
    known = _newest(out, conversations_name(arm))
    if known is not None:
        return [len(ids) for ids, _ in within(load(known), context)]
    if data is None or any(chat.hub for chat in study.sft.data):
        return None
    found = changed(read(study.sft, data, study.seed), arm, study.seed)
    guessed = (len(render(conversation).text) // BYTES_PER_TOKEN for conversation in found)
    return [min(length, context + 1) for length in guessed]


def _preference_lengths(study: Study, data: Path | None, out: Path, context: int) -> list[list[int]] | None:
    """Of the candidates of each question, likewise."""
    known = _newest(out, "preferences")
    if known is not None:
        return preferences.lengths_of(preferences.within(preferences.load(known), context))
    if data is None or any(chat.hub for chat in study.dpo.data):
        return None
    found = preferences.read(study.dpo, data, study.seed)
    return [[len(render((*q.prompt, *r)).text) // BYTES_PER_TOKEN for r in q.responses] for q in found]


def _newest(out: Path, name: str) -> Path | None:
    """The file of that name and a key that was made last: its key cannot be computed without the data."""
    known = work_folder(out).glob(f"{name}-{'?' * 12}.npz")
    return max(known, key=lambda path: path.stat().st_mtime, default=None)


def product_rate(device: str) -> float:
    """FLOP/s of large matrix products on one device: float32 on all threads of a CPU, bfloat16 on a GPU."""
    gpu = device.startswith("cuda")
    n = 8192 if gpu else 1024
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if gpu else torch.float32)
    a @ a
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < MEASURE_S:
        for _ in range(4):
            a @ a
        if gpu:
            torch.cuda.synchronize(device)
        done += 4
    return done * 2 * n**3 / (time.perf_counter() - started)


def as_json(plan: StudyPlan) -> dict[str, Any]:
    runs = [planned._asdict() for planned in plan.runs.values()]
    return {"runs": runs, **{name: getattr(plan, name) for name in ("jobs", "flops", "rate", "hours")}}


def show(study: Study, plan: StudyPlan) -> None:
    """The plan as a table, one row per scale and stage."""
    console.say(f"{study.name}: {study.about}" if study.about else study.name)
    groups: dict[tuple[str, str], list[PlannedRun]] = {}
    for run, planned in plan.runs.items():
        groups.setdefault((run.scale, run.stage), []).append(planned)
    rows = []
    for (scale, stage), members in groups.items():
        one, lr = members[0], settings_of(study.scales[scale], stage).lr
        cost = ["?"] * 3
        if one.tokens is not None and one.flops is not None:
            cost = [f"{one.tokens:,}", f"{one.flops:.2e}", f"{one.flops * len(members):.2e}"]
        left = f"{sum(not p.finished for p in members)} of {len(members)}"
        rows.append([f"{scale} {stage}", left, f"{one.parameters:,}", f"{lr:g}", *cost])
    console.table(
        f"{len(plan.runs)} runs, {plan.jobs} at a time",
        ["scale, stage", "to train", "parameters", "lr", "tokens a run", "FLOPs a run", "FLOPs"],
        rows,
    )
    if any(run.stage != "pt" for run in plan.runs):
        console.say(
            "an epoch of fine-tuning trains whole steps of batch_examples conversations (dpo: batch_pairs pairs); the few that"
            " remain, different ones in every epoch, are left out"
        )
    if all(p.finished for p in plan.runs.values()):
        console.say("all are trained already")
        return
    how = f"{EFFICIENCY:.0%} of this machine's matrix products, measured" if plan.measured else "as given"
    an_hour = {"hours": 1, "minutes": 60, "seconds": 3600}
    unit = next((unit for unit, times in an_hour.items() if plan.hours * times >= 1), "seconds")
    time = plan.hours * an_hour[unit]
    decimals = 0 if time >= 100 else 1
    unknown = any(p.tokens is None for p in plan.runs.values())
    tail = (
        "; stages with a ? are not counted: their data is tokenised when training starts" if unknown else ""
    )
    console.say(
        f"about {time:,.{decimals}f} {unit} for {plan.flops:.2e} FLOPs at {plan.rate:.2e} FLOP/s ({how}){tail}"
    )
