"""status.json: whether a run is at work, or how it has ended."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from filelock import Timeout

from sseg_nase.config.commands import command
from sseg_nase.errors import UserError
from sseg_nase.files import StorageError, overwrite_json, read_json, write_json
from sseg_nase.rundir.lock import SECONDS_FOR_LOCK, lock_of, locked
from sseg_nase.rundir.names import STATUS

RUNNING = "RUNNING"
FINISHED, FAILED, INTERRUPTED = "FINISHED", "FAILED", "INTERRUPTED"
ENDS = (FINISHED, FAILED, INTERRUPTED)
UNKNOWN = "UNKNOWN"  # of a run that does not say


class Process(TypedDict, total=False):
    """Who wrote it."""

    host: str
    pid: int


class Status(TypedDict, total=False):
    """What status.json says. `error` is None where there is none; other keys are then left out.

    `directory`: the folder that wrote it, as a run may be moved or copied. `tracker_run_id` and
    `tracking_uri`: as what the tracker knows the run, and where. `undelivered`: the tracker lacks
    something that is in the folder.
    """

    status: str
    error: str | None
    traceback: str
    process: Process
    directory: str
    tracker_run_id: str
    tracking_uri: str
    undelivered: bool


def read_status(run: Path) -> Status | None:
    """Return what status.json of a run says; None where there is none that can be read.

    An entry of another type than a run writes is damaged, and says nothing.
    """
    said = read_json(run / STATUS)
    if said is None:
        return None
    kept = {key: value for key, value in said.items() if isinstance(value, _KINDS.get(key, object))}
    return Status(**kept)  # type: ignore[typeddict-item]


def status_of(run: Path) -> Status:
    """Return what status.json of a run says; nothing where there is none that can be read."""
    return read_status(run) or Status()


def write_status(run: Path, status: Status) -> None:
    """Write status.json of a run, whole or not at all. Raises `StorageError`.

    How a run has ended, other than well, is written even where no new file fits.
    """
    path = run / STATUS
    try:
        write_json(path, status)
    except StorageError as failure:
        if status.get("status") not in (FAILED, INTERRUPTED):
            raise
        try:
            overwrite_json(path, {k: v for k, v in status.items() if k != "traceback"})
        except OSError:
            raise failure from None


def this_process() -> Process:
    """Return what status.json says of the process that writes it."""
    return {"host": socket.gethostname(), "pid": os.getpid()}


def ask_to_stop(folder: Path, process: Process) -> None:
    """Ask the process that holds a folder to stop: a run then finishes its step and its checkpoint.

    Raises `UserError` where nobody holds the folder, and for a process on another machine.
    """
    host, pid = process.get("host"), process.get("pid")
    if not locked(folder):
        raise UserError(f"{folder}: no process is at work on it, so there is nothing to stop.")
    if host != socket.gethostname() or pid is None:
        raise UserError(f"{folder}: its process is on {host}; stop it there: kill {pid}")
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        raise UserError(f"{folder}: its process {pid} has just ended.") from None
    except PermissionError:
        raise UserError(
            f"{folder}: its process {pid} is another user's, who has to stop it."
        ) from None


def end_dead(run: Path, status: str, error: str) -> Status | None:
    """Write how a run ended whose process died without a word; return what status.json said.

    None, and nothing is written, where the run has said how it ended or is still going on.
    """
    lock = lock_of(run)
    try:
        lock.acquire(timeout=SECONDS_FOR_LOCK)
    except (Timeout, OSError):
        return None
    try:
        said = status_of(run)
        if said.get("status") != RUNNING:
            return None
        ended: Status = {**said, "status": status, "error": error}
        if said.get("tracking_uri"):  # what it told in its last seconds may not have arrived
            ended["undelivered"] = True
        write_status(run, ended)
        return said
    finally:
        lock.release()


def own_run_id(run: Path, said: Status) -> tuple[str | None, str | None]:
    """Return the tracker's run that a run's folder may write to, and what is to be said of it.

    A folder that was moved keeps its run; a copy must not write into that of the original, so it
    gets one of its own. `said`: its status.json, which names the folder that wrote it.
    """
    run_id, wrote = said.get("tracker_run_id"), said.get("directory")
    if wrote is None or Path(wrote) == run or _same_folder(Path(wrote), run):
        return run_id, None
    there = status_of(Path(wrote))
    here = said.get("process", {}).get("host") == socket.gethostname()
    same = there.get("directory") == wrote and there.get("tracker_run_id") == run_id
    if here and not same:
        return run_id, f"this run was moved here from {wrote}"
    if run_id is None:
        return None, f"this run is a copy of {wrote}"
    return None, (
        f"this run is a copy of {wrote}{'' if here else ', made on another machine'}: it gets a "
        "run of its own in MLflow"
    )


def standing(run: Path, status: Status) -> str:
    """How a run stands by its status.json, and whether one that says RUNNING has a process."""
    said = status.get("status", UNKNOWN)
    if said != RUNNING or locked(run):
        return said
    host = status.get("process", {}).get("host")
    if host in (None, socket.gethostname()):
        dead = f"its process was killed; {command(resume=run.absolute())} resumes it"
    else:
        dead = f"its process, on {host}, is dead or cannot be seen from here"
    return f"{said} by its status.json, but nothing holds it ({dead})"


def _same_folder(a: Path, b: Path) -> bool:
    """Whether both name one folder, as by a link."""
    try:
        return a.samefile(b)
    except OSError:
        return False


_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "status": str,
    "error": str,
    "traceback": str,
    "process": dict,
    "directory": str,
    "tracker_run_id": str,
    "tracking_uri": str,
    "undelivered": bool,
}
