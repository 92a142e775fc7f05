"""The data folder of `evalengine bench`: the one rule of every --data, in itself or in bench/, JSON Lines or Parquet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lm_eval_reference as reference
from evalengine.bench.inputs import first_items, read_items, train_tokenizer
from evalengine.errors import UserError

NAMES = ("copa", "multirc")


@pytest.fixture
def itself(small_world: Path, tmp_path: Path) -> Path:
    """A folder that holds two benchmarks itself."""
    folder = tmp_path / "itself"
    folder.mkdir()
    for name in NAMES:
        for ending in ("", "_train"):
            shutil.copy(small_world / "bench" / f"{name}{ending}.jsonl", folder)
    return folder


def in_bench(itself: Path, parquet: bool) -> Path:
    """A folder with the same in its bench/, and a file beside it that is no benchmark."""
    folder = itself.with_name("around")
    (folder / "bench").mkdir(parents=True)
    (folder / "sft.jsonl").write_text('{"text": "zzyzx zzyzx zzyzx"}\n')
    for path in itself.iterdir():
        if parquet:
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            pq.write_table(pa.Table.from_pylist(rows), folder / "bench" / f"{path.stem}.parquet")
        else:
            shutil.copy(path, folder / "bench")
    return folder


@pytest.mark.parametrize("parquet", [False, True], ids=["lines", "parquet"])
def test_a_folder_around_bench_is_as_good_as_bench(itself: Path, parquet: bool, tmp_path: Path) -> None:
    around = in_bench(itself, parquet)
    assert read_items(around, 5) == read_items(itself, 5)
    vocabulary = train_tokenizer(400, itself).get_vocab()
    assert len(vocabulary) == 400 and train_tokenizer(400, around).get_vocab() == vocabulary
    ours, theirs = (first_items(data, 3, tmp_path / f"of {data.name}") for data in (around, itself))
    assert read_items(ours, None) == read_items(theirs, None)
    assert {len(one.items) for one in read_items(ours, None)} == {3}
    train = [json.loads(line) for line in (ours / "copa_train.jsonl").read_text().splitlines()]
    assert train == [json.loads(line) for line in (itself / "copa_train.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("parquet", [False, True], ids=["lines", "parquet"])
def test_the_harness_reads_a_folder_around_bench(itself: Path, parquet: bool) -> None:
    found, expected = (
        {name: [one.args for one in task.instances] for name, task in reference.tasks(data, NAMES).items()}
        for data in (in_bench(itself, parquet), itself)
    )
    assert found == expected and all(expected.values())


def test_a_folder_without_benchmarks_is_refused(tmp_path: Path) -> None:
    for use in (lambda: first_items(tmp_path, 3, tmp_path / "few"), lambda: train_tokenizer(300, tmp_path)):
        with pytest.raises(UserError, match=r"nor does its bench/: check --data"):
            use()
    assert not (tmp_path / "few").exists()
