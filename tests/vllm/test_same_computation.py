"""Where vLLM would compute something else than the checkpoint means: it is noticed before anything is scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_models
from conftest import config, plain_forward
from evalengine.checkpoints import Checkpoint
from evalengine.checkpoints.resolve import discover
from evalengine.errors import UserError
from evalengine.plan.encoding import Sequences

VOCABULARY = len(tiny_models.tokenizer("byte_level"))


def some_sequences(longest: int, vocabulary: int = VOCABULARY) -> Sequences:
    """Pairs of choices behind contexts of up to `longest` tokens."""
    rng = np.random.default_rng(11)
    lists = []
    for length in (1, 9, longest // 2, longest - 2):
        context = rng.integers(0, vocabulary, length)
        lists += [np.concatenate([context, rng.integers(0, vocabulary, 3)]) for _ in range(2)]
    offset = np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int64)
    starts = np.array([len(x) - 3 for x in lists], np.int32)
    return Sequences(np.concatenate(lists).astype(np.int32), offset, starts)


def write(folder: Path, config: Any, auto: str = "AutoModelForCausalLM", spread: float = 0.2) -> Checkpoint:
    """A checkpoint of random weights."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, auto).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, spread)
    model.save_pretrained(folder)
    tiny_models.tokenizer("byte_level").save_pretrained(folder)
    return discover([folder])[0]


def rewrite(checkpoint: Checkpoint, change: Any) -> None:
    """Changes the tensors of a checkpoint's one file."""
    from safetensors.torch import load_file, save_file

    file = checkpoint.path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def phi3_longrope() -> Any:
    import transformers

    return transformers.Phi3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=160,
        original_max_position_embeddings=40,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0 + 0.1 * i for i in range(16)],
            "long_factor": [2.0 + 0.8 * i for i in range(16)],
        },
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def test_rotary_factors_that_depend_on_the_length(engine: Any, tmp_path: Path) -> None:
    """vLLM takes the long factors for every sequence, unless its window ends where they begin (its own choice)."""
    checkpoint = write(tmp_path / "phi3", phi3_longrope())
    with pytest.raises(
        UserError, match=r"phi3 otherwise than transformers: by .* nats .*longrope.*--backend torch"
    ):
        engine(max_model_len=160).load(checkpoint)
    short = engine()
    short.load(checkpoint)
    sequences = some_sequences(40)
    expected = plain_forward(checkpoint.path, sequences)[0]
    np.testing.assert_allclose(short.score(sequences).loglik, expected, rtol=0, atol=1e-3)
    with pytest.raises(UserError, match="vLLM runs this model with 40 at most"):
        short.score(some_sequences(60))


@pytest.mark.parametrize("flat_first", [True, False])
def test_a_flat_checkpoint_does_not_change_the_next(flat_first: bool, engine: Any, tmp_path: Path) -> None:
    spreads = [0.001, 0.2] if flat_first else [0.2, 0.001]
    sequences = some_sequences(100)
    backend = engine()
    for spread in spreads:
        checkpoint = write(tmp_path / f"bloom{spread}", config("bloom", VOCABULARY, 0), spread=spread)
        backend.load(checkpoint)
        expected = plain_forward(checkpoint.path, sequences)[0]
        np.testing.assert_allclose(backend.score(sequences).loglik, expected, rtol=0, atol=1e-3)
    assert backend.swaps == 1


def test_another_configuration_is_not_swapped_in(engine: Any, tmp_path: Path) -> None:
    """The same tensors under another rotary base are another model."""
    sequences = some_sequences(100)
    backend = engine()
    scores = []
    for theta in (10_000.0, 50.0):
        changed = config("llama", VOCABULARY, 0)
        changed.rope_parameters = {"rope_type": "default", "rope_theta": theta}
        checkpoint = write(tmp_path / f"theta{theta:.0f}", changed)
        backend.load(checkpoint)
        expected = plain_forward(checkpoint.path, sequences)[0]
        scores.append(backend.score(sequences).loglik)
        np.testing.assert_allclose(scores[-1], expected, rtol=0, atol=1e-3)
    assert np.abs(scores[0] - scores[1]).max() > 0.5
    assert backend.swaps == 0


def test_items_longer_than_was_compared_are_compared_first(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first comparison covers 16 tokens here, and items of 100 need another."""
    from evalengine.vllm import backend as module

    monkeypatch.setattr(module, "FIRST", 16)
    changed = config("llama", VOCABULARY, 0)
    changed.rms_norm_eps = 3e-6  # a configuration that no other test has compared
    checkpoint = write(tmp_path / "longer", changed)
    backend = engine()
    backend.load(checkpoint)
    assert backend._proof.length == 16
    sequences = some_sequences(100)
    expected = plain_forward(checkpoint.path, sequences)[0]
    np.testing.assert_allclose(backend.score(sequences).loglik, expected, rtol=0, atol=1e-3)
    assert backend._proof.length == 128


def test_ids_beyond_the_embedding(engine: Any, references: Any) -> None:
    backend = engine()
    backend.load(references["llama", 0].checkpoint)
    with pytest.raises(UserError, match=rf"gives id {VOCABULARY + 6}, the embedding has {VOCABULARY} rows"):
        backend.score(Sequences(np.array([1, VOCABULARY + 6, 2], np.int32), np.array([0, 3]), np.array([2])))


def test_a_model_that_attends_to_the_right(engine: Any, tmp_path: Path) -> None:
    import transformers

    bert = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
    )
    checkpoint = write(tmp_path / "bert", bert, "AutoModelForCausalLM")
    with pytest.raises(UserError, match="bert cannot be scored: its tokens attend to the right"):
        engine().load(checkpoint)


def test_a_tied_configuration_with_a_head_of_its_own(engine: Any, tmp_path: Path) -> None:
    checkpoint = write(tmp_path / "tied", config("qwen2", VOCABULARY, 0))
    backend = engine()
    backend.load(checkpoint)

    def same_head(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    def own_head(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = -tensors["model.embed_tokens.weight"]

    sequences = some_sequences(60)
    scores = backend.score(sequences).loglik
    rewrite(checkpoint, same_head)
    backend.load(checkpoint)
    np.testing.assert_allclose(backend.score(sequences).loglik, scores, rtol=0, atol=1e-3)
    rewrite(checkpoint, own_head)
    with pytest.raises(UserError, match=r"tied has an own lm_head.weight .*--backend torch"):
        backend.load(checkpoint)


def test_files_that_vllm_reads_otherwise(engine: Any, tmp_path: Path) -> None:
    """vLLM follows an index where transformers reads model.safetensors, and reads whatever else ends in .safetensors."""
    checkpoint = write(tmp_path / "files", config("llama", VOCABULARY, 0))
    whole = checkpoint.path / "model.safetensors"
    other = checkpoint.path / "optimizer.safetensors"
    other.write_bytes(whole.read_bytes())
    with pytest.raises(UserError, match=r"move optimizer.safetensors away, or use --backend torch"):
        engine().load(checkpoint)
    other.unlink()
    (checkpoint.path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}})
    )
    with pytest.raises(UserError, match=r"files"):
        engine().load(checkpoint)


def test_weights_of_nan(engine: Any, tmp_path: Path) -> None:
    checkpoint = write(tmp_path / "diverged", config("llama", VOCABULARY, 0))

    def diverge(tensors: dict[str, Any]) -> None:
        tensors["model.norm.weight"][3] = float("nan")

    rewrite(checkpoint, diverge)
    with pytest.raises(UserError, match=r"diverged"):
        engine().load(checkpoint)
