"""Score stores of any size: the scoring loop itself over checkpoints without a model, with a backend that answers at once.

Every checkpoint has an ability of its own, by which its gold choices are more likely: there is something to correlate.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evalengine import runner
from evalengine.benchmarks import Item, ItemSet, resolve
from evalengine.checkpoints import Checkpoint
from evalengine.encoding import Sequences
from evalengine.errors import UserError
from evalengine.resolve import discover
from evalengine.resume import Options
from evalengine.types import Scores

WORDS = 100_000  # of the vocabulary: numbers; the tokenizer's file has 2 MB, as real ones do
GOLD = 0  # token id of the word that every right choice is
Sizes = Mapping[str, tuple[int, int]]  # benchmark: number of items, choices of each


class Instant:
    """A backend that makes its scores up."""

    name, dtype = "torch", "float32"

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.draw, self.ability = np.random.default_rng(0), 0.0

    def load(self, checkpoint: Checkpoint) -> None:
        self.ability = self.draw.normal()

    def close(self) -> None:
        """Nothing was started."""

    def score(self, sequences: Sequences, progress: Any = None) -> Scores:
        last = sequences.token_S[sequences.offset[1:] - 1]
        loglik = self.draw.normal(-20, 3, len(sequences)) + self.ability * (last == GOLD)
        return Scores(loglik, loglik > -18)


class Unneeded(Instant):
    """The backend of a run that has nothing left to score."""

    def load(self, checkpoint: Checkpoint) -> None:
        raise UserError("its scores are not complete")


def make_checkpoints(folder: Path, names: Iterable[str]) -> list[Checkpoint]:
    """Checkpoint folders with a configuration, a tokenizer and a few bytes of weights: what planning and resuming read."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["right", "</s>", *map(str, range(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    first, *others = (folder / name for name in names)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(first)
    (first / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 512}')
    for path in others:
        shutil.copytree(first, path)
    for i, path in enumerate([first, *others]):
        (path / "model.safetensors").write_bytes(i.to_bytes(8, "little"))
    return discover(sorted(folder.iterdir()))


def item_sets(sizes: Sizes) -> list[tuple[ItemSet, str]]:
    """Rendered items of these benchmarks, with the name of their default score."""
    categories = {b.name: b.category for b in resolve("all")}
    sets = []
    for name, (count, choices) in sizes.items():
        items = [make_item(f"{name}-{i}", i, choices) for i in range(count)]
        category = categories.get(name, "synthetic")
        sets.append(
            (ItemSet(name, category, "1", None, items, data_hash=f"{count:016x}", total=count), "acc")
        )
    return sets


def make_item(name: str, number: int, choices: int) -> Item:
    gold = number % choices
    words = tuple("right" if c == gold else str(c) for c in range(choices))
    return Item(name, (str(number),) * choices, tuple(f" {word}" for word in words), words, gold)


def write_store(checkpoints: list[Checkpoint], sizes: Sizes, out: Path) -> None:
    score(checkpoints, sizes, out, Instant())


def check_complete(checkpoints: list[Checkpoint], sizes: Sizes, out: Path) -> None:
    """A run over what is stored: fingerprints every checkpoint, compares every file. Raises UserError if any is missing."""
    score(checkpoints, sizes, out, Unneeded())


def score(checkpoints: list[Checkpoint], sizes: Sizes, out: Path, backend: Instant) -> None:
    outcomes = runner.score(checkpoints, item_sets(sizes), backend, out, Options())
    failed = [o for o in outcomes if o.failure]
    if failed:
        raise UserError(f"{failed[0].checkpoint.name}: {failed[0].failure}")
