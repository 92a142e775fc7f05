"""The driver itself killed, interrupted; nodes that join and go, each in a network namespace of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.conftest import BENCHMARKS, files, one_thread, processes, score
from evalengine.cluster import connect

pytest.importorskip("ray")
START_S = 240.0  # until a cluster has started and scored something, on a machine that has much else to do
pytestmark = pytest.mark.timeout(900)
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "RAY_worker_niceness": "0",  # beside another process of tests nice ones hardly run
}
RAY_WORDS = ("raylet", "gcs_server", "ray::")


def command(ckpts: list[Path], bench: Path, out: Path, *ray: object) -> list[str]:
    given = ["--data", bench, "--out", out, "--benchmarks", BENCHMARKS, *ray]
    return [sys.executable, "-m", "evalengine", "score", *map(str, [*ckpts, *given])]


def wait_for(condition: object, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


def of_session(folder: str) -> dict[int, str]:
    """Processes of the Ray cluster whose session lies in `folder`."""
    return {pid: line for pid, line in processes(folder).items() if any(w in line for w in RAY_WORDS)}


@pytest.mark.slow
def test_a_driver_that_ends_leaves_no_process_and_the_same_command_goes_on(
    ckpts: list[Path], bench: Path, reference: Path, tmp_path: Path
) -> None:
    """Killed first, and interrupted when the same command has gone on; one process, which is quicker, does the rest."""
    out = tmp_path / "scores"
    line = command(ckpts, bench, out, "--ray", "local", "--workers", 1)
    killed, _, _ = ends_by(signal.SIGKILL, line, out)
    interrupted, returncode, said = ends_by(signal.SIGINT, line, out)
    assert returncode == 130
    assert "run the same command again" in said and "Traceback" not in said
    with one_thread():
        assert score(ckpts, bench, out) == 0
    assert files(out) == files(reference)
    for session in (killed, interrupted):
        assert not list(Path(connect.short_folder()).glob(f"{session}*"))


def ends_by(sent: signal.Signals, line: list[str], out: Path) -> tuple[str, int, str]:
    """Sends a command a signal when it has written two results, and looks for what it leaves.

    Returns the beginning of its Ray's folder, its return code, and what it said.
    """

    def done() -> int:
        return len(list(out.glob("*/*.arrow")))

    before = done()
    driver = subprocess.Popen(
        line, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    session = f"evalengine-ray-{driver.pid}-"
    assert wait_for(lambda: of_session(session) or driver.poll() is not None, START_S)
    assert wait_for(lambda: done() >= before + 2 or driver.poll() is not None, START_S)
    driver.send_signal(sent)  # at once: the rest takes less than a second
    _, said = driver.communicate(timeout=120)
    assert wait_for(lambda: not of_session(session), 60), of_session(session)
    assert before + 2 <= done() < 24
    return session, driver.returncode, said


@pytest.fixture()
def two_namespaces() -> Iterator[list[tuple[str, str]]]:
    """Two network namespaces that reach each other over a pair of virtual interfaces, and nothing else."""
    names = [(f"ee{os.getpid()}a", "10.231.0.1"), (f"ee{os.getpid()}b", "10.231.0.2")]
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    try:
        for name, _ in names:
            if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
                pytest.skip("this machine allows no network namespaces")
        link = f"ip link add {names[0][0]} netns {names[0][0]} type veth peer name {names[1][0]} netns {names[1][0]}"
        if subprocess.run(link.split(), capture_output=True).returncode:
            pytest.skip("this machine allows no virtual interfaces")
        for name, address in names:
            for rest in (f"addr add {address}/24 dev {name}", f"link set {name} up", "link set lo up"):
                subprocess.run(["ip", "-n", name, *rest.split()], check=True)
        yield names
    finally:
        for name, _ in names:
            for pid in inside(name):
                os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's sockets lie in it: pytest's own folders are too long for their paths."""
    with tempfile.TemporaryDirectory(
        prefix="ee-", dir=connect.short_folder(), ignore_cleanup_errors=True
    ) as path:
        yield Path(path)
        for pid in processes(path):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_nodes_join_and_a_node_goes(
    two_namespaces: list[tuple[str, str]],
    ckpts: list[Path],
    bench: Path,
    reference: Path,
    short_folder: Path,
) -> None:
    """Head without cores. A node joins and works; a second one joins and takes work while the first stands still; the first
    is killed whole with SIGKILL; the second finishes."""
    (a, head), (b, other) = two_namespaces
    out = short_folder / "scores"
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    environment = ENVIRONMENT | {"RAY_USAGE_STATS_ENABLED": "0"}
    token = secrets.token_hex(32)  # of this cluster alone
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}

    def start(namespace: str, *given: str) -> None:
        line = ["ip", "netns", "exec", namespace, *ray, "start", *given]
        line += ["--object-store-memory=100000000", "--disable-usage-stats"]
        done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr

    def join(namespace: str, address: str) -> None:
        start(namespace, f"--address={head}:6390", f"--node-ip-address={address}", "--num-cpus=1")

    def done() -> int:
        return len(list(out.glob("*/*.arrow")))

    where = (f"--node-ip-address={head}", f"--temp-dir={short_folder}", "--include-dashboard=false")
    start(a, "--head", "--port=6390", "--num-cpus=0", "--no-monitor", *where)
    line = command(ckpts, bench, out, "--ray", f"{head}:6390", "--cpus-per-worker", 1)
    line = ["ip", "netns", "exec", a, *line]
    driver = subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    join(b, other)

    def scorers() -> set[int]:
        return set(inside(b)) & set(processes("ray::Scorer"))

    assert wait_for(lambda: scorers() or driver.poll() is not None, START_S)
    (worker,) = scorers()
    assert wait_for(lambda: done() >= 2 or driver.poll() is not None, START_S)
    os.kill(worker, signal.SIGSTOP)
    time.sleep(0.1)
    before = done()
    assert 2 <= before < 22 and driver.poll() is None
    join(a, head)
    assert wait_for(lambda: done() > before + 1 or driver.poll() is not None, START_S), (
        "the new node took no work"
    )
    assert driver.poll() is None, "the unit of the standing worker is open"
    for pid in inside(b):
        os.kill(pid, signal.SIGKILL)
    stdout, stderr = driver.communicate(timeout=180)
    assert driver.returncode == 0, stdout + stderr
    assert "its node has gone" in stderr
    assert files(out) == files(reference)


def inside(namespace: str) -> list[int]:
    found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]
