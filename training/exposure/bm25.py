"""BM25 of items against blocks of chunks, with the statistics of the whole corpus.

score(query, chunk) = sum over the query's words w of idf(w) tf / (tf + k1 (1 - b + b length / mean length)) with
idf(w) = log(1 + (N - n_w + 0.5) / (n_w + 0.5)): Lucene's variant (Kamphuis et al., 2020), as bm25s computes it. N chunks,
their mean length and n_w, the chunks that hold w, are those of all sources together, so that scores compare between sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evalengine.training.data.contamination import words
from evalengine.training.exposure.chunks import Chunk, Queries

K1, B = 1.5, 0.75  # the defaults of bm25s
TILE = 512  # queries scored at once


@dataclass
class CorpusStatistics:
    """What the first pass over all sources counts. Its size is that of the queries' vocabulary."""

    vocabulary: dict[str, int]
    holding_V: np.ndarray  # chunks that hold the word
    chunks: int = 0
    words: int = 0

    @classmethod
    def of(cls, queries: Queries) -> CorpusStatistics:
        found = dict.fromkeys(w for text in (*queries.contexts, *queries.continuations) for w in words(text))
        return cls({word: place for place, word in enumerate(found)}, np.zeros(len(found), np.int64))

    def add(self, chunk: Chunk) -> None:
        self.chunks += 1
        self.words += len(chunk.words)
        for word in self.vocabulary.keys() & set(chunk.words):
            self.holding_V[self.vocabulary[word]] += 1


def idf(holding_V: np.ndarray, chunks: int) -> np.ndarray:
    return np.log1p((chunks - holding_V + 0.5) / (holding_V + 0.5))


class Bm25:
    """Scores every query against a block of chunks: [queries, chunks], a tile of queries at a time."""

    temperature = 1.0  # a sum of log odds, in nats (Robertson and Zaragoza, 2009)

    def __init__(self, queries: Queries, corpus: CorpusStatistics) -> None:
        self._queries, self._corpus = queries, corpus
        self._context_KV = self._counts(queries.contexts)
        self._continuation_KV = self._counts(queries.continuations)

    def scores(self, block: Sequence[Chunk]) -> Iterator[tuple[slice, np.ndarray]]:
        weight_VC = self._index(block)
        for start in range(0, len(self._queries.choice_Q), TILE):
            tile = slice(start, start + TILE)
            # a sum over words: an item's context is scored once for all its choices
            context, which = np.unique(self._queries.context_Q[tile], return_inverse=True)
            score_TC = (self._continuation_KV[self._queries.continuation_Q[tile]] @ weight_VC).toarray()
            score_TC += (self._context_KV[context] @ weight_VC).toarray()[which]
            yield tile, score_TC

    def _index(self, block: Sequence[Chunk]) -> Any:
        """The index that bm25s makes of the block alone, brought to the corpus's mean length and idf."""
        import bm25s
        from scipy.sparse import csc_array

        corpus, other = self._corpus, len(self._corpus.vocabulary)
        id_C = [[corpus.vocabulary.get(word, other) for word in chunk.words] for chunk in block]
        # k1 (1 - b + b length / mean) with the mean of the corpus, in terms of the block's own mean
        constant = K1 * (1 - B)
        slope = K1 * B * (sum(map(len, id_C)) / len(id_C)) / (corpus.words / corpus.chunks)
        index = bm25s.BM25(k1=constant + slope, b=slope / (constant + slope), method="lucene")
        index.index((id_C, {**corpus.vocabulary, "": other}), create_empty_token=False, show_progress=False)
        weight, chunk, start = (index.scores[key] for key in ("data", "indices", "indptr"))
        holding_V = np.diff(start)[:other]
        ratio_V = np.append(idf(corpus.holding_V, corpus.chunks) / idf(holding_V, len(block)), 0)
        weight = weight * np.repeat(ratio_V, np.diff(start)).astype(np.float32)
        return csc_array((weight, chunk, start), shape=(len(block), other + 1)).T.tocsr()

    def _counts(self, texts: Sequence[str]) -> Any:
        """How often each text holds each word, sparse; the last column, for all other words, is empty."""
        from scipy.sparse import csr_array

        ids = [[self._corpus.vocabulary[word] for word in words(text)] for text in texts]
        start = np.cumsum([0, *map(len, ids)])
        flat = np.fromiter((id for some in ids for id in some), np.int64, start[-1])
        shape = (len(texts), len(self._corpus.vocabulary) + 1)
        counts = csr_array((np.ones(len(flat), np.float32), flat, start), shape=shape)
        counts.sum_duplicates()
        return counts
