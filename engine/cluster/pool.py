"""Workers that come and go: one Ray actor per GPU or group of cores, one task at a time each.

Workers are made as resources appear and made again where they ended, as long as there is work. Ray itself retries nothing
here: whoever gave a task learns how it ended (`Ended`), and gives it again where that makes sense. A worker that reports
no progress for the seconds allowed hangs, and is ended. An actor in the middle of a call answers no other one, so it notes the
time in the key-value store of Ray's head node, at most once a second, and the driver reads that only where a call takes long.
"""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

from evalengine import console, untrusted
from evalengine.cluster.connect import LOCAL, import_ray
from evalengine.errors import UserError
from evalengine.files import cores

ANSWER_S = 2.0
LOOK_S = 1.0  # between two looks at the cluster's resources
TELL_S = 20.0  # before the user learns that nothing fits
STARTS = 3  # workers that end before they are ready, one after another, until the run is given up
START_S = 900.0  # that a worker may take to get ready, once there is room for it
REPORT_S = 1.0  # between two reports of progress
SPACE = "evalengine-progress"  # where they are


class Cluster(NamedTuple):
    """Where to run, and what a worker holds; None leaves it to `need_of`."""

    address: str
    workers: int | None = None
    cpus: int | None = None
    gpus: float | None = None
    hang_s: float = 900.0  # without progress, until a worker counts as hung

    @property
    def local_cores(self) -> int:
        """Of a cluster that is started here: enough for the workers asked for."""
        return max(cores(), (self.workers or 0) * (self.cpus or 1))


class Need(NamedTuple):
    """What one worker holds."""

    cpus: int
    gpus: float


class Ended(NamedTuple):
    """A task's end. `died` says why its worker is gone, None where it lives; `node_lost`: its whole node went."""

    worker: Worker
    task: Any
    value: Any
    died: str | None = None
    node_lost: bool = False


@dataclass(eq=False)
class Worker:
    """An actor. It is `ready` when it has answered its greeting."""

    number: int
    actor: Any
    ref: Any  # the call that runs, None when idle
    task: Any = None
    ready: bool = False
    node: str = ""
    host: str = ""
    doing: str = "starting"
    loaded: str | None = None  # for the schedule: the checkpoint that it has,
    ahead: str | None = None  # and the one that it reads meanwhile
    limit_s: float = float("inf")  # without progress, until it hangs
    hangs_at: float = float("inf")  # on the monotonic clock, unless it has made progress by then
    reported: bytes | None = None  # its progress when that was last looked at


class Pool:
    """Workers of class `cls`, made with `arguments`, which must have `hello() -> (node id, host name)`."""

    def __init__(self, cls: type, arguments: tuple[Any, ...], need: Need, limit: int | None) -> None:
        """limit: how many workers at most; None takes as many as the cluster has room for, and more when it grows."""
        self._ray = import_ray()
        self._cls = self._ray.remote(num_cpus=need.cpus, num_gpus=need.gpus)(cls)
        self._arguments = arguments
        self.need, self.limit = need, limit
        self.workers: list[Worker] = []
        self.made = 0
        self._failed_starts = 0
        self._looked = 0.0
        self._without_since = time.monotonic()  # without a worker, or without telling the user so

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in list(self.workers):
            self.remove(worker)

    def grow(self, useful: int) -> None:
        """Makes workers up to the limit, the room there is, and the number that has something to do."""
        now = time.monotonic()
        if now - self._looked < LOOK_S and self.workers:
            return
        self._looked = now
        room = self.limit or max(fitting(self._ray, self.need), 1)
        for _ in range(len(self.workers), min(room, useful)):
            actor = self._cls.remote(*self._arguments)
            worker = Worker(self.made, actor, actor.hello.remote(), hangs_at=now + START_S)
            self.workers.append(worker)
            self.made += 1
        if any(w.ready for w in self.workers):
            self._without_since = now
        elif now - self._without_since > TELL_S and not fitting(self._ray, self.need):
            self._without_since = now
            console.warn(
                f"no node has room for a worker of {self.need.cpus} cores and {self.need.gpus:g} GPUs: waiting "
                "for one to join (Ctrl-C to stop; --cpus-per-worker and --gpus-per-worker ask for less)"
            )

    def idle(self) -> list[Worker]:
        return [w for w in self.workers if w.ready and w.ref is None]

    def give(self, worker: Worker, task: Any, ref: Any, limit_s: float = float("inf")) -> None:
        """Notes that `worker` runs `task`, whose Ray call is `ref`, and hangs when it makes no progress for `limit_s`.

        Heartbeat is looked at every `limit_s`: a worker that stops is ended after once to twice that.
        """
        worker.task, worker.ref = task, ref
        worker.limit_s, worker.hangs_at = limit_s, time.monotonic() + limit_s

    def wait(self, timeout: float) -> list[Ended]:
        """Tasks that ended, at most `timeout` seconds from now. Raises UserError where no worker ever becomes ready."""
        by_ref = {w.ref: w for w in self.workers if w.ref is not None}
        if not by_ref:
            time.sleep(timeout)
            return []
        refs = list(by_ref)
        first, _ = self._ray.wait(refs, num_returns=1, timeout=timeout)
        ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0) if first else ([], None)
        ended = [self._collect(by_ref[ref]) for ref in ready]
        now = time.monotonic()
        ended += [self._look(w) for w in self.workers[:] if w.ref is not None and now > w.hangs_at]
        return [e for e in ended if e is not None]

    def _look(self, worker: Worker) -> Ended | None:
        """Ends a worker that has made no progress since the last look; one that has gets as long again."""
        before, worker.reported = worker.reported, last_heartbeat(worker.actor)
        worker.hangs_at = time.monotonic() + worker.limit_s
        if worker.reported != before:
            return None
        self.remove(worker)
        if not worker.ready:  # another one is made; where there is no room for it, that one waits as well
            return None
        return Ended(worker, worker.task, None, f"it hangs: no progress for {worker.limit_s:,.0f} s")

    def _collect(self, worker: Worker) -> Ended | None:
        task, ref = worker.task, worker.ref
        worker.task = worker.ref = None
        try:
            value = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            self.remove(worker)
            reason, lost = self._reason(error, worker)
            if worker.ready:
                return Ended(worker, task, None, reason, lost)
            self._failed_starts += not lost
            if self._failed_starts >= STARTS and not any(w.ready for w in self.workers):
                raise UserError(f"workers end before they are ready: {reason}") from None
            return None
        if not worker.ready:
            worker.node, worker.host = value
            worker.ready, worker.doing, self._failed_starts = True, "idle", 0
            return None
        return Ended(worker, task, value)

    def _reason(self, error: Exception, worker: Worker) -> tuple[str, bool]:
        """Why a worker is gone, in a few words, and whether its node went with it."""
        exceptions = self._ray.exceptions
        text = " ".join(str(error).split())
        if isinstance(error, exceptions.RayTaskError):
            cause = getattr(error, "cause", None) or error
            return f"{type(cause).__name__}: {untrusted.reason(cause)}", False
        if "error raised in its creation task" in text:
            return str(error).strip().splitlines()[-1].strip(), False
        if isinstance(error, exceptions.OutOfMemoryError):
            return "the node ran out of memory", False
        node = next((n for n in self._ray.nodes() if n["NodeID"] == worker.node), None)
        if "node has died" in text or "node was dead" in text or (worker.node and not answers(node)):
            return "its node has gone", True
        return "its worker process was killed or ran out of memory", False

    def remove(self, worker: Worker) -> None:
        """Ends a worker at once, whatever it is doing. Ray's node manager kills a process that does not answer."""
        with contextlib.suppress(ValueError):
            self.workers.remove(worker)
        with contextlib.suppress(Exception):
            self._ray.kill(worker.actor)


def answers(node: dict[str, Any] | None) -> bool:
    """Whether a node's manager still takes connections: Ray itself notices only after seconds that it does not."""
    if node is None or not node["Alive"]:
        return False
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), ANSWER_S).close()
    except OSError:
        return False
    return True


def fitting(ray: Any, need: Need) -> int:
    """How many workers the cluster's nodes hold altogether."""
    total = 0
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        has = node["Resources"]
        fit = has.get("CPU", 0) // need.cpus
        total += int(min(fit, has.get("GPU", 0) // need.gpus) if need.gpus else fit)
    return total


def need_of(cluster: Cluster, device: str | None) -> Need:
    """The resources of one worker: as asked, else one GPU where the cluster has any, else a group of cores.

    A group is four cores, fewer where the largest node has fewer or workers share this machine.
    """
    nodes = [node["Resources"] for node in import_ray().nodes() if node["Alive"]]
    gpus, cpus = cluster.gpus, cluster.cpus
    if gpus is None:
        gpus = 1.0 if device != "cpu" and any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    if cpus is None and gpus:
        cpus = 1
    elif cpus is None and cluster.address == LOCAL and cluster.workers:
        cpus = max(1, cores() // cluster.workers)
    elif cpus is None:
        largest = max((int(node.get("CPU", 0)) for node in nodes), default=1)
        cpus = max(1, min(4, largest))
    return Need(cpus, gpus)


class Heartbeat:
    """Of an actor, which calls it whenever a piece of work is done, from any thread."""

    def __init__(self) -> None:
        import ray

        self._key = str(ray.get_runtime_context().get_actor_id())
        self._reported = float("-inf")

    def __call__(self, _: float = 0.0) -> None:
        now = time.monotonic()
        if now - self._reported < REPORT_S:
            return
        from ray.experimental.internal_kv import _internal_kv_put

        self._reported = now
        with contextlib.suppress(Exception):  # a lost report is no reason to lose the work
            _internal_kv_put(self._key, str(now), namespace=SPACE)


def last_heartbeat(actor: Any) -> bytes | None:
    """In the driver: what an actor reported last; it changes with every report."""
    from ray.experimental.internal_kv import _internal_kv_get

    value: bytes | None = _internal_kv_get(actor._actor_id.hex(), namespace=SPACE)
    return value
