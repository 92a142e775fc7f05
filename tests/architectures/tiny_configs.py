"""A tiny configuration for every causal model type that transformers registers, and checkpoints made from them.

One rule shrinks the fields that configurations share (widths, heads, layers, experts, windows); `OVERRIDES` holds what a
model type needs beyond it; `VARIANTS` are further configurations of a type whose arithmetic differs. Every window, chunk and
original length lies below the length of the items that the sweep scores, and every kind of layer that a type has is present.
"""

from __future__ import annotations

import dataclasses
import functools
import math
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
        ["hidden_size", "n_embd", "d_model", "emb_dim", "embedding_dim", "word_embed_proj_dim", "lru_width"],
        32,
    ),
    **dict.fromkeys(
        ["hidden_size_global", "backbone_hidden_size", "embedding_size", "router_hidden_size"], 32
    ),
    **dict.fromkeys(["input_embedding_size", "output_embedding_size", "hidden_size_per_layer_input"], 16),
    **dict.fromkeys(["attention_hidden_size", "adapter_out_dim", "vision_output_dim", "out_hidden_size"], 32),
    **dict.fromkeys(
        ["intermediate_size", "ffn_dim", "ffn_hidden_size", "decoder_ffn_dim", "encoder_ffn_dim"], 48
    ),
    **dict.fromkeys(
        ["dff", "dim_ff", "d_inner", "feed_forward_size", "mlp_dim", "intermediate_size_mlp"], 48
    ),
    **dict.fromkeys(
        ["moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"], 24
    ),
    **dict.fromkeys(["moe_shared_expert_intermediate_size", "shared_experts_intermediate_size"], 24),
    **dict.fromkeys(["shared_intermediate_size", "dense_intermediate_size"], 48),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"], 4),
    **dict.fromkeys(
        ["encoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"], 4
    ),
    **dict.fromkeys(["attention_heads", "swa_num_attention_heads", "linear_num_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "swa_num_key_value_heads", "num_kv_heads"], 2),
    **dict.fromkeys(["linear_num_key_heads"], 2),
    **dict.fromkeys(["linear_num_value_heads"], 4),
    **dict.fromkeys(["head_dim", "swa_head_dim", "d_head", "attention_head_size", "attention_head_dim"], 8),
    **dict.fromkeys(["linear_head_dim", "linear_key_head_dim", "linear_value_head_dim", "kv_channels"], 8),
    **dict.fromkeys(["global_head_dim", "dim_head"], 8),
    **dict.fromkeys(["qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "index_head_dim"], 8),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank", "o_lora_rank"], 16),
    **dict.fromkeys(["index_n_heads"], 8),
    **dict.fromkeys(["index_topk"], 16),
    **dict.fromkeys(["rotary_dim"], 4),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers"], 2),
    **dict.fromkeys(
        ["decoder_layers", "encoder_layers", "num_encoder_layers", "num_decoder_layers", "depth"], 2
    ),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k"], 2),
    **dict.fromkeys(["n_shared_experts", "num_shared_experts", "moe_num_shared_experts"], 1),
    **dict.fromkeys(["n_group", "topk_group", "num_expert_group"], 1),
    **dict.fromkeys(["zero_expert_num"], 2),
    **dict.fromkeys(["state_size", "ssm_state_size", "mamba_d_state"], 8),
    **dict.fromkeys(["mamba_chunk_size", "chunk_size"], 16),
    **dict.fromkeys(["time_step_rank", "mamba_dt_rank"], 4),
    **dict.fromkeys(["laurel_rank", "gated_norm_rank", "adapter_rank", "hc_lowrank"], 8),
    **dict.fromkeys(
        ["sliding_window", "attention_window_size", "attention_chunk_size", "window_size"], LOCAL
    ),
    **dict.fromkeys(["sliding_window_size", "local_attention", "keep_window_size"], LOCAL),
    **dict.fromkeys(["original_max_position_embeddings", "floor_scale"], ORIGINAL),
    **dict.fromkeys(["max_target_positions", "max_source_positions"], WINDOW),
    **dict.fromkeys(["type_vocab_size"], 2),
}
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions")
DROPOUT = ("drop", "layerdrop")

SHARED_KEYS = ["sliding_attention", "full_attention"]
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": ORIGINAL}
FACTORS = {"short_factor": [1.0, 1.1, 1.3, 1.5], "long_factor": [2.0, 3.0, 4.0, 6.0]}  # for heads of 8
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": ORIGINAL,
}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2}
MULTIPLIERS = {
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.3,
    "logits_scaling": 2.0,
}
GEMMA_CAPS = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 8.0, "query_pre_attn_scalar": 8}
GEMMA4 = {
    "num_hidden_layers": 4,
    "layer_types": SHARED_KEYS * 2,
    "per_layer_config": {1: {"head_dim": 16}, 3: {"head_dim": 16}},
    "vocab_size_per_layer_input": 416,
}
GEMMA3N = {
    "num_hidden_layers": 4,
    "layer_types": SHARED_KEYS * 2,
    "num_kv_shared_layers": 2,
    "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    "vocab_size_per_layer_input": 416,
}
LLAMA4 = {
    "layer_types": ["chunked_attention", "full_attention"],
    "no_rope_layers": [1, 0],
    "attention_chunk_size": LOCAL,
    "moe_layers": [1],
}
QWEN4 = {
    "indexer_n_heads": 8,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
    "ple_layer_ids": [1],
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 101,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 2,
}
DOTS3 = {
    "layer_types": ["indexed_attention", "sliding_attention"],
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 8,
    "swa_qk_rope_head_dim": 8,
}
BOTH_KINDS = {"layer_types": SHARED_KEYS}
CLIPPED = {"clip_qkv": 1.5}
DECODER = {"is_decoder": True}
BERTS = [
    "bert",
    "bert-generation",
    "camembert",
    "data2vec-text",
    "electra",
    "ernie",
    "megatron-bert",
    "rembert",
]
BERTS += ["roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl"]
VISION = {"num_hidden_layers": 1}

# What else a model type needs, or what makes its own arithmetic visible.
OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(BERTS, DECODER),
    **dict.fromkeys(["granite", "granitemoe", "granitemoeshared"], MULTIPLIERS),
    "granite_swa": {**MULTIPLIERS, "layer_types": SHARED_KEYS},
    "granitemoe_swa": {**MULTIPLIERS, "layer_types": SHARED_KEYS},
    **dict.fromkeys(["gemma2", "vaultgemma"], GEMMA_CAPS),
    "dots3_note_text": DOTS3,
    **dict.fromkeys(["laguna", "ministral", "cwm", "exaone4", "exaone_moe"], BOTH_KINDS),
    **dict.fromkeys(["olmo", "olmoe"], CLIPPED),
    "qwen4_exp_text": QWEN4,
    "bamba": {**MAMBA2, "attn_layer_indices": [1], "num_hidden_layers": 3},
    "big_bird": {**DECODER, "attention_type": "original_full"},
    "blt": {
        "encoder_hash_byte_group_vocab": 101,
        "local_attention_window_len": LOCAL,
        "encoder_config": {"sliding_window": LOCAL},
    },
    "cohere": {"logit_scale": 0.5},
    "cohere2": {"logit_scale": 0.5},
    "cohere2_moe": {"logit_scale": 0.5, "mlp_layer_types": ["dense", "sparse"]},
    "cohere_compass_text": {
        "layer_types": SHARED_KEYS,
        "logit_scale": 0.5,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 1.5}},
    "deepseek_v2": {"first_k_dense_replace": 1},
    "deepseek_v4": {
        "num_hidden_layers": 3,
        "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention", "sliding_attention"],
        "mlp_layer_types": ["hash_moe", "moe", "moe"],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 16},
        "num_key_value_heads": 1,
        "o_groups": 2,
        "index_topk": 4,
        "partial_rotary_factor": 0.5,
    },
    "doge": {"sliding_window": None},
    "dots3_note": {
        "text_config": DOTS3,
        "vision_config": {"num_hidden_layers": 1, "mlp_layer_types": ["dense"], "adapter_in_dim": 32},
        "audio_config": {"adapter_input_size": 32},
    },
    "falcon_h1": {
        **MAMBA2,
        "mamba_d_ssm": 64,
        "lm_head_multiplier": 0.5,
        "embedding_multiplier": 1.5,
        "key_multiplier": 0.7,
        "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 1.0],
        "mlp_multipliers": [1.1, 0.9],
    },
    "gemma3": {"text_config": GEMMA_CAPS, "vision_config": VISION},
    "gemma3_text": GEMMA_CAPS,
    "gemma3n": {"text_config": GEMMA3N},
    "gemma3n_text": GEMMA3N,
    "gemma4": {"text_config": GEMMA4},
    "gemma4_text": GEMMA4,
    "gemma4_unified": {"text_config": GEMMA4},
    "gemma4_unified_text": GEMMA4,
    "got_ocr2": {"vision_config": {"num_hidden_layers": 1, "image_size": 64, "global_attn_indexes": [0]}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_oss": {"rope_parameters": YARN},
    "granitemoehybrid": {**MAMBA2, **MULTIPLIERS, "layer_types": ["linear_attention", "full_attention"]},
    "hrm_text": {"embedding_scale": 4.0},
    "hy_v4": {"indexer_types": ["full", "shared"]},
    "inkling_text": {
        "rel_extent": LOCAL,
        "log_scaling_n_floor": ORIGINAL,
        "logits_mup_width_multiplier": 2.0,
        "mlp_layer_types": ["dense", "sparse"],
    },
    "inkling2_text": {"rel_extent": LOCAL, "log_scaling_n_floor": ORIGINAL, "n_layers_per_attn_res_block": 1},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama4": {"text_config": LLAMA4, "vision_config": {"num_hidden_layers": 1, "image_size": 28}},
    "llama4_text": LLAMA4,
    "mamba2": {"num_heads": 8, "n_groups": 2},
    "minicpm3": {"scale_emb": 1, "dim_model_base": 16},
    "minimax": {"layer_types": ["linear_attention", "full_attention"], "block_size": 16},
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"],
        "mlp_layer_types": ["dense", "sparse"],
        "index_n_heads": 2,
        "index_block_size": 8,
        "index_topk_blocks": 2,
    },
    "ministral3": {"rope_parameters": {**YARN, "llama_4_scaling_beta": 0.5}},
    "mllama": {
        "text_config": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
        "vision_config": {"num_global_layers": 1, "intermediate_layers_indices": [0], "image_size": 28},
    },
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2},
    "phi4_multimodal": {"rope_parameters": {**LONGROPE, **FACTORS}, "sliding_window": None},
    "qwen4_exp": {"text_config": QWEN4},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        **DECODER,
        "attn_layers": ["local", "lsh"],
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [16, 32],
        "local_attn_chunk_length": 16,
        "lsh_attn_chunk_length": 16,
        "num_buckets": 4,
        "hash_seed": 0,
    },
    "roc_bert": {**DECODER, "pronunciation_embed_dim": 16, "shape_embed_dim": 16},
    "rwkv": {"rescale_every": 1},
    "smollm3": {"no_rope_layers": [1, 0]},
    "stablelm": {"qk_layernorm": True},
    "xmod": {**DECODER, "default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_mem_blocks": 2,
        "num_key_value_heads": 4,
        "use_mem_rope": True,
        "use_shared_attention_adapter": True,
    },
    "zaya": {"layer_types": ["hybrid", "hybrid_sliding"], "num_experts_per_tok": 1},
}

# name -> (model type, fields that differ)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-dynamic": (
        "llama",
        {
            "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        },
    ),
    "llama-linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "llama-llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": ORIGINAL,
            }
        },
    ),
    "llama-longrope": ("llama", {"rope_parameters": {**LONGROPE, **FACTORS}}),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "deepseek_v3-yarn": ("deepseek_v3", {"rope_parameters": YARN}),
    "phi3-longrope": ("phi3", {"rope_parameters": {**LONGROPE, **FACTORS}, "sliding_window": None}),
    "phimoe-longrope": (
        "phimoe",
        {
            "rope_parameters": {**LONGROPE, **FACTORS, "short_mscale": 1.1, "long_mscale": 1.3},
            "sliding_window": None,
        },
    ),
    "minicpm3-longrope": ("minicpm3", {"rope_parameters": {**LONGROPE, **FACTORS}}),
    "qwen2-sliding": (
        "qwen2",
        {
            "use_sliding_window": True,
            "max_window_layers": 1,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "qwen3-sliding": (
        "qwen3",
        {
            "use_sliding_window": True,
            "max_window_layers": 1,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "doge-moe": ("doge", {"is_moe": True}),
    "falcon-alibi": ("falcon", {"alibi": True, "multi_query": False, "num_kv_heads": None}),
    "falcon-new-decoder": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-sequential": (
        "falcon",
        {"parallel_attn": False, "bias": True, "multi_query": False, "num_kv_heads": None},
    ),
    "gemma4_text-moe": (
        "gemma4_text",
        {
            "enable_moe_block": True,
            "top_k_experts": 2,
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 0,
            "final_logit_softcapping": 8.0,
        },
    ),
    "gemma4_text-shared": ("gemma4_text", {"num_kv_shared_layers": 2, "use_double_wide_mlp": True}),
    "gpt2-scaled": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    "gpt_bigcode-multi-head": ("gpt_bigcode", {"multi_query": False}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "opt-350m": ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True, "use_qkv_bias": True}),
    "bert-encoder": ("bert", {"is_decoder": False}),
    "roberta-encoder": ("roberta", {"is_decoder": False}),
    "electra-encoder": ("electra", {"is_decoder": False}),
    "big_bird-encoder": (
        "big_bird",
        {"is_decoder": False, "attention_type": "block_sparse", "block_size": 4},
    ),
    "xlm-causal": ("xlm", {"causal": True}),
    "reformer-unseeded": ("reformer", {"hash_seed": None}),
}


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
    given.update(special_ids(known, vocab_size))
    layers = next((f for f in ("num_hidden_layers", "n_layer", "num_layers") if f in given), None)
    for field, kinds in layer_kinds(kind).items():
        if layers is not None and field in known:
            given[layers] = max(int(given[layers] or 0), len(kinds))
    for field, kinds in layer_kinds(kind).items():
        if layers is not None and field in known:
            given[field] = [kinds[i % len(kinds)] for i in range(given[layers])]
    if "kv_lora_rank" in known:  # latent attention has one key for every query head
        given["num_key_value_heads"] = given["num_attention_heads"]
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


# Parameters that a random draw would take out of their range: decay rates, step sizes, learned scales of whole branches.
KEPT = (
    *(
        "A_log",
        "dt_bias",
        "dt_proj",
        "dt_layernorm",
        "time_decay",
        "time_first",
        "time_mix",
        "recurrent_param",
    ),
    *("decay", "slope", "inv_freq", "lambda", "alpha", "beta", "layer_scale", "layer_scalar", "gate_bias"),
)


def build(name: str, seed: int = 0, gain: float = 1.0, window: int = WINDOW) -> Any:
    """A model in float32 with random weights. With `gain` 0.1 its logits are nearly flat, as those of an early checkpoint.

    With the default, next-token distributions differ by nats between contexts: matrices preserve or amplify the variance of
    what they multiply, logits have a standard deviation of 3, biases and the weights of norms are perturbed.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    tokenizer = tiny_models.tokenizer("byte_level")
    config = tiny(name, len(tokenizer) + SPECIAL, window)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if not parameter.is_floating_point() or any(word in path for word in KEPT):
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter is embedding or "embed_pos" in path or "wpe" in path:
                parameter.copy_(noise * 0.5 * min(1.0, gain))
            elif head is not None and parameter is head.weight:
                parameter.copy_(noise * 3 * gain / math.sqrt(parameter.shape[-1]))
            elif parameter.dim() < 2:
                parameter.add_(noise * 0.1 * min(1.0, gain))
            elif "conv" in path:
                parameter.copy_(noise / math.sqrt(math.prod(parameter.shape[1:])))
            else:
                parameter.copy_(
                    noise * gain / math.sqrt(math.sqrt(parameter.shape[-1] * parameter.shape[-2]))
                )
    return model


def save(folder: Path, name: str, seed: int = 0, gain: float = 1.0, window: int = WINDOW) -> Path:
    """Writes `build`'s model as a checkpoint directory, with a tokenizer, and returns the directory.

    The text part of a multimodal model lies under the configuration of the whole, as on the hub.
    """
    tokenizer = tiny_models.tokenizer("byte_level")
    model = build(name, seed, gain, window)
    model.save_pretrained(folder)
    whole = tiny(name, len(tokenizer) + SPECIAL, window)
    if whole.model_type != model.config.model_type:
        whole.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
