"""The batches of fine-tuning: each step's tokenised conversations, packed into few rows.

Dims: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evalengine.training.data.conversations import Example
from evalengine.training.data.rows import IGNORE, TrainingBatch
from evalengine.training.study import FineTune


class Shuffled:
    """What each step of some epochs learns from: `per_step` of `count` examples, in an order of its own every epoch.

    An epoch is whole steps: the last count % per_step of its order, others in every epoch, are left out.
    """

    def __init__(self, count: int, per_step: int, *, epochs: int, seed: int) -> None:
        self.count, self.per_step, self.seed = count, min(per_step, count), seed
        self.steps_per_epoch = count // self.per_step
        self.steps = epochs * self.steps_per_epoch

    def drawn(self, step: int) -> np.ndarray:
        epoch, within = divmod(step, self.steps_per_epoch)
        return self.of_epoch(epoch)[within * self.per_step : (within + 1) * self.per_step]

    def of_epoch(self, epoch: int) -> np.ndarray:
        """The examples of an epoch's steps, in order."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.count)
        return order[: self.steps_per_epoch * self.per_step]


def tokens_of_steps(lengths: Sequence[float], per_step: int, *, epochs: int, seed: int) -> int:
    """Tokens that the steps of all epochs are fed, of examples of these lengths."""
    if not lengths:
        return 0
    every, length_E = Shuffled(len(lengths), per_step, epochs=epochs, seed=seed), np.asarray(lengths)
    return int(sum(length_E[every.of_epoch(epoch)].sum() for epoch in range(epochs)))


def named(what: str, drawn: np.ndarray) -> str:
    """`Batch.contents` of these examples."""
    shown = ", ".join(str(i) for i in sorted(drawn)[:8])
    return f"{what} {shown}{', ...' if len(drawn) > 8 else ''}"


class PackedExamples(Shuffled):
    """The batches of a fine-tuning run."""

    def __init__(self, examples: list[Example], settings: FineTune, *, context: int, seed: int) -> None:
        super().__init__(len(examples), settings.batch_examples, epochs=settings.epochs, seed=seed)
        self.examples, self.context = examples, context

    def batch(self, step: int) -> TrainingBatch:
        drawn = self.drawn(step)
        return pack([self.examples[i] for i in drawn], self.context, named("conversations", drawn))


def pack(examples: Sequence[Example], context: int, contents: str) -> TrainingBatch:
    """Rows of at most `context` positions."""
    rows = first_fit([len(example.token_T) - 1 for example in examples], context)
    return lay_out([[examples[i] for i in row] for row in rows], contents)


def first_fit(needs: Sequence[int], room: int) -> list[list[int]]:
    """What each row holds: the longest first into the first row with room."""
    rows: list[list[int]] = []
    left: list[int] = []
    for i in sorted(range(len(needs)), key=lambda i: -needs[i]):
        place = next((r for r, free in enumerate(left) if free >= needs[i]), None)
        if place is None:
            rows.append([])
            left.append(room)
            place = len(rows) - 1
        rows[place].append(i)
        left[place] -= needs[i]
    return rows


def lay_out(rows: Sequence[Sequence[Example]], contents: str) -> TrainingBatch:
    """One example after another in each row; padding carries no loss."""
    width = max(sum(len(ids) - 1 for ids, _ in row) for row in rows)
    token = np.zeros((len(rows), width), np.int64)
    position = np.zeros((len(rows), width), np.int64)
    target = np.full((len(rows), width), IGNORE, np.int64)
    for r, row in enumerate(rows):
        at = 0
        for ids, learned in row:
            end = at + len(ids) - 1
            token[r, at:end], position[r, at:end] = ids[:-1], np.arange(len(ids) - 1)
            target[r, at:end] = np.where(learned[1:], ids[1:].astype(np.int64), IGNORE)
            at = end
        position[r, at:] = np.arange(width - at)
    return TrainingBatch(token, position, target, contents)
