"""Tiny checkpoints with random weights, of many architectures, and the two kinds of tokenizers; used by several test folders.

Weights are drawn larger than models are initialised with, so that scores differ visibly between choices.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

TEXT = [
    "Question: Which animal is a large grey mammal with a trunk?\nAnswer: the elephant",
    "The glass broke because it fell off the table. True or False? yes no",
    "Ann thanked Eve because Ann had been helped. Passage: In the passage above, does the pronoun refer to the man?",
    "Sentence 1: He kneads dough. Sentence 2: The dough rises slowly in a bowl. Neither True nor False",
    "A. dog B. cat C. bird D. fish E. none of these; the sun rises in the east, café naïve Zürich — 東京 🙂",
]


def byte_level(vocab_size: int = 400) -> Any:
    """Byte-level BPE without BOS, as GPT-2 has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def sentencepiece_like(vocab_size: int = 400) -> Any:
    """Metaspace BPE with byte fallback, a prefix space and BOS put in front of every text, as Llama 2 has it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    pieces = [*special, *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size + 256, special_tokens=pieces, show_progress=False)
    tokenizer.train_from_iterator([line.replace("\n", " ") for line in TEXT * 3], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def config(architecture: str, vocab: int, window: int = 512) -> Any:
    import transformers as t

    common: dict[str, Any] = {"vocab_size": vocab, "max_position_embeddings": window}
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    grouped = {"num_key_value_heads": 2}
    makers: dict[str, Any] = {
        "llama": lambda: t.LlamaConfig(**common, **shape, **grouped, tie_word_embeddings=False),
        "qwen2": lambda: t.Qwen2Config(**common, **shape, **grouped, tie_word_embeddings=True),
        "mistral": lambda: t.MistralConfig(**common, **shape, **grouped, sliding_window=24),
        "gemma2": lambda: t.Gemma2Config(
            **common,
            **shape,
            **grouped,
            head_dim=8,
            sliding_window=24,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=4.0,
            query_pre_attn_scalar=8,
        ),
        "gpt2": lambda: t.GPT2Config(vocab_size=vocab, n_positions=window, n_embd=32, n_layer=2, n_head=4),
        "gpt_neox": lambda: t.GPTNeoXConfig(**common, **shape),
        "opt": lambda: t.OPTConfig(
            **common,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=48,
            word_embed_proj_dim=32,
        ),
        "granite": lambda: t.GraniteConfig(**common, **shape, **grouped, logits_scaling=4.0),
        "cohere": lambda: t.CohereConfig(**common, **shape, **grouped, logit_scale=0.5, pad_token_id=0),
        "bloom": lambda: t.BloomConfig(
            vocab_size=vocab, hidden_size=32, n_layer=2, n_head=4, seq_length=window
        ),
        "mamba": lambda: t.MambaConfig(vocab_size=vocab, hidden_size=32, num_hidden_layers=2, state_size=4),
    }
    made = makers[architecture]()
    made.bos_token_id = made.eos_token_id = made.pad_token_id = 0
    return made


def tokenizer(kind: str) -> Any:
    """A tokenizer that the caller may change."""
    return copy.deepcopy(_trained(kind))


@functools.cache
def _trained(kind: str) -> Any:
    return {"byte_level": byte_level, "sentencepiece_like": sentencepiece_like}[kind]()


def save(
    folder: Path,
    architecture: str = "llama",
    kind: str = "byte_level",
    *,
    seed: int = 0,
    window: int = 512,
    spread: float = 0.3,
    **changed: Any,
) -> Path:
    """Writes a checkpoint directory and returns it. `changed`: fields of its configuration."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tok = tokenizer(kind)
    torch.manual_seed(seed)
    about = config(architecture, len(tok), window)
    for name, value in changed.items():
        setattr(about, name, value)
    model = AutoModelForCausalLM.from_config(about)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and "conv" not in name:
                parameter.normal_(0.0, spread, generator=generator)
            elif name.endswith("bias") and architecture != "mamba":
                parameter.normal_(0.0, 0.1, generator=generator)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    own = AutoTokenizer.from_pretrained(folder)
    if type(own).__module__.startswith("transformers.models."):
        # what transformers' class makes of the vocabulary, as a released checkpoint has it
        own.save_pretrained(folder)
    return folder
