"""The packed forward against plain transformers in float64, on architectures with every quirk we support."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_models
from evalengine.checkpoints.resolve import discover
from evalengine.errors import UserError
from evalengine.model.torch_backend import TorchBackend
from evalengine.plan import packing
from evalengine.plan.encoding import Sequences

TREE = ("llama", "qwen2", "mistral", "gemma2", "gpt2", "gpt_neox", "opt", "granite", "cohere")
PLAIN = ("bloom", "mamba")


def shared_sequences(vocab: int, seed: int = 0, prefix: int = 0) -> Sequences:
    """Contexts of all lengths with shared beginnings, equal rows, one-token and long continuations."""
    rng = np.random.default_rng(seed)
    shots = rng.integers(0, vocab, size=prefix)
    lists, starts = [], []
    for _ in range(12):
        context = np.concatenate([shots, rng.integers(0, vocab, size=rng.integers(1, 90))])
        for _ in range(rng.integers(1, 4)):
            tail = rng.integers(0, vocab, size=rng.integers(1, 9))
            lists.append(np.concatenate([context, tail]).astype(np.int32))
            starts.append(len(context))
    offset = np.concatenate([[0], np.cumsum([len(t) for t in lists])]).astype(np.int64)
    return Sequences(np.concatenate(lists), offset, np.asarray(starts, np.int32))


def truth(path: Path, sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihoods by transformers in float64 with eager attention, one sequence at a time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    loglik, greedy = [], []
    with torch.inference_mode():
        for s in range(len(sequences)):
            ids = torch.from_numpy(sequences.tokens(s).astype(np.int64))
            logprob = model(input_ids=ids[None, :-1], use_cache=False).logits[0].log_softmax(-1)
            start = int(sequences.start[s])
            rows, targets = logprob[start - 1 :], ids[start:]
            loglik.append(float(rows.gather(1, targets[:, None]).sum()))
            greedy.append(bool((rows.argmax(-1) == targets).all()))
    return np.asarray(loglik), np.asarray(greedy)


def backend_for(path: Path, **options: object) -> TorchBackend:
    backend = TorchBackend(device="cpu", dtype="float32", **options)  # type: ignore[arg-type]
    backend.load(discover([path])[0])
    return backend


def packs(backend: TorchBackend, sequences: Sequences) -> bool:
    """Whether all of these sequences run in packed batches."""
    return all(part.way == "packed" for part in backend.parts(sequences))


@pytest.mark.parametrize("architecture", [*TREE, *PLAIN])
def test_scores_equal_transformers_in_float64(architecture: str, tmp_path: Path) -> None:
    path = tiny_models.save(tmp_path / "m", architecture)
    sequences = shared_sequences(300)
    backend = backend_for(path, batch_tokens=200)
    assert packs(backend, sequences) == (architecture in TREE)
    assert bool(backend.notes) == (architecture in PLAIN), "a model that falls back says so"
    scores = backend.score(sequences)
    loglik, greedy = truth(path, sequences)
    np.testing.assert_allclose(scores.loglik, loglik, atol=5e-4, rtol=1e-5)
    assert (scores.greedy == greedy).all()


@pytest.mark.parametrize(
    ("architecture", "parts"),
    [
        ("gpt2", 2),
        ("gpt_neox", 2),
        ("opt", 4),
        *((a, 3) for a in TREE if a not in ("gpt2", "gpt_neox", "opt")),
    ],
)
def test_the_last_layer_runs_on_scored_rows(architecture: str, parts: int, tmp_path: Path) -> None:
    """The values are test_scores_equal_transformers_in_float64's; here, that fewer rows are computed."""
    backend = backend_for(tiny_models.save(tmp_path / "m", architecture))
    last = backend.forward.last_layer
    assert last is not None and len(last.narrowed) == parts
    sequences = shared_sequences(300)
    (batch,) = packing.pack(sequences, backend.batch_tokens)
    assert len(batch.row_R) < len(batch.token_N)
    narrowed = last.narrowed
    inner = [m for part in narrowed for m in part.modules() if m not in narrowed and hasattr(m, "weight")]
    assert bool(inner) == (architecture != "opt"), "OPT's feed-forward block is no module of its own"
    seen: set[int] = set()
    for module in inner:
        module.register_forward_pre_hook(lambda _, args: seen.add(args[0].shape[-2]))
    backend.score(sequences)
    assert seen == ({len(batch.row_R)} if inner else set())
    last.release()
    assert not any("forward" in vars(m) for m in backend.model.modules())


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mistral", "gpt2"])
def test_a_kept_prefix_changes_nothing(architecture: str, tmp_path: Path) -> None:
    path = tiny_models.save(tmp_path / "m", architecture)
    sequences = shared_sequences(300, prefix=130)
    assert next(iter(packing.pack(sequences, 100))).is_prefix
    scores = backend_for(path, batch_tokens=100).score(sequences)
    np.testing.assert_allclose(scores.loglik, truth(path, sequences)[0], atol=5e-4, rtol=1e-5)


def test_the_head_that_a_model_keeps_to_itself_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_models.save(tmp_path / "m", "llama")
    monkeypatch.setattr("evalengine.model.proof.head_candidates", lambda model: [])
    sequences = shared_sequences(300)
    backend = backend_for(path)
    assert "output layer" in backend.notes[0]
    np.testing.assert_allclose(
        backend.score(sequences).loglik, truth(path, sequences)[0], atol=5e-4, rtol=1e-5
    )


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_swapping_weights_in_place_equals_loading_anew(architecture: str, tmp_path: Path) -> None:
    paths = [tiny_models.save(tmp_path / f"m{i}", architecture, seed=i) for i in range(3)]
    sequences = shared_sequences(300)
    warm = TorchBackend(device="cpu", dtype="float32")
    for path in [*paths, paths[0]]:
        warm.load(discover([path])[0])
        module = warm.model
        np.testing.assert_array_equal(warm.score(sequences).loglik, backend_for(path).score(sequences).loglik)
    warm.load(discover([paths[1]])[0])
    assert warm.model is module, "one module serves all checkpoints of an architecture"


def test_batch_size_does_not_change_picks(tmp_path: Path) -> None:
    path = tiny_models.save(tmp_path / "m", "llama")
    sequences = shared_sequences(300, seed=4)
    reference = backend_for(path, batch_tokens=2048).score(sequences)
    for batch_tokens in (1, 64, 300):
        scores = backend_for(path, batch_tokens=batch_tokens).score(sequences)
        np.testing.assert_allclose(scores.loglik, reference.loglik, atol=1e-4)
        assert (scores.greedy == reference.greedy).all()


def test_stored_bfloat16_is_scored_in_float32(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    path = tiny_models.save(tmp_path / "m", "llama")
    AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).save_pretrained(tmp_path / "b")
    tiny_models.tokenizer("byte_level").save_pretrained(tmp_path / "b")
    sequences = shared_sequences(300)
    scores = backend_for(tmp_path / "b").score(sequences)
    np.testing.assert_allclose(scores.loglik, truth(tmp_path / "b", sequences)[0], atol=5e-4, rtol=1e-5)


def test_sharded_weights_are_read(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    path = tiny_models.save(tmp_path / "m", "llama")
    AutoModelForCausalLM.from_pretrained(path).save_pretrained(tmp_path / "s", max_shard_size="20KB")
    tiny_models.tokenizer("byte_level").save_pretrained(tmp_path / "s")
    assert len(list((tmp_path / "s").glob("*.safetensors"))) > 2
    sequences = shared_sequences(300)
    expected = backend_for(path).score(sequences).loglik
    np.testing.assert_array_equal(backend_for(tmp_path / "s").score(sequences).loglik, expected)


def test_a_file_without_a_tensor_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = tiny_models.save(tmp_path / "m", "llama")
    tensors = load_file(path / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="does not hold the model"):
        backend_for(path)


def test_out_of_memory_halves_the_batch_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_models.save(tmp_path / "m", "llama")
    sequences = shared_sequences(300)
    backend = backend_for(path, batch_tokens=800)
    expected = backend.score(sequences).loglik
    forward = backend.model.base_model.forward

    def small_machine(input_ids: torch.Tensor, **kwargs: object) -> object:
        if input_ids.numel() > 300:
            torch.empty(1 << 62, dtype=torch.uint8)  # the allocator's own error
        return forward(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(backend.model.base_model, "forward", small_machine)
    backend._parts.clear()
    np.testing.assert_allclose(backend.score(sequences).loglik, expected, atol=1e-4)
    assert backend.batch_tokens == 200
    assert "ran out of memory" in backend.notes[-1]
    monkeypatch.setattr("evalengine.model.torch_backend.out_of_memory", lambda error: True)
    backend.batch_tokens = 10
    monkeypatch.setattr(
        backend.model.base_model, "forward", lambda **_: torch.empty(1 << 62, dtype=torch.uint8)
    )
    with pytest.raises(UserError, match="single item"):
        backend.score(sequences)


def test_keys_of_blocks_are_gathered_once_for_all_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (discover([tiny_models.save(tmp_path / f"m{i}", seed=i)])[0] for i in range(2))
    backend, made = TorchBackend(device="cpu", batch_tokens=256), []
    buckets = packing.buckets
    monkeypatch.setattr(packing, "buckets", lambda batch: made.append(batch) or buckets(batch))
    monkeypatch.setattr("evalengine.model.tree_attention.takes", lambda query, value: False)
    sequences = shared_sequences(300, prefix=packing.SHARED_PREFIX + 4)
    backend.load(first)
    found = [backend.score(sequences)]
    (part,) = backend.parts(sequences)
    assert len(part.batches) > 2 and made
    backend.load(second)
    made.clear()
    found.append(backend.score(sequences))
    found.append(backend.score(sequences))
    assert made == []
    np.testing.assert_array_equal(found[1].loglik, found[2].loglik)
    assert np.abs(found[0].loglik - found[1].loglik).max() > 1
