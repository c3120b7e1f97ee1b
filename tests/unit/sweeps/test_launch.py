"""What a launch hands to Hydra's launcher, and how it ends; no job is run here."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from sseg_nase.errors import UserError
from sseg_nase.rundir.directory import RunDirectory
from sseg_nase.rundir.status import FAILED, FINISHED, INTERRUPTED
from sseg_nase.sweeps import launch as module
from sseg_nase.sweeps.folder import JobFolder, SweepFolder, sweeps_in
from sseg_nase.sweeps.launch import launch
from sseg_nase.tracking.sweeps import KnownRun
from tests.unit.sweeps.test_plan import made

GIVEN = ("seed=0,1", "tracking=jsonl", "report.at_end=false")


class Hydra:
    """Stands in for Hydra's multirun: `jobs` says what becomes of each job that is handed over."""

    def __init__(self, jobs: Callable[[JobFolder], None] = lambda job: None) -> None:
        self.jobs, self.given = jobs, list[list[str]]()

    def __call__(self, overrides: Sequence[str]) -> None:
        self.given.append(list(overrides))
        for number in self.numbers():
            self.jobs(the_sweep().jobs[number])

    def numbers(self) -> list[int]:
        (text,) = (text for text in self.given[-1] if text.startswith("sweep.job="))
        return [int(number) for number in text.partition("=")[2].split(",")]


def the_sweep() -> SweepFolder:
    return sweeps_in(Path("runs"))[-1]


def ends(status: str, exitcode: int = 1) -> Callable[[JobFolder], None]:
    def end(job: JobFolder) -> None:
        place = RunDirectory.create(job.config, job.overrides)
        place.write_status(status)
        place.release()
        job.note(
            run=str(place.path), started=1.0, ended=2.0, status=status, exitcode=exitcode
        )  # fmt: skip

    return end


@pytest.mark.slow
def test_what_is_to_be_done_is_handed_over_once() -> None:
    hydra, said = Hydra(ends(FINISHED, 0)), list[str]()
    assert launch(GIVEN, hydra, said.append) == 0
    (given,) = hydra.given
    assert given[-3:] == [
        f"sweep.dir={the_sweep().path}", "sweep.job=0,1", "hydra.sweeper.params=null"
    ]  # fmt: skip
    assert set(GIVEN[1:]) < set(given)
    assert launch(GIVEN, hydra, said.append) == 0
    assert len(hydra.given) == 1
    assert any("2 of 2 jobs are FINISHED already" in text for text in said)
    the_sweep().jobs[0].forget()
    assert launch(GIVEN, hydra, said.append) == 0
    assert (len(hydra.given), hydra.numbers()) == (2, [0])
    assert len(sweeps_in(Path("runs"))) == 1
    assert launch([*GIVEN, "sweep.rerun=true"], hydra, said.append) == 0
    assert (hydra.numbers(), len(sweeps_in(Path("runs")))) == ([0, 1], 2)


@pytest.mark.parametrize(("codes", "expected"), [((1, 2), 1), ((2, 2), 2)])
def test_a_launch_ends_as_its_jobs_do(codes: tuple[int, int], expected: int) -> None:
    hydra = Hydra(lambda job: ends(FAILED, codes[job.number])(job))
    assert launch(GIVEN, hydra, print) == expected
    assert the_sweep().ended


def test_a_launcher_that_cannot_start_is_a_mistake_and_a_job_that_failed_is_none() -> None:
    class Broken(Hydra):
        def __call__(self, overrides: Sequence[str]) -> None:
            super().__call__(overrides)
            raise RuntimeError("no partition\nof that name")

    with pytest.raises(UserError, match=r"no job could be started: no partition$"):
        launch(GIVEN, Broken(), print)
    assert launch(GIVEN, Broken(ends(FAILED)), print) == 1


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_launch_lets_no_further_job_begin(number: int) -> None:
    def interrupt(job: JobFolder) -> None:
        assert not the_sweep().stopped
        signal.raise_signal(number)

    heard = dict.fromkeys(module.STOPPING, signal.default_int_handler)  # not as under nohup
    before = {one: signal.signal(one, handler) for one, handler in heard.items()}
    said: list[str] = []
    try:
        assert launch(GIVEN, Hydra(interrupt), said.append) == 130
        assert the_sweep().stopped == "the sweep was interrupted"
        assert "resumes what is left" in said[-1]
        assert {one: signal.getsignal(one) for one in module.STOPPING} == heard
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert launch(GIVEN, Hydra(ends(FINISHED, 0)), said.append) == 0
    assert the_sweep().stopped is None


def test_what_the_shell_ignores_a_launch_does_not_hear() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        job = Hydra(lambda job: (signal.raise_signal(signal.SIGHUP), ends(FINISHED, 0)(job))[1])
        assert launch(GIVEN, job, print) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    return made(tmp_path / "runs", "seed=0,1,2,3,4", "tracking=jsonl")


def test_only_living_jobs_of_this_machine_are_asked_to_stop(
    sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = socket.gethostname()
    sweep.jobs[0].note(host=here, pid=100, started=1.0)
    sweep.jobs[1].note(host=here, pid=101, started=1.0, waiting="for a GPU")
    sweep.jobs[2].note(host="another", pid=102, started=1.0)
    sweep.jobs[3].note(host=here, pid=os.getpid(), started=1.0)
    sweep.jobs[4].note(host=here, pid=104, started=1.0)
    alive = [FileLock(job.path / ".lock") for job in sweep.jobs[:4]]
    sent: list[tuple[int, int]] = []

    def take(pid: int, number: int) -> bool:
        sent.append((pid, number))
        return False

    monkeypatch.setattr(module, "_signal", take)
    for lock in alive:
        lock.acquire()
    said: list[str] = []
    module.stop_jobs(sweep, said.append)
    for lock in alive:
        lock.release()
    assert {pid for pid, _ in sent} == {100, 101}
    asked = dict(reversed(sent))  # the first of each
    assert asked == {100: signal.SIGTERM, 101: signal.SIGKILL}
    assert (sweep.jobs[1].state()["status"], "waiting" in sweep.jobs[1].state()) == (
        INTERRUPTED, False,
    )  # fmt: skip
    assert "status" not in sweep.jobs[0].state()
    assert "2 jobs finish their step" in said[0]


def test_a_job_that_does_not_stop_is_killed(
    sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS_TO_STOP", 0.3)
    sweep.jobs[0].note(host=socket.gethostname(), pid=100, started=1.0)
    sent: list[int] = []
    monkeypatch.setattr(module, "_signal", lambda pid, number: (sent.append(number), True)[1])
    began = time.monotonic()
    with FileLock(sweep.jobs[0].path / ".lock"):
        module.stop_jobs(sweep, lambda text: None)
    assert (sent[0], sent[-1]) == (signal.SIGTERM, signal.SIGKILL)
    assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize("begins", [True, False])
def test_a_job_that_is_starting_is_asked_when_its_own_process_is_known(
    begins: bool, sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the launcher would die of it, and the job's own go on with nobody to watch it."""
    monkeypatch.setattr(module, "SECONDS_TO_STOP", 20.0 if begins else 0.3)
    job, sent = sweep.jobs[0], list[tuple[int, int]]()
    job.note(host=socket.gethostname(), pid=100, started=1.0, starting=True)

    def take(pid: int, number: int) -> bool:
        sent.append((pid, number))
        if (pid, number) == (200, signal.SIGTERM):
            job.note(ended=2.0, status=INTERRUPTED)
        elif begins and pid == 100:
            job.note(pid=200, starting=None)
        return pid == 100

    monkeypatch.setattr(module, "_signal", take)
    with FileLock(job.path / ".lock"):
        module.stop_jobs(sweep, lambda text: None)
    asked = [(pid, number) for pid, number in sent if number]
    last = (100, signal.SIGKILL)  # it never began, and nothing of it is to stay behind
    assert asked == ([(200, signal.SIGTERM), (200, signal.SIGKILL)] if begins else [last])


@pytest.mark.parametrize("code", [0, 3, None])
def test_a_sweep_in_the_background_is_told_what_was_given_but_what_is_done(
    code: int | None, sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[list[str]] = []

    def popen(command: list[str], *, stdout: Any, start_new_session: bool, **more: Any) -> Any:
        assert start_new_session
        started.append(command)
        stdout.write(b"why\n")
        return SimpleNamespace(pid=7, poll=lambda: code, returncode=code)

    monkeypatch.setattr(module.subprocess, "Popen", popen)
    monkeypatch.setattr(module, "SECONDS_TO_BEGIN", 0.2)
    given = ["sweep.detach=true", "sweep.rerun=true", "sweep.retries=2"]
    said: list[str] = []
    found = module._in_background(
        sweep, ["hydra/launcher=joblib"], given, said.append, tmp_path / "mine"
    )
    assert found == (code or 0)
    (command,) = started
    assert command[1:] == [
        "-m", "sseg_nase", "-m", "hydra/launcher=joblib", "sweep.retries=2",
        f"sweep.dir={sweep.path}", "sweep.detach=false", "sweep.rerun=false",
        "--config-dir", str(tmp_path / "mine"),
    ]  # fmt: skip
    assert ("could not be started in the background:\nwhy" in said[0]) == bool(code)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sweep.watch=true"], "sweep.watch and sweep.job have no effect with -m"),
        (["sweep.job=0"], "sweep.watch and sweep.job have no effect with -m"),
        (
            ["hydra/launcher=submitit_slurm", "hydra.sweeper.max_batch_size=2"],
            "max_batch_size: with Slurm all jobs are queued together",
        ),
    ],
)
def test_what_has_no_effect_is_refused(overrides: list[str], said: str) -> None:
    hydra = Hydra()
    with pytest.raises(UserError, match=said):
        launch([*GIVEN, *overrides], hydra, print)
    assert not hydra.given


def test_the_jobs_of_a_named_sweep_are_fixed(sweep: SweepFolder) -> None:
    with pytest.raises(UserError, match=r"its jobs are fixed; leave out seed=0,1"):
        launch([f"sweep={sweep.path}", "seed=0,1"], Hydra(), print)


def test_what_an_experiment_says_of_the_sweep_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "often.yaml").write_text(
        "# @package _global_\nsweep: {retries: 3}\n"
    )
    hydra, mine = Hydra(ends(FINISHED, 0)), tmp_path / "mine"
    assert launch(["experiment=often", *GIVEN], hydra, print, mine) == 0
    assert the_sweep().settings.retries == 3
    assert launch([f"sweep={the_sweep().path}"], hydra, print, mine) == 0
    assert the_sweep().settings.retries == 3
    assert launch([f"sweep={the_sweep().path}", "sweep.retries=1"], hydra, print, mine) == 0
    assert the_sweep().settings.retries == 1
    assert the_sweep().plan["visible_devices"] == "2,0"  # a job may start where it is not set


def test_what_is_probably_not_meant_is_said_once() -> None:
    said: list[str] = []
    launch([*GIVEN, "optimizer.lr=40", "sweep.dry_run=true"], Hydra(), said.append)
    assert sum("optimizer.lr" in text for text in said) == 1


def test_what_has_no_effect_in_any_job_is_said_once() -> None:
    """What has in one is meant for that one."""
    said: list[str] = []
    given = ["finetune.epochs=3", "evolution=none,balanced", "evolution.max_blocks=9"]
    launch([*GIVEN, *given, "sweep.dry_run=true"], Hydra(), said.append)
    told = [text for text in said if "it has no effect" in text]
    assert told == ["finetune.epochs: it has no effect with finetune=none."]


def test_a_job_on_its_way_is_left_alone_also_when_it_is_to_be_run_again(
    sweep: SweepFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.jobs[0].note(host=socket.gethostname(), pid=1, started=1.0)
    store: Any = SimpleNamespace(known=lambda fingerprint: [])
    said: list[str] = []
    with FileLock(sweep.jobs[0].path / ".lock"):
        assert module._to_do(sweep, True, store, said.append) == [1, 2, 3, 4]
        assert "1 of 5 jobs are on their way already" in said
        assert "started" in sweep.jobs[0].state()
        module.rehearse("t", sweep.jobs, sweep, rerun=True)
    shown = capsys.readouterr().out.splitlines()
    assert "is running already: would be left alone" in shown[2]
    assert "would run" in shown[4]


def test_images_that_cannot_be_compared_keep_no_run_back(
    sweep: SweepFolder, tmp_path: Path
) -> None:
    """It is of an older version, or its images are not there any more."""
    job = sweep.jobs[0]
    place = RunDirectory.create(job.config, job.overrides)
    place.write_status(FINISHED)
    place.release()
    known = KnownRun("id", FINISHED, place.path, None)
    store: Any = SimpleNamespace(known=lambda fingerprint: [known])
    images = module._Images()
    module._adopt(job, store, images, print)
    assert job.run == place.path
    (place.path / "data.json").write_text(
        json.dumps({"images": {"gone/val": {}}, "roles": {}, "files": {}})
    )
    module._check_images(job, images)
    older, gone = images.unknown
    assert "an older version" in older
    assert "they cannot be read: dataset=gone" in gone
    assert images.unknown == {older: [0], gone: [0]}


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ("a" * 40, "b" * 40, " (run by commit aaaaaaaa; this is bbbbbbbb)"),
        ("a" * 40, "a" * 40, ""),
        (None, "b" * 40, ""),
        ("a" * 40, None, ""),
    ],
)
def test_a_run_of_other_code_is_taken_over_and_that_is_said(
    then: str | None, now: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.code, "describe", lambda: {"commit": now})
    assert module._other_code(KnownRun("id", FINISHED, Path(), then)) == said


def test_a_finished_run_goes_before_one_that_was_interrupted(sweep: SweepFolder) -> None:
    job, runs = sweep.jobs[0], list[KnownRun]()
    for status in (INTERRUPTED, FINISHED):
        place = RunDirectory.create(dataclasses.replace(job.config, seed=len(runs)), job.overrides)
        place.write_status(status)
        place.release()
        runs.append(KnownRun(status, status, place.path, None))
    store: Any = SimpleNamespace(known=lambda fingerprint: runs)
    module._adopt(job, store, module._Images(), lambda text: None)
    assert job.run == runs[1].directory
