"""A real MLflow server on PostgreSQL: it keeps what it confirmed, whatever is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.unit.launchers.conftest import MlflowServer

pytestmark = pytest.mark.slow
LAUNCHER = Path(__file__).parents[3] / "launchers" / "mlflow_server.sh"

# In a process of its own: the client writes, the server's artifacts go through the server.
WRITE = """
import sys
from mlflow import MlflowClient
from mlflow.entities import Metric
client = MlflowClient(sys.argv[1])
run = client.create_run("0").info.run_id
client.log_batch(run, [Metric("loss", step / 2, step, step) for step in range(500)])
client.log_text(run, "kept", "note.txt")
print("run", run)
"""
READ = """
import sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
history = client.get_metric_history(sys.argv[2], "loss")
assert [(m.step, m.value) for m in history] == [(step, step / 2) for step in range(500)]
path = client.download_artifacts(sys.argv[2], "note.txt", sys.argv[3])
assert open(path).read() == "kept"
"""


def python(code: str, *arguments: str) -> str:
    env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_killed_server_has_kept_everything(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    run = python(WRITE, mlflow_server.uri).split("run ")[-1].strip()
    mlflow_server.stop()
    mlflow_server.start()
    python(READ, mlflow_server.uri, run, str(tmp_path))
    assert list((mlflow_server.folder / "artifacts").rglob("note.txt"))
    assert not list(tmp_path.glob("mlruns"))


def test_up_twice_is_harmless(mlflow_server: MlflowServer) -> None:
    before = (mlflow_server.folder / "pids" / "server").read_text()
    mlflow_server.start()
    assert (mlflow_server.folder / "pids" / "server").read_text() == before


def test_password_is_in_no_command_line(mlflow_server: MlflowServer) -> None:
    password = (mlflow_server.folder / "password").read_text()
    assert len(password) == 32
    assert (mlflow_server.folder / "password").stat().st_mode & 0o077 == 0
    for name in ("server", "postgres"):
        pid = (mlflow_server.folder / "pids" / name).read_text().split()[0]
        command = Path("/proc", pid, "cmdline").read_text()
        assert "mlflow" in command
        assert password not in command


def test_taken_port_is_refused(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    call = [
        str(LAUNCHER),
        "up",
        "--dir",
        str(tmp_path / "other"),
        "--port",
        str(mlflow_server.port),
    ]
    env = {"PYTHON": sys.executable, **os.environ}
    done = subprocess.run(call, env=env, text=True, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"port {mlflow_server.port} is taken" in done.stderr


def test_down_and_up_keep_the_data(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    run = python(WRITE, mlflow_server.uri).split("run ")[-1].strip()
    for command, code in (("down", 0), ("status", 1), ("down", 0)):
        call = [str(LAUNCHER), command, "--dir", str(mlflow_server.folder)]
        assert subprocess.run(call, capture_output=True, timeout=60).returncode == code
    mlflow_server.start()
    python(READ, mlflow_server.uri, run, str(tmp_path))
