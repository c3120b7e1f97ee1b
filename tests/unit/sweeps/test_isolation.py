"""A job in a process of its own: what reaches it, what it leaves, and how it is stopped."""

from __future__ import annotations

import os
import signal
import sys
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from sseg_nase.files import write_text
from sseg_nase.sweeps import isolation
from sseg_nase.sweeps.isolation import Ending, isolated

SECRET = "s3cret-enough"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here needs torch."""
    monkeypatch.setattr(ForkServerContext, "set_forkserver_preload", lambda self, names: None)


def start(target: Any, *arguments: Any, **more: Any) -> Ending:
    given: dict[str, Any] = {"environment": {}, "console": None, "seconds": 60.0}
    return isolated(target, arguments, **(given | more))


def speak(folder: Path, code: int) -> int:
    print("to the one", flush=True)
    print(f"to the other: http://me:{SECRET}@host/", file=sys.stderr, flush=True)
    (folder / "said").write_text(f"{os.environ.get('OF_THE_JOB')} {os.getpid() == os.getsid(0)}")
    return code


def hold(folder: Path, stubborn: bool, seconds: float) -> int:
    if stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(130))
    write_text(folder / "pid", str(os.getpid()))  # whole as soon as it is there
    time.sleep(seconds)
    return 0


def gone(folder: Path) -> bool:
    try:
        os.kill(int((folder / "pid").read_text()), 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("code", [0, 2, 130])
def test_what_a_job_returns_says_and_gets(code: int, tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    console.write_text("an earlier attempt\n")
    ending = start(speak, tmp_path, code, environment={"OF_THE_JOB": "7"}, console=console)
    assert (ending, str(ending)) == (Ending(code, timed_out=False), f"exit code {code}")
    assert (tmp_path / "said").read_text() == "7 True"  # in a session of its own
    lines = console.read_text().splitlines()
    assert lines[0] == "an earlier attempt"
    assert sorted(lines[1:]) == ["to the one", "to the other: http://host/"]
    assert "OF_THE_JOB" not in os.environ


@pytest.mark.parametrize(("stubborn", "code"), [(False, 130), (True, -signal.SIGKILL)])
def test_a_job_that_is_out_of_time_is_asked_to_stop_and_then_killed(
    stubborn: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "SECONDS_TO_STOP", 1.0 if stubborn else 30.0)
    ending = start(hold, tmp_path, stubborn, 60.0, seconds=3.0)
    assert ending == Ending(code, timed_out=True)
    assert gone(tmp_path)


@pytest.mark.parametrize("stubborn", [False, True])
def test_an_interruption_stops_the_job_and_goes_on(
    stubborn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "SECONDS_TO_STOP", 1.0 if stubborn else 30.0)

    def interrupt(number: int, frame: Any) -> None:
        if (tmp_path / "pid").exists():
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            start(hold, tmp_path, stubborn, 60.0, seconds=None)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert gone(tmp_path)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (1, "exit code 1"),
        (-9, "killed by SIGKILL"),
        (-11, "killed by SIGSEGV"),
        (-99, "killed by signal 99"),
    ],
)
def test_an_end_in_words(code: int, said: str) -> None:
    assert str(Ending(code, timed_out=False)) == said
