"""Readers of checkpoints, score stores, plans and analysis tables: damaged, or forged by someone who knows the format.

As in test_readers.py, nothing but UserError may come out. Damage to what carries a checksum must be noticed.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hostile import SEEDS, SOME, bounded, changed, damaged, json_text, refuses_or_reads
from hypothesis import given
from hypothesis import strategies as st

import tiny_models
from evalengine import checkpoints, store
from evalengine.analysis.data import items, mixtures, panel
from evalengine.analysis.importing import imported
from evalengine.analysis.report.report import write_report
from evalengine.checkpoints import weights
from evalengine.plan import plans
from evalengine.plan.tokenizer import load_tokenizer
from evalengine.store import sealed

pytestmark = pytest.mark.usefixtures("bounded_memory")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tiny_models.save(tmp_path_factory.mktemp("good") / "1M-v1p0-pt")
    (path / "evalengine.json").write_text(json.dumps({"scale": "1M", "mixture": "v1p0", "stage": "pt"}))
    return path


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
    mark = re.compile(re.escape(sealed.MARK) + rb"[0-9a-f]{64}")
    digest = hashlib.sha256(mark.sub(sealed.UNSEALED, content)).hexdigest().encode()
    return mark.sub(sealed.MARK + digest, content)


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
        imported.Result(
            items.CheckpointLabels(f"1M-{m}-{s}", "1M", m, s), "piqa", "accuracy", 0.5, 10, 0.1, folder, "acc"
        )
        for m in "abcde"
        for s in ("pt", "sft")
    ]
    imported.write_results(folder, imported.Imported(good, {"shares": {"web": {"a": 0.5}}}, {}, []))
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
    from evalengine.plan.encoding import Encoded, Sequences

    plan = Encoded(Sequences(*arrays[:3]), *([None] * (len(Encoded._fields) - 1)))._replace(
        item=["i"], truncated=0, notes=("a note",)
    )
    others = ("sequences", "item", "truncated", "uncond_C", "notes")
    plan = plan._replace(**{f: arrays[0] for f in Encoded._fields if f not in others})
    plans.write_plan(place / "plan.arrow", plan)
    good = (place / "plan.arrow").read_bytes()
    content = damaged(good, seed)
    (place / "plan.arrow").write_bytes(content)
    items_of = type("Items", (), {"items": []})()
    found = refuses_or_reads("cached plans", lambda: plans.read_plan(place / "plan.arrow", items_of))
    assert found is None or content == good


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
        assert tensor[...].nbytes == tensor.size <= file.stat().st_size


@bounded
@given(values=SOME, seed=SEEDS)
def test_weight_index(place: Path, values: list[Any], seed: int) -> None:
    folder = place / "sharded"
    folder.mkdir(exist_ok=True)
    (folder / "a.safetensors").write_bytes(b"")
    index = {"metadata": {}, "weight_map": {"x": "a.safetensors", "y": "a.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json_text(changed(index, values, seed)))
    (folder / "config.json").write_text("{}")
    one = checkpoints.Checkpoint(folder, "sharded")
    for file in refuses_or_reads("weight index", one.weight_files) or []:
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
    one = checkpoints.Checkpoint(folder, "configured")

    def read() -> None:
        assert one.tokenizer_hash
        plans.window(one, False)
        load_tokenizer(one, False)

    refuses_or_reads(name, read)


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
    from evalengine.analysis.results import OTHERS
    from evalengine.analysis.together import checksums

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
            method["checksums"] = checksums(folder, [*method["tables"], *OTHERS], method)
            (folder / "analysis.json").write_text(json_text(method))
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
            pass
    else:
        bad = damaged(content, seed)
        (folder / victim.name).write_bytes(bad)
    found = refuses_or_reads("analysis tables", lambda: write_report(folder, folder))
    assert forged or bad == content or victim.name == "analysis.json" or found is None
