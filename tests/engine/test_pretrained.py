"""What a folder's weights mean is what transformers makes of them: the oracle is its own from_pretrained on the folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_models
from evalengine.checkpoints import Checkpoint, fingerprint, weights
from evalengine.checkpoints.pretrained import Loaded, Pretrained
from evalengine.checkpoints.resolve import discover
from evalengine.errors import UserError

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def at(path: Path) -> Checkpoint:
    return Checkpoint(path, path.name)


def load(path: Path, dtype: torch.dtype = torch.float32, **trust: bool) -> Loaded:
    given = {"allow_pickle": False, "trust_remote_code": False} | trust
    return Pretrained(dtype, **given).read(discover([path])[0]).to(torch.device("cpu"))


def truth(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


def assert_same(model: Any, expected: Any) -> None:
    """Every parameter and buffer has the same bits, and so have the logits."""
    for kind in ("named_parameters", "named_buffers"):
        ours = dict(getattr(model, kind)(remove_duplicate=False))
        theirs = dict(getattr(expected, kind)(remove_duplicate=False))
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype, name
            assert torch.equal(tensor, theirs[name]), name
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits, expected(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(*logits)


def changed(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    file = path / "model.safetensors"
    save_file(
        {k: t.contiguous() for k, t in change(load_file(file)).items()}, file, metadata={"format": "pt"}
    )
    return path


def configured(path: Path, **fields: Any) -> Path:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | fields))
    return path


def mixture(folder: Path, kind: str, seed: int, **fields: Any) -> Path:
    """A tiny mixture of experts: transformers fuses its experts, or keeps a router's bias in float32."""
    import transformers as t

    shape: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 400,
    }
    made = {"mixtral": t.MixtralConfig, "qwen3_moe": t.Qwen3MoeConfig, "deepseek_v3": t.DeepseekV3Config}[
        kind
    ](**shape, intermediate_size=48, num_key_value_heads=4, **fields)
    torch.manual_seed(seed)
    model = t.AutoModelForCausalLM.from_config(made)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.uniform_(0.1, 0.2)  # no multiple of what bfloat16 can hold
    model.save_pretrained(folder)
    return folder


EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 24, "num_experts_per_tok": 2, "head_dim": 8},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "moe_intermediate_size": 24,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
    },
}
PLAIN = ["llama", "qwen2", "gemma2", "gpt2", "gpt_neox", "opt", "granite", "cohere", "bloom", "mamba"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", [*PLAIN, *EXPERTS])
def test_loading_and_swapping_equal_transformers(
    architecture: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    paths = []
    for seed in range(2):
        folder = tmp_path / str(seed)
        if architecture in EXPERTS:
            paths.append(mixture(folder, architecture, seed, **EXPERTS[architecture]))
        else:
            paths.append(tiny_models.save(folder, architecture, seed=seed))
    loaded = load(paths[0], dtype)
    assert_same(loaded.model, truth(paths[0], dtype))
    swapped = loaded.refill(discover([paths[1]])[0])
    assert swapped == (architecture not in EXPERTS), "what transformers fuses is loaded anew"
    assert_same(loaded.model if swapped else load(paths[1], dtype).model, truth(paths[1], dtype))


@pytest.mark.parametrize("stored", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_weights_stored_in_another_dtype(stored: torch.dtype, tmp_path: Path) -> None:
    paths = [tiny_models.save(tmp_path / str(seed), "llama", seed=seed) for seed in range(2)]
    for path in paths:
        changed(path, lambda tensors: {k: t.to(stored) for k, t in tensors.items()})
    for dtype in DTYPES:
        loaded = load(paths[0], dtype)
        assert_same(loaded.model, truth(paths[0], dtype))
        assert loaded.refill(discover([paths[1]])[0])
        assert_same(loaded.model, truth(paths[1], dtype))


def test_a_tied_configuration_whose_file_holds_another_head(tmp_path: Path) -> None:
    """transformers keeps a head that differs from the embeddings, and ties one that does not."""
    own = configured(tiny_models.save(tmp_path / "own", "llama"), tie_word_embeddings=True)
    equal = Path(shutil.copytree(own, tmp_path / "equal"))
    changed(equal, lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    absent = Path(shutil.copytree(own, tmp_path / "absent"))
    changed(absent, lambda tensors: {k: t for k, t in tensors.items() if k != "lm_head.weight"})
    for first in (own, equal, absent):
        for second in (own, equal, absent):
            loaded = load(first)
            assert_same(loaded.model, truth(first))
            swapped = loaded.refill(discover([second])[0])
            assert_same(loaded.model if swapped else load(second).model, truth(second))
    assert load(own).notes[0].startswith("its config.json ties the output layer")
    assert load(equal).notes == load(absent).notes == ()
    assert load(equal).refill(discover([absent])[0]), "equal tensors are read into the shared memory"
    assert not load(equal).refill(discover([own])[0])


def test_a_renamed_tensor_is_read_under_its_new_name_only_where_one_fits(tmp_path: Path) -> None:
    """GPT-NeoX's head is embed_out in files; tensors of equal values leave it open which is which."""
    paths = [tiny_models.save(tmp_path / str(seed), "gpt_neox", seed=seed) for seed in range(2)]
    assert "embed_out.weight" in load_file(paths[0] / "model.safetensors")
    loaded = load(paths[0])
    assert loaded.names is not None and loaded.names["embed_out.weight"] == "lm_head.weight"
    alike = tiny_models.save(tmp_path / "alike", "gpt2")
    changed(alike, lambda tensors: {k.removeprefix("transformer."): t for k, t in tensors.items()})
    assert load(alike).names is None, "its norms are all ones"


def test_a_buffer_that_the_model_changed_as_it_ran_is_not_kept(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    paths = [
        configured(tiny_models.save(tmp_path / str(s), "llama", window=32, seed=s), rope_parameters=rope)
        for s in range(2)
    ]
    loaded = load(paths[0])
    with torch.inference_mode():
        loaded.model(input_ids=torch.arange(100)[None])
    assert not loaded.refill(discover([paths[1]])[0])
    fresh = load(paths[0])
    assert fresh.refill(discover([paths[1]])[0])
    assert_same(fresh.model, truth(paths[1]))


def test_a_file_that_is_written_over_changes_no_model_and_one_that_is_cut_is_refused(tmp_path: Path) -> None:
    paths = [tiny_models.save(tmp_path / str(seed), "llama", seed=seed) for seed in range(3)]
    expected = truth(Path(shutil.copytree(paths[1], tmp_path / "kept")))  # transformers maps its files
    loaded = load(paths[0])
    assert loaded.refill(discover([paths[1]])[0])
    for path in paths[:2]:
        with (path / "model.safetensors").open("r+b") as file:
            file.write(bytes((path / "model.safetensors").stat().st_size))
    assert_same(loaded.model, expected)
    file = paths[2] / "model.safetensors"
    stored = weights.headers([file])
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(UserError, match=r"model\.safetensors changed while it was read"):
        weights.fill(loaded.model, stored)


# --- which files


@pytest.mark.parametrize("old_shards", [False, True], ids=["gone", "there"])
def test_one_file_goes_before_an_index(tmp_path: Path, old_shards: bool) -> None:
    from transformers import AutoModelForCausalLM

    new, old = (tiny_models.save(tmp_path / str(seed), "llama", seed=seed) for seed in (1, 2))
    both = tmp_path / "both"
    AutoModelForCausalLM.from_pretrained(old).save_pretrained(both, max_shard_size="40KB")
    assert fingerprint(at(both)) and load(both)
    for shard in both.glob("model-*.safetensors") if not old_shards else []:
        shard.unlink()
    shutil.copy(new / "model.safetensors", both)
    assert at(both).weight_files() == [both / "model.safetensors"]
    (new / "config.json").write_bytes((both / "config.json").read_bytes())
    assert fingerprint(at(both)) == fingerprint(at(new))
    assert_same(load(both).model, truth(new))


def test_shards_that_hold_one_tensor_twice(tmp_path: Path) -> None:
    """As a stale shard beside new ones does: equal values are taken, others refused."""
    path, name = tiny_models.save(tmp_path / "1M-a-pt", "llama"), "model.norm.weight"
    expected = truth(path)
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    first, second = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    save_file(tensors, path / first, metadata={"format": "pt"})
    where = dict.fromkeys(tensors, first) | {name: second}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    save_file({name: tensors[name]}, path / second, metadata={"format": "pt"})
    assert_same(load(path).model, expected)
    save_file({name: tensors[name] * 1.5}, path / second, metadata={"format": "pt"})
    with pytest.raises(UserError, match="hold different values under one name"):
        load(path)


def test_one_pickle_goes_before_an_index_of_pickles(tmp_path: Path) -> None:
    new, old = (tiny_models.save(tmp_path / str(seed), "llama", seed=seed) for seed in (1, 2))
    for path, name in ((new, "pytorch_model.bin"), (old, "pytorch_model-00001-of-00001.bin")):
        torch.save(load_file(path / "model.safetensors"), new / name)
    names = dict.fromkeys(load_file(old / "model.safetensors"), "pytorch_model-00001-of-00001.bin")
    (new / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    expected = truth(new)
    (new / "model.safetensors").rename(tmp_path / "aside.safetensors")
    with pytest.raises(UserError, match="--allow-pickle"):
        load(new)
    assert_same(load(new, allow_pickle=True).model, expected)
    (new / "pytorch_model.bin").unlink()
    assert_same(load(new, allow_pickle=True).model, truth(old))


def test_the_file_that_the_configuration_names_goes_first(tmp_path: Path) -> None:
    path, other = (tiny_models.save(tmp_path / str(seed), "llama", seed=seed) for seed in (1, 2))
    shutil.copy(other / "model.safetensors", path / "averaged.safetensors")
    configured(path, transformers_weights="averaged.safetensors")
    assert_same(load(path).model, truth(path))
    assert_same(load(path).model, truth(other))
    for name in ("../2/model.safetensors", "none.safetensors", "pytorch_model.bin", 3, ""):
        with pytest.raises(UserError, match=r"transformers_weights|is not there"):
            at(configured(path, transformers_weights=name)).weight_files()


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("model-q4.gguf", "llama.cpp's format"),
        ("model.fp16.safetensors", "a variant of the weights"),
        ("consolidated.safetensors", "authors' own code"),
        ("consolidated.00.pth", "authors' own code"),
        ("tf_model.h5", "TensorFlow's weights"),
        ("flax_model.msgpack", "Flax's weights"),
        ("onnx/model.onnx", "an ONNX export"),
        ("model-00001-of-00002.safetensors", "but not model.safetensors.index.json"),
        ("__0_0.distcp", "shards of a training state"),
        ("adapter_model.safetensors", "without adapter_config.json"),
        ("ema.safetensors", "rename it if it holds the whole weights"),
        ("last.pt", "PyTorch's own file"),
        ("training_args.bin", "model.safetensors is missing"),
    ],
)
def test_other_formats_are_named(file: str, says: str, tmp_path: Path) -> None:
    path = tiny_models.save(tmp_path / "m", "llama")
    (path / "model.safetensors").unlink()
    (path / file).parent.mkdir(exist_ok=True)
    (path / file).write_bytes(b"x" * 32)
    with pytest.raises(UserError, match="has no weights that transformers reads") as refused:
        at(path).weight_files(allow_pickle=True)
    assert says in str(refused.value)
    if file.endswith(".gguf"):
        (path / "config.json").unlink()
        with pytest.raises(UserError, match=r"llama\.cpp"):
            discover([path])


# --- names and what they lack


@pytest.mark.parametrize("wrapped", ["_orig_mod.{}", "module.{}", "module._orig_mod.{}", "inside"])
def test_the_names_of_wrappers_are_taken_off(wrapped: str, tmp_path: Path) -> None:
    path = tiny_models.save(tmp_path / "m", "llama")
    expected = truth(path)

    def name(key: str) -> str:
        if wrapped == "inside":
            return key.replace(".layers.0.", ".layers.0._fsdp_wrapped_module._orig_mod.")
        return wrapped.format(key)

    plain = Path(shutil.copytree(path, tmp_path / "plain"))
    changed(path, lambda tensors: {name(k): t for k, t in tensors.items()})
    loaded = load(path)
    assert_same(loaded.model, expected)
    assert loaded.notes == ()
    assert loaded.refill(discover([plain])[0]), "one module serves both"
    if not wrapped.startswith("module") and wrapped != "inside":
        changed(path, lambda tensors: tensors | {"model.norm.weight": torch.ones(32)})
        with pytest.raises(UserError, match=r"holds model\.norm\.weight twice, once in a wrapper"):
            load(path)


def test_a_model_without_its_head_is_named(tmp_path: Path) -> None:
    from transformers import AutoModel

    path = tiny_models.save(tmp_path / "m", "llama")
    AutoModel.from_pretrained(path).save_pretrained(path)
    with pytest.raises(UserError, match=r"has no output layer \(lm_head.weight\)"):
        load(path)
    tied = tiny_models.save(tmp_path / "tied", "gpt2")
    expected = truth(tied)
    changed(tied, lambda tensors: {k.removeprefix("transformer."): t for k, t in tensors.items()})
    assert_same(load(tied).model, expected)


def test_tensors_that_the_model_does_not_have(tmp_path: Path) -> None:
    """Buffers of older versions are left out silently, as transformers does; anything else is named."""
    path = tiny_models.save(tmp_path / "m", "llama")
    expected = truth(path)
    changed(path, lambda tensors: tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    loaded = load(path)
    assert loaded.notes == ()
    assert_same(loaded.model, expected)
    changed(path, lambda tensors: tensors | {"model.layers.9.mlp.up_proj.weight": torch.ones(48, 32)})
    loaded = load(path)
    assert loaded.notes[0].startswith("1 tensors of its files are not in the model")
    assert "model.layers.9.mlp.up_proj.weight" in loaded.notes[0]
    assert_same(loaded.model, expected)


def test_an_adapter_beside_the_whole_weights_is_not_left_out_in_silence(tmp_path: Path) -> None:
    def adapted(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return tensors | {
            f"model.layers.0.self_attn.q_proj.lora_{part}.weight": torch.ones(2, 32) for part in "AB"
        }

    path = changed(tiny_models.save(tmp_path / "m", "llama"), adapted)
    with pytest.raises(
        UserError, match=r"m holds an adapter beside its weights \(\S*q_proj\.lora_A\.weight\), .* merge"
    ):
        load(path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path = tiny_models.save(tmp_path / "m", "llama")
    changed(path, lambda tensors: {k: t for k, t in tensors.items() if "layers.1.mlp" not in k})
    with pytest.raises(UserError, match=r"model.layers.1.mlp.down_proj.weight is missing"):
        load(path)


# --- what is not a causal language model, and quantised ones


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM, not a causal language model"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "not a causal language model"),
        ({"architectures": ["LlamaForTokenClassification"]}, "not a causal language model"),
        ({"architectures": ["Qwen2ForRewardModel"]}, "not a causal language model"),
        ({"is_encoder_decoder": True}, r"an encoder-decoder \(llama\), not a causal language model"),
    ],
)
def test_other_tasks_are_refused(fields: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = configured(tiny_models.save(tmp_path / "m", "llama"), **fields)
    with pytest.raises(UserError, match=says):
        load(path)
    with pytest.raises(UserError, match=says):
        fingerprint(at(path))


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_float8_without_scales_is_a_plain_cast_and_with_scales_or_their_traces_refused(
    kind: str, stored: torch.dtype, tmp_path: Path
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    module = load(tiny_models.save(tmp_path / "first", "llama", seed=1))

    def saved(of: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
        path = changed(tiny_models.save(tmp_path / of, "llama"), change)
        if kind == "pickle":
            torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
            (path / "model.safetensors").unlink()
        assert not module.refill(at(path))
        return path

    def small(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k: t.to(stored) if t.dim() > 1 else t for k, t in tensors.items()}

    def scaled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return tensors | {
            name: (tensors[name] * (torch.finfo(stored).max / tensors[name].abs().max())).to(stored)
        }

    def beside(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return small(tensors) | {name.replace("weight", "weight_scale_inv"): torch.ones(1)}

    loaded = load(saved("small", small), allow_pickle=True)
    assert_same(loaded.model, truth(tmp_path / "small"))
    assert loaded.notes == ("weights in float8 without scales are taken as they stand, as transformers does",)
    for of, change, says in (
        (
            "beside",
            beside,
            r"beside holds \S+ in float8 with scales beside \(\S*up_proj\.weight_scale_inv\), and its config",
        ),
        (
            "scaled",
            scaled,
            rf"scaled holds {name} in float8 up to its largest number .*, but neither scales nor",
        ),
    ):
        with pytest.raises(UserError, match=says):
            load(saved(of, change), allow_pickle=True)


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_whole_numbers_without_scales_are_refused(kind: str, tmp_path: Path) -> None:
    """What bitsandbytes leaves where the quantization_config is lost: transformers takes -127 to 127 for the weights."""
    path, name = tiny_models.save(tmp_path / "m", "llama"), "model.layers.0.mlp.up_proj.weight"
    module = load(tiny_models.save(tmp_path / "first", "llama", seed=1))

    def quantised(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        scale = tensors[name].abs().max() / 127
        return tensors | {name: (tensors[name] / scale).round().to(torch.int8)}

    changed(path, quantised)
    if kind == "pickle":
        torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
        (path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=rf"m holds {name} in whole numbers, .* no quantization_config"):
        load(path, allow_pickle=True)
    assert not module.refill(at(path))


def test_whole_numbers_in_experts_that_transformers_fuses_are_refused(tmp_path: Path) -> None:
    path, name = mixture(tmp_path / "m", "mixtral", 0, **EXPERTS["mixtral"]), "experts.2.w1.weight"

    def quantised(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k: (t * 127).round().to(torch.int8) if k.endswith(name) else t for k, t in tensors.items()}

    changed(path, quantised)
    with pytest.raises(UserError, match=rf"m holds \S*{name} in whole numbers"):
        load(path)


CODE = """
from transformers import LlamaForCausalLM

class Own(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * {factor}
        return out
"""


def test_two_checkpoints_that_differ_in_their_code_alone(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from evalengine.model.torch_backend import TorchBackend
    from evalengine.plan.encoding import Sequences

    tokens = torch.arange(3, 40)
    sequences = Sequences.of([tokens.numpy()], [1])
    backend = TorchBackend(device="cpu", dtype="float32", trust_remote_code=True)
    found = []
    for name, factor in (("a", 1.0), ("b", 0.25)):
        path = tiny_models.save(tmp_path / name, "llama")
        configured(path, auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
        (path / "modeling_own.py").write_text(CODE.format(factor=factor))
        model: Any = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
        with torch.inference_mode():
            logprob = model(input_ids=tokens[None, :-1]).logits[0].log_softmax(-1)
        expected = float(logprob.gather(1, tokens[1:, None]).sum())
        backend.load(discover([path])[0])
        assert backend.score(sequences).loglik[0] == pytest.approx(expected, abs=1e-3)
        found.append(expected)
    assert abs(found[0] - found[1]) > 1


def test_weights_in_float8_with_scales_are_loaded_by_transformers(tmp_path: Path) -> None:
    path = tiny_models.save(tmp_path / "m", "llama")

    def quantise(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        out = dict(tensors)
        for name in [n for n in tensors if n.endswith("_proj.weight")]:
            scale = tensors[name].abs().max() / 448
            out[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
            out[name.replace("weight", "weight_scale_inv")] = scale.reshape(1, 1)
        return out

    changed(path, quantise)
    stored = load_file(path / "model.safetensors")
    configured(path, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    model = load(path).model
    for name in [n for n in stored if n.endswith("_proj.weight")]:
        value = stored[name].float() * stored[name.replace("weight", "weight_scale_inv")]
        torch.testing.assert_close(model.state_dict()[name].float(), value, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "unknown"])
def test_a_quantised_checkpoint_that_cannot_run_here_is_one_sentence(method: str, tmp_path: Path) -> None:
    path = tiny_models.save(tmp_path / "m", "llama")
    configured(path, quantization_config={"quant_method": method, "bits": 4, "load_in_4bit": True})
    with pytest.raises(UserError, match=r"^m cannot be loaded: \S.*"):
        load(path)
