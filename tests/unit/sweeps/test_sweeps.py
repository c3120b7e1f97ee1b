"""Sweeps as their users run them: in processes, with jobs that go wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

import sseg_nase
from sseg_nase.rundir.status import status_of
from sseg_nase.sweeps.folder import SweepFolder, sweeps_in
from tests.support.sabotage import Sabotage, hear_interrupts

pytestmark = pytest.mark.filterwarnings("ignore")  # what MLflow stands on is full of them
ROOT = Path(sseg_nase.__file__).parents[1]
QUICK = ("debug=tiny", "evaluation.untrained_reference=false")
LAUNCHERS = ("basic", "joblib", "submitit_local")
Started = Callable[..., "subprocess.Popen[str]"]


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    paths = [extra.get("PYTHONPATH", ""), str(ROOT)]
    joined = os.pathsep.join(path for path in paths if path)
    return {**os.environ, **extra, "PYTHONPATH": joined}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Started]:
    """Start the program in a folder of its own; what is left of it in the end is ended."""
    processes: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, extra: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "sseg_nase", *arguments],
            cwd=tmp_path,
            env=environment(extra or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=hear_interrupts,
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def ran(start: Started) -> Callable[..., tuple[int, str]]:
    """Run the program to its end; return its exit code and what it said."""

    def run(*arguments: str, extra: Mapping[str, str] | None = None) -> tuple[int, str]:
        process = start(*arguments, extra=extra)
        said, _ = process.communicate(timeout=300)
        return process.returncode, said

    return run


def the_sweep() -> SweepFolder:
    (sweep,) = sweeps_in(Path("runs"))
    return sweep


def states(sweep: SweepFolder) -> list[str]:
    return [str(job.state().get("status", "WAITING")) for job in sweep.jobs]


def runs_of(sweep: SweepFolder) -> list[Path]:
    found = [job.run for job in sweep.jobs]
    assert None not in found
    return [run for run in found if run is not None]


def stored(sweep: SweepFolder) -> tuple[MlflowClient, Any, list[Any]]:
    """The parent run and its children, oldest first, as MLflow has them."""
    client = MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    parent = client.get_run(sweep.plan["parent_run_id"])
    children = client.search_runs(
        [parent.info.experiment_id],
        f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'",
        order_by=["attributes.start_time ASC"],
    )
    return client, parent, list(children)


def comparable(run: Path) -> dict[str, Any]:
    """results.json but for its times."""
    results: dict[str, Any] = json.loads((run / "results.json").read_text())
    del results["seconds"]
    for key in ("latency_ms_b1", "latency_ms_b64"):
        del results["efficiency"][key]
    return results


@pytest.mark.slow
def test_a_sweep_from_start_to_report(ran: Callable[..., tuple[int, str]]) -> None:
    code, said = ran("-m", "ablation=A1,A2", "seed=0,1", *QUICK)
    assert code == 0, said
    sweep = the_sweep()
    assert states(sweep) == ["FINISHED"] * 4
    labels = [f"ablation={a} seed={s}" for a in ("A1", "A2") for s in (0, 1)]
    assert [job.label for job in sweep.jobs] == labels
    _, parent, children = stored(sweep)
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "ablation=A1,A2 seed=0,1"
    assert [child.info.run_name for child in children] == labels
    assert {child.data.tags["sweep"] for child in children} == {sweep.name}
    assert {child.info.status for child in children} == {"FINISHED"}
    assert "| ablation=A2 |" in parent.data.tags["mlflow.note.content"]
    assert {path.name for path in sweep.report.iterdir()} == {
        "runs.csv", "summary.csv", "comparisons.csv", "report.md", "report.html", "report.json",
        "results.tex", "ablation.tex", "preview.tex",
    }  # fmt: skip
    # The same command again finds nothing to do, and in status and report nothing changes.
    before = [status_of(run) for run in runs_of(sweep)]
    code, said = ran("-m", "ablation=A1,A2", "seed=0,1", *QUICK)
    assert (code, "4 of 4 jobs are FINISHED already" in said) == (0, True)
    assert [status_of(run) for run in runs_of(the_sweep())] == before
    code, said = ran("task=status")
    assert code == 0
    assert all(label in said for label in labels)
    assert "4 FINISHED" in said
    code, said = ran("task=report", f"sweep={sweep.path}")
    assert code == 0
    # Another sweep takes over what the store knows as finished, and runs the rest.
    code, said = ran("-m", "ablation=A1", "seed=0,1,2", *QUICK)
    assert code == 0
    assert said.count("is FINISHED in") == 2
    assert len(list(Path("runs/debug").iterdir())) == 5
    # ... but not when it is to run again.
    code, said = ran("-m", "ablation=A1", "seed=0", "sweep.rerun=true", *QUICK)
    assert code == 0
    assert len(list(Path("runs/debug").iterdir())) == 6
    assert len(sweeps_in(Path("runs"))) == 3


def sabotaged(launcher: str, ran: Callable[..., tuple[int, str]], folder: Path) -> None:
    """One job raises, one exits, one is killed, one is out of time: the others finish."""
    sabotage = Sabotage(folder)
    for seed, what in {1: "raise", 2: "exit", 3: "kill", 4: "hold"}.items():
        sabotage.order(seed, what)
    command = ["-m", "ablation=A2", "seed=0,1,2,3,4,5", *QUICK, f"hydra/launcher={launcher}"]
    code, said = ran(*command, "sweep.timeout_min=0.5", extra=sabotage.environment)
    sweep = the_sweep()
    assert (code, states(sweep)) == (
        1, ["FINISHED", "FAILED", "FAILED", "INTERRUPTED", "INTERRUPTED", "FINISHED"],
    ), said  # fmt: skip
    code, said = ran("task=status")
    assert code == 1
    for reason in (
        "RuntimeError: it broke",
        "its process ended without a word (exit code 9)",
        "its process ended without a word (killed by SIGKILL)",
        "out of time (sweep.timeout_min=0.5)",
    ):
        assert reason in said
    first = runs_of(sweep)
    ends = ["FINISHED", "FAILED", "FAILED", "INTERRUPTED", "INTERRUPTED", "FINISHED"]
    assert [status_of(run)["status"] for run in first] == ends
    _, parent, children = stored(sweep)
    theirs = {"FINISHED": "FINISHED", "FAILED": "FAILED", "INTERRUPTED": "KILLED"}
    by_name = {child.info.run_name: child.info.status for child in children}
    assert [by_name[f"seed={seed}"] for seed in range(6)] == [theirs[end] for end in ends]
    assert parent.info.status == "FAILED"

    sabotage.take_back(*range(6))
    ids = {child.info.run_id for child in children}
    attempts = [job.state()["attempts"] for job in sweep.jobs]
    code, said = ran(*command, extra=sabotage.environment)
    assert code == 0, said
    assert runs_of(sweep) == first
    again = [job.state()["attempts"] for job in sweep.jobs]
    assert [b - a for a, b in zip(attempts, again, strict=True)] == [0, 1, 1, 1, 1, 0]
    _, parent, children = stored(sweep)
    assert {child.info.run_id for child in children} == ids
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}


@pytest.mark.slow
def test_jobs_that_go_wrong_stop_no_other(
    ran: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    sabotaged("basic", ran, tmp_path / "sabotage")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_that_go_wrong_stop_no_other_side_by_side(
    launcher: str, ran: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    sabotaged(launcher, ran, tmp_path / "sabotage")


@pytest.mark.slow
def test_every_launcher_gives_the_same_results(
    ran: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    ablations = ",".join(f"A{number}" for number in range(1, 8))
    found = {}
    for launcher in LAUNCHERS:
        output = f"paths.output_dir={launcher}"
        store = f"tracking.uri=sqlite:///{launcher}.db"
        code, said = ran(
            "-m", f"ablation={ablations}", "seed=0,1", "debug=tiny", output, store,
            f"hydra/launcher={launcher}", "sweep.parallel=2",
        )  # fmt: skip
        assert code == 0, said
        (sweep,) = sweeps_in(Path(launcher))
        runs = zip(sweep.jobs, runs_of(sweep), strict=True)
        found[launcher] = {job.label: comparable(run) for job, run in runs}
    assert len(found["basic"]) == 14
    for launcher in LAUNCHERS[1:]:
        assert found[launcher] == found["basic"], launcher


def eight(commands: Sequence[Sequence[str]], start: Started) -> None:
    """Eight runs at once on a store that does not exist yet: all are there, and it is whole."""
    processes = [start(*command) for command in commands]
    for process in processes:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    client = MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    children = [run for run in runs if run.data.tags.get("task") == "pipeline"]
    assert len(children) == 8
    assert {run.info.status for run in runs} == {"FINISHED"}
    parents = {run.info.run_id for run in runs} - {run.info.run_id for run in children}
    pointed = {run.data.tags.get("mlflow.parentRunId") for run in children}
    assert pointed == (parents or {None})
    assert len(parents) <= 1
    for run in children:
        assert run.data.metrics["efficiency/params"] > 0


SINGLE = [["ablation=A1", f"seed={seed}", *QUICK] for seed in range(8)]
JOBLIB = [
    ["-m", "ablation=A1", "seed=0,1,2,3,4,5,6,7", *QUICK, "hydra/launcher=joblib",
     "hydra.launcher.n_jobs=8"],
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("commands", [SINGLE, JOBLIB], ids=["shells", "joblib"])
@pytest.mark.parametrize("turn", range(5))
def test_eight_jobs_at_once_on_a_fresh_store(
    turn: int, commands: list[list[str]], start: Started
) -> None:
    eight(commands, start)


def wait_until(holds: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def trains() -> bool:
    """Whether a job is in its second epoch."""
    return any('"epoch"' in path.read_text() for path in Path("runs").glob("*/*/events.jsonl"))


LONG = ("-m", "ablation=A2", "seed=0,1", *QUICK, "pretrain.epochs=5000")


@pytest.mark.parametrize(
    "launcher",
    [
        "basic",
        "joblib",
        "submitit_local",
    ],
)
@pytest.mark.slow
def test_an_interruption_leaves_checkpoints(launcher: str, start: Started) -> None:
    process = start(*LONG, f"hydra/launcher={launcher}", "sweep.parallel=1")
    wait_until(trains)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 130, said
    sweep = the_sweep()
    begun = [job for job in sweep.jobs if job.run is not None]
    assert len(begun) == 1
    (job,) = begun
    assert job.run is not None
    assert status_of(job.run)["status"] == "INTERRUPTED"
    assert (job.run / "checkpoints" / "last.pt").exists()
    assert not any(job.alive() for job in sweep.jobs)
    assert "the same command goes on" in said


@pytest.mark.slow
def test_jobs_that_were_starting_when_the_sweep_was_stopped_have_stopped(start: Started) -> None:
    process = start(*LONG, "hydra/launcher=joblib", "sweep.parallel=2")
    wait_until(
        lambda: any("starting" in job.state() for s in sweeps_in(Path("runs")) for job in s.jobs)
    )
    process.terminate()
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 130, said
    sweep = the_sweep()
    assert not any(job.alive() for job in sweep.jobs)
    assert set(states(sweep)) <= {"INTERRUPTED", "WAITING"}
    assert "left no word" not in said
    for job in sweep.jobs:
        assert job.run is None or status_of(job.run)["status"] == "INTERRUPTED"


@pytest.mark.slow
def test_a_killed_launcher_loses_nothing(
    start: Started, ran: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    sabotage = Sabotage(tmp_path / "sabotage")
    sabotage.order(0, "hold")
    command = ("-m", "ablation=A2", "seed=0,1", *QUICK)
    process = start(*command, extra=sabotage.environment)
    wait_until(lambda: Path("runs/debug").exists())
    (sweep,) = sweeps_in(Path("runs"))
    wait_until(lambda: sweep.jobs[0].run is not None and sweep.jobs[0].alive())
    code, said = ran(*command, extra=sabotage.environment)
    assert code == 2
    assert "it is being run by process" in said
    process.kill()
    process.wait()
    wait_until(lambda: not sweep.launched())
    # The job outlives its launcher. The next one leaves it alone, and waits for it.
    assert sweep.jobs[0].alive()
    second = start(*command, extra=sabotage.environment)
    wait_until(lambda: states(sweep)[1] == "FINISHED")
    assert second.poll() is None
    os.kill(sweep.jobs[0].state()["pid"], signal.SIGKILL)
    said, _ = second.communicate(timeout=300)
    assert second.returncode == 1
    assert "INTERRUPTED" in said
    assert "its process is gone and left no word" in said
    sabotage.take_back(*range(6))
    code, said = ran(*command, extra=sabotage.environment)
    assert code == 0, said
    assert sweep.jobs[1].state()["attempts"] == 1


@pytest.mark.slow
def test_a_detached_sweep_outlives_its_shell(
    start: Started, ran: Callable[..., tuple[int, str]]
) -> None:
    process = start("-m", "ablation=A1", "seed=0,1", *QUICK, "sweep.detach=true")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    sweep = the_sweep()
    assert f"task=status sweep={sweep.path}" in said
    wait_until(lambda: states(sweep) == ["FINISHED"] * 2)
    wait_until(lambda: not sweep.launched())
    assert (sweep.report / "report.md").exists()
    assert stored(sweep)[1].info.status == "FINISHED"


@pytest.mark.slow
def test_on_failure_stop_and_retries(ran: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    sabotage = Sabotage(tmp_path / "sabotage")
    sabotage.order(0, "raise")
    sweep_keys = ("sweep.retries=1", "sweep.on_failure=stop", "tracking=jsonl")
    command = ("-m", "ablation=A2", "seed=0,1", *QUICK)
    code, said = ran(*command, *sweep_keys, extra=sabotage.environment)
    assert code == 1
    sweep = the_sweep()
    assert states(sweep) == ["FAILED", "WAITING"]
    assert sweep.jobs[0].state()["attempts"] == 2
    assert "sweep.on_failure=stop" in said
    sabotage.take_back(*range(6))
    # `sweep=` goes on with the frozen jobs; what is swept need not be repeated.
    code, said = ran("-m", f"sweep={sweep.path}")
    assert (code, states(sweep)) == (0, ["FINISHED", "FINISHED"]), said


@pytest.mark.slow
def test_an_experiment_may_say_what_is_swept_and_where(
    ran: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "both.yaml").write_text(
        "# @package _global_\n"
        "defaults: [override /hydra/launcher: joblib]\n"
        "sweep: {retries: 3}\n"
        "hydra: {sweeper: {params: {seed: '0,1'}}}\n"
    )
    command = ["-m", "experiment=both", "ablation=A1", *QUICK, "tracking=jsonl"]
    code, said = ran("--config-dir", "mine", *command)
    assert code == 0, said
    sweep = the_sweep()
    assert [job.label for job in sweep.jobs] == ["seed=0", "seed=1"]
    assert states(sweep) == ["FINISHED", "FINISHED"]
    assert sweep.settings.retries == 3
    assert all(job.console.exists() for job in sweep.jobs)  # joblib's, not the terminal
    code, said = ran("--config-dir", "mine", "-m", f"sweep={sweep.path}", "sweep.rerun=true")
    assert code == 0, said
    assert [job.state()["attempts"] for job in sweep.jobs] == [1, 1]
    assert len(list(Path("runs/debug").iterdir())) == 4


@pytest.mark.slow
def test_mistakes_in_jobs_alone_end_with_2(ran: Callable[..., tuple[int, str]]) -> None:
    code, said = ran(
        "-m", "seed=0,1", "dataset=cifar_fs", "paths.data_dir=nowhere", "debug=tiny",
        "curriculum=natural", "sweep.retries=3",
    )  # fmt: skip
    assert code == 2, said
    assert states(the_sweep()) == ["FAILED", "FAILED"]
    assert [job.state()["attempts"] for job in the_sweep().jobs] == [1, 1]
    assert "nowhere" in said
