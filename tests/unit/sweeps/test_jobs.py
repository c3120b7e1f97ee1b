"""Decisions about single jobs: what is attempted, what stops a sweep, which runs are taken over."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sseg_nase import run as running
from sseg_nase.config.commands import override
from sseg_nase.config.compose import load
from sseg_nase.errors import FAILURE, MISTAKE, UserError
from sseg_nase.run import run
from sseg_nase.rundir.directory import RunDirectory
from sseg_nase.rundir.status import FAILED, FINISHED, INTERRUPTED, status_of
from sseg_nase.stages import results
from sseg_nase.stages.identity import identity
from sseg_nase.stages.setup import images_of
from sseg_nase.sweeps import job as jobs
from sseg_nase.sweeps import launch
from sseg_nase.sweeps.folder import JobFolder, SweepFolder
from sseg_nase.sweeps.isolation import Ending
from sseg_nase.sweeps.status import GONE, poll
from sseg_nase.tracking import Tracker
from sseg_nase.tracking.sink import Sink
from sseg_nase.tracking.sweeps import KnownRun
from tests.unit.sweeps.test_plan import made


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
    waiting = [one.state for one in poll(SweepFolder(sweep.path))][1]
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
    (one, _) = poll(sweep)
    assert (one.state, one.detail) == (INTERRUPTED, GONE)
    assert job.run is not None
    assert status_of(job.run)["status"] == INTERRUPTED
    job.note(host="another", ended=None, status=None, reason=None)
    place = RunDirectory(job.run)
    place.write_status("RUNNING")
    assert poll(sweep)[0].state == "RUNNING"  # its lock may not be seen from here


# -- one attempt -----------------------------------------------------------------------------------


def test_what_was_interrupted_is_not_retried(
    sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def attempt(sweep: SweepFolder, job: JobFolder, launcher: str) -> None:
        made.append(job.number)
        jobs._begin(job)
        jobs._end(job, INTERRUPTED, "it was killed", -9)

    monkeypatch.setattr(jobs, "_apart", attempt)
    monkeypatch.setattr(jobs, "finish_if_last", lambda *arguments: None)
    settings(sweep, retries=3, on_failure="stop")
    jobs.perform(sweep.path, 0, "basic")
    assert made == [0]
    assert SweepFolder(sweep.path).stopped is None


@pytest.mark.parametrize(
    ("launcher", "status", "raised"),
    [
        ("submitit_slurm", FAILED, True),
        ("submitit_slurm", INTERRUPTED, True),
        ("submitit_slurm", FINISHED, False),
        ("basic", FAILED, False),
    ],
)
def test_slurm_hears_of_what_went_wrong_and_the_sweep_is_looked_at(
    launcher: str,
    status: str,
    raised: bool,
    sweep: SweepFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[Path] = []
    monkeypatch.setattr(jobs, "finish_if_last", lambda sweep, *more: looked.append(sweep.path))
    monkeypatch.setattr(
        jobs, "_attempts", lambda sweep, job, launcher: jobs._end(job, status, "so", 1)
    )
    if raised:
        with pytest.raises(RuntimeError, match=r"job 1 \(seed=1\): so"):
            jobs.perform(sweep.path, 1, launcher)
    else:
        jobs.perform(sweep.path, 1, launcher)
    assert looked == [sweep.path]


def test_a_sweep_is_looked_at_also_where_its_job_was_interrupted(
    sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **more: Any) -> Ending:
        raise KeyboardInterrupt

    looked: list[Path] = []
    monkeypatch.setattr(jobs, "finish_if_last", lambda sweep, *more: looked.append(sweep.path))
    monkeypatch.setattr(jobs, "isolated", interrupted)
    settings(sweep)
    job = sweep.jobs[0]
    job.note(waiting="for a GPU")
    with pytest.raises(KeyboardInterrupt):
        jobs.perform(sweep.path, 0, "basic")
    assert looked == [sweep.path]
    state = job.state()
    assert (state["status"], state["exitcode"]) == (INTERRUPTED, 130)
    assert state["reason"] == "interrupted with the sweep"
    assert "waiting" not in state


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_what_a_process_gets(
    launcher: str, sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []

    def run(target: Any, arguments: Any, **more: Any) -> Ending:
        given.append({"arguments": arguments, **more, "state": job.state()})
        return Ending(FAILURE, timed_out=False)

    monkeypatch.setattr(jobs, "isolated", run)
    settings(sweep)
    job = sweep.jobs[1]
    job.queue("12_1")
    jobs._apart(sweep, job, launcher)
    (one,) = given
    assert one["arguments"] == (str(sweep.path), 1)
    assert one["console"] == (None if launcher == "basic" else job.console)
    assert one["seconds"] is None
    # Until the process itself says who it is, this one must not be taken for it.
    assert (one["state"]["starting"], one["state"]["pid"]) == (True, os.getpid())
    assert "starting" not in job.state()
    assert job.slurm_job is None  # it is no more in a queue of Slurm's


@pytest.mark.parametrize(
    ("exitcode", "timed_out", "status"),
    [
        (MISTAKE, False, FAILED),
        (FAILURE, False, FAILED),
        (130, False, INTERRUPTED),
        (-9, False, INTERRUPTED),
        (-11, False, FAILED),
        (130, True, INTERRUPTED),
    ],
)
@pytest.mark.parametrize("noted", [None, "what it said"])
@pytest.mark.parametrize("running", [True, False])
def test_how_a_job_ended_that_cannot_say_it_itself(
    exitcode: int,
    timed_out: bool,
    status: str,
    noted: str | None,
    running: bool,
    sweep: SweepFolder,
) -> None:
    job = sweep.jobs[0]
    if running:
        job.note(run=str(run_of(job, "RUNNING").path))
    job.note(reason=noted)
    ending = Ending(exitcode, timed_out)
    jobs._conclude(sweep, job, ending, "out of time" if timed_out else None)
    state = job.state()
    why = "out of time" if timed_out else noted or f"its process ended without a word ({ending})"
    assert (state["status"], state["reason"], state["exitcode"]) == (status, why, exitcode)
    if running:
        assert job.run is not None
        said = status_of(job.run)
        assert (said["status"], said["error"]) == (status, why)


def test_what_a_run_has_said_of_its_end_counts(sweep: SweepFolder) -> None:
    job = sweep.jobs[0]
    place = RunDirectory.create(job.config, job.overrides)
    place.write_status(FAILED, "out of memory")
    place.release()
    job.note(run=str(place.path), reason="another word")
    jobs._conclude(sweep, job, Ending(-9, timed_out=False), None)
    assert (job.state()["status"], job.state()["reason"]) == (FAILED, "out of memory")


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (None, 0, None),
        (UserError("a.b=1: no such thing"), MISTAKE, "a.b=1: no such thing"),
        (KeyboardInterrupt("interrupted (SIGTERM)"), 130, "interrupted (SIGTERM)"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("broken"), FAILURE, "ValueError: broken"),
    ],
)
def test_what_a_job_returns_and_notes(
    error: BaseException | None,
    code: int,
    reason: str | None,
    sweep: SweepFolder,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    given: list[Any] = []

    def fake(config: Any, overrides: Any, membership: Any) -> None:
        given.append(membership)
        membership.began(tmp_path / "its run")
        if error is not None:
            raise error

    monkeypatch.setattr(running, "run", fake)
    sweep.note(parent_run_id="the parent")
    sweep.jobs[1].note(starting=True, pid=1)
    assert jobs.run_job(str(sweep.path), 1) == code
    job, (membership,) = sweep.jobs[1], given
    assert "starting" not in job.state()
    assert job.state().get("reason") == reason
    assert job.run == tmp_path / "its run"
    assert job.state()["pid"] == os.getpid()
    assert (membership.sweep, membership.name) == (sweep.name, "seed=1")
    assert (membership.asked, membership.parent_run_id) == (job.fingerprint, "the parent")
    said = capfd.readouterr().err
    assert said.startswith("sseg-nase: job 1 (seed=1): ") == (error is not None)
    assert (reason or "").partition(" (")[0] in said
    assert ("Traceback" in said) == (code == FAILURE)


def test_code_that_has_changed_since_is_said(
    sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "changed_since", lambda code: [])
    assert list(jobs._code_notes(sweep)) == []
    monkeypatch.setattr(jobs, "changed_since", lambda code: ["a.py", "b.py", "c.py", "d.py"])
    (note,) = jobs._code_notes(sweep)
    assert "(a.py, b.py, c.py and 1 more)" in note


def test_only_a_training_is_gone_on_with(sweep: SweepFolder) -> None:
    job = sweep.jobs[0]
    place = run_of(job, INTERRUPTED)
    job.note(run=str(place.path))
    assert jobs._to_run(sweep, job).resume == str(place.path)
    (place.path / "config.yaml").unlink()  # it was stopped before there was anything of it
    assert jobs._to_run(sweep, job).resume is None
    (place.path / "config.yaml").write_text("")
    job.config = dataclasses.replace(job.config, task="evaluate")
    assert jobs._to_run(sweep, job).resume is None
    hardware = dataclasses.replace(job.config.hardware, threads=7)
    job.config = dataclasses.replace(job.config, hardware=hardware)
    assert jobs._to_run(sweep, job).hardware.threads == 7


@pytest.mark.parametrize(("accelerator", "name"), [("cpu", "auto"), ("auto", "cpu")])
def test_a_job_on_the_processor_waits_for_no_gpu(
    accelerator: str, name: str, sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def gpus(
        count: int, *, free_gb: float | None, visible: str | None, waiting: Any
    ) -> Iterator[dict[str, str]]:
        waiting("waiting for a GPU")
        asked.append((count, free_gb, visible))
        yield {"CUDA_VISIBLE_DEVICES": "GPU-a"}

    asked: list[Any] = []
    monkeypatch.setattr(jobs, "gpu_slot", gpus)
    sweep.begin_launch(dataclasses.replace(sweep.settings, gpu_free_gb=3.0), "1,2")
    job = sweep.jobs[0]
    plain = job.config
    hardware = dataclasses.replace(plain.hardware, accelerator=accelerator, name=name)
    job.config = dataclasses.replace(plain, hardware=hardware)
    with jobs._devices(sweep, job) as environment:
        assert environment == {}
    assert asked == []
    hardware = dataclasses.replace(plain.hardware, accelerator="auto", name="auto", devices=2)
    job.config = dataclasses.replace(plain, hardware=hardware)
    with jobs._devices(sweep, job) as environment:
        assert environment == {"CUDA_VISIBLE_DEVICES": "GPU-a"}
        assert job.state()["devices"] == "GPU-a"
        assert "waiting" not in job.state()
    assert asked == [(2, 3.0, "1,2")]


def test_jobs_that_are_all_started_at_once_wait_for_a_place(sweep: SweepFolder) -> None:
    job = sweep.jobs[0]
    job.note(started=1.0)
    with jobs._place(sweep, job, "joblib"):
        assert not (sweep.path / "places").exists()
        assert job.state() == {"started": 1.0}
    with jobs._place(sweep, job, "submitit_local"):
        assert (sweep.path / "places" / "0.lock").exists()
        assert job.state()["started"] > 1.0  # the wait is no part of its time
        assert "waiting" not in job.state()


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
        monkeypatch.setattr(results, "write_episodes", lambda *arguments: 1 / 0)
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


@pytest.mark.parametrize("status", [FINISHED, INTERRUPTED])
def test_a_run_of_which_only_the_status_is_left_is_not_taken_over(
    status: str, sweep: SweepFolder
) -> None:
    job = sweep.jobs[0]
    place = run_of(job, status).path
    (place / "config.yaml").unlink()
    launch._adopt(job, Store(KnownRun("id", status, place, None)), {}, print)  # type: ignore
    assert job.run is None


def recorded(images: dict[str, Any]) -> dict[str, Any]:
    """What data.json says of a run that was made with `images`."""
    return {"images": images, "roles": {}, "files": {}}


def test_a_finished_job_whose_images_were_others_is_not_skipped(sweep: SweepFolder) -> None:
    job, looked = sweep.jobs[0], launch._Images()
    place = run_of(job, FINISHED).path
    now = identity(images_of(job.config, job.config.dataset, "val"))
    (place / "data.json").write_text(json.dumps(recorded({"digits/val": now})))
    known = KnownRun("id", FINISHED, place, None)
    launch._adopt(job, Store(known), looked, print)  # type: ignore[arg-type]
    assert job.run == place
    launch._check_images(job, looked)
    assert len(looked.known) == 1  # the second look needed no images
    others = {**now, "identity": "other", "count": 7}
    (place / "data.json").write_text(json.dumps(recorded({"digits/val": others})))
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
    (place / "data.json").write_text(json.dumps(recorded({"digits/val": others})))
    older = (place / "config.yaml").read_text().replace("\nseed:", "\nold_key: 1\nseed:")
    (place / "config.yaml").write_text(older)
    with pytest.raises(UserError, match="7 images then, 896 now"):
        launch._to_do(sweep, False, Store(), print)  # type: ignore[arg-type]
    (place / "data.json").write_text(json.dumps(recorded({"gone/val": others})))
    said.clear()
    assert launch._to_do(sweep, False, Store(), said.append) == [1]  # type: ignore[arg-type]
    assert "is not known: they cannot be read" in said[0]
    (place / "data.json").write_text("{")
    said.clear()
    assert launch._to_do(sweep, False, Store(), said.append) == [1]  # type: ignore[arg-type]
    assert "data.json is damaged (it does not say which images there were)" in said[0]


def test_a_sweep_that_is_refused_is_not_touched(
    sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = run_of(sweep.jobs[0], FINISHED).path
    sweep.jobs[0].note(run=str(place))
    sweep.end(FINISHED)
    told = {**recorded({}), "drawn": ["BASIC"], "drawing": 0}
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
    assert poll(moved)[0].state == FINISHED
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
    (one, _) = poll(sweep)
    assert (one.state, one.detail) == (INTERRUPTED, f"its run {place} is not there any more")
    assert launch._to_do(sweep, False, Store(), said.append) == [0, 1]  # type: ignore[arg-type]
    assert said == [f"job 0 runs again: its run {place} is not there any more"]
    launch.rehearse("", (), sweep, rerun=False)
    assert f"would run again: its run {place}" in capsys.readouterr().out


def test_a_finished_run_whose_process_ended_badly_says_so(sweep: SweepFolder) -> None:
    job = sweep.jobs[0]
    job.note(run=str(run_of(job, FINISHED).path))
    jobs._conclude(sweep, job, Ending(0, timed_out=False), None)
    assert "reason" not in job.state()
    jobs._conclude(sweep, job, Ending(-11, timed_out=False), None)
    assert job.state()["status"] == FINISHED
    assert "its process ended" in job.state()["reason"]
