"""A sweep on disk: what was planned and frozen, and what each job's processes note of themselves.

    <output_dir>/sweeps/<time>_<id>/
      sweep.json  code.diff                      the plan, and the code it was submitted with
      jobs/<n>/config.yaml  job.json  console.log
      report/

A job's config.yaml is what it runs, however long it waits and whatever becomes of `conf/`. Who is
alive is told by locks, which end with their process, never by what was written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml
from filelock import FileLock, Timeout

from sseg_nase.config.commands import command
from sseg_nase.config.compose import stored
from sseg_nase.config.members import restored
from sseg_nase.config.schema import Config, SweepConfig, TrackingConfig
from sseg_nase.errors import UserError
from sseg_nase.files import make_own, read_json, write_json, write_text
from sseg_nase.rundir.lock import locked
from sseg_nase.rundir.names import CONFIG, STATUS
from sseg_nase.rundir.status import FINISHED, Process, status_of

logger = logging.getLogger("sseg_nase")
Opened = TypeVar("Opened")
# Whoever asks whether a lock is held takes it for an instant: a real taker is patient.
SECONDS_FOR_LOCK = 2.0
# What job.json says of a job that its own process has not begun; taken out where it has ended.
NOT_YET: Mapping[str, Any] = {"waiting": None, "starting": None}
# What sweep.json says at least, of itself and of each job, and what job.json says, if it does.
PLANNED: Mapping[str, Any] = {
    "title": str,
    "identity": str,
    "shared": list,
    "settings": dict,
    "tracking": dict,
    "code": dict,
    "threads": int,
    "jobs": list,
}
PLANNED_JOB: Mapping[str, Any] = {
    "number": int,
    "label": str,
    "configuration": str,
    "seed": int,
    "fingerprint": str,
    "overrides": list,
}
NOTED: Mapping[str, Any] = {
    "host": str,
    "pid": int,
    "slurm_job": str,
    "attempts": int,
    "started": int | float,
    "ended": int | float,
    "status": str,
    "reason": str,
    "exitcode": int,
    "run": str,
}


@dataclass(frozen=True)
class Planned:
    """One job as it was planned: `configuration` is what jobs differ in but for their seed."""

    number: int
    label: str
    configuration: str
    fingerprint: str
    overrides: tuple[str, ...]
    config: Config


class JobFolder:
    """What is known of one job: what was planned, and job.json, which its processes write."""

    def __init__(self, path: Path, planned: Mapping[str, Any]) -> None:
        self.path = path
        self.number: int = planned["number"]
        self.label: str = planned["label"]
        self.configuration: str = planned["configuration"]
        self.fingerprint: str = planned["fingerprint"]
        self.seed: int = planned["seed"]
        self.overrides: list[str] = planned["overrides"]

    @cached_property
    def config(self) -> Config:
        """The config as it was frozen at submission."""
        return stored(self.path / CONFIG)

    @property
    def console(self) -> Path:
        """Where the output of the job's processes goes when it is not shown."""
        return self.path / "console.log"

    def state(self) -> dict[str, Any]:
        """What job.json says; nothing before the job has begun, or where it is damaged."""
        said = read_json(self.path / "job.json") or {}
        whole = all(isinstance(said[key], NOTED.get(key, object)) for key in said)
        return said if whole else {}

    def note(self, **fields: Any) -> None:
        """Write `fields` into job.json; None takes one out."""
        known = {k: v for k, v in (self.state() | fields).items() if v is not None}
        write_json(self.path / "job.json", known)

    def queue(self, slurm_job: str) -> None:
        """Note under which number the job waits in Slurm."""
        write_text(self.path / "slurm_job", slurm_job)

    def unqueue(self) -> None:
        """Note that it is Slurm's no more."""
        (self.path / "slurm_job").unlink(missing_ok=True)

    @property
    def slurm_job(self) -> str | None:
        """Slurm's number of the job, if it was ever handed to it."""
        path = self.path / "slurm_job"
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    @property
    def begun(self) -> bool:
        """Whether it was started, or handed to a queue."""
        return "started" in self.state() or self.slurm_job is not None

    def forget(self) -> None:
        """Stand as if never begun; what its run has written stays."""
        (self.path / "job.json").unlink(missing_ok=True)
        self.unqueue()

    @property
    def run(self) -> Path | None:
        """The directory of the job's run, once there is one.

        It stands beside the sweep, also where both were moved or copied together.
        """
        known = self.state().get("run")
        if known is None:
            return None
        beside = self.path.parents[3] / Path(known).parent.name / Path(known).name
        return beside if beside.is_dir() else Path(known)

    @property
    def lost(self) -> str | None:
        """What is to be said where the job has a run whose directory is not there any more."""
        run = self.run
        return None if run is None or run.is_dir() else f"its run {run} is not there any more"

    @property
    def finished(self) -> bool:
        """Whether the job's run has ended well."""
        return self.run is not None and status_of(self.run).get("status") == FINISHED

    def alive(self) -> bool:
        """Whether a process is at work on the job: the launcher's, or the run's own."""
        return locked(self.path) or (self.run is not None and locked(self.run))

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Hold the job for as long as the block lasts; False where another process has it."""
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=SECONDS_FOR_LOCK)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()


class SweepFolder:
    """A sweep's directory. Raises `UserError` where `path` is none."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.plan = read_json(self.path / "sweep.json") or {}
        if not self.plan:
            raise UserError(
                f"sweep={path}: not the directory of a sweep (no readable sweep.json there). "
                "Name one like runs/sweeps/<time>_<id>."
            )
        if (wrong := _damage(self.plan)) is not None:
            raise UserError(
                f"sweep={path}: sweep.json there is damaged ({wrong}). Bring it back from a copy; "
                "without its folder the same command starts the sweep again."
            )
        self.jobs = [
            JobFolder(self.path / "jobs" / str(job["number"]), job) for job in self.plan["jobs"]
        ]
        self._lock = FileLock(self.path / ".lock")

    @property
    def name(self) -> str:
        """The directory's name, which is also the sweep's tag in the tracker."""
        return self.path.name

    @property
    def output_dir(self) -> Path:
        """Where its runs go, beside it: another folder than at first where it was moved."""
        return self.path.parents[1]

    @property
    def created(self) -> float:
        """When it was planned, in seconds since 1970."""
        return float(self.plan.get("created") or 0)

    @property
    def title(self) -> str:
        """What was swept, for people."""
        return str(self.plan["title"])

    @property
    def shared(self) -> list[str]:
        """The overrides that all jobs have."""
        return list(self.plan["shared"])

    @property
    def settings(self) -> SweepConfig:
        """What the latest launch asked for."""
        return SweepConfig(**{"dry_run": False, **self.plan["settings"]})

    @property
    def tracking(self) -> TrackingConfig:
        """Where the sweep's runs are recorded."""
        tracking: TrackingConfig = restored(TrackingConfig, self.plan["tracking"])
        return tracking

    @property
    def report(self) -> Path:
        """Where tables over all of its runs go."""
        return self.path / "report"

    def note(self, **fields: Any) -> None:
        """Write `fields` into sweep.json, beside what others have written there."""
        self.plan = (read_json(self.path / "sweep.json") or self.plan) | fields
        write_json(self.path / "sweep.json", self.plan)

    def stop(self, reason: str) -> None:
        """Let no further job begin."""
        write_text(self.path / "stopped", reason)

    @property
    def stopped(self) -> str | None:
        """Why no further job begins, if so."""
        path = self.path / "stopped"
        return path.read_text(encoding="utf-8") if path.exists() else None

    def end(self, status: str) -> None:
        """Note that nothing is on its way any more."""
        write_text(self.path / "ended", status)

    @property
    def ended(self) -> bool:
        """Whether somebody has closed it since it was launched."""
        return (self.path / "ended").exists()

    @property
    def threads(self) -> int:
        """Of a job on a CPU, whatever the launcher: their number decides the last digits."""
        return int(self.plan["threads"])

    def begin_launch(self, settings: SweepConfig, visible_devices: str | None) -> None:
        """Note what was asked for; an earlier stop is taken back."""
        kept = dataclasses.replace(settings, dir=None, job=None)
        self.note(
            settings=dataclasses.asdict(kept),
            visible_devices=visible_devices,
        )
        for name in ("stopped", "ended"):
            (self.path / name).unlink(missing_ok=True)

    @contextmanager
    def launching(self) -> Iterator[None]:
        """Hold the sweep while its jobs are launched. Raises `UserError` where another does."""
        try:
            self._lock.acquire(timeout=SECONDS_FOR_LOCK)
        except Timeout as error:
            owner = self.plan.get("launched_by", "another process")
            raise UserError(
                f"sweep={self.path}: it is being run by {owner}. Look at it with task=status, wait "
                "for it, or add sweep.rerun=true for another one beside it."
            ) from error
        except OSError as error:
            raise UserError(
                f"sweep={self.path}: cannot be written ({error.strerror}); resume it where "
                "that is possible."
            ) from error
        try:
            me = this_process()
            self.note(launched_by=f"process {me['pid']} on {me['host']}", launcher=me)
            yield
        finally:
            self._lock.release()

    @property
    def launcher(self) -> Process:
        """The process that launches its jobs, or did so last; empty: an older version's."""
        said = self.plan.get("launcher")
        return Process(host=said["host"], pid=said["pid"]) if isinstance(said, dict) else {}

    def launched(self) -> bool:
        """Whether a process is launching its jobs right now."""
        return locked(self.path)


def create(
    output_dir: Path,
    jobs: Sequence[Planned],
    *,
    title: str,
    shared: Sequence[str],
    settings: SweepConfig,
    tracking: TrackingConfig,
    code: Mapping[str, Any],
    diff: str | None,
) -> SweepFolder:
    """Make the directory of a new sweep and freeze its jobs in it.

    Raises `UserError` where it cannot be written.
    """
    now = datetime.now(timezone.utc)  # not every machine that sees the folder has our time zone
    make_own(output_dir, output_dir / "sweeps")
    path = output_dir / "sweeps" / f"{now:%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(3)}"
    try:
        for job in jobs:
            freeze(path, job)
        if diff:
            write_text(path / "code.diff", diff)
        plan = {
            "schema": 1,
            "title": title,
            "identity": identity(jobs),
            "shared": list(shared),
            "settings": dataclasses.asdict(settings),
            "tracking": dataclasses.asdict(tracking),
            "parent_run_id": None,
            "created": now.timestamp(),
            "folder": str(Path.cwd()),
            "code": dict(code),
            "threads": threads_of(settings),
            "jobs": [described(job) for job in jobs],
        }
        write_json(path / "sweep.json", plan)  # last: with it the directory is a sweep
    except OSError as error:
        raise UserError(
            f"paths.output_dir={output_dir}: cannot be written ({error.strerror}: "
            f"{error.filename}). Set paths.output_dir to a folder of yours."
        ) from error
    return SweepFolder(path)


def _damage(plan: Mapping[str, Any]) -> str | None:
    """What is wrong with what sweep.json says, in words; None where nothing is."""
    for key, kind in PLANNED.items():
        if not isinstance(plan.get(key), kind):
            return f"it has no {key}"
    for job in plan["jobs"]:
        for key, kind in PLANNED_JOB.items():
            if not isinstance(job, Mapping) or not isinstance(job.get(key), kind):
                return f"a job has no {key}"
    return None


def freeze(path: Path, job: Planned) -> None:
    """Write what a job of the sweep in `path` will run."""
    folder = path / "jobs" / str(job.number)
    folder.mkdir(parents=True, exist_ok=True)
    frozen = yaml.safe_dump(dataclasses.asdict(job.config), sort_keys=False)
    write_text(folder / CONFIG, frozen)


def described(job: Planned) -> dict[str, Any]:
    """Return a job as sweep.json has it."""
    return {
        "number": job.number,
        "label": job.label,
        "configuration": job.configuration,
        "seed": job.config.seed,
        "fingerprint": job.fingerprint,
        "overrides": list(job.overrides),
    }


def threads_of(settings: SweepConfig) -> int:
    """Return how many threads a job on a CPU has beside those that run at once."""
    return max(1, (os.cpu_count() or 1) // settings.parallel)


def sweeps_in(output_dir: Path) -> list[SweepFolder]:
    """Return the sweeps under `output_dir`, the latest last, whatever their names say.

    Raises `UserError` for one that is damaged: it may be the very one that is to be resumed.
    """
    found = (output_dir.expanduser().absolute() / "sweeps").glob("*/sweep.json")
    return sorted((SweepFolder(path.parent) for path in found), key=lambda s: (s.created, s.name))


def same_as(jobs: Sequence[Planned], output_dir: Path) -> SweepFolder | None:
    """Return the latest sweep under `output_dir` that consists of these very jobs."""
    wanted = identity(jobs)
    known = (s for s in reversed(sweeps_in(output_dir)) if s.plan["identity"] == wanted)
    return next(known, None)


def looked_at(wanted: str | None, output_dir: Path) -> SweepFolder:
    """Return the sweep that `sweep=DIR` names; the latest one for None and LAST.

    Raises `UserError` where there is none.
    """
    if wanted not in (None, "LAST"):
        return SweepFolder(Path(str(wanted)))
    folders = (output_dir.expanduser().absolute() / "sweeps").glob("*/sweep.json")
    known = readable(SweepFolder, (path.parent for path in folders))
    if not known:
        single = any(output_dir.expanduser().glob(f"*/*/{STATUS}"))
        runs = (
            f" For the single runs there: {command(task='report', runs='LAST')}" if single else ""
        )
        raise UserError(
            f"sweep=LAST: there is no sweep in {output_dir}/sweeps yet; start one with -m, or "
            f"name one with sweep=DIR.{runs}"
        )
    return max(known, key=lambda sweep: (sweep.created, sweep.name))


def readable(opened: Callable[[Path], Opened], folders: Iterable[Path]) -> list[Opened]:
    """Return those that can be read, to look at; each of the others is a warning that names it.

    Raises the `UserError` of the last one where none can.
    """
    found, refusals = [], []
    for folder in sorted(folders):
        try:
            found.append(opened(folder))
        except UserError as error:
            refusals.append(error)
    if refusals and not found:
        raise refusals[-1]
    for refusal in refusals:
        logger.warning("%s It is left out here.", refusal)
    return found


def identity(jobs: Sequence[Planned]) -> str:
    """Return 16 hexadecimal digits that are equal for the same jobs under the same names."""
    named = sorted((job.fingerprint, job.label, job.config.experiment_name) for job in jobs)
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]


def this_process() -> dict[str, Any]:
    """Return where this process is, as job.json has it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    slurm = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    return {"host": socket.gethostname(), "pid": os.getpid(), "slurm_job": slurm}
