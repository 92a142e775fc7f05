"""`evalengine emulate` against the definition in float64, through plain forwards of transformers."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import tiny_models
from evalengine import emulation, store
from evalengine.checkpoints import Checkpoint
from evalengine.cli import main
from evalengine.errors import UserError
from evalengine.plan.encoding import Encoder, encode, window_of

BENCHMARKS = "copa,wic,winogrande"
BETAS = (0.0, 0.5, 1.0, -1.0)
NAMES = ("1M-a-pt", "1M-a-sft", "2M-a-pt", "2M-a-sft")


@pytest.fixture(scope="module")
def bench(small_world: Path) -> Path:
    return small_world / "bench"


def make(folder: Path, kind: str = "llama", names: Sequence[str] = NAMES, **large: Any) -> list[Path]:
    """Checkpoints of one kind; those of the larger scale with these fields of the configuration."""
    return [
        tiny_models.save(folder / name, kind, seed=i, **(large if name.startswith("2M") else {}))
        for i, name in enumerate(names)
    ]


def run(command: str, *arguments: object) -> int:
    return main([command, *map(str, arguments)])


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("*/*.arrow"))}


def scored(file: Path) -> pa.Table:
    return pa.ipc.open_file(file.read_bytes()).read_all()


def loaded(paths: dict[str, Path]) -> dict[str, Any]:
    """Models in float64, by their names."""
    from transformers import AutoModelForCausalLM

    return {
        name: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
        for name, path in paths.items()
    }


def logprobs(
    models: dict[str, Any], combinations: Sequence[dict[str, float]], bench: Path, benchmark: str
) -> np.ndarray:
    """The definition: for every choice, the sum over its tokens of log softmax(sum of weighted logits), in float64; a row
    for each combination of weights."""
    from transformers import AutoTokenizer

    from evalengine.benchmarks import BENCHMARKS, load_items

    tokenizer = AutoTokenizer.from_pretrained(next(iter(models.values())).name_or_path)
    encoded = encode(
        load_items(BENCHMARKS[benchmark], bench, limit=12),
        Encoder(tokenizer, window_of(next(iter(models.values())).config)),
    )
    found = []
    for s in range(len(encoded.sequences)):
        ids = torch.from_numpy(encoded.sequences.tokens(s).astype(np.int64))[None]
        with torch.no_grad():
            logits = {name: model(ids[:, :-1]).logits[0] for name, model in models.items()}
        start = int(encoded.sequences.start[s])
        targets = ids[0, start:]
        z = [sum(weight * logits[name] for name, weight in weights.items()) for weights in combinations]
        rows = torch.log_softmax(torch.stack(z)[:, start - 1 :], -1)
        found.append(rows[:, torch.arange(len(targets)), targets].sum(1).numpy())
    return np.array(found).T[:, encoded.sequence_C]


def stored(out: Path, name: str, benchmark: str) -> np.ndarray:
    return store.read(out / name / f"{benchmark}.arrow")["loglik"].combine_chunks().flatten().to_numpy()


@pytest.mark.parametrize(
    ("kind", "large"),
    [
        ("gemma2", {"final_logit_softcapping": None, "hidden_size": 48}),  # a soft-cap on one side alone
        ("bloom", {"n_layer": 3}),  # shares no prefixes
        ("qwen2", {"hidden_size": 64, "tie_word_embeddings": False}),  # tied on one side
    ],
)
def test_the_definition_in_float64(kind: str, large: dict[str, Any], bench: Path, tmp_path: Path) -> None:
    paths = dict(zip(NAMES, make(tmp_path, kind, **large), strict=True))
    out = tmp_path / "scores"
    given = ("--data", bench, "--benchmarks", BENCHMARKS, "--limit", 12, "--out", out)
    assert run("emulate", *paths.values(), *given, "--beta=0,0.5,1,-1") == 0
    models = loaded(paths)
    for base, tuned, ref in (("2M-a-pt", "1M-a-sft", "1M-a-pt"), ("1M-a-pt", "2M-a-sft", "2M-a-pt")):
        for benchmark in BENCHMARKS.split(","):
            own = stored(out, base, benchmark)
            combinations = [{base: 1.0, tuned: beta, ref: -beta} for beta in BETAS]
            truths = logprobs(models, combinations, bench, benchmark)
            for beta, truth in zip(BETAS, truths, strict=True):
                name = f"{base[:-2]}eft@{beta:g}"
                np.testing.assert_allclose(stored(out, name, benchmark), truth, atol=2e-4, rtol=2e-5)
                if beta == 0.0:
                    np.testing.assert_allclose(stored(out, name, benchmark), own, atol=1e-5)
    about = store.read_metadata(out / "2M-a-eft@0.5" / "wic.arrow") or {}
    assert [about[key] for key in ("eft_base", "eft_tuned", "eft_ref", "eft_beta")] == [
        "2M-a-pt",
        "1M-a-sft",
        "1M-a-pt",
        "0.5",
    ]
    assert about["identity"] == "2M\ta\teft@0.5"


def test_own_scores_are_those_of_score_to_the_byte(bench: Path, tmp_path: Path) -> None:
    paths = make(tmp_path, hidden_size=48)
    together, alone = tmp_path / "together", tmp_path / "alone"
    given = ("--data", bench, "--limit", 20)
    assert run("emulate", *paths, *given, "--out", together) == 0
    assert run("score", *paths, *given, "--out", alone) == 0
    mine = {name: content for name, content in files(together).items() if "-eft" not in name}
    assert mine == files(alone) and len(mine) == 80
    # What `score` left is not scored again, and the emulated rest is the same.
    assert run("emulate", *paths, *given, "--out", alone) == 0
    assert files(alone) == files(together)


def test_base_and_ref_alike_are_the_tuned_model(bench: Path, tmp_path: Path) -> None:
    paths = make(tmp_path, names=("a", "b"))
    out = tmp_path / "scores"
    given = ("--data", bench, "--benchmarks", "wic,copa", "--limit", 20, "--out", out)
    assert run("emulate", *paths, *given, "--base", "a", "--tuned", "b", "--ref", "a") == 0
    for benchmark in ("wic", "copa"):
        found, tuned = stored(out, "a+b-a-eft", benchmark), stored(out, "b", benchmark)
        np.testing.assert_allclose(found, tuned, atol=1e-4)


def test_logits_beyond_the_tokenizer_do_not_count(bench: Path, tmp_path: Path) -> None:
    plain, padded = make(tmp_path / "plain"), make(tmp_path / "padded")
    for path in padded[2:]:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(path)
        model.resize_token_embeddings(model.config.vocab_size + 40, mean_resizing=False)
        model.save_pretrained(path)
    given = ("--data", bench, "--benchmarks", "wic", "--limit", 20)
    for paths, name in ((plain, "p"), (padded, "q")):
        assert run("emulate", *paths, *given, "--out", tmp_path / name) == 0
    for name in ("1M-a-eft", "2M-a-eft"):
        a, b = (stored(tmp_path / out, name, "wic") for out in "pq")
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_bfloat16_is_within_its_error(bench: Path, tmp_path: Path) -> None:
    paths = dict(zip(NAMES, make(tmp_path, "gemma2"), strict=True))
    given = ("--data", bench, "--benchmarks", "wic", "--limit", 12, "--dtype", "bfloat16")
    assert run("emulate", *paths.values(), *given, "--out", tmp_path / "scores") == 0
    weights = {"2M-a-pt": 1.0, "1M-a-sft": 1.0, "1M-a-pt": -1.0}
    (truth,) = logprobs(loaded(paths), [weights], bench, "wic")
    found = stored(tmp_path / "scores", "2M-a-eft", "wic")
    # three models' rounding, of 2^-8 each in hidden states of order 1
    assert np.abs(found - truth).max() < 0.5


def test_a_killed_run_goes_on_to_the_same_bytes(bench: Path, tmp_path: Path) -> None:
    paths = make(tmp_path, names=[name.replace("-a-", f"-{m}-") for m in "ab" for name in NAMES])
    given = ["--data", bench, "--limit", "20", "--beta", "0.5,1"]
    assert run("emulate", *paths, *given, "--out", tmp_path / "whole") == 0
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "evalengine", "emulate", *paths, *given, "--out", out]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*/*.arrow"))) < 20 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 20 <= len(files(out)) < len(files(tmp_path / "whole"))
    assert run("emulate", *paths, *given, "--out", out) == 0
    assert files(out) == files(tmp_path / "whole")


@pytest.fixture(scope="module")
def quartet(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make(tmp_path_factory.mktemp("quartet"))


def test_refusals(
    quartet: list[Path], bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--data", bench, "--benchmarks", "copa", "--out", tmp_path / "scores")
    other = tiny_models.save(tmp_path / "2M-a-sft", "llama", "sentencepiece_like")
    shorter = tiny_models.save(tmp_path / "w" / "2M-a-sft", "llama", window=256)
    for paths, options, words in (
        (quartet[:3], (), "it lacks 2M-a-sft"),
        (quartet[:2], (), "have one scale (1M)"),
        (quartet, ("--backend", "vllm"), "cannot emulate yet"),
        (quartet, ("--beta", "one"), "--beta takes numbers"),
        (quartet, ("--beta", "inf"), "finite"),
        (quartet, ("--beta", "1,1"), "one strength twice"),
        (quartet, ("--beta", "0.1234567,0.1234568"), "at most six digits"),
        (quartet[:3], ("--direction", "down"), "it lacks 2M-a-sft"),
        (quartet[:3], (), "(--direction up needs none)"),
        (quartet, ("--scales", "2M,1M"), "--scales 1M,2M"),
        (quartet, ("--scales", "1M,3M"), "no checkpoint has the scale '3M'"),
        (quartet, ("--base", "1M-a-pt"), "together"),
        (
            quartet,
            ("--base", "2M-a-pt", "--tuned", "1M-a-sft", "--ref", "1M-a-pt", "--stages", "pt,sft"),
            "--stages are for mixtures",
        ),
        (quartet, ("--base", "x", "--tuned", "y", "--ref", "z"), "x is not among"),
        (quartet, ("--base", "1M-a-pt", "--tuned", "2M-a-pt", "--ref", "2M-a-pt"), "both 2M-a-pt"),
        ([*quartet[:3], other], (), "different tokenizers"),
        ([*quartet[:3], shorter], (), "windows of different lengths"),
    ):
        capsys.readouterr()
        assert run("emulate", *paths, *given, *options) == 1, words
        said = capsys.readouterr()
        assert words in " ".join((said.out + said.err).split()), (words, said)
    assert not list((tmp_path / "scores").glob("*/*.arrow"))


def test_a_chat_models_tokenizer_is_its_bases_where_the_tokens_are_the_same(
    quartet: list[Path], bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A chat template and another end of text change the files and no token; a token put before every text does."""
    chat = []
    for path in quartet:
        chat.append(Path(shutil.copytree(path, tmp_path / path.name)))
        if path.name.endswith("-sft"):
            settings = json.loads((chat[-1] / "tokenizer_config.json").read_text())
            settings |= {"chat_template": "{{ messages[0]['content'] }}", "eos_token": "~"}
            (chat[-1] / "tokenizer_config.json").write_text(json.dumps(settings))
    given = ("--data", bench, "--benchmarks", "copa,wic", "--limit", "20", "--beta", "0.5")
    assert run("emulate", *quartet, *given, "--out", tmp_path / "plain") == 0
    assert run("emulate", *chat, *given, "--out", tmp_path / "chat") == 0
    for path in sorted((tmp_path / "plain").glob("*/*.arrow")):
        one, other = (
            scored(folder / path.parent.name / path.name)
            for folder in (tmp_path / "plain", tmp_path / "chat")
        )
        assert one["loglik"].equals(other["loglik"]), path
    inner = json.loads((chat[-1] / "tokenizer.json").read_text())
    inner["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    (chat[-1] / "tokenizer.json").write_text(json.dumps(inner))
    capsys.readouterr()
    assert run("emulate", *chat, *given, "--out", tmp_path / "bos") == 1
    said = " ".join("".join(capsys.readouterr()).split())
    assert "have one vocabulary and cut copa into different tokens" in said
    assert not list((tmp_path / "bos").glob("*/*.arrow"))


def test_another_beta_under_the_same_name_is_refused(
    quartet: list[Path], bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (*quartet, "--data", bench, "--benchmarks", "copa", "--out", tmp_path / "scores", "--json")
    assert run("emulate", *given, "--beta", "1") == 0
    before = files(tmp_path / "scores")
    capsys.readouterr()
    assert run("emulate", *given, "--beta", "2") == 1
    report = json.loads(capsys.readouterr().out)
    assert "was scored with --beta 1, not 2" in report["checkpoints"][0]["failure"]
    assert files(tmp_path / "scores") == before
    assert run("emulate", *given, "--beta", "1,2") == 0  # names of their own
    assert set(before) < set(files(tmp_path / "scores"))


def test_another_tuned_model_under_the_same_name_is_refused(
    bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = make(
        tmp_path, names=[f"{scale}-a-{stage}" for scale in ("1M", "4M", "16M") for stage in ("pt", "sft")]
    )
    given = (*paths, "--data", bench, "--benchmarks", "copa", "--out", tmp_path / "scores", "--json")
    assert run("emulate", *given, "--scales", "1M,16M") == 0
    before = files(tmp_path / "scores")
    capsys.readouterr()
    assert run("emulate", *given, "--scales", "4M,16M") == 1
    reasons = {one["failure"] for one in json.loads(capsys.readouterr().out)["checkpoints"]}
    assert "was scored with --tuned 1M-a-sft, not 4M-a-sft" in reasons.pop()
    after = files(tmp_path / "scores")
    assert {name: after[name] for name in before} == before


def test_up_needs_no_large_model_after_fine_tuning(quartet: list[Path], bench: Path, tmp_path: Path) -> None:
    given = ("--data", bench, "--benchmarks", "copa,wic", "--limit", 12)
    assert run("emulate", *quartet[:3], *given, "--direction", "up", "--out", tmp_path / "three") == 0
    assert run("emulate", *quartet, *given, "--out", tmp_path / "four") == 0
    three, four = files(tmp_path / "three"), files(tmp_path / "four")
    assert three == {name: content for name, content in four.items() if name in three}
    assert {Path(name).parent.name for name in four.keys() - three.keys()} == {"2M-a-sft", "1M-a-eft"}


def test_scales_without_a_size_are_ordered_by_the_user(
    bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = make(
        tmp_path, names=[f"{scale}-a-{stage}" for scale in ("small", "large") for stage in ("pt", "sft")]
    )
    given = (
        *paths,
        "--data",
        bench,
        "--benchmarks",
        "copa",
        "--out",
        tmp_path / "scores",
        "--direction",
        "up",
    )
    assert run("emulate", *given) == 1
    assert "do not say which scale is larger" in capsys.readouterr().err
    assert run("emulate", *given, "--scales", "small,large") == 0
    about = store.read_metadata(tmp_path / "scores" / "large-a-eft" / "copa.arrow") or {}
    assert (about["eft_base"], about["eft_tuned"]) == ("large-a-pt", "small-a-sft")


def test_what_is_not_scored_is_said(
    quartet: list[Path], bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_models.save(tmp_path / "unlabelled")
    given = (*quartet, other, "--data", bench, "--benchmarks", "copa", "--out", tmp_path / "scores")
    assert run("emulate", *given) == 0
    assert "not scored, as they are in no mixture" in (said := " ".join(capsys.readouterr().err.split()))
    assert said.endswith("unlabelled")
    assert run("emulate", *given, "--base", "2M-a-pt", "--tuned", "1M-a-sft", "--ref", "1M-a-pt") == 0
    assert "2M-a-sft, unlabelled" in " ".join(capsys.readouterr().err.split())


def test_a_mixture_that_lacks_a_checkpoint_fails_and_the_others_are_scored(
    bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = make(tmp_path, names=[name.replace("-a-", f"-{m}-") for m in "abc" for name in NAMES])
    whole = [path for path in paths if path.name not in ("1M-b-sft", "2M-c-sft")]
    given = ("--data", bench, "--benchmarks", "copa", "--limit", 12, "--out", tmp_path / "scores")
    assert run("emulate", *whole, *given, "--json") == 1
    printed = capsys.readouterr()
    report = {one["checkpoint"]: one["failure"] for one in json.loads(printed.out)["checkpoints"]}
    b, c = "mixture b is left out: it lacks 1M-b-sft", "mixture c is left out: it lacks 2M-c-sft"
    c += " (--direction up needs none)"
    said = " ".join(printed.err.split())
    assert f"warning: {b}" in said and f"warning: {c}" in said
    made = [*NAMES, "1M-a-eft", "2M-a-eft"]
    assert report == {
        **dict.fromkeys(made),
        **dict.fromkeys(("1M-b-pt", "2M-b-pt", "2M-b-sft", "1M-b-eft", "2M-b-eft"), b),
        **dict.fromkeys(("1M-c-pt", "1M-c-sft", "2M-c-pt", "1M-c-eft", "2M-c-eft"), c),
    }
    assert set(files(tmp_path / "scores")) == {f"{name}/copa.arrow" for name in made}
    log = json.loads((tmp_path / "scores" / "runs.jsonl").read_text())
    assert {one["checkpoint"]: one["failure"] for one in log["checkpoints"]} == report
    # all that can be made is there, and still something is lacking
    assert run("emulate", *whole, *given) == 1
    assert f"failed: {b}" in " ".join(capsys.readouterr().out.split())
    assert run("emulate", *paths, *given) == 0


def test_a_mixtures_label_does_not_leave_the_store(
    bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint's own evalengine.json may hold anything."""
    paths = make(tmp_path / "ckpts")
    for path in paths:
        scale, _, stage = path.name.split("-")
        about = {"scale": scale, "mixture": "a/../../../outside", "stage": stage}
        (path / "evalengine.json").write_text(json.dumps(about))
    out = tmp_path / "deep" / "er" / "scores"
    assert run("emulate", *paths, "--data", bench, "--benchmarks", "copa", "--out", out) == 1
    assert "it holds a slash" in capsys.readouterr().err
    assert not list(tmp_path.rglob("outside*"))


def test_groups() -> None:
    def checkpoint(scale: str, mixture: str, stage: str, seed: str | None = None) -> Checkpoint:
        return Checkpoint(Path("x"), f"{scale}-{mixture}-{stage}-{seed}", scale, mixture, stage, seed=seed)

    every = [
        checkpoint(c, m, t, s) for m in "ab" for s in "01" for c in ("1B", "240M") for t in ("sft", "pt")
    ]
    groups, notes = emulation.groups_of(every[:-1], (1.0,))
    assert notes == ["mixture b seed 1 is left out: it lacks 240M-b-pt"]
    assert [group.lacks for group in groups] == ["", "", "", *notes]
    assert [one.name for one in groups[3].every] == [
        *("240M-b-sft-1", "1B-b-pt-1", "1B-b-sft-1", "1B-b-seed1-eft", "240M-b-seed1-eft"),
    ]
    first = groups[0]
    assert [m.name for m in first.members] == [f"{c}-a-{t}-0" for c in ("240M", "1B") for t in ("pt", "sft")]
    up, down = first.emulated
    assert (up.name, up.stage, up.base, up.tuned, up.ref) == ("1B-a-seed0-eft", "eft", 2, 1, 0)
    assert (down.name, down.base, down.tuned, down.ref) == ("240M-a-seed0-eft", 0, 3, 2)
    alone = [checkpoint(c, "c", t, "5") for c in ("1B", "240M") for t in ("sft", "pt")]
    names = [one.name for group in emulation.groups_of([*every, *alone], (1.0,))[0] for one in group.emulated]
    assert names[-2:] == ["1B-c-eft", "240M-c-eft"], "a mixture of one run has no seed in its name"
    with pytest.raises(UserError, match="there are 3 scales"):
        emulation.groups_of([*every, checkpoint("7B", "a", "pt", "0")], (1.0,))
    with pytest.raises(UserError, match="both claim scale"):
        emulation.groups_of([*every, every[0]], (1.0,))
