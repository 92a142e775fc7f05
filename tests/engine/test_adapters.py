"""Adapters are scored as peft runs them unmerged, and refused where that is not one plain model."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_models
from evalengine.checkpoints import Checkpoint, fingerprint
from evalengine.checkpoints.resolve import discover
from evalengine.errors import UserError
from evalengine.model.torch_backend import TorchBackend
from evalengine.plan.encoding import Sequences
from evalengine.plan.tokenizer import load_tokenizer

peft = pytest.importorskip("peft")


def adapter(
    folder: Path,
    base: Path,
    seed: int = 0,
    prepare: Callable[[Any], None] = lambda model: None,
    **settings: Any,
) -> Path:
    """An adapter with random weights, large enough that scores move by nats."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    prepare(model)
    kind = settings.pop("kind", peft.LoraConfig)
    wrapped = peft.get_peft_model(model, kind(**{"task_type": "CAUSAL_LM", **settings}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    wrapped.save_pretrained(folder)
    return folder


def sequences() -> Sequences:
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 300, size=n).astype(np.int32) for n in (9, 14, 30, 5)]
    offset = np.concatenate([[0], np.cumsum([len(t) for t in lists])]).astype(np.int64)
    return Sequences(np.concatenate(lists), offset, np.array([5, 10, 25, 2], np.int32))


def unmerged(base: Path, folder: Path, rows: int | None = None) -> np.ndarray:
    """Log-likelihoods by peft's own forward in float32, nothing merged."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows:
        model.resize_token_embeddings(rows)
    model = peft.PeftModel.from_pretrained(model, folder).eval()
    given, loglik = sequences(), []
    with torch.inference_mode():
        for s in range(len(given)):
            ids = torch.from_numpy(given.tokens(s).astype(np.int64))
            start = int(given.start[s])
            logprob = model(input_ids=ids[None, :-1], use_cache=False).logits[0].log_softmax(-1)
            loglik.append(float(logprob[start - 1 :].gather(1, ids[start:, None]).sum()))
    return np.asarray(loglik)


def scored(folder: Path, base: Path | None = None, dtype: str = "float32", **options: Any) -> np.ndarray:
    backend = TorchBackend(device="cpu", dtype=dtype, **options)
    backend.load(discover([folder], base=base)[0])
    return backend.score(sequences()).loglik


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tmp_path_factory.mktemp("base") / "base", "llama")


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "target_modules": ["q_proj", "v_proj"]},
        {"r": 4, "lora_alpha": 32, "use_rslora": True, "target_modules": "all-linear"},
        {"r": 4, "use_dora": True, "target_modules": ["q_proj", "down_proj"]},
        {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
        {"r": 4, "target_modules": ["q_proj"], "trainable_token_indices": [3, 5]},
        {"r": 4, "target_modules": ["embed_tokens", "lm_head"]},
        {
            "kind": peft.IA3Config,
            "target_modules": ["k_proj", "down_proj"],
            "feedforward_modules": ["down_proj"],
        },
        {"kind": peft.LoHaConfig, "r": 4, "target_modules": ["q_proj"]},
    ],
    ids=["lora", "rslora", "dora", "modules_to_save", "tokens", "embeddings", "ia3", "loha"],
)
def test_an_adapter_scores_as_peft_runs_it(llama: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = adapter(tmp_path / "a", llama, **settings)
    loglik = scored(folder)
    np.testing.assert_allclose(loglik, unmerged(llama, folder), atol=1e-4)
    assert np.abs(loglik - scored(llama)).max() > 0.5, "the adapter changes the scores"


def test_a_tied_head_of_its_own(tmp_path: Path) -> None:
    base = tiny_models.save(tmp_path / "base", "qwen2")
    folder = adapter(tmp_path / "a", base, r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    np.testing.assert_allclose(scored(folder), unmerged(base, folder), atol=1e-4)


def test_added_tokens_enlarge_the_base(llama: Path, tmp_path: Path) -> None:
    rows = len(tiny_models.tokenizer("byte_level")) + 7
    folder = adapter(
        tmp_path / "a",
        llama,
        prepare=lambda model: model.resize_token_embeddings(rows),
        r=4,
        target_modules=["q_proj"],
        modules_to_save=["lm_head", "embed_tokens"],
    )
    np.testing.assert_allclose(scored(folder), unmerged(llama, folder, rows), atol=1e-4)


def test_merged_in_float32_whatever_scores(llama: Path, tmp_path: Path) -> None:
    """In bfloat16, scores are those of the merged weights rounded once."""
    folder = adapter(tmp_path / "a", llama, r=4, target_modules=["q_proj", "v_proj"])
    from transformers import AutoModelForCausalLM

    model = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32), folder
    )
    whole = tmp_path / "whole"
    shutil.copytree(llama, whole)
    model.merge_and_unload().save_pretrained(whole)
    np.testing.assert_array_equal(scored(folder, dtype="bfloat16"), scored(whole, dtype="bfloat16"))


def test_a_base_in_half_precision_is_merged_in_full(llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    half = tmp_path / "half"
    shutil.copytree(llama, half)
    AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16).save_pretrained(half)
    folder = adapter(tmp_path / "a", half, r=4, target_modules=["q_proj"])
    np.testing.assert_allclose(scored(folder), unmerged(half, folder), atol=1e-4)


def test_two_adapters_and_their_base_in_any_order(llama: Path, tmp_path: Path) -> None:
    paths = [
        llama,
        *(adapter(tmp_path / f"a{i}", llama, seed=i, r=4, target_modules=["q_proj"]) for i in (1, 2)),
    ]
    alone = {path: scored(path) for path in paths}
    backend = TorchBackend(device="cpu", dtype="float32")
    for path in [*paths, *reversed(paths), llama]:
        backend.load(discover([path])[0])
        np.testing.assert_array_equal(backend.score(sequences()).loglik, alone[path])


def test_the_base_is_found_beside_the_adapter_or_given(llama: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(llama, tmp_path / "models" / "base"))
    folder = adapter(tmp_path / "runs" / "a", base, r=4, target_modules=["q_proj"])
    truth = unmerged(base, folder)
    config = json.loads((folder / "adapter_config.json").read_text())

    def name(base: str) -> None:
        (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))

    name("../../models/base")
    np.testing.assert_allclose(scored(folder), truth, atol=1e-4)
    name("someone/base-on-the-hub")
    with pytest.raises(UserError, match=r"someone/base-on-the-hub.* is not a folder here: .* --base"):
        discover([folder])
    np.testing.assert_allclose(scored(folder, base), truth, atol=1e-4)
    with pytest.raises(UserError, match="--base is the model of adapters"):
        discover([base], base=base)
    shutil.copy(base / "config.json", folder)
    with pytest.raises(UserError, match="is an adapter itself"):
        discover([folder], base=Path(shutil.copytree(folder, tmp_path / "b")))


def printed(folder: Path, base: Path | None = None) -> str:
    return fingerprint(Checkpoint(folder, "m", base=base))


def test_identity_is_base_and_adapter(llama: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", llama, r=4, target_modules=["q_proj"])
    other = adapter(tmp_path / "b", llama, seed=1, r=4, target_modules=["q_proj"])
    prints = {printed(folder, llama), printed(other, llama), printed(llama)}
    another = tiny_models.save(tmp_path / "another", "llama", seed=1)
    prints.add(printed(folder, another))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 2}))
    prints.add(printed(folder, llama))
    assert len(prints) == 5


def test_the_tokenizer_is_its_own_or_the_bases(llama: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", llama, r=4, target_modules=["q_proj"])
    (checkpoint,) = discover([folder])
    assert checkpoint.tokenizer_folder == llama and checkpoint.model_folder == llama
    assert len(load_tokenizer(checkpoint, False)) == len(tiny_models.tokenizer("byte_level"))
    tiny_models.tokenizer("sentencepiece_like").save_pretrained(folder)
    (checkpoint,) = discover([folder])
    assert checkpoint.tokenizer_folder == folder
    assert load_tokenizer(checkpoint, False).bos_token == "<s>"


def test_pickled_adapters_are_trusted_or_refused(llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = adapter(tmp_path / "a", llama, r=4, target_modules=["q_proj"])
    truth = unmerged(llama, folder)
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="--allow-pickle"):
        scored(folder)
    np.testing.assert_allclose(scored(folder, allow_pickle=True), truth, atol=1e-4)


def changed(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


def test_an_adapter_that_does_not_fit_is_refused(llama: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", llama, r=4, target_modules=["q_proj"])
    whole = Path(shutil.copytree(folder, tmp_path / "whole"))
    headless = adapter(tmp_path / "h", llama, r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    changed(headless, lambda tensors: {k: t for k, t in tensors.items() if "lm_head" not in k})
    with pytest.raises(UserError, match=r"cannot be merged into its base .*lm_head\.weight"):
        scored(headless)
    changed(folder, lambda tensors: dict(list(tensors.items())[1:]))
    with pytest.raises(UserError, match=r"lacks .*layers.0.self_attn.q_proj.lora_A"):
        scored(folder)
    changed(
        whole,
        lambda tensors: tensors | {k.replace("layers.0", "layers.7"): t.clone() for k, t in tensors.items()},
    )
    with pytest.raises(UserError, match=r"has no place for .*layers.7"):
        scored(whole)


def test_what_cannot_be_merged_is_refused(llama: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "p", llama, kind=peft.PromptTuningConfig, num_virtual_tokens=3)
    with pytest.raises(UserError, match=r"prompt adapter \(PROMPT_TUNING\)"):
        scored(folder)
    folder = adapter(
        tmp_path / "alora", llama, r=4, target_modules=["q_proj"], alora_invocation_tokens=[301, 302]
    )
    with pytest.raises(UserError, match="cannot be merged"):
        scored(folder)


def test_adapters_name_no_code(llama: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", llama, r=4, target_modules=["q_proj"])
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"megatron_config": {"x": 1}, "megatron_core": "antigravity"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="names code of its own"):
        scored(folder)


def test_an_adapter_saved_without_a_task_type(llama: Path, tmp_path: Path) -> None:
    """peft then writes which class the base has, as `auto_mapping`: that module is not imported."""
    folder = adapter(tmp_path / "a", llama, r=4, target_modules=["q_proj"], task_type=None)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["auto_mapping"]["parent_library"].startswith("transformers.")
    config["auto_mapping"]["parent_library"] = "antigravity"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    sys.modules.pop("antigravity", None)
    np.testing.assert_allclose(scored(folder), unmerged(llama, folder), atol=1e-4)
    assert "antigravity" not in sys.modules


def test_an_adapter_beside_whole_weights_is_refused(llama: Path, tmp_path: Path) -> None:
    both = Path(shutil.copytree(llama, tmp_path / "both"))
    adapter(both, llama, r=4, target_modules=["q_proj"])
    with pytest.raises(UserError, match=r"beside whole weights .*: merge the adapter"):
        discover([both])


def test_the_command_line(
    llama: Path, small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores are lm-eval's with `peft=`; metadata is the adapter's; what the store holds of it is not scored again."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    import evalengine
    from evalengine.benchmarks import load_items, resolve
    from evalengine.cli import main

    folder = adapter(tmp_path / "1B-mix-sft", llama, r=4, target_modules=["q_proj", "v_proj"])
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "org/base"}))
    data = ["--data", str(small_world / "bench"), "--benchmarks", "copa", "--out", str(tmp_path / "scores")]
    assert main(["score", str(folder), *data]) == 1
    assert "give the folder of the base model with --base" in capsys.readouterr().err
    arguments = ["score", str(folder), *data, "--base", str(llama)]
    assert main([*arguments, "--backend", "vllm"]) == 1
    assert "use --backend torch, or merge it into its base" in capsys.readouterr().err
    for scored_now in (1, 0):
        capsys.readouterr()
        assert main([*arguments, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["checkpoints"][0]["scored"] == scored_now
    rows = {row["item"]: row for row in evalengine.load(tmp_path / "scores").to_pylist()}
    assert {(r["scale"], r["mixture"], r["stage"]) for r in rows.values()} == {("1B", "mix", "sft")}
    lm = HFLM(pretrained=str(llama), peft=str(folder), dtype="float32", device="cpu", batch_size=1)
    for item in load_items(resolve("copa", [])[0], small_world / "bench").items[:10]:
        requests = [
            Instance("loglikelihood", {}, pair, i)
            for i, pair in enumerate(zip(item.contexts, item.continuations, strict=True))
        ]
        expected = [loglik for loglik, _ in lm.loglikelihood(requests, disable_tqdm=True)]
        np.testing.assert_allclose(rows[item.id]["loglik"], expected, atol=1e-3)
