"""What the launchers say and refuse; nothing is brought up here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

LAUNCHERS = Path(__file__).parents[3] / "launchers"
SCRIPTS = ("slurm_one_node.sh", "mlflow_server.sh")


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LAUNCHERS / script, *arguments],
        env={**os.environ, **environment},
        text=True,
        capture_output=True,
        timeout=60,
    )


def with_processes(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run shell code that has `processes.sh` and a `dir` with the folders that it needs."""
    (folder / "pids").mkdir()
    (folder / "log").mkdir()
    source = f'set -euo pipefail; dir="{folder}"; source "{LAUNCHERS}/processes.sh"\n'
    return subprocess.run(["bash", "-c", source + code], text=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("arguments", [("--help",), ("up", "--help")])
def test_help_names_commands_and_exit_codes(script: str, arguments: tuple[str, ...]) -> None:
    done = run(script, *arguments)
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: {script} up|down|status")
    assert "exit codes:" in done.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        *[
            (script, arguments, message)
            for script in SCRIPTS
            for arguments, message in [
                ((), "say what to do"),
                (("restart",), "unknown command: restart"),
                (("up", "--colour", "red"), "unknown option: --colour"),
                (("status", "--dir"), "--dir needs a value"),
            ]
        ],
        ("slurm_one_node.sh", ("up", "--cpus", "0"), "--cpus must be"),
        ("slurm_one_node.sh", ("up", "--partition", "a b"), "--partition must be"),
        ("slurm_one_node.sh", ("up", "--grace", "-1"), "--grace must be"),
        ("mlflow_server.sh", ("up", "--port", "65536"), "--port must be"),
        ("mlflow_server.sh", ("up", "--workers", "0"), "--workers must be"),
        ("mlflow_server.sh", ("up", "--postgres", "sqlite:///x.db"), "--postgres must begin"),
        ("mlflow_server.sh", ("up", "--artifacts", "gs://bucket"), "--artifacts must be"),
    ],
)
def test_wrong_usage_is_exit_code_2(script: str, arguments: tuple[str, ...], message: str) -> None:
    done = run(script, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr.splitlines()[0]
    assert "usage:" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_where_nothing_runs(script: str, tmp_path: Path) -> None:
    folder = tmp_path / "nothing"
    down = run(script, "down", "--dir", str(folder))
    assert (down.returncode, down.stdout) == (0, "")
    status = run(script, "status", "--dir", str(folder))
    assert (status.returncode, status.stdout) == (1, "")
    assert not folder.exists()


def test_slurm_needs_root(tmp_path: Path) -> None:
    fake = tmp_path / "id"
    fake.write_text("#!/bin/sh\necho 1000\n")
    fake.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = run("slurm_one_node.sh", "up", "--dir", str(tmp_path / "slurm"), PATH=path)
    assert (done.returncode, done.stdout) == (3, "")
    assert "must be run as root" in done.stderr


def test_mlflow_server_says_how_to_get_the_driver(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$2" in *psycopg2*) exit 1 ;; esac\n')
    python.chmod(0o755)
    done = run("mlflow_server.sh", "up", "--dir", str(tmp_path / "server"), PYTHON=str(python))
    assert (done.returncode, done.stdout) == (3, "")
    assert f"{python} -m pip install psycopg2-binary" in done.stderr


@pytest.mark.parametrize(
    ("circumstances", "message"),
    [
        ("id() { echo 1000; }; apt-get() { :; }", "not root"),
        ("id() { echo 0; }; apt-get() { echo E: no network; return 100; }", "E: no network"),
    ],
)
def test_packages_that_cannot_be_installed(
    circumstances: str, message: str, tmp_path: Path
) -> None:
    done = with_processes(f"{circumstances}\ninstall_packages slurmd munge", tmp_path)
    assert done.returncode == 3
    assert message in done.stderr
    assert "slurmd munge" in done.stderr


def test_stop_ends_what_start_began(tmp_path: Path) -> None:
    done = with_processes(
        "start sleeper sleep 60; alive sleeper; stop sleeper; ! alive sleeper", tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert not (Path("/proc") / done.stdout.strip()).exists()


def test_stop_kills_what_ignores_its_signal(tmp_path: Path) -> None:
    done = with_processes(
        """start deaf bash -c 'trap "" TERM; touch '"$dir"'/is_deaf; while :; do sleep 0.1; done'
        until [ -e "$dir/is_deaf" ]; do sleep 0.05; done
        stop deaf TERM 1; ! alive deaf""",
        tmp_path,
    )
    assert done.returncode == 0
    assert "does not end by itself: killed" in done.stderr


def test_another_process_of_the_same_id_is_let_live(tmp_path: Path) -> None:
    done = with_processes(
        """sleep 60 & other=$!
        echo "$other 1" >"$dir/pids/sleeper" # a process that started at another time
        alive sleeper && exit 9
        stop sleeper
        kill -0 "$other"; kill "$other"
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "pids" / "sleeper").exists()


def test_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    scripts = sorted(LAUNCHERS.glob("*.sh"))
    assert len(scripts) >= 3
    done = subprocess.run(["shellcheck", "-x", *scripts], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout
