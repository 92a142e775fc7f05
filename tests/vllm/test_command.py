"""What cannot be scored in the usual way, bad input, and the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evalengine
from evalengine.cli import main
from evalengine.errors import UserError
from evalengine.vllm import plugin
from evalengine.vllm.agreement import agreement


def test_a_model_without_a_scoring_variant_is_refused_in_one_sentence(
    engine: Any, references: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(causal: type) -> type:
        raise RuntimeError("this model has no place for a pooler")

    monkeypatch.setattr(plugin, "scoring_variant", broken)
    with pytest.raises(UserError, match=r"llama0 cannot .* no place for a pooler\): use --backend torch"):
        engine().load(references["llama", 0].checkpoint)


def test_models_own_output_layer_is_used_where_the_kernel_cannot_serve_it(
    engine: Any, references: Any, sequences: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evalengine.vllm import pooler

    monkeypatch.setattr(pooler, "find_head", lambda model, like: None)
    reference = references["gemma2", 0]
    backend = engine()
    backend.load(reference.checkpoint)
    np.testing.assert_allclose(backend.score(sequences).loglik, reference.loglik, rtol=0, atol=1e-4)


def test_bad_input_is_one_sentence(
    engine: Any, references: Any, sequences: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evalengine.checkpoints.resolve import discover

    source = references["llama", 0].checkpoint.path
    strange = shutil.copytree(source, tmp_path / "strange")
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps(config | {"architectures": ["StrangeForCausalLM"]}))
    with pytest.raises(
        UserError, match=r"strange has an architecture that vLLM cannot load .*use --backend torch"
    ):
        engine().load(discover([strange])[0])
    with pytest.raises(UserError, match=r"no such setting .*--vllm-arg"):
        engine(nonsense=1).load(references["llama", 0].checkpoint)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "100000")
    with pytest.raises(UserError, match=r"no memory for vLLM's key-value cache .*VLLM_CPU_KVCACHE_SPACE"):
        engine().load(references["llama", 0].checkpoint)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    backend = engine(max_model_len=64)
    backend.load(references["llama", 0].checkpoint)
    with pytest.raises(UserError, match="256 tokens, and vLLM runs this model with 64 at most"):
        backend.score(sequences)


def test_all_benchmarks_of_several_checkpoints_have_the_torch_backends_scores_and_accuracies(
    references: Any, small_world: Path, tmp_path: Path
) -> None:
    """The command, twice: one warm engine for three checkpoints, 20 benchmarks each, items cut to the window among them."""
    checkpoints = [str(references["llama", seed].checkpoint.path) for seed in (0, 1, 2)]
    common = ["score", *checkpoints, "--data", str(small_world / "bench"), "--limit", "12"]
    assert main([*common, "--out", str(tmp_path / "t"), "--device", "cpu"]) == 0
    assert main([*common, "--out", str(tmp_path / "v"), "--backend", "vllm"]) == 0
    found = agreement(tmp_path / "t", tmp_path / "v")
    assert (found.cells, found.items) == (60, 720)
    assert found.largest < 1e-4
    assert (found.picks, found.picks_norm, found.greedy, found.accuracies) == (0, 0, 0, 0)
    ours, theirs = evalengine.load(tmp_path / "v").to_pylist(), evalengine.load(tmp_path / "t").to_pylist()
    for a, b in zip(ours, theirs, strict=True):
        del a["loglik"], b["loglik"]
        assert a == b


@pytest.mark.parametrize(
    "asked", [["--formats"], ["--chat", "--fewshot", "1", "--pmi"]], ids=lambda asked: asked[0]
)
def test_answer_formats_and_conversations_have_the_torch_backends_scores(
    asked: list[str], references: Any, small_world: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(references["llama", 0].checkpoint.path, tmp_path / "1M-a-sft")
    (path / "chat_template.jinja").write_text("<user>{{ messages[0].content }}\n{{ messages[1].content }}")
    common = ["score", str(path), "--data", str(small_world / "bench"), "--limit", "12", *asked]
    common += ["--benchmarks", "copa,boolq,rte"]
    assert main([*common, "--out", str(tmp_path / "t"), "--device", "cpu"]) == 0
    assert main([*common, "--out", str(tmp_path / "v"), "--backend", "vllm"]) == 0
    inside = "formats" if "--formats" in asked else ""
    found = agreement(tmp_path / "t" / inside, tmp_path / "v" / inside)
    assert (found.cells, found.items) == (3, 36)
    assert found.largest < 1e-4
    assert (found.picks, found.picks_norm, found.greedy, found.accuracies) == (0, 0, 0, 0)
