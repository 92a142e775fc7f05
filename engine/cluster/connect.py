"""Reaching a Ray cluster, or starting one here (`local`) that listens on the loopback interface alone.

A local cluster takes 6 to 9 s to start. It belongs to this process: it ends with it, also when that is killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evalengine.errors import UserError
from evalengine.files import cores
from evalengine.untrusted import reason

LOCAL = "local"
OBJECT_STORE = 512 << 20  # bytes of shared memory at most: it holds plans; what is more spills to the disk
CONNECT_S = 10.0


@contextlib.contextmanager
def connected(address: str, *, cpus: int | None = None) -> Iterator[None]:
    """Ray for the length of a `with` block. Raises UserError where it is not installed or not reachable.

    address: "local" starts a cluster here with `cpus` cores (default: all that this process may use); else HOST:PORT of a
    head node, "auto", or ray://HOST:PORT.
    """
    ray = import_ray()
    if ray.is_initialized():  # the caller's own: left as it is
        yield
        return
    if address == LOCAL:
        with local(ray, cpus):
            yield
        return
    reach(address)
    try:
        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    except Exception as error:
        raise UserError(
            f"cannot join the Ray cluster at {address}: {reason(error)} (start one with `ray start --head`, or use --ray local)"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def import_ray() -> Any:
    """Ray, told to be quiet and to report nothing to anyone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning of Ray about itself
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs Ray, which is not installed: pip install 'evalengine[ray]'") from None
    from ray._private import worker

    worker._worker_logs_enabled = False  # it would print into --json's standard output
    return ray


def reach(address: str) -> None:
    """A wrong address is told at once: Ray itself would try for minutes."""
    match = re.fullmatch(r"(?:ray://)?(?P<host>[^:/]+|\[[^\]]+\]):(?P<port>\d+)", address)
    if match is None:
        if address == "auto":
            return
        raise UserError(f"--ray {address} is no address: give HOST:PORT of a head node, auto, or local")
    try:
        socket.create_connection((match["host"].strip("[]"), int(match["port"])), CONNECT_S).close()
    except (OSError, OverflowError):
        raise UserError(
            f"nothing answers at {address}: start a cluster with `ray start --head`, or use --ray local"
        ) from None


@contextlib.contextmanager
def local(ray: Any, cpus: int | None) -> Iterator[None]:
    remove_litter()
    folder = tempfile.mkdtemp(prefix=f"evalengine-ray-{os.getpid()}-", dir=short_folder())
    from ray._private import ray_constants

    clusters, ray_constants.ENABLE_RAY_CLUSTER = (
        ray_constants.ENABLE_RAY_CLUSTER,
        False,
    )  # listen on 127.0.0.1
    names = (ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "RAY_AUTH_MODE")  # Ray sets the second one itself
    before = {name: os.environ.get(name) for name in names}
    os.environ[names[0]] = "0"  # the same for the processes that Ray starts
    try:
        try:
            with core_alone():
                ray.init(
                    num_cpus=cpus or cores(),
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=folder,
                    object_store_memory=OBJECT_STORE,
                    logging_level="ERROR",
                    log_to_driver=False,
                )
        except Exception as error:
            raise UserError(
                f"Ray does not start here: {reason(error)}; leave --ray out to score in one process"
            ) from None
        if [node["NodeManagerAddress"] for node in ray.nodes()] != ["127.0.0.1"]:
            raise UserError(
                "Ray would listen beyond this machine: use a version of Ray that evalengine knows"
            )
        yield
    finally:
        ray.shutdown()
        ray_constants.ENABLE_RAY_CLUSTER = clusters
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def core_alone() -> Iterator[None]:
    """Ray starts without its web server, autoscaler and log forwarder, which nobody here uses: three processes fewer.

    Where a version of Ray has no such parts under these names, it starts as it does.
    """
    from ray._private.node import Node

    def left_out(*_: Any, **__: Any) -> None:
        return None

    parts = ("start_api_server", "start_monitor", "start_log_monitor")
    kept = {name: getattr(Node, name) for name in parts if hasattr(Node, name)}
    for name in kept:
        setattr(Node, name, left_out)
    try:
        yield
    finally:
        for name, part in kept.items():
            setattr(Node, name, part)


def short_folder() -> str:
    """Ray puts sockets there, whose whole path may have 107 bytes."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= 24 else "/tmp"


def remove_litter() -> None:
    """Folders of local clusters whose process was killed."""
    for folder in Path(short_folder()).glob("evalengine-ray-*-*"):
        owner = folder.name.split("-")[2]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(folder, ignore_errors=True)
