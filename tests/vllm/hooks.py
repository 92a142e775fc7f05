"""What evalengine uses of vLLM, and what vLLM's sources say of it: facts by version, in hooks.json.

    python tests/vllm/hooks.py 0.26.0 vllm-0.26.0/vllm    # reads a version's sources; replaces its minor version's facts

A fact is a signature, "name" where there is one of that name (a field, a property, a class, a variable), "absent", or for the
claims whether the text that they look for is there. Only text is parsed, nothing of vLLM imported.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from functools import cached_property
from pathlib import Path

TABLE = Path(__file__).with_name("hooks.json")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

# By module or class, as one would import it: what is used of it.
HOOKS = {
    "vllm": "LLM ModelRegistry PoolingParams SamplingParams",
    "vllm.config": "CompilationConfig VllmConfig set_current_vllm_config",
    "vllm.distributed": "cleanup_dist_env_and_memory tensor_model_parallel_all_gather",
    "vllm.envs": "VLLM_CPU_KVCACHE_SPACE VLLM_CPU_OMP_THREADS_BIND VLLM_ENABLE_V1_MULTIPROCESSING VLLM_LOGGING_LEVEL"
    " VLLM_NO_USAGE_STATS VLLM_USE_V2_MODEL_RUNNER",
    "vllm.model_executor.layers.fused_moe": "FusedMoEMethodBase",
    "vllm.model_executor.layers.linear": "UnquantizedLinearMethod",
    "vllm.model_executor.layers.logits_processor": "LogitsProcessor",
    "vllm.model_executor.layers.pooler": "Pooler",
    "vllm.model_executor.layers.vocab_parallel_embedding": "UnquantizedEmbeddingMethod VocabParallelEmbedding",
    "vllm.model_executor.models": "VllmModelForPooling",
    "vllm.platforms": "current_platform",
    "vllm.v1.core.sched.scheduler": "Scheduler",
    # classes
    "vllm.LLM": "collective_rpc encode generate llm_engine reset_prefix_cache",
    "vllm.v1.engine.llm_engine.LLMEngine": "engine_core vllm_config",
    "vllm.v1.engine.core_client.EngineCoreClient": "shutdown",
    "vllm.engine.arg_utils.EngineArgs": "async_scheduling block_size data_parallel_size dtype enable_chunked_prefill"
    " enable_prefix_caching enforce_eager load_format max_model_len max_num_batched_tokens pipeline_parallel_size runner"
    " scheduler_cls seed skip_tokenizer_init tensor_parallel_size trust_remote_code use_tqdm_on_load worker_extension_cls",
    "vllm.config.VllmConfig": "compilation_config device_config model_config",
    "vllm.config.CompilationConfig": "mode",
    "vllm.config.DeviceConfig": "device_type",
    "vllm.config.ModelConfig": "get_hidden_size get_vocab_size max_model_len",
    "vllm.platforms.interface.Platform": "is_cpu",
    "vllm.PoolingParams": "extra_kwargs skip_reading_prefix_cache task",
    "vllm.SamplingParams": "detokenize extra_args flat_logprobs max_tokens prompt_logprobs temperature",
    "vllm.outputs.PoolingRequestOutput": "outputs",
    "vllm.outputs.PoolingOutput": "data",
    "vllm.model_executor.models.registry._ModelRegistry": "models register_model",
    "vllm.model_executor.models.registry._BaseRegisteredModel": "load_model_cls",
    "vllm.model_executor.layers.pooler.Pooler": "forward get_supported_tasks",
    "vllm.v1.pool.metadata.PoolingMetadata": "get_pooling_cursor pooling_params pooling_states",
    "vllm.v1.pool.metadata.PoolingCursor": "num_scheduled_tokens_cpu prompt_lens_cpu seq_lens_cpu",
    "vllm.model_executor.layers.logits_processor.LogitsProcessor": "forward org_vocab_size scale soft_cap",
    "vllm.model_executor.layers.vocab_parallel_embedding.VocabParallelEmbedding": "quant_method shard_indices tp_size",
    "vllm.model_executor.layers.vocab_parallel_embedding.VocabParallelEmbeddingShardIndices": "org_vocab_end_index"
    " org_vocab_start_index",
    "vllm.model_executor.layers.vocab_parallel_embedding.UnquantizedEmbeddingMethod": "process_weights_after_loading weight",
    "vllm.model_executor.layers.fused_moe.FusedMoEMethodBase": "moe_kernel process_weights_after_loading",
    "vllm.model_executor.layers.fused_moe.modular_kernel.FusedMoEKernel": "fused_experts",
    "vllm.model_executor.models.llama.LlamaForCausalLM": "__init__ compute_logits",
    "vllm.model_executor.models.bloom.BloomMLP": "gelu_impl",
    "vllm.v1.core.kv_cache_manager.KVCacheManager": "get_computed_blocks get_computed_blocks_for_connector",
    "vllm.v1.core.sched.scheduler.Scheduler": "kv_cache_manager",
    "vllm.v1.request.Request": "num_tokens pooling_params sampling_params",
    "vllm.v1.worker.gpu_worker.Worker": "model_runner vllm_config",
    "vllm.v1.worker.gpu_model_runner.GPUModelRunner": "get_model reload_weights",
    "vllm.v1.worker.gpu.model_runner.GPUModelRunner": "get_model reload_weights",
}

# What has to hold besides: where, and a pattern that the text there must have.
CLAIMS = {
    "a cache hit ends before the last of num_tokens": (
        "vllm.v1.core.kv_cache_manager.KVCacheManager.get_computed_blocks",
        r"max_cache_hit_length = request\.num_tokens - 1",
    ),
    "the scheduler asks the manager that it holds": (
        "vllm.v1.core.sched.scheduler.Scheduler",
        r"self\.kv_cache_manager\.get_computed_blocks(_for_connector)?\(",
    ),
    "logits are capped before they are scaled": (
        "vllm.model_executor.layers.logits_processor.LogitsProcessor",
        r"self\.soft_cap is not None[\s\S]*self\.scale != 1\.0",
    ),
    "tasks other than these read the prefix cache": (
        "vllm.PoolingParams",
        r"if self\.task in \['token_embed', 'token_classify'\]:\s+self\.skip_reading_prefix_cache = True\s+else:",
    ),
    "the pooler gets the tokens of the step, without padding": (
        "vllm.v1.worker.gpu_model_runner.GPUModelRunner._pool",
        r"hidden_states = hidden_states\[:num_scheduled_tokens\]",
    ),
    "the second runner's pooler gets the tokens of the step, without padding": (
        "vllm.v1.worker.gpu.pool.pooling_runner.PoolingRunner.pool",
        r"hidden_states = hidden_states\[:input_batch\.num_tokens\]",
    ),
    "the second runner classifies": ("vllm.v1.worker.gpu.pool.pooling_runner", r"'classify'"),
    "plug-ins are entry points of this group": ("vllm.plugins", r"'vllm\.general_plugins'"),
    "a module of a class that vLLM wraps can ask not to be compiled": (
        "vllm.compilation.decorators",
        r"self\.do_not_compile\b",
    ),
    "a request's state takes an attribute": ("vllm.v1.pool.metadata.PoolingStates", r"^(?![\s\S]*__slots__)"),
}


class Source:
    """The sources of one version, `root` being the folder of its package."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._modules: dict[str, ast.Module | None] = {}

    @cached_property
    def facts(self) -> dict[str, str]:
        found = {
            f"{owner}.{name}": self.fact(owner, name)
            for owner, names in HOOKS.items()
            for name in names.split()
        }
        for claim, (where, pattern) in CLAIMS.items():
            node = self.find(where)
            found[claim] = "absent" if node is None else str(bool(re.search(pattern, ast.unparse(node))))
        return found

    def fact(self, owner: str, name: str) -> str:
        node = self.find(f"{owner}.{name}")
        if node is None:
            return "absent"
        return signature(node) if isinstance(node, FUNCTIONS) and not is_property(node) else "name"

    def module(self, name: str) -> ast.Module | None:
        if name not in self._modules:
            path = self.root.joinpath(*name.split(".")[1:])
            path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            self._modules[name] = ast.parse(path.read_text("utf-8")) if path.is_file() else None
        return self._modules[name]

    def find(self, name: str) -> ast.AST | None:
        """What a dotted name stands for, imports followed: a module, class, function or assignment."""
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            node: ast.AST | None = self.module(".".join(parts[:cut]))
            if node is None:
                continue
            where = ".".join(parts[:cut])
            for part in parts[cut:]:
                if isinstance(node, ast.Module):
                    where, node = self.in_module(where, part)
                elif isinstance(node, ast.ClassDef):
                    node = self.in_class(where, node, part)
                else:
                    return None
            return node
        return None

    def in_module(self, where: str, name: str) -> tuple[str, ast.AST | None]:
        """What a module calls `name`, and the module that defines it."""
        tree = self.module(where)
        package = where if (self.root.joinpath(*where.split(".")[1:])).is_dir() else where.rpartition(".")[0]
        for node in reversed(list(walk_outside(tree)) if tree else []):
            if isinstance(node, (ast.ClassDef, *FUNCTIONS)) and node.name == name:
                return where, node
            if isinstance(node, ast.ImportFrom):
                original = next((a.name for a in node.names if (a.asname or a.name) in (name, "*")), None)
                if original is None:
                    continue
                module = node.module or ""
                if node.level:
                    base = package.split(".")[: package.count(".") + 2 - node.level]
                    module = ".".join([*base, module]).rstrip(".")
                if not module.startswith("vllm"):
                    if original == "*":
                        continue
                    return where, node
                found = self.in_module(module, name if original == "*" else original)
                if found[1] is None and original != "*":
                    found = where, self.module(f"{module}.{original}")
                if found[1] is not None:
                    return found
            if name in assigned(node):
                return where, node
        return where, None

    def in_class(self, where: str, owner: ast.ClassDef, name: str) -> ast.AST | None:
        """A member of a class or of its bases: in the body, set by a method, or registered by it on a layer as a parameter."""
        for node in reversed(owner.body):
            if (isinstance(node, FUNCTIONS) and node.name == name) or name in assigned(node):
                return node
        for node in ast.walk(owner):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in targets:
                for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                    if isinstance(part, ast.Attribute) and ast.unparse(part) == f"self.{name}":
                        return node
            if isinstance(node, ast.Call) and f".register_parameter({name!r}, " in ast.unparse(node):
                return node
        for base in owner.bases:
            inner = base.value if isinstance(base, ast.Subscript) else base
            if isinstance(inner, ast.Name):
                module, node = self.in_module(where, inner.id)
                if isinstance(node, ast.ClassDef) and node is not owner:
                    found = self.in_class(module, node, name)
                    if found is not None:
                        return found
        return None


def walk_outside(tree: ast.AST) -> list[ast.stmt]:
    """Statements of a module, those in `if` and `try` among them, but none inside functions and classes."""
    found: list[ast.stmt] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.stmt):
            found.append(node)
            if not isinstance(node, (ast.ClassDef, *FUNCTIONS)):
                found += walk_outside(node)
        elif isinstance(node, ast.ExceptHandler):
            found += walk_outside(node)
    return found


def assigned(node: ast.AST) -> set[str]:
    """Names that an assignment defines."""
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    if isinstance(node, ast.Assign):
        return {t.id for t in node.targets if isinstance(t, ast.Name)}
    return set()


def is_property(node: ast.AST) -> bool:
    return any("property" in ast.unparse(d) for d in getattr(node, "decorator_list", []))


def signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Names of parameters; a default as `name=`, no types."""
    arguments = function.args
    plain = [*arguments.posonlyargs, *arguments.args]
    first = len(plain) - len(arguments.defaults)
    parts = [a.arg + ("=" if i >= first else "") for i, a in enumerate(plain)]
    if arguments.vararg:
        parts.append("*" + arguments.vararg.arg)
    elif arguments.kwonlyargs:
        parts.append("*")
    parts += [
        a.arg + ("=" if d is not None else "")
        for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg:
        parts.append("**" + arguments.kwarg.arg)
    return f"({', '.join(parts)})"


def minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def load() -> dict[str, dict[str, str]]:
    """Facts by minor version."""
    table = json.loads(TABLE.read_text("utf-8")) if TABLE.is_file() else {"versions": {}, "facts": {}}
    return {
        version: {
            hook: next((fact for fact, versions in facts.items() if version in versions.split()), "unknown")
            for hook, facts in table["facts"].items()
        }
        for version in map(minor, table["versions"].split() if table["versions"] else [])
    }


def save(version: str, facts: dict[str, str]) -> None:
    """Facts as {hook: {fact: the minor versions of which it holds}}."""
    table = json.loads(TABLE.read_text("utf-8")) if TABLE.is_file() else {"versions": ""}
    read = {minor(v): v for v in table["versions"].split()} | {minor(version): version}
    known = load() | {minor(version): facts}
    order = sorted(known, key=lambda v: int(v.split(".")[1]))
    by_hook: dict[str, dict[str, str]] = {}
    for hook in facts:
        for v in order:
            fact = known[v].get(hook, "unknown")
            held = by_hook.setdefault(hook, {})
            held[fact] = f"{held.get(fact, '')} {v}".strip()
    lines = [f"  {json.dumps(hook)}: {json.dumps(held)}" for hook, held in by_hook.items()]
    versions, body = json.dumps(" ".join(read[v] for v in order)), ",\n".join(lines)
    TABLE.write_text(f'{{\n "versions": {versions},\n "facts": {{\n{body}\n }}\n}}\n', "utf-8")


if __name__ == "__main__":
    save(sys.argv[1], Source(Path(sys.argv[2])).facts)
