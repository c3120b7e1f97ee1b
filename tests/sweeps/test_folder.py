"""What a sweep's folder remembers, and which sweeps are the same."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_plan import made, planned

from sseg_nase.directory import RUNNING, RunDirectory, status_of
from sseg_nase.sweeps import finish, job, launch, seen
from sseg_nase.sweeps.folder import SweepFolder, create, identity
from sseg_nase.sweeps.isolation import Ending
from sseg_nase.sweeps.plan import plan
from sseg_nase.sweeps.seen import SECONDS_OF_SILENCE, look
from sseg_nase.tracking.sink import FAILED, FINISHED, INTERRUPTED


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
    assert look(sweep)[0].state == RUNNING
    os.utime(events, (long_ago, long_ago))
    assert look(sweep)[0].state == INTERRUPTED


@pytest.mark.parametrize(
    ("states", "status"),
    [
        ((FINISHED, FINISHED), FINISHED),
        ((FINISHED, "WAITING"), INTERRUPTED),
        ((FINISHED, INTERRUPTED), FAILED),
        ((FAILED, "WAITING"), FAILED),
        ((FINISHED, RUNNING), None),
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
    monkeypatch.setattr(seen, "SweepStore", lambda *arguments, **more: store)
    assert seen.reap(sweep, one, INTERRUPTED, "it was killed")
    assert told == [("abc", INTERRUPTED, "it was killed")]
    said = status_of(place.path)
    assert (said["status"], said["error"]) == (INTERRUPTED, "it was killed")
