"""The stages: a mixture to a pretrained checkpoint, that to a fine-tuned one, and that to a preferring one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from evalengine import __version__
from evalengine.errors import UserError
from evalengine.training import conversations, dpo, export, preferences, selections
from evalengine.training.loop import Step, fit, mean_loss
from evalengine.training.model import Decoder, Shape
from evalengine.training.packed import PackedExamples
from evalengine.training.preferences import Candidates
from evalengine.training.prepare import Prepared, shape_of, work_folder
from evalengine.training.rows import MixedRows, Stream
from evalengine.training.shards import TokenSource
from evalengine.training.state import Place
from evalengine.training.study import Optimisation, Run, Scale, Study, preferring, scorer, settings_of
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

    @property
    def state(self) -> Path:
        return state_of(self.out, self.run)

    @property
    def scale(self) -> Scale:
        return self.study.scales[self.run.scale]

    @property
    def settings(self) -> Optimisation:
        return settings_of(self.scale, self.run.stage)

    @property
    def conversations(self) -> Path:
        """Those of a fine-tuning run."""
        return self.prepared.conversations[self.run.arm]

    @property
    def preferences(self) -> Candidates:
        """Those of a study with a stage for them."""
        assert self.prepared.preferences is not None
        return preferences.load(self.prepared.preferences)

    @property
    def shares(self) -> dict[str, float]:
        return {name: share for name, share in self.study.mixtures[self.run.mixture].items() if share > 0}

    def sources(self) -> dict[str, TokenSource]:
        return {name: TokenSource(self.prepared.sources[name], name) for name in sorted(self.shares)}


def state_of(out: Path, run: Run) -> Path:
    """The state of an unfinished run."""
    return work_folder(out) / "state" / f"{run.name}.pt"


class Result(NamedTuple):
    name: str
    train_loss: float
    validation_loss: dict[str, float]


def fingerprint(job: Job) -> str:
    """A hash of everything that decides a run's weights."""
    decides = _decides_preferring(job) if job.run.stage == "dpo" else _decides(job)
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _decides_preferring(job: Job) -> dict[str, Any]:
    assert job.run.parent is not None
    return {
        "format": dpo.FORMAT,
        "parent": fingerprint(job._replace(run=job.run.parent)),
        "dpo": _decisive(job.settings),
        "beta": job.study.dpo.beta,
        "preferences": preferences.digest(job.preferences),
        "seed": job.study.seed,
        "save_dtype": job.study.save_dtype,
    }


def _decides(job: Job) -> dict[str, Any]:
    study, scale, tokenizer = job.study, job.scale, Tokenizer(job.prepared.tokenizer)
    decides: dict[str, Any] = {
        "format": FORMAT,
        "shape": dataclasses.asdict(shape_of(scale, tokenizer.size)),
        "tokenizer": tokenizer.hash,
        "seed": study.seed,
        "pretrain": _decisive(scale.pretrain),
        "shares": job.shares,
        "sources": {name: source.digest for name, source in job.sources().items()},
        "save_dtype": study.save_dtype,
    }
    if job.run.stage != "pt":
        decides["sft"] = _decisive(scale.sft)
        decides["reach"] = 1.0  # as if all were kept: a checkpoint made before `select` stays valid
        if study.sft.select:
            decides["select"] = selecting(job)
        decides["conversations"] = conversations.digest(conversations.load(job.conversations))
        if job.run.arm != "kept":
            decides["arm"] = job.run.arm
    return decides


def selecting(job: Job) -> dict[str, Any]:
    """Everything that decides which conversations a run is fine-tuned on."""
    how = job.study.sft.select
    assert how is not None
    return {
        **dataclasses.asdict(how),
        "format": selections.FORMAT,
        "model": fingerprint(job._replace(run=scorer(job.study, job.run))),
        "context": job.scale.context,
        "conversations": conversations.digest(conversations.load(job.prepared.conversations["kept"])),
    }


def _decisive(settings: Optimisation) -> dict[str, Any]:
    values = {k: v for k, v in dataclasses.asdict(settings).items() if k != "micro_rows"}
    if not values["z_loss"]:
        del values["z_loss"]  # as if the setting were not there
    return values


def tokens_of(job: Job) -> int:
    """Tokens that a run is fed; of later stages those of conversations or pairs, without padding."""
    if job.run.stage == "pt":
        return pretraining_steps(job.scale) * job.scale.pretrain.batch_rows * job.scale.context
    if job.run.stage == "dpo":
        fitting = preferences.within(job.preferences, job.scale.context)
        return preferences.size_of(preferences.lengths_of(fitting)).pairs * job.scale.dpo.epochs
    examples = conversations.within(conversations.load(job.conversations), job.scale.context)
    tokens = sum(len(ids) for ids, _ in examples)
    return int(tokens * job.study.sft.share * job.scale.sft.epochs)


def pretraining_steps(scale: Scale) -> int:
    return max(1, scale.pretrain.tokens // (scale.pretrain.batch_rows * scale.context))


def train(job: Job, report: Callable[[Step], None] = lambda step: None) -> Result:
    """Trains one checkpoint, from its saved state if there is one. Raises UserError naming what is wrong with the run."""
    tokenizer = Tokenizer(job.prepared.tokenizer)
    shape = shape_of(job.scale, tokenizer.size)
    place = dataclasses.replace(
        job.place,
        state=job.state,
        log=work_folder(job.out) / "logs" / f"{job.run.name}.jsonl",
        tensorboard=job.place.tensorboard and job.place.tensorboard / job.run.name,
        width=shape.context if job.place.compile else 0,
        fingerprint=fingerprint(job),
    )
    stage = {"pt": pretrain, "dpo": prefer}.get(job.run.stage, finetune)
    model, loss, found = stage(job, tokenizer, shape, place, report)
    model = place.group.unsharded(model)
    if place.group.rank == 0:
        about = {
            **dataclasses.asdict(job.run),
            "study": job.study.name,
            "evalengine": __version__,
            "fingerprint": place.fingerprint,
            "tokenizer": tokenizer.hash,
            "seed": job.study.seed,
            "shares": dict(job.study.mixtures[job.run.mixture]),
            "parameters": shape.params,
            "settings": dataclasses.asdict(job.settings),
            "train_loss": round(loss, 6),
            **found,
        }
        export.save(model, tokenizer, job.path, about, dtype=job.study.save_dtype)
        job.state.unlink(missing_ok=True)
    place.group.wait()
    return Result(job.run.name, loss, found["validation_loss"])


Trained = tuple[Decoder, float, dict[str, Any]]  # model, loss, what else evalengine.json says of it


def pretrain(
    job: Job, tokenizer: Tokenizer, shape: Shape, place: Place, report: Callable[[Step], None]
) -> Trained:
    """From random weights, the same for every mixture of a scale: mixtures differ by their data alone."""
    settings, sources, seed = job.scale.pretrain, job.sources(), job.study.seed
    streams = {n: Stream(s, s.split()[0], tokenizer.end, seed) for n, s in sources.items()}
    steps = pretraining_steps(job.scale)
    rows = MixedRows(
        streams,
        job.shares,
        rows=steps * settings.batch_rows,
        context=shape.context,
        batch_rows=settings.batch_rows,
    )
    generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(job.run.scale.encode()))
    model = Decoder(shape, checkpoint_activations=job.scale.checkpoint_activations).initialise(generator)
    loss = fit(model, rows, settings, place, report)
    validation = {}
    for name, source in sources.items():
        held_out = Stream(source, source.split()[1], tokenizer.end, seed)
        count = min(VALIDATION_ROWS, max(1, held_out.epoch_tokens // shape.context))
        held = MixedRows({name: held_out}, {name: 1.0}, rows=count, context=shape.context, batch_rows=count)
        validation[name] = round(mean_loss(model, held.batch(0), place), 6)
    return model, loss, {"validation_loss": validation, "tokens": tokens_of(job)}


def from_parent(job: Job, shape: Shape) -> tuple[Decoder, dict[str, Any]]:
    """The model that a run starts from, and its evalengine.json. Raises UserError where it is not finished."""
    assert job.run.parent is not None
    model, made_of = _finished(job, job.run.parent, shape)
    model.checkpoint_activations = job.scale.checkpoint_activations
    return model, made_of


def _base(made_of: dict[str, Any]) -> dict[str, Any]:
    """What evalengine.json says of the checkpoint that a run started from."""
    name = "-".join(made_of[part] for part in ("scale", "mixture", "stage"))
    return {"base": name, "base_fingerprint": made_of["fingerprint"]}


def _finished(job: Job, run: Run, shape: Shape) -> tuple[Decoder, dict[str, Any]]:
    """The model of another run that `job` needs, and its evalengine.json."""
    path = job.out / run.name
    about = export.metadata(path)
    if about is None:
        raise UserError(f"{job.run.name} needs {run.name}, which is not finished: train it first")
    return export.load(path, shape), about


def finetune(
    job: Job, tokenizer: Tokenizer, shape: Shape, place: Place, report: Callable[[Step], None]
) -> Trained:
    """From the run's pretrained checkpoint, with loss on what the assistant says."""
    settings = job.scale.sft
    model, made_of = from_parent(job, shape)
    everything = conversations.load(job.conversations)
    examples = conversations.within(everything, shape.context)
    total, selected = len(examples), {}
    if job.study.sft.select:
        selected["select"], chosen_M = select(job, model, tokenizer, place)
        examples = conversations.within([everything[i] for i in chosen_M.nonzero()[0]], shape.context)
    packed = PackedExamples(
        examples,
        epochs=settings.epochs,
        batch_examples=settings.batch_examples,
        context=shape.context,
        seed=job.study.seed,
    )
    loss = fit(model, packed, settings, place, report)
    found = {
        "validation_loss": {},
        **_base(made_of),
        "conversations": len(examples),
        "of": total,
        **selected,
    }
    return model, loss, found


def prefer(
    job: Job, tokenizer: Tokenizer, shape: Shape, place: Place, report: Callable[[Step], None]
) -> Trained:
    """From the run's fine-tuned checkpoint, which is also the reference, by direct preference optimisation."""
    settings, beta = preferring(job.scale), job.study.dpo.beta
    model, made_of = from_parent(job, shape)
    everything = job.preferences
    candidates = preferences.within(everything, shape.context)
    path = work_folder(job.out) / "reference" / f"{job.run.name}.json"
    key = f"{place.fingerprint} {made_of['crc32']['model.safetensors']}"
    logprob_C = dpo.logprobs(model, candidates, place, path, key)
    preferred = dpo.Preferred(
        *dpo.pairs_of(candidates, logprob_C),
        beta=beta,
        epochs=settings.epochs,
        batch_pairs=settings.batch_pairs,
        context=shape.context,
        seed=job.study.seed,
    )
    loss = fit(
        model, preferred, settings, dataclasses.replace(place, width=place.width and preferred.width), report
    )
    found = {
        "validation_loss": {},
        **_base(made_of),
        "beta": beta,
        "pairs": len(preferred.chosen),
        "of": len(everything),
    }
    return model, loss, found


def select(
    job: Job, pretrained: Decoder, tokenizer: Tokenizer, place: Place
) -> tuple[dict[str, Any], np.ndarray]:
    """What evalengine.json says of the choice, and the choice itself, a bool for each conversation.

    It is made once for a pretrained model, of the conversations with their instructions: every arm learns from the same.
    """
    how, run = job.study.sft.select, scorer(job.study, job.run)
    assert how is not None
    key = hashlib.sha256(json.dumps(selecting(job), sort_keys=True).encode()).hexdigest()[:16]
    path = selections.path_of(work_folder(job.out), job.run)
    selection = selections.read(path, key)
    if selection is None:
        model, examples = pretrained, conversations.load(job.prepared.conversations["kept"])
        if run.scale != job.run.scale:
            model, _ = _finished(job, run, shape_of(job.study.scales[run.scale], tokenizer.size))
        seed = (job.study.seed, zlib.crc32(job.run.scale.encode()), zlib.crc32(job.run.mixture.encode()))
        selection = selections.make(
            model, examples, how, tokenizer, place, context=job.scale.context, seed=seed
        )
        if place.group.rank == 0:
            selections.write(path, selection, key)
    about = {**dataclasses.asdict(how), "model": run.name, "key": key, **selection.summary()}
    return about, selection.chosen_M
