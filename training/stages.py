"""The two stages: a mixture to a pretrained checkpoint, a pretrained checkpoint to a fine-tuned one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from evalengine import __version__
from evalengine.errors import UserError
from evalengine.training import conversations, export
from evalengine.training.conversations import PackedExamples
from evalengine.training.loop import Place, Step, fit, mean_loss
from evalengine.training.model import Decoder, Shape
from evalengine.training.perplexity_filter import least_surprising
from evalengine.training.prepare import Prepared, open_sources, shape_of, work_folder
from evalengine.training.rows import MixedRows, Stream
from evalengine.training.study import Run, Study
from evalengine.training.tokenizer import Tokenizer

VALIDATION_ROWS = 8  # of each source
FORMAT = 1  # moves when the same study would give other weights


class Job(NamedTuple):
    """What one run needs to know; picklable, so that a worker process can take it."""

    study: Study
    prepared: Prepared
    out: Path
    run: Run
    place: Place

    @property
    def path(self) -> Path:
        return self.out / self.run.name


class Result(NamedTuple):
    name: str
    train_loss: float
    validation_loss: dict[str, float]


def fingerprint(study: Study, prepared: Prepared, run: Run) -> str:
    """A hash of everything that decides a run's weights."""
    scale, tokenizer = study.scales[run.scale], Tokenizer(prepared.tokenizer)
    shares = {k: v for k, v in study.mixtures[run.mixture].items() if v > 0}
    decides: dict[str, Any] = {
        "format": FORMAT,
        "shape": dataclasses.asdict(shape_of(scale, tokenizer.size)),
        "tokenizer": tokenizer.hash,
        "seed": study.seed,
        "pretrain": _decisive(scale.pretrain),
        "shares": shares,
        "sources": {name: source.digest for name, source in open_sources(prepared, sorted(shares)).items()},
        "save_dtype": study.save_dtype,
    }
    if run.stage == "sft":
        decides["sft"] = _decisive(scale.sft)
        decides["reach"] = study.sft.reach
        decides["conversations"] = conversations.digest(conversations.load(prepared.conversations))
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _decisive(settings: Any) -> dict[str, Any]:
    values = {k: v for k, v in dataclasses.asdict(settings).items() if k != "micro_rows"}
    if not values["z_loss"]:
        del values["z_loss"]  # as if the setting were not there
    return values


def steps_of(study: Study, prepared: Prepared, run: Run) -> tuple[int, int]:
    """(steps, tokens fed) of a run; of fine-tuning the tokens are those of the conversations."""
    scale = study.scales[run.scale]
    if run.stage == "pt":
        step_tokens = scale.context * scale.pretrain.batch_rows
        steps = max(1, scale.pretrain.tokens // step_tokens)
        return steps, steps * step_tokens
    examples = conversations.within(conversations.load(prepared.conversations), scale.context)
    kept = max(1, round(len(examples) * study.sft.reach))
    per_epoch = max(1, kept // scale.sft.batch_examples)
    tokens = sum(len(ids) for ids, _ in examples) * study.sft.reach * scale.sft.epochs
    return per_epoch * scale.sft.epochs, int(tokens)


def train(job: Job, report: Callable[[Step], None] = lambda step: None) -> Result:
    """Trains one checkpoint, from its saved state if there is one. Raises UserError naming what is wrong with the run."""
    tokenizer = Tokenizer(job.prepared.tokenizer)
    shape = shape_of(job.study.scales[job.run.scale], tokenizer.size)
    work = work_folder(job.out)
    place = dataclasses.replace(
        job.place,
        state=work / "state" / f"{job.run.name}.pt",
        log=work / "logs" / f"{job.run.name}.jsonl",
        tensorboard=job.place.tensorboard and job.place.tensorboard / job.run.name,
        width=shape.context if job.place.compile else 0,
        fingerprint=fingerprint(job.study, job.prepared, job.run),
    )
    stage = pretrain if job.run.stage == "pt" else finetune
    model, loss, validation, extra = stage(job, tokenizer, shape, place, report)
    model = place.group.unsharded(model)
    if place.group.rank == 0:
        scale = job.study.scales[job.run.scale]
        settings = scale.pretrain if job.run.stage == "pt" else scale.sft
        about = {
            **dataclasses.asdict(job.run),
            "study": job.study.name,
            "evalengine": __version__,
            "fingerprint": place.fingerprint,
            "tokenizer": tokenizer.hash,
            "seed": job.study.seed,
            "shares": dict(job.study.mixtures[job.run.mixture]),
            "parameters": shape.params,
            "settings": dataclasses.asdict(settings),
            "train_loss": round(loss, 6),
            "validation_loss": validation,
            **extra,
        }
        export.save(model, tokenizer, job.path, about, dtype=job.study.save_dtype)
        assert place.state is not None
        place.state.unlink(missing_ok=True)
    place.group.wait()
    return Result(job.run.name, loss, validation)


Trained = tuple[Decoder, float, dict[str, float], dict[str, Any]]


def pretrain(
    job: Job, tokenizer: Tokenizer, shape: Shape, place: Place, report: Callable[[Step], None]
) -> Trained:
    """From random weights, the same for every mixture of a scale: mixtures differ by their data alone."""
    study, scale = job.study, job.study.scales[job.run.scale]
    settings, shares = scale.pretrain, {k: v for k, v in study.mixtures[job.run.mixture].items() if v > 0}
    sources = open_sources(job.prepared, sorted(shares))
    streams = {n: Stream(s, s.split()[0], tokenizer.end, study.seed) for n, s in sources.items()}
    steps, _ = steps_of(study, job.prepared, job.run)
    rows = MixedRows(
        streams,
        shares,
        rows=steps * settings.batch_rows,
        context=shape.context,
        batch_rows=settings.batch_rows,
    )
    generator = torch.Generator().manual_seed(study.seed * 1_000_003 + zlib.crc32(job.run.scale.encode()))
    model = Decoder(shape, checkpoint_activations=scale.checkpoint_activations).initialise(generator)
    loss = fit(model, rows, settings, place, report)
    validation = {}
    for name, source in sources.items():
        held_out = Stream(source, source.split()[1], tokenizer.end, study.seed)
        count = min(VALIDATION_ROWS, max(1, held_out.epoch_tokens // shape.context))
        held = MixedRows({name: held_out}, {name: 1.0}, rows=count, context=shape.context, batch_rows=count)
        validation[name] = round(mean_loss(model, held.batch(0), place), 6)
    return model, loss, validation, {"tokens": rows.steps * settings.batch_rows * shape.context}


def finetune(
    job: Job, tokenizer: Tokenizer, shape: Shape, place: Place, report: Callable[[Step], None]
) -> Trained:
    """From the run's pretrained checkpoint, with loss on what the assistant says."""
    study, scale = job.study, job.study.scales[job.run.scale]
    base = job.out / dataclasses.replace(job.run, stage="pt").name
    made_of = export.metadata(base)
    if made_of is None:
        raise UserError(f"{job.run.name} needs {base.name}, which is not finished: train it first")
    model = export.load(base, shape)
    model.checkpoint_activations = scale.checkpoint_activations
    examples = conversations.within(conversations.load(job.prepared.conversations), shape.context)
    total = len(examples)
    if study.sft.reach < 1:
        examples = least_surprising(model, examples, study.sft.reach, place)
    packed = PackedExamples(
        examples,
        epochs=scale.sft.epochs,
        batch_examples=min(scale.sft.batch_examples, len(examples)),
        context=shape.context,
        seed=study.seed,
    )
    loss = fit(model, packed, scale.sft, place, report)
    extra = {
        "base": base.name,
        "base_fingerprint": made_of["fingerprint"],
        "conversations": len(examples),
        "of": total,
    }
    return model, loss, {}, extra
