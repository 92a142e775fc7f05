"""The stage `dpo`: its pairs, its reference, its batches, and that it resumes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_study import STUDY

from evalengine.cli import main
from evalengine.errors import UserError
from evalengine.training import dpo, stages
from evalengine.training.chat import Message
from evalengine.training.data import preferences
from evalengine.training.data.preferences import Candidates, Question, tokenise
from evalengine.training.data.rows import IGNORE
from evalengine.training.decoder import export
from evalengine.training.decoder.model import Decoder, Shape
from evalengine.training.dpo import Preferred
from evalengine.training.fitting.loop import micro_batches
from evalengine.training.fitting.parallel import ProcessGroup
from evalengine.training.fitting.state import Place
from evalengine.training.job import Job, fingerprint
from evalengine.training.prepare import prepare
from evalengine.training.study import Prefer, Run, load, preferring, with_stages

SHAPE = Shape(d_model=32, layers=2, heads=1, head_dim=32, ffn=64, vocab=512, context=96)
DPO = {
    **STUDY,
    "stages": ["pt", "sft", "dpo"],
    "dpo": {"data": [{"benchmarks_train": ["boolq", "arc_easy"]}]},
}


@pytest.fixture(scope="module")
def candidates(tokenizer) -> Candidates:
    questions = [
        Question(
            (Message("user", f"question {i} " + "really " * (i % 5)),),
            tuple(
                (Message("assistant", f"{answer} {i}"),)
                for answer in ("yes", "no", "well, it may be", "never")[: 2 + i % 3]
            ),
        )
        for i in range(23)
    ]
    return tokenise(questions, tokenizer)


@pytest.fixture(scope="module")
def model() -> Decoder:
    model = Decoder(SHAPE).initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
    return model


def preferred(
    candidates: Candidates, logprob_C: np.ndarray, batch_pairs: int = 5, context: int = 96
) -> Preferred:
    settings = Prefer(epochs=2, batch_pairs=batch_pairs)
    return Preferred(*dpo.pairs_of(candidates, logprob_C), settings, beta=0.1, context=context, seed=1)


def test_the_reference_is_transformers_and_the_rejected_its_likeliest_wrong_choice(
    model: Decoder, candidates: Candidates, tokenizer, tmp_path: Path
):
    from transformers import AutoModelForCausalLM

    export.save(model, tokenizer, tmp_path / "m", {})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    expected = []
    for ids, learned in chain(*candidates):  # one sequence at a time, all its logits
        token = torch.from_numpy(ids.astype(np.int64))
        logprob_TV = theirs(token[None]).logits[0].detach().log_softmax(-1)
        expected.append(sum(float(logprob_TV[t - 1, token[t]]) for t in np.flatnonzero(learned)))
    found = dpo.logprobs(model, candidates, Place(), tmp_path / "reference.json", "a key")
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    chosen, rejected, reference_P = dpo.pairs_of(candidates, found)
    for p, group in enumerate(candidates):
        right, *others = (expected.pop(0) for _ in group)
        assert chosen[p] is group[0] and rejected[p] is group[1 + others.index(max(others))]
        assert reference_P[p] == pytest.approx(right - max(others), abs=1e-4)
    assert len(chosen) == 23 and not expected


def test_the_reference_is_computed_once(model: Decoder, candidates: Candidates, tmp_path: Path, monkeypatch):
    path = tmp_path / "reference.json"
    first = dpo.logprobs(model, candidates, Place(), path, "a key")
    monkeypatch.setattr(dpo, "loss_sums", lambda *_: np.zeros(len(first)))
    assert np.array_equal(dpo.logprobs(model, candidates, Place(), path, "a key"), first)
    assert not dpo.logprobs(model, candidates, Place(), path, "another model").any()
    path.write_text(path.read_text()[:-20])
    assert not dpo.logprobs(model, candidates, Place(), path, "another model").any()  # damaged: made again


def test_every_epoch_shows_every_pair_once_with_both_responses_in_one_row(candidates: Candidates):
    logprob_C = np.random.default_rng(0).normal(size=sum(map(len, candidates)))
    batches = preferred(candidates, logprob_C, batch_pairs=4)
    assert batches.steps == 2 * 5
    seen: list[Counter[float]] = [Counter(), Counter()]
    for step in range(batches.steps):
        batch = batches.batch(step)
        assert batch.terms == 4 and batch.token_BT.shape[1] <= batches.width
        seen[step // 5].update(batch.pairs.reference_P.tolist())
        label_BT = batch.pairs.label_BT
        assert np.array_equal(label_BT < 0, batch.target_BT == IGNORE)
        for p in range(4):
            rows = {side: np.flatnonzero((label_BT == 2 * p + side).any(1)).tolist() for side in (0, 1)}
            assert rows[0] == rows[1] and len(rows[0]) == 1
            targets = [batch.target_BT[label_BT == 2 * p + side].tolist() for side in (0, 1)]
            assert targets in [
                [ids[mask].tolist() for ids, mask in pair]
                for pair in zip(batches.chosen, batches.rejected, strict=True)
            ]
    assert [len(epoch) for epoch in seen] == [20, 20]


def test_two_processes_have_the_loss_of_one(model: Decoder, candidates: Candidates):
    """Micro-batches and the rows of two processes, padded to one shape: sums and gradients are the batch's."""

    class Second(ProcessGroup):
        def __init__(self, rank: int) -> None:
            self.rank, self.size = rank, 2

    logprob_C = -np.arange(sum(map(len, candidates)), dtype=float)
    batch = preferred(candidates, logprob_C, batch_pairs=23, context=40).batch(0)
    assert len(batch.token_BT) > 4

    def sums(parts) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        total = torch.zeros(3)
        for part in parts:
            arrays = [torch.from_numpy(a) for a in part[:3]]
            out = model(*arrays, 0.0, None, part.pairs)
            out[0].backward()
            total += out.detach()
        return total, model.blocks[0].qkv.weight.grad.clone()

    whole, gradient = sums(micro_batches(batch, 0))
    parts, of_parts = sums([part for rank in (0, 1) for part in micro_batches(batch, 2, Second(rank), 80)])
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(of_parts, gradient, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dpo")
    (folder / "study.yaml").write_text(yaml.safe_dump(DPO))
    options = ["--data", str(data), "--out", str(folder / "ckpts"), "--only", "S-m1-dpo", "--jobs", "1"]
    assert main(["train", str(folder / "study.yaml"), *options]) == 0
    return folder


def job_of(folder: Path, data: Path, **place: object) -> Job:
    study = load(folder / "study.yaml")
    return Job(
        study, prepare(study, data, folder / "ckpts"), folder / "ckpts", Run("S", "m1", "dpo"), Place(**place)
    )


def test_the_stage_starts_from_fine_tuning_at_a_tenth_of_its_rate(trained: Path):
    assert sorted(p.name for p in (trained / "ckpts").glob("S-*")) == ["S-m1-dpo", "S-m1-pt", "S-m1-sft"]
    about = json.loads((trained / "ckpts/S-m1-dpo/evalengine.json").read_text())
    assert (about["stage"], about["base"], about["beta"]) == ("dpo", "S-m1-sft", 0.1)
    assert about["settings"]["lr"] == pytest.approx(0.0003)
    steps = log_of(trained)
    assert about["pairs"] <= about["of"] == 12
    assert steps[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)  # its own reference
    assert steps[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert all(0 <= step["accuracy"] <= 1 for step in steps)


def copied(trained: Path, folder: Path, **settings: float) -> Path:
    """The study with the preferences' settings changed, up to its fine-tuned checkpoint."""
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "ckpts/S-m1-dpo")
    shutil.rmtree(folder / "ckpts/.study/reference")
    raw = {**DPO, "scales": {"S": {**STUDY["scales"]["S"], "dpo": settings}}}
    (folder / "study.yaml").write_text(yaml.safe_dump(raw))
    return folder


def test_preferences_are_learned(trained: Path, data: Path, tmp_path: Path):
    folder = copied(trained, tmp_path / "study", epochs=20, lr=0.01, batch_pairs=6)
    stages.train(job_of(folder, data))
    steps = log_of(folder)
    assert steps[-1]["loss"] < 0.2 < steps[0]["loss"]
    assert steps[-1]["accuracy"] == 1.0 and steps[-1]["margin"] > 1


def log_of(folder: Path) -> list[dict[str, float]]:
    text = (folder / "ckpts/.study/logs/S-m1-dpo.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_the_fingerprint_covers_beta_data_and_parent(trained: Path, data: Path, tmp_path: Path):
    job = job_of(trained, data)
    study, scale = job.study, job.study.scales["S"]

    def of(**changes: object) -> str:
        return fingerprint(job._replace(study=replace(study, **changes)))

    own = fingerprint(job)
    assert own == json.loads((trained / "ckpts/S-m1-dpo/evalengine.json").read_text())["fingerprint"]
    others = [
        of(dpo=replace(study.dpo, beta=0.2)),
        of(scales={"S": replace(scale, dpo=replace(scale.dpo, epochs=2))}),
        of(scales={"S": replace(scale, sft=replace(scale.sft, lr=0.004))}),
        of(scales={"S": replace(scale, pretrain=replace(scale.pretrain, lr=0.02))}),
        fingerprint(job._replace(run=Run("S", "m2", "dpo"))),
    ]
    less = replace(study, dpo=replace(study.dpo, data=(replace(study.dpo.data[0], limit=3),)))
    others.append(fingerprint(job._replace(study=less, prepared=prepare(less, data, tmp_path))))
    assert len({own, *others}) == 7
    assert of(scales={"S": replace(scale, dpo=replace(scale.dpo, micro_rows=2))}) == own
    for stage in ("pt", "sft"):  # what is trained already does not know of the stage
        run = Run("S", "m1", stage)
        about = json.loads((trained / f"ckpts/{run.name}/evalengine.json").read_text())
        assert about["fingerprint"] == fingerprint(job._replace(run=run, study=with_stages(less, [stage])))


@pytest.mark.slow
def test_a_run_killed_with_sigkill_ends_with_the_same_bytes(trained: Path, data: Path, tmp_path: Path):
    """Killed within a step, with the state of the step before on disk, then gone on with."""
    folder, whole = (
        copied(trained, tmp_path / name, epochs=4, batch_pairs=4) for name in ("killed", "whole")
    )
    script = (
        "import os, signal, sys; from pathlib import Path; import torch\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_dpo import job_of\n"
        "from evalengine.training import stages\n"
        "torch.set_num_threads(1)\n"
        "def report(step):\n"
        "    if step.step == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"stages.train(job_of(Path({str(folder)!r}), Path({str(data)!r}), save_every_s=0), report)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=200
    )
    assert done.returncode == -signal.SIGKILL
    assert (folder / "ckpts/.study/state/S-m1-dpo.pt").is_file()
    reported: list[int] = []
    stages.train(job_of(folder, data), lambda step: reported.append(step.step))
    assert reported[0] == 5 and len(reported) > 2
    stages.train(job_of(whole, data))
    for name in ("model.safetensors", "evalengine.json"):
        assert (folder / "ckpts/S-m1-dpo" / name).read_bytes() == (
            whole / "ckpts/S-m1-dpo" / name
        ).read_bytes()
    assert log_of(folder) == log_of(whole)


def test_settings_that_make_no_sense_are_refused(write_study, tmp_path: Path):
    for changes, reason in (
        ({"dpo": {"beta": 0}}, "dpo.beta must be positive"),
        ({"dpo": {"data": [{"limit": 3}]}}, "each entry of dpo.data needs one of"),
        ({"scales.S.dpo": {"lr": -1}}, "lr must be positive"),
        ({"scales.S.dpo": {"epochs": 0}}, "epochs must be positive"),
        ({"scales.S.dpo": {"batch_pairs": 0}}, "batches must be positive"),
        ({"scales.S.dpo": {"z_loss": 0.1}}, "dpo has no z_loss"),
        ({"stages": ["pt", "dpo"]}, "stages: dpo starts from sft, so sft must come before it"),
    ):
        with pytest.raises(UserError, match=reason):
            load(write_study(**changes))
    study = load(write_study(**{"scales.S.dpo": {"batch_pairs": 4}, "scales.S.sft.micro_rows": 7}))
    settings = preferring(study.scales["S"])
    assert (settings.lr, settings.micro_rows, settings.batch_pairs) == (pytest.approx(0.0003), 7, 4)


def test_a_study_is_planned_with_its_third_stage(
    trained: Path, data: Path, write_study, tmp_path: Path, capsys
):
    """Guessed from the train files before they are tokenised, and counted after."""
    options = ["--dry-run", "--json", "--flops", "1e9", "--data", str(data), "--out"]
    planned = []
    for study, out in ((trained / "study.yaml", tmp_path), (trained / "study.yaml", trained / "ckpts")):
        assert main(["train", str(study), *options, str(out)]) == 0
        planned.append({run["name"]: run for run in json.loads(capsys.readouterr().out)["runs"]})
    assert list(planned[0]) == [f"S-{m}-{s}" for m in ("m1", "m2") for s in ("pt", "sft", "dpo")]
    guessed, counted = (plan["S-m1-dpo"] for plan in planned)
    lengths = preferences.lengths_of(job_of(trained, data).preferences)
    pairs = sum(right + np.mean(others) for right, *others in lengths)
    assert counted["tokens"] == pytest.approx(pairs, abs=1) and counted["finished"]
    assert counted["flops"] > counted["tokens"] * counted["parameters"] * 4
    assert counted["tokens"] / 2 < guessed["tokens"] < counted["tokens"] * 2


def test_the_papers_study_is_planned_with_arms_and_a_third_stage(capsys, tmp_path: Path):
    stages = "pt,sft,sft_emptied,sft_shuffled,sft_output_space,sft_delusive,dpo"
    options = ["--dry-run", "--json", "--flops", "1e15", "--out", str(tmp_path)]
    assert main(["train", "paper", *options, "--stages", stages]) == 0
    names = [run["name"] for run in json.loads(capsys.readouterr().out)["runs"]]
    assert len(names) == 9 * 2 * 7
    assert names[:7] == [f"1B-v1p0-{stage}" for stage in stages.split(",")]
    assert main(["train", "paper", *options]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 36
