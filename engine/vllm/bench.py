"""The vLLM backend against vLLM's own scoring, against prefill alone, and a warm engine against a new one.

One random Llama, in-process engines, float32 on a CPU machine; every side runs the same sequences, warmed. `prompt_logprobs` is
the way harnesses score on vLLM: one request a choice, no prefix cache. It runs in each of the forms that vLLM has for it, and
the fastest counts. `prompt_logprobs` over our requests, reading the cache under our scheduler, is the fallback route. Prefill
alone is the same engine and requests with nothing to score; the head's GEMM is one matrix product of the scored rows' shape.
Ours, prefill and GEMM: median of interleaved rounds; the slower sides: one run, the fastest form two more.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evalengine import console
from evalengine.encoding import Sequences

MINE, STOCK, CAPPED = "fused scorer, prefix cache", "prompt_logprobs", "prompt_logprobs, capped prefix cache"
FORMS: dict[str, dict[str, Any]] = {
    "prompt_logprobs=0": {"prompt_logprobs": 0},
    "prompt_logprobs=0, flat": {"prompt_logprobs": 0, "flat_logprobs": True},
    "prompt_logprobs=1": {"prompt_logprobs": 1},  # what lm-evaluation-harness asks for
}


class Workload(NamedTuple):
    """Items of four choices of three tokens: `shared` tokens before all of them, `context` of their own."""

    name: str
    items: int
    shared: int
    context: int


def run(quick: bool = False) -> dict[str, Any]:
    """Rows for the table and the ratios."""
    vocab = 5_000 if quick else 50_304
    workloads = [
        Workload("zero-shot", 10 if quick else 120, 0, 60),
        Workload("shared few-shot prefix", 10 if quick else 40, 300, 40),
    ]
    with tempfile.TemporaryDirectory(prefix="evalengine-bench-") as folder:
        checkpoints = [save(Path(folder) / f"llama{seed}", vocab, seed) for seed in (0, 1)]
        return compare(checkpoints, workloads, vocab, rounds=1 if quick else 5)


def compare(checkpoints: list[Any], workloads: list[Workload], vocab: int, rounds: int) -> dict[str, Any]:
    from evalengine.vllm import routes
    from evalengine.vllm.backend import VllmBackend

    plans = {w.name: make(w, vocab) for w in workloads}
    seconds: dict[tuple[str, str], list[float]] = {}
    with console.progress("measuring", 2 * len(workloads) + 1, "sides") as progress:
        backend = VllmBackend(max_model_len=512)
        backend.load(checkpoints[0])
        for name, sequences in plans.items():
            measure(
                seconds,
                rounds,
                {
                    (name, MINE): partial(cold, backend, partial(backend.score, sequences)),
                    (name, "prefill alone"): partial(cold, backend, partial(prefill, backend, sequences)),
                    (name, "head GEMM"): head_gemm(backend, sequences),
                },
            )
            progress.update(1)
        new, warm = swap_seconds(backend, checkpoints, min(rounds, 3))
        progress.update(1)
        backend.close()
        stock = VllmBackend(route=routes.PROMPT_LOGPROBS, max_model_len=512)
        stock.load(checkpoints[0])
        for name, sequences in plans.items():
            measure(
                seconds,
                min(rounds, 3),
                {(name, CAPPED): partial(cold, stock, partial(stock.score, sequences))},
            )
            for form, took in stock_seconds(stock, sequences, more=0 if rounds == 1 else 2).items():
                seconds[name, form] = took
            progress.update(1)
        stock.close()
    return report(workloads, seconds, vocab, new, warm)


def report(
    workloads: list[Workload],
    seconds: dict[tuple[str, str], list[float]],
    vocab: int,
    new: float,
    warm: float,
) -> dict[str, Any]:
    took = {key: statistics.median(values) for key, values in seconds.items()}
    rows = [(w, side, f"{s:.3f}", f"{s / took[w, MINE]:.2f}") for (w, side), s in took.items()]
    rows += [
        ("next checkpoint", "warm engine", f"{warm:.3f}", "1.00"),
        ("next checkpoint", "new engine", f"{new:.3f}", f"{new / warm:.1f}"),
    ]
    ratios = {}
    for w in workloads:
        floor = took[w.name, "prefill alone"] + took[w.name, "head GEMM"]
        stock = min(took[w.name, form] for form in FORMS)
        ratios[f"{w.name}: {STOCK} / fused scorer"] = round(stock / took[w.name, MINE], 2)
        ratios[f"{w.name}: {CAPPED} / fused scorer"] = round(took[w.name, CAPPED] / took[w.name, MINE], 2)
        ratios[f"{w.name}: fused scorer / (prefill + head GEMM)"] = round(took[w.name, MINE] / floor, 3)
    ratios["next checkpoint: new engine / warm engine"] = round(new / warm, 1)
    return {
        "title": f"Scoring inside vLLM: Llama of width 256, 4 layers, vocabulary {vocab:,}",
        "columns": ("workload", "side", "seconds", "ratio to ours"),
        "rows": rows,
        "ratios": ratios,
    }


def measure(seconds: dict[Any, list[float]], rounds: int, sides: dict[Any, Callable[[], float]]) -> None:
    """Each side once to warm it, then `rounds` times in turn. A side returns its seconds."""
    for side in sides.values():
        side()
    for _ in range(rounds):
        for key, side in sides.items():
            seconds.setdefault(key, []).append(side())


def timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def cold(backend: Any, call: Callable[[], Any]) -> float:
    """With an empty prefix cache, as a new benchmark finds it."""
    backend.reset_prefix_cache()
    return timed(call)


def prefill(backend: Any, sequences: Sequences) -> None:
    """The same requests and cache hits, and no row to score."""
    from evalengine.vllm import FIRST, TASK, routes
    from vllm import PoolingParams

    requests = backend._planned(sequences).requests
    nothing = np.zeros(0, np.int32).tobytes()
    params = [
        PoolingParams(task=TASK, extra_kwargs={"rows": nothing, "tokens": nothing, FIRST: r.first})
        for r in requests
    ]
    backend._llm.encode(routes.prompts(requests), pooling_params=params, pooling_task=TASK, use_tqdm=False)


def head_gemm(backend: Any, sequences: Sequences) -> Callable[[], float]:
    import torch

    config = backend._llm.llm_engine.vllm_config.model_config
    rows = sum(len(np.unique(r.row_T)) for r in backend._planned(sequences).requests)
    kind = getattr(torch, backend.dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    h_RD = torch.randn(rows, config.get_hidden_size(), device=device, dtype=kind)
    w_VD = torch.randn(config.get_vocab_size(), config.get_hidden_size(), device=device, dtype=kind)
    out_RV = torch.empty(rows, config.get_vocab_size(), device=device, dtype=kind)

    def gemm() -> None:
        torch.mm(h_RD, w_VD.T, out=out_RV)
        if device == "cuda":
            torch.cuda.synchronize()

    return lambda: timed(gemm)


def stock_seconds(backend: Any, sequences: Sequences, more: int) -> dict[str, list[float]]:
    """As harnesses do: a request a choice, log-probabilities of all of it. Each form once, the fastest `more` times more."""
    from vllm import SamplingParams

    prompts: list[Any] = [{"prompt_token_ids": sequences.tokens(s).tolist()} for s in range(len(sequences))]

    def once(form: str, some: list[Any]) -> float:
        params = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False, **FORMS[form])
        return timed(lambda: backend._llm.generate(some, params, use_tqdm=False))

    out: dict[str, list[float]] = {}
    for form in FORMS:
        once(form, prompts[:4])
        out[form] = [once(form, prompts)]
    best = min(out, key=lambda form: out[form][0])
    out[best] += [once(best, prompts) for _ in range(more)]
    return out


def swap_seconds(backend: Any, checkpoints: list[Any], rounds: int) -> tuple[float, float]:
    """(seconds until a new engine is ready, until a warm one is) for the next checkpoint."""
    warm = [timed(partial(backend.load, checkpoints[i % 2])) for i in range(1, 2 * rounds + 2)]
    new = []
    for i in range(rounds):
        backend._identity = None
        new.append(timed(partial(backend.load, checkpoints[i % 2])))
    return statistics.median(new), statistics.median(warm[1:])  # the first swap proves itself, once an engine


def make(workload: Workload, vocab: int) -> Sequences:
    rng = np.random.default_rng(0)
    shared = rng.integers(1, vocab, workload.shared)
    lists, starts = [], []
    for _ in range(workload.items):
        context = np.concatenate([shared, rng.integers(1, vocab, workload.context)])
        for _ in range(4):
            lists.append(np.concatenate([context, rng.integers(1, vocab, 3)]).astype(np.int32))
            starts.append(len(context))
    offset = np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int64)
    return Sequences(np.concatenate(lists), offset, np.asarray(starts, np.int32))


def save(path: Path, vocab: int, seed: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from evalengine.checkpoints import discover

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=704,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return discover([path])[0]
