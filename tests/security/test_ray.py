"""A Ray cluster started here listens on the loopback interface alone."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
from evalengine.cluster.connect import connected
with connected("local", cpus=1):
    import ray
    assert ray.get(ray.remote(lambda: 1).remote()) == 1
    print("up", flush=True)
    sys.stdin.readline()
"""


def family(pid: int) -> set[int]:
    """A process and all that descend from it."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError):
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def listening(pids: set[int]) -> set[str]:
    """Addresses on which these processes accept TCP connections."""
    inodes = set()
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = os.readlink(handle)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table, kind in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            field = line.split()
            if field[3] == "0A" and field[9] in inodes:
                raw = bytes.fromhex(field[1].split(":")[0])
                words = struct.unpack(f">{len(raw) // 4}I", raw)
                found.add(socket.inet_ntop(kind, struct.pack(f"<{len(words)}I", *words)))
    return found


@pytest.mark.slow
def test_a_local_cluster_listens_on_the_loopback_interface_alone() -> None:
    pytest.importorskip("ray")
    process = subprocess.Popen(
        [sys.executable, "-c", CODE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        while (line := process.stdout.readline()) and line.strip() != "up":
            pass
        assert line.strip() == "up"
        addresses = listening(family(process.pid))
        assert addresses, "nothing was found to listen: the test looks in the wrong place"
        assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, addresses
    finally:
        process.communicate("\n", timeout=120)
