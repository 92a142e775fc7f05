"""Reaching a Ray cluster, or starting one here (`local`) that listens on the loopback interface alone.

A local cluster takes seconds to start, three of a processor. It belongs to this process: it ends with it, also when that is
killed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

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
    with contextlib.ExitStack() as ends:
        if address == LOCAL:
            what, instead = "start Ray here", "leave --ray out to score in one process"
        else:
            check_listening(address)
            what = f"join the Ray cluster at {address}"
            instead = "start one with `ray start --head`, or use --ray local"
        try:
            options: dict[str, Any] = {"address": address}
            if address == LOCAL:
                options = ends.enter_context(on_loopback()) | {"num_cpus": cpus or cores()}
            ends.callback(ray.shutdown)
            ray.init(**options, logging_level="ERROR", log_to_driver=False)
        except Exception as error:
            raise UserError(f"cannot {what}: {reason(error)} ({instead})") from None
        if address == LOCAL and [node["NodeManagerAddress"] for node in ray.nodes()] != ["127.0.0.1"]:
            raise UserError(
                "Ray would listen beyond this machine: use a version of Ray that evalengine knows"
            )
        yield


def import_ray() -> Any:
    """Ray, told to be quiet and to report nothing to anyone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning of Ray about itself
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs Ray, which is not installed: pip install 'evalengine[ray]'") from None
    from ray._private import worker

    # What Ray says of a worker that died goes to standard output, and --json's object with it, whatever log_to_driver is.
    worker._worker_logs_enabled = False
    return ray


def check_listening(address: str) -> None:
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
def on_loopback() -> Iterator[dict[str, Any]]:
    """What starts a cluster on 127.0.0.1 alone, its files in a folder of its own.

    Ray, and the processes that it starts, take that address for this machine's on systems where they know of no clusters.
    """
    constants, parameter, services = (
        cast(Any, importlib.import_module(f"ray._private.{name}"))  # what is replaced has types there
        for name in ("ray_constants", "parameter", "services")
    )
    remove_litter()
    switch = constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    clusters, params, api = constants.ENABLE_RAY_CLUSTER, parameter.RayParams, services.start_api_server
    before = {name: os.environ.get(name) for name in (switch, "RAY_AUTH_MODE")}  # Ray sets the second itself
    folder = tempfile.mkdtemp(prefix=f"evalengine-ray-{os.getpid()}-", dir=short_folder())
    constants.ENABLE_RAY_CLUSTER, os.environ[switch] = False, "0"
    # A cluster that never grows needs no autoscaler, and nobody reads its workers' logs. The dashboard's process is started even
    # without a dashboard; Ray goes on where that fails, as it seems to do here.
    parameter.RayParams = functools.partial(params, no_monitor=True, include_log_monitor=False)
    services.start_api_server = lambda *_, **__: (None, None)
    try:
        yield {
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": folder,
            "_system_config": {"prestart_worker_first_driver": False},  # one for each core, unasked
        }
    finally:
        constants.ENABLE_RAY_CLUSTER = clusters
        parameter.RayParams, services.start_api_server = params, api
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)


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
