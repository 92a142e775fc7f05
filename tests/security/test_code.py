"""Nothing that a stranger wrote runs: pickles, Python beside a checkpoint, YAML tags, templates, shells."""

from __future__ import annotations

import ast
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import evalengine
import tiny_models
from evalengine.cli import main
from evalengine.errors import UserError

PACKAGE = Path(evalengine.__file__).resolve().parent
FOLDERS = [PACKAGE, *(PACKAGE.parent / name for name in ("kernels", "benchmarks", "training", "analysis"))]


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.path),)


def sources() -> Iterator[tuple[Path, ast.AST]]:
    found = sorted({path for folder in FOLDERS if folder.is_dir() for path in folder.rglob("*.py")})
    assert len(found) > 60
    for path in found:
        yield path, ast.parse(path.read_text())


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_no_shell_and_no_eval_in_the_package() -> None:
    for path, tree in sources():
        for name, call in calls(tree):
            shell = {word.arg: word.value for word in call.keywords}.get("shell")
            assert shell is None or ast.unparse(shell) == "False", f"{path}:{call.lineno}"
            assert name not in (
                "eval",
                "exec",
                "os.system",
                "os.popen",
                "subprocess.getoutput",
                "subprocess.getstatusoutput",
            ), path


def test_yaml_is_only_loaded_safely_and_pickles_never() -> None:
    for path, tree in sources():
        for name, call in calls(tree):
            assert name not in (
                "yaml.load",
                "yaml.unsafe_load",
                "yaml.full_load",
                "pickle.load",
                "pickle.loads",
                "joblib.load",
            ), path
            words = {word.arg: ast.unparse(word.value) for word in call.keywords}
            if name == "torch.load":
                assert words.get("weights_only") == "True", f"{path}:{call.lineno}"
            if name in ("np.load", "numpy.load"):
                assert words.get("allow_pickle", "False") == "False", f"{path}:{call.lineno}"


def test_remote_code_is_never_on_by_itself() -> None:
    for path, tree in sources():
        for _, call in calls(tree):
            for word in call.keywords:
                if word.arg == "trust_remote_code":
                    assert ast.unparse(word.value) != "True", f"{path}:{call.lineno}"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                at = node.args.args[len(node.args.args) - len(node.args.defaults) :]
                for argument, default in [
                    *zip(at, node.args.defaults, strict=True),
                    *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
                ]:
                    if argument.arg in ("trust_remote_code", "allow_pickle") and default is not None:
                        assert ast.unparse(default) == "False", f"{path}:{node.lineno}"


def test_a_pickled_checkpoint_is_refused_and_does_not_run(
    small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_models.save(tmp_path / "1M-a-pt")
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    command = [
        "score",
        str(path),
        "--data",
        str(small_world / "bench"),
        "--benchmarks",
        "copa",
        "--out",
        str(tmp_path / "s"),
    ]
    assert main(command) == 1
    assert "--allow-pickle" in " ".join(capsys.readouterr().out.split())
    assert main([*command, "--allow-pickle"]) == 1  # even then tensors alone are unpickled
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_code_beside_a_checkpoint_does_not_run(
    where: str, small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_models.save(tmp_path / "1M-a-pt")
    (path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass C: pass\n")
    told = json.loads((path / where).read_text())
    if where == "config.json":
        told |= {
            "model_type": "evil",
            "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C", "AutoTokenizer": "evil.C"},
        }
    else:
        told |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.C", "evil.C"]}}
    (path / where).write_text(json.dumps(told))
    main(
        [
            "score",
            str(path),
            "--data",
            str(small_world / "bench"),
            "--benchmarks",
            "copa",
            "--out",
            str(tmp_path / "s"),
        ]
    )
    assert not (tmp_path / "ran").exists()
    capsys.readouterr()


def test_a_saved_training_state_cannot_carry_code(tmp_path: Path) -> None:
    import torch

    from evalengine.training.fitting import state

    torch.save({"model": Bomb(tmp_path / "ran"), "fingerprint": "f"}, tmp_path / "run.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "run.pt", weights_only=True)
    assert "weights_only=True" in Path(state.__file__).read_text()
    assert not (tmp_path / "ran").exists()


def test_conversations_on_disk_cannot_carry_code(tmp_path: Path) -> None:
    from evalengine.training.data.conversations import load

    bomb = np.array([Bomb(tmp_path / "ran")], dtype=object)
    np.savez(tmp_path / "c.npz", token=bomb, learned=bomb, start=bomb)
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path / "c.npz")
    assert not (tmp_path / "ran").exists()


def test_yaml_tags_make_no_objects(tmp_path: Path) -> None:
    from evalengine.untrusted import read_yaml

    path = tmp_path / "x.yaml"
    for tag in ("!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir", "!!python/name:os.mkdir"):
        path.write_text(f"a: {tag} [{str(tmp_path / 'ran')!r}]\n")
        with pytest.raises(UserError, match="not valid YAML"):
            read_yaml(path)
    assert not (tmp_path / "ran").exists()


def test_a_template_of_a_benchmark_reaches_fields_alone(tmp_path: Path) -> None:
    from evalengine.benchmarks.custom import read_benchmark

    path = tmp_path / "b.yaml"
    for template in ("{q.__class__}", "{q[0]}", "{q!r}", "{0}", "{q:>10}", "{__import__('os')}"):
        path.write_text(json.dumps({"name": "b", "context": template, "choices": "c", "gold": "g"}))
        with pytest.raises(UserError, match="brace"):
            read_benchmark(path)
