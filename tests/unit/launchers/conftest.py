"""Real servers, brought up by the scripts in `launchers/`: for tests marked `slow` only."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

LAUNCHERS = Path(__file__).parents[3] / "launchers"


def launch(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a launcher; skips the test where it says that it cannot install what it needs."""
    done = subprocess.run(
        [LAUNCHERS / script, *arguments],
        env={"PYTHON": sys.executable, **os.environ},
        text=True,
        capture_output=True,
        timeout=900,
    )
    if done.returncode == 3:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """A Slurm of one node and two CPUs: the environment in which sbatch and the others find it."""
    folder = tempfile.mkdtemp(prefix="sseg-nase-slurm-")
    try:
        line = launch("slurm_one_node.sh", "up", "--dir", folder).stdout
        _, assignment = shlex.split(line)
        name, value = assignment.split("=", 1)
        yield {**os.environ, name: value}
        launch("slurm_one_node.sh", "down", "--dir", folder)
    finally:
        shutil.rmtree(folder)


class MlflowServer:
    """An MLflow server on PostgreSQL that can be killed and started again with its data."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        arguments = ("--dir", str(self.folder), "--port", str(self.port))
        assert launch("mlflow_server.sh", "up", *arguments).stdout == f"{self.uri}\n"

    def stop(self) -> None:
        """Kill server and database with −9, as a machine does that loses its power."""
        for name in ("server", "postgres"):
            leader = int((self.folder / "pids" / name).read_text().split()[0])
            for pid in [p for p in _processes() if _session(p) == leader]:
                os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + 10
        while self._listens():
            assert time.monotonic() < end, "the server still listens"
            time.sleep(0.1)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


@pytest.fixture(scope="module")
def mlflow_server() -> Iterator[MlflowServer]:
    """An MLflow server that answers at `.uri`; `.stop()` kills it, `.start()` brings it back."""
    # Not below pytest's own folder: that is closed to the user as which PostgreSQL runs.
    folder = Path(tempfile.mkdtemp(prefix="sseg-nase-mlflow-"))
    folder.chmod(0o755)
    server = MlflowServer(folder)
    try:
        server.start()
        yield server
    finally:
        launch("mlflow_server.sh", "down", "--dir", str(folder))
        shutil.rmtree(folder)
