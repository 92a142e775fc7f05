"""Similarity of items with sources against the formulas written out over one list of chunks."""

from __future__ import annotations

import importlib
import json
import math
import random
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import logsumexp

from evalengine.analysis.explain.doses import of_mixtures
from evalengine.benchmarks import BENCHMARKS, load_items
from evalengine.benchmarks.definition import Item
from evalengine.benchmarks.load import ItemSet
from evalengine.cli import main
from evalengine.errors import UserError
from evalengine.store import sealed
from evalengine.training.data.contamination import words
from evalengine.training.exposure import dsir
from evalengine.training.exposure.chunks import chunks, queries
from evalengine.training.exposure.embedding import wordllama_model
from evalengine.training.exposure.similarity import KINDS, similarities, write
from evalengine.training.exposure.table import ExposureAbout, SourceSize

RNG = random.Random(0)
VOCABULARY = [f"{a}{b}" for a in ("ra", "to", "mi", "sel", "ku") for b in ("n", "p", "dor", "le")]
PLANTED = "The grey heron of Kelmar sleeps on one leg beside the old canal"


def text(count: int) -> str:
    return " ".join(RNG.choices(VOCABULARY, range(1, 21), k=count)).capitalize() + "."


SOURCES = {
    "web": [text(RNG.choice([30, 300, 900])) for _ in range(20)] + [f"{text(40)} {PLANTED}. {text(40)}"],
    "books": [text(700) for _ in range(8)],
    "small": ["Only one; short ran-top document"],
}
ITEMS = [
    Item(f"i{k}", (text(6),) * 3, (" " + text(1), " " + text(2), " unseen words"), ("",) * 3, 0)
    for k in range(30)
]
ITEMS.append(
    Item("heron", ("Where does the heron sleep? " + PLANTED,) * 2, (" canal", " desert"), ("",) * 2, 0)
)
ITEMS.append(Item("marks", ("?!", "?!"), (" :", " word"), ("",) * 2, 0))
SETS = [ItemSet("made", "Semantic", "1", None, ITEMS, "", len(ITEMS))]


def factories(sources: dict[str, list[str]]) -> dict:
    return {name: lambda documents=documents: iter(documents) for name, documents in sources.items()}


def asked() -> list[tuple[str, int, str]]:
    return [
        (item.id, choice, context + continuation)
        for item in ITEMS
        for choice, (context, continuation) in enumerate(zip(item.contexts, item.continuations, strict=True))
        if words(context + continuation)
    ]


def measured(table: pa.Table, kind: str, source: str) -> np.ndarray:
    rows = [r for r in table.to_pylist() if (r["kind"], r["source"]) == (kind, source)]
    assert [(r["item"], r["choice"]) for r in rows] == [(item, choice) for item, choice, _ in asked()]
    return np.array([r["value"] for r in rows])


def of_ten_best(score_QC: np.ndarray, temperature: float) -> np.ndarray:
    best_QK = np.sort(score_QC)[:, -10:] / temperature
    return logsumexp(best_QK, axis=1) - math.log(best_QK.shape[1])


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return similarities(factories(SOURCES), SETS)


def test_chunks_hold_every_word_once_and_no_more_than_256() -> None:
    document = "¿" + " ".join(f"Word{k}," for k in range(600)) + " ..."
    found = chunks(document)
    assert [len(chunk.words) for chunk in found] == [256, 256, 88]
    assert [word for chunk in found for word in chunk.words] == [f"word{k}" for k in range(600)]
    assert "".join(chunk.text for chunk in found) == document[1:]
    assert chunks(" ... ") == []


def test_bm25_is_lucenes_formula_over_one_collection(table: pa.Table) -> None:
    collection = {s: [c.words for d in documents for c in chunks(d)] for s, documents in SOURCES.items()}
    every = [chunk for some in collection.values() for chunk in some]
    mean = sum(map(len, every)) / len(every)
    holding = Counter(word for chunk in every for word in set(chunk))

    def score(query: list[str], chunk: list[str]) -> float:
        total = 0.0
        for word in query:  # each occurrence counts
            idf = math.log(1 + (len(every) - holding[word] + 0.5) / (holding[word] + 0.5))
            total += (
                idf * chunk.count(word) / (chunk.count(word) + 1.5 * (1 - 0.75 + 0.75 * len(chunk) / mean))
            )
        return total

    for source, some in collection.items():
        score_QC = np.array([[score(words(query), chunk) for chunk in some] for *_, query in asked()])
        np.testing.assert_allclose(measured(table, "bm25", source), of_ten_best(score_QC, 1.0), rtol=2e-5)


def test_embedding_is_the_cosine_of_mean_token_vectors(table: pa.Table) -> None:
    model = wordllama_model()

    def unit(text: str) -> np.ndarray:
        ids = model.tokenizer.encode(text, add_special_tokens=False).ids
        vector = model.embedding[ids].astype(np.float64).mean(axis=0)
        return vector / np.linalg.norm(vector)

    query_QD = np.array([unit(query) for *_, query in asked()])
    for source, documents in SOURCES.items():
        chunk_CD = np.array([unit(c.text) for d in documents for c in chunks(d)])
        expected = of_ten_best(query_QD @ chunk_CD.T, 0.05)
        np.testing.assert_allclose(measured(table, "embedding", source), expected, atol=1e-4)


def test_dsir_is_the_log_likelihood_ratio_of_hashed_counts(table: pa.Table) -> None:
    def bag(text: str) -> Counter:
        found = words(text)
        ones = [dsir.buckets([word])[0] for word in found]
        twos = [dsir.buckets([a, b])[2] for a, b in pairwise(found)]
        return Counter(map(int, [*ones, *twos]))

    for source, documents in SOURCES.items():
        count = sum(map(bag, documents), Counter())
        total = count.total()
        expected = []
        for *_, query in asked():
            z = bag(query)
            log_weight = sum(
                n * (math.log(n / z.total()) - math.log(count[j] / total + 1e-8)) for j, n in z.items()
            )
            expected.append(-log_weight)
        np.testing.assert_allclose(measured(table, "dsir", source), expected, rtol=1e-5)


def test_buckets_spread_evenly_and_tell_order() -> None:
    found = dsir.buckets([f"w{k}" for k in range(100_000)])
    count = np.bincount(found, minlength=dsir.BUCKETS)
    assert len(count) == dsir.BUCKETS and len(found) == 199_999
    # chi-square over its degrees of freedom: one for a uniform hash
    assert ((count - 20) ** 2 / 20).sum() / (dsir.BUCKETS - 1) == pytest.approx(1, abs=0.1)
    assert dsir.buckets(["a", "b"])[2] != dsir.buckets(["b", "a"])[2]


def test_blocks_give_what_one_index_gives(table: pa.Table) -> None:
    by_blocks = similarities(factories(SOURCES), SETS, block=7)
    assert by_blocks.drop(["value"]) == table.drop(["value"])
    np.testing.assert_allclose(by_blocks["value"], table["value"], rtol=2e-5, atol=2e-5)


def test_a_near_copy_is_most_similar_to_its_source(table: pa.Table) -> None:
    rows = {
        (r["kind"], r["source"], r["choice"]): r["value"] for r in table.to_pylist() if r["item"] == "heron"
    }
    for kind in KINDS:
        assert rows[kind, "web", 0] > max(rows[kind, "books", 0], rows[kind, "small", 0])
    for kind in ("bm25", "dsir"):  # the copy holds the first choice's word, and no source the second's
        assert rows[kind, "web", 0] > rows[kind, "web", 1]


def test_a_mixture_is_the_mean_by_share_of_exponentials(table: pa.Table) -> None:
    web, books, small = value_SC = np.stack(
        [measured(table, "dsir", name) for name in ("web", "books", "small")]
    )
    shares_MS = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    half, whole, mixed = of_mixtures(value_SC, shares_MS)
    np.testing.assert_allclose(
        half, np.log(0.5 * np.exp(web + 60) + 0.5 * np.exp(books + 60)) - 60, rtol=1e-6
    )
    np.testing.assert_allclose(whole, web, rtol=1e-6)
    parts = 0.2 * np.exp(web + 60) + 0.3 * np.exp(books + 60) + 0.5 * np.exp(small + 60)
    np.testing.assert_allclose(mixed, np.log(parts) - 60, rtol=1e-6)


def test_the_file_is_sealed_and_says_how_it_was_made(table: pa.Table, tmp_path: Path) -> None:
    about = ExposureAbout({"web": SourceSize(1, 2, 3, 4, True)}, {"v1p0": {"web": 1.0}}, {"60M": 5})
    write(tmp_path / "similarity.arrow", table, about)
    read = sealed.read(tmp_path / "similarity.arrow")
    assert read.to_pylist() == table.to_pylist()
    assert read.schema.names == ["benchmark", "item", "choice", "source", "kind", "value"]
    assert (read.schema.field("choice").type, read.schema.field("value").type) == (pa.int16(), pa.float32())
    assert read.schema.metadata[b"exposure"].decode() == about.as_json()
    assert json.loads(read.schema.metadata[b"similarity"])["temperature"] == {"bm25": 1.0, "embedding": 0.05}


@pytest.mark.parametrize(("kind", "package"), [("bm25", "bm25s"), ("embedding", "wordllama")])
def test_a_missing_package_is_named(kind: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        UserError, match=rf"needs the package {package}: pip install 'evalengine\[exposure\]'"
    ):
        similarities(factories(SOURCES), SETS, [kind])
    assert len(similarities(factories(SOURCES), SETS, ["dsir"])) == 3 * len(asked())


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'bm25'"):
        similarities(factories(SOURCES), SETS, ["bm52"])
    with pytest.raises(UserError, match="source empty holds no word"):
        similarities(factories({**SOURCES, "empty": ["...", ""]}), SETS, ["dsir"])
    with pytest.raises(UserError, match="no item holds a word"):
        similarities(
            factories(SOURCES), [SETS[0]._replace(items=[ITEMS[-1]._replace(continuations=(" :", " ?"))])]
        )


def test_no_connection_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    importlib.import_module("wordllama")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert wordllama_model().embedding.shape == (32000, 256)


def test_choices_share_contexts_and_texts() -> None:
    found = queries(SETS)
    assert len(found.contexts) == 32 and len(found.continuations) < len(found.choice_Q) == 93
    assert found.texts(0, len(found.choice_Q)) == [query for *_, query in asked()]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with one benchmark and the sources as files."""
    (tmp_path / "bench").mkdir()
    lines = [
        {
            "question": i.contexts[0],
            "choices": {"text": list(i.continuations), "label": ["A", "B", "C"]},
            "answerKey": "A",
        }
        for i in ITEMS[:8]
    ]
    (tmp_path / "bench/arc_easy.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    for name, documents in SOURCES.items():
        (tmp_path / f"{name}.txt").write_text("\n<|endoftext|>\n".join(documents))
    return tmp_path


def expose(data: Path, *more: object) -> pa.Table | None:
    given = [f"--source={name}={data / name}.txt" for name in SOURCES]
    assert main([*map(str, ["expose", *given, "--data", data, "--out", data / "out", *more])]) == 0
    path = data / "out/similarity.arrow"
    return sealed.read(path) if path.exists() else None


def test_the_command_writes_it_beside_the_counts(
    data: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert expose(data) is None
    found = expose(data, "--similarity", "bm25,dsir")
    items = load_items(BENCHMARKS["arc_easy"], data / "bench")
    expected = similarities(factories(SOURCES), [items], ["bm25", "dsir"])
    assert found is not None and found.to_pylist() == expected.to_pylist()
    counts = sealed.read(data / "out/exposure.arrow")
    assert found.schema.metadata[b"exposure"] == counts.schema.metadata[b"exposure"]
    assert expose(data, "--limit", 3) == found  # the same text
    file = data / "bench/arc_easy.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))  # other items
    assert expose(data) is None
    expose(data, "--similarity", "dsir")
    assert expose(data) is not None
    arc = BENCHMARKS["arc_easy"]
    monkeypatch.setitem(BENCHMARKS, "arc_easy", replace(arc, version="of another wording"))
    assert expose(data) is None
    expose(data, "--similarity", "dsir")
    (data / "small.txt").write_text("other words")
    capsys.readouterr()
    assert expose(data) is None
    assert "made of other text" in " ".join(capsys.readouterr().err.split())


def test_a_bad_kind_ends_before_anything_is_counted(data: Path, capsys: pytest.CaptureFixture) -> None:
    given = ["--source", f"web={data / 'web.txt'}", "--data", str(data), "--out", str(data / "out")]
    assert main(["expose", *given, "--similarity", "bm25,tfidf"]) == 1
    assert "there is no similarity 'tfidf': choose from bm25, embedding, dsir" in capsys.readouterr().err
    assert not (data / "out").exists()
