"""A tiny configuration for every causal model type that transformers registers, and checkpoints made from them.

One rule shrinks the fields that configurations share (widths, heads, layers, experts, windows); `OVERRIDES` holds what a
model type needs beyond it; `VARIANTS` are further configurations of a type whose arithmetic differs. Every window, chunk and
original length lies below the length of the items that the sweep scores, and every kind of layer that a type has is present.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_models

WINDOW = 512  # tokens that a model takes at once, where its configuration has such a limit
SPECIAL = 16  # rows of the embedding behind the tokenizer's, for image, audio and other special ids
LOCAL = 24  # sliding windows, chunks, windows that are kept: below the length of most items
ORIGINAL = 40  # original_max_position_embeddings

# Fields that mean the same wherever they appear.
SIZES: dict[str, int | None] = {
    **dict.fromkeys(
        ["hidden_size", "n_embd", "d_model", "emb_dim", "embedding_dim", "word_embed_proj_dim", "lru_width"], 32
    ),
    **dict.fromkeys(["hidden_size_global", "backbone_hidden_size", "embedding_size", "router_hidden_size"], 32),
    **dict.fromkeys(["input_embedding_size", "output_embedding_size", "hidden_size_per_layer_input"], 16),
    **dict.fromkeys(["attention_hidden_size", "adapter_out_dim", "vision_output_dim", "out_hidden_size"], 32),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "ffn_hidden_size", "decoder_ffn_dim", "encoder_ffn_dim"], 48),
    **dict.fromkeys(["dff", "dim_ff", "d_inner", "feed_forward_size", "mlp_dim", "intermediate_size_mlp"], 48),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"], 24),
    **dict.fromkeys(["moe_shared_expert_intermediate_size", "shared_experts_intermediate_size"], 24),
    **dict.fromkeys(["shared_intermediate_size", "dense_intermediate_size"], 48),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"], 4),
    **dict.fromkeys(["encoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"], 4),
    **dict.fromkeys(["attention_heads", "swa_num_attention_heads", "linear_num_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "swa_num_key_value_heads", "num_kv_heads"], 2),
    **dict.fromkeys(["linear_num_key_heads"], 2),
    **dict.fromkeys(["linear_num_value_heads"], 4),
    **dict.fromkeys(["head_dim", "swa_head_dim", "d_head", "attention_head_size", "attention_head_dim"], 8),
    **dict.fromkeys(["linear_head_dim", "linear_key_head_dim", "linear_value_head_dim", "kv_channels"], 8),
    **dict.fromkeys(["global_head_dim", "dim_head"], 8),
    **dict.fromkeys(["qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "index_head_dim"], 8),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank", "o_lora_rank"], 16),
    **dict.fromkeys(["index_n_heads"], 2),
    **dict.fromkeys(["index_topk"], 16),
    **dict.fromkeys(["rotary_dim"], 4),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers"], 2),
    **dict.fromkeys(["decoder_layers", "encoder_layers", "num_encoder_layers", "num_decoder_layers", "depth"], 2),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k"], 2),
    **dict.fromkeys(["n_shared_experts", "num_shared_experts", "moe_num_shared_experts"], 1),
    **dict.fromkeys(["n_group", "topk_group", "num_expert_group"], 1),
    **dict.fromkeys(["zero_expert_num"], 2),
    **dict.fromkeys(["state_size", "ssm_state_size", "mamba_d_state"], 8),
    **dict.fromkeys(["mamba_chunk_size", "chunk_size"], 16),
    **dict.fromkeys(["time_step_rank", "mamba_dt_rank"], 4),
    **dict.fromkeys(["laurel_rank", "gated_norm_rank", "adapter_rank", "hc_lowrank"], 8),
    **dict.fromkeys(["sliding_window", "attention_window_size", "attention_chunk_size", "window_size"], LOCAL),
    **dict.fromkeys(["sliding_window_size", "local_attention", "keep_window_size"], LOCAL),
    **dict.fromkeys(["original_max_position_embeddings", "floor_scale"], ORIGINAL),
    **dict.fromkeys(["max_target_positions", "max_source_positions"], WINDOW),
    **dict.fromkeys(["type_vocab_size"], 2),
}
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions")
DROPOUT = ("drop", "layerdrop")

# What else a model type needs, or what makes its own arithmetic visible.
OVERRIDES: dict[str, dict[str, Any]] = {}

# name -> (model type, fields that differ)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {}


def names() -> list[str]:
    """Every model type that AutoModelForCausalLM knows, then the variants."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS]


def tiny(name: str, vocab_size: int = 416, window: int = WINDOW) -> Any:
    """The configuration of a model type or variant. Raises what transformers raises for one that it cannot make."""
    from transformers import CONFIG_MAPPING

    model_type, fields = VARIANTS.get(name, (name, {}))
    return shrunk(CONFIG_MAPPING[model_type], vocab_size, window, {**OVERRIDES.get(model_type, {}), **fields})


def shrunk(kind: Any, vocab_size: int, window: int, overrides: dict[str, Any]) -> Any:
    """A configuration of class `kind` by the rule. Nested overrides are dicts under the nested configuration's name."""
    known = {field.name: field.default for field in dataclasses.fields(kind)}
    given: dict[str, Any] = {}
    for field in known:
        if field in SIZES:
            given[field] = SIZES[field]
        if field in POSITIONS:
            given[field] = window
        if field.endswith("vocab_size"):
            given[field] = vocab_size
        if "drop" in field and isinstance(known[field], float):
            given[field] = 0.0
    for field, value in special_ids(known, vocab_size).items():
        given[field] = value
    layers = next((f for f in ("num_hidden_layers", "n_layer", "num_layers") if f in given), None)
    for field, kinds in layer_kinds(kind).items():
        if layers is not None and field in known:
            given[layers] = max(int(given[layers] or 0), len(kinds))
    for field, kinds in layer_kinds(kind).items():
        if layers is not None and field in known:
            given[field] = [kinds[i % len(kinds)] for i in range(given[layers])]
    for field, nested in nested_kinds(kind).items():
        own = overrides.get(field, {})
        given[field] = shrunk(nested, vocab_size, window, own) if isinstance(own, dict) else own
    given.update({field: value for field, value in overrides.items() if field not in nested_kinds(kind)})
    return kind(**given)


def special_ids(known: dict[str, Any], vocab_size: int) -> dict[str, int]:
    """BOS, EOS and PAD are the tokenizer's only special token; ids of images and the like lie behind its ids."""
    ids: dict[str, int] = {}
    behind = vocab_size - SPECIAL
    for field in known:
        if field in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
            ids[field] = 0
        elif field.endswith(("_token_id", "_token_index")):
            ids[field] = behind
            behind += 1
    return ids


@functools.cache
def default(kind: Any) -> Any:
    try:
        return kind()
    except Exception:  # a default that contradicts itself: the rule and the overrides have to do
        return None


def layer_kinds(kind: Any) -> dict[str, list[str]]:
    """Every kind of layer that the default configuration has, in the order of appearance."""
    found = {}
    for field in ("layer_types", "mlp_layer_types", "layers_block_type"):
        kinds = getattr(default(kind), field, None)
        if isinstance(kinds, list) and kinds:
            found[field] = list(dict.fromkeys(kinds))
    return found


def nested_kinds(kind: Any) -> dict[str, Any]:
    """Classes of the configurations inside: text_config and the like."""
    found = {}
    for field in getattr(kind, "sub_configs", {}):
        value = getattr(default(kind), field, None)
        if value is not None and dataclasses.is_dataclass(type(value)):
            found[field] = type(value)
    return found
