from __future__ import annotations

import io
import json
import os
import socket
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from rich.console import Console

from sseg_nase.config.compose import load
from sseg_nase.rundir.directory import RunDirectory
from sseg_nase.rundir.status import RUNNING, status_of
from sseg_nase.sweeps import status as seeing
from sseg_nase.sweeps.finish import table
from sseg_nase.sweeps.folder import JobFolder, SweepFolder
from sseg_nase.sweeps.isolation import Ending
from sseg_nase.sweeps.job import died
from sseg_nase.sweeps.status import GONE, Seen, Watcher, exit_code, poll, slurm_said
from tests.unit.sweeps.test_plan import made

HERE = {"host": socket.gethostname(), "pid": 1, "started": 1.0}


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    return made(tmp_path / "runs", "seed=0,1", "tracking=jsonl")


def run_of(job: JobFolder, status: str | None, **said: Any) -> RunDirectory:
    """A run's directory as its process would leave it; `None`: it says RUNNING and is dead."""
    place = RunDirectory.create(job.config, job.overrides)
    place.write_status(status or RUNNING, **said)
    place.release()
    job.note(run=str(place.path))
    return place


def seen(sweep: SweepFolder, number: int = 0) -> Seen:
    return poll(sweep)[number]


def test_a_job_that_nobody_has_begun_waits(sweep: SweepFolder) -> None:
    assert [(one.state, one.detail) for one in poll(sweep)] == [("WAITING", "")] * 2
    sweep.stop("job 0 failed")
    assert seen(sweep).detail == "job 0 failed"
    assert exit_code(poll(sweep)) == 0


def test_who_holds_the_lock_is_alive(sweep: SweepFolder) -> None:
    job = sweep.jobs[0]
    job.note(**HERE)
    with job.held() as held:
        assert held
        assert (seen(sweep).state, seen(sweep).detail) == ("RUNNING", "")
        job.note(waiting="waiting for 1 free GPU")
        assert (seen(sweep).state, seen(sweep).detail) == ("QUEUED", "waiting for 1 free GPU")
        with SweepFolder(sweep.path).jobs[0].held() as again:
            assert not again


def test_a_run_outlives_its_supervisor(sweep: SweepFolder) -> None:
    job = sweep.jobs[0]
    job.note(**HERE)
    place = run_of(job, None)
    lock = FileLock(place.path / ".lock")
    with lock:
        assert seen(sweep).state == "RUNNING"
    assert seen(sweep).state == "INTERRUPTED"


def test_a_death_without_a_word_is_told_and_written(sweep: SweepFolder) -> None:
    job = sweep.jobs[0]
    job.note(**HERE)
    place = run_of(job, None)
    one = seen(sweep)
    assert (one.state, one.detail) == ("INTERRUPTED", GONE)
    assert status_of(place.path)["status"] == "INTERRUPTED"
    assert status_of(place.path)["error"] == GONE
    assert exit_code(poll(sweep)) == 1
    # Before it had a run, too.
    sweep.jobs[1].note(**HERE)
    assert seen(sweep, 1).state == "INTERRUPTED"


def test_silence_on_another_machine_is_no_death_at_first(sweep: SweepFolder) -> None:
    job = sweep.jobs[0]
    job.note(host="elsewhere", pid=1, started=time.time())
    place = run_of(job, None)
    events = place.path / "events.jsonl"
    events.write_text("")
    assert (seen(sweep).state, seen(sweep).detail) == (
        "RUNNING", "on elsewhere, as far as can be seen from here",
    )  # fmt: skip
    assert status_of(place.path)["status"] == RUNNING
    os.utime(events, (1, 1))
    assert seen(sweep).state == "INTERRUPTED"


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([0, 0], 0), ([1, 0], 1), ([2, 0], 2), ([2, 1], 1), ([2, 2], 2), ([130, 2], 1)],
)
def test_mistakes_alone_give_2(sweep: SweepFolder, codes: list[int], expected: int) -> None:
    ends = {0: "FINISHED", 130: "INTERRUPTED"}
    for job, code in zip(sweep.jobs, codes, strict=True):
        status = ends.get(code, "FAILED")
        run_of(job, status)
        job.note(**HERE, ended=2.0, status=status, exitcode=code)
    assert exit_code(poll(sweep)) == expected


@pytest.mark.parametrize(
    ("exitcode", "timed_out", "expected"),
    [(9, False, "FAILED"), (1, False, "FAILED"), (-9, False, "INTERRUPTED"),
     (-15, False, "INTERRUPTED"), (-11, False, "FAILED"), (-6, False, "FAILED"),
     (-9, True, "INTERRUPTED"), (1, True, "INTERRUPTED"), (-99, False, "INTERRUPTED")],
)  # fmt: skip
def test_crashes_fail_and_kills_interrupt(exitcode: int, timed_out: bool, expected: str) -> None:
    assert died(Ending(exitcode, timed_out)) == expected


def test_epoch_and_figure_come_from_the_run(sweep: SweepFolder) -> None:
    job = sweep.jobs[0]
    job.note(**HERE, ended=31.0, status="INTERRUPTED")
    place = run_of(job, "INTERRUPTED", error="interrupted (SIGTERM)")
    epochs = [{"kind": "epoch", "values": {"epoch": n, "loss": 1 / (n + 1)}} for n in range(3)]
    lines = [json.dumps(line) for line in [*epochs, {"kind": "metrics", "values": {}}]]
    (place.path / "events.jsonl").write_text("\n".join([*lines, '{"kind": "ep']))
    one = seen(sweep)
    assert (one.epoch, one.metric, one.seconds) == (3, "loss 0.3333", 30.0)
    run_of(sweep.jobs[1], "FINISHED")
    assert seen(sweep, 1).metric == ""  # results.json got lost
    result = {"fewshot": {"digits/val/5w1s": {"accuracy": 50.123, "ci95": 1.5}}}
    run = sweep.jobs[1].run
    assert run is not None
    (run / "results.json").write_text(json.dumps(result))
    assert seen(sweep, 1).metric == "digits/val/5w1s 50.12 ± 1.50 %"
    for none in (None, float("nan"), "50"):
        broken = {"fewshot": {"digits/val/5w1s": {"accuracy": none, "ci95": 1.5}}}
        (run / "results.json").write_text(json.dumps(broken))
        assert seen(sweep, 1).metric == "digits/val/5w1s holds no accuracy"
    shown = table(sweep, poll(sweep))
    assert shown.caption == "1 INTERRUPTED, 1 FINISHED"


def test_brackets_are_shown_as_they_are(tmp_path: Path) -> None:
    sweep = made(tmp_path, "backbone.channels=[16,32],[8,8]", "tracking=jsonl")
    sweep.jobs[0].note(**HERE, ended=2.0, status="FAILED", reason="ValueError: [bold] [/nothing]")
    console = Console(width=200, file=io.StringIO())
    console.print(table(sweep, poll(sweep)))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "backbone.channels=[8,8]" in shown
    assert "ValueError: [bold] [/nothing]" in shown


@pytest.mark.parametrize("width", [80, 200])
def test_overrides_can_be_read_at_any_width(tmp_path: Path, width: int) -> None:
    sweep = made(tmp_path, "ablation=A1,A2", "dataset=cifar_fs,omniglot", "tracking=jsonl")
    for number in (0, 1):
        sweep.jobs[number].note(**HERE, ended=4000.0, status="FINISHED")
        result = {"fewshot": {"digits/val/5w1s": {"accuracy": 50.123, "ci95": 1.5}}}
        run_of(sweep.jobs[number], "FINISHED")
        run = sweep.jobs[number].run
        assert run is not None
        (run / "results.json").write_text(json.dumps(result))
        (run / "events.jsonl").write_text('{"kind": "epoch", "values": {"epoch": 99}}')

    def shown() -> str:
        console = Console(width=width, file=io.StringIO())
        console.print(table(sweep, poll(sweep), width))
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    text = shown()
    assert all(len(line) <= width for line in text.splitlines())
    assert " why" not in text
    for word in ("ablation=A2", "dataset=omniglot", "FINISHED", "WAITING", "100/100", "50.12"):
        assert word in text
    sweep.jobs[2].note(**HERE, ended=2.0, status="FAILED", reason="ValueError: too bad")
    text = shown()
    assert "why" in text
    assert "dataset=omniglot" in text


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `squeue` and `scontrol` that print what stands in files beside them."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name in ("squeue", "scontrol"):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec cat "{folder}/{name}.txt"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.mark.parametrize(
    ("queue", "job", "state", "detail"),
    [
        ("12_0 PENDING", "", "QUEUED", "Slurm job 12_0 is PENDING"),
        ("12_0 RUNNING", "", "RUNNING", ""),
        ("12_1 RUNNING", "JobState=FAILED ExitCode=9:0", "FAILED",
         "its process ended without a word (exit code 9; Slurm says FAILED)"),
        ("", "JobState=COMPLETED ExitCode=0:0", "FAILED",
         "its process ended without a word (exit code 0; Slurm says COMPLETED)"),
        ("", "JobState=FAILED ExitCode=140:0", "INTERRUPTED",  # SIGUSR2 before a handler was there
         "its process ended without a word (signal 12; Slurm says FAILED)"),
        ("", "JobState=FAILED ExitCode=250:0", "FAILED",
         "its process ended without a word (exit code 250; Slurm says FAILED)"),
        ("", "JobState=CANCELLED ExitCode=0:15", "INTERRUPTED",
         "its process ended without a word (signal 15; Slurm says CANCELLED)"),
        ("", "JobState=TIMEOUT ExitCode=0:1", "INTERRUPTED",
         "its process ended without a word (signal 1; Slurm says TIMEOUT)"),
        ("", "", "INTERRUPTED", GONE),
    ],
)  # fmt: skip
def test_slurm_is_asked_about_its_jobs(
    sweep: SweepFolder, slurm: Path, queue: str, job: str, state: str, detail: str
) -> None:
    (slurm / "squeue.txt").write_text(queue + "\n")
    (slurm / "scontrol.txt").write_text(job + "\n")
    sweep.jobs[0].queue("12_0")
    sweep.jobs[0].note(host="node7", pid=1, started=1.0)
    run_of(sweep.jobs[0], None)
    one = seen(sweep)
    assert (one.state, one.detail) == (state, detail)


@pytest.mark.parametrize(
    ("queue", "job", "noted", "state", "detail"),
    [
        # Slurm takes a moment to see that a job is over; one that it has brought back is not.
        ("12_0 RUNNING", "", {"status": "FAILED", "slurm_job": "12_0"}, "FAILED", "broken"),
        ("12_0 COMPLETING", "", {"status": "FAILED", "slurm_job": "11_0"}, "RUNNING", ""),
        ("12_0 RUNNING", "", {"status": "INTERRUPTED", "slurm_job": "12_0"}, "RUNNING", ""),
        ("12_0 PENDING", "", {"status": "INTERRUPTED", "slurm_job": "11_0"}, "QUEUED",
         "Slurm job 12_0 is PENDING"),
        ("12_0 COMPLETED", "", {"status": "INTERRUPTED", "slurm_job": "12_0"}, "INTERRUPTED",
         "broken"),
    ],
)  # fmt: skip
def test_what_a_job_of_slurm_has_noted_counts_for_that_job(
    sweep: SweepFolder,
    slurm: Path,
    queue: str,
    job: str,
    noted: dict[str, Any],
    state: str,
    detail: str,
) -> None:
    (slurm / "squeue.txt").write_text(queue + "\n")
    (slurm / "scontrol.txt").write_text(job + "\n")
    sweep.jobs[0].queue("12_0")
    sweep.jobs[0].note(host="node7", pid=1, started=1.0, ended=2.0, reason="broken", **noted)
    one = seen(sweep)
    assert (one.state, one.detail) == (state, detail)


def test_a_job_that_slurm_has_forgotten_before_it_began(sweep: SweepFolder, slurm: Path) -> None:
    (slurm / "squeue.txt").write_text("\n")
    sweep.jobs[0].queue("12_0")
    assert (seen(sweep).state, seen(sweep).detail) == (
        "INTERRUPTED", "Slurm job 12_0 was cancelled before it began"
    )  # fmt: skip
    sweep.stop("job 1 failed")  # which is why it did not begin
    assert (seen(sweep).state, seen(sweep).detail) == ("WAITING", "job 1 failed")
    (slurm / "squeue.txt").unlink()  # Slurm does not answer
    assert (seen(sweep).state, seen(sweep).detail) == (
        "QUEUED", "Slurm job 12_0, but Slurm does not answer"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("JobState=OUT_OF_MEMORY ExitCode=0:9", ("FAILED", "signal 9; Slurm says OUT_OF_MEMORY")),
        ("JobState=NODE_FAIL ExitCode=1:0", ("INTERRUPTED", "exit code 1; Slurm says NODE_FAIL")),
        ("JobState=FAILED ExitCode=0:11", ("FAILED", "signal 11; Slurm says FAILED")),
        ("JobState=FAILED ExitCode=193:0", ("FAILED", "exit code 193; Slurm says FAILED")),
        ("JobState=FAILED ExitCode=137:0", ("INTERRUPTED", "signal 9; Slurm says FAILED")),
        ("JobState=RUNNING ExitCode=0:0", None),
        ("", None),
    ],
)
def test_what_slurm_says_of_an_end(
    slurm: Path, said: str, expected: tuple[str, str] | None
) -> None:
    (slurm / "scontrol.txt").write_text(f"JobId=12 {said} Reason=None\n")
    found = slurm_said("12_0")
    if expected is None:
        assert found is None
        return
    status, how = expected
    assert found == (status, f"its process ended without a word ({how})")
    assert slurm_said(None) is None


def test_what_has_finished_is_finished_while_its_process_still_delivers(
    sweep: SweepFolder,
) -> None:
    sweep.jobs[0].note(**HERE)
    run_of(sweep.jobs[0], "FINISHED")
    with sweep.jobs[0].held():
        assert seen(sweep).state == "FINISHED"


def test_what_slurm_does_not_know_any_more_is_over_at_once(sweep: SweepFolder, slurm: Path) -> None:
    (slurm / "squeue.txt").write_text("\n")
    (slurm / "scontrol.txt").write_text("\n")
    sweep.jobs[0].queue("12_0")
    sweep.jobs[0].note(host="node7", pid=1, started=time.time(), slurm_job="12_0")
    run_of(sweep.jobs[0], None)
    assert (seen(sweep).state, seen(sweep).detail) == ("INTERRUPTED", GONE)


def test_a_dead_job_is_noted_once(sweep: SweepFolder) -> None:
    job = sweep.jobs[0]
    job.note(**HERE)
    assert seen(sweep).state == "INTERRUPTED"
    state = job.state()
    assert (state["status"], state["reason"]) == ("INTERRUPTED", GONE)
    first = seen(sweep)
    assert first.seconds == state["ended"] - 1.0
    assert seen(sweep) == first


def test_a_run_that_said_how_it_ended_counts_where_its_process_could_not(
    sweep: SweepFolder,
) -> None:
    sweep.jobs[0].note(**HERE)
    run_of(sweep.jobs[0], "FAILED", error="out of memory")
    assert (seen(sweep).state, seen(sweep).detail) == ("FAILED", "out of memory")


def test_time_runs_only_while_a_job_does(sweep: SweepFolder) -> None:
    job = sweep.jobs[0]
    assert seen(sweep).seconds is None
    job.note(**{**HERE, "started": time.time() - 100})
    with job.held():
        assert 100 <= (seen(sweep).seconds or 0) < 200
        job.note(waiting="for a GPU")
        assert seen(sweep).seconds is None


def test_a_watcher_tells_every_change_once_and_the_last_one(
    sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeing, "SECONDS_BETWEEN_POLLS", 60.0)
    told: list[str] = []
    with Watcher(sweep, told.append) as watcher:
        sweep.jobs[0].note(**HERE, ended=3.0, status="FAILED", reason="broken")
        watcher.poll()
        watcher.poll()
        sweep.jobs[1].note(**HERE, ended=11.0, status="INTERRUPTED")
    assert told == ["job 0  seed=0  FAILED  2 s  broken", "job 1  seed=1  INTERRUPTED  10 s"]


def test_a_config_of_the_command_line_is_not_part_of_a_look(sweep: SweepFolder) -> None:
    assert load(["task=status", f"sweep={sweep.path}"]).sweep.dir == str(sweep.path)
