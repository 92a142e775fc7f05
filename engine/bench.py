"""The engine against lm-evaluation-harness and against the machine: `evalengine bench engine`.

Three randomly initialised Llama-shaped models, the same items, float32, both sides in one process on an otherwise idle
machine. The peer is lm-eval's HF backend at its best batch size of 1, 8 and 32. The floor is the arithmetic that cannot be
avoided (each distinct token once through the layers, each scored row once through the head, each attended pair) at the rate
of a large square GEMM measured in the same run.
"""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evalengine import console, packing
from evalengine.encoding import Encoded
from evalengine.errors import UserError

BATCH_SIZES = (1, 8, 32)


class Shape(NamedTuple):
    """A Llama-shaped model. Embeddings are tied."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    ffn: int
    head_dim: int | None = None  # default: hidden / heads


SHAPES = {
    "1M": Shape(5_000, 96, 4, 3, 256),
    "7M": Shape(16_000, 256, 5, 4, 512),
    "50M": Shape(100_000, 384, 8, 6, 1_024),
    "240M": Shape(100_864, 768, 8, 8, 6_144, 256),
}
DEFAULT_SIZES = {"cpu": ("1M", "7M", "50M"), "cuda": ("240M",)}


def run(
    quick: bool = False,
    data: Path | None = None,
    sizes: tuple[str, ...] = (),
    limit: int | None = None,
    processes: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """Rows for the table and the ratios. `quick` takes few items and one batch size; `processes` adds whole runs.

    On a CPU both sides run in float32, on a GPU in bfloat16.
    """
    kind = device.split(":")[0]
    sizes = sizes or DEFAULT_SIZES.get(kind, ("7M",))
    unknown = [size for size in sizes if size not in SHAPES]
    if unknown:
        raise UserError(f"no model size {unknown[0]!r}: choose from {', '.join(SHAPES)}")
    limit = limit or (4 if quick else 20 if kind == "cpu" else 1000)
    batch_sizes: tuple[int, ...] = BATCH_SIZES if kind == "cpu" else (32, 128)  # fewer starve a GPU
    if quick:
        sizes, batch_sizes = sizes[:1], (8,)
    with tempfile.TemporaryDirectory(prefix="evalengine-bench-") as folder:
        work = Path(folder)
        data = data or world_data(work)
        item_sets = read_items(data, limit)
        rows: list[list[str]] = []
        ratios: dict[str, float] = {}
        for size in sizes:
            path = make_checkpoint(work / f"{size}-bench-pt", SHAPES[size], data)
            row = compare(path, item_sets, batch_sizes, 1 if quick else 3, device)
            ratios |= {
                f"{size}: lm-eval / evalengine": row["ratio"],
                f"{size}: floor / evalengine": row["of_floor"],
                f"{size}: with a plain head / evalengine": row["head"],
            }
            rows.append([size, *row["cells"]])
        if processes:
            row = whole_processes(work, data, limit=limit)
            ratios["six checkpoints, whole processes"] = row["ratio"]
            console.say(row["line"])
    return {
        "title": f"Scoring loop, {len(item_sets)} benchmarks x {limit} items, {where(device)}",
        "columns": [
            "model",
            "params",
            "items",
            "lm-eval s (batch)",
            "evalengine s",
            "ratio",
            "with tokenising",
            "plain head",
            "GFLOP/s",
            "GEMM",
            "of floor",
        ],
        "rows": rows,
        "ratios": ratios,
    }


def where(device: str) -> str:
    import torch

    return f"float32, {torch.get_num_threads()} threads" if device == "cpu" else f"bfloat16, {device}"


def world_data(work: Path) -> Path:
    from evalengine.benchmarks import world

    world.write(work / "world", seed=0)
    return work / "world" / "bench"


def read_items(data: Path, limit: int | None) -> list[Any]:
    from evalengine.benchmarks import benchmarks_in, load_items, resolve

    found = benchmarks_in(data, resolve("all"))
    if not found:
        raise UserError(f"{data} holds no benchmark files: give --data a folder of <benchmark>.jsonl files")
    return [load_items(benchmark, data, limit=limit) for benchmark in found]


def make_checkpoint(path: Path, shape: Shape, data: Path, seed: int = 0) -> Path:
    """A random model with a byte-level BPE tokenizer trained on the folder's own text, padded to the vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer(shape.vocab, data)
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.ffn,
        head_dim=shape.head_dim or shape.hidden // shape.heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def train_tokenizer(vocab: int, data: Path) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train([str(p) for p in sorted(data.glob("*.jsonl"))], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def compare(
    path: Path, item_sets: list[Any], batch_sizes: tuple[int, ...], repeats: int, device: str
) -> dict[str, Any]:
    """One model: our loop, lm-eval's loop, the floor."""
    from evalengine import plans
    from evalengine.checkpoints import discover
    from evalengine.encoding import Encoder, encode, window_of
    from evalengine.tokenizer import load_tokenizer
    from evalengine.torch_backend import TorchBackend

    (checkpoint,) = discover([path])
    backend = TorchBackend(device=device)
    backend.load(checkpoint)
    tokenizer = load_tokenizer(checkpoint, False)
    encoder = Encoder(tokenizer, window_of(plans.load_config(checkpoint, False), tokenizer))
    started = time.perf_counter()
    encoded = [encode(items, encoder) for items in item_sets]
    tokenising = time.perf_counter() - started

    def ours() -> None:
        for e in encoded:
            backend.score(e.sequences)

    started = time.perf_counter()
    ours()
    first = time.perf_counter() - started
    seconds = statistics.median(timed(ours) for _ in range(repeats))
    forward = backend.forward
    forward._head = lambda state, row, token: plain_targets(state, row, token, forward.head)
    plain = statistics.median(timed(ours) for _ in range(repeats))
    del forward._head
    flops = unavoidable_flops(encoded, backend)
    rate = gemm_rate(device)
    peer = {size: lm_eval_seconds(path, item_sets, size, device) for size in batch_sizes}
    best = min(peer, key=lambda size: peer[size][0])
    loop, whole = peer[best]
    parameters = sum(p.numel() for p in backend.model.parameters()) if backend.model is not None else 0
    of_floor = flops / rate / seconds
    cells = [
        f"{parameters / 1e6:.1f}M",
        f"{sum(len(e.item) for e in encoded):,}",
        f"{loop:.2f} ({best})",
        f"{seconds:.2f}",
        f"{loop / seconds:.1f}x",
        f"{whole / (first + tokenising):.1f}x",
        f"{plain / seconds:.2f}x",
        f"{flops / seconds / 1e9:.0f}",
        f"{rate / 1e9:.0f}",
        f"{of_floor:.2f}",
    ]
    return {"cells": cells, "ratio": loop / seconds, "of_floor": of_floor, "head": plain / seconds}


def plain_targets(state: Any, row_T: np.ndarray, token_T: np.ndarray, head: Any) -> tuple[Any, Any]:
    """The head as one would write it: all logits of the scored rows, log_softmax, gather, argmax."""
    import torch

    row, token = (torch.from_numpy(a).to(state.device, torch.long) for a in (row_T, token_T))
    logprob_NV = torch.nn.functional.linear(state, head.weight_VD, head.bias_V).float().log_softmax(-1)
    greedy_T = logprob_NV.argmax(-1)[row] == token
    return logprob_NV[row, token], greedy_T


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def gemm_rate(device: str) -> float:
    """FLOP/s of a square GEMM, the best of ten: 2048-cube float32 on all CPU threads, 8192-cube bfloat16 on a GPU."""
    import torch

    n, dtype = (2048, torch.float32) if device == "cpu" else (8192, torch.bfloat16)
    a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)

    def multiply() -> None:
        torch.mm(a, b)
        if device != "cpu":
            torch.cuda.synchronize(device)

    multiply()
    return 2 * n**3 / min(timed(multiply) for _ in range(10))


def unavoidable_flops(encoded: list[Encoded], backend: Any) -> float:
    """2 per weight of the layers and distinct token, 4 per head dimension and attended pair, 2 D V per scored row."""
    model = backend.model
    config = model.config
    layers = sum(
        p.numel() for n, p in model.base_model.named_parameters() if p.dim() == 2 and "embed" not in n
    )
    tokens = rows = pairs = 0
    for e in encoded:
        for batch in packing.pack(e.sequences, backend.batch_tokens):
            tokens += batch.tokens
            rows += len(batch.row_R)
            pairs += int((batch.position_N[: batch.tokens].astype(np.int64) + 1).sum())
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    head = 2 * config.hidden_size * config.vocab_size
    return float(2 * layers * tokens + 4 * width * config.num_hidden_layers * pairs + head * rows)


def lm_eval_seconds(path: Path, item_sets: list[Any], batch_size: int, device: str) -> tuple[float, float]:
    """(seconds of lm-eval's loop over token ids, the same with its tokenising)."""
    try:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        raise UserError("the comparison needs lm-eval: pip install lm-eval==0.4.13 accelerate") from None
    logging.disable(logging.WARNING)
    dtype = "float32" if device == "cpu" else "bfloat16"
    model = HFLM(pretrained=str(path), batch_size=batch_size, dtype=dtype, device=device)
    requests = [
        Instance("loglikelihood", {}, pair, 0)
        for items in item_sets
        for item in items.items
        for pair in zip(item.contexts, item.continuations, strict=True)
    ]
    inner: list[float] = []
    loop = model._loglikelihood_tokens

    def watched(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        out = loop(*args, **kwargs)
        inner.append(time.perf_counter() - started)
        return out

    model._loglikelihood_tokens = watched
    model.loglikelihood(requests[:8], disable_tqdm=True)
    inner.clear()
    whole = timed(lambda: model.loglikelihood(requests, disable_tqdm=True))
    logging.disable(logging.NOTSET)
    return inner[0], whole


PEER = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
import lm_eval_reference as reference
from lm_eval.models.huggingface import HFLM
tasks = reference.tasks(Path(sys.argv[3]), limit=int(sys.argv[4]))
model = HFLM(pretrained=sys.argv[2], batch_size=int(sys.argv[5]), dtype="float32", device="cpu")
for task in tasks.values():
    reference.scores(task, model)
"""


def whole_processes(work: Path, data: Path, limit: int, count: int = 6, size: str = "7M") -> dict[str, Any]:
    """`evalengine score` of six checkpoints against six lm-eval processes, start-up and tokenising included."""
    tests = Path(__file__).resolve().parent.parent / "tests"
    if not (tests / "lm_eval_reference.py").is_file():
        raise UserError("--processes needs the repository's tests folder: run it from a clone")
    paths = [make_checkpoint(work / f"{size}-m{i}-pt", SHAPES[size], data, seed=i) for i in range(count)]
    environment = os.environ | {"EVALENGINE_CACHE": str(work / "cache"), "HF_HUB_OFFLINE": "1"}

    def ours() -> None:
        out = work / "scores"
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(work / "cache", ignore_errors=True)
        command = [sys.executable, "-m", "evalengine", "score", *map(str, paths), "--data", str(data)]
        command += ["--limit", str(limit), "--out", str(out), "--json"]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)

    def theirs(batch_size: int, some: list[Path]) -> None:
        for path in some:
            command = [
                sys.executable,
                "-c",
                PEER,
                str(tests),
                str(path),
                str(data),
                str(limit),
                str(batch_size),
            ]
            subprocess.run(
                command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )

    best = min(BATCH_SIZES, key=lambda b: timed(lambda: theirs(b, paths[:1])))
    our_seconds, their_seconds = timed(ours), timed(lambda: theirs(best, paths))
    line = (
        f"{count} checkpoints ({size}), whole processes, {limit} items a benchmark: lm-eval {their_seconds:.1f} s (batch {best}),"
        f" evalengine {our_seconds:.1f} s, ratio {their_seconds / our_seconds:.1f}x"
    )
    return {"line": line, "ratio": their_seconds / our_seconds}
