"""One flipped bit, or a cut, in any file that a study leaves: noticed and made again, refused by name, or harmless.

Never: a run that says nothing and gives other numbers.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tiny_study import STUDY

from evalengine.cli import main

NO_RESULTS = ("runs.jsonl", ".lock", "lock")  # times of runs, and locks
BENCHMARKS = "copa,cb"


@pytest.fixture(scope="module")
def study(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study: checkpoints, scores, plan cache, imported results, analysis and report."""
    folder = tmp_path_factory.mktemp("study")
    one = STUDY | {"mixtures": {"m1": {"web": 0.75, "code": 0.25}}}
    (folder / "study.yaml").write_text(yaml.safe_dump(one))
    lines = [
        f"{m},{s},{0.1 * k + 0.05 * t},{0.9 - 0.1 * k}"
        for k, m in enumerate("abcde")
        for t, s in enumerate(("pt", "sft"))
    ]
    (folder / "table.csv").write_text("\n".join(["m,s,piqa,rte", *lines]))
    assert everything(folder, small_world) == []
    return folder


def commands(folder: Path, world: Path) -> list[list[str]]:
    at = str(folder)
    return [
        ["train", f"{at}/study.yaml", "--data", str(world), "--out", f"{at}/ckpts", "--jobs", "1", "--device", "cpu"],
        ["score", f"{at}/ckpts/S-m1-pt", f"{at}/ckpts/S-m1-sft", "--data", f"{world}/bench", "--benchmarks", BENCHMARKS,
         "--out", f"{at}/scores"],
        ["import", f"{at}/table.csv", "--mixture", "m", "--stage", "s", "--out", f"{at}/imported"],
        ["correlate", f"{at}/imported", "--bootstrap", "exact", "--out", f"{at}/analysis"],
        ["report", f"{at}/analysis", "--figures", "none"],
    ]  # fmt: skip


def everything(folder: Path, world: Path, names: str = "train score import correlate report") -> list[str]:
    """Runs the commands; the names of those that refused."""
    os.environ["EVALENGINE_CACHE"] = str(folder / "cache")
    try:
        return [c[0] for c in commands(folder, world) if c[0] in names.split() and main(c) != 0]
    finally:
        del os.environ["EVALENGINE_CACHE"]


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in NO_RESULTS and not path.name.endswith(".damaged")
    }


def flip(content: bytes, draw: random.Random) -> bytes:
    out = bytearray(content)
    out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
    return bytes(out)


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


# What is read again when the same command runs again, and what that command is.
KINDS = {
    "score table": ("scores/*/*.arrow", "score"),
    "cached plan": ("cache/plans/*.arrow", "score"),
    "weights": ("ckpts/*/model.safetensors", "score"),
    "model configuration": ("ckpts/*/config.json", "score"),
    "checkpoint's tokenizer": ("ckpts/*/tokenizer.json", "score"),
    "checkpoint's identity": ("ckpts/*/evalengine.json", "score"),
    "token shard": ("ckpts/.study/tokens/*/*.bin", "train"),
    "documents of a shard": ("ckpts/.study/tokens/*/*.len", "train"),
    "counts of a shard": ("ckpts/.study/tokens/*/*.json", "train"),
    "conversations": ("ckpts/.study/conversations-*.npz", "train"),
    "study's tokenizer": ("ckpts/.study/tokenizer/*.json", "train"),
    "contamination report": ("ckpts/.study/contamination.json", "train"),
    "imported results": ("imported/results.arrow", "correlate"),
    "analysis tables": ("analysis/*.json", "report"),
}


CUT = ("score table", "cached plan", "weights", "token shard", "conversations", "analysis tables")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "damage"), [*((kind, flip) for kind in KINDS), *((kind, cut) for kind in CUT)]
)
def test_damage(
    study: Path,
    small_world: Path,
    kind: str,
    damage: Callable[[bytes, random.Random], bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    pattern, command = KINDS[kind]
    draw = random.Random(f"{kind} {damage.__name__} {os.environ.get('EVALENGINE_SEED', 0)}")
    before = files(study)
    victim = draw.choice(sorted(study.glob(pattern)))
    name = str(victim.relative_to(study))
    good = victim.read_bytes()
    victim.write_bytes(damage(good, draw))
    assert victim.read_bytes() != good
    # with everything scored, a checkpoint and a plan would not be read
    if command == "score" and kind != "score table":
        shutil.rmtree(study / "scores")
    capsys.readouterr()
    refused = everything(study, small_world, command)
    captured = capsys.readouterr()
    said = " ".join((captured.out + captured.err).split())
    after = files(study)
    try:
        assert "Traceback" not in said and "a defect of" not in said, said
        if refused:
            assert "damaged" in said or "cannot" in said or "again" in said, said
            assert victim.name in said or str(victim.parent) in said or victim.parent.name in said, said
        else:
            results = {n for n in before if not n.startswith("cache/")} - {name}
            assert {n: after.get(n) for n in results} == {n: before[n] for n in results}
            assert (
                after[name] == good
                or kind == "study's tokenizer"
                or "damaged" in said
                or harmless(kind, name)
            ), said
    finally:
        for path in study.rglob("*.damaged"):
            path.unlink()
        victim.parent.mkdir(parents=True, exist_ok=True)
        for n, content in before.items():
            if not (study / n).is_file() or (study / n).read_bytes() != content:
                (study / n).parent.mkdir(parents=True, exist_ok=True)
                (study / n).write_bytes(content)


def harmless(kind: str, name: str) -> bool:
    """A flip in a name nobody asks for, such as a sum's: the results, which were compared, do not depend on it."""
    return kind == "checkpoint's identity"


@pytest.mark.slow
def test_weights_that_change_under_a_name_are_scored_again_and_it_is_said(
    study: Path, small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not damage: a checkpoint trained anew, with new sums."""
    from safetensors.torch import load_file, save_file

    path = Path(shutil.copytree(study / "ckpts" / "S-m1-pt", tmp_path / "S-m1-pt"))
    arguments = [
        "score",
        str(path),
        "--data",
        str(small_world / "bench"),
        "--benchmarks",
        "copa",
        "--out",
        str(tmp_path / "scores"),
    ]
    assert main(arguments) == 0
    first = (tmp_path / "scores" / "S-m1-pt" / "copa.arrow").read_bytes()
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"] *= 1.5
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    assert main(arguments) == 1
    assert "model.safetensors is damaged" in " ".join(capsys.readouterr().out.split())
    about = json.loads((path / "evalengine.json").read_text())
    del about["crc32"]
    (path / "evalengine.json").write_text(json.dumps(about))
    assert main(arguments) == 0
    assert "its weights have changed since it was scored: scored again" in " ".join(
        capsys.readouterr().out.split()
    )
    assert (tmp_path / "scores" / "S-m1-pt" / "copa.arrow").read_bytes() != first
