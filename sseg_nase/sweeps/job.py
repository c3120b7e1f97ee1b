"""One job of a sweep, in whatever process a launcher has given it.

Each gets a process of its own, watched by this one: it says how the job ended where the job cannot.
A job of Slurm has its process already, and Slurm's signals (time limit, preemption) must reach it.
"""

from __future__ import annotations

import dataclasses
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from sseg_nase.config.compose import stored
from sseg_nase.config.schema import Config
from sseg_nase.errors import DONE, FAILURE, MISTAKE, STOPPED, UserError
from sseg_nase.hardware.slots import gpu_slot, slot_of
from sseg_nase.provenance.code import changed_since
from sseg_nase.rundir.names import CONFIG
from sseg_nase.rundir.status import FAILED, FINISHED, INTERRUPTED, RUNNING, status_of
from sseg_nase.sweeps.finish import finish_if_last
from sseg_nase.sweeps.folder import NOT_YET, JobFolder, SweepFolder, this_process
from sseg_nase.sweeps.isolation import Ending, isolated
from sseg_nase.sweeps.status import died, reap


def perform(sweep_path: Path, number: int, launcher: str) -> None:
    """Run the job until it has ended, with the retries that the sweep allows.

    How it ended is on disk. For Slurm, which has a name for that, too, a failure is raised.
    """
    sweep = SweepFolder(sweep_path)
    job = sweep.jobs[number]
    try:
        _attempts(sweep, job, launcher)
    finally:
        finish_if_last(sweep, partial(print, flush=True))
    if launcher in ATTEMPTS and job.state().get("status") in (FAILED, INTERRUPTED):
        raise RuntimeError(f"job {job.number} ({job.label}): {job.state().get('reason')}")


def _attempts(sweep: SweepFolder, job: JobFolder, launcher: str) -> None:
    attempt = ATTEMPTS.get(launcher, _apart)
    with job.held() as held:
        if not held or job.finished:
            return
        for _ in range(1 + sweep.settings.retries):
            state = job.state()
            brought_back = "started" in state and "ended" not in state  # by Slurm, as it ran
            if sweep.stopped is not None and not brought_back:
                return
            attempt(sweep, job, launcher)
            state = job.state()
            if state.get("status") != FAILED:
                return
            if state.get("exitcode") == MISTAKE:  # that does not go away by itself
                break
        if sweep.settings.on_failure == "stop":
            sweep.stop(f"job {job.number} ({job.label}) failed, and sweep.on_failure=stop")


def _apart(sweep: SweepFolder, job: JobFolder, launcher: str) -> None:
    """In a process of its own."""
    minutes = sweep.settings.timeout_min
    job.unqueue()
    _begin(job, starting=True)
    try:
        with _place(sweep, job, launcher), _devices(sweep, job) as environment:
            ending = isolated(
                run_job,
                (str(sweep.path), job.number),
                environment=environment,
                console=None if launcher == "basic" else job.console,
                seconds=None if minutes is None else 60 * minutes,
            )
    except BaseException:
        _end(job, INTERRUPTED, "interrupted with the sweep", STOPPED)
        raise
    why = f"out of time (sweep.timeout_min={minutes:g})" if ending.timed_out else None
    _conclude(sweep, job, ending, why)


def _here(sweep: SweepFolder, job: JobFolder, launcher: str) -> None:
    """In this process, which is the job's own."""
    _begin(job)
    code = run_job(str(sweep.path), job.number)
    _conclude(sweep, job, Ending(code, timed_out=False), None)


ATTEMPTS: Mapping[str, Callable[[SweepFolder, JobFolder, str], None]] = {"submitit_slurm": _here}


def run_job(sweep_path: str, number: int) -> int:
    """Run the job's frozen config, or resume its run; return the exit code."""
    sweep = SweepFolder(Path(sweep_path))
    job = sweep.jobs[number]
    job.note(**this_process(), starting=None)
    prefix = f"sseg-nase: job {number} ({job.label}):"
    try:
        for note in _code_notes(sweep):
            print(f"{prefix} {note}", file=sys.stderr, flush=True)
        from sseg_nase.run import run  # here, because it imports torch
        from sseg_nase.stages.running import Membership

        membership = Membership(
            sweep=sweep.name,
            name=job.label,
            parent_run_id=sweep.plan["parent_run_id"],
            asked=job.fingerprint,
            began=lambda path: job.note(run=str(path)),
        )
        run(_to_run(sweep, job), job.overrides, membership)
    except UserError as error:
        return _failed(job, MISTAKE, str(error), f"{prefix} {error}")
    except KeyboardInterrupt as error:
        return _failed(job, STOPPED, str(error) or "interrupted", f"{prefix} interrupted")
    except Exception as error:
        where = getattr(error, "run_dir", None)
        said = f"{type(error).__name__}: {error}"
        long = f"{said} (traceback in {where}/status.json)" if where else traceback.format_exc()
        return _failed(job, FAILURE, said, f"{prefix} {long}")
    return DONE


def _failed(job: JobFolder, code: int, reason: str, text: str) -> int:
    print(text, file=sys.stderr, flush=True)
    job.note(reason=reason)
    return code


def _to_run(sweep: SweepFolder, job: JobFolder) -> Config:
    """A job that has a run resumes it, from its last checkpoint if there is one."""
    config, resume = job.config, None
    threads: int | None = sweep.threads
    if job.run is not None and config.task == "pipeline" and (job.run / CONFIG).exists():
        resume = str(job.run)
        threads = stored(job.run / CONFIG).hardware.threads
    hardware = config.hardware
    if hardware.threads is None:
        hardware = dataclasses.replace(hardware, threads=threads)
    paths = config.paths
    if paths.output_dir == sweep.jobs[0].config.paths.output_dir:  # where the sweep was begun
        paths = dataclasses.replace(paths, output_dir=str(sweep.output_dir))
    return dataclasses.replace(config, hardware=hardware, paths=paths, resume=resume)


def _code_notes(sweep: SweepFolder) -> Iterator[str]:
    changed = changed_since(sweep.plan["code"])
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        yield (
            f"WARNING: the code has changed since the sweep was submitted ({', '.join(changed[:3])}"
            f"{more}); the config is as it was, the code is not."
        )


def _begin(job: JobFolder, *, starting: bool | None = None) -> None:
    """Note that the job begins. `starting`: this is not its own process, which comes later."""
    job.note(
        **this_process(),
        attempts=job.state().get("attempts", 0) + 1,
        started=time.time(),
        starting=starting,
        ended=None,
        status=None,
        reason=None,
        exitcode=None,
    )


def _end(job: JobFolder, status: str, reason: str | None, exitcode: int) -> None:
    job.note(ended=time.time(), status=status, reason=reason, exitcode=exitcode, **NOT_YET)


def _conclude(sweep: SweepFolder, job: JobFolder, ending: Ending, why: str | None) -> None:
    """Note how the job has ended: as its run says, or as its process tells where the run cannot."""
    said = status_of(job.run) if job.run is not None else {}
    status, error = said.get("status", RUNNING), said.get("error")
    noted = job.state().get("reason")
    if status == RUNNING:  # it died without a word, or never had a run
        ended = {MISTAKE: FAILED, FAILURE: FAILED, STOPPED: INTERRUPTED}
        status = ended.get(ending.exitcode, died(ending))
        error = why or noted or f"its process ended without a word ({ending})"
        reap(sweep, job, status, error)
    if status == FINISHED:
        error = None if ending.exitcode == DONE else f"FINISHED, but its process ended: {ending}"
    _end(job, status, why or error, ending.exitcode)


@contextmanager
def _devices(sweep: SweepFolder, job: JobFolder) -> Iterator[Mapping[str, str]]:
    """Hold the GPUs that the job is to have."""
    hardware = job.config.hardware
    if "cpu" in (hardware.accelerator, hardware.name):
        yield {}
        return
    with gpu_slot(
        hardware.devices,
        free_gb=sweep.settings.gpu_free_gb,
        visible=sweep.plan["visible_devices"],
        waiting=lambda text: job.note(waiting=text),
    ) as environment:
        job.note(waiting=None, devices=environment.get("CUDA_VISIBLE_DEVICES"))
        yield environment


@contextmanager
def _place(sweep: SweepFolder, job: JobFolder, launcher: str) -> Iterator[None]:
    """`submitit_local` starts all jobs at once: here they wait for one of the slots."""
    if launcher != "submitit_local":
        yield
        return
    job.note(waiting="waiting for a slot")
    with slot_of(sweep.path / "places", sweep.settings.parallel):
        job.note(waiting=None, started=time.time())
        yield
