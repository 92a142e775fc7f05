"""`evalengine emulate --ray`: a unit is a mixture's checkpoints and a benchmark; the driver keeps the store.

A worker holds the models of one group at a time and goes on with its benchmarks; when none are left it takes another group, or
helps with one. The files are those that emulation.emulate writes, byte for byte.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evalengine import __version__, console, runner, store
from evalengine.backends import BackendSpec
from evalengine.cluster import connect
from evalengine.cluster.pool import Cluster, Ended, Pool, Worker, need_of
from evalengine.cluster.schedule import STRIKES
from evalengine.cluster.scorer import Failure, Scorer, failure
from evalengine.cluster.scoring import COPIES, POLL_S, READS, placed, weight_size
from evalengine.emulation import Group, keep_all, pending_of, wanted_of
from evalengine.encoding import Encoded, Scores
from evalengine.errors import UserError
from evalengine.events import Display, Emit, Failed, Finished, Noted, Outcome, Outcomes, to_all
from evalengine.lockstep import Lockstep, Wanted
from evalengine.plans import Planner
from evalengine.resume import Options, Task

if TYPE_CHECKING:
    from evalengine.benchmarks import ItemSet


class Emulated(NamedTuple):
    """A finished unit: the scores that were wanted, in their order."""

    scores: list[Scores]
    seconds: float
    notes: tuple[str, ...]


class Emulator(Scorer):
    """Lives in a Ray actor: models in lockstep that stay warm, for groups of at most `models` checkpoints."""

    def __init__(self, models: int, *scorer: Any) -> None:
        super().__init__(*scorer)
        self._models = models
        self._group: tuple[Any, ...] = ()  # names and fingerprints of what is loaded

    def hello(self) -> tuple[str, str]:
        where = super().hello()
        self._lockstep = Lockstep([self._backend, *(self._spec.make() for _ in range(self._models - 1))])  # type: ignore[list-item]
        return where

    def identify_group(self, group: Group) -> Group | Failure:
        """The group with the fingerprints of its members as this node sees them."""
        try:
            found = [self._identified(one, group.members) for one in group.members]
            return group._replace(members=tuple(found))
        except Exception as error:
            return failure(error)

    def run_group(
        self, group: Group, vocabulary: int, benchmark: str, plan: list[Any], wanted: Wanted
    ) -> Emulated | Failure:
        """Scores a benchmark; loads the group before where it is not there."""
        import ray

        try:
            key = tuple((one.name, one.fingerprint) for one in group.members)
            if self._group != key:
                self._group = ()
                found = [self._identified(one, group.members) for one in group.members]
                for one, there in zip(group.members, found, strict=True):
                    if one.fingerprint != there.fingerprint:
                        raise UserError(
                            f"{one.name} has other weights here than elsewhere, or they changed during the run: give every node"
                            " the same files, then run the same command again"
                        )
                self._lockstep.load(found, vocabulary)
                self._group = key
            (ref,) = plan
            if ref not in self._plans:
                self._plans[ref] = ray.get(ref)
            self._progress()
            started = time.monotonic()
            score = partial(self._lockstep.score, wanted)
            scores = runner.scores_of(score, self._plans[ref], benchmark, self._progress)
            return Emulated(scores, time.monotonic() - started, tuple(self._lockstep.notes))
        except Exception as error:
            self._group = ()
            return failure(error)


@dataclass
class State:
    """A group during the run. `left`: its benchmarks that no worker has, None before it is identified."""

    group: Group
    left: dict[str, dict[int, Task]] | None = None
    under_way: int = 0  # tasks that workers have
    seconds: float = 0.0
    done: bool = False


def emulate(
    groups: Sequence[Group],
    item_sets: Sequence[tuple[ItemSet, str]],
    spec: BackendSpec,
    out: Path,
    options: Options,
    cluster: Cluster,
    on_event: Emit = lambda event: None,
) -> list[Outcome]:
    """emulation.emulate on a Ray cluster."""
    outcomes = Outcomes([one for group in groups for one in group.every])
    items = sum(len(one.items) for one, _ in item_sets)
    count = sum(len(group.every) for group in groups)
    with store.lock(out), connect.connected(cluster.address, cpus=cluster.local_cores):
        need = need_of(cluster, spec.settings.get("device"))
        spec = placed(spec, need)
        most = max(len(group.members) for group in groups)
        arguments = (most, spec, need.cpus, options.allow_pickle, __version__)
        with (
            console.progress("scoring", count * items, "items") as line,
            Pool(Emulator, arguments, need, cluster.workers) as pool,
            Planner(options.trust_remote_code, options.pmi) as planner,
        ):
            emit = to_all(outcomes, Display(line, items), on_event)
            Run(groups, item_sets, spec, out.resolve(), options, emit, planner, cluster.hang_s).go(
                pool, line.rows
            )
        store.log_run(out, outcomes.record(spec, options) | {"workers": pool.made})
    return outcomes.all()


class Run:
    """One run's state. A worker's task is a group's number, to identify it, or that with a benchmark and its tasks."""

    def __init__(
        self,
        groups: Sequence[Group],
        item_sets: Sequence[tuple[ItemSet, str]],
        spec: BackendSpec,
        out: Path,
        options: Options,
        emit: Emit,
        planner: Planner,
        hang_s: float,
    ) -> None:
        self.item_sets, self.spec, self.out = item_sets, spec, out
        self.options, self.emit, self.planner, self.hang_s = options, emit, planner, hang_s
        self.states = [State(group) for group in groups]
        self.unseen = list(range(len(groups)))
        self.strikes: Counter[int] = Counter()
        self.plans: dict[str, tuple[Encoded, Any]] = {}  # by their key, with Ray's reference

    def go(self, pool: Pool, show: Callable[[list[str]], None]) -> None:
        """Until every group is scored or set aside."""
        while not all(state.done for state in self.states):
            waiting = sum(len(state.left or ()) for state in self.states) + len(self.unseen)
            pool.grow(waiting + sum(state.under_way for state in self.states))
            for worker in pool.idle():
                self._assign(pool, worker)
            show([f"  {w.number} {w.host}  {w.doing}" for w in pool.workers])
            for ended in pool.wait(POLL_S):
                self._ended(ended, pool)

    def _assign(self, pool: Pool, worker: Worker) -> None:
        """More of what the worker has loaded, else a new group, else help with the one that has most left."""
        open_ = [n for n, state in enumerate(self.states) if state.left]
        mine = [n for n in open_ if self.states[n].group.members[0].name == worker.loaded]
        if not mine and self.unseen:
            n = self.unseen.pop(0)
            group = self.states[n].group
            worker.doing = f"{group.members[0].name}: reading"
            self._give(pool, worker, n, worker.actor.identify_group.remote(group), (n, "", {}))
        elif mine or open_:
            n = mine[0] if mine else max(open_, key=lambda n: len(self.states[n].left or ()))
            state = self.states[n]
            assert state.left is not None
            benchmark = next(iter(state.left))
            tasks = state.left.pop(benchmark)
            first = state.group.members[0]
            try:
                _, ref = self._planned(first, next(iter(tasks.values())).items)
                vocabulary = self.planner.vocabulary(first)
            except Exception as error:
                self._fail(n, runner.sentence(first.name, error))
                return
            worker.loaded, worker.doing = first.name, f"{first.name}: {benchmark}"
            wanted, _ = wanted_of(state.group, tasks)
            call = worker.actor.run_group.remote(state.group, vocabulary, benchmark, [ref], wanted)
            self._give(pool, worker, n, call, (n, benchmark, tasks))
        else:
            worker.doing = "idle"

    def _give(
        self, pool: Pool, worker: Worker, n: int, call: Any, task: tuple[int, str, dict[int, Task]]
    ) -> None:
        state = self.states[n]
        state.under_way += 1
        size = sum(weight_size(one, self.options.allow_pickle) for one in state.group.members)
        remote = any(one.source is not None for one in state.group.members)
        limit = 2.0 ** self.strikes[n] * (self.hang_s + size / (COPIES if remote else READS))
        pool.give(worker, task, call, limit)

    def _planned(self, checkpoint: Any, items: ItemSet) -> tuple[Encoded, Any]:
        import ray

        key = self.planner.key(checkpoint, items)
        if key not in self.plans:
            encoded = self.planner.plan(checkpoint, items)
            self.plans[key] = encoded, ray.put(encoded)
        return self.plans[key]

    def _ended(self, ended: Ended, pool: Pool) -> None:
        (n, benchmark, tasks), worker, value = ended.task, ended.worker, ended.value
        state = self.states[n]
        state.under_way -= 1
        if ended.died is not None:
            console.warn(f"worker {worker.number} on {worker.host} ended during {worker.doing}: {ended.died}")
            self._again(n, benchmark, tasks, ended.died, counts=not ended.node_lost)
        elif isinstance(value, Failure) and value.again:
            pool.remove(worker)
            self._again(n, benchmark, tasks, value.reason)
        elif isinstance(value, Failure):
            self._fail(n, value.reason)
        elif state.done:
            return
        elif not benchmark:
            self._identified(n, value)
        else:
            state.seconds += value.seconds
            encoded, _ = self._planned(state.group.members[0], next(iter(tasks.values())).items)
            try:
                keep_all(state.group, tasks, encoded, value.scores, value.notes, self.emit)
            except UserError as error:
                self._fail(n, str(error))
        self._finish(n)

    def _identified(self, n: int, group: Group) -> None:
        state = self.states[n]
        state.group = group
        try:
            more = self.planner, self.out, self.options, self.emit
            state.left = pending_of(group, self.item_sets, self.spec, *more)
        except UserError as error:
            self._fail(n, str(error))

    def _again(
        self, n: int, benchmark: str, tasks: dict[int, Task], reason: str, counts: bool = True
    ) -> None:
        """Gives a task out again, unless its group has failed too often."""
        self.strikes[n] += counts
        state = self.states[n]
        if self.strikes[n] >= STRIKES:
            name = state.group.members[0].name
            self._fail(n, f"{name} is set aside: it failed {STRIKES} times, last because {reason}")
        elif state.done:
            return
        elif not benchmark:
            self.unseen.append(n)
        elif state.left is not None:
            state.left[benchmark] = tasks

    def _fail(self, n: int, reason: str) -> None:
        state = self.states[n]
        state.left = {}
        for one in state.group.every:
            self.emit(Failed(one.name, reason))
        self._finish(n)

    def _finish(self, n: int) -> None:
        state = self.states[n]
        if state.left == {} and not state.under_way and not state.done:
            state.done = True
            every = state.group.every
            for one in every:
                self.emit(Noted(one.name, ()))
                self.emit(Finished(one.name, state.seconds / len(every)))
