"""What a sweep's folder remembers, and which sweeps are the same."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sseg_nase.config.compose import load
from sseg_nase.config.groups.tracking import InStore
from sseg_nase.errors import UserError
from sseg_nase.files import write_json
from sseg_nase.rundir.directory import RunDirectory
from sseg_nase.rundir.status import FAILED, FINISHED, INTERRUPTED, RUNNING, status_of
from sseg_nase.sweeps import finish, folder, job, launch, status
from sseg_nase.sweeps.folder import SweepFolder, create, identity, looked_at, sweeps_in
from sseg_nase.sweeps.isolation import Ending
from sseg_nase.sweeps.plan import plan
from sseg_nase.sweeps.status import SECONDS_OF_SILENCE, poll
from tests.unit.sweeps.test_plan import made, planned


def test_a_launch_takes_back_an_earlier_stop_and_the_order_of_jobs_is_no_other_sweep(
    tmp_path: Path,
) -> None:
    title, jobs = plan(["seed=0,1", "tracking=jsonl", "dataset=digits"])
    assert identity(jobs) == identity(list(reversed(jobs)))
    assert identity(jobs) != identity(jobs[:1])
    settings = jobs[0].config.sweep
    sweep = create(
        tmp_path,
        jobs,
        title=title,
        shared=[],
        settings=settings,
        tracking=jobs[0].config.tracking,
        code={},
        diff=None,
    )
    sweep.stop("a job failed")
    sweep.end("FAILED")
    assert sweep.stopped == "a job failed"
    sweep.begin_launch(settings, None)
    assert sweep.stopped is None
    assert not sweep.ended


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    return made(tmp_path / "runs", "seed=0,1", "tracking=jsonl")


def test_a_plan_of_an_older_version_has_fewer_keys_of_the_tracker(sweep: SweepFolder) -> None:
    known = {**sweep.plan["tracking"], "name": "mlflow", "uri": None}
    assert not {"model", "checkpoints"} & set(known)
    sweep.note(tracking=known)
    tracking = SweepFolder(sweep.path).tracking
    assert isinstance(tracking, InStore)
    assert (tracking.model, tracking.checkpoints) == (True, False)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"jobs": 5}, "it has no jobs"),
        ({"jobs": [3]}, "a job has no number"),
        ({"jobs": [{"number": 0, "label": 4}]}, "a job has no label"),
        ({"title": None}, "it has no title"),
        ({"settings": []}, "it has no settings"),
    ],
)
def test_a_plan_that_is_damaged_is_named(
    change: dict[str, Any], wrong: str, sweep: SweepFolder
) -> None:
    sweep.note(**change)
    with pytest.raises(UserError, match=rf"sweep\.json there is damaged \({wrong}\)"):
        SweepFolder(sweep.path)


def test_a_damaged_sweep_is_named_and_the_others_are_looked_at(
    sweep: SweepFolder, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = sweep.path.parent / "z"
    damaged.mkdir()
    for content in ("{", '{"title": "x"}'):
        (damaged / "sweep.json").write_text(content)
        caplog.clear()
        assert looked_at("LAST", sweep.output_dir).path == sweep.path
        (said,) = caplog.messages
        assert f"sweep={damaged}" in said
        assert "left out" in said
        with pytest.raises(UserError, match=f"sweep={damaged}"):
            sweeps_in(sweep.output_dir)  # what -m asks: it may be the very one
    (sweep.path / "sweep.json").unlink()
    with pytest.raises(UserError, match=f"sweep={damaged}"):
        looked_at(None, sweep.output_dir)


@pytest.mark.parametrize("wrong", [{"started": "x"}, {"pid": "7"}, {"host": 3}, {"run": 1}])
def test_notes_of_a_job_that_are_damaged_say_nothing(
    wrong: dict[str, Any], sweep: SweepFolder
) -> None:
    job = sweep.jobs[0]
    job.note(host="here", pid=7, started=1.0, ended=2.0, status=FAILED)
    assert job.begun
    write_json(job.path / "job.json", {**job.state(), **wrong})
    assert job.state() == {}
    assert poll(sweep)[0].state == "WAITING"


def test_another_experiment_is_another_sweep() -> None:
    _, jobs = plan(["seed=0,1", "tracking=jsonl", "dataset=digits"])
    other = [
        dataclasses.replace(one, config=dataclasses.replace(one.config, experiment_name="other"))
        for one in jobs
    ]
    assert identity(jobs) != identity(other)


def test_what_two_processes_note_of_a_sweep_stays(sweep: SweepFolder) -> None:
    another = SweepFolder(sweep.path)
    sweep.note(parent_run_id="run")
    another.note(visible_devices="0")
    plan_now = SweepFolder(sweep.path).plan
    assert (plan_now["parent_run_id"], plan_now["visible_devices"]) == ("run", "0")


def test_jobs_that_run_at_once_share_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, jobs = planned(("seed=0,1", "tracking=jsonl"))
    config = jobs[0].config
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    sweep = create(
        tmp_path,
        jobs,
        title="seeds",
        shared=[],
        settings=dataclasses.replace(config.sweep, parallel=2),
        tracking=config.tracking,
        code={},
        diff=None,
    )
    assert sweep.threads == 4


def test_a_new_attempt_takes_back_how_the_last_one_ended(sweep: SweepFolder) -> None:
    one = sweep.jobs[0]
    job._begin(one)
    job._end(one, FAILED, "out of memory", 1)
    job._begin(one)
    state = one.state()
    assert state["attempts"] == 2
    assert not {"ended", "status", "reason", "exitcode"} & state.keys()


def test_minutes_of_a_job_are_minutes(sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def isolated(*arguments: Any, seconds: float | None, **more: Any) -> Ending:
        asked.append(seconds)
        return Ending(0, timed_out=False)

    monkeypatch.setattr(job, "isolated", isolated)
    monkeypatch.setattr(job, "_devices", lambda *given: job._place(*given, "basic"))
    sweep.begin_launch(dataclasses.replace(sweep.settings, timeout_min=1.5), None)
    job._apart(sweep, sweep.jobs[0], "basic")
    assert asked == [90]


def test_a_run_that_still_records_on_another_machine_is_alive(sweep: SweepFolder) -> None:
    """However long ago it began."""
    one = sweep.jobs[0]
    place = RunDirectory.create(one.config, one.overrides)
    place.write_status(RUNNING)
    place.release()
    events = place.path / "events.jsonl"
    events.touch()
    long_ago = time.time() - 3 * SECONDS_OF_SILENCE
    one.note(run=str(place.path), host="another", pid=1, started=long_ago)
    assert poll(sweep)[0].state == RUNNING
    os.utime(events, (long_ago, long_ago))
    assert poll(sweep)[0].state == INTERRUPTED


@pytest.mark.parametrize(
    ("states", "status"),
    [
        ((FINISHED, FINISHED), FINISHED),
        ((FINISHED, "WAITING"), INTERRUPTED),
        ((FINISHED, INTERRUPTED), FAILED),
        ((FAILED, "WAITING"), FAILED),
        ((FINISHED, RUNNING), None),
        ((FINISHED, "QUEUED"), None),
    ],
)
def test_how_a_sweep_ended_follows_from_its_jobs(
    states: tuple[str, str],
    status: str | None,
    sweep: SweepFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(finish, "report_sweep", lambda *arguments, **more: None)
    told: list[Any] = []
    store: Any = SimpleNamespace(
        begin=lambda *arguments: "parent", end=lambda *arguments: told.append(arguments)
    )
    stand: Any = [
        SimpleNamespace(state=state, failed=state in (FAILED, INTERRUPTED)) for state in states
    ]
    finish._close(sweep, stand, store, print)
    assert [run_id for run_id, _, _ in told] == ([] if status is None else ["parent"])
    assert [said for _, said, _ in told] == ([] if status is None else [status])
    assert sweep.ended == (status is not None)


def test_a_sweep_whose_jobs_wait_is_not_closed_by_one_that_ended(
    sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[SweepFolder] = []
    monkeypatch.setattr(finish, "finish", lambda sweep, *arguments: closed.append(sweep))
    sweep.jobs[0].note(started=1.0, ended=2.0, status=FAILED)
    finish.finish_if_last(sweep, print)
    assert not closed
    sweep.jobs[1].note(started=1.0, ended=2.0, status=FAILED)
    finish.finish_if_last(sweep, print)
    assert closed == [sweep]


@pytest.mark.parametrize("launched", [True, False])
def test_only_whom_nobody_waits_for_closes_a_sweep(
    launched: bool, sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[SweepFolder] = []
    monkeypatch.setattr(finish, "finish", lambda sweep, *arguments: closed.append(sweep))
    for one in sweep.jobs:
        one.note(started=1.0, ended=2.0, status=FAILED)
    if launched:
        with SweepFolder(sweep.path).launching():
            finish.finish_if_last(sweep, print)
    else:
        finish.finish_if_last(sweep, print)
    assert closed == ([] if launched else [sweep])


def test_of_two_jobs_that_end_together_one_closes_the_sweep(
    sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one sees that it is held, and that is no failure of its own."""
    monkeypatch.setattr(finish, "finish", lambda *arguments: pytest.fail("closed twice"))
    monkeypatch.setattr(SweepFolder, "launched", lambda self: False)
    monkeypatch.setattr(folder, "SECONDS_FOR_LOCK", 0.01)
    for one in sweep.jobs:
        one.note(started=1.0, ended=2.0, status=FAILED)
    with SweepFolder(sweep.path).launching():
        finish.finish_if_last(sweep, print)
        finish._close_forgotten(sweep, poll(sweep), print)


@pytest.mark.parametrize(
    ("begun", "ended", "running", "closes"),
    [
        (True, False, False, True),
        (True, True, False, False),
        (True, False, True, False),
        (False, False, False, False),
    ],
)
def test_a_look_closes_a_sweep_that_was_left_behind(
    begun: bool,
    ended: bool,
    running: bool,
    closes: bool,
    sweep: SweepFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    closed: list[SweepFolder] = []
    monkeypatch.setattr(finish, "_close", lambda sweep, *arguments: closed.append(sweep))
    if begun:
        for one in sweep.jobs:
            one.note(started=1.0, ended=2.0, status=FAILED, exitcode=2)
    if ended:
        sweep.end(FAILED)
    config = load(["task=status", f"sweep={sweep.path}"])
    with sweep.jobs[0].held() if running else nullcontext():
        code = finish.status(config, print)
    assert [one.path for one in closed] == ([sweep.path] if closes else [])
    assert code == (2 if begun else 0)
    assert "seed=1" in capsys.readouterr().out


@pytest.mark.parametrize("known", ["its parent", None])
@pytest.mark.parametrize("drawn", [True, False])
def test_a_sweep_that_began_without_mlflow_gets_its_parent_late(
    known: str | None, drawn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("seed=0,1", "tracking=jsonl", f"report.at_end={str(drawn).lower()}")
    sweep = made(tmp_path / "runs", *given)
    sweep.note(parent_run_id=known)
    asked: list[bool] = []
    monkeypatch.setattr(finish, "report_sweep", lambda *arguments, figures: asked.append(figures))
    begun, told = list[Any](), list[Any]()
    store: Any = SimpleNamespace(
        begin=lambda *arguments: (begun.append(arguments[0]), "its parent")[1],
        end=lambda *arguments: told.append(arguments),
    )
    finish._close(sweep, poll(sweep), store, print)
    assert begun == ([] if known else [None])
    assert told == [("its parent", INTERRUPTED, "2 of 2 jobs are not finished")]
    assert SweepFolder(sweep.path).plan["parent_run_id"] == "its parent"
    assert asked == [drawn]


def test_a_job_that_is_forgotten_is_in_no_queue_and_one_in_a_queue_has_begun(
    sweep: SweepFolder,
) -> None:
    one = sweep.jobs[0]
    assert not one.begun
    one.queue("12_0")
    assert one.begun
    one.note(started=1.0, reason="so")
    one.note(reason=None)
    assert one.state() == {"started": 1.0}
    one.forget()
    assert (one.begun, one.slurm_job, one.state()) == (False, None, {})
    one.forget()  # also what was never begun
    one.note(started=1.0)
    assert one.begun


def test_a_launch_notes_who_it_was_and_not_what_it_was_told_to_look_at(
    sweep: SweepFolder,
) -> None:
    given = dataclasses.replace(sweep.settings, dir="elsewhere", job=3, retries=2)
    with sweep.launching():
        sweep.begin_launch(given, "0,1")
    again = SweepFolder(sweep.path)
    assert (again.settings.dir, again.settings.job, again.settings.retries) == (None, None, 2)
    assert again.plan["visible_devices"] == "0,1"
    assert again.plan["launched_by"] == f"process {os.getpid()} on {socket.gethostname()}"


@pytest.mark.parametrize(
    ("environment", "number"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7"}, "7"),
        ({"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "0"}, "6_0"),
        ({"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "6"}, "7"),
    ],
)
def test_slurm_s_number_of_a_process(
    environment: dict[str, str], number: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert folder.this_process() == {
        "host": socket.gethostname(), "pid": os.getpid(), "slurm_job": number
    }  # fmt: skip


def test_a_sweep_that_cannot_be_written_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"paths.output_dir=.*file: cannot be written"):
        made(tmp_path / "file", "seed=0,1", "tracking=jsonl")


def test_jobs_that_are_run_again_forget_their_runs(sweep: SweepFolder) -> None:
    one = sweep.jobs[0]
    place = RunDirectory.create(one.config, one.overrides)
    place.write_status(FINISHED)
    place.release()
    one.note(run=str(place.path))
    store: Any = SimpleNamespace(known=lambda fingerprint: [])
    assert launch._to_do(sweep, False, store, lambda text: None) == [1]
    assert launch._to_do(sweep, True, store, lambda text: None) == [0, 1]
    assert one.run is None


@pytest.mark.parametrize("host", [socket.gethostname(), "another"])
def test_dead_runs_are_ended_only_on_their_own_machine(host: str, sweep: SweepFolder) -> None:
    place = RunDirectory.create(sweep.jobs[0].config, [])
    place.write_status(RUNNING)
    place.release()
    status = place.path / "status.json"
    status.write_text(status.read_text().replace(socket.gethostname(), host))
    told: list[Any] = []
    store: Any = SimpleNamespace(
        running=lambda: [SimpleNamespace(directory=place.path, run_id="a")],
        end=lambda *arguments: told.append(arguments[:2]),
    )
    launch._reap(store, lambda text: None)
    dead = host == socket.gethostname()
    assert told == ([("a", INTERRUPTED)] if dead else [])
    assert status_of(place.path)["status"] == (INTERRUPTED if dead else RUNNING)


def test_a_dead_run_is_ended_in_the_tracker_as_on_disk(
    sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = sweep.jobs[0]
    place = RunDirectory.create(one.config, one.overrides)
    place.run_id = "abc"
    place.write_status(RUNNING)
    place.release()
    one.note(run=str(place.path))
    told: list[Any] = []
    store = SimpleNamespace(end=lambda *arguments: told.append(arguments))
    monkeypatch.setattr(status, "SweepStore", lambda *arguments, **more: store)
    assert status.reap(sweep, one, INTERRUPTED, "it was killed")
    assert told == [("abc", INTERRUPTED, "it was killed")]
    said = status_of(place.path)
    assert (said["status"], said["error"]) == (INTERRUPTED, "it was killed")
