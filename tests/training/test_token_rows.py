"""Shards and rows: nothing lost, nothing twice, the mixture kept, exact after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalengine.errors import UserError
from evalengine.training.data import shards
from evalengine.training.data.rows import MixedRows, Stream, interleave
from evalengine.training.data.shards import TokenSource, build
from evalengine.training.data.sources import check, documents, source_key, text_documents
from evalengine.training.study import SourceSpec


@pytest.fixture(scope="module")
def texts(data: Path) -> list[str]:
    return list(text_documents(data / "corpora/web_a.txt"))


@pytest.fixture(scope="module")
def source(texts: list[str], tokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenSource:
    return build(tmp_path_factory.mktemp("tokens") / "web", lambda: iter(texts), tokenizer)


def test_shards_hold_every_document_in_order(source: TokenSource, texts: list[str], tokenizer):
    assert [tokenizer.decode(source.document(i)) for i in range(len(source.length_M))] == texts


def test_a_killed_tokenisation_goes_on_to_the_same_bytes(
    texts: list[str], tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shards, "SHARD", 2000)
    monkeypatch.setattr(shards, "BATCH_CHARS", 1000)

    def killed():
        yield from texts[: len(texts) // 2]
        raise KeyboardInterrupt

    whole = build(tmp_path / "a", lambda: iter(texts), tokenizer)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "b", killed, tokenizer)
    assert 0 < len(list((tmp_path / "b").glob("*.bin"))) < len(list((tmp_path / "a").glob("*.bin")))
    again = build(tmp_path / "b", lambda: iter(texts), tokenizer)
    assert again.digest == whole.digest
    for file in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.slow
def test_a_tokenisation_killed_with_sigkill_goes_on_to_the_same_bytes(
    texts: list[str], tokenizer, tmp_path: Path
):
    """Killed after the first shards, and run again."""
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    script = tmp_path / "tokenise.py"
    script.write_text(
        "import json, sys, time\n"
        "from pathlib import Path\n"
        "from evalengine.training.data import shards\n"
        "from evalengine.training.data.tokenizer import Tokenizer\n"
        "def slowly():\n"
        "    for text in json.loads(Path(sys.argv[1]).read_text()):\n"
        "        time.sleep(float(sys.argv[4]))\n"
        "        yield text\n"
        "shards.SHARD, shards.BATCH_CHARS = 2000, 1000\n"
        "shards.build(Path(sys.argv[3]), slowly, Tokenizer(Path(sys.argv[2])))\n"
    )

    def command(folder: str, pause: float) -> list[str]:
        given = (script, tmp_path / "texts.json", tokenizer.path, tmp_path / folder, pause)
        return [sys.executable, *map(str, given)]

    subprocess.run(command("one", 0), check=True, timeout=200)
    process = subprocess.Popen(command("again", 0.01))
    deadline = time.monotonic() + 200
    while len(list((tmp_path / "again").glob("*.json"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert not (tmp_path / "again/done.json").exists()
    subprocess.run(command("again", 0), check=True, timeout=200)
    expected = {file.name: file.read_bytes() for file in (tmp_path / "one").iterdir()}
    assert len(expected) > 7
    found = {file.name: file.read_bytes() for file in (tmp_path / "again").glob("[!.]*")}
    assert found == expected


def test_a_limit_stops_early_and_a_larger_one_goes_on(
    texts: list[str], tokenizer, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(shards, "BATCH_CHARS", 1000)
    some = build(tmp_path / "s", lambda: iter(texts), tokenizer, limit=1000)
    assert 1000 <= some.length_M.sum() < 2000
    more = build(tmp_path / "s", lambda: iter(texts), tokenizer, limit=3000)
    assert 3000 <= more.length_M.sum() < 4000
    assert [tokenizer.decode(more.document(i)) for i in range(20)] == texts[:20]


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_shard_is_named_and_made_again(
    damage: str, texts: list[str], tokenizer, tmp_path: Path, capsys
):
    build(tmp_path / "s", lambda: iter(texts[:50]), tokenizer)
    file = tmp_path / "s/00000.bin"
    content = bytearray(file.read_bytes())
    content[10] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flip" else content[:-2])
    build(tmp_path / "s", lambda: iter(texts[:50]), tokenizer)
    assert "00000.bin is damaged; tokenised again" in " ".join(capsys.readouterr().err.split())
    content[10] ^= 1
    assert file.read_bytes() == content


def test_a_file_that_changed_in_its_middle_is_another_source(tmp_path: Path):
    spec, file = SourceSpec(path="long.txt"), tmp_path / "long.txt"
    text, keys = "the sun rises in the east\n" * 120_000, set()
    for changed in (text, text[: len(text) // 2] + "?" + text[len(text) // 2 + 1 :]):
        file.write_text(changed)
        keys.add(source_key(spec, tmp_path, "long"))
    assert len(text) > 3e6 and len(keys) == 2


def test_an_empty_source_is_refused(tokenizer, tmp_path: Path):
    with pytest.raises(UserError, match="source web holds no text"):
        build(tmp_path / "web-0123456789ab-01234567", lambda: iter([]), tokenizer, name="web")


def test_training_and_validation_share_no_document(source: TokenSource):
    training, validation = source.split()
    assert set(training) & set(validation) == set()
    assert len(training) + len(validation) == len(source.length_M)
    assert len(validation) == len(source.length_M) // shards.VALIDATION_EVERY


def test_an_epoch_of_rows_is_every_document_once(source: TokenSource, texts: list[str], tokenizer):
    every = np.arange(len(source.length_M))
    stream = Stream(source, every, tokenizer.end, seed=7)
    tokens = np.concatenate([stream.row(k, 50)[0][:-1] for k in range(stream.epoch_tokens // 50 + 1)])
    tokens = tokens[: stream.epoch_tokens]
    begins = np.flatnonzero(tokens == tokenizer.end)
    assert sorted(tokenizer.decode(part[1:]) for part in np.split(tokens, begins[1:])) == sorted(texts)


def test_the_next_epoch_is_shuffled_anew(source: TokenSource, tokenizer):
    stream = Stream(source, np.arange(len(source.length_M)), tokenizer.end, seed=7)
    size = stream.epoch_tokens  # one row an epoch
    first, second = stream.row(0, size)[0][:-1], stream.row(1, size)[0][:-1]
    assert not np.array_equal(first, second)
    assert np.array_equal(np.sort(first), np.sort(second))


def test_positions_restart_with_each_document_and_each_row(source: TokenSource, tokenizer):
    tokens, positions = Stream(source, np.arange(len(source.length_M)), tokenizer.end, 7).row(3, 300)
    starts = (tokens == tokenizer.end) | (np.arange(301) == 0)
    assert starts.sum() >= 3
    expected = np.arange(301) - np.maximum.accumulate(np.where(starts, np.arange(301), 0))
    assert np.array_equal(positions, expected)


def test_rows_are_random_access(source: TokenSource, tokenizer):
    def mixed() -> MixedRows:
        stream = Stream(source, source.split()[0], tokenizer.end, 7)
        return MixedRows({"web": stream}, {"web": 1.0}, rows=40, context=64, batch_rows=4)

    in_order, rows = [b for s in range(10) for b in [mixed().batch(s)]], mixed()
    for step in (7, 2, 9, 0):  # any order, one instance
        batch = rows.batch(step)
        assert np.array_equal(batch.token_BT, in_order[step].token_BT)
        assert np.array_equal(batch.target_BT[:, :-1], batch.token_BT[:, 1:])


@given(
    weights=st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any),
    rows=st.integers(1, 400),
)
@settings(max_examples=100, deadline=None)
def test_interleaving_keeps_the_shares_everywhere(weights: list[int], rows: int):
    shares = [w / sum(weights) for w in weights]
    source, number = interleave(shares, rows)
    assert len(source) == rows
    for s, share in enumerate(shares):
        mine = source == s
        assert abs(mine.sum() - share * rows) < 1
        assert np.array_equal(number[mine], np.arange(mine.sum()))
        if share:
            seen = np.cumsum(mine)
            assert np.abs(seen - share * np.arange(1, rows + 1)).max() < 1.5 + len(shares) * 0.5


@pytest.mark.parametrize("share", [0.33333302, 0.33333365])
def test_shares_that_sum_to_nearly_one_fill_every_row(share: float):
    rows = 6_000_000
    source, _ = interleave([share] * 3, rows)
    assert np.bincount(source).tolist() == [rows // 3] * 3


def test_every_kind_of_file_gives_the_same_documents(texts: list[str], tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    some = texts[:30]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"body": t, "id": i}) + "\n" for i, t in enumerate(some))
    )
    pq.write_table(pa.table({"id": range(30), "body": some}), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(some) + "\n")
    (tmp_path / "b.JSONL").write_bytes((tmp_path / "a.jsonl").read_bytes())
    (tmp_path / "b.PARQUET").write_bytes((tmp_path / "a.parquet").read_bytes())
    for name in ("a.jsonl", "a.parquet", "a.txt", "b.JSONL", "b.PARQUET"):
        assert list(documents(SourceSpec(path=name, field="body"), tmp_path, "a")) == some


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"text": 3}\n', r"a\.jsonl, line 2: 'text' is 3, not text"),
        ("a.jsonl", b'{"body": "fine"}\n', r"a\.jsonl, line 1 has no text field 'text' \(it has body\)"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": \n', r"a\.jsonl, line 2: not valid JSON"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl, line 1: not valid UTF-8"),
        ("a.txt", b"\xff\xfe", r"a\.txt is not UTF-8"),
        ("a.parquet", b"not parquet", r"a\.parquet: not a readable Parquet file"),
        ("b.txt", b"", r"there is no text at .*a\.txt"),
    ],
)
def test_an_unreadable_source_is_named(name: str, content: bytes, reason: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=reason):
        list(documents(SourceSpec(path="a.txt" if name == "b.txt" else name), tmp_path, "a"))


def test_a_folder_is_read_without_what_is_hidden_and_says_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    texts = {"b.txt": "\ufeffsecond", "a.jsonl": '{"text": "first"}', ".git/c.txt": "no", "d/._e.txt": "no"}
    for name, text in {**texts, "f.txt/g.md": "no", "h.jsonl.gz": "no"}.items():
        (tmp_path / "web" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "web" / name).write_text(text)
    spec = SourceSpec(path="web")
    assert list(documents(spec, tmp_path, "web")) == ["first", "second"]
    check(spec, tmp_path, "web")
    said = " ".join(capsys.readouterr().err.split())
    assert f"source web: h.jsonl.gz in {tmp_path}/web not read, beside 2 that are" in said
