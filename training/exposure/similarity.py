"""Similarity of every item and choice with every source: BM25, static embeddings, importance weights.

All sources are streamed twice: once for the corpus's statistics, then block by block for the ten chunks of each
source that are most similar to each query. Memory holds the queries and one block, whatever the sources' size.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import logsumexp

from evalengine import console, files
from evalengine.arrow import array_of
from evalengine.benchmarks.load import ItemSet
from evalengine.errors import UserError, nearest
from evalengine.store import sealed
from evalengine.training.data.contamination import words
from evalengine.training.exposure import dsir
from evalengine.training.exposure.bm25 import K1, B, Bm25, CorpusStatistics
from evalengine.training.exposure.chunks import WORDS, Queries, blocks, chunks, queries
from evalengine.training.exposure.counting import Source
from evalengine.training.exposure.embedding import Embedding
from evalengine.training.exposure.table import Coded, ExposureAbout, about_of, coded

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "similarity.arrow"
KINDS = ("bm25", "embedding", "dsir")
PACKAGES = {"bm25": "bm25s", "embedding": "wordllama"}
TOP = 10  # chunks of a source
BLOCK = 4096  # chunks scored at once

Sources = Mapping[str, Callable[[], Iterable[str]]]  # name -> its documents from the start, on every call


def similarities(
    sources: Sources, items: Iterable[ItemSet], kinds: Sequence[str] = KINDS, *, block: int = BLOCK
) -> pa.Table:
    """A row for each kind, source, item and choice with its `value`, in nats and higher where more similar.

    bm25, embedding: log of the mean of exp(score / temperature) over the ten best chunks of the source (all, where
    it has fewer). Temperature 1 for BM25, 0.05 for the cosine. dsir: see `dsir.value`. A choice without a word in it or
    its context has no row. Raises UserError as `check` and `queries` do, and for a source without a word.
    """
    check(kinds)
    asked = queries(items)
    corpus = CorpusStatistics.of(asked)
    scorers: dict[str, Bm25 | Embedding] = {}
    if "bm25" in kinds:
        scorers["bm25"] = Bm25(asked, corpus)
    if "embedding" in kinds:
        scorers["embedding"] = Embedding(asked)
    count_SB = _count(sources, corpus)
    value: dict[tuple[str, str], np.ndarray] = {}
    if scorers:
        with console.progress("similarity", corpus.chunks, "chunks") as bar:
            for name, documents in sources.items():
                best = {kind: np.full((len(asked.item_Q), TOP), -np.inf, np.float32) for kind in scorers}
                for some in blocks(documents(), block):
                    for kind, scorer in scorers.items():
                        for tile, score_TC in scorer.scores(some):
                            keep_best(best[kind][tile], score_TC)
                    bar.update(len(some))
                for kind, scorer in scorers.items():
                    value[kind, name] = log_mean_exp(best[kind] / scorer.temperature)
    if "dsir" in kinds:
        log_q_SB = dsir.log_probabilities(count_SB)
        texts = (asked.texts(q, q + 1)[0] for q in range(len(asked.item_Q)))
        value_QS = np.array([dsir.value(dsir.buckets(words(text)), log_q_SB) for text in texts])
        value |= {("dsir", name): value_QS[:, s] for s, name in enumerate(sources)}
    return _table(asked, {key: value[key] for key in ((k, s) for k in kinds for s in sources)})


def check(kinds: Sequence[str]) -> None:
    """Raises UserError for an unknown kind and for a package that is missing, before anything is read."""
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"there is no similarity {kind!r:.60}{nearest(kind, KINDS)}")
        package = PACKAGES.get(kind)
        if package and importlib.util.find_spec(package) is None:
            raise UserError(
                f"similarity {kind} needs the package {package}: pip install 'evalengine[exposure]'"
            )


def keep_best(best_TK: np.ndarray, score_TC: np.ndarray) -> None:
    """Puts the K largest of both into `best_TK`, in no order."""
    rows = np.flatnonzero(score_TC.max(axis=1) > best_TK.min(axis=1))
    both = np.concatenate([best_TK[rows], score_TC[rows]], axis=1)
    best_TK[rows] = np.partition(both, -best_TK.shape[1], axis=1)[:, -best_TK.shape[1] :]


def log_mean_exp(value_QK: np.ndarray) -> np.ndarray:
    """Over K, in float64; -inf is a place that nothing took."""
    value_QK = value_QK.astype(np.float64)
    return np.asarray(logsumexp(value_QK, axis=1) - np.log(np.isfinite(value_QK).sum(axis=1)))


def _count(sources: Sources, corpus: CorpusStatistics) -> np.ndarray:
    """The first pass: adds every source to the corpus's statistics; its counts of dsir's buckets, [S, B]."""
    count_SB = np.zeros((len(sources), dsir.BUCKETS), np.int64)
    with console.progress("reading the sources", len(sources), "sources") as bar:
        for count_B, (name, documents) in zip(count_SB, sources.items(), strict=True):
            for document in documents():
                some = chunks(document)
                for chunk in some:
                    corpus.add(chunk)
                np.add.at(count_B, dsir.buckets([word for chunk in some for word in chunk.words]), 1)
            if not count_B.any():
                raise UserError(f"source {name} holds no word: check its files, or leave it out")
            bar.update(1)
    return count_SB


def _table(asked: Queries, value: Mapping[tuple[str, str], np.ndarray]) -> pa.Table:
    import pyarrow as pa

    kind, source = (coded(names) for names in zip(*value, strict=True))
    times, each = len(value), len(asked.item_Q)
    benchmark, item = coded(asked.benchmark_Q), coded(asked.item_Q)
    columns = {
        "benchmark": Coded(benchmark.names, np.tile(benchmark.code_R, times)).arrow(),
        "item": Coded(item.names, np.tile(item.code_R, times)).arrow(),
        "choice": array_of(np.tile(asked.choice_Q, times)),
        "source": Coded(source.names, np.repeat(source.code_R, each)).arrow(),
        "kind": Coded(kind.names, np.repeat(kind.code_R, each)).arrow(),
        "value": array_of(np.concatenate(list(value.values())).astype(np.float32)),
    }
    return pa.table(columns)


def expose(
    found: Sequence[Source], items: Iterable[ItemSet], kinds: Sequence[str], out: Path, about: ExposureAbout
) -> Path | None:
    """Writes OUT/similarity.arrow and returns its path; without kinds, keeps the one there is if it is of the same text."""
    path = out / NAME
    if _of_other_text(path, about):
        files.remove(path)
        console.warn(
            f"removed {path}, which was made of other text or items: make it again with --similarity"
        )
    if not kinds:
        return None
    write(path, similarities({source.name: source.read for source in found}, items, kinds), about)
    return path


def _of_other_text(path: Path, about: ExposureAbout) -> bool:
    """Whether there is a table of other sources or items, or of their text as it was before it changed."""
    try:
        made = about_of(path, sealed.read(path).schema.metadata)
    except FileNotFoundError:
        return False
    except (sealed.Damaged, KeyError, TypeError, ValueError, AttributeError):
        return True
    was, now = ({name: size[:3] for name, size in one.sources.items()} for one in (made, about))  # but tokens
    return was != now or not made.same_items(about)


def write(path: Path, table: pa.Table, about: ExposureAbout) -> None:
    """Writes all of it, or nothing, with the metadata of exposure.arrow; how the values were made stands beside them."""
    made = {
        "chunk_words": WORDS,
        "top": TOP,
        "k1": K1,
        "b": B,
        "temperature": {"bm25": Bm25.temperature, "embedding": Embedding.temperature},
        "buckets": dsir.BUCKETS,
    }
    sealed.write(path, table, {"exposure": about.as_json(), "similarity": json.dumps(made)})
