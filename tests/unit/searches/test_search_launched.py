"""Candidates through Hydra's launchers; a stand-in hands them over, but for one real joblib."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import sseg_nase
from sseg_nase.config.compose import continued, load, spelled_out
from sseg_nase.errors import DONE, UserError
from sseg_nase.run import run
from sseg_nase.search import Scored
from sseg_nase.searches import launched
from sseg_nase.searches.launched import Launched, Launcher
from sseg_nase.searches.task import perform_search
from sseg_nase.sweeps.folder import JobFolder, SweepFolder
from sseg_nase.sweeps.launch import launch
from tests.support.small_search import CHOICES, QUIET
from tests.unit.searches.test_search_jobs import finish, log_of

LAUNCHER = Launcher("joblib", ["hydra/launcher=joblib"])


class Process:
    """Stands in for the process of a launcher."""

    def __init__(self, code: int | None = 0) -> None:
        self.code = code

    def poll(self) -> int | None:
        return self.code

    def wait(self) -> int | None:
        return self.code

    def kill(self) -> None:
        self.code = -9


class HandedOver:
    """Stands in for `hand_over`: performs the jobs and remembers which came together."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.does: Callable[[JobFolder], None] = finish

    def __call__(
        self, sweep: SweepFolder, numbers: Sequence[int], hydras: Sequence[str], *_: Any
    ) -> Process:
        assert list(hydras) == LAUNCHER.overrides
        self.batches.append(list(numbers))
        for number in numbers:
            self.does(SweepFolder(sweep.path).jobs[number])
        return Process()


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> HandedOver:
    stand_in = HandedOver()
    monkeypatch.setattr(launched, "hand_over", stand_in)
    monkeypatch.setattr(launched, "SECONDS_BETWEEN_POLLS", {"joblib": 0.02, "submitit_slurm": 0.02})
    return stand_in


def begin(*given: str, launcher: Launcher = LAUNCHER) -> Path:
    overrides = spelled_out(given)
    task = partial(perform_search, overrides=overrides, launcher=launcher)
    return run(load(overrides), overrides, task=task)


GIVEN = ("task=search", CHOICES, *QUIET, "search.slots=2", "search.at_once=2")


def test_what_is_started_together_is_handed_over_together(handed: HandedOver) -> None:
    path = begin(*GIVEN, "search.budget.candidates=4")
    assert handed.batches == [[0, 1], [2, 3]]
    assert [r.scores["accuracy"] for r in log_of(path).told] == [60.0] * 4
    assert not (path / "ended").exists()


def test_images_that_are_elsewhere_are_not_looked_for_here(
    handed: HandedOver, tmp_path: Path
) -> None:
    given = (*GIVEN, "dataset=cifar_fs", f"paths.data_dir={tmp_path}", "search.budget.candidates=2")
    path = begin(*given, launcher=Launcher("submitit_slurm", LAUNCHER.overrides))
    assert len(log_of(path).usable()) == 2
    with pytest.raises(UserError, match="dataset=cifar_fs was not found"):
        begin(*given)


def test_a_launcher_that_starts_nothing_is_told(handed: HandedOver) -> None:
    def silent(job: JobFolder) -> None:
        if job.number == 1:
            (job.path.parents[1] / "launcher.log").write_text("sbatch: no such partition\n")
        else:
            finish(job)

    handed.does = silent
    result = log_of(begin(*GIVEN, "search.budget.candidates=2")).result(1)
    assert result is not None
    assert (
        result.error == "hydra/launcher=joblib has not started its job: sbatch: no such partition"
    )


def test_after_a_kill_jobs_are_read_waited_for_and_gone_on_with(handed: HandedOver) -> None:
    """One has finished, one is at work, one was interrupted, one never began."""
    given = [o for o in GIVEN if "at_once" not in o and "slots" not in o]
    given += ["search.slots=4", "search.at_once=4", "search.budget.candidates=4"]
    path = begin(*given)
    lines = (path / "candidates.jsonl").read_text().splitlines(keepends=True)
    (path / "candidates.jsonl").write_text("".join(lines[:2]))  # the header and the ask
    (path / "status.json").write_text('{"status": "RUNNING"}')
    jobs = SweepFolder(path).jobs
    _, at_work, interrupted, never = jobs
    run_of = {job.number: job.run for job in jobs}
    for job in (at_work, interrupted):
        assert job.run is not None
        (job.run / "status.json").write_text('{"status": "INTERRUPTED"}')
        job.note(status="INTERRUPTED", reason="killed")
    never.forget()
    at_work.note(status=None, ended=None)
    lock = FileLock(at_work.path / ".lock", thread_local=False)
    lock.acquire()

    def end(job: JobFolder) -> None:
        finish(job)
        if lock.is_locked:  # what was at work stops, too, with a checkpoint
            at_work.note(status="INTERRUPTED", ended=3.0)
            lock.release()

    handed.batches.clear()
    handed.does = end
    overrides = continued([f"resume={path}"])
    begin(*overrides, f"resume={path}")
    assert handed.batches == [[2, 3], [1]]
    assert [r.error for r in log_of(path).told] == [None] * 4
    assert SweepFolder(path).jobs[0].run == run_of[0]


@pytest.mark.parametrize(("name", "stopped"), [("joblib", True), ("submitit_slurm", False)])
def test_an_interrupted_search_stops_its_jobs_but_not_those_in_slurm(
    name: str, stopped: bool, handed: HandedOver, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: list[Process] = []

    def interrupt(self: Launched) -> Scored:
        processes.append(Process(code=None))  # it does not end by itself
        self._processes[processes[-1]] = [0]  # type: ignore[index]
        raise KeyboardInterrupt

    monkeypatch.setattr(Launched, "result", interrupt)
    monkeypatch.setattr(launched, "SECONDS_TO_END", 0.1)
    with pytest.raises(KeyboardInterrupt) as caught:
        begin(*GIVEN, launcher=Launcher(name, LAUNCHER.overrides))
    path = Path(caught.value.run_dir)  # type: ignore[attr-defined]
    assert (SweepFolder(path).stopped is not None) == stopped
    assert processes[0].code == -9


@pytest.mark.slow
def test_the_process_that_hands_over_launches_these_jobs_alone(handed: HandedOver) -> None:
    path = begin(*GIVEN, "search.budget.candidates=2")
    given: list[str] = []
    code = launch(
        ["hydra/launcher=joblib", f"sweep.dir={path}", "sweep.parallel=2", "sweep.job=0,1"],
        lambda overrides: given.extend(overrides),
        print,
    )
    assert code == DONE
    assert str(path) in given[1]
    assert "sweep.job=0,1" in given
    assert not (path / "report").exists()  # the search writes its own
    assert not (path / "ended").exists()


@pytest.mark.slow  # five processes that import torch
@pytest.mark.parametrize("name", ["joblib", "submitit_local"])
def test_a_search_through_a_launcher_of_hydra(name: str, tmp_path: Path) -> None:
    root = Path(sseg_nase.__file__).parents[1]
    tiny = ["debug=tiny", "pretrain.epochs=1", "evaluation.episodes=20", "evolution=none"]
    given = [*GIVEN, *tiny, "search.budget.candidates=3", f"hydra/launcher={name}"]
    done = subprocess.run(
        [sys.executable, "-m", "sseg_nase", *given],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "runs" / "searches").iterdir()
    log = log_of(path)
    assert [r.error for r in log.told] == [None] * 3
    assert len({r.run for r in log.told}) == 3
    for job in SweepFolder(path).jobs:
        assert job.state()["status"] == "FINISHED"
        assert job.state()["attempts"] == 1
    status = json.loads((path / "status.json").read_text())
    assert status["status"] == "FINISHED"
