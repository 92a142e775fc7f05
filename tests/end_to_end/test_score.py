"""`evalengine score` as a user meets it: the store, resuming, refusing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import evalengine
import tiny_models
from evalengine import runner, store
from evalengine.analysis.data.items import read_store
from evalengine.checkpoints import resolve
from evalengine.cli import main


@pytest.fixture(scope="module")
def ckpts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("ckpts")
    names = ["240M-v1p0-pt", "240M-v1p0-sft", "240M-v2p0-pt"]
    return [tiny_models.save(folder / name, "llama", seed=i, window=1024) for i, name in enumerate(names)]


@pytest.fixture(scope="module")
def bench(small_world: Path) -> Path:
    return small_world / "bench"


def score(*arguments: object) -> int:
    return main(["score", *map(str, arguments)])


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("*/*.arrow"))}


def test_the_store_is_what_the_contract_says(ckpts: list[Path], bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    assert score(*ckpts, "--data", bench, "--out", out) == 0
    table = evalengine.load(out)
    assert table.schema.remove_metadata() == store.schema()
    assert len(store.paths(out)) == 3 * 20
    assert table["category"].unique().to_pylist().__len__() == 4
    rows = table.filter(pa.compute.equal(table["checkpoint"], "240M-v1p0-sft")).slice(0, 1).to_pylist()
    assert (rows[0]["scale"], rows[0]["mixture"], rows[0]["stage"]) == ("240M", "v1p0", "sft")
    assert rows[0]["loglik_uncond"] is None
    metadata = store.read_metadata(store.paths(out)[0])
    wanted = (
        "store_version evalengine_version checkpoint_fingerprint tokenizer_hash benchmark_version data_hash"
    )
    wanted += " backend dtype fewshot limit variant default_score"
    assert set(wanted.split()) <= set(metadata)
    for row in table.to_pylist():
        assert len({len(row[k]) for k in ("loglik", "tokens", "chars", "bytes", "greedy")}) == 1
        assert 0 <= row["gold"] < len(row["loglik"])
        assert max(row["loglik"]) <= 0
    assert not list(out.glob("*/*.tmp"))
    run = json.loads((out / "runs.jsonl").read_text().splitlines()[-1])
    assert [c["scored"] for c in run["checkpoints"]] == [20, 20, 20]


def test_two_runs_write_the_same_bytes_and_the_second_of_one_store_scores_nothing(
    ckpts: list[Path], bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for out in (a, b):
        assert score(ckpts[0], "--data", bench, "--out", out) == 0
    assert files(a) == files(b)
    capsys.readouterr()
    assert score(ckpts[0], "--data", bench, "--out", a, "--json") == 0
    (entry,) = json.loads(capsys.readouterr().out)["checkpoints"]
    assert (entry["scored"], entry["kept"]) == (0, 20)
    assert score(ckpts[0], "--data", bench, "--out", a, "--benchmarks", "copa", "--json") == 0
    (entry,) = json.loads(capsys.readouterr().out)["checkpoints"]
    table = store.read(a / ckpts[0].name / "copa.arrow")
    right = [row["gold"] == max(range(2), key=row["loglik"].__getitem__) for row in table.to_pylist()]
    # of what was asked for, not of the store
    assert entry["mean_acc"] == pytest.approx(sum(right) / len(right))


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(ckpts: list[Path], bench: Path, tmp_path: Path) -> None:
    """Killed when it has just written its first files, and the run that goes on from them some way further."""
    reference, out = tmp_path / "reference", tmp_path / "killed"
    assert score(*ckpts, "--data", bench, "--out", reference) == 0
    command = [sys.executable, "-m", "evalengine", "score", *map(str, ckpts), "--data", str(bench), "--out"]
    done = []
    for least in (2, 25):
        process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(out.glob("*/*.arrow"))) < least:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        done.append(len(files(out)))
    assert 2 <= done[0] < 60 and done[1] >= 25
    assert score(*ckpts, "--data", bench, "--out", out) == 0
    assert files(out) == files(reference)
    assert not [p for p in out.rglob("*") if p.name.endswith(".tmp")]


def test_batch_size_changes_no_pick(ckpts: list[Path], bench: Path, tmp_path: Path) -> None:
    picks = []
    for n in (64, 4096):
        out = tmp_path / str(n)
        assert score(ckpts[0], "--data", bench, "--out", out, "--batch-tokens", n) == 0
        picks.append([int(np.argmax(row)) for row in evalengine.load(out)["loglik"].to_pylist()])
    assert picks[0] == picks[1]


def test_few_shot_and_pmi_are_stored(
    ckpts: list[Path], bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    arguments = [
        ckpts[0],
        "--data",
        bench,
        "--out",
        out,
        "--benchmarks",
        "copa,boolq",
        "--fewshot",
        3,
        "--pmi",
    ]
    assert score(*arguments) == 0
    table = evalengine.load(out)
    assert table["loglik_uncond"].null_count == 0
    about = [store.read_metadata(path) or {} for path in store.paths(out)]
    assert {one["fewshot"] for one in about} == {"3"}
    plain = tmp_path / "plain"
    assert score(ckpts[0], "--data", bench, "--out", plain, "--benchmarks", "copa,boolq") == 0
    assert evalengine.load(plain)["loglik"].to_pylist() != table["loglik"].to_pylist()
    # an older store has no hash of the rows alone: it is read and resumed, and gets the hash without a score
    rows = [(store.read_metadata(path) or {})["data_hash"] for path in store.paths(plain)]
    assert [one["rows_hash"] for one in about] == rows != [one["data_hash"] for one in about]
    written = files(out)
    for path, one in zip(store.paths(out), about, strict=True):
        older = {key: value for key, value in one.items() if key not in ("rows_hash", "checksum")}
        store.write(path, store.read(path), older)
    assert files(out) != written and evalengine.load(out)["loglik"] == table["loglik"]
    capsys.readouterr()
    assert score(*arguments, "--json") == 0
    (entry,) = json.loads(capsys.readouterr().out)["checkpoints"]
    assert (entry["scored"], entry["kept"], entry["notes"], files(out)) == (0, 2, [], written)


def test_limit_is_a_sample_of_the_whole(ckpts: list[Path], bench: Path, tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert score(ckpts[0], "--data", bench, "--out", whole, "--benchmarks", "piqa") == 0
    assert score(ckpts[0], "--data", bench, "--out", part, "--benchmarks", "piqa", "--limit", 7) == 0
    by_item = {row["item"]: row["loglik"] for row in evalengine.load(whole).to_pylist()}
    rows = evalengine.load(part).to_pylist()
    assert len(rows) == 7
    for row in rows:
        np.testing.assert_allclose(row["loglik"], by_item[row["item"]], atol=1e-4)


def test_weights_changed_under_the_same_name_are_scored_again(
    bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "m-a-pt", tmp_path / "scores"
    for seed in (0, 1):
        tiny_models.save(path, "llama", seed=seed)
        assert score(path, "--data", bench, "--out", out, "--benchmarks", "copa") == 0
    assert "its weights have changed since it was scored" in capsys.readouterr().out


@pytest.mark.parametrize("when", ["hashed", "identified"])
def test_weights_that_change_between_their_hash_and_their_loading_are_not_stored(
    ckpts: list[Path],
    bench: Path,
    tmp_path: Path,
    when: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As a training job writes over a checkpoint while the one before it is scored."""
    path, out = Path(shutil.copytree(ckpts[0], tmp_path / "10M-x-pt")), tmp_path / "s"
    owner, function = {"hashed": (resolve, "fingerprint"), "identified": (runner, "pending_of")}[when]
    real = getattr(owner, function)

    def and_then_written(of: Any, *arguments: Any) -> Any:
        found = real(of, *arguments)
        if of.name == path.name:
            shutil.copyfile(ckpts[1] / "model.safetensors", path / "model.safetensors")
        return found

    given = (path, ckpts[1], "--data", bench, "--out", out, "--benchmarks", "copa")
    with monkeypatch.context() as patch:
        patch.setattr(owner, function, and_then_written)
        assert score(*given) == 1
    assert f"{path} changed while it was scored" in " ".join(capsys.readouterr().out.split())
    assert [file.parent.name for file in out.glob("*/*.arrow")] == [ckpts[1].name]
    assert score(*given) == 0
    assert len(list(out.glob("*/*.arrow"))) == 2


@pytest.mark.parametrize("when", ["identified", "loaded"])
def test_a_checkpoint_that_is_taken_away_does_not_stop_the_others(
    ckpts: list[Path],
    bench: Path,
    tmp_path: Path,
    when: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, out = Path(shutil.copytree(ckpts[0], tmp_path / "10M-x-pt")), tmp_path / "s"
    owner, name = {"identified": (resolve, "stamp"), "loaded": (runner, "check_unchanged")}[when]
    real = getattr(owner, name)

    def gone(checkpoint: Any, *arguments: Any) -> Any:
        if checkpoint.name == path.name:
            (path / "config.json").unlink(missing_ok=True)
        return real(checkpoint, *arguments)

    monkeypatch.setattr(owner, name, gone)
    assert score(path, ckpts[1], "--data", bench, "--out", out, "--benchmarks", "copa") == 1
    said = " ".join(capsys.readouterr().out.split())
    assert f"{path}" in said and "No such file or directory" in said
    assert [file.parent.name for file in out.glob("*/*.arrow")] == [ckpts[1].name]


def test_code_that_changed_under_the_same_weights_is_scored_again(
    bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tiny_models.save(tmp_path / "m-a-pt", "llama"), tmp_path / "scores"
    config = json.loads((path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Own"}
    (path / "config.json").write_text(json.dumps(config))
    code = "from transformers import LlamaForCausalLM\nclass Own(LlamaForCausalLM):\n    pass  # {}\n"
    trusted = ("--trust-remote-code",)
    scored = []
    for number, more in ((1, trusted), (1, trusted), (2, trusted), (2, ()), (2, ())):
        (path / "modeling_own.py").write_text(code.format(number))
        capsys.readouterr()
        assert score(path, "--data", bench, "--out", out, "--benchmarks", "copa", "--json", *more) == 0
        (entry,) = json.loads(capsys.readouterr().out)["checkpoints"]
        assert bool(entry["notes"]) == (entry["scored"] == 1 and bool(scored))
        scored.append(entry["scored"])
    assert scored == [1, 0, 1, 1, 0]


def test_a_benchmarks_category_and_ids_are_never_those_of_an_earlier_definition(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, definition = tiny_models.save(tmp_path / "m-a-pt", "llama"), tmp_path / "b.yaml"
    row = {"q": "Which?", "o": ["a", "b"], "a": 0, "key": "k1", "name": "n1"}
    (tmp_path / "b.jsonl").write_text(json.dumps(row) + "\n")
    common = "name: b\ncontext: '{q}'\nchoices: o\ngold: a\nfile: b.jsonl\n"
    found = []
    for category, field in (("Science", "key"), ("Semantics", "key"), ("Semantics", "name")):
        definition.write_text(f"{common}category: {category}\nid: {field}\n")
        given = ("--benchmark-file", definition, "--benchmarks", "b", "--out", tmp_path / "s", "--json")
        capsys.readouterr()
        assert score(path, *given) == 0
        (entry,) = json.loads(capsys.readouterr().out)["checkpoints"]
        (stored,) = evalengine.load(tmp_path / "s").to_pylist()
        assert (stored["category"], stored["item"]) == (category, row[field])
        found.append((entry["scored"], stored["loglik"]))
    assert [scored for scored, _ in found] == [1, 0, 1] and found[0][1] == found[1][1] == found[2][1]


def test_benchmarks_that_older_weights_scored_are_not_read_beside_those_of_newer_ones(
    bench: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "m-a-pt", tmp_path / "scores"
    given = (path, "--data", bench, "--out", out, "--benchmarks")
    tiny_models.save(path, "llama", seed=0)
    assert score(*given, "copa,cb") == 0
    tiny_models.save(path, "llama", seed=1)
    assert score(*given, "copa") == 0
    for read in (read_store, evalengine.load):
        with pytest.raises(evalengine.UserError, match=r"copa\.arrow was scored with weights that other"):
            read(out)
    assert score(*given, "copa,cb") == 0
    assert len(read_store(out).benchmarks) == 2


def test_a_seed_and_blocks_are_written_without_scoring_again(
    bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out, manifest = tmp_path / "1M-a-pt", tmp_path / "scores", tmp_path / "manifest.yaml"
    tiny_models.save(path, "llama")
    given = (path, "--data", bench, "--out", out, "--benchmarks", "copa", "--json")
    manifest.write_text("1M-a-pt: {scale: 1M, mixture: a, stage: pt, seed: 3, blocks: {year: 2024}}")
    found = []
    for more in ((), ("--manifest", manifest), ()):
        capsys.readouterr()
        assert score(*given, *more) == 0
        (entry,) = json.loads(capsys.readouterr().out)["checkpoints"]
        about = store.read_metadata(out / path.name / "copa.arrow")
        found.append((entry["scored"], entry["kept"], about.get("checkpoint_seed"), about.get("blocks")))
    stated = ("3", '{"year": "2024"}')
    assert found == [(1, 0, None, None), (0, 1, *stated), (0, 1, *stated)]
    manifest.write_text("1M-a-pt: {scale: 1M, mixture: a, stage: pt, blocks: [2024]}")
    assert score(*given, "--manifest", manifest) == 1
    assert "blocks must map factors to labels" in capsys.readouterr().err


def test_new_labels_are_written_into_the_store_without_scoring_again(
    ckpts: list[Path], bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scale, mixture, stage, seed and blocks, changed and taken back: the store is to the byte what a new one would be."""
    manifest, out = tmp_path / "manifest.yaml", tmp_path / "scores"

    def run(store: Path, entry: str | None, benchmarks: str = "copa,cb,rte") -> dict[str, object]:
        given: list[object] = [
            ckpts[0],
            "--data",
            bench,
            "--out",
            store,
            "--benchmarks",
            benchmarks,
            "--json",
        ]
        if entry is not None:
            manifest.write_text(f"{ckpts[0].name}: {entry}")
            given += ["--manifest", manifest]
        capsys.readouterr()
        assert score(*given) == 0
        (found,) = json.loads(capsys.readouterr().out)["checkpoints"]
        return dict(found)

    assert run(out, None)["scored"] == 3
    whole = "{scale: 1B, mixture: web, stage: dpo, seed: 7, blocks: {year: 2024}}"
    for number, entry in enumerate((whole, "{scale: 1B, mixture: web, stage: pt}", None)):
        found = run(out, entry)
        what = (
            "scale, mixture or stage, seed, blocks",
            "scale, mixture or stage, seed, blocks",
            "scale, mixture or stage",
        )
        assert (found["scored"], found["kept"]) == (0, 3)
        assert found["notes"] == [
            f"its {what[number]} changed since it was scored: labelled anew, nothing is scored again"
        ]
        assert run(tmp_path / str(number), entry)["scored"] == 3
        assert files(out) == files(tmp_path / str(number))
        assert run(out, entry)["notes"] == []
    table = evalengine.load(out)
    assert {tuple(row.values()) for row in table.select(["scale", "mixture", "stage"]).to_pylist()} == {
        ("240M", "v1p0", "pt")
    }
    # Broken off after the first file: nothing reads two labels as one checkpoint, and the same command finishes.
    run(out, whole, "cb")
    with pytest.raises(
        evalengine.UserError, match="was scored with a scale, mixture and stage that other benchmarks"
    ):
        evalengine.load(out)
    assert run(out, whole)["scored"] == 0
    assert files(out) == files(tmp_path / "0")


def test_a_manifest_may_describe_checkpoints_that_are_not_given(
    ckpts: list[Path], bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, first, second = tmp_path / "manifest.yaml", ckpts[0].name, ckpts[1].name
    others = "".join(f"other{i}: {{scale: 9B}}\n" for i in range(5))
    manifest.write_text(f"{others}{first}: {{scale: 1B, mixture: web, stage: pt}}\n")
    given = ("--data", bench, "--out", tmp_path / "scores", "--benchmarks", "copa", "--manifest", manifest)
    few = "other0, other1, other2 and 2 more"
    said = f"{manifest} describes 5 checkpoints that are not among those given, which is not used ({few})"
    assert score(ckpts[0], *given) == 0
    assert capsys.readouterr().err == f"warning: {said}\n"
    assert set(evalengine.load(tmp_path / "scores")["scale"].to_pylist()) == {"1B"}
    assert score(*ckpts[:2], *given) == 0
    assert f"{said}; it does not describe {second}" in capsys.readouterr().err


def test_a_damaged_file_is_noticed_and_scored_again(
    ckpts: list[Path], bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    arguments = [ckpts[0], "--data", bench, "--out", out, "--benchmarks", "copa"]
    assert score(*arguments) == 0
    (path,) = out.glob("*/*.arrow")
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(evalengine.UserError, match="damaged"):
        evalengine.load(out)
    assert score(*arguments) == 0
    assert path.read_bytes() == good
    flipped = bytearray(good)
    at = good.index(np.float32(store.read(path)["loglik"][0].as_py()[0]).tobytes())
    flipped[at] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(evalengine.UserError, match="damaged"):
        evalengine.load(out)


def test_a_damaged_plan_cache_costs_only_time(
    ckpts: list[Path], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALENGINE_CACHE", str(tmp_path / "cache"))
    for out in ("a", "b", "c"):
        assert score(ckpts[0], "--data", bench, "--out", tmp_path / out, "--benchmarks", "copa") == 0
        (cached,) = (tmp_path / "cache" / "plans").glob("*.arrow")
        content = bytearray(cached.read_bytes())
        content[len(content) // 3] ^= 64
        cached.write_bytes(bytes(content) if out == "a" else bytes(content[:50]))
    assert files(tmp_path / "a") == files(tmp_path / "b") == files(tmp_path / "c")


def test_export_writes_the_same_rows(ckpts: list[Path], bench: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    out = tmp_path / "scores"
    assert score(ckpts[0], "--data", bench, "--out", out, "--benchmarks", "copa,cb") == 0
    for kind in ("parquet", "arrow"):
        assert main(["export", str(out), "--format", kind]) == 0
    expected = evalengine.load(out).to_pylist()
    assert pq.read_table(tmp_path / "scores.parquet").to_pylist() == expected
    with pa.memory_map(str(tmp_path / "scores.arrow")) as source:
        assert pa.ipc.open_file(source).read_all().to_pylist() == expected


def test_an_export_is_named_and_never_counts_a_copied_folder_twice(
    ckpts: list[Path],
    bench: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "scores"
    assert score(ckpts[0], "--data", bench, "--out", out, "--benchmarks", "copa") == 0
    monkeypatch.chdir(out)
    assert main(["export", "."]) == 0
    assert (tmp_path / "scores.parquet").is_file()
    (tmp_path / "link").symlink_to(out)
    assert main(["export", str(tmp_path / "link")]) == 0
    assert (tmp_path / "link.parquet").is_file()
    assert main(["export", str(out), "--out", str(bench)]) == 1
    assert f"{bench} is a folder, where a file is needed" in capsys.readouterr().err
    assert not list(bench.parent.glob(".*.tmp"))
    shutil.copytree(out / ckpts[0].name, out / "kept")
    with pytest.raises(
        evalengine.UserError, match=f"both hold scores of {ckpts[0].name}, which would count twice"
    ):
        evalengine.load(out)


def test_items_longer_than_the_window_are_counted_and_said(
    bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_models.save(tmp_path / "short-pt", "llama", window=32)
    assert score(path, "--data", bench, "--out", tmp_path / "s", "--benchmarks", "boolq,wsc") == 0
    assert "items longer than the model's window were cut on the left (boolq" in capsys.readouterr().out


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(ckpts: list[Path], bench: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "evalengine", "score", *map(str, ckpts), "--data", str(bench)]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "s")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and len(list(tmp_path.glob("s/*/*.arrow"))) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 130
    assert "run the same command again" in said and "Traceback" not in said
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_peak_memory_of_a_large_vocabulary(bench: Path, tmp_path: Path) -> None:
    """Under 1.5 x the weights + 300 MB beside the pages of libraries' files, whose number depends on how the system maps them; in
    a process of its own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=100_864, hidden_size=512, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(tmp_path / "large-v-pt")
    tiny_models.tokenizer("byte_level").save_pretrained(tmp_path / "large-v-pt")
    weights = (tmp_path / "large-v-pt" / "model.safetensors").stat().st_size
    code = (  # VmHWM, because ru_maxrss counts the test process that was forked
        "import sys; from evalengine.cli import main; code = main(sys.argv[1:]);"
        "of = dict(line.split(':') for line in open('/proc/self/status'));"
        "print(int(of['VmHWM'].split()[0]) - int(of['RssFile'].split()[0])); sys.exit(code)"
    )
    arguments = [
        "score",
        tmp_path / "large-v-pt",
        "--data",
        bench,
        "--out",
        tmp_path / "s",
        "--benchmarks",
        "copa,rte,piqa",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    peak = int(done.stdout.splitlines()[-1]) * 1024
    assert weights > 400e6
    assert peak < 1.5 * weights + 300e6, f"{peak / 1e6:.0f} MB for {weights / 1e6:.0f} MB of weights"


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    err = capsys.readouterr().err
    assert all(f"    {name}" in err for name in ("demo", "train", "score", "correlate", "report")), err


def test_importing_and_help_are_quick() -> None:
    heavy = "{'torch', 'numba', 'pyarrow', 'transformers', 'matplotlib', 'vllm', 'ray', 'scipy', 'numpy'}"
    code = f"import sys, evalengine, evalengine.cli; evalengine.cli.parser(); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"
