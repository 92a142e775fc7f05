"""The vLLM backend against vLLM's own scoring and against prefill alone.

One random Llama, in-process engines, float32 on a CPU machine; every side runs the same sequences. `prompt_logprobs` is the way
harnesses score on vLLM: one request a choice, no prefix cache. It runs in each of the forms that vLLM has for it, and the
fastest counts. Prefill alone is the same engine and requests with nothing to score; the head's GEMM is one matrix product of
the scored rows' shape. Ours, prefill and GEMM: median of five rounds, warmed; vLLM's own forms: of three.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from evalengine.bench.harness import Result, Row, against, medians, rounds, timed
from evalengine.bench.inputs import Shape, make_model, workplace
from evalengine.checkpoints import Checkpoint
from evalengine.encoding import Sequences
from evalengine.resolve import discover
from evalengine.vllm import FIRST, TASK, engine
from evalengine.vllm.backend import VllmBackend
from evalengine.vllm.requests import Request, plan

WINDOW = 512
OURS, PREFILL, GEMM = "fused scorer, prefix cache", "prefill alone", "head GEMM"
FORMS: dict[str, dict[str, Any]] = {
    "prompt_logprobs=0": {"prompt_logprobs": 0},
    "prompt_logprobs=0, flat": {"prompt_logprobs": 0, "flat_logprobs": True},
    "prompt_logprobs=1": {"prompt_logprobs": 1},  # what lm-evaluation-harness asks for
}
Sides = dict[str, Callable[[], float]]


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
    workloads = {w: w.sequences(vocab) for w in (Workload("zero-shot", 10 if quick else 120, 0, 60), few)}
    shape = Shape(vocab, 256, 4, 4, 704)
    with workplace() as work:
        (checkpoint,) = discover([make_model(work / "llama", shape, window=WINDOW)])
        fused = VllmBackend(max_model_len=WINDOW)
        fused.load(checkpoint)
        seconds: dict[Workload, dict[str, float]] = {}
        for workload, sequences in workloads.items():
            sides = our_sides(fused, sequences)
            rounds(sides, 1)  # warms them
            seconds[workload] = medians(sides, count)
        fused.close()
        stock = stock_engine(checkpoint, fused.dtype)
        for workload, sequences in workloads.items():
            seconds[workload] |= medians(stock_sides(stock, sequences), min(count, 3))
        engine.stop(stock)
    rows: list[Row] = []
    ratios: dict[str, float] = {}
    for (name, *_), took in seconds.items():
        rows += [(name, *row) for row in against(OURS, took)]
        best = min(took[form] for form in FORMS)
        ratios[f"{name}: prompt_logprobs / fused scorer"] = round(best / took[OURS], 2)
        floor = took[PREFILL] + took[GEMM]
        ratios[f"{name}: fused scorer / (prefill + head GEMM)"] = round(took[OURS] / floor, 3)
    title = f"Scoring inside vLLM: Llama of width 256, 4 layers, vocabulary {vocab:,}"
    return Result(title, ("workload", "side", "seconds", "ratio to ours"), rows, ratios)


def our_sides(backend: VllmBackend, sequences: Sequences) -> Sides:
    """The fused scorer, and what it cannot do without."""
    requests = plan(sequences).requests
    return {
        OURS: partial(cold, backend, partial(backend.score, sequences)),
        PREFILL: partial(cold, backend, partial(prefill, backend, requests)),
        GEMM: partial(timed, head_gemm(backend, requests)),
    }


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


def stock_sides(llm: Any, sequences: Sequences) -> Sides:
    """The forms of `prompt_logprobs` as harnesses use them: a request a choice, all of it scored."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": sequences.tokens(s).tolist()} for s in range(len(sequences))]

    def generate(form: str) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False, **FORMS[form])
        llm.generate(prompts, params, use_tqdm=False)

    return {form: partial(timed, partial(generate, form)) for form in FORMS}


def cold(backend: VllmBackend, call: Callable[[], Any]) -> float:
    """With an empty prefix cache, as a new benchmark finds it."""
    backend.reset_prefix_cache()
    return timed(call)


def prefill(backend: VllmBackend, requests: list[Request]) -> None:
    """The same requests and cache hits, and no row to score."""
    from vllm import PoolingParams

    params = [
        PoolingParams(task=TASK, extra_kwargs={"rows": b"", "tokens": b"", FIRST: r.first}) for r in requests
    ]
    prompts = [{"prompt_token_ids": r.tokens.tolist()} for r in requests]
    backend._llm.encode(prompts, pooling_params=params, pooling_task=TASK, use_tqdm=False)


def head_gemm(backend: VllmBackend, requests: list[Request]) -> Callable[[], None]:
    """One matrix product of the scored rows' shape."""
    config = backend._llm.llm_engine.vllm_config.model_config
    rows = sum(len(np.unique(r.row_T)) for r in requests)
    place: Any = {
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "dtype": getattr(torch, backend.dtype),
    }
    h_RD = torch.randn(rows, config.get_hidden_size(), **place)
    w_VD = torch.randn(config.get_vocab_size(), config.get_hidden_size(), **place)
    out_RV = torch.empty(rows, config.get_vocab_size(), **place)

    def gemm() -> None:
        torch.mm(h_RD, w_VD.T, out=out_RV)
        if out_RV.is_cuda:
            torch.cuda.synchronize()

    return gemm
