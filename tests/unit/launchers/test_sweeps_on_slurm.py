"""Sweeps on a real Slurm: time limits, preemption, cancelled and crashed jobs, and a lost launcher.

The commands are the user's own, in a folder of their own; how a job stands is read from disk.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import sseg_nase
from tests.support.sabotage import Sabotage, hear_interrupts

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # MLflow's own are many

PACKAGE = Path(sseg_nase.__file__).parent
TINY = ("ablation=A2", "debug=tiny", "hardware=cpu", "hardware.precision=32-true")
LONG = (*TINY, "seed=0", "pretrain.epochs=8")
SLURM = (
    "hydra/launcher=submitit_slurm",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=2",
)
TIMES = ("seconds", "latency_ms_b1", "latency_ms_b64")
UNEVEN = ("pretrain/images_per_second", "hardware/memory_mb")  # differ from run to run
SECONDS = 240.0


class Place:
    """A folder with its own runs, store and Slurm jobs, and the commands that are given there."""

    def __init__(self, path: Path, slurm: dict[str, str]) -> None:
        path.mkdir(exist_ok=True)
        self.path = path
        self.sabotage = Sabotage(path / "sabotage")
        self.environment = {**slurm, "OMP_NUM_THREADS": "1", **self.sabotage.environment}
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *overrides: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "sseg_nase", *overrides],
            cwd=self.path,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=hear_interrupts,
        )
        self.processes.append(process)
        return process

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Its exit code and all it said."""
        said, _ = process.communicate(timeout=SECONDS)
        return process.returncode, said

    def do(self, *overrides: str) -> tuple[int, str]:
        return self.end(self.start(*overrides))

    def slurm(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self.environment, cwd=self.path, text=True, capture_output=True, check=True
        )
        return done.stdout

    def queue(self) -> list[str]:
        return self.slurm("squeue", "--noheader", "--array", "--format=%i").split()

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
        for job in self.queue():
            self.slurm("scancel", "--quiet", job)
        self.wait(lambda: not self.queue())

    def wait(self, happened: Callable[[], Any], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, "it did not come to this in time"
            time.sleep(0.2)

    # What is on disk.

    @property
    def sweep(self) -> Path:
        (found,) = (self.path / "runs" / "sweeps").iterdir()
        return found

    def job(self, number: int = 0) -> dict[str, Any]:
        return read(next(iter(self.path.glob(f"runs/sweeps/*/jobs/{number}/job.json")), None))

    def slurm_job(self, number: int = 0) -> str:
        return (self.sweep / "jobs" / str(number) / "slurm_job").read_text()

    def run(self, number: int = 0) -> Path:
        return Path(self.job(number)["run"])

    def status(self, number: int = 0) -> dict[str, Any]:
        known = self.job(number).get("run")
        return {} if known is None else read(Path(known) / "status.json")

    def runs(self) -> list[Path]:
        return list((self.path / "runs" / "debug").iterdir())

    def log(self) -> str:
        """What the Slurm jobs of the sweep said."""
        return "".join(path.read_text() for path in self.sweep.glob(".submitit/*/*.out"))

    def table(self) -> tuple[int, dict[int, tuple[str, str]]]:
        """The exit code of task=status, and each job's state and the reason for it."""
        code, said = self.do("task=status")
        rows = [[cell.strip() for cell in line.split("│")] for line in said.splitlines()]
        return code, {int(r[1]): (r[3], r[7]) for r in rows if len(r) > 7 and r[1].isdigit()}


def read(path: Path | None) -> dict[str, Any]:
    try:
        return json.loads(path.read_text()) if path is not None else {}
    except (OSError, ValueError):
        return {}


def timeless(run: Path) -> dict[str, Any]:
    results = json.loads((run / "results.json").read_text())
    kept = {key: value for key, value in results.items() if key not in TIMES}
    kept["efficiency"] = {k: v for k, v in results["efficiency"].items() if k not in TIMES}
    return kept


def same(one: Any, other: Any) -> bool:
    """Whether two checkpoints are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def weights(run: Path) -> dict[str, Any]:
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=False)
    return {key: value for key, value in state.items() if key not in ("extra", "tracker_run_id")}


def stored_runs(place: Place) -> tuple[Any, list[Any], dict[str, list[tuple[int, float]]]]:
    """MLflow's parent, its children, and all metric rows of the first child."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place.path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("sseg-nase")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    rows = {}
    for name in children[0].data.metrics:
        history = client.get_metric_history(children[0].info.run_id, name)
        rows[name] = sorted((row.step, row.value) for row in history)
    return parent, children, rows


@pytest.fixture
def place(slurm: dict[str, str], tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / "place", slurm)
    yield place
    place.close()


@pytest.fixture(scope="module")
def unbroken(
    slurm: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, list[tuple[int, float]]]]:
    """The run that LONG describes, done in one stretch without Slurm, and its metric rows."""
    place = Place(tmp_path_factory.mktemp("unbroken"), slurm)
    code, said = place.do("-m", *LONG)
    assert code == 0, said
    return place.run(), stored_runs(place)[2]


def check_unbroken(place: Place, unbroken: tuple[Path, dict[str, list[tuple[int, float]]]]) -> None:
    """The run has the results, weights and metrics of the unbroken one, in one MLflow run."""
    reference, expected = unbroken
    assert timeless(place.run()) == timeless(reference)
    assert same(weights(place.run()), weights(reference))
    parent, children, rows = stored_runs(place)
    (child,) = children
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert rows.keys() == expected.keys()
    for name, found in rows.items():
        assert len({step for step, _ in found}) == len(found), f"{name} has a step twice"
        if name not in UNEVEN and not name.startswith("efficiency/latency"):
            assert found == expected[name], name


def test_same_results_as_without_a_launcher(slurm: dict[str, str], tmp_path: Path) -> None:
    sweep = ("-m", *TINY[1:], "ablation=A2,A7", "seed=0,1", "tracking=jsonl")
    plain, queued = Place(tmp_path / "plain", slurm), Place(tmp_path / "queued", slurm)
    for one, launcher in ((plain, ()), (queued, SLURM)):
        code, said = one.do(*sweep, *launcher)
        assert code == 0, said
        one.close()
    for number in range(4):
        assert timeless(plain.run(number)) == timeless(queued.run(number))
    assert len(queued.runs()) == 4
    assert queued.table() == (0, dict.fromkeys(range(4), ("FINISHED", "")))


def test_job_out_of_time_goes_on_in_the_next_stretch(place: Place, unbroken: Any) -> None:
    place.sabotage.order(0, "hold")  # as if a stretch of one minute were too short
    limits = ("sweep.timeout_min=1", "hydra.launcher.signal_delay_s=5")
    launcher = place.start("-m", *LONG, *SLURM, *limits)
    place.wait(lambda: place.job().get("attempts") == 2, SECONDS)
    place.sabotage.take_back(0)
    code, said = place.end(launcher)
    assert code == 0, said
    assert re.search(r" RUNNING.* QUEUED .*Slurm job \S+ is PENDING.* RUNNING", said, re.DOTALL)
    assert place.table() == (0, {0: ("FINISHED", "")})
    check_unbroken(place, unbroken)


def test_preempted_job_goes_on_afterwards(place: Place, unbroken: Any) -> None:
    place.sabotage.order(0, "hold")
    # submitit takes every preemption within the first minutes of a limit for the limit's end.
    launcher = place.start("-m", *LONG, *SLURM, "sweep.timeout_min=30")
    place.wait(lambda: place.sabotage.holds(0))
    job = place.slurm_job()
    place.slurm(
        "sbatch", "--partition=urgent", "--cpus-per-task=2", "--mem=100", "--output=/dev/null",
        "--wrap", "sleep 15",
    )  # fmt: skip
    place.wait(lambda: "this job is preempted" in place.log())
    place.wait(lambda: "JobState=PENDING" in place.slurm("scontrol", "show", "job", job))
    code, table = place.table()
    assert (code, table[0][0]) == (0, "QUEUED")
    assert f"Slurm job {job} is PENDING" in table[0][1]
    assert place.status()["status"] == "INTERRUPTED"
    place.sabotage.take_back(0)
    code, said = place.end(launcher)
    assert code == 0, said
    assert place.job()["attempts"] == 2
    check_unbroken(place, unbroken)


def test_cancelled_jobs_are_interrupted_and_go_on(place: Place) -> None:
    for seed in (0, 1):
        place.sabotage.order(seed, "hold")
    command = ("-m", *TINY, "seed=0,1,2", *SLURM)
    launcher = place.start(*command)
    place.wait(lambda: place.sabotage.holds(0, 1))
    place.slurm("scancel", place.slurm_job(2))  # nothing is known of it but that it is gone
    place.wait(lambda: place.slurm_job(2) not in place.queue())
    place.slurm("scancel", place.slurm_job(0))
    place.sabotage.take_back(0, 1)
    code, said = place.end(launcher)
    assert code == 1, said
    code, table = place.table()
    assert code == 1
    assert table[0] == ("INTERRUPTED", "interrupted (SIGTERM)")
    assert table[1] == ("FINISHED", "")
    assert table[2] == (
        "INTERRUPTED",
        f"Slurm job {place.slurm_job(2)} was cancelled before it began",
    )
    assert place.status(0)["status"] == "INTERRUPTED"
    assert (place.run(0) / "checkpoints" / "last.pt").exists()
    parent, children, _ = stored_runs(place)
    assert parent.info.status == "FAILED"
    assert sorted(child.info.status for child in children) == ["FINISHED", "KILLED"]

    finished = place.job(1)
    code, said = place.do(*command)
    assert code == 0, said
    assert "1 of 3 jobs are FINISHED already" in said
    assert place.job(1) == finished
    assert place.table() == (0, dict.fromkeys(range(3), ("FINISHED", "")))
    assert len(place.runs()) == 3  # the cancelled one has gone on where it was
    parent, children, _ = stored_runs(place)
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 4


def test_failed_jobs_have_their_reasons_and_run_again(place: Place) -> None:
    for seed, what in enumerate(("raise", "exit", "kill")):
        place.sabotage.order(seed, what)
    command = ("-m", *TINY, "seed=0,1,2,3", "tracking=jsonl", *SLURM)
    code, said = place.do(*command)
    assert code == 1, said
    expected = {
        0: ("FAILED", "RuntimeError: it broke"),
        1: (
            "FAILED",
            "its process ended without a word (exit code 9; Slurm says FAILED)",
        ),
        2: ("INTERRUPTED", "its process ended without a word (signal 9; Slurm says FAILED)"),
        3: ("FINISHED", ""),
    }
    assert place.table() == (1, expected)
    for number, (state, reason) in expected.items():
        assert place.status(number)["status"] == state
        assert place.status(number)["error"] == (reason or None)

    place.sabotage.take_back(0, 1, 2)
    finished = place.job(3)
    code, said = place.do(*command)
    assert code == 0, said
    assert place.job(3) == finished
    assert place.table() == (0, dict.fromkeys(range(4), ("FINISHED", "")))


def test_detached_sweep_ends_without_its_launcher(place: Place) -> None:
    place.sabotage.order(0, "hold")
    command = ("-m", *TINY, "seed=0,1", *SLURM)
    code, said = place.do(*command, "hydra.launcher.cpus_per_task=2", "sweep.detach=true")
    assert code == 0, said
    assert "task=status" in said
    place.wait(lambda: place.sabotage.holds(0))
    code, table = place.table()
    assert code == 0
    assert [table[0][0], table[1][0]] == ["RUNNING", "QUEUED"]
    assert "PENDING" in table[1][1]
    place.sabotage.take_back(0)
    place.wait(lambda: not place.queue(), SECONDS)
    assert (place.sweep / "report" / "report.md").exists()
    parent, children, _ = stored_runs(place)
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 3
    assert place.table() == (0, dict.fromkeys(range(2), ("FINISHED", "")))


def test_jobs_outlive_their_launcher_and_are_found_again(place: Place) -> None:
    place.sabotage.order(0, "hold")
    both = "hydra.launcher.cpus_per_task=2"
    command = ("-m", *TINY, "seed=0,1", "tracking=jsonl", *SLURM, both)
    launcher = place.start(*command)
    place.wait(lambda: place.sabotage.holds(0))
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.communicate()
    jobs = [place.slurm_job(number) for number in (0, 1)]
    again = place.start(*command)
    assert again.stdout is not None
    while "on their way already" not in again.stdout.readline():
        assert again.poll() is None
    time.sleep(2)  # until it waits
    assert sorted(place.queue()) == sorted(jobs)
    again.send_signal(signal.SIGINT)  # Ctrl-C is for the waiting only
    code, said = place.end(again)
    assert code == 130, said
    assert f"stays in Slurm as job {jobs[0]}" in said
    assert sorted(place.queue()) == sorted(jobs)
    again = place.start(*command)
    assert again.stdout is not None
    while "2 of 2 jobs are on their way already" not in again.stdout.readline():
        assert again.poll() is None
    place.sabotage.take_back(0)
    code, said = place.end(again)
    assert code == 0, said
    assert [place.slurm_job(number) for number in (0, 1)] == jobs
    assert [place.job(number)["attempts"] for number in (0, 1)] == [1, 1]
    assert (place.sweep / "report" / "report.md").exists()


def test_queued_job_runs_the_config_of_its_submission(place: Place) -> None:
    for folder in (PACKAGE, PACKAGE.parent / "conf"):
        shutil.copytree(folder, place.path / folder.name)
    place.environment["PYTHONPATH"] += os.pathsep + str(place.path)
    blocker = place.slurm(
        "sbatch", "--parsable", "--cpus-per-task=2", "--mem=100", "--output=/dev/null",
        "--wrap", "sleep 600",
    )  # fmt: skip
    code, said = place.do("-m", *TINY, "seed=0", "tracking=jsonl", *SLURM, "sweep.detach=true")
    assert code == 0, said
    tiny = place.path / "conf" / "debug" / "tiny.yaml"
    tiny.write_text(tiny.read_text().replace("epochs: 6", "epochs: 2"))
    errors = place.path / "sseg_nase" / "errors.py"
    errors.write_text(errors.read_text() + "\n")
    assert place.slurm_job() in place.queue()
    place.slurm("scancel", blocker.strip())
    place.wait(lambda: place.status().get("status") == "FINISHED")
    assert weights(place.run())["epoch"] == 6
    assert "the code has changed" in place.log()
    assert "conf/debug/tiny.yaml, sseg_nase/errors.py" in place.log()
