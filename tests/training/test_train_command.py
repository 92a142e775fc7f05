"""A whole study through the command line: trained, skipped, killed, refused."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_study import STUDY, TORCHRUN

from evalengine.cli import main
from evalengine.errors import UserError
from evalengine.training.data import conversations, sources
from evalengine.training.fitting.loop import fit
from evalengine.training.fitting.state import Place
from evalengine.training.prepare import locked, prepare, work_folder
from evalengine.training.runner import selected
from evalengine.training.study import Run, load, needed, with_stages
from evalengine.training.workers import death

NAMES = ["S-m1-pt", "S-m1-sft", "S-m2-pt", "S-m2-sft"]


def contents(out: Path) -> dict[str, bytes]:
    return {
        f"{p.parent.name}/{p.name}": p.read_bytes()
        for p in sorted(out.glob("*/*"))
        if not p.parent.name.startswith(".")
    }


def train(study: Path, data: Path, out: Path, *options: str) -> int:
    return main(["train", str(study), "--data", str(data), "--out", str(out), *options])


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    assert train(folder / "study.yaml", data, folder / "ckpts", "--jobs", "2") == 0
    return folder / "ckpts"


def test_every_run_is_a_checkpoint_that_says_who_it_is(trained: Path):
    assert sorted(p.name for p in trained.iterdir() if not p.name.startswith(".")) == NAMES
    for name in NAMES:
        about = json.loads((trained / name / "evalengine.json").read_text())
        assert [about["scale"], about["mixture"], about["stage"]] == name.split("-")
    assert json.loads((trained / "S-m2-sft/evalengine.json").read_text())["base"] == "S-m2-pt"


def test_how_often_a_run_reads_its_sources_is_stated(trained: Path):
    """80 rows of 64 tokens by share, over all documents but every fiftieth, each with the token that begins it."""
    for name, rows in (("S-m1-pt", {"web": 60, "code": 20}), ("S-m2-pt", {"web": 20, "code": 60})):
        passes = json.loads((trained / name / "evalengine.json").read_text())["passes"]
        assert set(passes) == set(rows)
        for source, count in rows.items():
            (lengths,) = (trained / ".study/tokens").glob(f"{source}-*/00000.len")
            length_M = np.fromfile(lengths, np.uint32)
            held_out = np.arange(len(length_M)) % 50 == 49
            assert held_out.any()
            assert passes[source] == pytest.approx(count * 64 / (length_M[~held_out] + 1).sum(), abs=1e-4)


def test_pretraining_learns_the_mixture_it_is_given(trained: Path):
    def loss(mixture: str, source: str) -> float:
        return json.loads((trained / f"S-{mixture}-pt/evalengine.json").read_text())["validation_loss"][
            source
        ]

    assert loss("m1", "web") < loss("m2", "web")
    assert loss("m2", "code") < loss("m1", "code")
    assert loss("m2", "code") < math.log(512) - 1  # a nat below what it is before training


def test_one_process_or_two_give_the_same_bytes(trained: Path, data: Path, write_study, tmp_path: Path):
    assert train(write_study(), data, tmp_path / "again", "--jobs", "1") == 0
    assert contents(tmp_path / "again") == contents(trained)


def test_finished_runs_are_skipped(
    trained: Path, data: Path, write_study, capsys: pytest.CaptureFixture[str]
):
    before = {p: p.stat().st_mtime_ns for p in trained.glob("*/model.safetensors")}
    assert train(write_study(), data, trained, "--json") == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == NAMES
    assert train(write_study(), data, trained) == 0
    assert f"score them with: evalengine score {trained}/* --data {data}\n" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in trained.glob("*/model.safetensors")} == before


@pytest.mark.parametrize("change", [{"scales.S.pretrain.lr": 0.02}, {"tokenizer.vocab": 400}, {"seed": 4}])
def test_other_settings_over_finished_runs_are_refused(
    change: dict[str, object], trained: Path, data: Path, write_study, capsys: pytest.CaptureFixture[str]
):
    assert train(write_study(**change), data, trained) == 1
    assert "--fresh" in capsys.readouterr().err


def test_an_adopted_tokenizer_that_changed_is_refused(
    tokenizer, data: Path, write_study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    own, out = tmp_path / "own", tmp_path / "out"
    shutil.copytree(tokenizer.path, own)
    study = load(write_study(tokenizer={"path": str(own)}))
    made = prepare(study, data, out).tokenizer / "tokenizer.json"
    before = made.read_bytes()
    (own / "tokenizer.json").write_text(
        (own / "tokenizer.json").read_text().replace("Isolated", "Removed", 1)
    )
    with pytest.raises(UserError, match="made for another tokenizer setting or other sources: use --fresh"):
        prepare(study, data, out)
    shutil.rmtree(own)
    prepare(study, data, out)  # it has its own copy
    assert made.read_bytes() == before


def test_a_tokenizer_that_an_earlier_version_made_is_kept(
    data: Path, write_study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It was made for keys of the files' ends. A file that changes between them is another source since."""
    monkeypatch.setattr(sources, "END_BYTES", 1000)
    own, out = tmp_path / "own", tmp_path / "out"
    shutil.copytree(data, own)
    study = load(write_study())
    folder = prepare(study, own, out).tokenizer
    about = json.loads((folder / "made_from.json").read_text())
    older = {name: sources.source_key(spec, own, name, whole=False) for name, spec in study.sources.items()}
    assert about["sources"] != older
    (folder / "made_from.json").write_text(json.dumps(about | {"sources": older}))
    assert prepare(study, own, out).tokenizer == folder
    (folder / "made_from.json").write_text(json.dumps(about))
    text = (own / "corpora/web_a.txt").read_text()
    middle = text.index("a", len(text) // 2)
    (own / "corpora/web_a.txt").write_text(text[:middle] + "e" + text[middle + 1 :])
    with pytest.raises(UserError, match="made for another tokenizer setting or other sources: use --fresh"):
        prepare(study, own, out)


@pytest.mark.slow
def test_a_study_killed_with_sigkill_ends_with_the_same_bytes(
    trained: Path, data: Path, write_study, tmp_path: Path
):
    out = tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "evalengine",
        "train",
        str(write_study()),
        "--data",
        str(data),
        "--out",
        str(out),
        "--jobs",
        "1",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 200
    while not (out / "S-m1-pt").is_dir():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)
    left = set(NAMES) - {p.name for p in out.iterdir()}
    assert left
    assert train(write_study(), data, out) == 0
    assert contents(out) == contents(trained)


@pytest.mark.slow
def test_a_failing_run_names_itself_and_spares_the_others(data: Path, write_study, tmp_path: Path, capsys):
    study = write_study()
    assert train(study, data, tmp_path / "ckpts", "--only", "S-m1-pt") == 0
    (tmp_path / "ckpts/S-m1-pt/model.safetensors").write_bytes(b"cut")
    capsys.readouterr()
    assert train(study, data, tmp_path / "ckpts", "--stages", "dpo", "--json") == 1
    said = capsys.readouterr()
    assert "1 runs failed, the first is S-m1-sft: the checkpoint" in said.err
    assert "not run, since one before failed: S-m1-dpo (because of S-m1-sft)" in said.err
    summary = json.loads(said.out)
    assert summary["not_run"] == {"S-m1-dpo": "S-m1-sft"} and list(summary["failed"]) == ["S-m1-sft"]
    assert set(summary["finished"]) == {"S-m2-pt", "S-m2-sft", "S-m2-dpo"}
    assert (tmp_path / "ckpts/S-m2-sft/config.json").is_file()


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system whose size `resize` sets."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    yield folder, resize
    subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_stage_is_one_sentence(
    small_disk, trained: Path, data: Path, write_study, capsys: pytest.CaptureFixture[str]
):
    """Tokenizer, shards, conversations, checkpoints: each time the disk grows it gets further, and the bytes
    are those of a run that never failed.
    """
    folder, resize = small_disk
    reached = []
    for size in ("40k", "180k", "620k"):
        resize(size)
        assert train(write_study(), data, folder / "ckpts", "--jobs", "1") == 1
        said = capsys.readouterr().err
        assert "No space left on device" in said and "Traceback" not in said, said
        reached.append(sum(f.stat().st_size for f in (folder / "ckpts").rglob("*") if f.is_file()))
        assert {p.name for p in folder.glob("ckpts/*/*")} & {"evalengine.json"} == (
            {"evalengine.json"} if list(folder.glob("ckpts/S-*")) else set()
        )
    assert reached == sorted(reached) and list(folder.glob("ckpts/S-*"))
    resize("50m")
    assert train(write_study(), data, folder / "ckpts", "--jobs", "1") == 0
    assert contents(folder / "ckpts") == contents(trained)


def test_a_full_disk_under_a_runs_state_is_one_sentence(small_disk):
    from test_training_loop import SETTINGS, Synthetic, model

    folder, resize = small_disk
    place = Place(state=folder / "run.pt", save_every_s=0)
    with pytest.raises(UserError, match=r"cannot write the run's state .*run\.pt .*make room on the disk"):
        fit(model(), Synthetic(3), SETTINGS, place)
    assert list(folder.iterdir()) == []
    resize("5m")
    fit(model(), Synthetic(3), SETTINGS, place)
    assert (folder / "run.pt").is_file()


def test_each_arm_of_fine_tuning_is_a_stage_and_leaves_the_others_as_they_were(
    trained: Path, data: Path, write_study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Started over finished checkpoints: nothing of pt and sft is trained again, and the arms differ by their weights."""
    out = tmp_path / "ckpts"
    shutil.copytree(trained, out)
    assert train(write_study(), data, out, "--stages", "sft,sft_emptied,sft_shuffled", "--json") == 0
    done = json.loads(capsys.readouterr().out)
    arms = [f"S-{mixture}-sft_{arm}" for mixture in ("m1", "m2") for arm in ("emptied", "shuffled")]
    assert sorted(done["finished"]) == arms and done["skipped"] == NAMES
    about = [json.loads((out / name / "evalengine.json").read_text()) for name in (*arms, "S-m1-sft")]
    assert (
        len({one["fingerprint"] for one in about})
        == len({one["crc32"]["model.safetensors"] for one in about})
        == 5
    )
    assert [one["base"] for one in about] == ["S-m1-pt", "S-m1-pt", "S-m2-pt", "S-m2-pt", "S-m1-pt"]
    assert {one["stage"] for one in about} == {"sft", "sft_emptied", "sft_shuffled"}
    assert (
        main(
            ["train", str(write_study()), "--out", str(out), "--dry-run", "--json", "--stages", "sft_emptied"]
        )
        == 0
    )
    plan = json.loads(capsys.readouterr().out)["runs"]
    assert [run["name"] for run in plan] == ["S-m1-pt", "S-m1-sft_emptied", "S-m2-pt", "S-m2-sft_emptied"]
    assert all(run["finished"] and run["tokens"] for run in plan)
    kept = conversations.load(next(out.glob(".study/conversations-????????????.npz")))
    emptied = conversations.load(next(out.glob(".study/conversations-emptied-*.npz")))
    assert plan[1]["tokens"] == sum(len(e.token_T) for e in conversations.within(emptied, 64))
    assert plan[1]["tokens"] < sum(len(e.token_T) for e in conversations.within(kept, 64))


def test_a_failed_run_takes_along_those_that_start_from_it(write_study, tmp_path: Path, monkeypatch):
    from evalengine.training import workers
    from evalengine.training.job import Job
    from evalengine.training.stages import Trained

    study = with_stages(load(write_study()), ["sft", "sft_emptied"])
    chain = [Job(study, None, tmp_path, run, Place()) for run in selected(study, "S-m1-*")]

    def trained_or_not(bad: str) -> dict[str, str]:
        def once(job: Job, report: object) -> Trained:
            if job.run.stage == bad:
                raise UserError("no")
            return Trained(job.run.name, 1.0, {})

        monkeypatch.setattr(workers, "train", once)
        said: list[workers.RunMessage] = []
        workers.train_chain(0, chain, said.append)
        return {m.name: "failed" if m.value == "no" else "trained" for m in said}

    assert trained_or_not("pt") == {"S-m1-pt": "failed"}
    assert needed(study, Run("S", "m1", "sft_emptied")) == {Run("S", "m1", "pt")}
    assert trained_or_not("sft") == {
        "S-m1-pt": "trained",
        "S-m1-sft": "failed",
        "S-m1-sft_emptied": "trained",
    }


def test_only_brings_the_pretraining_that_fine_tuning_needs(write_study):
    study = load(write_study())
    assert [run.name for run in selected(study, "S-m2-sft")] == ["S-m2-pt", "S-m2-sft"]
    with pytest.raises(UserError, match="--only X\\* matches none of the study's runs, such as S-m1-pt"):
        selected(study, "X*")


def test_a_second_process_on_the_same_folder_is_refused(data: Path, write_study, tmp_path: Path, capsys):
    with locked(work_folder(tmp_path / "ckpts"), "training into it"):
        assert train(write_study(), data, tmp_path / "ckpts") == 1
    assert f"another process is training into {tmp_path}/ckpts" in capsys.readouterr().err


def test_a_missing_data_folder_is_one_sentence(
    write_study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert train(write_study(), tmp_path / "nowhere", tmp_path / "ckpts") == 1
    assert "there is no data folder" in capsys.readouterr().err
    assert train(write_study(), tmp_path, tmp_path / "ckpts") == 1
    assert f"source code: there is no text at {tmp_path}/corpora/code.txt" in capsys.readouterr().err
    assert main(["train", str(write_study()), "--out", str(tmp_path / "ckpts")]) == 1
    assert "give the folder that holds it with --data DIR" in capsys.readouterr().err
    assert not (tmp_path / "ckpts").exists()


def test_dry_run_prints_the_plan_and_makes_nothing(
    write_study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = ["--dry-run", "--flops", "1e9", "--out", str(tmp_path / "ckpts")]
    assert main(["train", str(write_study()), *options]) == 0
    said = capsys.readouterr().out
    assert "4 runs" in said and "the few that remain, different ones in every epoch, are left out" in said
    assert main(["train", str(write_study()), *options, "--json"]) == 0
    assert [r["name"] for r in json.loads(capsys.readouterr().out)["runs"]] == NAMES
    assert not (tmp_path / "ckpts").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--jobs", "-1"], "--jobs must be 1 or more, or 0 for the default, not -1"),
        (["--dry-run", "--jobs", "-1"], "--jobs must be"),
        *(
            (["--dry-run", "--flops", rate], "--flops is a rate above 0")
            for rate in ("0", "-1", "nan", "inf")
        ),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    options: list[str], reason: str, data: Path, write_study, tmp_path: Path, capsys
):
    assert train(write_study(), data, tmp_path / "ckpts", *options) == 1
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "ckpts").exists()


def test_validation_on_what_was_trained_on_is_said(data: Path, write_study, tmp_path: Path, capsys):
    (tmp_path / "one.txt").write_text("one document " * 40)
    study = write_study(sources__web={"path": str(tmp_path / "one.txt")})
    prepare(load(study), data, tmp_path / "ckpts")
    said = capsys.readouterr().err
    assert "source web is one document, so its validation loss is of the text that it is trained on" in said
    assert "source code" not in said


def test_fresh_trains_again(data: Path, write_study, tmp_path: Path):
    out = tmp_path / "ckpts"
    assert train(write_study(), data, out, "--only", "S-m1-pt") == 0
    first = (out / "S-m1-pt/model.safetensors").read_bytes()
    assert train(write_study(seed=9), data, out, "--only", "S-m1-pt", "--fresh") == 0
    assert (out / "S-m1-pt/model.safetensors").read_bytes() != first


@pytest.mark.slow
def test_torchrun_trains_the_study_in_shards(trained: Path, data: Path, write_study, tmp_path: Path):
    out = tmp_path / "ckpts"
    options = [str(write_study()), "--data", str(data), "--out", str(out), "--only", "S-m1-*"]
    options += ["--parallel", "fsdp"]  # copies are tested in test_several_processes.py
    options += ["--stages", "pt,sft,dpo"]
    done = subprocess.run(
        [*TORCHRUN, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    alone = tmp_path / "alone"
    shutil.copytree(trained, alone)
    assert train(write_study(), data, alone, "--stages", "dpo", "--only", "S-m1-*") == 0
    for name in ("S-m1-pt", "S-m1-sft", "S-m1-dpo"):
        ours, theirs = (
            json.loads((folder / name / "evalengine.json").read_text()) for folder in (out, alone)
        )
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)
    shutil.rmtree(out)


def test_how_a_worker_ended_is_not_guessed():
    assert "was killed, most likely as memory ran out: lower --jobs" in death(-9)
    assert death(1).startswith("ended with code 1; what it said is above")
    assert death(-11).startswith("was ended by signal 11")
