"""A decoder as a Hugging Face Llama directory, and back.

The directory (config.json, model.safetensors, tokenizer.json, tokenizer_config.json, evalengine.json) is
written under a temporary name and renamed: a checkpoint is whole or absent.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evalengine import files
from evalengine.checkpoints import checksum_of, is_whole
from evalengine.errors import UserError
from evalengine.training.checked import crc, read_unchecked
from evalengine.training.data.tokenizer import Tokenizer
from evalengine.training.decoder.model import Decoder, Shape

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def config(shape: Shape, tokenizer: Tokenizer, dtype: str) -> dict[str, Any]:
    """What transformers and vLLM need to rebuild the architecture."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.d_model,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": tokenizer.end,
        "eos_token_id": tokenizer.end,
        "pad_token_id": tokenizer.end,
        "dtype": dtype,
    }


def to_llama(model: Decoder) -> dict[str, Tensor]:
    """The weights under Llama's names; query, key, value and gate, up come apart."""
    weights = {"model.embed_tokens.weight": model.embedding.weight, "model.norm.weight": model.norm.weight}
    if not model.shape.tied:
        weights["lm_head.weight"] = model.head.weight
    for number, block in enumerate(model.layers()):
        at = f"model.layers.{number}."
        for name, part in zip("qkv", block.qkv.weight.chunk(3), strict=True):
            weights[f"{at}self_attn.{name}_proj.weight"] = part
        gate, up = block.gate_up.weight.chunk(2)
        weights[f"{at}self_attn.o_proj.weight"] = block.attention_out.weight
        weights[f"{at}mlp.gate_proj.weight"], weights[f"{at}mlp.up_proj.weight"] = gate, up
        weights[f"{at}mlp.down_proj.weight"] = block.down.weight
        weights[f"{at}input_layernorm.weight"] = block.attention_norm.weight
        weights[f"{at}post_attention_layernorm.weight"] = block.ffn_norm.weight
    return weights


def from_llama(model: Decoder, weights: dict[str, Tensor]) -> None:
    """Fills `model` with weights under Llama's names. Raises KeyError or RuntimeError if they do not fit."""
    with torch.no_grad():
        for name, part in to_llama(model).items():  # views of the model's own storage
            part.copy_(weights[name])


def save(
    model: Decoder, tokenizer: Tokenizer, path: Path, metadata: dict[str, Any], *, dtype: str = "float32"
) -> None:
    """Writes the checkpoint directory `path`, replacing an old one. `metadata` becomes evalengine.json."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    weights = {k: v.detach().to("cpu", DTYPES[dtype]).contiguous() for k, v in to_llama(model).items()}
    try:
        with files.atomic(path) as temporary:
            temporary.mkdir()
            save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copyfile(tokenizer.path / name, temporary / name)
            _write_json(temporary / "config.json", config(model.shape, tokenizer, dtype))
            sums = {file.name: f"{crc(file):08x}" for file in sorted(temporary.iterdir())}
            sums["evalengine.json"] = checksum_of({**metadata, "crc32": sums})
            _write_json(temporary / "evalengine.json", {**metadata, "crc32": sums})
            files.remove(path)
    except SafetensorError as error:  # how its writer reports what the system said
        raise UserError(
            f"cannot write {path / 'model.safetensors'} ({error}): make room on the disk and run the same "
            "command again"
        ) from None


def load(path: Path, shape: Shape) -> Decoder:
    """The decoder of a checkpoint directory. Raises UserError when a file is missing, damaged or of another shape."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    model = Decoder(shape)
    try:
        expected = (metadata(path) or {}).get("crc32", {}).get("model.safetensors")
        if expected and expected != f"{crc(path / 'model.safetensors'):08x}":
            raise OSError("its weights are not those that were written")
        from_llama(model, load_file(path / "model.safetensors"))
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise UserError(
            f"the checkpoint {path} is damaged or of another shape ({error}): delete it and train it again"
        ) from None
    return model


def metadata(path: Path) -> dict[str, Any] | None:
    """evalengine.json of a finished checkpoint; None where there is none, or it is damaged."""
    about = read_unchecked(path / "evalengine.json", constants=True)
    return about if about is not None and is_whole(about) else None


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
