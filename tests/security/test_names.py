"""No name from a checkpoint, a benchmark, a study, a manifest or a table leaves the output folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from evalengine import checkpoints
from evalengine.analysis.figure import file_part
from evalengine.analysis.importing import harness, samples
from evalengine.benchmarks.custom import read_benchmark
from evalengine.checkpoints import resolve
from evalengine.errors import UserError
from evalengine.untrusted import check_label, check_name, printable

HOSTILE = [
    "..",
    ".",
    "",
    "../up",
    "a/b",
    "/etc/cron.d/x",
    "a\\b",
    "a\0b",
    "x" * 300,
    "é" * 150,
    "．．／up",
    "ｓcores",
    "a\u202egnp.exe",
    "a\u200bb",
    "\ud800",
    "a\nb",
    "\x1b[2Jx",
    ".hidden",
    "runs.jsonl",
    "\ue000",
]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_hostile_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="cannot be a checkpoint name") as refused:
        check_name(name, "checkpoint")
    said = str(refused.value)
    assert said == printable(said), "what is said can be printed on any terminal"
    said.encode()


@pytest.mark.parametrize(
    "name",
    [
        "240M-V1P0-pt",
        "pythia 1.4b, step 3000",
        "日本語",
        "a" * 200,
        "con",
        "x..y",
        "~x",
        "-x",
        "$(reboot)",
        "a;b",
    ],
)
def test_plain_names_are_taken(name: str) -> None:
    check_name(name, "checkpoint")


def test_a_checkpoint_directory_with_a_hostile_name_is_refused(tmp_path: Path) -> None:
    for name in ("a\u202eb", "．．", "runs.jsonl", "a\nb"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        with pytest.raises(UserError, match="cannot be a checkpoint name"):
            resolve.discover([tmp_path / name])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "it is empty"),
        ("é" * 150, "more than 200 bytes"),
        ("a\u200bb", "cannot be seen"),
        (".hidden", "begins with a dot"),
        ("a/b", "holds a slash"),
        ("runs.jsonl", "keeps its own file"),
        ("ﬁne", "'ﬁ' looks like 'fi'"),
        ("cafe\u0301", "separate characters (NFD)"),
    ],
    ids=ascii,
)
def test_what_is_wrong_with_a_name_is_said(name: str, says: str) -> None:
    with pytest.raises(UserError) as refused:
        check_name(name, "checkpoint")
    assert says in str(refused.value)


def saved(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_name_as_macos_writes_it_is_composed(tmp_path: Path) -> None:
    """Letters and accents apart (NFD) or together (NFC) are one name, for the store and for the manifest."""
    apart, together = saved(tmp_path / "240M-cafe\u0301-pt"), tmp_path / "240M-caf\u00e9-pt"
    (checkpoint,) = resolve.discover([apart])
    assert (checkpoint.name, checkpoint.mixture) == (together.name, "caf\u00e9")
    assert checkpoint.path == apart.resolve()
    manifest = tmp_path / "m.yaml"
    manifest.write_text(yaml.safe_dump({apart.name: {"scale": "1B"}}, allow_unicode=True))
    assert resolve.discover([apart], manifest)[0].scale == "1B"
    with pytest.raises(UserError, match="two checkpoints are named"):
        resolve.discover([apart, saved(together)])


def test_a_link_keeps_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [saved(tmp_path / run / "checkpoint-1000") for run in "ab"]
    links = [tmp_path / "ckpts" / name for name in ("60M-c4-pt", "60M-wiki-pt")]
    links[0].parent.mkdir()
    for link, run in zip(links, runs, strict=True):
        link.symlink_to(run)
    manifest = tmp_path / "m.yaml"
    manifest.write_text(yaml.safe_dump({links[1].name: {"scale": "1B", "stage": "sft"}}))
    first, second = resolve.discover(links, manifest)
    assert (first.name, first.scale, first.mixture, first.stage) == ("60M-c4-pt", "60M", "c4", "pt")
    assert (second.name, second.scale, second.stage) == ("60M-wiki-pt", "1B", "sft")
    assert [first.path, second.path] == [run.resolve() for run in runs], (
        "the folder is settled when it is given"
    )
    for place in (f"{links[0]}/", f"{links[0].parent}/./x/../60M-c4-pt"):
        (tmp_path / "ckpts" / "x").mkdir(exist_ok=True)
        assert resolve.discover([place])[0].name == "60M-c4-pt"
    monkeypatch.chdir(runs[0])
    assert resolve.discover(["."])[0].name == "checkpoint-1000"
    (runs[0] / "inner").mkdir()
    assert resolve.discover(["inner/.."])[0].name == "checkpoint-1000"


@pytest.mark.parametrize("name", [*HOSTILE, "a b", "é"], ids=ascii)
def test_a_custom_benchmark_cannot_be_named_so(name: str, tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    spec = {"name": name, "context": "{q}", "choices": "c", "gold": "g"}
    path.write_text(json.dumps(spec))
    if name in ("runs.jsonl",):  # a file's stem in a checkpoint's folder: nothing lies there
        return
    with pytest.raises(UserError):
        read_benchmark(path)


@pytest.mark.parametrize("where", ["sources", "mixtures", "scales"])
@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_study_cannot_name_its_parts_so(where: str, name: str, tmp_path: Path) -> None:
    from tiny_study import STUDY

    from evalengine.training import study

    raw = yaml.safe_load(yaml.safe_dump(STUDY))
    first = next(iter(raw[where]))
    raw[where][name] = raw[where][first]
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError):
        study.load(path)


@pytest.mark.parametrize("folder", ["..", "x" * 250, "a\nb", "．．"], ids=ascii)
def test_imported_samples_stay_in_the_output_folder(folder: str, tmp_path: Path) -> None:
    (tmp_path / "in" / folder).mkdir(parents=True, exist_ok=True)
    path = tmp_path / "in" / folder / "samples_piqa_2024-01-01T00-00-00.0.jsonl"
    sample = {
        "doc_id": 0,
        "target": "1",
        "arguments": [["c", " a"], ["c", " b"]],
        "filtered_resps": [["-1", "True"], ["-2", "False"]],
    }
    path.write_text(json.dumps(sample))
    with pytest.raises(UserError, match="cannot be a checkpoint name"):
        samples.import_samples([path], tmp_path / "out", harness.NAME_PATTERN, {})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["..", ".x", "a\x1bb"], ids=ascii)
def test_imported_tasks_stay_in_the_output_folder(task: str, tmp_path: Path) -> None:
    path = tmp_path / "1M-m-pt" / f"samples_{task}_2024-01-01T00-00-00.0.jsonl"
    path.parent.mkdir()
    path.write_text("{}")
    with pytest.raises(UserError, match="cannot be a benchmark name"):
        samples.import_samples([path], tmp_path / "out", harness.NAME_PATTERN, {})


def test_a_stage_in_the_name_of_a_figure_cannot_be_a_path() -> None:
    for stage in ("../../x", "/etc/x", "a\0b", "x" * 300, "step 3/4"):
        name = file_part(stage)
        assert "/" not in name and "\0" not in name and len(name) <= 60
    assert file_part("1.5B_base") == "1.5B_base"


def test_two_scales_never_share_a_file() -> None:
    scales = ("a b", "a_b", "a/b", "\u5c0f", "\u5927", "x" * 61, "x" * 62, "_")
    assert len({file_part(scale) for scale in scales}) == len(scales)


def test_identities_are_visible_text(tmp_path: Path) -> None:
    for text in ("a\0b", "\ud800", "x" * 300, "a\u202eb", "\x1b[2J", ""):
        with pytest.raises(UserError):
            check_label(text, "mixture")
    for key in ("scale", "mixture"):
        with pytest.raises(UserError, match=key):
            resolve.fields({key: "a\u202eb"}, "evalengine.json")


def test_the_index_of_the_weights_names_files_beside_it_alone(tmp_path: Path) -> None:
    (tmp_path / "secret.safetensors").write_bytes(b"")
    folder = tmp_path / "ckpt"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for name in ("../secret.safetensors", str(tmp_path / "secret.safetensors"), "a\0b", "x" * 5000, ".."):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(UserError, match="which is not there"):
            checkpoints.Checkpoint(folder, "ckpt").weight_files()


def test_a_key_of_a_remote_store_cannot_leave_the_working_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object store takes any text as a key, `..` as well."""
    fsspec = pytest.importorskip("fsspec")
    from evalengine.checkpoints import remote

    monkeypatch.setenv("EVALENGINE_CACHE", str(tmp_path))
    fs = fsspec.filesystem("memory")
    root = "/names/scores"
    for key in ("../evil.arrow", ".hid/x.arrow", "a\x1b/x.arrow", "good/copa.arrow"):
        fs.store[f"{root}/{key}"] = fsspec.implementations.memory.MemoryFile(fs, f"{root}/{key}", b"x")
    copy = remote.copy_of(f"memory:/{root}", None)
    assert [p.relative_to(copy).as_posix() for p in tmp_path.rglob("*.arrow")] == ["good/copa.arrow"]


def test_the_litter_of_a_killed_run_is_removed_in_the_store_alone(tmp_path: Path) -> None:
    from evalengine import store

    for folder in ("mine", "scores/1M-a-pt"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "copa.arrow.tmp").write_text("x")
    (tmp_path / "scores" / "1M-a-pt" / "notes.tmp").write_text("x")
    (tmp_path / "scores" / "link").symlink_to(tmp_path / "mine")
    with store.lock(tmp_path / "scores"):
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.tmp")}
    assert left == {"mine/copa.arrow.tmp", "scores/1M-a-pt/notes.tmp"}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_a_pipe_or_a_device_in_place_of_a_file_is_not_read(kind: str, tmp_path: Path) -> None:
    import os

    import tiny_models
    from evalengine.benchmarks import BENCHMARKS, load_items
    from evalengine.plan.tokenizer import load_tokenizer

    def odd(path: Path) -> None:
        path.unlink(missing_ok=True)
        os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")

    path = tiny_models.save(tmp_path / "1M-a-pt")
    for name in (
        "evalengine.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
        "chat_template.jinja",
    ):
        odd(path / name)
    (checkpoint,) = resolve.discover([path])
    assert checkpoints.fingerprint(checkpoint) and load_tokenizer(checkpoint, False)
    for name, read in (
        ("tokenizer.json", lambda: checkpoints.Checkpoint(path, "m").tokenizer_hash),
        ("model.safetensors", lambda: checkpoints.fingerprint(checkpoint)),
        ("config.json", lambda: resolve.discover([path])),
        ("copa.jsonl", lambda: load_items(BENCHMARKS["copa"], path)),
    ):
        odd(path / name)
        with pytest.raises(UserError):
            read()
