"""Streaming with `datasets` itself, from local folders laid out as the hub's data sets are."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evalengine.cli import main
from evalengine.errors import UserError
from evalengine.training.data.conversations import read
from evalengine.training.data.shards import build
from evalengine.training.data.sources import documents
from evalengine.training.study import ChatSource, SftData, SourceSpec, load

pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch):
    """`datasets` waits five seconds for its threads at the end of a shuffled stream."""
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01, raising=False)


def hub_folder(folder: Path, config: str, column: str, texts: list[str], files: int = 3) -> Path:
    """Parquet files behind a README that names the configuration, as on the hub."""
    (folder / "data").mkdir(parents=True)
    for number in range(files):
        some = texts[number::files]
        meta = [{"kind": "book" if i % 2 else "web"} for i in range(len(some))]
        pq.write_table(
            pa.table({"id": range(len(some)), column: some, "meta": meta}), folder / f"data/{number}.parquet"
        )
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {config}\n  data_files:\n  - split: train\n    path: data/*.parquet\n---\n"
    )
    return folder


TEXTS = [f"document {i} has the words {' '.join('abcdefgh'[i % 8] * 3)}" for i in range(90)]
IN_ORDER = [text for number in range(3) for text in TEXTS[number::3]]


def test_every_source_of_the_papers_study_says_what_it_streams(tmp_path: Path):
    """Each definition, its data set replaced by a local copy with that configuration and column."""
    sources = load("paper").sources
    assert set(sources) == {
        *("refinedweb", "fineweb_edu", "dclm", "starcoder", "stack_v2"),
        *("wikipedia", "arxiv", "stackexchange", "books"),
    }
    for name, source in sources.items():
        assert bool(source.config) != bool(source.files)
        assert source.split == "train" and source.shuffle
        local = hub_folder(tmp_path / name, source.config or "default", source.field, TEXTS[:30])
        here = SourceSpec(hub=str(local), config=source.config, field=source.field, shuffle=source.shuffle)
        found = list(documents(here, None, name))
        assert sorted(found) == sorted(TEXTS[:30])
        assert found != IN_ORDER[:30]


def test_rows_come_in_order_or_shuffled_the_same_way_each_time(tmp_path: Path):
    local = str(hub_folder(tmp_path / "set", "c", "text", TEXTS))
    assert list(documents(SourceSpec(hub=local, config="c"), None, "s")) == IN_ORDER
    mixed = [list(documents(SourceSpec(hub=local, config="c", shuffle=20), None, "s")) for _ in range(2)]
    assert mixed[0] == mixed[1] != IN_ORDER
    assert sorted(mixed[0]) == sorted(TEXTS)


def test_where_keeps_rows_of_one_kind(tmp_path: Path):
    local = str(hub_folder(tmp_path / "set", "c", "text", TEXTS, files=1))
    books = documents(SourceSpec(hub=local, config="c", where={"meta.kind": "book"}), None, "s")
    assert list(books) == TEXTS[1::2]
    with pytest.raises(UserError, match=r"has no 'meta\.sort' .*set the source's `where`"):
        list(documents(SourceSpec(hub=local, config="c", where={"meta.sort": "book"}), None, "s"))


def test_a_streamed_source_is_tokenised_as_far_as_it_is_needed(tmp_path: Path, tokenizer, monkeypatch):
    monkeypatch.setattr("evalengine.training.data.shards.BATCH_CHARS", 500)
    spec = SourceSpec(hub=str(hub_folder(tmp_path / "set", "c", "text", TEXTS)), config="c")
    source = build(tmp_path / "tokens", lambda: documents(spec, None, "s"), tokenizer, limit=400)
    assert 400 <= source.length_M.sum() < 800
    assert [tokenizer.decode(source.document(i)) for i in range(9)] == IN_ORDER[:9]


def test_conversations_stream_too(tmp_path: Path):
    """The layout of tulu-v2-sft-mixture: data set, id, messages."""
    turns = [
        [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(4)
    ]
    rows = {"dataset": ["x"] * 4, "id": [f"x_{i}" for i in range(4)], "messages": turns}
    (tmp_path / "chat/data").mkdir(parents=True)
    pq.write_table(pa.table(rows), tmp_path / "chat/data/train-00000-of-00001.parquet")
    found = read(SftData(data=(ChatSource(hub=str(tmp_path / "chat"), config="default"),)), None, seed=0)
    assert [c.messages[1].content for c in found] == ["a0", "a1", "a2", "a3"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hub": "nowhere"}, "cannot stream .*nowhere from the hub"),
        ({"config": "other"}, "cannot stream .* from the hub .*other"),
        ({"split": "validation"}, "cannot stream .* from the hub .*validation"),
        ({"field": "content"}, r"has no text field 'content' \(it has id, text, meta\)"),
    ],
)
def test_what_cannot_be_streamed_is_one_sentence(changes: dict[str, str], reason: str, tmp_path: Path):
    local = hub_folder(tmp_path / "set", "c", "text", TEXTS[:6])
    given = {"hub": str(local), "config": "c", **changes}
    if "hub" in changes:
        given["hub"] = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=reason) as error:
        list(documents(SourceSpec(**given), None, "s"))
    assert "\n" not in str(error.value)


def test_the_papers_plan_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert (
        main(["train", "paper", "--dry-run", "--flops", "3e15", "--out", str(tmp_path / "c"), "--json"]) == 0
    )
    plan = json.loads(capsys.readouterr().out)
    runs = {run["name"]: run for run in plan["runs"]}
    assert len(runs) == 36
    scales = load("paper").scales
    for name, asked in (("240M-v1p0-pt", 12e9), ("1B-v3p2-pt", 52e9)):
        scale = scales[name.split("-")[0]]
        step = scale.pretrain.batch_rows * scale.context
        assert runs[name]["tokens"] == asked // step * step
    blocks = 8 * (4 * 768 * 8 * 256 + 3 * 768 * 6144)
    assert runs["240M-v1p0-pt"]["parameters"] == 100_864 * 768 + blocks + 17 * 768
    assert 1e22 > plan["flops"] > 9 * (6 * 0.24e9 * 12e9 + 6 * 1.147e9 * 52e9)


def test_files_choose_folders(tmp_path: Path):
    """As in StarCoder's data: a folder a language, and others with other columns that must not be read."""
    for folder, column in (("python", "content"), ("go", "content"), ("github-issues", "events")):
        (tmp_path / folder).mkdir()
        pq.write_table(
            pa.table({column: [f"{folder} {i}" for i in range(5)]}), tmp_path / folder / "0.parquet"
        )
    source = SourceSpec(hub=str(tmp_path), field="content", files=("python/*.parquet", "go/*.parquet"))
    assert sorted(documents(source, None, "code")) == sorted(
        f"{x} {i}" for x in ("go", "python") for i in range(5)
    )


def test_a_data_set_of_ids_without_text(tmp_path: Path):
    pq.write_table(pa.table({"blob_id": ["0a"], "path": ["/x.py"]}), tmp_path / "0.parquet")
    with pytest.raises(UserError, match="lists files by `blob_id` without their text"):
        list(documents(SourceSpec(hub=str(tmp_path), field="content"), None, "code"))


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (FileNotFoundError("Dataset 'a/b' is a gated dataset on the Hub."), "hf auth login"),
        (RuntimeError("Dataset scripts are no longer supported, but found b.py"), "another copy"),
        (ConnectionError("no route"), "check its name, access and the network"),
    ],
)
def test_errors_of_the_hub_say_what_to_do(error: Exception, advice: str, monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(UserError, match=advice):
        list(documents(SourceSpec(hub="a/b"), None, "x"))
