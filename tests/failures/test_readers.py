"""Every reader of a text that someone else wrote: any input is read, or refused with one sentence, in bounded memory.

Good files are damaged (bits, lengths, stretches, cuts) or have parts of their content replaced by what parsers stumble over:
huge and non-finite numbers, lone surrogates, zero bytes, deep nesting, names that are paths. Nothing but UserError may come
out; what a reader lets through must be usable. Checkpoints, stores and tables: test_binary_readers.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hostile import SEEDS, SOME, bounded, changed, damaged, json_text, refuses_or_reads
from hypothesis import given
from hypothesis import strategies as st

from evalengine import store
from evalengine.analysis.data import mixtures
from evalengine.analysis.importing import harness, imported, samples, wide_table
from evalengine.benchmarks import BENCHMARKS, load_items
from evalengine.benchmarks.custom import read_benchmark
from evalengine.checkpoints import resolve
from evalengine.errors import UserError

pytestmark = pytest.mark.usefixtures("bounded_memory")


@pytest.fixture(scope="module")
def rows(small_world: Path) -> dict[str, dict[str, Any]]:
    """A good row of every benchmark."""
    return {
        name: json.loads((small_world / "bench" / f"{name}.jsonl").read_text().splitlines()[0])
        for name in BENCHMARKS
    }


def usable(found: Any) -> None:
    for item in found.items if found is not None else ():
        for text in (item.id, *item.contexts, *item.continuations, *item.choices):
            text.encode()
        assert 0 <= item.gold < len(item.choices) >= 2


@bounded
@given(name=st.sampled_from(list(BENCHMARKS)), values=SOME, seed=SEEDS)
def test_rows_of_jsonl(place: Path, rows: dict[str, Any], name: str, values: list[Any], seed: int) -> None:
    text = json_text(changed(rows[name], values, seed)) + "\n" + json.dumps(rows[name])
    (place / f"{name}.jsonl").write_text(text)
    usable(refuses_or_reads("benchmark JSONL", lambda: load_items(BENCHMARKS[name], place)))


@bounded
@given(name=st.sampled_from(list(BENCHMARKS)), seed=SEEDS)
def test_bytes_of_jsonl(place: Path, rows: dict[str, Any], name: str, seed: int) -> None:
    (place / f"{name}.jsonl").write_bytes(damaged(json.dumps(rows[name]).encode(), seed))
    usable(refuses_or_reads("benchmark JSONL", lambda: load_items(BENCHMARKS[name], place)))


@bounded
@given(name=st.sampled_from(list(BENCHMARKS)), seed=SEEDS)
def test_bytes_of_parquet(place: Path, rows: dict[str, Any], name: str, seed: int) -> None:
    folder = place / "parquet"
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist([rows[name]] * 5), place / "good.parquet")
    (folder / f"{name}.parquet").write_bytes(damaged((place / "good.parquet").read_bytes(), seed))
    usable(refuses_or_reads("benchmark Parquet", lambda: load_items(BENCHMARKS[name], folder)))


ODD = [
    pa.array([b"\xff\xfe", None]), pa.array([1.5, float("nan")]), pa.array([2**62, -1]), pa.array([[], [None]],
    pa.list_(pa.string())),
    pa.array([{"text": [1], "label": None}, {"text": [], "label": "x"}]), pa.array([2**62, 0], pa.timestamp("s")),
    pa.array([2**62, 0], pa.timestamp("ns", "No/Such")), pa.array([2**31 - 1, 0], pa.date32()), pa.array([2**62, 0],
    pa.duration("s")),
    pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())), pa.array([True, None]), pa.nulls(2), pa.array(["a",
    "b"]).dictionary_encode(),
    pa.array([1, 2], pa.decimal128(38, 0)), pa.array([b"ab", b"cd"], pa.binary(2)), pa.array(["x" * 100_000, ""],
    pa.large_string()),
]  # fmt: skip


@bounded
@given(
    name=st.sampled_from(list(BENCHMARKS)),
    odd=st.lists(st.sampled_from(ODD), min_size=1, max_size=3),
    seed=SEEDS,
)
def test_odd_types_of_parquet(
    place: Path, rows: dict[str, Any], name: str, odd: list[pa.Array], seed: int
) -> None:
    folder = place / "parquet"
    folder.mkdir(exist_ok=True)
    table = pa.Table.from_pylist([rows[name]] * 2)
    for n, array in enumerate(odd):
        at = (seed >> (8 * n)) % table.num_columns
        table = table.set_column(at, table.column_names[at] if n < 2 else "id", array)
    try:
        pq.write_table(table, folder / f"{name}.parquet")
    except pa.ArrowException:
        return
    usable(refuses_or_reads("benchmark Parquet", lambda: load_items(BENCHMARKS[name], folder)))


CUSTOM = {
    "name": "capitals", "category": "Geography", "context": "What is the capital of {country}?", "choices": "options",
    "gold": "answer",
    "gold_is": "index", "file": "capitals.jsonl", "default_score": "acc", "id": "key",
}  # fmt: skip


ROW = {"country": "France", "options": ["Paris", "Rome"], "answer": 0, "key": "a"}


@bounded
@given(values=SOME, row=SOME, seed=SEEDS, which=st.sampled_from(["definition", "row", "both"]))
def test_custom_benchmarks(place: Path, values: list[Any], row: list[Any], seed: int, which: str) -> None:
    definition = changed(CUSTOM, values, seed) if which != "row" else CUSTOM
    fields = changed(ROW, row, seed) if which != "definition" else ROW
    (place / "custom.yaml").write_text(yaml_text(definition), errors="surrogatepass")
    (place / "capitals.jsonl").write_text(json_text(fields))
    usable(
        refuses_or_reads("benchmark YAML", lambda: load_items(read_benchmark(place / "custom.yaml"), None))
    )


def yaml_text(value: Any) -> str:
    try:
        return yaml.safe_dump(value, allow_unicode=True)
    except (RecursionError, ValueError, yaml.YAMLError):
        return json_text(value)


STUDY = {
    "tokenizer": {"vocab": 512}, "sources": {"web": {"path": "web.txt"}, "code": {"path": "code.txt"}},
    "mixtures": {"A": {"web": 0.5, "code": 0.5}, "B": {"web": 1.0}},
    "scales": {"S": {"d_model": 32, "layers": 1, "heads": 1, "head_dim": 32, "ffn": 32, "context": 64,
                     "pretrain": {"tokens": 1000, "lr": 1e-3}, "sft": {"epochs": 1, "lr": 1e-3}}},
    "sft": {"data": [{"path": "chat.jsonl"}]}, "seed": 1,
}  # fmt: skip


MANIFEST = {"a": {"scale": "1M", "mixture": "m", "stage": "pt"}, "b": {"scale": 3, "stage": "sft"}}


SNIPPETS = [
    "!!python/object/apply:os.system ['true']", "!!timestamp x", "!!bool x", "!!int ''", "2024-13-45", "*nobody", "&a [*a]",
    "? [1]\n: 2",
    "<<: 3", "!!set {a, b}", "!!binary '=='", "0x" + "f" * 5000, "1_000:99", "{{a: 1}: 2}", "!<tag:x> y", "%YAML 9.9",
    "\t- a", "a: b: c",
]  # fmt: skip


YAML_READERS: dict[str, tuple[Any, Callable[[Path], Any]]] = {
    "manifest": (MANIFEST, resolve.read_manifest),
    "study": (STUDY, lambda path: __import__("evalengine.training.study", fromlist=["load"]).load(path)),
    "mixtures of a study": (STUDY, lambda path: mixtures.read_study(str(path))),
}


@pytest.mark.parametrize("reader", YAML_READERS)
@bounded
@given(values=SOME, seed=SEEDS, snippet=st.none() | st.sampled_from(SNIPPETS), bytewise=st.booleans())
def test_yaml_files(
    place: Path, reader: str, values: list[Any], seed: int, snippet: str | None, bytewise: bool
) -> None:
    good, read = YAML_READERS[reader]
    text = yaml_text(changed(good, values, seed)).encode(errors="surrogatepass")
    if snippet is not None:
        text = (
            yaml.safe_dump(good).replace("\n", f"\n  x: {snippet}\n", 1 + seed % 3).encode()
            + f"y: {snippet}\n".encode()
        )
    if bytewise:
        text = damaged(yaml.safe_dump(good).encode() if seed % 2 else text, seed)
    (place / "hostile.yaml").write_bytes(text)
    refuses_or_reads(reader, lambda: read(place / "hostile.yaml"))


def test_yaml_that_grows(place: Path) -> None:
    """A few hundred bytes that would unpack to gigabytes, or to themselves."""
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    merges = "a0: &a0 {k: 1}\n" + "".join(
        f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60)
    )
    for text in (laughs, merges, "&a [*a]", "[" * 20_000, "x: " + "{a: " * 5000):
        (place / "bomb.yaml").write_text(text)
        for read in (resolve.read_manifest, read_benchmark, YAML_READERS["study"][1]):
            with pytest.raises(UserError):
                read(place / "bomb.yaml")


@bounded
@given(values=SOME, seed=SEEDS)
def test_metadata_of_a_checkpoint(place: Path, values: list[Any], seed: int) -> None:
    folder = place / "some-name-pt"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "evalengine.json").write_text(
        json_text(changed({"scale": "1M", "mixture": "m", "stage": "pt"}, values, seed))
    )
    found = refuses_or_reads("evalengine.json", lambda: resolve.discover([folder]))
    if found:
        pa.array([found[0].scale, found[0].mixture])


LM_EVAL = {"results": {"piqa": {"acc,none": 0.5, "acc_norm,none": 0.6, "acc_norm_stderr,none": 0.05}, "rte": {"acc,none": 0.4}},
           "model_name": "1M-m-pt", "n-samples": {"piqa": {"effective": 100}}}  # fmt: skip


KNOWN = {"piqa": imported.Known("Commonsense", "acc_norm")}


@bounded
@given(values=SOME, seed=SEEDS, bytewise=st.booleans())
def test_lm_eval_results(place: Path, values: list[Any], seed: int, bytewise: bool) -> None:
    text = json_text(changed(LM_EVAL, values, seed)).encode()
    path = place / "results_x.json"
    path.write_bytes(damaged(text, seed) if bytewise else text)

    def read() -> None:
        model = harness.model_of(path, harness.read_results(path))
        who = harness.identities([model], harness.NAME_PATTERN)[model]
        part = harness.read_lm_eval(path, who, KNOWN)
        imported.write_results(place / "out", imported.combine([part]))

    refuses_or_reads("lm-eval results", read)


SAMPLE = {
    "doc_id": 0, "target": "1", "arguments": [["c", " a"], ["c", " b"]], "filtered_resps": [["-1.0", "True"], ["-2.0",
    "False"]], "acc": 0.0,
}  # fmt: skip


@bounded
@given(
    values=SOME,
    seed=SEEDS,
    bytewise=st.booleans(),
    folder=st.sampled_from(["1M-m-pt", "..", "x" * 250, "a\nb", "．．"]),
)
def test_lm_eval_samples(place: Path, values: list[Any], seed: int, bytewise: bool, folder: str) -> None:
    home = place / "samples"
    (home / folder).mkdir(parents=True, exist_ok=True)
    path = home / folder / "samples_piqa_2024-01-01T00-00-00.0.jsonl"
    text = json_text(changed(SAMPLE, values, seed)).encode()
    second = json.dumps({**SAMPLE, "doc_id": 1}).encode()
    path.write_bytes((damaged(text, seed) if bytewise else text) + b"\n" + second)
    shutil.rmtree(place / "in", ignore_errors=True)  # other scores would not be replaced
    written = refuses_or_reads(
        "lm-eval samples",
        lambda: samples.import_samples([path], place / "in", harness.NAME_PATTERN, KNOWN),
    )
    path.unlink()
    if written is not None:
        assert (place / "in").resolve() in written[0].resolve().parents
        store.read(written[0])
    else:
        assert not (place / "in").exists(), "half of it was written"


@bounded
@given(
    values=st.lists(
        st.sampled_from(["nan", "1e999", "-1", "", "x", '"', "a,b", "\0", "../x", "é", "\ud800", "5" * 5000]),
        max_size=6,
    ),
    seed=SEEDS,
)
def test_csv(place: Path, values: list[str], seed: int) -> None:
    path = place / "table.csv"
    cells = changed(
        [
            ["m", "s", "piqa", "rte", "rte_stderr", "rte_n", "run", "web"],
            ["a", "pt", "0.5", "0.1", "0.018", "277", "1", "x"],
            ["a", "sft", "0.7", "0.2", "0.024", "277", "1", "x"],
        ],
        values,
        seed,
    )
    text = "\n".join(",".join(map(str, line)) if isinstance(line, list) else str(line) for line in cells)
    path.write_bytes(text.encode(errors="surrogatepass"))
    how = wide_table.WideTable(mixture="m", stage="s", replicate="run", blocks=("web",))

    def read() -> None:
        part = wide_table.read_csv(path, how, KNOWN)
        imported.write_results(place / "out", imported.combine([part]))

    refuses_or_reads("CSV", read)


CHAT = {
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
    "benchmark": "greetings",
    "choices": ["Hello", "Bye"],
}


@bounded
@given(values=SOME, seed=SEEDS, bytewise=st.booleans())
def test_conversations(place: Path, values: list[Any], seed: int, bytewise: bool) -> None:
    from evalengine.training.chat import render
    from evalengine.training.data.conversations import read
    from evalengine.training.study import ChatSource, SftData

    text = json_text(changed(CHAT, values, seed)).encode()
    (place / "chat.jsonl").write_bytes(
        (damaged(text, seed) if bytewise else text) + b"\n" + json.dumps(CHAT).encode()
    )
    data = SftData(data=(ChatSource(path="chat.jsonl"),))
    for chat in refuses_or_reads("chat JSONL", lambda: read(data, place, 0)) or []:
        render(chat.messages).text.encode()
        assert chat.task.encode() and all(choice.encode() for choice in chat.choices or ())


@bounded
@given(values=SOME, seed=SEEDS, kind=st.sampled_from(["txt", "jsonl", "parquet"]))
def test_training_text(place: Path, values: list[Any], seed: int, kind: str) -> None:
    from evalengine.training.data.sources import documents
    from evalengine.training.study import SourceSpec

    path = place / f"text.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": ["a", "b"]}), path)
        path.write_bytes(damaged(path.read_bytes(), seed))
    elif kind == "jsonl":
        path.write_text(json_text(changed({"text": "a"}, values, seed)) + '\n{"text": "b"}\n')
    else:
        path.write_bytes(damaged(b"a\n<|endoftext|>\nb\n", seed))
    found = refuses_or_reads("training text", lambda: list(documents(SourceSpec(path=path.name), place, "s")))
    for text in found or []:
        text.encode()
