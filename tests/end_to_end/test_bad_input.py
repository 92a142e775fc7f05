"""Bad input to `evalengine score`: one sentence, exit code 1, nothing half-written, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny_models
from evalengine.cli import main


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tmp_path_factory.mktemp("good") / "240M-v1p0-pt", "llama")


@pytest.fixture(scope="module")
def bench(small_world: Path) -> Path:
    return small_world / "bench"


@pytest.fixture
def refused(bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `score`, which must fail with exit code 1; returns what it said."""

    def run(*arguments: object, data: Path | None = None, benchmarks: str = "copa,cb") -> str:
        capsys.readouterr()
        out = [] if "--out" in arguments else ["--out", str(tmp_path / "scores")]
        code = main(
            ["score", *map(str, arguments), "--data", str(data or bench), "--benchmarks", benchmarks, *out]
        )
        captured = capsys.readouterr()
        said = captured.out + captured.err
        assert code == 1, said
        assert "Traceback" not in said
        assert not list(tmp_path.rglob("*.tmp"))
        return said

    return run


def copy(good: Path, folder: Path) -> Path:
    return Path(shutil.copytree(good, folder))


def test_no_such_checkpoint(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no such checkpoint" in refused(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "within", "key"),
    [
        ("config.json", "{", "vocab_size"),
        ("tokenizer_config.json", "{", "eos_token"),
        ("tokenizer.json", '"vocab": {', "<|endoftext|>"),
        ("special_tokens_map.json", "{", "eos_token"),
        ("added_tokens.json", "{", "<mask>"),
    ],
)
def test_a_key_that_a_file_repeats(
    refused: Callable[..., str], good: Path, tmp_path: Path, name: str, within: str, key: str
) -> None:
    """The libraries that read these files take the last value."""
    file = copy(good, tmp_path / "1M-a-pt") / name
    text = file.read_text() if file.exists() else json.dumps({key: 0})
    assert within in text and json.dumps(key) in text
    file.write_text(text.replace(within, f"{within}{json.dumps(key)}: 0,", 1))
    said = refused(file.parent)
    assert f"{name}: the key {key!r} appears twice in one object; remove one of the two" in " ".join(
        said.split()
    )
    assert not list((tmp_path / "scores").rglob("*.arrow"))


def test_a_folder_of_checkpoints(refused: Callable[..., str], good: Path) -> None:
    assert "it holds 1 checkpoint: give" in refused(good.parent)


@pytest.mark.parametrize(
    ("lacking", "says"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_a_directory_lacks_a_part(
    refused: Callable[..., str], good: Path, tmp_path: Path, lacking: str, says: str
) -> None:
    path = copy(good, tmp_path / "m")
    (path / lacking).unlink()
    assert says in refused(path)


def test_a_key_that_a_config_has_twice_is_refused(
    refused: Callable[..., str], good: Path, tmp_path: Path
) -> None:
    path = copy(good, tmp_path / "m")
    config = (path / "config.json").read_text()
    (path / "config.json").write_text(config.replace("{", '{"vocab_size": 1,', 1))
    said = refused(path)
    assert "config.json: the key 'vocab_size' appears twice in one object; remove one of the two" in said


@pytest.mark.parametrize("damage", ["truncated", "header", "empty", "garbage"])
def test_damaged_safetensors(refused: Callable[..., str], good: Path, tmp_path: Path, damage: str) -> None:
    path = copy(good, tmp_path / "m")
    file = path / "model.safetensors"
    content = file.read_bytes()
    damaged = {
        "truncated": content[: len(content) // 2],
        "header": content[:3],
        "empty": b"",
        "garbage": b"\xff" * len(content),
    }
    file.write_bytes(damaged[damage])
    assert "truncated or corrupt" in refused(path)


def test_a_name_that_transformers_does_not_know_is_said_to_be_unknown(
    refused: Callable[..., str], good: Path, tmp_path: Path
) -> None:
    path = copy(good, tmp_path / "m")
    config = json.loads((path / "config.json").read_text()) | {"hidden_act": "nope"}
    (path / "config.json").write_text(json.dumps(config))
    assert "m cannot be loaded: unknown: 'nope'" in refused(path)


def test_pickled_weights(refused: Callable[..., str], good: Path, bench: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    path = copy(good, tmp_path / "m")
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    assert "--allow-pickle" in refused(path)
    arguments = ["score", str(path), "--data", str(bench), "--benchmarks", "copa", "--allow-pickle", "--out"]
    assert main([*arguments, str(tmp_path / "p")]) == 0
    assert main(["score", str(good), *arguments[2:6], "--out", str(tmp_path / "s")]) == 0
    from evalengine import load

    assert load(tmp_path / "p")["loglik"].to_pylist() == load(tmp_path / "s")["loglik"].to_pylist()


def test_remote_code_does_not_run(refused: Callable[..., str], good: Path, tmp_path: Path) -> None:
    path = copy(good, tmp_path / "m")
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "custom", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "--trust-remote-code" in refused(path)
    assert not (tmp_path / "ran").exists()


def test_nan_weights_are_named_and_the_others_go_on(
    refused: Callable[..., str], good: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    path = copy(good, tmp_path / "240M-bad-pt")
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    said = refused(path, good)
    assert "240M-bad-pt has NaN or infinite weights (model.norm.weight)" in said
    assert len(list((tmp_path / "scores" / good.name).glob("*.arrow"))) == 2
    assert not (tmp_path / "scores" / path.name).exists()


def test_scores_that_are_finite_behind_a_context_alone_are_not_stored(
    refused: Callable[..., str], good: Path, tmp_path: Path
) -> None:
    """In float16 this checkpoint overflows on its BOS, which stands in front of a choice without context and nowhere else."""
    from safetensors.torch import load_file, save_file

    path = copy(good, tmp_path / "240M-bos-pt")
    tensors = load_file(path / "model.safetensors")
    embedding, layer = tensors["model.embed_tokens.weight"], "model.layers.0."
    embedding[:, -1] = 0.0  # a channel that BOS alone has
    embedding[0] = 0.0
    embedding[0, -1] = 100.0
    tensors[layer + "self_attn.o_proj.weight"][-1] = 0.0
    for name in ("gate", "up"):
        weight = tensors[layer + f"mlp.{name}_proj.weight"]
        weight[0] = 0.0
        weight[0, -1] = 100.0
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    said = refused(path, "--pmi", "--dtype", "float16")
    assert "240M-bos-pt gives NaN or infinite scores on copa: it is not stored; check its weights" in said
    assert not list((tmp_path / "scores").glob("*/*.arrow"))


def test_two_checkpoints_with_one_name(refused: Callable[..., str], good: Path, tmp_path: Path) -> None:
    assert "two checkpoints are named" in refused(good, copy(good, tmp_path / "other" / good.name))
    assert "is given twice: give each checkpoint once" in refused(good, f"{good}/")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "mps", "meta"])
def test_a_device_that_is_not_here(
    refused: Callable[..., str], good: Path, tmp_path: Path, device: str
) -> None:
    said = refused(good, "--device", device)
    assert f"--device {device} cannot be used here: give cpu, or leave --device out" in said
    assert not list(tmp_path.rglob("*.arrow"))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{not json", "copa.jsonl"),
        ('{"premise": 3, "choice1": "a", "choice2": "b", "question": "cause", "label": 0}', "premise"),
        (
            '{"premise": "a.", "choice1": "a", "choice2": "b", "question": "cause", "label": 7}',
            "expected 0 to 1, got 7",
        ),
        ('{"premise": "a.", "choice1": "a", "question": "cause", "label": 0}', "choice2"),
    ],
)
def test_malformed_items_are_named(
    refused: Callable[..., str], good: Path, bench: Path, tmp_path: Path, row: str, says: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    lines = (bench / "copa.jsonl").read_text().splitlines()[:3]
    (data / "copa.jsonl").write_text("\n".join([*lines, row]))
    said = refused(good, data=data, benchmarks="copa")
    assert says in said and "4" in said, "file, line and field"


def test_an_item_with_one_choice(refused: Callable[..., str], good: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    row = {"id": "x", "question": "q?", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"}
    (data / "arc_easy.jsonl").write_text(json.dumps(row))
    assert "two choices or more" in refused(good, data=data, benchmarks="arc_easy")


def test_an_unwritable_output(refused: Callable[..., str], good: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "give --out a folder" in refused(good, "--out", blocked)
    said = refused(good, "--out", "/proc/nowhere")
    assert "/proc/nowhere" in said


@pytest.mark.parametrize(
    "options", [["--limit", "5"], ["--fewshot", "2"], ["--variant", "lm_eval"], ["--dtype", "bfloat16"]]
)
def test_a_store_of_other_options_is_not_mixed(
    refused: Callable[..., str], good: Path, bench: Path, tmp_path: Path, options: list[str]
) -> None:
    arguments = [
        "score",
        str(good),
        "--data",
        str(bench),
        "--benchmarks",
        "copa",
        "--out",
        str(tmp_path / "scores"),
    ]
    assert main(arguments) == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.arrow")}
    said = refused(good, *options)
    assert options[0] in said and "--fresh" in said
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*.arrow")}
    assert main([*arguments, *options, "--fresh"]) == 0


def test_a_second_process_on_the_store(refused: Callable[..., str], good: Path, tmp_path: Path) -> None:
    from evalengine import store

    with store.lock(tmp_path / "scores"):
        assert "in use by process" in refused(good)
    code = (
        "import sys, os; from evalengine import store; from pathlib import Path\n"
        "with store.lock(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "scores")], check=False)
    assert main(["score", str(good), "--data", str(tmp_path), "--out", str(tmp_path / "scores")]) == 1
    with store.lock(tmp_path / "scores"):
        pass  # a killed owner leaves no lock behind


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk(good: Path, bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(small)], capture_output=True
    ).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        command = ["score", str(good), "--data", str(bench), "--out", str(small / "s")]
        assert main(command) == 1
        said = capsys.readouterr().err
        assert "No space left" in said and "Traceback" not in said
        kept = {p: p.read_bytes() for p in small.rglob("*.arrow")}
        assert kept and not list(small.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=50m", str(small)], check=True)
        assert main(command) == 0
        assert all(path.read_bytes() == content for path, content in kept.items())
        assert len(list(small.rglob("*.arrow"))) == 20
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)


def test_a_limit_of_the_size_of_files_is_one_sentence_with_the_file(
    good: Path, bench: Path, tmp_path: Path
) -> None:
    given = f"score {good} --data {bench} --benchmarks copa --out {tmp_path / 's'}"
    command = ["bash", "-c", f"ulimit -f 2; exec {sys.executable} -m evalengine {given}"]
    environment = os.environ | {"EVALENGINE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"File too large ({tmp_path / 's' / good.name / 'copa.arrow'})" in done.stderr
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.arrow"))


def test_characters_that_the_terminal_does_not_know_are_escaped(
    good: Path, bench: Path, tmp_path: Path
) -> None:
    given = ["score", str(good), "--data", str(bench), "--benchmarks", "copa", "--out", str(tmp_path / "é")]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "evalengine", *given]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Store: " in done.stdout and "\\xe9/" in done.stdout


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        ("[1, 2]", "must map checkpoint names"),
        ("240M-v1p0-pt: {stage: [pt]}", "stage must be a short text"),
        ("240M-v1p0-pt: {scale: ''}", "scale: '' must be 1 to"),
        (
            "other: {stage: pt}",
            "describes 'other', which is not among the checkpoints given, and none of these",
        ),
        ("a: [", "is not valid YAML"),
        (
            "240M-v1p0-pt: {scale: 1M}\n240M-v1p0-pt: {scale: 2M}",
            "the key '240M-v1p0-pt' appears twice, again in line 2",
        ),
        ("\u00e9: {scale: 1M}\ne\u0301: {scale: 2M}", "describes 'é' twice"),
    ],
)
def test_bad_manifests(
    refused: Callable[..., str], good: Path, tmp_path: Path, manifest: str, says: str
) -> None:
    path = tmp_path / "manifest.yaml"
    path.write_text(manifest)
    assert says in refused(good, "--manifest", path)


def test_labels_of_a_manifest_are_kept_as_they_are_written(tmp_path: Path) -> None:
    from evalengine.checkpoints.resolve import read_manifest

    path = tmp_path / "manifest.yaml"
    path.write_text(
        "1.10: {scale: 1.10, mixture: 1e3, stage: on, seed: 007, blocks: &b {day: 2024-01-01, 0x10: 1_000}}\n"
        "other: {scale: null, mixture: ~, seed: 3, blocks: *b}\n"
    )
    blocks = (("0x10", "1_000"), ("day", "2024-01-01"))
    assert read_manifest(path) == {
        "1.10": {"scale": "1.10", "mixture": "1e3", "stage": "on", "seed": "007", "blocks": blocks},
        "other": {"scale": None, "mixture": None, "stage": None, "seed": "3", "blocks": blocks},
    }


@pytest.mark.parametrize("scale", ["1.10", "true", "[1]"])
def test_labels_of_evalengine_json_that_would_be_written_otherwise_are_refused(
    refused: Callable[..., str], good: Path, tmp_path: Path, scale: str
) -> None:
    path = copy(good, tmp_path / "m")
    (path / "evalengine.json").write_text(f'{{"scale": {scale}, "mixture": "m", "stage": "pt", "seed": 1}}')
    assert "scale must be a short text, not" in refused(path)


def test_a_seed_below_zero_is_refused(refused: Callable[..., str], good: Path) -> None:
    """Python's generator drops the sign: -1 would draw what 1 draws."""
    assert "--seed -1 must be 0 or more" in refused(good, "--limit", "3", "--seed", "-1")


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["score"])
    assert stop.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_an_unknown_benchmark_names_the_nearest(refused: Callable[..., str], good: Path) -> None:
    assert "hellaswag" in refused(good, benchmarks="helaswag")
