"""The vLLM backend against vLLM's own scoring, the PyTorch backend and prefill alone.

Two random Llamas, in-process engines; every side runs the same sequences. `prompt_logprobs` is the way harnesses score on
vLLM: one request a choice, no prefix cache. It runs in each of the forms that vLLM has for it, and the fastest counts. Prefill
alone is the same engine and requests with nothing to score; the head's GEMM is one matrix product of the scored rows' shape.
Sides of one engine run in turns after one pass that warms them, and the median counts.

Each part has a process of its own with a time limit, so that a failure or a hang inside vLLM costs that part alone; its figures
so far are kept, and go to standard error as they are found.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from evalengine.bench.harness import Measurement, Row, against, alone, medians, rounds, timed
from evalengine.bench.inputs import SHAPES, ModelSize, make_model, workplace
from evalengine.checkpoints import Checkpoint
from evalengine.checkpoints.resolve import discover
from evalengine.errors import UserError
from evalengine.plan.encoding import Sequences
from evalengine.vllm import FIRST, TASK, engine
from evalengine.vllm.backend import VllmBackend, engine_settings
from evalengine.vllm.requests import Request, plan

OURS, COMPILED = "fused scorer, prefix cache", "fused scorer, compiled"
PREFILL, GEMM = "prefill alone", "head GEMM"
TORCH = "PyTorch backend"
FORMS: dict[str, dict[str, Any]] = {
    "prompt_logprobs=0, flat": {"prompt_logprobs": 0, "flat_logprobs": True},
    "prompt_logprobs=0": {"prompt_logprobs": 0},
    "prompt_logprobs=1": {"prompt_logprobs": 1},  # what lm-evaluation-harness asks for
}
LIMIT_S = {"cpu": 1800, "cuda": 90}  # of a part
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
        return Sequences.of(lists, starts)


class Setup(NamedTuple):
    """What every part measures on. Figures are lines of JSON in `work`, which outlive the process that found them."""

    work: Path
    device: str
    shape: ModelSize
    window: int
    workloads: tuple[Workload, ...]
    rounds: int
    settings: dict[str, Any]  # of vLLM's engine

    def checkpoint(self, name: str) -> Checkpoint:
        return discover([self.work / name])[0]

    def sequences(self) -> dict[str, Sequences]:
        return {w.name: w.sequences(self.shape.vocab) for w in self.workloads}

    def found(self, name: str, value: float) -> None:
        print(f"{name}: {value:.4g}", file=sys.stderr, flush=True)
        with open(self.work / "figures", "a", encoding="utf-8") as file:
            file.write(json.dumps({name: value}) + "\n")

    def figures(self) -> dict[str, float]:
        path = self.work / "figures"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return {name: value for line in lines for name, value in json.loads(line).items()}

    def measure(self, sides: Callable[[Sequences], Sides]) -> None:
        """Seconds of each side on each workload."""
        for name, sequences in self.sequences().items():
            made = sides(sequences)
            rounds(made, 1)  # warms them
            for side, seconds in medians(made, self.rounds).items():
                self.found(f"{name}: {side}", seconds)


def run(quick: bool = False, device: str = "cpu", vllm_arg: list[str] | None = None) -> Measurement:
    engine.require()
    gpu = device.startswith("cuda")
    shape = SHAPES["240M"] if gpu else ModelSize(50_304, 256, 4, 4, 704)
    zero, few = (250, 100) if gpu else (120, 40)
    if quick:
        shape, zero, few = ModelSize(5_000, 256, 4, 4, 704), 10, 10
    shared, context = (600, 60) if gpu else (300, 40)
    workloads = (Workload("zero-shot", zero, 0, 60), Workload("few-shot", few, shared, context))
    settings = engine_settings(vllm_arg or [])
    failures: list[str] = []
    with workplace() as work:
        window, count = 1024 if gpu else 512, 1 if quick else 3 if gpu else 5
        setup = Setup(work, device, shape, window, workloads, count, settings)
        for seed, name in enumerate("ab"):
            make_model(work / name, shape, seed=seed, window=setup.window)
        parts: dict[str, tuple[Any, ...]] = {TORCH: (torch_part,), OURS: (fused_part,), "vLLM": (stock_part,)}
        if gpu:  # on a CPU, compiling takes minutes
            parts[COMPILED] = (fused_part, True)
        for name, (part, *args) in parts.items():
            try:
                alone(limited, LIMIT_S[device.split(":")[0]], part, setup, *args)
            except UserError as error:
                failures.append(f"{name}: {error}")
                print(failures[-1], file=sys.stderr, flush=True)
        figures = setup.figures()
    return result(shape, [w.name for w in workloads], figures, failures)


def limited(seconds: int, part: Callable[..., None], *args: Any) -> None:
    """A part that the system ends after so many seconds: a hang in compiled code runs no handler of Python's."""
    signal.alarm(seconds)
    part(*args)
    signal.alarm(0)


def result(shape: ModelSize, names: list[str], figures: dict[str, float], failures: list[str]) -> Measurement:
    rows: list[Row] = []
    ratios: dict[str, float] = {}
    for name in names:
        head = f"{name}: "
        took = {key.removeprefix(head): value for key, value in figures.items() if key.startswith(head)}
        if OURS not in took:
            continue
        rows += [(name, *row) for row in against(OURS, took)]
        forms = [took[form] for form in FORMS if form in took]
        if forms:
            ratios[f"{head}prompt_logprobs / fused scorer"] = round(min(forms) / took[OURS], 2)
        if TORCH in took:
            ratios[f"{head}PyTorch backend / fused scorer"] = round(took[TORCH] / took[OURS], 2)
        floor = took[PREFILL] + took[GEMM]
        ratios[f"{head}fused scorer / (prefill + head GEMM)"] = round(took[OURS] / floor, 3)
    title = f"Scoring inside vLLM: Llama of width {shape.hidden}, {shape.layers} layers, vocabulary {shape.vocab:,}"
    columns = ("workload", "side", "seconds", "ratio to ours")
    return Measurement(title, columns, rows, ratios, figures, failures or None)


# --- parts


def torch_part(setup: Setup) -> None:
    """The PyTorch backend: its seconds, and the scores that the others must have."""
    from evalengine.model.torch_backend import TorchBackend

    backend = TorchBackend(device=setup.device)
    workload = setup.workloads[0].sequences(setup.shape.vocab)
    for name in "ba":
        backend.load(setup.checkpoint(name))
        np.save(setup.work / f"{name}.npy", backend.score(workload).loglik)
    setup.measure(lambda sequences: {TORCH: partial(timed, partial(backend.score, sequences))})


def fused_part(setup: Setup, compiled: bool = False) -> None:
    """The fused scorer, what it cannot do without, its agreement with the PyTorch backend, and a swap."""
    side = COMPILED if compiled else OURS
    backend = VllmBackend(max_model_len=setup.window, enforce_eager=not compiled, **setup.settings)
    checkpoints = {name: setup.checkpoint(name) for name in "ab"}
    setup.found(f"{side}: start, twin's engine included", timed(partial(backend.load, checkpoints["a"])))
    compare(setup, f"{side}: largest difference", "a", backend)
    if compiled:
        setup.measure(lambda sequences: {side: partial(cold, backend, partial(backend.score, sequences))})
    else:
        setup.measure(partial(our_sides, backend))
        setup.found(f"{side}: first swap", timed(partial(backend.load, checkpoints["b"])))
        compare(setup, f"{side}: largest difference after a swap", "b", backend)
        setup.found(f"{side}: second swap", timed(partial(backend.load, checkpoints["a"])))
        setup.found(f"{side}: swaps in place", backend.swaps)
    setup.found(f"{side}: requests computed again", backend.redone)
    backend.close()


def stock_part(setup: Setup) -> None:
    """vLLM as it is."""
    from vllm import LLM
    from vllm.platforms import current_platform

    dtype = "float32" if setup.device == "cpu" else "bfloat16"
    engine.prepare(verbose=False)
    with engine.quiet():
        how = {
            "dtype": dtype,
            "max_model_len": setup.window,
            "enforce_eager": current_platform.is_cpu(),
            "seed": 0,
        }
        llm = LLM(str(setup.work / "a"), skip_tokenizer_init=True, **how, **setup.settings)
    setup.measure(partial(stock_sides, llm))
    engine.stop(llm)


def compare(setup: Setup, figure: str, name: str, backend: VllmBackend) -> None:
    """The largest difference of a choice's log-likelihood from the PyTorch backend's, where that has scored."""
    path = setup.work / f"{name}.npy"
    found = backend.score(setup.workloads[0].sequences(setup.shape.vocab)).loglik
    if path.is_file():
        setup.found(figure, float(np.abs(found - np.load(path)).max()))


def our_sides(backend: VllmBackend, sequences: Sequences) -> Sides:
    """The fused scorer, and what it cannot do without."""
    requests = plan(sequences).requests
    return {
        OURS: partial(cold, backend, partial(backend.score, sequences)),
        PREFILL: partial(cold, backend, partial(prefill, backend, requests)),
        GEMM: partial(timed, head_gemm(backend, requests)),
    }


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
