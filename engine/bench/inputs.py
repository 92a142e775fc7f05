"""What the targets measure on: randomly initialised Llamas with a tokenizer, and items."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from evalengine import records
from evalengine.benchmarks import ItemSet, held, load_items, resolve
from evalengine.benchmarks.load import SUFFIXES, data_file
from evalengine.errors import UserError


class ModelSize(NamedTuple):
    """A Llama-shaped model. Embeddings are tied."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    ffn: int
    head_dim: int | None = None  # default: hidden / heads


SHAPES = {
    "1M": ModelSize(5_000, 96, 4, 3, 256),
    "7M": ModelSize(16_000, 256, 5, 4, 512),
    "50M": ModelSize(100_000, 384, 8, 6, 1_024),
    "240M": ModelSize(100_864, 768, 8, 8, 6_144, 256),
}


def sizes_of(text: str) -> list[str]:
    """The names of comma-separated sizes. Raises UserError for one that does not exist."""
    for size in text.split(","):
        if size not in SHAPES:
            raise UserError(f"no model size {size!r}: choose from {', '.join(SHAPES)}")
    return text.split(",")


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder, which also holds this process's caches: planning and compiling start cold and leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="evalengine-bench-") as folder:
        names = {"EVALENGINE_CACHE": "", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
        given = {name: str(Path(folder, "cache", part)) for name, part in names.items()}
        given["HF_HUB_OFFLINE"] = "1"
        with mock.patch.dict(os.environ, given):
            yield Path(folder)


def world_data(work: Path, **sizes: int) -> Path:
    """A folder of benchmark files from the embedded world."""
    from evalengine.benchmarks import world

    world.write(work / "world", seed=0, **sizes)
    return work / "world" / "bench"


def files_in(data: Path) -> list[Path]:
    """The JSON Lines and Parquet files beside a data folder's benchmarks. Raises UserError where it holds none."""
    folders = {
        path.parent for one in held(data, resolve("all")) if (path := data_file(one, data)) is not None
    }
    return sorted(path for folder in folders for path in folder.iterdir() if path.suffix in SUFFIXES)


def lines_of(path: Path) -> list[str]:
    """The rows of a file as lines of JSON, in its order."""
    if path.suffix == ".parquet":
        return [json.dumps(row) + "\n" for _, row in records.parquet(path)]
    return [f"{line}\n" for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def first_items(data: Path, limit: int | None, folder: Path) -> Path:
    """A folder of the same benchmarks with the first `limit` items of each, train files whole; None: `data` itself."""
    if limit is None:
        return data.resolve()
    paths = files_in(data)
    folder.mkdir()
    for path in paths:
        lines = lines_of(path)
        whole = path.stem.endswith(("_train", "_test"))
        (folder / f"{path.stem}.jsonl").write_text(
            "".join(lines if whole else lines[:limit]), encoding="utf-8"
        )
    return folder


def read_items(data: Path, limit: int | None) -> list[ItemSet]:
    """Every benchmark of a folder, at most `limit` items of each. Raises UserError where it holds none."""
    return [load_items(benchmark, data, limit=limit) for benchmark in held(data, resolve("all"))]


def make_model(
    path: Path, shape: ModelSize, *, seed: int = 0, window: int = 2048, device: str = "cpu"
) -> Path:
    """A random model, without a tokenizer: float32 made on a CPU, bfloat16 on a GPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.ffn,
        head_dim=shape.head_dim or shape.hidden // shape.heads,
        max_position_embeddings=window,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.device(device):
        model: Any = LlamaForCausalLM(config)
    model.to(dtype=torch.float32 if device == "cpu" else torch.bfloat16).save_pretrained(path)
    return path


def make_checkpoints(work: Path, size: str, data: Path, count: int = 1, device: str = "cpu") -> list[Path]:
    """Random models of one of SHAPES with one tokenizer: byte-level BPE trained on the folder's own text, padded to the
    vocabulary."""
    tokenizer = train_tokenizer(SHAPES[size].vocab, data)
    paths = [work / f"{size}-m{i}-pt" for i in range(count)]
    for seed, path in enumerate(paths):
        tokenizer.save_pretrained(path)
        make_model(path, SHAPES[size], seed=seed, device=device)
    return paths


def train_tokenizer(vocab: int, data: Path) -> Any:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    end, texts = "<|endoftext|>", chain.from_iterable(map(lines_of, files_in(data)))
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab, min_frequency=0, show_progress=False, special_tokens=[end])
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token=end)
