"""`evalengine bench training`: tokens per second against a plain loop, and the memory of the loss.

The baseline is `plain_loop.py`. Both sides see the same model, batches and optimiser settings. Each
measurement is a process of its own (memory settings and peaks do not leak), the sides alternate, the best of
each counts; on a CPU the trainer is not compiled, as `evalengine train` does not by default there, and one
compiled measurement stands beside. The share of the machine's rate is model FLOPs over the rate of bare matrix products measured
beside them; on a GPU whose peak is known also MFU, model FLOPs over that peak. A profile of our own steps says
where the rest goes.

Dims: B rows, T positions, D hidden, V vocabulary.
"""

from __future__ import annotations

import multiprocessing as mp
import resource
import shutil
import time
from typing import Any, NamedTuple

from evalengine.errors import UserError
from evalengine.kernels.bench import silent_stderr

ROUNDS = 2
WARM_STEPS = 2  # not counted


class Case(NamedTuple):
    """A model and batch to train on."""

    name: str
    shape: tuple[int, int, int, int, int, int, int]  # Shape's first fields, up to context
    rows: int
    steps: int
    document: int = 0  # tokens of a document; 0: a row is one


def _small(
    name: str, d_model: int, layers: int, vocab: int, rows: int, context: int, steps: int, document: int = 0
) -> Case:
    shape = (d_model, layers, d_model // 32, 32, 3 * d_model, vocab, context)
    return Case(name, shape, rows, steps, document)


CASES = {
    "cpu": (
        _small("0.2M, vocabulary 1k", 64, 3, 1024, 4, 256, 40),
        _small("0.4M, vocabulary 4k, documents of 150", 64, 3, 4096, 2, 512, 30, document=150),
        _small("1M, vocabulary 4k", 128, 4, 4096, 8, 256, 12),
        _small("8M, vocabulary 16k", 256, 6, 16384, 4, 512, 4),
    ),
    "cuda": (Case("240M, vocabulary 100,864", (768, 8, 8, 256, 6144, 100_864, 4096), 8, 12),),
}
LOSS_ROWS, LOSS_D, LOSS_V = 2048, 256, 100_864


def run(quick: bool = False, device: str = "cpu") -> dict[str, Any]:
    """Measures; `quick` runs the first case once. Ratios above 1 favour the trainer."""
    kind = device.split(":")[0]
    if kind not in CASES:
        raise UserError(f"--device must be cpu or cuda, not {device}")
    if kind == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("there is no CUDA device here: leave --device out")
    found = _on_gpu(device) if kind == "cuda" else _on_cpu(quick)
    return {
        "title": f"training against a plain loop, {device}",
        "columns": ["case", "evalengine", "plain loop", "ratio", "of the matrix-product rate"],
        **found,
    }


def _on_cpu(quick: bool) -> dict[str, Any]:
    ratios: dict[str, float] = {}
    rows: list[list[str]] = []
    cases = CASES["cpu"][:1] if quick else CASES["cpu"]
    for case in cases:
        best = dict.fromkeys(("ours", "plain"), 0.0)
        for _ in range(1 if quick else ROUNDS):
            for side in best:
                best[side] = max(best[side], _alone(_tokens_per_second, side, case, "cpu"))
        reached, _ = _alone(_reached, case, best["ours"], "cpu")
        ratios[f"tokens/s, {case.name}"] = best["ours"] / best["plain"]
        ratios[f"share of the matrix-product rate, {case.name}"] = reached
        ours, plain = (f"{best[side]:,.0f} tokens/s" for side in best)
        if not quick and shutil.which("g++"):
            ours += f" (compiled {_alone(_tokens_per_second, 'compiled', case, 'cpu'):,.0f})"
        rows.append([case.name, ours, plain, f"{best['ours'] / best['plain']:.2f}", f"{reached:.0%}"])
    memory = {side: _alone(_loss_memory, side) for side in ("ours", "plain")}
    name = f"memory of the loss, vocabulary {LOSS_V:,}"
    ratios[name] = memory["plain"] / memory["ours"]
    shown = [f"{memory[side] / 2**20:,.0f} MiB" for side in memory]
    rows.append([name, *shown, f"{ratios[name]:.2f}", ""])
    profiles = [
        _profile_table(case, _alone(_profile, case, "cpu")) for case in (cases[0], cases[-1])[: len(cases)]
    ]
    return {"rows": rows, "ratios": ratios, "more": profiles}


def _on_gpu(device: str) -> dict[str, Any]:
    (case,) = CASES["cuda"]
    ours, (reached, utilised), profile = _alone(_all_of_ours, case, device)
    plain = _alone(_tokens_per_second, "plain", case, device)
    ratios = {
        f"tokens/s, {case.name}": ours / plain,
        f"share of the matrix-product rate, {case.name}": reached,
    }
    share = f"{reached:.0%}"
    if utilised is not None:
        ratios[f"MFU, {case.name}"] = utilised
        share += f", MFU {utilised:.0%}"
    row = [case.name, f"{ours:,.0f} tokens/s", f"{plain:,.0f} tokens/s", f"{ours / plain:.2f}", share]
    return {"rows": [row], "ratios": ratios, "more": [_profile_table(case, profile)]}


def _profile_table(case: Case, rows: list[list[str]]) -> dict[str, Any]:
    columns = ["part", "share of the time"]
    return {"title": f"where a step's time goes, {case.name}", "columns": columns, "rows": rows}


def _alone(function: Any, *args: Any) -> Any:
    """Runs `function(*args)` in a fresh process."""
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, args))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise UserError("a measuring process ended early: see above, or free memory and run again") from None
    finally:
        process.join()


def _answer(pipe: Any, function: Any, args: tuple[Any, ...]) -> None:
    pipe.send(function(*args))


def _shape(case: Case) -> Any:
    from evalengine.training.model import Shape

    return Shape(*case.shape)


class Rows:
    """Random tokens, in rows of one document or of several, where attention must stay inside them."""

    def __init__(self, case: Case) -> None:
        self.document = case.document
        self.shape, self.rows, self.steps = _shape(case), case.rows, case.steps + WARM_STEPS

    def batch(self, step: int) -> Any:
        import numpy as np

        from evalengine.training.rows import Batch

        context = self.shape.context
        token = np.random.default_rng(step).integers(0, self.shape.vocab, (self.rows, context + 1))
        position = np.tile(np.arange(context) % (self.document or context), (self.rows, 1))
        return Batch(token[:, :-1], position, token[:, 1:], "random tokens")


def _tokens_per_second(side: str, case: Case, device: str) -> float:
    """Of the steps after the first two."""
    stamps: list[float] = []
    if side != "plain":
        _our_loop(case, device, lambda step: stamps.append(time.perf_counter()), side == "compiled")
    else:
        from evalengine.training import plain_loop

        plain_loop.run(_shape(case), Rows(case), device, stamps)
    tokens = (len(stamps) - WARM_STEPS) * case.rows * _shape(case).context
    return tokens / (stamps[-1] - stamps[WARM_STEPS - 1])


def _our_loop(case: Case, device: str, report: Any, compiled: bool = False) -> None:
    """As `evalengine train` runs it on this device."""
    import torch

    from evalengine.training.loop import Place, fit
    from evalengine.training.model import Decoder
    from evalengine.training.processes import keep_freed_memory
    from evalengine.training.study import Pretrain

    keep_freed_memory()
    gpu = device.startswith("cuda")
    model = Decoder(_shape(case)).initialise(torch.Generator().manual_seed(0))
    fit(model, Rows(case), Pretrain(tokens=0, lr=1e-3), Place(device, autocast=gpu, compile=compiled), report)


def _reached(case: Case, tokens_per_second: float, device: str) -> tuple[float, float | None]:
    """Model FLOP/s over the rate of large matrix products, measured now; and over the device's peak."""
    import torch

    from evalengine.training.mfu import peak_of
    from evalengine.training.plan import product_rate

    flops = tokens_per_second * _shape(case).flops_per_token()
    if not device.startswith("cuda"):
        return flops / product_rate(device), None
    peak = peak_of(device)
    rate = product_rate(device) / torch.cuda.device_count()  # of one
    return flops / rate, flops / peak if peak else None


def _loss_memory(side: str) -> float:
    """Bytes that the loss and its gradients add to the peak resident memory. (The kernels' benchmark has the
    GPU's.)
    """
    import torch
    import torch.nn.functional as F

    from evalengine.training.loss import summed_cross_entropy

    h = torch.randn(LOSS_ROWS, LOSS_D, requires_grad=True)
    w = torch.randn(LOSS_V, LOSS_D, requires_grad=True)
    target = torch.randint(0, LOSS_V, (LOSS_ROWS,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if side == "ours":
        summed_cross_entropy(h, w, target).backward()
    else:
        F.cross_entropy(F.linear(h, w), target, reduction="sum").backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024.0


# A profile's parts: the first whose mark occurs in the names of an event and of those it lies in.
LOSS = "output layer and loss"
PARTS = (
    ("optimiser and clipping", ("Optimizer.step", "adam", "foreach", "multi_tensor", "_norm_")),
    (LOSS, ("linear_cross_entropy", "LinearCrossEntropy", "cross_entropy")),
    ("attention", ("scaled_dot_product", "flex", "flash", "triton_tem")),
    ("matrix products", ("aten::mm", "addmm", "bmm", "matmul", "gemm", "nvjet", "cutlass", "xmma")),
)
REST, OUTSIDE = "norms, rotations, activations, sums", "outside of operators (Python, batches)"


PROFILED_STEPS = 3  # the last ones


class Watch:
    """Hears of every step of `_our_loop`: times them, and profiles the last three."""

    def __init__(self, case: Case, device: str) -> None:
        from torch.profiler import ProfilerActivity, profile

        self.gpu = device.startswith("cuda")
        activity = ProfilerActivity.CUDA if self.gpu else ProfilerActivity.CPU
        self.profiler = profile(activities=[activity])
        self.tokens = case.rows * _shape(case).context  # of a step
        self.last = case.steps + WARM_STEPS
        self.stamps: list[float] = []
        self.began = 0.0

    def __call__(self, step: Any) -> None:
        self.stamps.append(time.perf_counter())
        if step.step == self.last - PROFILED_STEPS:
            with silent_stderr():
                self.profiler.start()
            self.began = time.perf_counter()
        if step.step == self.last:
            with silent_stderr():
                self.profiler.stop()

    def tokens_per_second(self) -> float:
        """Of the steps between the warm and the profiled ones."""
        timed = self.stamps[WARM_STEPS - 1 : -PROFILED_STEPS]
        return (len(timed) - 1) * self.tokens / (timed[-1] - timed[0])

    def rows(self) -> list[list[str]]:
        """Shares of the profiled time, by part, largest first."""
        import torch

        kind = torch.autograd.DeviceType.CUDA if self.gpu else torch.autograd.DeviceType.CPU
        spent = dict.fromkeys([name for name, _ in PARTS] + [REST], 0.0)
        for event in self.profiler.events():
            if event.device_type == kind:
                micros = event.time_range.elapsed_us() if self.gpu else event.self_cpu_time_total
                spent[_part(event)] += micros * 1e-6
        wall = self.stamps[-1] - self.began
        spent[OUTSIDE] = max(0.0, wall - sum(spent.values()))
        ordered = sorted(spent.items(), key=lambda pair: -pair[1])
        return [[name, f"{seconds / wall:.0%}"] for name, seconds in ordered]


def _profile(case: Case, device: str) -> list[list[str]]:
    watch = Watch(case, device)
    _our_loop(case, device, watch)
    return watch.rows()


def _all_of_ours(case: Case, device: str) -> tuple[float, tuple[float, float | None], list[list[str]]]:
    """(tokens/s, shares of rate and peak, profile) in one process, for compiling takes most of the time."""
    watch = Watch(case, device)
    _our_loop(case, device, watch, compiled=True)
    rate = watch.tokens_per_second()
    return rate, _reached(case, rate, device), watch.rows()


def _part(event: Any) -> str:
    names, above = [], event
    while above is not None:
        names.append(above.name)
        above = above.cpu_parent
    return next((part for part, marks in PARTS if any(m in name for name in names for m in marks)), REST)
