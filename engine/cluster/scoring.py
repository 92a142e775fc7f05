"""`evalengine score --ray`: the driver. It plans once per tokenizer, hands out units, and keeps the store.

    identify -> plan -> units -> workers -> store          # the same files, byte for byte, as runner.score writes

The driver alone writes the store. A worker or node that goes costs the unit it had; the driver, when killed, costs the units
under way: the same command goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from evalengine import __version__, console, runner, store
from evalengine.backends import BackendSpec
from evalengine.checkpoints import Checkpoint, weight_files
from evalengine.cluster import connect
from evalengine.cluster.planning import Plan, Plans, text_size
from evalengine.cluster.pool import Cluster, Ended, Need, Pool, Worker, need_of
from evalengine.cluster.schedule import STRIKES, Schedule, Unit
from evalengine.cluster.scorer import Failure, Scored, Scorer
from evalengine.errors import UserError
from evalengine.events import Emit, Failed, Finished, Noted, Stored, to_all
from evalengine.files import cores
from evalengine.outcomes import Display, Outcome, Outcomes, run_record
from evalengine.plans import Planner
from evalengine.resume import Options, Task, decide, tasks_of
from evalengine.score_table import score_table

if TYPE_CHECKING:
    from evalengine.benchmarks import ItemSet

POLL_S = 0.1
READS = 50e6  # bytes a second: a checkpoint is not expected to be read more slowly,
COPIES = 5e6  # and a remote one not to be downloaded more slowly


@dataclass
class State:
    """A checkpoint during the run. `left` are its benchmarks without a result, None before it is identified."""

    checkpoint: Checkpoint
    size: float
    failed: bool = False
    left: set[str] | None = None
    tasks: dict[str, Task] = field(default_factory=dict)
    unplanned: int = 0  # plans that are asked for
    seconds: float = 0.0

    @property
    def finished(self) -> bool:
        return self.failed or self.left == set()


def score(
    found: Sequence[Checkpoint],
    item_sets: Sequence[tuple[ItemSet, str]],
    spec: BackendSpec,
    out: Path,
    options: Options,
    cluster: Cluster,
    also: Emit = lambda event: None,
) -> list[Outcome]:
    """runner.score on a Ray cluster. `spec.dtype` "" takes float32 on cores and bfloat16 on GPUs."""
    outcomes = Outcomes(found)
    items = sum(len(one.items) for one, _ in item_sets)
    cpus = None
    if cluster.workers:
        cpus = max(cores(), cluster.workers * (cluster.cpus or 1))
    with store.lock(out), connect.connected(cluster.address, cpus=cpus):
        need = need_of(
            connect.import_ray(),
            workers=cluster.workers,
            cpus=cluster.cpus,
            gpus=cluster.gpus,
            device=spec.settings.get("device"),
            local=cluster.address == connect.LOCAL,
        )
        spec = placed(spec, need)
        with console.progress("scoring", len(found) * items, "items") as line:
            emit = to_all(outcomes, Display(line, items), also)
            run = Run(found, item_sets, spec, out, options, emit, line.rows, cluster.hang_s)
            scorer = (spec, need.cpus, options.allow_pickle, __version__)
            with Pool(Scorer, scorer, (), need, cluster.workers) as pool:
                run.go(pool)
        store.log_run(out, run_record(outcomes.all(), spec, options) | {"workers": run.workers})
    return outcomes.all()


def placed(spec: BackendSpec, need: Need) -> BackendSpec:
    """The backend on the kind of device that its workers hold."""
    settings = dict(spec.settings)
    if spec.name == "torch":
        settings["device"] = "cuda" if need.gpus else "cpu"
    dtype = spec.dtype or ("bfloat16" if need.gpus else "float32")
    return spec._replace(dtype=dtype, settings=settings)


class Run:
    """One run's state, and what happens when a worker is idle, a plan is made, a task ends."""

    def __init__(
        self,
        found: Sequence[Checkpoint],
        item_sets: Sequence[tuple[ItemSet, str]],
        spec: BackendSpec,
        out: Path,
        options: Options,
        emit: Emit,
        show: Callable[[list[str]], None],
        hang_s: float,
    ) -> None:
        self.emit, self.show, self.hang_s = emit, show, hang_s
        self.item_sets = sorted(item_sets, key=lambda pair: -text_size(pair[0]))
        self.spec, self.out, self.options = spec, out.resolve(), options
        self.states = {c.name: State(c, weight_size(c, options.allow_pickle)) for c in found}
        self.schedule = Schedule({name: state.size for name, state in self.states.items()})
        self.plans = Plans(Planner(options.trust_remote_code, options.pmi))
        self.plan_of: dict[tuple[str, str], Plan] = {}
        self.promised: dict[int, str] = {}  # worker -> the checkpoint it reads ahead
        self.workers = 0

    def go(self, pool: Pool) -> None:
        """Until every checkpoint is scored or set aside."""
        self._warm_plans()
        try:
            while not all(state.finished for state in self.states.values()):
                self._take_plans()
                busy = sum(w.ref is not None and w.ready for w in pool.workers)
                pool.grow(self.schedule.unseen() + self.schedule.pending() + busy)
                for worker in pool.idle():
                    self._assign(pool, worker)
                self._show(pool)
                for ended in pool.wait(POLL_S):
                    self._ended(pool, ended)
        finally:
            self.plans.close()
            self.workers = pool.made

    # --- plans

    def _warm_plans(self) -> None:
        """The first checkpoint's plans are made while the workers start."""
        for state in self.states.values():
            folder = self.out / state.checkpoint.name
            missing = [
                items for items, _ in self.item_sets if not (folder / f"{items.benchmark}.arrow").exists()
            ]
            for items in missing:
                self.plans.ask(state.checkpoint, items)
            if missing:
                return

    def _take_plans(self) -> None:
        while not self.plans.done.empty():
            planned = self.plans.done.get()
            state = self.states[planned.checkpoint]
            wanted = state.left is not None and planned.benchmark in state.left
            if wanted and (planned.checkpoint, planned.benchmark) not in self.plan_of:
                state.unplanned -= 1
            if planned.plan is None:
                if wanted or isinstance(planned.error, UserError):
                    self._fail(state, runner.sentence(planned.checkpoint, planned.error or UserError("")))
                continue
            known = (planned.checkpoint, planned.benchmark) in self.plan_of
            self.plan_of[planned.checkpoint, planned.benchmark] = planned.plan
            if wanted and not known and not state.finished:
                self._add_unit(state, planned.benchmark)

    def _add_unit(self, state: State, benchmark: str) -> None:
        plan = self.plan_of[state.checkpoint.name, benchmark]
        cost = len(plan.encoded.sequences.token_S) * max(state.size, 1.0)
        self.schedule.add(Unit(state.checkpoint.name, benchmark, cost))
        self.emit(Noted(state.checkpoint.name, plan.encoded.notes))

    # --- handing out

    def _assign(self, pool: Pool, worker: Worker) -> None:
        others = [w for w in pool.workers if w is not worker]
        held = {w.loaded for w in others if w.loaded}
        unit = self.schedule.next_unit(worker.loaded, held)
        if unit is None:
            own = self.states.get(worker.loaded or "")
            if own is not None and own.unplanned and not own.finished:
                return  # its plans are being made
            promises = {self.promised[w.number] for w in others if w.number in self.promised}
            name = self.schedule.next_unseen(self.promised.pop(worker.number, None), promises)
            name = name or self.schedule.next_unseen()
            if name is not None:
                worker.loaded, worker.doing = name, f"{name}: reading"
                checkpoint = self.states[name].checkpoint
                pool.give(worker, name, worker.actor.identify.remote(checkpoint), self._limit(name))
                return
            unit = self.schedule.steal()
        if unit is None:
            worker.doing = "idle"
            return
        state = self.states[unit.checkpoint]
        plan = self.plan_of[unit.checkpoint, unit.benchmark]
        promises = {name for number, name in self.promised.items() if number != worker.number}
        ahead = self.promised.get(worker.number) or self.schedule.peek_unseen(promises)
        if ahead is not None:
            self.promised[worker.number] = ahead
        following = None if ahead is None else self.states[ahead].checkpoint
        call = worker.actor.run.remote(state.checkpoint, unit.benchmark, [plan.ref], following)
        worker.loaded, worker.doing = unit.checkpoint, f"{unit.checkpoint}: {unit.benchmark}"
        pool.give(worker, unit, call, self._limit(unit.checkpoint))

    def _limit(self, name: str) -> float:
        """Seconds without progress until a worker hangs, which loading takes as well: twice as many after each failure."""
        state = self.states[name]
        reading = state.size / (READS if state.checkpoint.source is None else COPIES)
        return 2.0 ** self.schedule.strikes(name) * (self.hang_s + reading)

    # --- what comes back

    def _ended(self, pool: Pool, ended: Ended) -> None:
        task, worker = ended.task, ended.worker
        name = task if isinstance(task, str) else task.checkpoint
        state = self.states[name]
        if ended.died is not None:
            self.promised.pop(worker.number, None)
            console.warn(f"worker {worker.number} on {worker.host} ended during {worker.doing}: {ended.died}")
            if not ended.node_lost and self.schedule.strike(name):
                self._set_aside(state, ended.died)
            else:
                self._again(state, task)
        elif isinstance(ended.value, Failure):
            self._failed(pool, worker, state, task, ended.value)
        elif isinstance(task, str):
            self._identified(state, ended.value)
        else:
            self._scored(state, task, ended.value)

    def _failed(self, pool: Pool, worker: Worker, state: State, task: str | Unit, failure: Failure) -> None:
        if not failure.again:
            self._fail(state, failure.reason)
        else:
            # What a process that met an error it does not know still computes is not relied upon.
            self.promised.pop(worker.number, None)
            pool.remove(worker)
            if self.schedule.strike(state.checkpoint.name):
                self._set_aside(state, failure.reason)
            else:
                console.warn(f"{worker.doing} failed on {worker.host} and is tried again: {failure.reason}")
                self._again(state, task)

    def _again(self, state: State, task: str | Unit) -> None:
        if state.finished:
            return
        if isinstance(task, str):
            self.schedule.again(task)
        else:
            self.schedule.add(task)

    def _identified(self, state: State, checkpoint: Checkpoint) -> None:
        if state.finished:
            return
        # The files stay where each worker has them: what the driver keeps of the answer are the hashes.
        state.checkpoint = state.checkpoint._replace(
            fingerprint=checkpoint.fingerprint, tokenizer_hash=checkpoint.tokenizer_hash
        )
        tasks = tasks_of(state.checkpoint, self.item_sets, self.spec, self.options, self.out)
        decision = decide(tasks, self.options.fresh)
        try:
            runner.begin(state.checkpoint, decision, self.emit)
        except UserError as error:
            self._fail(state, str(error))
            return
        state.tasks = {task.items.benchmark: task for task in tasks}
        state.left = {task.items.benchmark for task in decision.pending}
        for task in decision.pending:
            if (checkpoint.name, task.items.benchmark) in self.plan_of:
                self._add_unit(state, task.items.benchmark)
            else:
                state.unplanned += 1
                self.plans.ask(state.checkpoint, task.items)
        self._finish(state)

    def _scored(self, state: State, unit: Unit, scored: Scored) -> None:
        state.seconds += scored.seconds + scored.load_s
        self.schedule.measured(unit.cost, scored.seconds, scored.load_s)
        self.emit(Noted(unit.checkpoint, scored.notes))
        if state.finished:
            return
        assert state.left is not None
        task, encoded = (
            state.tasks[unit.benchmark],
            self.plan_of[unit.checkpoint, unit.benchmark].encoded,
        )
        try:
            table = score_table(state.checkpoint, unit.benchmark, task.items.category, encoded, scored.scores)
        except UserError as error:
            self._fail(state, str(error))
            return
        store.write(task.path, table, task.metadata)
        state.left.discard(unit.benchmark)
        items = len(task.items.items)
        self.emit(Stored(unit.checkpoint, unit.benchmark, task.path, items, encoded.truncated))
        self._finish(state)

    def _finish(self, state: State) -> None:
        if state.finished:
            self.emit(Finished(state.checkpoint.name, state.seconds))

    # --- failures

    def _set_aside(self, state: State, reason: str) -> None:
        self._fail(
            state, f"{state.checkpoint.name} is set aside: it failed {STRIKES} times, last because {reason}"
        )

    def _fail(self, state: State, reason: str) -> None:
        if state.finished:
            return
        state.failed = True
        self.schedule.drop(state.checkpoint.name)
        self.emit(Failed(state.checkpoint.name, reason))
        self._finish(state)

    def _show(self, pool: Pool) -> None:
        self.show([f"  {w.number} {w.host}  {w.doing}" for w in pool.workers])


def weight_size(checkpoint: Checkpoint, allow_pickle: bool) -> float:
    """Bytes of the weights, remote ones as listed; 0 where they cannot be read: whoever identifies them will say so."""
    if checkpoint.weights is not None:
        return float(checkpoint.weights)
    try:
        return float(sum(file.stat().st_size for file in weight_files(checkpoint.model_folder, allow_pickle)))
    except (UserError, OSError):
        return 0.0
