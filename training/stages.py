"""The stages: a mixture to a pretrained checkpoint, that to a fine-tuned one, and that to a preferring one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from evalengine import __version__
from evalengine.errors import UserError
from evalengine.training import dpo
from evalengine.training.data import conversations, preferences
from evalengine.training.data.packed import PackedExamples
from evalengine.training.data.rows import MixedRows, Stream
from evalengine.training.data.tokenizer import Tokenizer
from evalengine.training.decoder import export
from evalengine.training.decoder.model import Decoder, Shape
from evalengine.training.fitting.loop import Step, fit, mean_loss
from evalengine.training.fitting.state import Place
from evalengine.training.job import Job, fingerprint, selecting, tokens_of
from evalengine.training.prepare import shape_of, work_folder
from evalengine.training.selection import selections
from evalengine.training.study import Run, preferring, scorer

VALIDATION_ROWS = 8  # of each source


class Trained(NamedTuple):
    name: str
    train_loss: float
    validation_loss: dict[str, float]


Report = Callable[[Step], None]
About = dict[str, Any]  # what evalengine.json says of a run


def train(job: Job, report: Report = lambda step: None) -> Trained:
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
    if job.run.parent is None:
        model = Decoder(shape, checkpoint_activations=job.scale.checkpoint_activations)
        loss, found = pretrain(job, model, tokenizer.end, place, report)
    else:
        model, made_of = _finished(job, job.run.parent, shape)
        model.checkpoint_activations = job.scale.checkpoint_activations
        if job.run.stage == "dpo":
            loss, found = prefer(job, model, place, report, made_of["crc32"]["model.safetensors"])
        else:
            loss, found = finetune(job, model, place, report)
        base = {"base": job.run.parent.name, "base_fingerprint": made_of["fingerprint"]}
        found = {"validation_loss": {}, **base, **found}
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
    return Trained(job.run.name, loss, found["validation_loss"])


def _finished(job: Job, run: Run, shape: Shape) -> tuple[Decoder, About]:
    """The model of another run that `job` needs, and its evalengine.json. Raises UserError where it is not finished."""
    path = job.out / run.name
    about = export.metadata(path)
    if about is None:
        raise UserError(f"{job.run.name} needs {run.name}, which is not finished: train it first")
    return export.load(path, shape), about


def pretrain(job: Job, model: Decoder, end: int, place: Place, report: Report) -> tuple[float, About]:
    """From random weights, the same for every mixture of a scale: mixtures differ by their data alone.

    end: the token that begins every document.
    """
    sources, seed, context = job.sources(), job.study.seed, model.shape.context
    streams = {n: Stream(s, s.split()[0], end, seed) for n, s in sources.items()}
    count, batch_rows = job.scale.pretraining_rows, job.scale.pretrain.batch_rows
    rows = MixedRows(streams, job.shares, rows=count, context=context, batch_rows=batch_rows)
    model.initialise(torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(job.run.scale.encode())))
    loss = fit(model, rows, job.settings, place, report)
    validation = {}
    for name, source in sources.items():
        held_out = Stream(source, source.split()[1], end, seed)
        count = min(VALIDATION_ROWS, max(1, held_out.epoch_tokens // context))
        held = MixedRows({name: held_out}, {name: 1.0}, rows=count, context=context, batch_rows=count)
        validation[name] = round(mean_loss(model, held.batch(0), place), 6)
    read_S = np.bincount(rows.source_R, minlength=len(rows.names)) * context
    passes = {n: round(read / streams[n].epoch_tokens, 4) for n, read in zip(rows.names, read_S, strict=True)}
    return loss, {"validation_loss": validation, "tokens": tokens_of(job), "passes": passes}


def finetune(job: Job, model: Decoder, place: Place, report: Report) -> tuple[float, About]:
    """From the run's pretrained checkpoint, with loss on what the assistant says."""
    settings, context = job.scale.sft, model.shape.context
    everything = conversations.load(job.conversations)
    examples = conversations.within(everything, context)
    total, selected = len(examples), {}
    if job.study.sft.select:
        selected["select"], chosen_M = select(job, model, place)
        examples = conversations.within([everything[i] for i in chosen_M.nonzero()[0]], context)
    packed = PackedExamples(examples, settings, context=context, seed=job.study.seed)
    loss = fit(model, packed, settings, place, report)
    return loss, {"conversations": len(examples), "of": total, **selected}


def prefer(job: Job, model: Decoder, place: Place, report: Report, weights: str) -> tuple[float, About]:
    """From the run's fine-tuned checkpoint, which is also the reference, by direct preference optimisation.

    weights: the checksum of that checkpoint's.
    """
    settings, beta, context = preferring(job.scale), job.study.dpo.beta, model.shape.context
    everything = job.preferences
    candidates = preferences.within(everything, context)
    path = work_folder(job.out) / "reference" / f"{job.run.name}.json"
    logprob_C = dpo.logprobs(model, candidates, place, path, f"{place.fingerprint} {weights}")
    pairs = dpo.pairs_of(candidates, logprob_C)
    preferred = dpo.Preferred(*pairs, settings, beta=beta, context=context, seed=job.study.seed)
    place = dataclasses.replace(place, width=place.width and preferred.width)
    loss = fit(model, preferred, settings, place, report)
    return loss, {"beta": beta, "pairs": len(preferred.chosen), "of": len(everything)}


def select(job: Job, pretrained: Decoder, place: Place) -> tuple[About, np.ndarray]:
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
        tokenizer = Tokenizer(job.prepared.tokenizer)
        if run.scale != job.run.scale:
            model, _ = _finished(job, run, shape_of(job.study.scales[run.scale], tokenizer.size))
        seed = (job.study.seed, zlib.crc32(job.run.scale.encode()), zlib.crc32(job.run.mixture.encode()))
        context = job.scale.context
        selection = selections.make(model, examples, how, tokenizer, place, context=context, seed=seed)
        if place.group.rank == 0:
            selections.write(path, selection, key)
    about = {**dataclasses.asdict(how), "model": run.name, "key": key, **selection.summary()}
    return about, selection.chosen_M
