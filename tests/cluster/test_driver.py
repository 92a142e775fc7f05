"""The driver itself killed, interrupted; nodes that join and go, each in a network namespace of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.conftest import BENCHMARKS, files, processes

pytest.importorskip("ray")
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
@pytest.mark.parametrize("signal_sent", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_ends_leaves_no_process_and_the_same_command_goes_on(
    signal_sent: signal.Signals, ckpts: list[Path], bench: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores"
    line = command(ckpts, bench, out, "--ray", "local", "--workers", 2)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert wait_for(lambda: len(list(out.glob("*/*.arrow"))) >= 2 or driver.poll() is not None, 120)
    session = f"evalengine-ray-{driver.pid}-"
    assert driver.poll() is None and of_session(session)
    driver.send_signal(signal_sent)
    _, said = driver.communicate(timeout=60)
    if signal_sent == signal.SIGINT:
        assert driver.returncode == 130
        assert "run the same command again" in said and "Traceback" not in said
    assert wait_for(lambda: not of_session(session), 30), of_session(session)
    done = len(list(out.glob("*/*.arrow")))
    assert 2 <= done < 24
    if signal_sent == signal.SIGKILL:  # resumed by Ray again; the other case by one process, which is quicker
        subprocess.run(line, env=environment, check=True, capture_output=True)
    else:
        subprocess.run(command(ckpts, bench, out), env=environment, check=True, capture_output=True)
    assert files(out) == files(reference)
    assert not list(Path("/tmp").glob(f"{session}*"))


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
            for pid in subprocess.run(
                ["ip", "netns", "pids", name], capture_output=True, text=True
            ).stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.slow
def test_a_node_joins_and_a_node_goes(
    two_namespaces: list[tuple[str, str]], ckpts: list[Path], bench: Path, reference: Path
) -> None:
    """Head without cores; a first node works, is killed whole with SIGKILL; a second one joins and finishes."""
    (a, head), (b, other) = two_namespaces
    folder = Path(f"/tmp/ee-{os.getpid()}")
    out = folder / "scores"
    ray = str(Path(sys.executable).with_name("ray"))
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }  # of this cluster alone

    def start(namespace: str, *given: str) -> None:
        line = ["ip", "netns", "exec", namespace, ray, "start"]
        line += ["--object-store-memory=100000000", "--disable-usage-stats", *given]
        subprocess.run(line, check=True, capture_output=True, env=environment, timeout=90)

    def worker_node(namespace: str, address: str) -> None:
        start(namespace, f"--address={head}:6390", f"--node-ip-address={address}", "--num-cpus=1")

    try:
        start(
            a,
            "--head",
            "--include-dashboard=false",
            "--port=6390",
            f"--node-ip-address={head}",
            "--num-cpus=0",
            f"--temp-dir={folder}",
        )
        line = command(ckpts, bench, out, "--ray", f"{head}:6390", "--cpus-per-worker", 1)
        driver = subprocess.Popen(
            ["ip", "netns", "exec", a, *line],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        worker_node(b, other)
        assert wait_for(lambda: len(list(out.glob("*/*.arrow"))) >= 2 or driver.poll() is not None, 120)
        pids = subprocess.run(["ip", "netns", "pids", b], capture_output=True, text=True).stdout.split()
        assert pids and driver.poll() is None
        for pid in pids:
            os.kill(int(pid), signal.SIGKILL)
        assert len(list(out.glob("*/*.arrow"))) < 24
        worker_node(b, other)
        stdout, stderr = driver.communicate(timeout=180)
        assert driver.returncode == 0, stdout + stderr
        assert "its node has gone" in stderr
        assert files(out) == files(reference)
    finally:
        for pid in processes(str(folder)):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
