"""Documents cut into chunks of 256 words, and the questions asked of them: an item's context with one choice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np

from evalengine.benchmarks.load import ItemSet
from evalengine.errors import UserError
from evalengine.training.data.contamination import WORD, words
from evalengine.training.exposure.table import coded

WORDS = 256


class Chunk(NamedTuple):
    text: str
    words: list[str]


def chunks(document: str) -> list[Chunk]:
    """A document's words 1 to 256, 257 to 512 and so on, each with its text; none crosses into another document."""
    starts = [word.start() for word in WORD.finditer(document)]
    texts = [document[start:end] for start, end in pairwise([*starts[::WORDS], len(document)])]
    return [Chunk(text, words(text)) for text in texts]


def blocks(documents: Iterable[str], size: int) -> Iterator[list[Chunk]]:
    """The chunks of all documents in order, `size` at a time."""
    stream = (chunk for document in documents for chunk in chunks(document))
    while block := list(islice(stream, size)):
        yield block


class Queries(NamedTuple):
    """Every choice of every item, after its context. A choice without a word in it or its context is left out."""

    benchmark_Q: list[str]
    item_Q: list[str]
    choice_Q: np.ndarray  # int16
    contexts: list[str]  # distinct: the choices of an item mostly share one
    continuations: list[str]  # distinct, with the delimiter in front: no word spans the boundary
    context_Q: np.ndarray  # position in contexts
    continuation_Q: np.ndarray

    def texts(self, start: int, stop: int) -> list[str]:
        pairs = zip(self.context_Q[start:stop], self.continuation_Q[start:stop], strict=True)
        return [self.contexts[context] + self.continuations[choice] for context, choice in pairs]


def queries(items: Iterable[ItemSet]) -> Queries:
    """Raises UserError where no choice holds a word."""
    asked = [
        (some.benchmark, item.id, choice, context, continuation)
        for some in items
        for item in some.items
        for choice, (context, continuation) in enumerate(zip(item.contexts, item.continuations, strict=True))
        if WORD.search(context) or WORD.search(continuation)
    ]
    if not asked:
        raise UserError("no item holds a word: there is nothing to compare with the sources")
    benchmark, item, choice, context, continuation = map(list, zip(*asked, strict=True))
    contexts, context_Q = coded(context)
    continuations, continuation_Q = coded(continuation)
    choice_Q = np.array(choice, np.int16)
    return Queries(benchmark, item, choice_Q, contexts, continuations, context_Q, continuation_Q)
