"""Ray's workers, forked from one process that has imported what they import, and not started one by one: that is three
processor seconds each.

Ray runs this file where it would run its own script that starts a worker (`workers`). It asks the process that has the imports
for a fork, which goes on in Ray's own worker. What a worker is given, what it does and how it ends is the product's and Ray's.
The commands that test_driver.py kills start theirs as their users do.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

SOCKET = "EVALENGINE_TEST_FORKS"
STDIO = (0, 1, 2)
IMPORTED = [  # but for Ray, which reads its settings from the environment when it is imported
    "evalengine.cluster.scorer",
    "evalengine.model.torch_backend",
    "evalengine.model.lockstep",
    "evalengine.training.workers",
    "transformers.models.llama.modeling_llama",
    "safetensors.torch",
]


@contextlib.contextmanager
def workers() -> Iterator[None]:
    """The clusters that this process starts inside the block fork their workers."""
    from ray._private import ray_constants

    with tempfile.TemporaryDirectory(prefix="ee-forks-") as folder:
        path = str(Path(folder) / "socket")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(64)
        line = [sys.executable, __file__, "--serve", str(listener.fileno())]
        given = os.environ | {"OMP_NUM_THREADS": "1"}  # as Ray gives a worker of one core, before it imports
        with (
            listener,
            subprocess.Popen(line, env=given, pass_fds=[listener.fileno()], stdin=subprocess.PIPE) as server,
        ):
            before = ray_constants.SETUP_WORKER_FILENAME
            # Ray joins it to its folder's path; an absolute path stands alone.
            ray_constants.SETUP_WORKER_FILENAME = __file__
            os.environ[SOCKET] = path
            try:
                yield
            finally:
                ray_constants.SETUP_WORKER_FILENAME = before
                del os.environ[SOCKET]
                server.stdin.close()  # type: ignore[union-attr]


def ask(line: list[str]) -> None:
    """In the process that Ray has started: hands its command, environment and output over."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ[SOCKET])
        given = json.dumps([line, dict(os.environ)]).encode() + b"\0"
        server.sendmsg([given[:1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", STDIO))])
        server.sendall(given[1:])
        server.recv(1)  # forked


def serve(listener: socket.socket) -> None:
    """Imports, then forks for each that asks, until whoever started it ends."""
    sys.path.pop(0)  # of the tests, which workers do not see
    import gc
    import importlib
    import select

    gc.disable()
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        asking, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            become(asking)
            os._exit(0)
        asking.close()


def become(asking: socket.socket) -> None:
    """In a fork: the worker that Ray asked for."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with asking:
        given, files, _, _ = socket.recv_fds(asking, 1, len(STDIO))
        while not given.endswith(b"\0"):
            given += asking.recv(1 << 16)
        asking.send(b"!")
    for source, target in zip(files, STDIO, strict=True):
        os.dup2(source, target)
        os.close(source)
    line, environment = json.loads(given[:-1])
    os.environ.clear()
    os.environ.update(environment)
    own = ("--language=", "--serialized-runtime-env-context=")  # of the script that this file stands for
    sys.argv = [word for word in line if not word.startswith(own)]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(socket.socket(fileno=int(sys.argv[2])))
    else:
        ask(sys.argv[1:])
