"""Compiled decoder layers: eager scores, one compilation for all layers, batches and checkpoints, and a way back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from test_torch_backend import backend_for, packs, shared_sequences

import tiny_models
from evalengine.checkpoints.resolve import discover
from evalengine.cli import main
from evalengine.errors import UserError
from evalengine.model import compiled
from evalengine.model.torch_backend import TorchBackend
from evalengine.plan.encoding import Sequences

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CLOSE = 2e-5  # nats a sequence of up to nine targets


def graphs() -> int:
    """How many graphs this process has compiled."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


class Case(NamedTuple):
    paths: list[Path]
    backend: TorchBackend  # with compiled layers, which has loaded paths[0]
    compiled: int  # graphs for that


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp(request.param)
    paths = [tiny_models.save(folder / f"m{seed}", request.param, seed=seed) for seed in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVALENGINE_CACHE", str(folder / "cache"))
        patch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        before = graphs()
        backend = backend_for(paths[0], batch_tokens=300, compile="on")
        assert list((folder / "cache" / "inductor").iterdir())
        yield Case(paths, backend, graphs() - before)


@needs_compiler
def test_compiled_layers_score_as_eager_ones_and_are_compiled_once(case: Case) -> None:
    """Over all layers, batches of all lengths, a kept prefix, a checkpoint in place, and a module made anew."""
    backend, before = case.backend, graphs()
    assert backend.modes[0].compiled and not backend.notes
    assert 0 < case.compiled <= 3, "layers, of one kind or two, and the narrowed one"
    plain, shots = shared_sequences(300), shared_sequences(300, prefix=130)
    for path in case.paths:
        backend.load(discover([path])[0])
        eager = backend_for(path, batch_tokens=300, compile="off")
        for sequences in (plain, shots):
            assert packs(backend, sequences) and len(backend.parts(sequences)[0].batches) > 1
            found, expected = backend.score(sequences), eager.score(sequences)
            np.testing.assert_allclose(found.loglik, expected.loglik, rtol=0, atol=CLOSE)
            assert (found.greedy == expected.greedy).all()
    again = backend_for(case.paths[0], batch_tokens=300, compile="on")
    again.score(plain)
    assert again.model is not backend.model
    assert graphs() == before


@needs_compiler
def test_a_single_scored_row_and_a_new_proof_compile_nothing(case: Case) -> None:
    backend = backend_for(case.paths[0], batch_tokens=300, compile="on")
    before, sequences = graphs(), shared_sequences(300)
    token_N = sequences.tokens(0)
    alone = Sequences.of([token_N], [len(token_N) - 1])
    expected = backend_for(case.paths[0], compile="off").score(alone)
    np.testing.assert_allclose(backend.score(alone).loglik, expected.loglik, rtol=0, atol=CLOSE)
    backend._use(backend._prove(400))
    backend.score(sequences)
    assert graphs() == before


def test_a_plain_forward_is_never_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What everything is compared with runs as the model's own code says."""
    seen: list[bool] = []

    def function_of(architecture: str) -> Any:
        def run(module: Any, narrowed: Any, rows: Any, args: Any, kwargs: Any) -> Any:
            seen.append(True)
            return compiled._forward(module, narrowed, rows, args, kwargs)

        return run

    monkeypatch.setattr(compiled, "function_of", function_of)
    backend = backend_for(tiny_models.save(tmp_path / "m"), compile="on")
    few = shared_sequences(300)
    seen.clear()
    backend.forward.plain(few, 100)
    backend.forward.reference(few, 100)
    assert not seen
    backend.score(few)
    assert len(seen) == 2 * len(backend.parts(few)[0].batches), "two layers"
    backend.forward.release()
    assert not any("forward" in vars(module) for module in backend.model.modules())


def test_a_layer_that_cannot_be_compiled_runs_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    paths = [tiny_models.save(tmp_path / f"m{seed}", seed=seed) for seed in range(2)]
    sequences = shared_sequences(300)
    expected = backend_for(paths[0], compile="off").score(sequences).loglik
    whole, tried = LlamaMLP.forward, list[int]()

    def by_value(self: Any, x: torch.Tensor) -> Any:
        if torch.compiler.is_compiling():
            tried.append(1)
        return whole(self, x) if x.abs().sum() >= 0 else x

    monkeypatch.setattr(LlamaMLP, "forward", by_value)
    compiled.function_of.cache_clear()
    backend = backend_for(paths[0], compile="on")
    (note,) = backend.notes
    assert note.startswith("its layers run as they are, not compiled") and "branching" in note
    assert backend.modes[0].way == "packed" and not backend.modes[0].compiled
    np.testing.assert_array_equal(backend.score(sequences).loglik, expected)
    tried.clear()
    backend.load(discover([paths[1]])[0])
    assert backend.notes == [note] and not tried, "the next checkpoint of the architecture does not try again"
    compiled.function_of.cache_clear()


@pytest.mark.parametrize("wrong", ["always", "at other lengths"])
def test_compiled_layers_that_score_differently_are_not_used(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_models.save(tmp_path / "m")
    expected = backend_for(path, compile="off").score(shared_sequences(300)).loglik
    first: list[int] = []

    def function_of(architecture: str) -> Any:
        def run(module: Any, narrowed: Any, rows: Any, args: Any, kwargs: Any) -> Any:
            first.append(args[0].shape[1])
            out = compiled._forward(module, narrowed, rows, args, kwargs)
            return out + 0.1 if wrong == "always" or args[0].shape[1] != first[0] else out

        return run

    monkeypatch.setattr(compiled, "function_of", function_of)
    backend = backend_for(path, compile="on")
    assert "not compiled" in backend.notes[0] and "differ by" in backend.notes[0]
    assert len(set(first)) == 2
    np.testing.assert_array_equal(backend.score(shared_sequences(300)).loglik, expected)


def test_memory_that_runs_out_in_the_check_halves_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(module: Any, narrowed: Any, rows: Any, args: Any, kwargs: Any) -> Any:
        if args[0].shape[1] > 128:
            torch.empty(1 << 62, dtype=torch.uint8)  # the allocator's own error
        return compiled._forward(module, narrowed, rows, args, kwargs)

    monkeypatch.setattr(compiled, "function_of", lambda architecture: run)
    backend = backend_for(tiny_models.save(tmp_path / "m"), batch_tokens=400, compile="on")
    assert backend.modes[0].compiled and backend.batch_tokens == 100
    assert backend.notes == ["ran out of memory: scored with --batch-tokens 100"]


def test_a_failure_while_scoring_falls_back_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_models.save(tmp_path / "m")
    expected = backend_for(path, compile="off").score(shared_sequences(300)).loglik
    monkeypatch.setattr(compiled, "function_of", lambda architecture: compiled._forward)
    backend = backend_for(path, compile="on")

    def run(*args: Any) -> Any:
        raise RuntimeError("no kernel image")

    backend.forward.layers._run = run
    np.testing.assert_array_equal(backend.score(shared_sequences(300)).loglik, expected)
    assert backend.notes == ["its layers run as they are, not compiled (slower): no kernel image"]


def test_more_graphs_than_pytorch_keeps_are_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond its limit PyTorch would run the rest uncompiled without a word."""
    import torch._dynamo

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, backend="eager", **options))
    compiled.function_of.cache_clear()
    with torch._dynamo.config.patch(recompile_limit=1):  # monkeypatch would hide the setting from later tests
        backend = backend_for(tiny_models.save(tmp_path / "m"), compile="on")
    compiled.function_of.cache_clear()
    assert backend.notes == [
        "its layers run as they are, not compiled (slower): no code serves all layers or all batches"
    ]


def test_a_model_whose_layers_are_not_one_list_runs_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "decoder_layers", lambda model: None)
    backend = backend_for(tiny_models.save(tmp_path / "m"), compile="on")
    assert backend.notes == [
        "its layers run as they are, not compiled (slower): its decoder layers are not in one list"
    ]


def test_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in compiled.DISABLING:
        monkeypatch.delenv(name, raising=False)
    assert compiled.wanted("auto", CUDA) and compiled.wanted("on", CUDA)
    assert not compiled.wanted("auto", CPU) and not compiled.wanted("off", CUDA)
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    assert not compiled.wanted("auto", CUDA)
    with pytest.raises(UserError, match="TORCH_COMPILE_DISABLE=1 is set: unset it"):
        compiled.wanted("on", CUDA)
    with pytest.raises(UserError, match="compile must be auto, on or off, not yes"):
        compiled.wanted("yes", CPU)


def test_auto_leaves_small_models_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "wanted", lambda choice, device: True)
    path = tiny_models.save(tmp_path / "m")
    backend = backend_for(path, compile="auto")
    assert not any(mode.compiled for mode in backend.modes) and not backend.notes
    monkeypatch.setattr(compiled, "SMALLEST", sum(p.numel() for p in backend.model.parameters()))
    monkeypatch.setattr(compiled, "decoder_layers", lambda model: None)  # says that it would have
    assert backend_for(path, compile="auto").notes


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    assert compiled.wanted("on", CUDA)
    with pytest.raises(
        UserError, match="needs a C\\+\\+ compiler, and there is no /nowhere/g\\+\\+: install"
    ):
        TorchBackend(device="cpu", compile="on")


def test_the_option_is_for_the_torch_backend(
    tmp_path: Path, small_world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_models.save(tmp_path / "1M-m-pt")
    where = ["--data", str(small_world / "bench"), "--out", str(tmp_path / "scores")]
    assert main(["score", str(path), *where, "--backend", "vllm", "--compile", "on"]) == 1
    assert "--compile is for --backend torch: leave it out" in capsys.readouterr().err


def test_folders_that_the_user_named_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    monkeypatch.setenv("EVALENGINE_CACHE", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", "mine")
    for given, kept in ((default_cache_dir(), str(tmp_path / "inductor")), ("other", "other")):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", given)
        compiled.keep_kernels()
        assert (os.environ["TORCHINDUCTOR_CACHE_DIR"], os.environ["TRITON_CACHE_DIR"]) == (kept, "mine")


def test_a_cache_that_cannot_be_written_leaves_pytorchs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EVALENGINE_CACHE", str(tmp_path / "file"))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    compiled.keep_kernels()
    assert not {"TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"} & os.environ.keys()
