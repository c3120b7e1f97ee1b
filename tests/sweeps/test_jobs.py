"""Decisions about single jobs: what is attempted, what stops a sweep, which runs are taken over."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from test_plan import made

from sseg_nase import run as running
from sseg_nase.config.commands import override
from sseg_nase.config.compose import load
from sseg_nase.directory import RunDirectory, status_of
from sseg_nase.errors import FAILURE, MISTAKE, UserError
from sseg_nase.run import run
from sseg_nase.stages.identity import identity
from sseg_nase.stages.starting import images_of
from sseg_nase.sweeps import job as jobs
from sseg_nase.sweeps import launch
from sseg_nase.sweeps.folder import JobFolder, SweepFolder
from sseg_nase.sweeps.isolation import Ending
from sseg_nase.sweeps.seen import GONE, look
from sseg_nase.tracking import Tracker
from sseg_nase.tracking.sink import FAILED, FINISHED, INTERRUPTED, Sink
from sseg_nase.tracking.sweeps import KnownRun


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    return made(tmp_path / "runs", "seed=0,1", "tracking=jsonl")


def run_of(job: JobFolder, status: str) -> RunDirectory:
    place = RunDirectory.create(job.config, job.overrides)
    place.write_status(status)
    place.release()
    return place


def settings(sweep: SweepFolder, **changed: Any) -> None:
    sweep.begin_launch(dataclasses.replace(sweep.settings, **changed), None)


@pytest.fixture
def exitcode() -> int:
    """Of every attempt."""
    return MISTAKE


@pytest.fixture
def attempts(exitcode: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The jobs that were attempted, all in vain."""
    made: list[int] = []

    def attempt(sweep: SweepFolder, job: JobFolder, launcher: str) -> None:
        made.append(job.number)
        jobs._begin(job)
        jobs._end(job, FAILED, "it failed", exitcode)

    monkeypatch.setattr(jobs, "_apart", attempt)
    monkeypatch.setattr(jobs, "finish_if_last", lambda *arguments: None)
    return made


def test_a_finished_job_is_not_run_again(sweep: SweepFolder, attempts: list[int]) -> None:
    sweep.jobs[0].note(run=str(run_of(sweep.jobs[0], FINISHED).path))
    jobs.perform(sweep.path, 0, "basic")
    assert attempts == []
    sweep.jobs[1].note(run=str(run_of(sweep.jobs[1], INTERRUPTED).path))
    jobs.perform(sweep.path, 1, "basic")
    assert attempts == [1]


@pytest.mark.parametrize(("on_failure", "then"), [("stop", [0]), ("continue", [0, 1])])
def test_a_mistake_is_not_retried_and_stops_the_sweep_where_that_is_asked(
    on_failure: str, then: list[int], sweep: SweepFolder, attempts: list[int]
) -> None:
    settings(sweep, on_failure=on_failure, retries=3)
    for number in (0, 1):
        jobs.perform(sweep.path, number, "basic")
    assert list(dict.fromkeys(attempts)) == then
    assert len(attempts) == len(then)
    waiting = [one.state for one in look(SweepFolder(sweep.path))][1]
    assert waiting == ("WAITING" if on_failure == "stop" else FAILED)


@pytest.mark.parametrize("exitcode", [FAILURE])
def test_a_failure_of_ours_is_retried_and_then_stops_the_sweep(
    sweep: SweepFolder, attempts: list[int]
) -> None:
    settings(sweep, on_failure="stop", retries=2)
    for number in (0, 1):
        jobs.perform(sweep.path, number, "basic")
    assert attempts == [0, 0, 0]


def test_a_dead_process_of_this_host_is_noticed_at_once(sweep: SweepFolder) -> None:
    job = sweep.jobs[0]
    job.note(run=str(run_of(job, "RUNNING").path))
    job.note(host=socket.gethostname(), pid=os.getpid(), started=time.time())
    (one, _) = look(sweep)
    assert (one.state, one.detail) == (INTERRUPTED, GONE)
    assert job.run is not None
    assert status_of(job.run)["status"] == INTERRUPTED
    job.note(host="another", ended=None, status=None, reason=None)
    place = RunDirectory(job.run)
    place.write_status("RUNNING")
    assert look(sweep)[0].state == "RUNNING"  # its lock may not be seen from here


# -- adoption --------------------------------------------------------------------------------------


class Store:
    def __init__(self, *runs: KnownRun) -> None:
        self.runs = list(runs)

    def known(self, fingerprint: str) -> list[KnownRun]:
        return self.runs


@pytest.mark.parametrize(
    ("in_store", "on_disk", "taken"),
    [
        (FINISHED, FINISHED, True),
        (FINISHED, FAILED, False),  # MLflow's word is not enough
        (FINISHED, "RUNNING", False),
        (FAILED, FINISHED, False),
        ("RUNNING", INTERRUPTED, True),  # it is resumed
        (FAILED, FAILED, False),
    ],
)
def test_a_run_is_taken_over_by_what_its_status_json_says(
    in_store: str, on_disk: str, taken: bool, sweep: SweepFolder
) -> None:
    job, said = sweep.jobs[0], list[str]()
    place = run_of(job, on_disk).path
    known = KnownRun("id", in_store, place, None)
    launch._adopt(job, Store(known), launch._Images(), said.append)  # type: ignore[arg-type]
    assert (job.run == place) is taken
    assert len(said) == taken


def test_a_run_whose_folder_is_gone_or_held_is_not_taken_over(
    sweep: SweepFolder, tmp_path: Path
) -> None:
    job = sweep.jobs[0]
    gone = KnownRun("id", FINISHED, tmp_path / "gone", None)
    place = RunDirectory.create(job.config, job.overrides)
    place.write_status(INTERRUPTED)
    held = KnownRun("id", INTERRUPTED, place.path, None)
    launch._adopt(job, Store(gone, held), launch._Images(), print)  # type: ignore[arg-type]
    assert job.run is None
    place.release()
    launch._adopt(job, Store(gone, held), launch._Images(), print)  # type: ignore[arg-type]
    assert job.run == place.path


# -- what was not delivered ------------------------------------------------------------------------


class Slow(Sink):
    """Has delivered everything once it is closed, or never."""

    def __init__(self, *, ever: bool) -> None:
        self.ever, self.closed = ever, False

    @property
    def delivered(self) -> bool:
        return self.closed and self.ever

    def close(self, status: str, error: str | None = None) -> None:
        self.closed = True


@pytest.mark.parametrize("ever", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_what_was_not_delivered_stays_undelivered(
    ever: bool, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "build_tracker", lambda tracking: Tracker([Slow(ever=ever)]))
    overrides = ["debug=tiny", "hardware=cpu", "ablation=A1", "evaluation.episodes=2"]
    overrides += ["report.at_end=false"]
    if fails:
        monkeypatch.setattr(running, "write_episodes", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(load(overrides), overrides)
        (directory,) = Path("runs/debug").iterdir()
    else:
        directory = run(load(overrides), overrides)
    said = json.loads((directory / "status.json").read_text())
    assert said["status"] == (FAILED if fails else FINISHED)
    assert said.get("undelivered", False) is not ever


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_labelled_images_of_all_fine_tunings_add_up() -> None:
    overrides = [
        "debug=tiny", "hardware=cpu", "tracking=jsonl", "ablation=A1", "report.at_end=false",
        "finetune=prototypical", "finetune.ways=3", "finetune.shots=1", "finetune.queries=2",
        "finetune.epochs=1", "finetune.episodes_per_epoch=4", "finetune.validation_episodes=2",
        "evaluation.episodes=2", "evaluation.shots=[1]", "evaluation.untrained_reference=false",
    ]  # fmt: skip
    first = run(load(overrides), overrides)
    more = [*overrides, f"finetune.start={first}", "finetune.epochs=2"]
    second = run(load(more), more)
    seen = [json.loads((d / "results.json").read_text())["images_seen"] for d in (first, second)]
    assert seen[0]["real_labeled"] == 4 * 3 * (1 + 2)
    assert seen[1]["real_labeled"] == 3 * seen[0]["real_labeled"]


def test_a_finished_job_whose_images_were_others_is_not_skipped(sweep: SweepFolder) -> None:
    job, looked = sweep.jobs[0], launch._Images()
    place = run_of(job, FINISHED).path
    now = identity(images_of(job.config, job.config.dataset, "val"))
    (place / "data.json").write_text(json.dumps({"images": {"digits/val": now}}))
    known = KnownRun("id", FINISHED, place, None)
    launch._adopt(job, Store(known), looked, print)  # type: ignore[arg-type]
    assert job.run == place
    launch._check_images(job, looked)
    assert len(looked.known) == 1  # the second look needed no images
    others = {**now, "identity": "other", "count": 7}
    (place / "data.json").write_text(json.dumps({"images": {"digits/val": others}}))
    with pytest.raises(UserError, match=r"job 0 .*digits/val: 7 images then, 896 now.*\n.*rerun"):
        launch._check_images(job, looked)
    job.forget()
    launch._adopt(job, Store(known), looked, print)  # type: ignore[arg-type]
    assert job.run is None
    job.note(run=str(place))
    with pytest.raises(UserError, match="its images were"):  # a launch looks, too
        launch._to_do(sweep, False, Store(), print)  # type: ignore[arg-type]


def test_a_finished_run_that_cannot_be_compared_is_not_taken_in_silence(
    sweep: SweepFolder,
) -> None:
    """Whatever else in its config.yaml does not fit this version: the job's own config does."""
    job, said = sweep.jobs[0], list[str]()
    place = run_of(job, FINISHED).path
    job.note(run=str(place))
    assert launch._to_do(sweep, False, Store(), said.append) == [1]  # type: ignore[arg-type]
    assert "job 0: whether the images are those of today is not known" in said[0]
    now = identity(images_of(job.config, job.config.dataset, "val"))
    others = {**now, "identity": "other", "count": 7}
    (place / "data.json").write_text(json.dumps({"images": {"digits/val": others}}))
    older = (place / "config.yaml").read_text().replace("\nseed:", "\nold_key: 1\nseed:")
    (place / "config.yaml").write_text(older)
    with pytest.raises(UserError, match="7 images then, 896 now"):
        launch._to_do(sweep, False, Store(), print)  # type: ignore[arg-type]
    (place / "data.json").write_text(json.dumps({"images": {"gone/val": others}}))
    said.clear()
    assert launch._to_do(sweep, False, Store(), said.append) == [1]  # type: ignore[arg-type]
    assert "is not known: they cannot be read" in said[0]


def test_a_sweep_that_is_refused_is_not_touched(
    sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = run_of(sweep.jobs[0], FINISHED).path
    sweep.jobs[0].note(run=str(place))
    sweep.end(FINISHED)
    told = {"images": {}, "drawn": ["BASIC"], "drawing": 0}
    (place / "data.json").write_text(json.dumps(told))
    monkeypatch.setattr(launch, "begin_parent", lambda *arguments: pytest.fail("it was begun"))
    with pytest.raises(UserError, match="drawn by version 0 of the curriculum"):
        launch.launch([override("sweep.dir", sweep.path)], lambda overrides: None, print)
    assert sweep.ended


def test_a_job_goes_on_with_its_run_and_as_many_threads(sweep: SweepFolder) -> None:
    """However many cores there are on the machine where it is resumed."""
    job = sweep.jobs[0]
    new = jobs._to_run(sweep, job)
    assert (new.resume, new.hardware.threads) == (None, sweep.threads)
    begun = dataclasses.replace(
        job.config, hardware=dataclasses.replace(job.config.hardware, threads=sweep.threads + 3)
    )
    place = RunDirectory.create(begun, job.overrides)
    place.release()
    job.note(run=str(place.path))
    resumed = jobs._to_run(sweep, job)
    assert (resumed.resume, resumed.hardware.threads) == (str(place.path), sweep.threads + 3)


def test_runs_are_found_beside_a_sweep_that_was_moved_or_copied(
    tmp_path: Path, sweep: SweepFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    job = sweep.jobs[0]
    place = run_of(job, FINISHED).path
    job.note(run=str(place), started=1.0, ended=2.0, status=FINISHED)
    name = place.relative_to(tmp_path / "runs")
    shutil.copytree(tmp_path / "runs", tmp_path / "copy")
    copied = SweepFolder(tmp_path / "copy" / "sweeps" / sweep.name)
    assert copied.jobs[0].run == tmp_path / "copy" / name  # not that of the original
    assert sweep.jobs[0].run == place
    (tmp_path / "runs").rename(tmp_path / "moved")
    moved = SweepFolder(tmp_path / "moved" / "sweeps" / sweep.name)
    assert look(moved)[0].state == FINISHED
    assert launch._to_do(moved, False, Store(), print) == [1]  # type: ignore[arg-type]
    new = jobs._to_run(moved, moved.jobs[1])
    assert new.paths.output_dir == str(tmp_path / "moved")


def test_runs_that_are_gone_are_said_and_not_finished(
    sweep: SweepFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    job, said = sweep.jobs[0], list[str]()
    place = run_of(job, FINISHED).path
    job.note(run=str(place), started=1.0, ended=2.0, status=FINISHED)
    shutil.rmtree(place)
    (one, _) = look(sweep)
    assert (one.state, one.detail) == (INTERRUPTED, f"its run {place} is not there any more")
    assert launch._to_do(sweep, False, Store(), said.append) == [0, 1]  # type: ignore[arg-type]
    assert said == [f"job 0 runs anew: its run {place} is not there any more"]
    launch.rehearse("", (), sweep, rerun=False)
    assert f"would run anew: its run {place}" in capsys.readouterr().out


def test_a_finished_run_whose_process_ended_badly_says_so(sweep: SweepFolder) -> None:
    job = sweep.jobs[0]
    job.note(run=str(run_of(job, FINISHED).path))
    jobs._conclude(sweep, job, Ending(0, timed_out=False), None)
    assert "reason" not in job.state()
    jobs._conclude(sweep, job, Ending(-11, timed_out=False), None)
    assert job.state()["status"] == FINISHED
    assert "its process ended" in job.state()["reason"]
