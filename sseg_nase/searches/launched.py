"""Candidates through one of Hydra's launchers: joblib, submitit on this machine, Slurm.

What is started together is handed over together, by a process of the program that does with these
jobs of the search's folder what `-m` does with those of a sweep. How they end is read from disk, so
it makes no difference whether that process, or this one, is still there: a search that was killed
finds its jobs running, in Slurm's queue or finished, and hands over what is left.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sseg_nase.rundir.status import FAILED, FINISHED, INTERRUPTED
from sseg_nase.search.log import Candidate, Scored
from sseg_nase.searches.jobs import Jobs
from sseg_nase.sweeps.folder import SweepFolder
from sseg_nase.sweeps.launch import hand_over, stop_jobs
from sseg_nase.sweeps.status import WAITING, Seen, poll

SLURM = "submitit_slurm"
LAUNCHERS = ("joblib", "submitit_local", SLURM)
SECONDS_BETWEEN_POLLS = {SLURM: 5.0}  # others ask it, too
SECONDS_TO_END = 30.0  # of a process that has handed its jobs over, or whose jobs have ended
TAIL = 3  # lines of its log
TO_BEGIN = (WAITING, INTERRUPTED)  # or to be resumed


@dataclass(frozen=True)
class Launcher:
    """The option of `hydra/launcher`, and the overrides that choose and set it."""

    name: str
    overrides: Sequence[str]


class Launched(Jobs):
    """An evaluator with `slots` jobs at once, wherever the launcher runs them."""

    def __init__(self, *arguments: Any, launcher: Launcher) -> None:
        super().__init__(*arguments)
        self._launcher = launcher
        self._waiting: dict[int, Candidate] = {}  # by number of the job, not handed over yet
        self._at_work: dict[int, Candidate] = {}
        self._processes: dict[subprocess.Popen[bytes], list[int]] = {}  # shared by all arms

    def of(self, arm: str, overrides: Sequence[str] = ()) -> Jobs:
        """As of any jobs, with candidates of its own."""
        other = super().of(arm, overrides)
        assert isinstance(other, Launched)
        other._waiting, other._at_work = {}, {}
        return other

    def result(self) -> Scored:
        """Hand over what was started since, and wait for the job that ends first."""
        while self._results.empty():
            self._hand_over()
            if (ended := self._ended()) is not None:
                return self._scored(self._at_work.pop(ended), SweepFolder(self._path), ended)
            time.sleep(SECONDS_BETWEEN_POLLS.get(self._launcher.name, 0.5))
        return self._results.get()

    def stop(self) -> None:
        """As the end of a sweep: what waits or runs in Slurm stays there."""
        sweep = SweepFolder(self._path)
        if self._launcher.name != SLURM:
            sweep.stop("the search was interrupted")
        try:
            stop_jobs(sweep, self._say)
            deadline = time.monotonic() + SECONDS_TO_END
            while self._alive() and time.monotonic() < deadline:
                time.sleep(0.2)
                if self._launcher.name != SLURM:
                    stop_jobs(sweep, self._say)  # also those that had only just begun
        finally:
            for process in self._alive():
                process.kill()
                process.wait()

    def close(self) -> None:
        """Wait for the processes, whose jobs have ended."""
        super().close()
        for process in self._processes:
            process.wait()

    def _begin(self, candidate: Candidate, number: int) -> None:
        self._waiting[number] = candidate

    def _hand_over(self) -> None:
        if not self._waiting:
            return
        sweep = SweepFolder(self._path)
        self._at_work |= self._waiting
        new = [one.job.number for one in _seen(sweep, self._waiting) if one.state in TO_BEGIN]
        self._waiting = {}
        if new:
            started = hand_over(sweep, new, self._launcher.overrides, self.slots, self._further)
            self._processes[started] = new

    def _ended(self) -> int | None:
        """The number of a job that has ended; what an earlier process has left undone is begun."""
        handed = {number for numbers in self._processes.values() for number in numbers}
        alive = {number for process in self._alive() for number in self._processes[process]}
        for one in _seen(SweepFolder(self._path), self._at_work):
            number = one.job.number
            if one.state in (FINISHED, FAILED):
                return number
            if one.state in TO_BEGIN and number not in handed:
                self._waiting[number] = self._at_work.pop(number)
            elif one.state in TO_BEGIN and number not in alive:
                if one.state == WAITING:
                    one.job.note(status=FAILED, reason=self._why())
                return number
        return None

    def _alive(self) -> list[subprocess.Popen[bytes]]:
        return [process for process in self._processes if process.poll() is None]

    def _why(self) -> str:
        log = self._path / "launcher.log"
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        said = " ".join(line.strip() for line in text.strip().splitlines()[-TAIL:])
        return f"hydra/launcher={self._launcher.name} has not started its job: {said or 'no word'}"


def _seen(sweep: SweepFolder, numbers: Container[int]) -> list[Seen]:
    sweep.jobs = [job for job in sweep.jobs if job.number in numbers]
    return poll(sweep)


def jobs_for(launcher: Launcher | None, path: Path, *arguments: Any) -> Jobs:
    """Return the evaluator whose jobs `launcher` runs; None: this process itself."""
    if launcher is None:
        return Jobs(path, *arguments)
    return Launched(path, *arguments, launcher=launcher)
