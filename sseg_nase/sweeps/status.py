"""How the jobs of a sweep stand, from what is on disk, who is alive, and what Slurm has queued."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sseg_nase.errors import MISTAKE
from sseg_nase.finite import finite
from sseg_nase.rundir.events import last_epoch, last_written
from sseg_nase.rundir.results import LAST, accuracies_of, episode_result, read_results
from sseg_nase.rundir.status import (
    ENDS,
    FAILED,
    FINISHED,
    INTERRUPTED,
    RUNNING,
    end_dead,
    status_of,
)
from sseg_nase.sweeps.folder import JobFolder, SweepFolder
from sseg_nase.sweeps.isolation import Ending
from sseg_nase.tracking.sweeps import SweepStore

WAITING, QUEUED = "WAITING", "QUEUED"
GONE = "its process is gone and left no word"
SECONDS_BETWEEN_POLLS = 1.0
SECONDS_FOR_SLURM = 60
# What a process dies of by itself; any other signal was sent by someone.
CRASHES = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL")
SHELLS_SIGNALS = 128
# Slurm's own states of a job that has ended or will not run.
SLURM_ENDED = (
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "PREEMPTED",
)

SLURM_AT_WORK = ("RUNNING", "COMPLETING")
SLURM_STOPPED = ("CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "PREEMPTED")
# A lock says nothing across machines whose file system does not share locks; this long without a
# line in events.jsonl does.
SECONDS_OF_SILENCE = 3600

Queue = Mapping[str, str]  # Slurm's job id to its state


@dataclass(frozen=True)
class Seen:
    """One job at one moment.

    `state`: WAITING (nobody has begun), QUEUED (in Slurm, or for a device), RUNNING, FINISHED,
    FAILED, INTERRUPTED;
    `detail`: why it is so, or what it waits for; `seconds` of its latest stretch.
    """

    job: JobFolder
    state: str
    detail: str
    epoch: int | None
    metric: str
    seconds: float | None
    exitcode: int | None

    @property
    def failed(self) -> bool:
        """Whether it has ended and not well."""
        return self.state in (FAILED, INTERRUPTED)


def poll(sweep: SweepFolder) -> list[Seen]:
    """See how every job stands. A dead run that still says RUNNING is ended as INTERRUPTED."""
    handed = [job.slurm_job for job in sweep.jobs]  # first: what comes after is not in the queue
    queue = slurm_queue() if any(handed) else {}
    stopped = sweep.stopped
    return [
        _seen(sweep, job, slurm_job, queue, stopped)
        for job, slurm_job in zip(sweep.jobs, handed, strict=True)
    ]


def reap(sweep: SweepFolder, job: JobFolder, status: str, reason: str) -> bool:
    """End a run whose process is dead, on disk and in the tracker; tell whether it was."""
    said = None if job.run is None else end_dead(job.run, status, reason)
    if said is None:
        return False
    if run_id := said.get("tracker_run_id"):
        SweepStore(sweep.tracking, warn=partial(print, file=sys.stderr)).end(run_id, status, reason)
    return True


def exit_code(seen: Sequence[Seen]) -> int:
    """Return 0 unless a job has ended badly; then 2 if mistakes of the user are all there is."""
    failed = [one for one in seen if one.failed]
    if not failed:
        return 0
    return 2 if all(one.exitcode == MISTAKE for one in failed) else 1


def slurm_queue() -> Queue | None:
    """Return the user's jobs that wait or run in Slurm; None where Slurm does not answer."""
    listed = _asked("squeue", "--me", "--noheader", "--array", "--format=%i %T")
    if listed is None:
        return None
    pairs = (line.split() for line in listed.splitlines() if len(line.split()) == 2)
    return {job: state for job, state in pairs if state not in SLURM_ENDED}


def slurm_said(slurm_job: str | None) -> tuple[str, str] | None:
    """Return how a job of Slurm ended that left no word itself; None where Slurm forgot it."""
    if slurm_job is None:
        return None
    shown = _asked("scontrol", "show", "job", "--oneliner", slurm_job)
    known = dict(pair.split("=", 1) for pair in (shown or "").split() if "=" in pair)
    state = known.get("JobState")
    if state not in SLURM_ENDED:
        return None
    code, _, number = known.get("ExitCode", "0:0").partition(":")
    # A shell, and srun, say it so where a signal has ended what they had started.
    killer = int(number or 0) or max(0, int(code) - SHELLS_SIGNALS)
    killer = 0 if killer >= signal.NSIG else killer
    how = f"signal {killer}" if killer else f"exit code {code}"
    # Whatever Slurm calls it: a process that ended by itself and left no word has crashed.
    ended = died(Ending(-killer or int(code), timed_out=False))
    if state in SLURM_STOPPED:
        ended = INTERRUPTED
    elif state == "OUT_OF_MEMORY":
        ended = FAILED
    return ended, f"its process ended without a word ({how}; Slurm says {state})"


def died(ending: Ending) -> str:
    """What a death without a word is: FAILED for an exit or a crash, INTERRUPTED for a kill."""
    crashed = ending.exitcode >= 0 or str(ending).rpartition(" ")[2] in CRASHES
    return FAILED if crashed and not ending.timed_out else INTERRUPTED


def _asked(*command: str) -> str | None:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS_FOR_SLURM,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _seen(
    sweep: SweepFolder,
    job: JobFolder,
    slurm_job: str | None,
    queue: Queue | None,
    stopped: str | None,
) -> Seen:
    alive, state = job.alive(), job.state()
    said = status_of(job.run) if job.run is not None else {}
    queued = (queue or {}).get(str(slurm_job))
    # Slurm needs a moment to see that a process has ended; what was interrupted may come back.
    over = state.get("status") == FAILED and state.get("slurm_job") == slurm_job
    if said.get("status") == FINISHED:
        found, detail = FINISHED, str(state.get("reason") or "")
    elif alive or (queued in SLURM_AT_WORK and not over):
        detail = str(state.get("waiting") or "")
        found = QUEUED if detail else RUNNING
    elif queued is not None and not over:
        found, detail = QUEUED, f"Slurm job {slurm_job} is {queued}"
    elif "ended" in state and (slurm_job in (None, state.get("slurm_job")) or queue is not None):
        found, detail = str(state["status"]), str(state.get("reason") or "")
        if found == FINISHED and job.lost is not None:
            found, detail = INTERRUPTED, job.lost
    elif slurm_job is not None and queue is None:
        found, detail = QUEUED, f"Slurm job {slurm_job}, but Slurm does not answer"
    elif "started" not in state and slurm_job is not None and stopped is None:
        found, detail = INTERRUPTED, f"Slurm job {slurm_job} was cancelled before it began"
    elif "started" not in state:
        found, detail = WAITING, stopped or ""
    elif said.get("status") in ENDS:
        found, detail = str(said["status"]), str(said.get("error") or "")
    elif job.alive() or job.state() != state:  # it has begun, or ended, while we looked
        return _seen(sweep, job, slurm_job, queue, stopped)
    elif not _dead(job, state, queue):
        found, detail = RUNNING, f"on {state['host']}, as far as can be seen from here"
    else:
        found, detail = slurm_said(slurm_job) or (INTERRUPTED, GONE)
        reap(sweep, job, found, detail)
        job.note(ended=time.time(), status=found, reason=detail)
    epoch, loss = (None, None) if job.run is None else last_epoch(job.run)
    return Seen(
        job=job,
        state=found,
        detail=detail,
        epoch=epoch,
        metric=_metric(job.run, loss, found),
        seconds=_seconds(state, found),
        exitcode=state.get("exitcode"),
    )


def _dead(job: JobFolder, state: Mapping[str, Any], queue: Queue | None) -> bool:
    """Whether a process that holds no lock is gone for sure."""
    if state.get("host") == socket.gethostname():
        return True
    if job.slurm_job is not None and queue is not None:
        return True  # Slurm has been asked, and does not know it any more
    last = None if job.run is None else last_written(job.run)
    silent = time.time() - (state["started"] if last is None else last)
    return bool(silent > SECONDS_OF_SILENCE)


def _seconds(state: Mapping[str, Any], found: str) -> float | None:
    if "started" not in state:
        return None
    end = time.time() if found == RUNNING else state.get("ended")
    return None if end is None else end - state["started"]


def _metric(run: Path | None, loss: float | None, found: str) -> str:
    """The first accuracy of a run that has ended well, else its latest loss."""
    if run is not None and found == FINISHED:
        key, first = next(iter(accuracies_of(read_results(run) or {}, LAST).items()), ("", None))
        if not key:
            return ""
        one = episode_result(key, LAST, first)
        if one is None or one.ci95 is None:
            return f"{key} holds no accuracy"
        return f"{key} {one.accuracy:.2f} ± {one.ci95:.2f} %"
    return f"loss {loss:.4f}" if finite(loss) else ""


class Watcher:
    """Context manager that polls the jobs of a sweep, and tells a line when one changes state."""

    def __init__(self, sweep: SweepFolder, tell: Callable[[str], None]) -> None:
        self._sweep, self._tell = sweep, tell
        self._known = {one.job.number: one.state for one in poll(sweep)}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sweep-watcher", daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *ending: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Tell what has changed to the last, once."""
        if not self._ended.is_set():
            self._ended.set()
            self._thread.join()
            self.poll()

    def _watch(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_POLLS):
            self.poll()

    def poll(self) -> list[Seen]:
        """See how every job stands, and tell what is new."""
        seen = poll(self._sweep)
        for one in seen:
            if self._known[one.job.number] != one.state:
                self._known[one.job.number] = one.state
                self._tell(line(one))
        return seen


def line(one: Seen) -> str:
    """Return one job's standing in one line."""
    took = "" if one.seconds is None or one.state == RUNNING else f"  {one.seconds:.0f} s"
    parts = [part for part in (one.metric, one.detail) if part]
    return f"job {one.job.number}  {one.job.label}  {one.state}{took}" + (
        f"  {'  '.join(parts)}" if parts else ""
    )
