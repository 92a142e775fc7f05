"""SIGKILL at random moments: the same command again ends with the same bytes, and leaves no litter.

Every other moment is drawn uniformly over the whole of an undisturbed run, first instruction to last; the others over its changes
to files: right before one, or up to 3 ms after it began, so that many fall inside a write, or between a file's last byte and its
name. Half of them kill the process alone and leave its training workers to notice, half the whole group; every fifth command is
killed again when it resumes. `EVALENGINE_KILLS=50` for the run that docs/dev/reliability.md reports; CI draws fewer.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from nursery import Ended, Kill, Nursery
from planted import write_study
from tiny_study import STUDY

import tiny_models

KILLS = int(os.environ.get("EVALENGINE_KILLS", "3"))
SEED = int(os.environ.get("EVALENGINE_SEED", "0"))
LATER_S = 0.003
pytestmark = pytest.mark.timeout(300 + 200 * KILLS)
CHANGES_ALWAYS = ("runs.jsonl", ".lock", "lock")  # times of runs; locks, which are empty


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in CHANGES_ALWAYS
    }


def survives(nursery: Nursery, command: Callable[[Path], list[object]], folder: Path, seed: int) -> None:
    """Kills `command` KILLS times, each in an empty folder, runs it again, and compares every file that is left."""

    def run(out: Path, kill: Kill | None = None) -> Ended:
        out.mkdir(exist_ok=True)
        return nursery.run(*command(out), cache=out / "cache", log=folder / "said.txt", kill=kill)

    first = run(folder / "warm-up")
    assert first.code == 0, first.said
    undisturbed = run(folder / "undisturbed")
    assert undisturbed.code == 0, undisturbed.said
    expected = files(folder / "undisturbed")
    assert expected == files(folder / "warm-up"), "two undisturbed runs differ"
    assert len(expected) > 3 and undisturbed.changes > len(expected)
    undisturbed = undisturbed._replace(seconds=min(first.seconds, undisturbed.seconds))
    draw = random.Random(seed + 1000 * SEED)
    fell: Counter[str] = Counter()
    for n in range(KILLS):
        out = folder / f"killed-{n}"
        for _ in range(2 if n % 5 == 4 else 1):
            kill = drawn(draw, undisturbed, by_change=n % 2 == 0, whole_group=n % 4 < 2)
            ended = run(out, kill)
            assert ended.code in (-9, 0), ended.said
            fell[window(ended, set(files(out)), set(expected))] += 1
        again = run(out)
        assert again.code == 0, again.said
        assert "Traceback" not in again.said
        found = files(out)
        assert set(found) == set(expected), f"killed at {kill}: {set(found) ^ set(expected)}"
        assert found == expected, [name for name in found if found[name] != expected[name]]
    print(
        f"\n{KILLS} runs killed, {undisturbed.seconds:.1f} s and {undisturbed.changes} changes to files each: {dict(fell)}"
    )
    assert fell.total() - fell["ended before"] >= KILLS // 2


def drawn(draw: random.Random, undisturbed: Ended, by_change: bool, whole_group: bool) -> Kill:
    if not by_change:
        return Kill(draw.uniform(0.0, undisturbed.seconds), None, whole_group)
    later = draw.choice([0.0, draw.uniform(0.0, LATER_S)])
    return Kill(later, draw.randrange(undisturbed.changes), whole_group)


def window(ended: Ended, found: set[str], expected: set[str]) -> str:
    """What a kill interrupted, by the files that it left."""
    if ended.code != -9:
        return "ended before"
    if found - expected:
        return "during a file"
    if not found:
        return "before the first file"
    return "between files" if found != expected else "after the last file"


@pytest.mark.slow
def test_score(nursery: Nursery, small_world: Path, tmp_path: Path) -> None:
    names = ["1M-a-pt", "1M-a-sft"]
    ckpts = [tiny_models.save(tmp_path / "ckpts" / name, seed=i) for i, name in enumerate(names)]
    wanted = "copa,cb,rte,piqa,wic,boolq,winogrande,sciq"
    survives(
        nursery,
        lambda out: [
            "score",
            *ckpts,
            "--data",
            small_world / "bench",
            "--benchmarks",
            wanted,
            "--out",
            out / "scores",
        ],
        tmp_path,
        seed=1,
    )


@pytest.mark.slow
def test_train(nursery: Nursery, small_world: Path, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    study = STUDY | {"mixtures": {"m1": {"web": 0.75, "code": 0.25}}}
    file.write_text(yaml.safe_dump(study))
    survives(
        nursery,
        lambda out: [
            "train",
            file,
            "--data",
            small_world,
            "--out",
            out / "ckpts",
            "--jobs",
            1,
            "--device",
            "cpu",
        ],
        tmp_path,
        seed=2,
    )


@pytest.mark.slow
def test_correlate(nursery: Nursery, tmp_path: Path) -> None:
    write_study(tmp_path / "scores", items=40, scales=("1M",), mixtures=("a", "b", "c", "d", "e"))
    survives(
        nursery,
        lambda out: ["correlate", tmp_path / "scores", "--bootstrap", "exact", "--out", out / "analysis"],
        tmp_path,
        seed=3,
    )
