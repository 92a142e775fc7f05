"""What a score may be: the engine beside plain transformers and lm-evaluation-harness, on one checkpoint.

For a causal model the log-likelihood of a choice is that of a plain forward of this one sequence through the model's own head:
to `FLOAT32` nats in float32, and in half precision no further from the float32 truth than twice the largest error of the plain
forward in that precision, plus `HALF` nats.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from evalengine.checkpoints.pretrained import text_config
from evalengine.checkpoints.resolve import discover
from evalengine.errors import UserError
from evalengine.model.torch_backend import DTYPES, TorchBackend
from evalengine.plan.encoding import Encoder, Sequences, merge, window_of

FLOAT32 = 1e-3
HALF = 0.05
Pair = tuple[str, str]  # context, continuation

SHORT = [
    ("The man turned on the faucet, so", [" the toilet filled with water.", " water flowed from the spout."]),
    ("The girl found a bug in her cereal, so", [" she poured milk in the bowl.", " she lost her appetite."]),
    ("Is a frog an amphibian? (", ["y", "n"]),
    ("The sky is (", ["A", "B", "C"]),
    ("", ["The glass broke.", "He kneads dough."]),
]
MIDDLE = [
    (
        "Ann asked Eve for help because Ann could not open the jar of plum jam by herself. The helpful one was",
        0,
    ),
    (
        "Ann asked Eve for help because Eve could not open the jar of plum jam by herself. The helpful one was",
        0,
    ),
    ("It was day 3. The hamburger meat browned over a slow fire in the yard behind the old mill, because", 1),
    ("It was day 4. The hamburger meat browned over a slow fire in the yard behind the old mill, because", 1),
]
ENDINGS = [[" Ann, of course.", " Eve.", " nobody"], [" the cook froze it.", " the cook grilled it!"]]
RAIN = "It rained all day and the road was wet, so the bus came late to the village. "
LONG = (RAIN * 5 + "The hamburger meat browned, because", [" the cook froze it.", " he grilled it."])
SHOTS = (RAIN * 2, [("The sky is", [" grey today", " green", " a"]), ("The grass is", [" dry", " wet"])])


class Items(NamedTuple):
    """Pairs of context and continuation, and the sequences that score them."""

    pairs: list[Pair]
    sequences: Sequences
    sequence_P: np.ndarray


class Scores(NamedTuple):
    """Log-likelihoods of the sequences in nats, how the engine ran, and what it said; `loglik` is None where it refused."""

    loglik: np.ndarray | None
    path: str
    notes: list[str]


class Exact(NamedTuple):
    """Log-likelihoods by plain forwards, and whether each sequence needed a fresh model because forwards leave state behind."""

    loglik: np.ndarray
    alone: bool


class Truth(NamedTuple):
    """What plain forwards give: in float32, and in the precision asked for (None where transformers cannot run in it)."""

    loglik: np.ndarray
    plain: np.ndarray | None
    why: str = ""

    @property
    def error(self) -> float:
        """Largest error of the plain forward in its precision, nats."""
        return float("nan") if self.plain is None else float(np.abs(self.plain - self.loglik).max())


def mixed(long: bool = True) -> list[Pair]:
    """Short and middle items, shared contexts, one-token choices, an empty context, and one item longer than any window."""
    pairs = [(context, choice) for context, choices in SHORT for choice in choices]
    pairs += [(context, choice) for context, kind in MIDDLE for choice in ENDINGS[kind]]
    return pairs + [(LONG[0], choice) for choice in LONG[1]] * long


def shots() -> list[Pair]:
    """Items that all begin with the same examples: the prefix that is kept."""
    return [(SHOTS[0] + question, choice) for question, choices in SHOTS[1] for choice in choices]


def few() -> list[Pair]:
    """One item of each kind of `mixed`: for tests that cannot take long."""
    chosen = [SHORT[1], SHORT[3], SHORT[4], (MIDDLE[0][0], ENDINGS[0]), (MIDDLE[1][0], ENDINGS[0][:1]), LONG]
    return [(context, choice) for context, choices in chosen for choice in choices[:2]]


def benchmark_pairs(folder: Path, limit: int) -> list[Pair]:
    """The first items of COPA and Winogrande of a folder of benchmark files."""
    from evalengine.benchmarks import resolve
    from evalengine.benchmarks.load import load_items

    pairs: list[Pair] = []
    for name in ("copa", "winogrande"):
        for item in load_items(resolve(name, [])[0], folder).items[:limit]:
            pairs += zip(item.contexts, item.continuations, strict=True)
    return pairs


def encoded(path: Path, pairs: Sequence[Pair]) -> Items:
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    encoder = Encoder(tokenizer, window_of(AutoConfig.from_pretrained(path)))
    distinct = merge(encoder.pairs(list(pairs)), encoder.window)
    return Items(list(pairs), distinct.sequences, distinct.sequence_P)


# --- the engine


def engine(dtype: str, **options: Any) -> TorchBackend:
    return TorchBackend(**{"device": "cpu", **options}, dtype=dtype)


def load(backend: TorchBackend, path: Path) -> None:
    backend.load(discover([path])[0])


def score(backend: TorchBackend, path: Path, *parts: Sequences) -> Scores:
    """Loads a checkpoint and scores the parts one after the other, as benchmarks; a refusal is a result, a crash is not."""
    try:
        load(backend, path)
        loglik = np.concatenate([backend.score(part).loglik for part in parts])
    except UserError as refusal:
        return Scores(None, "refused", [str(refusal)])
    return Scores(loglik, way(backend), list(backend.notes))


def way(backend: TorchBackend) -> str:
    """How the loaded model runs, in the words of the table."""
    notes = " ".join(backend.notes)
    if "output layer is its own" in notes:
        return "one sequence per choice, own head"
    if "one sequence per choice" in notes:
        return "one sequence per choice"
    return "packed"


# --- the plain forward


def truth(
    path: Path, dtype: str, *parts: Sequences, device: str = "cpu", exact: Exact | None = None
) -> Truth:
    """Plain forwards of single sequences in float32 and in `dtype`; `exact` is the former where it is known.

    Raises what transformers raises in float32.
    """
    exact = exact or plain(path, "float32", *parts, device=device)
    if dtype == "float32":
        return Truth(exact.loglik, exact.loglik)
    try:
        return Truth(exact.loglik, plain(path, dtype, *parts, device=device, alone=exact.alone).loglik)
    except Exception as error:
        return Truth(exact.loglik, None, f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")


def plain(path: Path, dtype: str, *parts: Sequences, device: str = "cpu", alone: bool | None = None) -> Exact:
    """A forward of each sequence by itself. `alone` None finds out whether a forward leaves state behind, by running them all in
    both directions; where it does, each sequence gets a fresh model."""
    model = loaded(path, dtype, device)
    rows = [(part.tokens(s), int(part.start[s])) for part in parts for s in range(len(part))]
    if not alone:
        fresh = copy.deepcopy(model) if alone is None else None
        there = np.array([one(model, *row) for row in rows])
        if fresh is None or np.allclose(there, [one(fresh, *row) for row in reversed(rows)][::-1], 0, 1e-4):
            return Exact(there, False)
        model = loaded(path, dtype, device)
    return Exact(np.array([one(copy.deepcopy(model), *row) for row in rows]), True)


def loaded(path: Path, dtype: str, device: str = "cpu") -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path)
    # Some versions of transformers choose an attention that drops this soft-cap without a word.
    capped = getattr(text_config(config), "attn_logit_softcapping", None)
    attention = {"attn_implementation": "eager"} if capped else {}
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype], **attention)
    return model.to(device).eval()


@torch.inference_mode()
def one(model: Any, tokens: np.ndarray, start: int) -> float:
    ids = torch.from_numpy(tokens.astype(np.int64)).to(model.device)
    logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0]
    logprob = logits[start - 1 :].float().log_softmax(-1)
    return float(logprob.double().gather(1, ids[start:, None]).sum())


class Habits(NamedTuple):
    """What a plain float32 forward does beside giving logits: largest differences of log-probabilities, nats."""

    ahead: float  # of earlier tokens, when a later token changes: not causal
    longer: float  # of the first 20 tokens, when more tokens follow: arithmetic that depends on length
    again: float  # of the same call, twice: random
    kept: float  # of a short call, after a long one: state is left over


@torch.inference_mode()
def habits(path: Path, length: int = 100) -> Habits:
    """Four calls that show what a plain forward depends on."""
    generator = torch.Generator().manual_seed(1)
    model = loaded(path, "float32")
    ids = torch.randint(1, 300, (1, length), generator=generator)
    changed = ids.clone()
    changed[0, 60:] = torch.randint(1, 300, (length - 60,), generator=generator)

    def logprob(tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits[0]
        return logits.float().log_softmax(-1)

    def apart(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).abs().max())

    short, whole = logprob(ids[:, :20]), logprob(ids)
    again, other, kept = logprob(ids), logprob(changed), logprob(ids[:, :20])
    return Habits(
        apart(whole[:60], other[:60]), apart(short, whole[:20]), apart(whole, again), apart(short, kept)
    )


# --- lm-evaluation-harness


def harness(path: Path, dtype: str, items: Items, device: str = "cpu") -> np.ndarray:
    """What HFLM gives at batch size 1, with its softmax in float32, for each sequence."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=str(path), dtype=dtype, device=device, batch_size=1, softmax_dtype="float32")
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(items.pairs)]
    loglik = np.zeros(len(items.sequences))
    loglik[items.sequence_P] = [float(answer[0]) for answer in lm.loglikelihood(requests, disable_tqdm=True)]
    return loglik


# --- the verdict


class Verdict(NamedTuple):
    """`largest` is the engine's distance from the truth in nats, `allowed` what it may be; `beyond` counts the choices that are
    further from the truth than twice their own plain error plus the margin."""

    kept: bool
    largest: float
    allowed: float
    beyond: int


def verdict(scores: np.ndarray, right: Truth, dtype: str) -> Verdict:
    """Holds scores against the contract. In a precision that transformers cannot run the model in, half a nat is allowed."""
    apart = np.abs(scores - right.loglik)
    if dtype == "float32":
        each, allowed = np.full(len(apart), FLOAT32), FLOAT32
    elif right.plain is None:
        each, allowed = np.full(len(apart), 0.5), 0.5
    else:
        each, allowed = 2 * np.abs(right.plain - right.loglik) + HALF, 2 * right.error + HALF
    largest = float(apart.max()) if np.isfinite(apart).all() else float("inf")
    return Verdict(largest <= allowed, largest, allowed, int((~(apart <= each)).sum()))
