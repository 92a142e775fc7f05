"""The vLLM backend against vLLM's own scoring, against prefill alone, and a warm engine against a new one.

One random Llama, in-process engines, float32 on a CPU machine; every side runs the same sequences, warmed. `prompt_logprobs` is
the way harnesses score on vLLM: one request a choice, no prefix cache. It runs in each of the forms that vLLM has for it, and
the fastest counts. Prefill alone is the same engine and requests with nothing to score; the head's GEMM is one matrix product of
the scored rows' shape.
Ours, prefill and GEMM: median of interleaved rounds; the slower sides: one run, the fastest form two more.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from evalengine import console
from evalengine.bench.harness import Result, Table, rounds, timed
from evalengine.bench.inputs import Shape, make_model, workplace
from evalengine.checkpoints import Checkpoint
from evalengine.encoding import Sequences
from evalengine.resolve import discover
from evalengine.vllm import engine

WINDOW = 512
OURS, STOCK = "fused scorer, prefix cache", "prompt_logprobs"
FORMS: dict[str, dict[str, Any]] = {
    "prompt_logprobs=0": {"prompt_logprobs": 0},
    "prompt_logprobs=0, flat": {"prompt_logprobs": 0, "flat_logprobs": True},
    "prompt_logprobs=1": {"prompt_logprobs": 1},  # what lm-evaluation-harness asks for
}
Seconds = dict[tuple[str, str], list[float]]  # of each workload and side


class Workload(NamedTuple):
    """Items of four choices of three tokens: `shared` tokens before all of them, `context` of their own."""

    name: str
    items: int
    shared: int
    context: int

    def sequences(self, vocab: int) -> Sequences:
        rng = np.random.default_rng(0)
        shared = rng.integers(1, vocab, self.shared)
        lists, starts = [], []
        for _ in range(self.items):
            context = np.concatenate([shared, rng.integers(1, vocab, self.context)])
            for _ in range(4):
                lists.append(np.concatenate([context, rng.integers(1, vocab, 3)]).astype(np.int32))
                starts.append(len(context))
        offset = np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int64)
        return Sequences(np.concatenate(lists), offset, np.asarray(starts, np.int32))


def run(quick: bool = False) -> Result:
    vocab, count = (5_000, 1) if quick else (50_304, 5)
    few = Workload("shared few-shot prefix", 10 if quick else 40, 300, 40)
    workloads = [Workload("zero-shot", 10 if quick else 120, 0, 60), few]
    shape = Shape(vocab, 256, 4, 4, 704)
    with workplace() as work:
        paths = [make_model(work / f"llama{seed}", shape, seed=seed, window=WINDOW) for seed in (0, 1)]
        return compare(discover(paths), {w.name: w.sequences(vocab) for w in workloads}, vocab, count)


def compare(checkpoints: list[Checkpoint], workloads: dict[str, Sequences], vocab: int, count: int) -> Result:
    from evalengine.vllm.backend import VllmBackend
    from evalengine.vllm.requests import plan

    seconds: Seconds = {}
    with console.progress("measuring", 2 * len(workloads) + 1, "sides") as progress:
        backend = VllmBackend(max_model_len=WINDOW)
        backend.load(checkpoints[0])
        for name, sequences in workloads.items():
            requests = plan(sequences).requests
            sides = {
                (name, OURS): partial(cold, backend, partial(backend.score, sequences)),
                (name, "prefill alone"): partial(cold, backend, partial(prefill, backend, requests)),
                (name, "head GEMM"): partial(timed, head_gemm(backend, requests)),
            }
            rounds(sides, 1)  # warms them
            seconds |= rounds(sides, count)
            progress.update(1)
        new, warm = swap_seconds(backend, checkpoints, min(count, 3))
        progress.update(1)
        backend.close()
        llm = stock_engine(checkpoints[0], backend.dtype)
        for name, sequences in workloads.items():
            took = stock_seconds(llm, sequences, more=0 if count == 1 else 2)
            seconds |= {(name, form): values for form, values in took.items()}
            progress.update(1)
        engine.stop(llm)
    return report(list(workloads), seconds, vocab, new, warm)


def report(workloads: list[str], seconds: Seconds, vocab: int, new: float, warm: float) -> Result:
    took = {key: statistics.median(values) for key, values in seconds.items()}
    rows = [(w, side, f"{s:.3f}", f"{s / took[w, OURS]:.2f}") for (w, side), s in took.items()]
    rows += [
        ("next checkpoint", "warm engine", f"{warm:.3f}", "1.00"),
        ("next checkpoint", "new engine", f"{new:.3f}", f"{new / warm:.1f}"),
    ]
    ratios = {}
    for w in workloads:
        ours, stock = took[w, OURS], min(took[w, form] for form in FORMS)
        floor = took[w, "prefill alone"] + took[w, "head GEMM"]
        ratios[f"{w}: {STOCK} / fused scorer"] = round(stock / ours, 2)
        ratios[f"{w}: fused scorer / (prefill + head GEMM)"] = round(ours / floor, 3)
    ratios["next checkpoint: new engine / warm engine"] = round(new / warm, 1)
    title = f"Scoring inside vLLM: Llama of width 256, 4 layers, vocabulary {vocab:,}"
    return Result(Table(title, ("workload", "side", "seconds", "ratio to ours"), rows), ratios)


def cold(backend: Any, call: Callable[[], Any]) -> float:
    """With an empty prefix cache, as a new benchmark finds it."""
    backend.reset_prefix_cache()
    return timed(call)


def prefill(backend: Any, requests: list[Any]) -> None:
    """The same requests and cache hits, and no row to score."""
    from vllm import PoolingParams

    from evalengine.vllm import FIRST, TASK

    nothing = np.zeros(0, np.int32).tobytes()
    params = [
        PoolingParams(task=TASK, extra_kwargs={"rows": nothing, "tokens": nothing, FIRST: r.first})
        for r in requests
    ]
    prompts: Any = [{"prompt_token_ids": r.tokens.tolist()} for r in requests]
    backend._llm.encode(prompts, pooling_params=params, pooling_task=TASK, use_tqdm=False)


def head_gemm(backend: Any, requests: list[Any]) -> Callable[[], None]:
    """One matrix product of the scored rows' shape."""
    import torch

    config = backend._llm.llm_engine.vllm_config.model_config
    rows = sum(len(np.unique(r.row_T)) for r in requests)
    hidden, vocab = config.get_hidden_size(), config.get_vocab_size()
    place: Any = {
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "dtype": getattr(torch, backend.dtype),
    }
    h_RD, w_VD = torch.randn(rows, hidden, **place), torch.randn(vocab, hidden, **place)
    out_RV = torch.empty(rows, vocab, **place)

    def gemm() -> None:
        torch.mm(h_RD, w_VD.T, out=out_RV)
        if out_RV.is_cuda:
            torch.cuda.synchronize()

    return gemm


def stock_engine(checkpoint: Checkpoint, dtype: str) -> Any:
    """vLLM as it is."""
    from vllm import LLM
    from vllm.platforms import current_platform

    with engine.quiet():
        return LLM(
            str(checkpoint.path),
            dtype=dtype,
            max_model_len=WINDOW,
            skip_tokenizer_init=True,
            enforce_eager=current_platform.is_cpu(),
            seed=0,
        )


def stock_seconds(llm: Any, sequences: Sequences, more: int) -> dict[str, list[float]]:
    """As harnesses do: a request a choice, log-probabilities of all of it. Each form once, the fastest `more` times more."""
    from vllm import SamplingParams

    prompts: list[Any] = [{"prompt_token_ids": sequences.tokens(s).tolist()} for s in range(len(sequences))]

    def once(form: str, some: list[Any]) -> float:
        params = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False, **FORMS[form])
        return timed(lambda: llm.generate(some, params, use_tqdm=False))

    out: dict[str, list[float]] = {}
    for form in FORMS:
        once(form, prompts[:4])
        out[form] = [once(form, prompts)]
    best = min(out, key=lambda form: out[form][0])
    out[best] += [once(best, prompts) for _ in range(more)]
    return out


def swap_seconds(backend: Any, checkpoints: list[Checkpoint], count: int) -> tuple[float, float]:
    """(seconds until a new engine is ready, until a warm one is) for the next checkpoint."""
    warm = [timed(partial(backend.load, checkpoints[i % 2])) for i in range(1, 2 * count + 2)]

    def start(i: int) -> None:
        backend.close()
        backend.load(checkpoints[i % 2])

    new = statistics.median(timed(partial(start, i)) for i in range(count))
    return new, statistics.median(warm[1:])  # the first swap proves itself, once an engine
