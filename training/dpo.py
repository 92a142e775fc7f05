"""A run's preferences: the pairs that its fine-tuned model makes of the questions, and the batches of them.

The fine-tuned model scores every candidate once, before the first step. Its likeliest wrong choice becomes the rejected
response, and the same sums are the reference that training is held to: they are stored, and one model is in memory.
"""

from __future__ import annotations

from itertools import chain, islice
from operator import itemgetter
from pathlib import Path

import numpy as np

from evalengine.training import checked
from evalengine.training.data.conversations import Example
from evalengine.training.data.packed import Shuffled, first_fit, lay_out, named
from evalengine.training.data.preferences import Candidates
from evalengine.training.data.rows import IGNORE, NO_PAIR, Pairs, TrainingBatch
from evalengine.training.decoder.model import Decoder
from evalengine.training.fitting.state import Place
from evalengine.training.selection.frontier import loss_sums
from evalengine.training.study import Prefer

FORMAT = 1  # moves when the same preferences would give other weights


class Preferred(Shuffled):
    """The pairs of a run, and the batches that a run learns from: each step's pairs, packed into few rows by first fit."""

    def __init__(
        self,
        chosen: list[Example],
        rejected: list[Example],
        reference_P: np.ndarray,  # float64: log p(chosen) - log p(rejected) under the fine-tuned model
        settings: Prefer,
        *,
        beta: float,
        context: int,
        seed: int,
    ) -> None:
        super().__init__(len(chosen), settings.batch_pairs, epochs=settings.epochs, seed=seed)
        self.chosen, self.rejected, self.reference_P, self.beta = chosen, rejected, reference_P, beta
        self.needs = [len(a.token_T) + len(b.token_T) - 2 for a, b in zip(chosen, rejected, strict=True)]
        self.width = max(context, *self.needs)  # both responses of a pair are in one row

    def batch(self, step: int) -> TrainingBatch:
        drawn = self.drawn(step)
        rows = first_fit([self.needs[i] for i in drawn], self.width)
        examples = [[side[drawn[p]] for p in row for side in (self.chosen, self.rejected)] for row in rows]
        batch = lay_out(examples, named("pairs", drawn))
        document_BT = (batch.position_BT == 0).cumsum(axis=1) - 1  # within its row; the last may be padding
        label_BT = np.full(batch.target_BT.shape, NO_PAIR, np.int64)
        for r, row in enumerate(rows):
            label = np.array([*(2 * p + side for p in row for side in (0, 1)), NO_PAIR])
            label_BT[r] = label[document_BT[r]]
        label_BT[batch.target_BT == IGNORE] = NO_PAIR
        return batch._replace(pairs=Pairs(label_BT, self.reference_P[drawn], self.beta))


def logprobs(model: Decoder, candidates: Candidates, place: Place, path: Path, key: str) -> np.ndarray:
    """log p of every candidate's response under `model`, its closing token included: float64.

    Read from `path` where they were written for the same `key`; else computed, and written there.
    """
    kept = checked.read(path)
    if kept is not None and kept["key"] == key:
        return np.array(kept["logprobs"])
    logprob_C = -loss_sums(model, list(chain(*candidates)), place)
    if place.group.rank == 0:
        checked.write(path, {"key": key, "logprobs": logprob_C.tolist()})
    return logprob_C


def pairs_of(
    candidates: Candidates, logprob_C: np.ndarray
) -> tuple[list[Example], list[Example], np.ndarray]:
    """Each right response, the likeliest of its others, and the difference of their log-probabilities."""
    chosen, rejected, reference = [], [], []
    scored = zip(chain(*candidates), logprob_C.tolist(), strict=True)
    for group in candidates:
        right, *others = islice(scored, len(group))
        best = max(others, key=itemgetter(1))
        chosen.append(right[0])
        rejected.append(best[0])
        reference.append(right[1] - best[1])
    return chosen, rejected, np.array(reference)
