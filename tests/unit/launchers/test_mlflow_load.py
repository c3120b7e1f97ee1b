"""Many runs at once on an MLflow server on PostgreSQL that is killed among them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import sseg_nase
from sseg_nase.sweeps.deliver import deliver_run
from sseg_nase.tracking.mlflow_sink import open_store

if TYPE_CHECKING:
    from tests.unit.launchers.conftest import MlflowServer

pytestmark = pytest.mark.slow

RUNS, BATCHES = 16, 200
SECONDS_PER_BATCH = 0.15
KEYS = [f"pretrain/{name}" for name in ("loss", "contrastive", "lr", "level", "images_per_second")]
A_RUN = """
import json, sys, time
from pathlib import Path

from sseg_nase.files import write_json
from sseg_nase.tracking import RunInfo, Tracker
from sseg_nase.tracking.jsonl import JsonlSink
from sseg_nase.tracking.mlflow_sink import MlflowSink

directory, uri, experiment, batches, pause, keys, close_seconds = json.loads(sys.argv[1])
directory = Path(directory)
directory.mkdir()
tracking = {"name": "server", "uri": uri, "experiment": experiment}
write_json(directory / "config.yaml", {"tracking": tracking})
sink = MlflowSink(uri, experiment, required=True, close_seconds=close_seconds)
tracker = Tracker([JsonlSink(), sink])
tracker.open(RunInfo(directory, directory.name, experiment, directory / "config.yaml", 1))
print("open", flush=True)
sys.stdin.readline()
slowest = 0.0
for step in range(batches):
    time.sleep(pause)
    began = time.perf_counter()
    tracker.metrics({key: step + number / 10 for number, key in enumerate(keys)}, step)
    slowest = max(slowest, time.perf_counter() - began)
tracker.close("FINISHED")
status = {"status": "FINISHED", "error": None, "tracker_run_id": tracker.run_id}
status |= {"tracking_uri": uri}
status |= {} if tracker.delivered else {"undelivered": True}
write_json(directory / "status.json", status)
print(json.dumps({"slowest": slowest}))
"""


@dataclass(frozen=True)
class Group:
    """Runs in processes of their own, all opened; they begin to tell with `begin`."""

    processes: Sequence[subprocess.Popen[str]]

    def begin(self) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()

    def wait(self) -> float:
        """The longest time in seconds that telling one batch has taken in any of the runs."""
        ends = [process.communicate(timeout=180) for process in self.processes]
        assert [p.returncode for p in self.processes] == [0] * RUNS, ends
        assert {err for _, err in ends} == {""}
        return max(json.loads(out.splitlines()[-1])["slowest"] for out, _ in ends)


@contextmanager
def runs(folder: Path, uri: str, experiment: str, close_seconds: float) -> Iterator[Group]:
    rest = (uri, experiment, BATCHES, SECONDS_PER_BATCH, KEYS, close_seconds)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", A_RUN, json.dumps([str(folder / f"run{number}"), *rest])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(sseg_nase.__file__).parents[1])},
        )
        for number in range(RUNS)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n", process.communicate()
        yield Group(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def undelivered(folder: Path) -> list[Path]:
    """The runs whose status.json says that MLflow lacks something."""
    found = sorted(folder.glob("run*/status.json"))
    assert len(found) == RUNS
    return [path.parent for path in found if json.loads(path.read_text()).get("undelivered")]


def stored(uri: str, experiment: str) -> tuple[list[Any], dict[tuple[str, str], list[Any]]]:
    """The runs of the experiment, and the rows of each (run's name, key)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client, experiment_id = open_store(uri, experiment)
        found = client.search_runs([experiment_id])
        rows = {
            (run.info.run_name, key): client.get_metric_history(run.info.run_id, key)
            for run in found
            for key in KEYS
        }
    return found, rows


def check_complete(uri: str, experiment: str) -> int:
    """Every run is there and FINISHED, with every row exactly once; return their number."""
    found, rows = stored(uri, experiment)
    assert sorted(run.info.run_name for run in found) == sorted(f"run{n}" for n in range(RUNS))
    assert {run.info.status for run in found} == {"FINISHED"}
    expected = {
        (f"run{run}", key): [(step, step + number / 10) for step in range(BATCHES)]
        for run in range(RUNS)
        for number, key in enumerate(KEYS)
    }
    told = {
        name: sorted((row.step, row.value) for row in history) for name, history in rows.items()
    }
    wrong = [name for name in expected if told[name] != expected[name]]
    assert not wrong, {name: len(told[name]) for name in wrong}
    for run in found:
        assert math.isclose(run.data.metrics[KEYS[0]], BATCHES - 1)
    return sum(map(len, rows.values()))


def test_a_server_that_is_killed_and_comes_back_gets_every_row_once(
    tmp_path: Path, mlflow_server: MlflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    with runs(tmp_path, mlflow_server.uri, "comes back", close_seconds=60) as group:
        group.begin()
        told_at = time.monotonic()
        time.sleep(BATCHES * SECONDS_PER_BATCH / 3)
        mlflow_server.stop()
        time.sleep(10)
        mlflow_server.start()
        away = time.monotonic() - told_at - BATCHES * SECONDS_PER_BATCH / 3
        slowest = group.wait()
        told_for = time.monotonic() - told_at
    waiting = undelivered(tmp_path)
    for directory in waiting:
        deliver_run(directory)
    assert undelivered(tmp_path) == []
    assert slowest < 5, "telling waits for the server"
    rows = check_complete(mlflow_server.uri, "comes back")
    assert rows == RUNS * BATCHES * len(KEYS)
    with capsys.disabled():
        print(
            f"\n{rows:,} rows from {RUNS} runs in {told_for:.0f} s (all in all "
            f"{time.monotonic() - began:.0f} s), server away for {away:.0f} s; {len(waiting)} runs "
            f"delivered late; slowest batch {1000 * slowest:.0f} ms"
        )


def test_a_server_that_comes_back_after_the_runs_gets_the_rest_late(
    tmp_path: Path, mlflow_server: MlflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with runs(tmp_path, mlflow_server.uri, "too late", close_seconds=2) as group:
        group.begin()
        time.sleep(BATCHES * SECONDS_PER_BATCH / 3)
        mlflow_server.stop()
        slowest = group.wait()
    waiting = undelivered(tmp_path)
    assert len(waiting) == RUNS
    assert slowest < 5, "telling waits for the server"
    mlflow_server.start()
    _, before = stored(mlflow_server.uri, "too late")
    there = sum(map(len, before.values()))
    assert 0 < there < RUNS * BATCHES * len(KEYS)
    began = time.monotonic()
    for directory in waiting:
        assert "metric rows" in deliver_run(directory)
    took = time.monotonic() - began
    rows = check_complete(mlflow_server.uri, "too late")
    with capsys.disabled():
        print(f"\n{rows - there:,} of {rows:,} rows delivered late in {took:.1f} s")
    assert [deliver_run(path).startswith("nothing is missing") for path in waiting] == [True] * RUNS
