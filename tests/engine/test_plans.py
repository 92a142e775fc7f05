"""Plans that are begun in the background are those that are made when they are asked for."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from evalengine.benchmarks import BENCHMARKS, load_items
from evalengine.checkpoints import Checkpoint
from evalengine.checkpoints.resolve import discover, identify
from evalengine.errors import UserError
from evalengine.plan import plans

NAMES = ("copa", "arc_easy", "boolq")


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    monkeypatch.setenv("EVALENGINE_CACHE", str(tmp_path / "cache"))
    return identify(discover([tiny_models.save(tmp_path / "1M-a-pt")])[0], allow_pickle=False)


def item_sets(world: Path) -> list[Any]:
    return [load_items(BENCHMARKS[name], world / "bench") for name in NAMES]


def test_begun_plans_are_the_same_and_made_once(
    checkpoint: Checkpoint, small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = item_sets(small_world)
    expected = [plans.encode(items, plans.Planner()._encoder(checkpoint)) for items in sets]
    made: list[tuple[str, bool]] = []
    encode = plans.encode

    def counted(items: Any, *args: Any, **kwargs: Any) -> Any:
        made.append((items.benchmark, threading.current_thread() is threading.main_thread()))
        return encode(items, *args, **kwargs)

    monkeypatch.setattr(plans, "encode", counted)
    for fresh in (True, False):  # the second run finds them in the cache
        with plans.Planner() as planner:
            planner.begin(checkpoint, sets[:2])
            planner.begin(checkpoint, sets[:2])
            found = [planner.plan(checkpoint, items) for items in reversed(sets)][::-1]
        for ours, theirs in zip(found, expected, strict=True):
            for a, b in zip((*ours.sequences, *ours[1:7]), (*theirs.sequences, *theirs[1:7]), strict=True):
                assert (a is None and b is None) or np.array_equal(a, b)
        assert sorted(made) == [("arc_easy", False), ("boolq", True), ("copa", False)], fresh
    assert len(list((tmp_path / "cache" / "plans").iterdir())) == len(NAMES)


def test_what_fails_in_the_background_is_said_where_it_is_asked_for(
    checkpoint: Checkpoint, small_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copa, arc_easy, _ = item_sets(small_world)
    encode = plans.encode

    def failing(items: Any, *args: Any, **kwargs: Any) -> Any:
        if items.benchmark == "copa":
            raise UserError("copa cannot be encoded")
        return encode(items, *args, **kwargs)

    monkeypatch.setattr(plans, "encode", failing)
    with plans.Planner() as planner:
        planner.begin(checkpoint, [copa, arc_easy])
        for _ in range(2):  # begun, and once more
            with pytest.raises(UserError, match="copa cannot be encoded"):
                planner.plan(checkpoint, copa)
        assert planner.plan(checkpoint, arc_easy).item == [item.id for item in arc_easy.items]


def test_a_tokenizer_that_fails_is_said_where_the_plan_is_asked_for(
    checkpoint: Checkpoint, small_world: Path
) -> None:
    (checkpoint.path / "tokenizer.json").write_text("{")
    with plans.Planner() as planner:
        planner.begin(checkpoint, item_sets(small_world))
        with pytest.raises(UserError, match="no tokenizer that can be loaded"):
            planner.plan(checkpoint, item_sets(small_world)[0])


def test_the_end_does_not_wait_for_what_has_not_started(
    checkpoint: Checkpoint, small_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, go_on = threading.Event(), threading.Event()
    made: list[str] = []

    def slow(items: Any, *args: Any, **kwargs: Any) -> None:
        made.append(items.benchmark)
        running.set()
        go_on.wait(60)

    monkeypatch.setattr(plans, "encode", slow)
    with pytest.raises(KeyboardInterrupt), plans.Planner() as planner:
        planner.begin(checkpoint, item_sets(small_world))
        running.wait(60)
        threading.Timer(0.2, go_on.set).start()
        raise KeyboardInterrupt
    assert made == ["copa"]
