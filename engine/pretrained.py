"""A checkpoint's folder -> its transformers module on a device: empty, to be filled in place, or read by transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from evalengine.checkpoints import Checkpoint
from evalengine.errors import UserError


class Pretrained(NamedTuple):
    """Where modules go, in which precision, and what of a checkpoint may be run or unpickled."""

    device: torch.device
    dtype: torch.dtype
    allow_pickle: bool
    trust_remote_code: bool

    def build(self, checkpoint: Checkpoint) -> Any:
        """The architecture with uninitialised weights: nothing is read and nothing random is drawn. Raises UserError."""
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.initialization import no_init_weights

        remote = {"trust_remote_code": self.trust_remote_code}
        try:
            config = AutoConfig.from_pretrained(checkpoint.path, **remote)
            # Some versions of transformers pick an attention that drops this soft-cap without a word.
            capped = (
                {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}
            )
            with no_init_weights():
                model = AutoModelForCausalLM.from_config(config, dtype=self.dtype, **remote, **capped)
        except Exception as error:
            raise unreadable(checkpoint, error) from None
        return self._ready(model)

    def load(self, checkpoint: Checkpoint, misfit: str) -> Any:
        """transformers' own loader, which knows renamed and fused tensors. `misfit`: why filling in place did not do."""
        from transformers import AutoModelForCausalLM

        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                checkpoint.path,
                dtype=self.dtype,
                trust_remote_code=self.trust_remote_code,
                use_safetensors=None if self.allow_pickle else True,
                output_loading_info=True,
            )
        except Exception as error:
            raise unreadable(checkpoint, error) from None
        model, info = loaded
        lacking = sorted(info.get("missing_keys") or ()) or sorted(
            map(str, info.get("mismatched_keys") or ())
        )
        if lacking:
            raise UserError(
                f"{checkpoint.name} does not hold the model its config.json describes ({misfit}): copy it again"
            )
        return self._ready(model)

    def _ready(self, model: Any) -> Any:
        model.requires_grad_(False)
        return model.to(self.device).eval()


def architecture_of(path: Path) -> str:
    """What two checkpoints must share to share a module: the configuration without its names and versions."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    for key in ("_name_or_path", "transformers_version", "torch_dtype", "dtype"):
        config.pop(key, None)
    return json.dumps(config, sort_keys=True)


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
    return UserError(f"{checkpoint.name} cannot be loaded: {first_line(error)}")


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
