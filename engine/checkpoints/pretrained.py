"""A checkpoint's folder -> its transformers module on a device, and the next checkpoint of its architecture into the same module.

What the weights of a folder mean (tensors that are renamed, fused, tied or kept in float32) is for transformers to say: the
first checkpoint of an architecture goes through its own loader. Where that changed no more than names, the next ones are read
into the module's memory. To see that, the first one's files are read once more and compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from evalengine import libraries
from evalengine.checkpoints import Checkpoint, weights
from evalengine.errors import UserError
from evalengine.untrusted import printable, reason


class Loaded(NamedTuple):
    """A module that holds a checkpoint, and what is known of how it came to hold it."""

    model: Any  # a transformers PreTrainedModel
    architecture: str
    # the module's own name for each tensor of the files; None: they are not the same tensors
    names: dict[str, str] | None
    buffers: dict[str, torch.Tensor]  # those that no file holds, as they were when the model was made
    notes: tuple[str, ...]  # what the user should know about its weights

    def to(self, device: torch.device) -> Loaded:
        """On a device, ready to score."""
        self.model.requires_grad_(False)
        self.model.to(device).eval()
        return self._replace(buffers={k: b.clone() for k, b in made_buffers(self.model).items()})

    def refill(self, checkpoint: Checkpoint) -> bool:
        """Reads another checkpoint into the module. False, and nothing is changed, where it must be loaded anew.

        Raises UserError.
        """
        if self.names is None or checkpoint.base or checkpoint.architecture != self.architecture:
            return False
        files = checkpoint.weight_files(allow_pickle=True)
        if any(file.suffix != ".safetensors" for file in files):
            return False
        stored = weights.unwrapped(weights.headers(files), checkpoint.name)
        if not stored.keys() <= self.names.keys():
            return False
        stored = {self.names[name]: tensor for name, tensor in stored.items()}
        now = made_buffers(self.model)
        untouched = all(torch.equal(now[name], buffer) for name, buffer in self.buffers.items())
        if not untouched or not weights.fits(self.model, stored):
            return False
        weights.fill(self.model, stored)
        return True


class Pretrained(NamedTuple):
    """In which precision modules are read, and what of a checkpoint may be run or unpickled."""

    dtype: torch.dtype
    allow_pickle: bool
    trust_remote_code: bool

    def read(self, checkpoint: Checkpoint) -> Loaded:
        """The weights of `checkpoint.model_folder` in a new module on the CPU, by transformers' own loader. Raises UserError."""
        libraries.load("transformers.modeling_utils")
        files = checkpoint.weight_files(self.allow_pickle)
        if checkpoint.config.get("quantization_config"):
            return self._loaded(checkpoint, self._from_folder(checkpoint))
        stored: dict[str, weights.FileTensor] = {}
        tensors: Mapping[str, Any]
        if all(file.suffix == ".safetensors" for file in files):
            tensors = stored = weights.unwrapped(weights.headers(files), checkpoint.name)
            weights.plausible(checkpoint.config, len(stored), checkpoint.name)
        else:
            tensors = weights.unwrapped(weights.unpickled(files), checkpoint.name)
        result = self._from_tensors(checkpoint, tensors)
        loaded = self._loaded(checkpoint, result)
        note = weights.check_unscaled(loaded.model, tensors, result[1]["unexpected_keys"], checkpoint.name)
        if note is not None:
            loaded = loaded._replace(notes=(*loaded.notes, note))
        # What is said of this checkpoint's weights may not be so of the next one's.
        same = bool(stored) and not loaded.notes
        return loaded._replace(names=weights.names_in(loaded.model, stored) if same else None)

    def _from_tensors(self, checkpoint: Checkpoint, tensors: Mapping[str, Any]) -> Any:
        """transformers' loader on tensors that are read here: in memory of their own, under the model's own names."""
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.initialization import no_init_weights

        remote = {"trust_remote_code": self.trust_remote_code}
        try:
            config = AutoConfig.from_pretrained(checkpoint.model_folder, **remote)
            with no_init_weights(), torch.device("meta"):
                empty = AutoModelForCausalLM.from_config(config, dtype=self.dtype, **remote)
            return type(empty).from_pretrained(
                None,
                config=empty.config,
                state_dict=tensors,
                dtype=self.dtype,
                output_loading_info=True,
                **attention_of(empty.config),
            )
        except UserError:
            raise
        except Exception as error:
            raise unreadable(checkpoint, error) from None

    def _from_folder(self, checkpoint: Checkpoint) -> Any:
        """transformers' loader on the folder, where its weights are not plain tensors."""
        from transformers import AutoModelForCausalLM

        try:
            return AutoModelForCausalLM.from_pretrained(
                checkpoint.model_folder,
                dtype=self.dtype,
                trust_remote_code=self.trust_remote_code,
                use_safetensors=None if self.allow_pickle else True,
                output_loading_info=True,
            )
        except Exception as error:
            raise unreadable(checkpoint, error) from None

    def _loaded(self, checkpoint: Checkpoint, result: tuple[Any, dict[str, Any]]) -> Loaded:
        model, info = result
        missing, extra = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
        if missing:
            raise UserError(incomplete(checkpoint, model, missing, extra))
        adapter = next((name for name in extra if ".lora_" in name), None)
        if adapter is not None:
            raise UserError(
                f"{checkpoint.name} holds an adapter beside its weights ({printable(adapter[:80])}), which transformers leaves"
                " out: merge it into them with peft's merge_and_unload, and save the model again"
            )
        notes: list[str] = []
        if extra:
            notes.append(
                f"{len(extra)} tensors of its files are not in the model that its config.json describes and are left out,"
                f" as transformers does: {printable(extra[0][:80])}{', ...' if len(extra) > 1 else ''}"
            )
        if has_head_of_its_own(model):
            notes.append(
                "its config.json ties the output layer to the embeddings, but its files hold another one, which is used, as"
                " transformers does (lm-evaluation-harness ties them again)"
            )
        return Loaded(model, checkpoint.architecture, None, {}, tuple(notes))


def attention_of(config: Any) -> dict[str, str]:
    """Some versions of transformers pick an attention that drops this soft-cap without a word."""
    capped = getattr(text_config(config), "attn_logit_softcapping", None)
    return {"attn_implementation": "eager"} if capped else {}


def has_head_of_its_own(model: Any) -> bool:
    """Whether the configuration ties the output layer to the embeddings, and transformers found another one in the files."""
    tied = getattr(text_config(model.config), "tie_word_embeddings", False)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    ties = bool(getattr(model, "_tied_weights_keys", None)) and hasattr(head, "weight")
    return bool(tied and ties and head.weight is not embeddings.weight)


def made_buffers(model: Any) -> dict[str, torch.Tensor]:
    """The buffers that no file holds: the model makes them, and some models change them as they run."""
    kept = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers() if name not in kept}


def incomplete(checkpoint: Checkpoint, model: Any, missing: list[str], extra: list[str]) -> str:
    head = model.get_output_embeddings()
    of_head = {
        name
        for name, parameter in model.named_parameters()
        if head is not None and any(parameter is own for own in head.parameters())
    }
    if set(missing) <= of_head:
        return (
            f"{checkpoint.name} has no output layer ({missing[0]}): its files are those of the base model, without the head"
            " of a causal language model; save it with AutoModelForCausalLM"
        )
    what = f"{missing[0]} is missing" + (f", and {printable(extra[0][:80])} is unknown" if extra else "")
    return f"{checkpoint.name} does not hold the model its config.json describes ({what}): copy it again"


def text_config(config: Any) -> Any:
    """The part of a configuration that describes the text model: all of it, but for models of several modalities."""
    try:
        return config.get_text_config()
    except ValueError:  # it has several
        return config


def unreadable(checkpoint: Checkpoint, error: Exception) -> UserError:
    text = str(error)
    if "trust_remote_code" in text:
        return UserError(
            f"{checkpoint.name} needs code that comes with it, which is not run: read it, then allow it with --trust-remote-code"
        )
    return UserError(f"{checkpoint.name} cannot be loaded: {reason(error)}")
