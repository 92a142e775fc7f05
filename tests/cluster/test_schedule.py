"""Who does what next: longest first, checkpoints kept together, help where it pays."""

from __future__ import annotations

from evalengine.cluster.pool import Worker
from evalengine.cluster.schedule import STRIKES, Schedule, Unit


def schedule_of(*units: tuple[str, str, float], sizes: dict[str, float] | None = None) -> Schedule:
    schedule = Schedule(sizes or {})
    for unit in units:
        schedule.add(Unit(*unit))
    return schedule


def worker(loaded: str | None = None, ahead: str | None = None) -> Worker:
    return Worker(0, None, None, loaded=loaded, ahead=ahead)


def test_a_worker_goes_on_with_its_checkpoint_the_longest_unit_first() -> None:
    schedule = schedule_of(("a", "x", 1), ("a", "y", 5), ("b", "z", 100))
    taken = [schedule.next(worker("a"), [worker("b")], planning=i == 2) for i in range(3)]
    assert [t and t[1] for t in taken] == ["y", "x", None]


def test_a_free_worker_takes_the_costliest_checkpoint_that_nobody_has() -> None:
    schedule = schedule_of(("a", "x", 3), ("a", "y", 3), ("b", "x", 5), ("c", "x", 50))
    assert schedule.next(worker(), [worker("c")]) == Unit("a", "y", 3)  # 6 together, more than b's 5


def test_checkpoints_are_identified_the_largest_first_and_one_that_was_read_ahead_by_its_reader() -> None:
    schedule = Schedule({"small": 1.0, "large": 9.0, "middle": 5.0})
    assert schedule.ahead(worker(), []) == "large"
    assert schedule.next(worker(ahead="middle"), []) == "middle"
    assert schedule.next(worker(), [worker(ahead="large")]) == "small"
    assert schedule.ahead(worker(), [worker(ahead="large")]) is None
    assert schedule.next(worker(), [worker(ahead="large")]) == "large"  # its reader has something else to do
    assert schedule.next(worker(), []) is None


def test_a_worker_whose_units_are_being_planned_identifies_nothing_else() -> None:
    schedule = schedule_of(("b", "x", 1), sizes={"c": 1.0})
    assert schedule.next(worker("a"), [worker("b")], planning=True) is None
    assert schedule.next(worker("a"), [worker("b")]) == "c"


def test_help_comes_only_where_it_pays_for_loading() -> None:
    busy = [worker("a"), worker("b")]
    schedule = schedule_of(("a", "x", 10.0), ("b", "y", 4.0))
    schedule.measured(cost=1.0, seconds=1.0, load_s=20.0)
    assert schedule.next(worker(), busy) is None  # ten seconds are left on a, loading takes twenty
    schedule.measured(cost=1.0, seconds=1.0, load_s=3.0)
    assert schedule.next(worker(), busy) == Unit("a", "x", 10.0)


def test_a_checkpoint_is_set_aside_at_its_third_failure_and_nothing_of_it_is_left() -> None:
    schedule = schedule_of(("a", "x", 1), ("b", "x", 1), sizes={"a": 1.0})
    assert [schedule.strike("a") for _ in range(STRIKES)] == [False, False, True]
    schedule.drop("a")
    assert (schedule.unseen, schedule.pending()) == ([], 1)
