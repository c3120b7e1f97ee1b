"""Commands of the page: processes of their own, which it only looks at."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import FileLock

from sseg_nase.apps import waiting
from sseg_nase.apps.commands import Command, start, started
from sseg_nase.errors import UserError
from sseg_nase.files import write_json
from sseg_nase.rundir.status import ask_to_stop, this_process


def made(folder: Path, **notes: object) -> Command:
    folder.mkdir(parents=True)
    write_json(folder / "command.json", {"arguments": ["seed=1"], **notes})
    return Command(folder)


def test_how_a_command_stands_is_told_by_its_lock_and_its_exit_code(tmp_path: Path) -> None:
    said = (
        "sseg-nase: a caution\nmore\nsseg-nase: seed=x: a whole number is needed.\n  see --help\n"
    )
    standings = {}
    for name, notes in {"gone": {}, "done": {"exitcode": 0}, "wrong": {"exitcode": 2}}.items():
        command = made(tmp_path / name, **notes)
        command.console.write_text(said)
        standings[name] = command.standing()[:2]
    assert standings == {
        "gone": ("INTERRUPTED", "its process is gone and left no word"),
        "done": ("FINISHED", ""),
        "wrong": ("FAILED", "seed=x: a whole number is needed.\n  see --help"),
    }
    for code in (130, 143, 137):  # by itself, by SIGTERM, by SIGKILL
        assert made(tmp_path / f"stopped {code}", exitcode=code).standing().state == "INTERRUPTED"
    assert made(tmp_path / "crashed", exitcode=139).standing().state == "FAILED"
    alive = made(tmp_path / "alive", waiting="a place")
    with FileLock(alive.path / ".lock"):
        assert alive.standing() == ("WAITING", "a place", None)
        alive.note(begun=1.0)
        assert alive.standing().state == "RUNNING"


def test_a_command_knows_its_run_from_what_it_has_said(tmp_path: Path) -> None:
    command = made(tmp_path / "one")
    assert command.run() is None
    command.console.write_text(
        "a line\nrun debug=tiny in /runs/My runs (1)/20261129\nstage pretrain\n"
    )
    assert command.run() == Path("/runs/My runs (1)/20261129")
    assert (command.line, command.output()[-9:]) == ("sseg-nase seed=1", "pretrain\n")


def test_only_the_process_that_holds_a_folder_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no process is at work on it"):
        ask_to_stop(tmp_path, this_process())
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with FileLock(tmp_path / ".lock"):
            with pytest.raises(
                UserError, match=r"its process is on elsewhere; stop it there: kill 7"
            ):
                ask_to_stop(tmp_path, {"host": "elsewhere", "pid": 7})
            assert heard == []
            ask_to_stop(tmp_path, this_process())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_a_command_waits_for_its_place_and_is_stopped_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = made(tmp_path / "commands" / "one", slots=1, gpus=0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(time, "sleep", lambda _: waiting._stop())  # asked to stop while it waits
    monkeypatch.setattr(waiting, "_run", lambda *_: pytest.fail("there is no place"))
    place = tmp_path / "commands" / "slots"
    place.mkdir()
    with FileLock(place / "0.lock"):
        assert waiting.main(command.path) == 130
    assert command.standing() == (
        "INTERRUPTED",
        "it has said nothing; its exit code is all that is known",
        130,
    )


def ended(command: Command, seconds: float = 120) -> None:
    stop = time.monotonic() + seconds
    while command.standing().exitcode is None:
        assert time.monotonic() < stop, command.output()
        time.sleep(0.05)


def test_a_command_has_a_session_of_its_own_and_takes_its_arguments_as_they_are(
    tmp_path: Path,
) -> None:
    odd = "experiment_name=a b; touch stolen $(touch stolen)"
    command = start(["--version", odd], tmp_path, slots=1)
    pid = command.notes()["pid"]
    with suppress(ProcessLookupError):  # it was quick
        assert os.getsid(pid) == pid != os.getsid(0)
    ended(command)
    assert command.standing().state == "FINISHED", command.output()
    assert command.output().startswith("sseg-nase ")
    assert not list(Path.cwd().rglob("stolen"))
    assert started(tmp_path) == [command]


@pytest.mark.slow
def test_a_run_that_is_stopped_writes_its_checkpoint(tmp_path: Path) -> None:
    overrides = [
        "debug=tiny",
        "tracking=jsonl",
        "pretrain.epochs=500",
        f"paths.output_dir={tmp_path}",
    ]
    command = start(overrides, tmp_path, slots=1)
    stop = time.monotonic() + 120
    while (run := command.run()) is None or not list(run.glob("checkpoints/last.pt")):
        assert time.monotonic() < stop, command.output()
        assert command.standing().exitcode is None, command.output()
        time.sleep(0.1)
    command.stop()
    ended(command)
    assert command.standing().state == "INTERRUPTED"
    assert "resume with: sseg-nase resume=" in command.standing().reason
