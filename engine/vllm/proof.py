"""Whether vLLM computes what transformers computes: tried once for a configuration, on its small twin (evalengine.model.twin).

vLLM has model code of its own. Most of it computes what the checkpoint was trained with; some does not (rotary factors that
vLLM chooses by the engine's window and transformers by the sequence, another form of an activation). So the twin is written to a
folder, scored by an engine with the settings of the real one, in float32, and compared token by token with a plain forward of
each sequence by itself.

Cost: starting and ending one more engine, for each configuration and power of two of the longest sequence.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from evalengine.checkpoints import Checkpoint
from evalengine.checkpoints.pretrained import text_config, unreadable
from evalengine.errors import UserError
from evalengine.model import proof, twin
from evalengine.plan.encoding import Sequences
from evalengine.untrusted import reason
from evalengine.vllm import engine

CLOSE = 3e-4  # nats a token; of log-probabilities below -10, three hundred-thousandths
# What the twin's engine does otherwise: exact enough to tell two computations apart, and small enough for one device.
SETTINGS = {
    "dtype": "float32",
    "enforce_eager": True,
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "data_parallel_size": 1,
}
LENGTH_DEPENDENT = ("longrope", "dynamic")  # rotary factors, by the name of their kind


class VllmProof(NamedTuple):
    """A configuration that vLLM computes as transformers does, for sequences of up to `length` tokens fed."""

    length: int
    tied: tuple[tuple[str, ...], ...]  # names of tensors that are one parameter


class Twin(NamedTuple):
    """A checkpoint's twin: the folder that vLLM reads, and the same model as transformers runs it."""

    checkpoint: Checkpoint
    config: Any
    trial: proof.Trial

    @property
    def tied(self) -> tuple[tuple[str, ...], ...]:
        names: dict[int, list[str]] = {}
        for name, tensor in self.trial.forward.model.state_dict().items():
            if tensor.numel():
                names.setdefault(tensor.data_ptr(), []).append(name)
        return tuple(tuple(group) for group in names.values() if len(group) > 1)

    def sequences(self, length: int) -> Sequences:
        """Sequences of up to `length` tokens fed that share beginnings at all depths."""
        return self.trial.tree(length)

    def check(self, logprob_T: np.ndarray, length: int) -> None:
        """Raises UserError unless these are the log-probabilities of all targets of `sequences(length)`, in their order."""
        truth = self.trial.truth(length)
        true_T = truth.logprob_T[np.argsort(truth.sequence_T, kind="stable")]
        if not self.trial.is_rounding(proof.distance(logprob_T, true_T), (length, 0, 0), CLOSE):
            gap_T = np.nan_to_num(np.abs(logprob_T - true_T), nan=np.inf)
            raise UserError(
                f"vLLM computes {self.checkpoint.name} otherwise than transformers: by {gap_T.max():.2g} nats a token on"
                f" sequences of up to {length} tokens{rotary_note(self.config)}; use --backend torch"
            )


def rotary_note(config: Any) -> str:
    """Why vLLM computes something else, where rotary factors that depend on the length are the likely reason."""
    rotary = getattr(text_config(config), "rope_parameters", None) or {}
    kinds = {given.get("rope_type") for given in (rotary, *rotary.values()) if isinstance(given, dict)}
    for kind in kinds & set(LENGTH_DEPENDENT):
        return f" (its rotary factors are {kind}: vLLM takes those of its whole window, transformers those of each sequence)"
    return ""


def make_twin(checkpoint: Checkpoint, folder: Path, trust_remote_code: bool) -> Twin:
    """Writes the twin of a checkpoint to `folder`. Raises UserError where there is none, and where the model is not causal."""
    from transformers import AutoConfig

    remote = {"trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(checkpoint.path, **remote)
    except Exception as error:
        raise unreadable(checkpoint, error) from None
    if getattr(config, "quantization_config", None):
        raise UserError(
            f"{checkpoint.name} is quantised, and vLLM's arithmetic for it was not compared: use --backend torch"
        )
    try:
        with engine.quiet(), buildable(config):
            model = twin.make(config, trust_remote_code)
        for module in model.modules():
            module.do_not_compile = True  # what vLLM asks of modules whose class it wraps afterwards
        trial = proof.Trial(model)
        causal = trial.is_causal(proof.SHORTEST)
    except Exception as error:
        raise UserError(
            f"{checkpoint.name} cannot be compared between vLLM and transformers, because its small copy does not run"
            f" ({reason(error)}): use --backend torch"
        ) from None
    if not causal:
        raise UserError(
            f"{checkpoint.name} cannot be scored: its tokens attend to the right (it is not a causal language model), so it would"
            " see the answers it scores"
        )
    with engine.quiet():
        trial.forward.model.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if checkpoint.config.get("architectures"):  # what decides on vLLM's class
        written["architectures"] = checkpoint.config["architectures"]
        (folder / "config.json").write_text(json.dumps(written), encoding="utf-8")
    return Twin(replace(checkpoint, path=folder), config, trial)


def buildable(config: Any) -> Any:
    """Lets transformers build a model whose class vLLM's Transformers backend has run in this process.

    That backend wraps the constructor, which then asks for the configuration of an engine; with compilation off the forward
    stays transformers' own.
    """
    from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config

    engine_config: Any = VllmConfig(compilation_config=CompilationConfig(mode=0))
    engine_config.model_config = SimpleNamespace(hf_config=config)
    return set_current_vllm_config(engine_config)
