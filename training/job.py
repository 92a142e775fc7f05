"""One run as a worker takes it: what it needs to know, and the hash of all that decides its weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evalengine.training import dpo
from evalengine.training.data import conversations, preferences
from evalengine.training.data.packed import tokens_of_steps
from evalengine.training.data.preferences import Candidates
from evalengine.training.data.shards import TokenSource
from evalengine.training.data.tokenizer import Tokenizer
from evalengine.training.fitting.state import Place
from evalengine.training.prepare import Prepared, shape_of, work_folder
from evalengine.training.selection import selections
from evalengine.training.study import Optimisation, Run, Scale, Study, scorer, settings_of

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
        return job.scale.pretraining_rows * job.scale.context
    if job.run.stage == "dpo":
        fitting = preferences.within(job.preferences, job.scale.context)
        return preferred_tokens(job.study, job.scale, preferences.lengths_of(fitting))
    examples = conversations.within(conversations.load(job.conversations), job.scale.context)
    return finetuned_tokens(job.study, job.scale, [len(ids) for ids, _ in examples])


def finetuned_tokens(study: Study, scale: Scale, lengths: Sequence[int]) -> int:
    """Tokens of all steps of fine-tuning on conversations of these lengths, or on the share of them that is chosen."""
    steps = tokens_of_steps(lengths, scale.sft.batch_examples, epochs=scale.sft.epochs, seed=study.seed)
    return int(steps * study.sft.share)


def preferred_tokens(study: Study, scale: Scale, lengths: Sequence[Sequence[int]]) -> int:
    """Tokens of all steps of preference optimisation on questions with candidates of these lengths."""
    pairs, settings = preferences.of_pairs(lengths), scale.dpo
    return tokens_of_steps(pairs, settings.batch_pairs, epochs=settings.epochs, seed=study.seed)
