"""`-m`: plan and freeze the jobs, leave out what is done, hand the rest to Hydra's launcher."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from sseg_nase.config.commands import command, override
from sseg_nase.config.compose import load, spelled_out
from sseg_nase.config.fingerprint import flat
from sseg_nase.config.groups.tracking import InStore
from sseg_nase.config.multirun import launcher, once, shared, split, superseded
from sseg_nase.config.places import keys_given
from sseg_nase.config.schema import SweepConfig
from sseg_nase.config.validation import cautions, without_effect
from sseg_nase.errors import DONE, STOPPED, UserError
from sseg_nase.provenance import code
from sseg_nase.redaction import overrides_without
from sseg_nase.rundir.lock import locked
from sseg_nase.rundir.names import CONFIG, DATA
from sseg_nase.rundir.status import FINISHED, INTERRUPTED, end_dead, status_of
from sseg_nase.sweeps.finish import begin_parent, finish, of_search
from sseg_nase.sweeps.folder import (
    NOT_YET,
    JobFolder,
    Planned,
    SweepFolder,
    create,
    looked_at,
    same_as,
)
from sseg_nase.sweeps.isolation import SECONDS_TO_STOP
from sseg_nase.sweeps.plan import plan
from sseg_nase.sweeps.status import GONE, QUEUED, RUNNING, Seen, Watcher, poll
from sseg_nase.tracking.sweeps import KnownRun, SweepStore

SECONDS_BETWEEN_POLLS = 1.0
SECONDS_BETWEEN_QUERIES = 5.0  # of Slurm, which others ask, too
SECONDS_TO_BEGIN = 30.0
STOPPING = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
SLURM, BASIC = "SlurmLauncher", "BasicLauncher"
NOTHING = "-m: what is to be swept? Give several values, such as seed=0,1."
MOST_NAMED = 10  # jobs in a message
OWN_KEYS = ("sweep.dir", "sweep.job", "sweep.watch", "sweep.dry_run")

Say = Callable[[str], None]
Hydra = Callable[[Sequence[str]], None]


class Queued(Exception):  # noqa: N818 - not an error
    """Raised where Hydra's launcher would wait for the jobs that it has put into Slurm's queue.

    It waits for files that a job killed hard never writes; here Slurm itself is asked.
    """


def launch(overrides: Sequence[str], hydra: Hydra, say: Say, *further: Path) -> int:
    """Run the sweep that the overrides describe, or resume it; return the exit code.

    `hydra` runs Hydra's multirun with the overrides it is given; `further` are config folders
    beside `conf/`. Raises `UserError`.
    """
    hydras, sweeps, jobs = split(spelled_out(overrides, multirun=True))
    if (search := _search_of(sweeps)) is not None:
        return _of_search(search, [*hydras, *sweeps], hydra)
    once(sweeps)
    settings = load(["task=status", *sweeps], *further).sweep
    if settings.watch or settings.job is not None:
        raise UserError("sweep.watch and sweep.job have no effect with -m; leave them out.")
    if settings.dir is not None:
        sweep = _named(settings.dir, jobs)
        if settings.dry_run:
            return rehearse(sweep.title, (), sweep, rerun=settings.rerun)
    else:
        if not jobs and not any("sweeper.params" in text for text in hydras):
            raise UserError(NOTHING)
        for note in superseded(jobs):
            say(note)
        title, planned = plan([*hydras, *jobs], *further, say=say)
        # an experiment may have a word
        settings = load([*planned[0].overrides, *sweeps], *further).sweep
        output_dir = Path(planned[0].config.paths.output_dir)
        known = None if settings.rerun else same_as(planned, output_dir)
        for note in _frozen_otherwise(known, planned):
            say(note)
        said = [each for job in planned for each in cautions(job.config, *further)]
        idle = [{*without_effect(job.config, keys_given(job.overrides))} for job in planned]
        for caution in dict.fromkeys([*said, *sorted(set.intersection(*idle))]):
            say(caution)
        if settings.dry_run:
            return rehearse(title, planned, known, rerun=settings.rerun)
        sweep = known or _made(title, planned, settings, overrides_without(jobs))
    kept = [text for text in sweeps if not text.lstrip("+").startswith(OWN_KEYS)]
    settings = load([*sweep.shared, *kept], *further).sweep  # what an experiment says holds on
    chosen = [*sweep.shared, *hydras]
    started_by = launcher(chosen, *further)
    in_slurm = started_by == SLURM
    if in_slurm and any("sweeper.max_batch_size" in text for text in hydras):
        raise UserError(
            "hydra.sweeper.max_batch_size: with Slurm all jobs are queued together; how many "
            "of them run at once is said by hydra.launcher.array_parallelism."
        )
    with sweep.launching():
        store = SweepStore(sweep.tracking, warn=say)
        say(f"sweep in {sweep.path}: {len(sweep.jobs)} jobs, {sweep.title}")
        if started_by != BASIC:
            say(f"epochs and losses, any time: {command(task='status', sweep=sweep.path)}")
        _reap(store, say)
        numbers = _to_do(sweep, settings.rerun, store, say)
        if started_by == BASIC and settings.parallel > 1 and len(numbers) > 1:
            say(
                "one job after another, each with its share of the threads: "
                f"hydra/launcher=joblib runs sweep.parallel={settings.parallel} at once"
            )
        # Nothing of a sweep is touched that is refused.
        sweep.begin_launch(settings, os.environ.get("CUDA_VISIBLE_DEVICES"))
        begin_parent(sweep, store)
        if not numbers and not _on_its_way(poll(sweep)):
            return finish(sweep, store, say)
        if in_slurm or not settings.detach:
            return _run(sweep, numbers, [*chosen, *kept], hydra, store, say, in_slurm=in_slurm)
    return _in_background(sweep, hydras, kept, say, *further)


def hand_over(
    sweep: SweepFolder,
    numbers: Sequence[int],
    hydras: Sequence[str],
    parallel: int,
    further: Sequence[Path] = (),
) -> subprocess.Popen[bytes]:
    """Let a launcher run these jobs of a search's folder; return the process that does.

    `hydras` choose the launcher. The process outlives this one, as a launcher's jobs do, and ends
    with them, or with Slurm at once.
    """
    started = [sys.executable, "-m", "sseg_nase", "-m", *hydras]
    started += [override("sweep.dir", sweep.path), f"sweep.parallel={parallel}"]
    started += [f"sweep.job={','.join(map(str, numbers))}"]
    if further:
        started += ["--config-dir", str(further[0])]
    with (sweep.path / "launcher.log").open("ab") as output:
        return subprocess.Popen(
            started, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )


def _search_of(sweeps: Sequence[str]) -> SweepFolder | None:
    """The folder of a search, where this is a command of `hand_over`."""
    given = dict(text.split("=", 1) for text in sweeps if "=" in text)
    if not {"sweep.dir", "sweep.job"} <= given.keys():
        return None
    folder = load(["task=status", *(text for text in sweeps if "sweep.dir" in text)]).sweep.dir
    sweep = SweepFolder(Path(str(folder)))
    return sweep if of_search(sweep) else None


def _of_search(sweep: SweepFolder, overrides: Sequence[str], hydra: Hydra) -> int:
    """Hand jobs of a search to Hydra's launcher; the search itself sees how they end."""
    (given,) = (text for text in overrides if text.startswith("sweep.job="))
    numbers = [int(number) for number in given.partition("=")[2].split(",")]
    with suppress(Queued), _submissions(sweep, numbers):
        hydra([*overrides, "hydra.sweeper.params=null"])
    return DONE


def _named(directory: str, jobs: Sequence[str]) -> SweepFolder:
    """The sweep that `sweep=DIR` names."""
    if jobs:
        raise UserError(
            f"sweep={directory}: its jobs are fixed; leave out {' '.join(jobs)}, or leave out "
            "sweep= to start a sweep with these."
        )
    return looked_at(directory, Path(load().paths.output_dir))


def rehearse(
    title: str,
    planned: Sequence[Planned],
    sweep: SweepFolder | None,
    *,
    rerun: bool,
) -> int:
    """List the jobs and what would become of each; nothing is run and nothing is written.

    `sweep`: the one on disk that consists of these very jobs, which may stand in another order
    there. Returns the exit code.
    """
    jobs: Sequence[Planned | JobFolder] = planned if sweep is None else sweep.jobs
    where = "a new sweep" if sweep is None else f"the sweep in {sweep.path}"
    images = _Images()
    print(f"{where}: {len(jobs)} job{'s' if len(jobs) > 1 else ''}, {title}")
    for job in jobs:
        print(f"job {job.number}  {' '.join(job.overrides)}")
        known = job if isinstance(job, JobFolder) else None
        print(f"       {_would(known, images, rerun=rerun)}")
    for why, numbers in images.unknown.items():
        print(f"{_jobs(numbers)}: whether the images are those of today is not known: {why}")
    tracked = any(isinstance(job.config.tracking, InStore) for job in jobs[:1])
    asked = " MLflow was not asked whether it knows runs of the same config, which would be taken"
    print(f"sweep.dry_run=true: nothing was run or written.{f'{asked} over.' if tracked else ''}")
    return DONE


def _frozen_otherwise(sweep: SweepFolder | None, planned: Sequence[Planned]) -> Iterator[str]:
    """Name the keys given now that a resumed sweep, whose jobs are fixed, does not take.

    These are the same but for what changes no result, such as where they are recorded.
    """
    if sweep is None:
        return
    asked = planned[0]
    same = (j for j in sweep.jobs if (j.fingerprint, j.label) == (asked.fingerprint, asked.label))
    try:
        frozen, now = flat(next(same).config), flat(asked.config)
    except UserError:  # of another version, which is said by whoever needs it
        return
    differing = [
        f"{override(key, frozen[key])} and not {override(key, value)}"
        for key, value in now.items()
        if key in frozen
        and frozen[key] != value
        and not key.startswith(("sweep.", "paths.output_dir"))  # where the sweep was found
    ]
    if differing:
        yield (
            f"the sweep in {sweep.path} is resumed as it was started, with {'; '.join(differing)}. "
            "sweep.rerun=true starts a new one."
        )


def _would(job: JobFolder | None, images: _Images, *, rerun: bool) -> str:
    """What a launch would do with a job of a sweep on disk; None: of a new one."""
    if job is not None and job.alive():
        return "is running already: would be left alone"
    if job is None or job.run is None or rerun:
        return "would run"
    if job.lost is not None:
        return f"would run again: {job.lost}"
    if job.finished:
        if changed := images.changed(job.run, job):
            return f"is FINISHED in {job.run}, but its images were {changed}: would be refused"
        return f"is FINISHED in {job.run}: would be skipped"
    return f"would be resumed in {job.run}"


def _made(
    title: str, planned: Sequence[Planned], settings: SweepConfig, jobs: Sequence[str]
) -> SweepFolder:
    """A new sweep that consists of these jobs."""
    first = planned[0].config
    return create(
        Path(first.paths.output_dir),
        planned,
        title=title,
        shared=shared(jobs),
        settings=settings,
        tracking=first.tracking,
        code=code.describe(),
        diff=code.difference(),
    )


def _reap(store: SweepStore, say: Say) -> None:
    """End the runs of the experiment that say RUNNING and whose processes on this machine are dead.

    The sweep's own parent is left out: its directory is no run's.
    """
    for run in store.running():
        said = status_of(run.directory)
        here = said.get("process", {}).get("host") == socket.gethostname()
        if said.get("status") != RUNNING or not here:
            continue
        if end_dead(run.directory, INTERRUPTED, GONE) is not None:
            store.end(run.run_id, INTERRUPTED, GONE)
            say(f"{run.directory} was RUNNING, but its process is dead: it is INTERRUPTED now")


def _to_do(sweep: SweepFolder, rerun: bool, store: SweepStore, say: Say) -> list[int]:
    """The jobs that are to be run: not those that are finished, here or before, or on their way."""
    numbers = []
    done, on_their_way = 0, 0
    lost = list[JobFolder]()
    images = _Images()
    for one in poll(sweep):
        job = one.job
        if one.state in (RUNNING, QUEUED):
            on_their_way += 1
            continue
        if rerun:
            job.forget()
        if one.state != FINISHED and job.run is None and not rerun:
            _adopt(job, store, images, say)
        elif job.finished:
            _check_images(job, images)
        if job.finished:
            done += 1
        else:
            numbers.append(job.number)
            if job.lost is not None:
                lost.append(job)
    for why, jobs in images.unknown.items():
        say(f"{_jobs(jobs)}: whether the images are those of today is not known: {why}")
    if lost:
        more = f" (and so for {len(lost) - 1} more jobs)" if lost[1:] else ""
        say(f"job {lost[0].number} runs again: {lost[0].lost}{more}")
    if done:
        of = len(sweep.jobs)
        say(f"{done} of {of} jobs are FINISHED already (sweep.rerun=true runs them again)")
    if on_their_way:
        say(f"{on_their_way} of {len(sweep.jobs)} jobs are on their way already")
    return numbers


class _Images:
    """The images that finished runs were made with, against those that there are now.

    `known` holds what was looked at, `unknown` the jobs for which it could not be told, by reason.
    """

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}
        self.unknown: dict[str, list[int]] = {}

    def changed(self, run: Path, job: JobFolder) -> str:
        """Return how those of `run` differ from those that the job would have now, if they do.

        Raises `UserError` where the job itself does not fit this version.
        """
        config = job.config
        why = "an older version has recorded no checksums of them"
        if (run / DATA).exists():
            from sseg_nase.stages.identity import changed_since  # here, because it imports torch

            try:
                changed = changed_since(run, config, self.known)
            except UserError as error:
                why = f"they cannot be read: {error}"
            else:
                listed = "; ".join(f"{key}: {what}" for key, what in changed.items())
                return f"others: {listed}" if changed else ""
        self.unknown.setdefault(why, []).append(job.number)
        return ""


def _adopt(job: JobFolder, store: SweepStore, images: _Images, say: Say) -> None:
    """Take a run with the same fingerprint for the job's own: a finished one before any other."""
    known = [run for run in store.known(job.fingerprint) if (run.directory / CONFIG).exists()]
    for run in known:
        if run.status == FINISHED and status_of(run.directory).get("status") == FINISHED:
            if changed := images.changed(run.directory, job):
                say(f"{run.directory} is not taken for job {job.number}, its images were {changed}")
                continue
            job.note(run=str(run.directory))
            say(f"job {job.number} ({job.label}) is FINISHED in {run.directory}{_other_code(run)}")
            return
    for run in known:
        if status_of(run.directory).get("status") == INTERRUPTED and not locked(run.directory):
            job.note(run=str(run.directory))
            say(f"job {job.number} ({job.label}) resumes {run.directory}{_other_code(run)}")
            return


def _check_images(job: JobFolder, images: _Images) -> None:
    """Raise `UserError` where a job's run was made with other images than there are now."""
    assert job.run is not None
    if changed := images.changed(job.run, job):
        raise UserError(
            f"job {job.number} ({job.label}) is FINISHED in {job.run}, but its images were "
            f"{changed}\n  Bring them back, or add sweep.rerun=true to run all jobs with those "
            "that are there now."
        )


def _jobs(numbers: Sequence[int]) -> str:
    """The first of them by their numbers."""
    shown = ", ".join(map(str, numbers[:MOST_NAMED]))
    more = f" and {len(numbers) - MOST_NAMED} more" if numbers[MOST_NAMED:] else ""
    return f"job{'s' if numbers[1:] else ''} {shown}{more}"


def _other_code(run: KnownRun) -> str:
    now = code.describe()["commit"]
    if run.commit is None or now is None or run.commit == now:
        return ""
    return f" (run by commit {run.commit[:8]}; this is {now[:8]})"


def _run(
    sweep: SweepFolder,
    numbers: Sequence[int],
    overrides: Sequence[str],
    hydra: Hydra,
    store: SweepStore,
    say: Say,
    *,
    in_slurm: bool,
) -> int:
    """Hand the jobs to Hydra's launcher, wait until all have ended, and close the sweep."""
    own = [override("sweep.dir", sweep.path), f"sweep.job={','.join(map(str, numbers))}"]
    own.append("hydra.sweeper.params=null")  # an experiment's are in the plan already
    interrupted = False

    def marks() -> list[Any]:
        return [(sweep.jobs[n].state(), sweep.jobs[n].slurm_job) for n in numbers]

    before = marks()
    with Watcher(sweep, say) as watcher, _interruptible(sweep, say, stop=not in_slurm):
        try:
            if not numbers:
                raise Queued
            with _submissions(sweep, numbers):
                hydra([*overrides, *own])
        except Queued:
            if sweep.settings.detach:
                say("the jobs are in Slurm's queue; look at them with:")
                say(f"  {command(task='status', sweep=sweep.path)}")
                return DONE
        except KeyboardInterrupt:
            interrupted = True
        except Exception as error:
            # A job that failed is on disk; a launcher that could not start any is not.
            if marks() == before:
                text = next(iter(str(error).strip().splitlines()), type(error).__name__)
                raise UserError(f"hydra/launcher: no job could be started: {text}") from error
        try:
            watcher.stop()  # from here on the looks are taken here
            while not interrupted and _on_its_way(watcher.poll()):
                time.sleep(SECONDS_BETWEEN_QUERIES if in_slurm else SECONDS_BETWEEN_POLLS)
        except KeyboardInterrupt:
            interrupted = True
    code = finish(sweep, store, say)
    if interrupted:
        goes_on = "waits for what stays in Slurm and " if in_slurm else ""
        say(f"interrupted; the same command {goes_on}resumes what is left")
    return STOPPED if interrupted else code


def _on_its_way(seen: Sequence[Seen]) -> bool:
    return any(one.state in (RUNNING, QUEUED) for one in seen)


@contextmanager
def _interruptible(sweep: SweepFolder, say: Say, *, stop: bool) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP (the terminal closes) let the jobs stop with a checkpoint first.

    Before the launcher hears of it: joblib kills what its workers have started. A second one waits
    for nothing.
    """
    asked = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if not asked:
            asked = True
            if stop:  # what waits in Slurm is as little ours to stop as what runs there
                sweep.stop("the sweep was interrupted")
            stop_jobs(sweep, say)
        raise KeyboardInterrupt

    # What is ignored stays so: a shell's background job does not hear Ctrl-C, nohup's no SIGHUP.
    heard = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_jobs(sweep: SweepFolder, say: Say) -> None:
    """Ask the jobs on this machine to stop with a checkpoint; kill those that do not.

    Of a job that is starting only the launcher's process is known, which does not hand a signal on:
    killed, it would leave the job's own behind, and nobody to say how that ends.
    """
    ours, asked = list[JobFolder](), set[int]()
    for job in sweep.jobs:
        state = job.state()
        if not job.alive() or state.get("pid") == os.getpid():
            continue
        if job.slurm_job is not None:
            say(f"job {job.number} ({job.label}) stays in Slurm as job {job.slurm_job}")
        elif state.get("host") == socket.gethostname():
            ours.append(job)
            if state.get("waiting"):  # it has nothing to save, and submitit would ignore SIGTERM
                asked.add(state["pid"])
                _signal(state["pid"], signal.SIGKILL)
                why = "the sweep was interrupted while it waited"
                job.note(ended=time.time(), status=INTERRUPTED, reason=why, **NOT_YET)
    if ours:
        say(f"{len(ours)} jobs finish their step and write a checkpoint; again to kill them")
    deadline = time.monotonic() + SECONDS_TO_STOP
    pids = set[int]()
    try:
        while time.monotonic() < deadline:
            states = [state for job in ours if "ended" not in (state := job.state())]
            for state in states:
                if not state.get("starting") and state["pid"] not in asked:
                    asked.add(state["pid"])
                    _signal(state["pid"], signal.SIGTERM)
            pids = asked | {state["pid"] for state in states if state.get("starting")}
            if not any(_signal(pid, 0) for pid in pids):
                break
            time.sleep(0.2)
    finally:
        for pid in pids:
            _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: int) -> bool:
    """Send a signal; tell whether there was a process to take it."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _in_background(
    sweep: SweepFolder, hydras: Sequence[str], sweeps: Sequence[str], say: Say, *further: Path
) -> int:
    """Go on with the sweep in a process that outlives the shell; return when it has begun."""
    done = ("sweep.detach", "sweep.rerun")  # here, also where an experiment has asked for them
    kept = [text for text in sweeps if not text.lstrip("+").startswith(done)]
    started = [sys.executable, "-m", "sseg_nase", "-m", *hydras, *kept]
    started += [override("sweep.dir", sweep.path), *(f"{key}=false" for key in done)]
    if further:
        started += ["--config-dir", str(further[0])]
    log = sweep.path / "launcher.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            started, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    deadline = time.monotonic() + SECONDS_TO_BEGIN
    while process.poll() is None and time.monotonic() < deadline:
        if sweep.launched():
            break
        time.sleep(0.1)
    if process.poll():
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
        say(f"the sweep could not be started in the background:\n{tail}")
        return int(process.returncode)
    say(f"handed over to process {process.pid}, which writes to {log}; look at the jobs with:")
    say(f"  {command(task='status', sweep=sweep.path)}")
    return 0


@contextmanager
def _submissions(sweep: SweepFolder, numbers: Sequence[int]) -> Iterator[None]:
    """Note under which number Slurm has queued each job.

    Hydra's submitit launcher submits all jobs with one `map_array` and then waits for each.
    """
    from submitit.core.core import Executor

    original = Executor.map_array

    def map_array(self: Any, *arguments: Any) -> Any:
        # Ctrl-C is for the sweep, which asks its jobs to stop; children inherit what is ignored.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            submitted = original(self, *arguments)
        finally:
            signal.signal(signal.SIGINT, before)
        if self.cluster != "slurm":
            return submitted
        for submission, number in zip(submitted, numbers, strict=True):
            sweep.jobs[number].queue(str(submission.job_id))
        raise Queued

    Executor.map_array = map_array  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Executor.map_array = original  # type: ignore[method-assign]
