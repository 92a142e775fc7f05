"""From tokenised sources to training rows: shuffled, packed, mixed by token share, and random-access.

A row is `context` tokens cut from one source's shuffled stream of documents, each begun by `<|endoftext|>`.
Which row comes next, and what is in it, is a pure function of (seed, row number): no state to save, so a run
resumes exactly by its step number alone, and any number of workers sees the same batches.

Dims: B rows, T positions.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from evalengine.training.data.shards import TokenSource

IGNORE = -100  # a target that carries no loss
NO_PAIR = -1  # the label of such a target
MEASURES = ("margin", "accuracy")  # of pairs beyond their loss: beta * Delta, and whether it is above 0


class Pairs(NamedTuple):
    """Which targets of a batch are whose response, where one response of each pair is preferred."""

    # int64: 2 p at the targets of pair p's chosen response, 2 p + 1 at those of its rejected one, else NO_PAIR
    label_BT: np.ndarray
    reference_P: np.ndarray  # float64: log p(chosen) - log p(rejected) under the reference
    beta: float


class TrainingBatch(NamedTuple):
    """What one optimiser step learns from. `contents` names it in an error: its rows, conversations or pairs."""

    token_BT: np.ndarray  # int64
    position_BT: np.ndarray  # int64, 0 where a document begins
    target_BT: np.ndarray  # int64, the next token, or IGNORE
    contents: str
    pairs: Pairs | None = None  # of preferences

    @property
    def terms(self) -> int:
        """How many losses the batch's loss is the mean of: of pairs, or of targets."""
        return len(self.pairs.reference_P) if self.pairs else int((self.target_BT != IGNORE).sum())


class Stream:
    """An endless stream of a source's documents, reshuffled each epoch, cut into rows of `context` + 1 tokens."""

    def __init__(self, source: TokenSource, documents: np.ndarray, end: int, seed: int) -> None:
        self.source, self.documents, self.end = source, documents, end
        self.seed = (seed, zlib.crc32(source.name.encode()))
        self.epoch_tokens = int((source.length_M[documents] + 1).sum())
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(shuffled documents, where each ends in the epoch); the last two epochs are kept."""
        if epoch not in self._epochs:
            order = np.random.default_rng((*self.seed, epoch)).permutation(self.documents)
            self._epochs = {k: v for k, v in self._epochs.items() if k == epoch - 1}
            self._epochs[epoch] = order, np.cumsum(self.source.length_M[order] + 1)
        return self._epochs[epoch]

    def row(self, number: int, context: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and positions, (context + 1,) each, of row `number`; rows overlap by one token."""
        tokens, positions = np.empty(context + 1, np.int64), np.empty(context + 1, np.int64)
        filled, at = 0, number * context
        while filled <= context:
            epoch, offset = divmod(at, self.epoch_tokens)
            order, end_of = self._epoch(epoch)
            index = int(np.searchsorted(end_of, offset, side="right"))
            document = self.source.document(order[index])
            begin = offset - (int(end_of[index]) - len(document) - 1)  # 0: at the leading <|endoftext|>
            take = min(len(document) + 1 - begin, context + 1 - filled)
            piece = tokens[filled : filled + take]
            if begin == 0:
                piece[0] = self.end
                piece[1:] = document[: take - 1]
            else:
                piece[:] = document[begin - 1 : begin - 1 + take]
            positions[filled : filled + take] = np.arange(take)
            filled, at = filled + take, at + take
        return tokens, positions


class MixedRows:
    """The batches of a pretraining run: every mixture row, in order, evenly interleaved by token share."""

    def __init__(
        self,
        streams: Mapping[str, Stream],
        shares: Mapping[str, float],
        *,
        rows: int,
        context: int,
        batch_rows: int,
    ) -> None:
        self.names = sorted(name for name, share in shares.items() if share > 0)
        self.streams = [streams[name] for name in self.names]
        self.context, self.batch_rows = context, batch_rows
        self.source_R, self.number_R = interleave([shares[name] for name in self.names], rows)
        self.steps = rows // batch_rows

    def batch(self, step: int) -> TrainingBatch:
        rows = range(step * self.batch_rows, (step + 1) * self.batch_rows)
        drawn = [self.streams[self.source_R[r]].row(int(self.number_R[r]), self.context) for r in rows]
        tokens, positions = np.stack([t for t, _ in drawn]), np.stack([p for _, p in drawn])
        sources = sorted({self.names[self.source_R[r]] for r in rows})
        what = f"rows {rows.start} to {rows.stop - 1}, from {', '.join(sources)}"
        return TrainingBatch(tokens[:, :-1], positions[:, :-1], tokens[:, 1:], what)


def interleave(shares: list[float], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Assigns `rows` rows to sources: (source of each row, its number within that source).

    Counts are the shares' largest-remainder rounding; row j of n of a source is placed at (j + 1/2) / n, so
    every stretch of the run holds the mixture to within about one row of each source.
    """
    total = math.fsum(shares)  # 0.3333333 three times is short of 1 by a row in 10 million
    exact = np.asarray(shares, dtype=np.float64) * (rows if abs(total - 1) < 1e-12 else rows / total)
    counts = np.floor(exact).astype(np.int64)
    for index in np.argsort(-(exact - counts), kind="stable")[: rows - int(counts.sum())]:
        counts[index] += 1
    when = np.concatenate([(np.arange(n) + 0.5) / max(n, 1) for n in counts])
    source = np.repeat(np.arange(len(counts)), counts)
    number = np.concatenate([np.arange(n) for n in counts])
    order = np.lexsort((source, when))
    return source[order], number[order]
