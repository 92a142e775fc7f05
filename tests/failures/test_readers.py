"""Every reader of a file that someone else wrote: any input is read, or refused with one sentence, in bounded memory.

Good files are damaged (bits, lengths, stretches, cuts) or have parts of their content replaced by what parsers stumble over:
huge and non-finite numbers, lone surrogates, zero bytes, deep nesting, names that are paths. Nothing but UserError may come
out; what a reader lets through must be usable.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hostile import SEEDS, VALUES, changed, damaged, json_text, tried
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_models
from evalengine import checkpoints, plans, sealed, store, weights
from evalengine.analysis import importing, items, mixtures, panel, samples
from evalengine.analysis.report import write_report
from evalengine.benchmarks import BENCHMARKS, load_items
from evalengine.benchmarks.custom import read_benchmark
from evalengine.errors import UserError

bounded = settings.default if settings.default.max_examples > 100 else settings.get_profile("short")
SOME = st.lists(VALUES, min_size=1, max_size=3)


@pytest.fixture(scope="module", autouse=True)
def memory() -> Iterator[None]:
    """No input may make a reader ask for more than 8 GB of address space beyond what is there."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def refuses_or_reads(reader: str, read: Callable[[], Any]) -> Any:
    """What `read` gives, None where it refuses in one sentence; anything else is a defect."""
    tried[reader] += 1
    try:
        return read()
    except UserError as refused:
        said = str(refused)
        assert said.strip() and len(said) < 5000 and "Traceback" not in said
        return None


@pytest.fixture(scope="module")
def rows(small_world: Path) -> dict[str, dict[str, Any]]:
    """A good row of every benchmark."""
    return {
        name: json.loads((small_world / "bench" / f"{name}.jsonl").read_text().splitlines()[0])
        for name in BENCHMARKS
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tiny_models.save(tmp_path_factory.mktemp("good") / "1M-v1p0-pt")
    (path / "evalengine.json").write_text(json.dumps({"scale": "1M", "mixture": "v1p0", "stage": "pt"}))
    return path


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
    "manifest": (MANIFEST, checkpoints.read_manifest),
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
        for read in (checkpoints.read_manifest, read_benchmark, YAML_READERS["study"][1]):
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
    found = refuses_or_reads("evalengine.json", lambda: checkpoints.discover([folder]))
    if found:
        pa.array([found[0].scale, found[0].mixture])


def a_table(n: int = 6) -> pa.Table:
    names = pa.array(["x"] * n).dictionary_encode()
    lists = [[-1.0, -2.0, -3.0]] * n
    columns = {
        **dict.fromkeys(store.KEYS, names), "item": [f"i{k}" for k in range(n)], "gold": [0] * n, "loglik": lists,
        "tokens": [[1, 1, 1]] * n, "chars": [[3, 4, 5]] * n, "bytes": [[3, 4, 5]] * n, "greedy": [[True, False, False]] * n,
        "loglik_uncond": [None] * n,
    }  # fmt: skip
    return pa.table(columns).cast(store.schema())


def reseal(content: bytes) -> bytes:
    """What someone who knows the format, and means harm, would hand in."""
    return sealed._SEAL.sub(lambda _: sealed._seal_of(pa.py_buffer(content)), content)


@bounded
@given(seed=SEEDS, forged=st.booleans())
def test_score_tables(place: Path, seed: int, forged: bool) -> None:
    path = place / "scores" / "1M-m-pt" / "piqa.arrow"
    good = place / "good.arrow"
    if not good.is_file():
        store.write(good, a_table(), {"default_score": "acc"})
    content = damaged(good.read_bytes(), seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(reseal(content) if forged else content)
    table = refuses_or_reads("score tables", lambda: store.read(path))
    if not forged and content != good.read_bytes():
        assert table is None, "damage went unnoticed"
    refuses_or_reads("score tables", lambda: items.read_store(place / "scores"))


@bounded
@given(seed=SEEDS, forged=st.booleans())
def test_imported_results(place: Path, seed: int, forged: bool) -> None:
    folder = place / "imported"
    good = [
        importing.Result(f"1M-{m}-{s}", "1M", m, s, "piqa", "Commonsense", "accuracy", 0.5, 10)
        for m in "abcde"
        for s in ("pt", "sft")
    ]
    importing.write_results(folder, [importing.Imported(good, {"web": {"a": 0.5}})])
    content = (folder / "results.arrow").read_bytes()
    bad = damaged(content, seed)
    (folder / "results.arrow").write_bytes(reseal(bad) if forged else bad)
    found = refuses_or_reads("imported results", lambda: panel.load_panel(folder))
    refuses_or_reads("imported results", lambda: mixtures.imported_mixtures(folder))
    assert forged or bad == content or found is None


@bounded
@given(seed=SEEDS)
def test_cached_plans(place: Path, seed: int) -> None:
    arrays = [np.arange(4, dtype=np.int32)] * 9
    from evalengine.encoding import Encoded, Sequences

    plan = Encoded(Sequences(*arrays[:3]), *([None] * (len(Encoded._fields) - 1)))._replace(
        item=["i"], truncated=0
    )
    plan = plan._replace(
        **{f: arrays[0] for f in Encoded._fields if f not in ("sequences", "item", "truncated", "uncond_C")}
    )
    plans.write_plan(place / "plan.arrow", plan)
    good = (place / "plan.arrow").read_bytes()
    content = damaged(good, seed)
    (place / "plan.arrow").write_bytes(content)
    items_of = type("Items", (), {"items": []})()
    found = refuses_or_reads("cached plans", lambda: plans.read_plan(place / "plan.arrow", items_of))
    assert found is None or content == good


LM_EVAL = {"results": {"piqa": {"acc,none": 0.5, "acc_norm,none": 0.6}, "rte": {"acc,none": 0.4}}, "model_name": "1M-m-pt",
           "n-samples": {"piqa": {"effective": 100}}}  # fmt: skip
KNOWN = {"piqa": importing.Known("Commonsense", "acc_norm")}


@bounded
@given(values=SOME, seed=SEEDS, bytewise=st.booleans())
def test_lm_eval_results(place: Path, values: list[Any], seed: int, bytewise: bool) -> None:
    text = json_text(changed(LM_EVAL, values, seed)).encode()
    path = place / "results_x.json"
    path.write_bytes(damaged(text, seed) if bytewise else text)

    def read() -> None:
        importing.write_results(
            place / "out", [importing.read_lm_eval(path, importing.NAME_PATTERN, KNOWN, {})]
        )

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
    path.write_bytes((damaged(text, seed) if bytewise else text) + b"\n" + json.dumps(SAMPLE).encode())
    written = refuses_or_reads(
        "lm-eval samples",
        lambda: samples.import_samples(path, place / "in", importing.NAME_PATTERN, KNOWN, {}),
    )
    path.unlink()
    if written is not None:
        assert (place / "in").resolve() in written.resolve().parents
        store.read(written)


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
        [["m", "s", "piqa", "rte"], ["a", "pt", "0.5", "0.1"], ["a", "sft", "0.7", "0.2"]], values, seed
    )
    text = "\n".join(",".join(map(str, line)) if isinstance(line, list) else str(line) for line in cells)
    path.write_bytes(text.encode(errors="surrogatepass"))
    how = importing.WideTable(mixture="m", stage="s")

    def read() -> None:
        importing.write_results(place / "out", [importing.read_csv(path, how, KNOWN)])

    refuses_or_reads("CSV", read)


HEADER = {"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
          "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}}  # fmt: skip


@bounded
@given(
    values=SOME,
    seed=SEEDS,
    length=st.none() | st.sampled_from([0, 1, 2**31, 2**62, 2**64 - 1]),
    bytewise=st.booleans(),
)
def test_safetensors(place: Path, values: list[Any], seed: int, length: int | None, bytewise: bool) -> None:
    raw = json_text(changed(HEADER, values, seed)).encode()
    content = (len(raw) if length is None else length).to_bytes(8, "little") + raw + bytes(32)
    file = place / "model.safetensors"
    file.write_bytes(damaged(content, seed) if bytewise else content)
    for tensor in (refuses_or_reads("safetensors headers", lambda: weights.headers([file])) or {}).values():
        assert 0 <= tensor.offset <= tensor.offset + tensor.size <= file.stat().st_size


@bounded
@given(values=SOME, seed=SEEDS)
def test_weight_index(place: Path, values: list[Any], seed: int) -> None:
    folder = place / "sharded"
    folder.mkdir(exist_ok=True)
    (folder / "a.safetensors").write_bytes(b"")
    index = {"metadata": {}, "weight_map": {"x": "a.safetensors", "y": "a.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json_text(changed(index, values, seed)))
    for file in refuses_or_reads("weight index", lambda: checkpoints.weight_files(folder)) or []:
        assert file.parent == folder


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@bounded
@given(values=SOME, seed=SEEDS, bytewise=st.booleans())
def test_configuration_and_tokenizer(
    place: Path, checkpoint: Path, name: str, values: list[Any], seed: int, bytewise: bool
) -> None:
    folder = place / "configured"
    folder.mkdir(exist_ok=True)
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((checkpoint / file).read_bytes())
    content = (checkpoint / name).read_bytes()
    document = json.loads(content)
    text = damaged(content, seed) if bytewise else json_text(changed(document, values, seed)).encode()
    (folder / name).write_bytes(text)
    one = checkpoints.Checkpoint(folder, "configured", None, None, None)

    def read() -> None:
        checkpoints.tokenizer_hash(folder)
        plans.load_config(one, False)
        plans.load_tokenizer(one, False)

    refuses_or_reads(name, read)


CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


@bounded
@given(values=SOME, seed=SEEDS, bytewise=st.booleans())
def test_conversations(place: Path, values: list[Any], seed: int, bytewise: bool) -> None:
    from evalengine.training.chat import render
    from evalengine.training.conversations import read
    from evalengine.training.study import ChatSource, SftData

    text = json_text(changed(CHAT, values, seed)).encode()
    (place / "chat.jsonl").write_bytes(
        (damaged(text, seed) if bytewise else text) + b"\n" + json.dumps(CHAT).encode()
    )
    data = SftData(data=(ChatSource(path="chat.jsonl"),))
    for chat in refuses_or_reads("chat JSONL", lambda: read(data, place, 0)) or []:
        render(chat.messages).text.encode()


@bounded
@given(values=SOME, seed=SEEDS, kind=st.sampled_from(["txt", "jsonl", "parquet"]))
def test_training_text(place: Path, values: list[Any], seed: int, kind: str) -> None:
    from evalengine.training.sources import documents
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


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from evalengine.cli import main

    folder = tmp_path_factory.mktemp("analysis")
    numbers = np.random.default_rng(0).random((6, 2, 2)).round(3)
    lines = [
        f"{m},{s},{numbers[k, t, 0]},{numbers[k, t, 1]}"
        for k, m in enumerate("abcdef")
        for t, s in enumerate(("pt", "sft"))
    ]
    (folder / "t.csv").write_text("\n".join(["mixture,stage,piqa,rte", *lines]))
    out = folder / "imported"
    assert (
        main(["import", str(folder / "t.csv"), "--mixture", "mixture", "--stage", "stage", "--out", str(out)])
        == 0
    )
    assert main(["correlate", str(out), "--bootstrap", "exact", "--out", str(folder / "analysis")]) == 0
    return folder / "analysis"


@bounded
@given(values=SOME, seed=SEEDS, forged=st.booleans())
def test_analysis_tables(place: Path, tables: Path, values: list[Any], seed: int, forged: bool) -> None:
    from evalengine.analysis.results import checksums

    folder = place / "tables"
    folder.mkdir(exist_ok=True)
    files = sorted(tables.glob("*.json"))
    for file in files:
        (folder / file.name).write_bytes(file.read_bytes())
    victim = files[seed % len(files)]
    content = victim.read_bytes()
    if forged:
        (folder / victim.name).write_text(json_text(changed(json.loads(content), values, seed)))
        try:
            method = json.loads((folder / "analysis.json").read_text())
            method.pop("checksums")
            method["checksums"] = checksums(folder, method)
            (folder / "analysis.json").write_text(json_text(method))
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
            pass
    else:
        bad = damaged(content, seed)
        (folder / victim.name).write_bytes(bad)
    found = refuses_or_reads("analysis tables", lambda: write_report(folder, folder))
    assert forged or bad == content or victim.name == "analysis.json" or found is None
