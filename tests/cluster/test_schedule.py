"""Who does what next: longest first, checkpoints kept together, help where it pays."""

from __future__ import annotations

from evalengine.cluster.schedule import STRIKES, Schedule, Unit


def schedule_of(*units: tuple[str, str, float], sizes: dict[str, float] | None = None) -> Schedule:
    schedule = Schedule(sizes or {})
    for unit in units:
        schedule.add(Unit(*unit))
    return schedule


def test_a_worker_goes_on_with_its_checkpoint_the_longest_unit_first() -> None:
    schedule = schedule_of(("a", "x", 1), ("a", "y", 5), ("b", "z", 100))
    taken = [schedule.next_unit("a", held={"b"}) for _ in range(3)]
    assert [t and t.benchmark for t in taken] == ["y", "x", None]


def test_a_free_worker_takes_the_costliest_checkpoint_that_nobody_has() -> None:
    schedule = schedule_of(("a", "x", 3), ("a", "y", 3), ("b", "x", 5), ("c", "x", 50))
    taken = schedule.next_unit(None, held={"c"})
    assert taken is not None and taken.checkpoint == "a"  # 6 together, more than b's 5


def test_checkpoints_are_identified_the_largest_first_and_a_promise_is_kept() -> None:
    schedule = Schedule({"small": 1.0, "large": 9.0, "middle": 5.0})
    assert schedule.peek_unseen(others=()) == "large"
    assert schedule.next_unseen(promised="middle") == "middle"
    assert schedule.next_unseen(None, others={"large"}) == "small"
    assert schedule.next_unseen() == "large"
    assert schedule.next_unseen() is None


def test_help_comes_only_where_it_pays_for_loading() -> None:
    schedule = schedule_of(("a", "x", 10.0), ("b", "y", 4.0))
    schedule.measured(cost=1.0, seconds=1.0, load_s=20.0)
    assert schedule.steal() is None  # ten seconds are left on a, loading takes twenty
    schedule.measured(cost=1.0, seconds=1.0, load_s=3.0)
    stolen = schedule.steal()
    assert stolen is not None and stolen.checkpoint == "a"


def test_a_checkpoint_is_set_aside_at_its_third_failure_and_nothing_of_it_is_left() -> None:
    schedule = schedule_of(("a", "x", 1), ("b", "x", 1), sizes={"a": 1.0})
    assert [schedule.strike("a") for _ in range(STRIKES)] == [False, False, True]
    schedule.drop("a")
    assert (schedule.unseen(), schedule.pending()) == (0, 1)
