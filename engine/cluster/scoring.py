"""`score --ray` and `emulate --ray`: the driver. It plans once per tokenizer, hands out units, and keeps the store.

    identify -> plan -> units -> workers -> store          # the same files, byte for byte, as runner.run writes

A unit is a group of checkpoints (one, but for emulated fine-tuning) on a benchmark. The driver alone writes the store. A worker
or node that goes costs the unit it had; the driver, when killed, costs the units under way: the same command goes on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from evalengine import __version__, console, store, turns
from evalengine.backends import BackendSpec
from evalengine.checkpoints import Checkpoint
from evalengine.cluster import connect
from evalengine.cluster.pool import Cluster, Ended, Need, Pool, Worker, need_of
from evalengine.cluster.schedule import STRIKES, Schedule, Unit
from evalengine.cluster.scorer import Failure, ScoredUnit, Scorer
from evalengine.errors import UserError
from evalengine.events import Emit, Outcome
from evalengine.groups import CheckpointGroup, Tasks, keep, pending_of
from evalengine.plan.plans import Planner
from evalengine.resume import Asked

if TYPE_CHECKING:
    from evalengine.benchmarks import ItemSet
    from evalengine.plan.encoding import Encoded

POLL_S = 0.1
READS = 50e6  # bytes a second: a checkpoint is not expected to be read more slowly,
COPIES = 5e6  # and a remote one not to be downloaded more slowly


@dataclass
class State:
    """A group during the run. `left`: its benchmarks without a result, None before it is identified."""

    group: CheckpointGroup
    size: float  # bytes of its weights
    left: dict[str, Tasks] | None = None
    vocabulary: int = 0  # ids of its tokenizer, where that is needed
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return self.group.name

    @property
    def finished(self) -> bool:
        return self.left == {}


class SharedPlan(NamedTuple):
    """A benchmark for a tokenizer, and Ray's reference to it, by which workers get it."""

    encoded: Encoded
    ref: Any


def run(
    groups: Sequence[CheckpointGroup],
    asked: Asked,
    spec: BackendSpec,
    cluster: Cluster,
    on_event: Emit = lambda event: None,
) -> list[Outcome]:
    """runner.run on a Ray cluster. `spec.dtype` "" takes float32 on cores and bfloat16 on GPUs."""
    with store.lock(asked.out), connect.connected(cluster.address, cpus=cluster.local_cores):
        need = need_of(cluster, spec.settings.get("device"))
        spec, largest = placed(spec, need), max(len(group.members) for group in groups)
        arguments = (spec, need.cpus, asked.options.allow_pickle, __version__, largest)
        with (
            turns.followed(groups, asked, on_event) as (whole, outcomes, emit, line),
            Pool(Scorer, arguments, need, cluster.workers) as pool,
        ):
            ClusterRun(whole, asked._replace(out=asked.out.resolve()), spec, emit, cluster.hang_s).go(
                pool, line.rows
            )
        store.log_run(asked.out, outcomes.record(spec, asked.options) | {"workers": pool.made})
    return outcomes.all()


def placed(spec: BackendSpec, need: Need) -> BackendSpec:
    """The backend on the kind of device that its workers hold."""
    settings = dict(spec.settings)
    if spec.name == "torch":
        settings["device"] = "cuda" if need.gpus else "cpu"
    dtype = spec.dtype or ("bfloat16" if need.gpus else "float32")
    return spec._replace(dtype=dtype, settings=settings)


class ClusterRun:
    """One run's state, and what happens when a worker is idle, a plan is made, a task ends.

    A worker's task is a group's name, to identify it, or a unit.
    """

    def __init__(
        self, whole: Sequence[CheckpointGroup], asked: Asked, spec: BackendSpec, emit: Emit, hang_s: float
    ) -> None:
        self.asked, self.spec, self.emit, self.hang_s = asked, spec, emit, hang_s
        options = asked.options
        sizes = [sum(weight_size(one, options.allow_pickle) for one in group.members) for group in whole]
        self.states = {group.name: State(group, size) for group, size in zip(whole, sizes, strict=True)}
        self.schedule = Schedule({name: state.size for name, state in self.states.items()})
        self.planner = Planner(options.trust_remote_code, options.pmi, options.chat)
        self.made: dict[str, SharedPlan] = {}  # by their key
        self.plans: dict[tuple[str, str], SharedPlan] = {}  # of group and benchmark
        self.unplanned: list[tuple[State, ItemSet]] = []  # of identified groups
        # The first one's plans are made while workers start and read it.
        first = self.schedule.unseen[0]
        stored = {path.stem for path in (asked.out / first).glob("*.arrow")}
        missing = [items for items, _ in asked.item_sets if items.benchmark not in stored]
        self.early = [(self.states[first], items) for items in missing]

    def go(self, pool: Pool, show: Callable[[list[str]], None]) -> None:
        """Until every group is scored or set aside. `show` is called with a line for each worker."""
        with self.planner:
            while not all(state.finished for state in self.states.values()):
                busy = sum(w.ref is not None and w.ready for w in pool.workers)
                pool.grow(len(self.schedule.unseen) + self.schedule.pending() + busy)
                self._plan()
                for worker in pool.idle():
                    self._assign(pool, worker)
                show([f"  {w.number} {w.host}  {w.doing}" for w in pool.workers])
                for ended in pool.wait(POLL_S):
                    self._ended(pool, ended)

    # --- plans

    def _plan(self) -> None:
        """Plans what waits for it for POLL_S, and one benchmark at least: workers are not left without work for long."""
        until = time.monotonic() + POLL_S
        while self.unplanned:
            state, items = self.unplanned.pop(0)
            if state.finished:
                continue
            try:
                plan = self._planned(state, items)
            except Exception as error:
                self._fail(state, turns.sentence(state.name, error))
                continue
            self.plans[state.name, items.benchmark] = plan
            cost = len(plan.encoded.sequences.token_S) * max(state.size, 1.0)
            self.schedule.add(Unit(state.name, items.benchmark, cost))
            if time.monotonic() > until:
                return
        if self.early:
            with contextlib.suppress(Exception):  # said when it is identified
                self._planned(*self.early.pop(0))

    def _planned(self, state: State, items: ItemSet) -> SharedPlan:
        import ray

        first = state.group.members[0]
        key = self.planner.key(first, items)
        if key not in self.made:
            encoded = self.planner.plan(first, items)
            self.made[key] = SharedPlan(encoded, ray.put(encoded))
        return self.made[key]

    # --- handing out

    def _assign(self, pool: Pool, worker: Worker) -> None:
        others = [w for w in pool.workers if w is not worker]
        planning = any(state.name == worker.loaded for state, _ in self.unplanned)
        task = self.schedule.next(worker, others, planning)
        if task is None:
            worker.doing = "idle"
        elif isinstance(task, str):
            worker.loaded, worker.doing = task, f"{task}: reading"
            call = worker.actor.identify.remote(self.states[task].group)
            pool.give(worker, task, call, self._limit(task))
        else:
            ahead, state = self.schedule.ahead(worker, others), self.states[task.checkpoint]
            assert state.left is not None
            call = worker.actor.run.remote(
                state.group,
                state.vocabulary,
                task.benchmark,
                [self.plans[task.checkpoint, task.benchmark].ref],
                state.group.wanted(state.left[task.benchmark])[0],
                None if ahead is None else self.states[ahead].group,
            )
            worker.loaded, worker.doing = task.checkpoint, f"{task.checkpoint}: {task.benchmark}"
            pool.give(worker, task, call, self._limit(task.checkpoint))

    def _limit(self, name: str) -> float:
        """Seconds without progress until a worker hangs, which loading takes as well: twice as many after each failure."""
        state = self.states[name]
        remote = any(one.source is not None for one in state.group.members)
        reading = state.size / (COPIES if remote else READS)
        return 2.0 ** self.schedule.strikes(name) * (self.hang_s + reading)

    # --- what comes back

    def _ended(self, pool: Pool, ended: Ended) -> None:
        task, worker, value = ended.task, ended.worker, ended.value
        state = self.states[task if isinstance(task, str) else task.checkpoint]
        if ended.died is not None:
            console.warn(f"worker {worker.number} on {worker.host} ended during {worker.doing}: {ended.died}")
            self._try_again(state, task, ended.died, counts=not ended.node_lost)
        elif isinstance(value, Failure) and value.again:
            # What a process that met an error it does not know still computes is not relied upon.
            pool.remove(worker)
            if self._try_again(state, task, value.reason):
                console.warn(f"{worker.doing} failed on {worker.host} and is tried again: {value.reason}")
        elif isinstance(value, Failure):
            self._fail(state, value.reason)
        elif isinstance(task, str):
            self._identified(state, value)
        else:
            self._scored(state, task, value)

    def _try_again(self, state: State, task: str | Unit, reason: str, counts: bool = True) -> bool:
        """Gives a task out again, unless its checkpoint has failed too often."""
        if counts and self.schedule.strike(state.name):
            self._fail(state, f"{state.name} is set aside: it failed {STRIKES} times, last because {reason}")
        if state.finished:
            return False
        if isinstance(task, str):
            self.schedule.unseen.append(task)
        else:
            self.schedule.add(task)
        return True

    def _identified(self, state: State, fingerprints: Sequence[str]) -> None:
        if state.finished:
            return
        # The files stay where each worker has them: what the driver keeps of the answer is the fingerprints.
        members = zip(state.group.members, fingerprints, strict=True)
        state.group = state.group._replace(members=tuple(replace(one, fingerprint=f) for one, f in members))
        try:
            left = pending_of(state.group, self.asked, self.spec, self.planner, self.emit)
            state.vocabulary = state.group.vocabulary(self.planner) if left else 0
        except UserError as error:
            self._fail(state, str(error))
            return
        state.left = left
        self.unplanned += [(state, items) for items, _ in self.asked.item_sets if items.benchmark in left]
        self._finish(state)

    def _scored(self, state: State, unit: Unit, scored: ScoredUnit) -> None:
        state.seconds += scored.seconds + scored.load_s
        self.schedule.measured(unit.cost, scored.seconds, scored.load_s)
        left = state.left or {}
        if unit.benchmark not in left:  # the group has failed meanwhile
            return
        tasks, encoded = left[unit.benchmark], self.plans[state.name, unit.benchmark].encoded
        try:
            keep(state.group, tasks, encoded, scored.scores, scored.notes, self.emit)
        except UserError as error:
            self._fail(state, str(error))
            return
        del left[unit.benchmark]
        self._finish(state)

    def _fail(self, state: State, reason: str) -> None:
        if not state.finished:
            state.left = {}
            self.schedule.drop(state.name)
            turns.fail(state.group, reason, self.emit)
            self._finish(state)

    def _finish(self, state: State) -> None:
        if state.finished:
            turns.finish(state.group, state.seconds, self.emit)


def weight_size(checkpoint: Checkpoint, allow_pickle: bool) -> float:
    """Bytes of the weights, remote ones as listed; 0 where they cannot be read: whoever identifies them will say so."""
    if checkpoint.remote_bytes is not None:
        return float(checkpoint.remote_bytes)
    try:
        return float(sum(file.stat().st_size for file in checkpoint.weight_files(allow_pickle)))
    except (UserError, OSError):
        return 0.0
