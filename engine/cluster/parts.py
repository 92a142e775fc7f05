"""A benchmark scored in parts, on several workers, with the bits of the whole.

What decides a row's bits is the forward it runs in and the group of rows that the head takes at once. Both follow from the
plan and --batch-tokens; a part is a run of whole groups, so each forward and each call of the head is exactly the one that a
single process makes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from evalengine.packing import Batch
from evalengine.types import Scores

if TYPE_CHECKING:
    from evalengine.encoding import Sequences

PART_TOKENS = 200_000  # tokens of a plan for each part: about a minute of a 7M model on two cores


class PartFailed(Exception):
    """Memory ran out in a part, or the model does not run packed: one worker must score the whole, its own way."""


def count(tokens: int, backend: str) -> int:
    """Into how many parts a benchmark of `tokens` is cut. vLLM makes its own batches: it gets whole benchmarks."""
    return max(1, -(-tokens // PART_TOKENS)) if backend == "torch" else 1


def groups(batches: list[Batch], head_rows: int) -> list[list[Batch]]:
    """The batches whose rows the head takes together."""
    out: list[list[Batch]] = [[]]
    waiting = 0
    for batch in batches:
        out[-1].append(batch)
        waiting += len(batch.row_R)
        if waiting >= head_rows:
            out.append([])
            waiting = 0
    return [group for group in out if group]


def part_of(batches: list[Batch], part: int, parts: int, head_rows: int) -> list[Batch]:
    """The batches of one part: consecutive groups, about equally many tokens each, behind the shared prefix if there is one."""
    prefix = [batch for batch in batches[:1] if batch.is_prefix]
    cut = groups(batches[len(prefix) :], head_rows)
    size = np.array([sum(batch.tokens for batch in group) for group in cut])
    middle = np.cumsum(size) - size / 2
    owner = (middle * parts / max(size.sum(), 1)).astype(int)
    mine = [batch for group, who in zip(cut, owner, strict=True) if who == part for batch in group]
    return prefix + mine if mine else []


def score_part(
    backend: Any,
    sequences: Sequences,
    part: int,
    parts: int,
    progress: Callable[[float], None] | None = None,
) -> Scores:
    """Scores of the sequences in this part; the others have loglik 0 and greedy True. Raises PartFailed.

    A model that cannot share prefixes has its order of batches from one pass over all: its first part is the whole.
    """
    from evalengine.forward import HEAD_ROWS

    if not backend.packs(sequences):
        return backend.score(sequences, progress) if part == 0 else backend.score_batches(sequences, [])
    batches = part_of(backend.batches(sequences), part, parts, HEAD_ROWS)
    try:
        return backend.score_batches(sequences, batches, progress)
    except Exception as error:
        raise PartFailed from error


def merge(parts: list[Scores]) -> Scores:
    """The whole from its parts: each sequence lies in one of them, and x + 0 = x."""
    return Scores(
        np.sum([part.loglik for part in parts], axis=0),
        np.logical_and.reduce([part.greedy for part in parts]),
    )
