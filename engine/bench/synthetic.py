"""Score stores of any size: the scoring loop itself over checkpoints without a model, with a backend that answers at once."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evalengine import runner
from evalengine.backends import Alone
from evalengine.benchmarks import BENCHMARKS, Item, ItemSet
from evalengine.checkpoints import Checkpoint
from evalengine.checkpoints.resolve import discover
from evalengine.errors import UserError
from evalengine.groups import CheckpointGroup
from evalengine.plan.encoding import Scores, Sequences
from evalengine.resume import Asked, ScoreOptions

WORDS = 100_000  # of the vocabulary: numbers; the tokenizer's file has 2 MB, as real ones do
Sizes = Mapping[str, tuple[int, int]]  # benchmark: number of items, choices of each


class Instant:
    """A backend that makes its scores up."""

    name, dtype = "torch", "float32"

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.draw = np.random.default_rng(0)

    def load(self, checkpoint: Checkpoint) -> None:
        """There is no model."""

    def close(self) -> None:
        """Nothing was started."""

    def score(self, sequences: Sequences, progress: Any = None) -> Scores:
        loglik = self.draw.normal(-20, 3, len(sequences))
        return Scores(loglik, loglik > -18)


def make_checkpoints(folder: Path, names: Iterable[str]) -> list[Checkpoint]:
    """Checkpoint folders with a configuration, a tokenizer and a few bytes of weights: what planning and resuming read."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {str(i): i for i in range(WORDS)} | {"</s>": WORDS}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    first, *others = (folder / name for name in names)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(first)
    (first / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 512}')
    for path in others:
        shutil.copytree(first, path)
    for i, path in enumerate([first, *others]):
        (path / "model.safetensors").write_bytes(i.to_bytes(8, "little"))
    return discover(sorted(folder.iterdir()))


def item_set(name: str, items: int, choices: int) -> ItemSet:
    """Items that begin with their number, under the name of a benchmark."""
    words = tuple(map(str, range(choices)))
    made = [
        Item(f"{name}-{i}", (str(i),) * choices, tuple(f" {word}" for word in words), words, i % choices)
        for i in range(items)
    ]
    return ItemSet(name, BENCHMARKS[name].category, "1", None, made, f"{items:016x}", items)


def score(checkpoints: list[Checkpoint], sizes: Sizes, out: Path) -> int:
    """Scores what the store does not hold; the number of files written. Raises UserError where a checkpoint fails."""
    sets = [(item_set(name, *size), "acc") for name, size in sizes.items()]
    groups = [CheckpointGroup((checkpoint,)) for checkpoint in checkpoints]
    outcomes = runner.run(groups, Asked(sets, out, ScoreOptions()), Alone(Instant()))
    for outcome in outcomes:
        if outcome.failure:
            raise UserError(f"{outcome.checkpoint.name}: {outcome.failure}")
    return sum(outcome.scored for outcome in outcomes)
