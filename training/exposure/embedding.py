"""Cosine between the static embeddings of items and chunks: wordllama's, the mean of 256-dimensional token vectors."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evalengine.errors import UserError
from evalengine.training.exposure.chunks import Chunk, Queries

TILE = 2048  # queries scored at once
BATCH = 16  # texts embedded at once, padded to the longest
CHARS = 8192  # of a chunk; 256 words of prose are about 1,500


class Embedding:
    """Scores every query against a block of chunks: [queries, chunks], a tile of queries at a time."""

    temperature = 0.05  # of the cosine, as in SimCSE (Gao et al., 2021)

    def __init__(self, queries: Queries) -> None:
        self._model = wordllama_model()
        count = len(queries.choice_Q)
        tiles = [queries.texts(start, start + TILE) for start in range(0, count, TILE)]
        self._query_QD = np.concatenate([self._unit(texts) for texts in tiles])

    def scores(self, block: Sequence[Chunk]) -> Iterator[tuple[slice, np.ndarray]]:
        chunk_CD = self._unit([chunk.text[:CHARS] for chunk in block])
        for start in range(0, len(self._query_QD), TILE):
            tile = slice(start, start + TILE)
            yield tile, self._query_QD[tile] @ chunk_CD.T

    def _unit(self, texts: list[str]) -> np.ndarray:
        """Vectors of length one; that of a text without a token is zero."""
        vector_TD = self._model.embed(texts, batch_size=BATCH)
        return vector_TD / np.maximum(np.linalg.norm(vector_TD, axis=1, keepdims=True), 1e-12)


def wordllama_model() -> Any:
    """The model of 256 dimensions whose weights and tokenizer the wheel holds; nothing is downloaded.

    The wheel keeps the tokenizer in a folder where the package looks for a cached download, and not for its own files.
    """
    root, guard = logging.getLogger(), logging.NullHandler()
    root.addHandler(guard)  # the package would give the root logger a handler of its own
    try:
        import wordllama
    finally:
        root.removeHandler(guard)
    try:
        return wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    except FileNotFoundError as error:
        raise UserError(f"wordllama lacks its files ({error}): pip install 'evalengine[exposure]'") from None
