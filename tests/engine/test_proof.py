"""Fast ways are believed for a configuration, not for a checkpoint: what is found, and what happens where one fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_configs
import torch
import torch.nn.functional as F
import transformers
from test_torch_backend import backend_for, packs, shared_sequences, truth

import tiny_models
from evalengine.checkpoints.resolve import discover
from evalengine.errors import UserError
from evalengine.model import proof, twin
from evalengine.model.proof import Mode
from evalengine.model.torch_backend import TorchBackend
from evalengine.plan.encoding import Sequences

SHAPE: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def longrope(original: int = 40) -> Any:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0, 5.0, 7.0, 9.0],
        "original_max_position_embeddings": original,
    }
    return transformers.Phi3Config(**SHAPE, rope_parameters=rope, original_max_position_embeddings=original)


def save(folder: Path, config: Any, spread: float = 0.3, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, spread, generator=generator)
    model.save_pretrained(folder)
    tiny_models.tokenizer("byte_level").save_pretrained(folder)
    return folder


def packed(longest: int) -> Mode:
    return Mode("packed", 0, longest, last_layer=True)


def test_a_length_at_which_arithmetic_changes_is_found_in_the_configuration() -> None:
    assert proof.prove(longrope(), 256, 512).modes[0] == packed(40)
    assert proof.prove(longrope(72), 256, 512).modes[0] == packed(72)
    assert proof.prove(longrope(), 32, 512).modes[0] == packed(32), "shorter than that, nothing changes"


def test_a_length_that_holds_for_one_draw_alone_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = proof.Trial.packed
    lucky = lambda self, length, tokens, draw=0: draw == 0 and real(self, length, tokens)  # noqa: E731
    monkeypatch.setattr(proof.Trial, "packed", lucky)
    found = proof.prove(longrope(), 128, 512)
    assert found.modes == (Mode("alone", 0), Mode("alone"))


def test_what_packs_and_what_does_not() -> None:
    common = SHAPE | {"tie_word_embeddings": False}
    llama = proof.prove(transformers.LlamaConfig(**common), 256, 512)
    assert llama.modes == (packed(256), Mode("alone", 0), Mode("alone")) and not llama.why
    chunked = transformers.Llama4TextConfig(
        **common,
        head_dim=8,
        intermediate_size_mlp=48,
        num_local_experts=4,
        attention_chunk_size=24,
    )
    assert proof.prove(chunked, 256, 512).modes[0].longest == 256
    sinks = transformers.GptOssConfig(
        **common, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=24
    )
    assert proof.prove(sinks, 256, 512).modes[0].longest == 256
    bloom = proof.prove(tiny_models.config("bloom", 400), 256, 512)
    assert bloom.modes == (Mode("padded", 0), Mode("alone", 0), Mode("alone")) and "prefix" in bloom.why


def test_a_deep_model_packs_although_its_layers_amplify_rounding() -> None:
    deep = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    assert proof.prove(deep, 512, 2048).modes[0] == packed(512)
    changes = longrope()
    changes.num_hidden_layers = 30
    assert proof.prove(changes, 128, 512).modes[0] == packed(40), "a change of arithmetic is no rounding"


def test_rounding_is_what_float64_says_it_is() -> None:
    key = (256, 0, 0)
    trial = proof.Trial(twin.make(transformers.LlamaConfig(**SHAPE | {"num_hidden_layers": 24})))
    before = {name: tensor.clone() for name, tensor in trial.forward.model.state_dict().items()}
    rounding = trial.rounding(key)
    assert all(torch.equal(before[name], now) for name, now in trial.forward.model.state_dict().items())
    exact = proof.Trial(twin.make(transformers.LlamaConfig(**SHAPE | {"num_hidden_layers": 24})).double())
    error = proof.distance(*proof.by_sequence(trial.truth(*key), exact.truth(*key)))
    assert error / 5 < rounding < 10 * error
    assert trial.is_rounding(3 * rounding, key) and not trial.is_rounding(2 * proof.LIMIT, key)
    assert not trial.is_rounding(float("nan"), key)


def test_attention_that_is_square_in_the_batch_is_tried_in_batches_that_memory_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DeepSeek 3.2's indexer scores every token of a batch against every other, which no mask takes apart."""
    monkeypatch.setattr(proof, "LARGEST", 1 << 29)
    square = proof.Trial(twin.make(tiny_configs.build("deepseek_v32").config))
    square.head()
    with proof.Largest() as largest:
        tokens = square.fits(32_768)
        assert square.packed(proof.SHORTEST, tokens)
    assert (
        proof.TRIAL_TOKENS <= tokens < 32_768
        and tokens**2 <= largest.elements
        and largest.bytes <= proof.LARGEST
    )
    linear = proof.Trial(twin.make(transformers.LlamaConfig(**SHAPE)))
    linear.head()
    assert linear.fits(32_768) == 32_768 and linear.fits(64) == 64


def test_a_model_that_sees_later_tokens_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    config.is_decoder = False
    with pytest.raises(UserError, match="not a causal language model"):
        proof.prove(config, 64, 128)


@pytest.mark.parametrize("original", [40])
def test_short_sequences_do_not_feel_a_long_one_in_the_same_file(tmp_path: Path, original: int) -> None:
    path = save(tmp_path / "m", longrope(original))
    sequences = shared_sequences(400)
    assert np.diff(sequences.offset).min() < original < np.diff(sequences.offset).max()
    backend = backend_for(path, batch_tokens=300)
    scores = backend.score(sequences)
    np.testing.assert_allclose(scores.loglik, truth(path, sequences)[0], atol=5e-4, rtol=1e-5)
    assert "more than 40 tokens" in " ".join(backend.notes)
    short = sequences.take(np.flatnonzero(np.diff(sequences.offset) <= original))
    np.testing.assert_allclose(backend.score(short).loglik, truth(path, short)[0], atol=5e-4, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "bloom", "mamba", "gpt_neox", "mistral", "gemma2"])
@pytest.mark.parametrize("flat_first", [True, False])
def test_scores_do_not_depend_on_the_order_of_checkpoints(
    architecture: str, flat_first: bool, tmp_path: Path
) -> None:
    flat = tiny_models.save(tmp_path / "flat", architecture, seed=1, spread=0.01)
    late = tiny_models.save(tmp_path / "late", architecture, seed=2, spread=0.4)
    sequences = shared_sequences(300)
    backend = TorchBackend(device="cpu", dtype="float32", batch_tokens=300)
    for path in (flat, late) if flat_first else (late, flat):
        backend.load(discover([path])[0])
        loglik = backend.score(sequences).loglik
        np.testing.assert_allclose(loglik, truth(path, sequences)[0], atol=5e-4, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_longer_sequences_are_proven_when_they_come(architecture: str, tmp_path: Path) -> None:
    path = tiny_models.save(tmp_path / "m", architecture, window=2048)
    ids = np.random.default_rng(0).integers(1, 300, size=906).astype(np.int32)
    sequences = Sequences.of([ids[:900], np.append(ids[:600], ids[900:906]), ids[:30]], [890, 600, 20])
    backend = backend_for(path)
    backend.score(sequences.take(np.array([2])))
    assert backend.proof.length == proof.FIRST
    scores = backend.score(sequences)
    assert backend.proof.length == 1024
    assert packs(backend, sequences) == (architecture != "bloom") == (not backend.notes)
    np.testing.assert_allclose(scores.loglik, truth(path, sequences)[0], atol=5e-4, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "bloom", "mamba", "opt", "mistral", "cohere"])
def test_scores_do_not_depend_on_batches_or_on_other_items(architecture: str, tmp_path: Path) -> None:
    path = tiny_models.save(tmp_path / "m", architecture, seed=2, spread=0.4)
    sequences = shared_sequences(300, seed=1)
    right = truth(path, sequences)[0]
    short = np.flatnonzero(np.diff(sequences.offset) < np.diff(sequences.offset).max())
    for batch_tokens in (64, 2048):
        backend = backend_for(path, batch_tokens=batch_tokens)
        np.testing.assert_allclose(backend.score(sequences).loglik, right, atol=5e-4, rtol=1e-5)
        without = backend.score(sequences.take(short)).loglik
        np.testing.assert_allclose(without, right[short], atol=5e-4, rtol=1e-5)


def test_weights_that_a_forward_rewrites_are_not_swapped_into_its_module(tmp_path: Path) -> None:
    """RWKV divides weights in place at its first forward; a second checkpoint in that module would stay undivided."""
    config = transformers.RwkvConfig(
        vocab_size=400, context_length=256, hidden_size=32, num_hidden_layers=4, rescale_every=2
    )
    sequences = shared_sequences(300, seed=3)
    backend = TorchBackend(device="cpu", dtype="float32")
    for seed in (1, 2):
        path = save(tmp_path / f"m{seed}", config, seed=seed)
        backend.load(discover([path])[0])
        assert backend.proof.rewrites
        np.testing.assert_allclose(
            backend.score(sequences).loglik, truth(path, sequences)[0], atol=1e-3, rtol=1e-5
        )


def test_a_forward_that_raises_in_the_middle_falls_back_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_models.save(tmp_path / "m", "llama")
    sequences = shared_sequences(300)
    backend = backend_for(path, batch_tokens=200)
    calls = 0
    attention = backend.forward.attention.__call__

    def fails_later(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise ValueError("a kernel that this device does not have")
        return attention(*args, **kwargs)

    monkeypatch.setattr(
        type(backend.forward.attention), "__call__", lambda self, *a, **k: fails_later(*a, **k)
    )
    scores = backend.score(sequences)
    assert calls == 4
    np.testing.assert_allclose(scores.loglik, truth(path, sequences)[0], atol=5e-4, rtol=1e-5)
    assert "a kernel that this device does not have" in backend.notes[-1]
    monkeypatch.undo()
    backend.load(discover([path])[0])
    assert not backend.notes and packs(backend, sequences), "the next checkpoint is not the one that failed"


def test_a_checkpoint_that_its_fast_way_gets_wrong_runs_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_models.save(tmp_path / "m", "llama")
    backend = backend_for(path)
    attention = type(backend.forward.attention).__call__

    def broken_kernel(self: Any, *args: Any, **kwargs: Any) -> Any:
        return attention(self, *args, **kwargs) * 1.01

    monkeypatch.setattr(type(backend.forward.attention), "__call__", broken_kernel)
    backend.load(discover([path])[0])
    sequences = shared_sequences(300)
    np.testing.assert_allclose(
        backend.score(sequences).loglik, truth(path, sequences)[0], atol=5e-4, rtol=1e-5
    )
    assert "differ by" in backend.notes[0]


def test_a_twin_is_small_and_leaves_random_numbers_alone() -> None:
    wide = transformers.LlamaConfig(
        vocab_size=100_000,
        hidden_size=4096,
        num_hidden_layers=3,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = twin.make(wide)
    assert torch.equal(torch.rand(3), expected)
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    assert len(model.model.layers) == 3 and model.config.head_dim == twin.HEAD
    assert model.config.num_attention_heads > model.config.num_key_value_heads > 1


@pytest.mark.parametrize(
    ("kinds", "kept"),
    [
        ("full " * 30, 4),
        ("sliding full " * 15, 4),
        ("sliding sliding sliding sliding sliding full " * 4 + "sliding sliding", 13),
        ("full " * 28 + "sliding sliding", 30),
        ("full full sliding full full full full", 4),
        ("full full full", 3),
    ],
)
def test_a_twin_has_every_kind_of_layer_twice_and_the_last_as_the_last(kinds: str, kept: int) -> None:
    layer_types = [f"{kind}_attention" for kind in kinds.split()]
    shape = SHAPE | {"num_hidden_layers": len(layer_types), "use_sliding_window": True, "sliding_window": 8}
    config = transformers.Qwen3Config(**shape, layer_types=layer_types)
    model = twin.make(config)
    assert model.config.layer_types == layer_types[:kept] and len(model.model.layers) == kept
    assert config.layer_types == layer_types, "what is given stays as it is"


def test_a_single_layer_that_does_not_pack_is_found_among_many_that_do() -> None:
    layer_types = ["full_attention"] * 9 + ["conv"] + ["full_attention"] * 2
    config = transformers.Lfm2Config(**SHAPE | {"num_hidden_layers": 12}, layer_types=layer_types)
    assert proof.prove(config, 64, 256).modes[0].way == "padded"
    config.layer_types = ["full_attention"] * 12
    assert proof.prove(config, 64, 256).modes[0].way == "packed"


class OneOtherLayer(transformers.LlamaForCausalLM):
    """Its sixth layer looks at the token before in the row, which nothing in its modules says."""

    def __init__(self, config: transformers.LlamaConfig) -> None:
        super().__init__(config)
        layer = self.model.layers[5]
        whole = layer.forward
        layer.forward = lambda x, *args, **kwargs: whole(x + F.pad(x[:, :-1], (0, 0, 1, 0)), *args, **kwargs)


def test_all_layers_of_code_that_is_not_transformers_are_tried() -> None:
    config = transformers.LlamaConfig(**SHAPE | {"num_hidden_layers": 8})
    assert proof.prove(config, 64, 256).modes[0].way == "packed"
    assert proof.prove(config, 64, 256, OneOtherLayer).modes[0].way != "packed"


def test_ids_beyond_the_embedding_are_refused(tmp_path: Path) -> None:
    backend = backend_for(tiny_models.save(tmp_path / "m", "llama"))
    sequences = shared_sequences(300)
    sequences.token_S[5] = 5000
    with pytest.raises(UserError, match=r"gives id 5000, the embedding has \d+ rows"):
        backend.score(sequences)


CAPACITY = '''
import torch
from transformers import LlamaForCausalLM

class Own(LlamaForCausalLM):
    """Feed-forward blocks that take 300 tokens of a batch, the first ones: the others pass by."""

    def __init__(self, config):
        assert {built}
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.register_forward_hook(self.drop)

    def drop(self, module, args, out):
        taken = torch.arange(out[..., 0].numel(), device=out.device) < 300
        return out * taken.view_as(out[..., 0])[..., None]
'''


@pytest.mark.parametrize("built", ["True", "config.vocab_size > 320"], ids=["twin", "no twin"])
def test_sequences_that_change_each_other_in_a_batch_run_by_themselves(built: str, tmp_path: Path) -> None:
    """Experts with a capacity: rows of one plain forward are not what each gets alone, which the twin or the model shows."""
    path = tiny_models.save(tmp_path / "m", "llama")
    config = json.loads((path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Own"}
    (path / "config.json").write_text(json.dumps(config))
    (path / "modeling_own.py").write_text(CAPACITY.replace("{built}", built))
    rng = np.random.default_rng(0)
    lists = [rng.integers(1, 300, size=size).astype(np.int32) for size in [20] * 30 + [35] * 30]
    backend = TorchBackend(device="cpu", dtype="float32", trust_remote_code=True)
    backend.load(discover([path])[0])
    model = transformers.AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
    with torch.inference_mode():
        expected = []
        for ids in (torch.from_numpy(ids).long() for ids in lists):
            logprob = model(input_ids=ids[None, :-1]).logits[0].log_softmax(-1)
            expected.append(float(logprob.gather(1, ids[1:, None]).sum()))
    found = backend.score(Sequences.of(lists, [1] * 60)).loglik
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert "runs every sequence by itself (slower)" in backend.notes[-1]


@pytest.mark.parametrize("architecture", ["mamba", "bloom"])
def test_rows_of_models_that_do_not_pack_still_share_a_forward(architecture: str, tmp_path: Path) -> None:
    backend = backend_for(tiny_models.save(tmp_path / "m", architecture))
    assert backend.proof.apart and backend.plain_tokens == backend.batch_tokens
    assert [note for note in backend.notes if "by itself" in note] == []
