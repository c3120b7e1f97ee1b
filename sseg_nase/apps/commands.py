"""Commands that the page starts: each is a folder, and a process that outlives the page.

    <output_dir>/commands/<time>-<id>/
      command.json  console.log  predictions.csv (of task=predict)

`sseg_nase.apps.waiting` is that process: it waits for a slot, runs `sseg-nase`, and notes how it
ended. Who is alive is told by the lock of the folder.
"""

from __future__ import annotations

import re
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from sseg_nase.config.commands import PROGRAM
from sseg_nase.errors import DONE, STOPPED, UserError
from sseg_nase.files import make_own, read_json, write_json
from sseg_nase.redaction import overrides_without
from sseg_nase.rundir.lock import locked
from sseg_nase.rundir.status import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    RUNNING,
    Process,
    ask_to_stop,
)

FOLDER, NOTES = "commands", "command.json"
WAITING = "WAITING"  # for a slot
GONE = "its process is gone and left no word"
SECONDS_TO_BEGIN = 30.0
SHOWN = 20_000  # characters of the output, from its end
# The program's own, and what a shell says of a process that a signal ended.
INTERRUPTIONS = (STOPPED, *(128 + each for each in (signal.SIGHUP, signal.SIGTERM, signal.SIGKILL)))
_SAYS_WHERE = re.compile(r"^run .* in (/.+)$", re.MULTILINE)


class Standing(NamedTuple):
    """How a command stands, as a run does; `reason`: what it said last, where it did not end well.

    `exitcode`: None while it goes on, and where its process left no word.
    """

    state: str
    reason: str
    exitcode: int | None


@dataclass(frozen=True)
class Command:
    """One command that was started, by its folder."""

    path: Path

    def notes(self) -> dict[str, Any]:
        """Return what command.json says; nothing where it cannot be read."""
        return read_json(self.path / NOTES) or {}

    def note(self, **fields: Any) -> None:
        """Write `fields` into command.json. Raises `StorageError`."""
        write_json(self.path / NOTES, self.notes() | fields)

    @property
    def arguments(self) -> list[str]:
        """What stands behind `sseg-nase`."""
        return [str(text) for text in self.notes().get("arguments", [])]

    @property
    def line(self) -> str:
        """The command as one pastes it into a shell."""
        return line(self.arguments)

    @property
    def started(self) -> float:
        """When it was started, in seconds since 1970."""
        return float(self.notes().get("started") or 0)

    @property
    def console(self) -> Path:
        """Where its output goes."""
        return self.path / "console.log"

    @property
    def predictions(self) -> Path:
        """Where `task=predict` of the page writes what it found."""
        return self.path / "predictions.csv"

    def output(self) -> str:
        """Return the end of its output."""
        try:
            with self.console.open("rb") as file:
                file.seek(max(0, self.console.stat().st_size - SHOWN))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def run(self) -> Path | None:
        """Return the folder of its run, once it has said so."""
        try:
            with self.console.open(encoding="utf-8", errors="replace") as file:
                found = _SAYS_WHERE.search(file.read(SHOWN))
        except OSError:
            return None
        return Path(found[1]) if found else None

    def standing(self) -> Standing:
        """Return how it stands."""
        alive, notes = locked(self.path), self.notes()
        if alive:
            waiting = str(notes.get("waiting") or "")
            return Standing(RUNNING if "begun" in notes else WAITING, waiting, None)
        code = notes.get("exitcode")
        if not isinstance(code, int):
            return Standing(INTERRUPTED, GONE, None)
        state = FINISHED if code == DONE else INTERRUPTED if code in INTERRUPTIONS else FAILED
        return Standing(state, "" if code == DONE else self._last_words(), code)

    def stop(self) -> None:
        """Ask it to stop; a run writes its checkpoint. Raises `UserError`."""
        notes = self.notes()
        ask_to_stop(self.path, Process(host=notes.get("host", ""), pid=notes.get("pid", 0)))

    def _last_words(self) -> str:
        """What the program said last, with the lines that belong to it."""
        said = self.output().rpartition(f"{PROGRAM}: ")[2].strip()
        return said[-2000:] or "it has said nothing; its exit code is all that is known"


def line(arguments: Sequence[str]) -> str:
    """Return the command with these arguments, ready to be pasted into a shell."""
    return shlex.join([PROGRAM, *arguments])


def start(
    arguments: Sequence[str], output_dir: Path, *, slots: int, gpus: int = 0, predicts: bool = False
) -> Command:
    """Start `sseg-nase` with `arguments` in a process session of its own.

    At most `slots` commands of `output_dir` are at work at once, the others wait; `gpus`: wait for
    so many free ones, and see no others. `predicts`: what it predicts goes into its own folder.
    Raises `UserError` where its process does not begin.
    """
    now = datetime.now(timezone.utc)
    base = output_dir.expanduser().absolute() / FOLDER
    make_own(base)
    command = Command(base / f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}")
    command.path.mkdir()
    own = [f"predict.output={command.predictions}"] if predicts else []
    command.note(
        arguments=[*overrides_without(arguments), *own],
        started=now.timestamp(),
        slots=slots,
        gpus=gpus,
    )
    with command.console.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "sseg_nase.apps.waiting", str(command.path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    threading.Thread(target=process.wait, daemon=True).start()  # or it would stay as a zombie
    deadline = time.monotonic() + SECONDS_TO_BEGIN
    while "pid" not in command.notes():
        if process.poll() is not None or time.monotonic() > deadline:
            raise UserError(f"{command.line}: it could not be started. {command.output()}")
        time.sleep(0.02)
    return command


def started(output_dir: Path) -> list[Command]:
    """Return the commands that the page has started, the latest first."""
    found = (output_dir.expanduser().absolute() / FOLDER).glob(f"*/{NOTES}")
    return [Command(path.parent) for path in sorted(found, reverse=True)]
