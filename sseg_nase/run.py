"""One run: a composed config, a directory, a tracker, and an ending that is always recorded."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from sseg_nase.config.commands import command
from sseg_nase.config.compose import hardware_profiles, overrides_of
from sseg_nase.config.fingerprint import fingerprint
from sseg_nase.config.groups.tracking import InStore
from sseg_nase.config.places import settled
from sseg_nase.config.schema import RESUMED, Config, HardwareConfig
from sseg_nase.errors import UserError
from sseg_nase.files import StorageError, storage_error
from sseg_nase.hardware.determinism import deterministic, explain_refused
from sseg_nase.hardware.memory import enforce_memory_cap, explain_out_of_memory
from sseg_nase.hardware.profiles import resolve
from sseg_nase.nets.own import registered_by
from sseg_nase.redaction import overrides_without
from sseg_nase.rundir.directory import RunDirectory, with_former_values
from sseg_nase.rundir.environment import write_environment
from sseg_nase.rundir.status import FAILED, FINISHED, INTERRUPTED
from sseg_nase.stages.fitting import fitted
from sseg_nase.stages.resuming import check_epochs
from sseg_nase.stages.running import Membership, Run, say
from sseg_nase.stages.tasks import TASKS
from sseg_nase.streams import unbroken_output
from sseg_nase.tracking import build_tracker
from sseg_nase.tracking.console import print_summary
from sseg_nase.tracking.mlflow_sink import resolve_uri, unused_address
from sseg_nase.training.interruption import Interruption

NAME_LENGTH = 120
UNNAMED = ("paths.", "tracking", "hydra", "sweep", "experiment_name=", "task=search")


def run(
    config: Config,
    overrides: Sequence[str] | None = None,
    sweep: Membership | None = None,
    *,
    task: Callable[[Run], None] | None = None,
) -> Path:
    """Run one config and return its directory.

    `task` is done where the config's own is none of `TASKS`: one of a room above this one.

    `overrides` are those that it was composed with: they name the run, and it is resumed with them.
    Without them it is called after its experiment, and resumed with all that differs from `conf/`.
    `status.json` in the directory says RUNNING, FINISHED, FAILED (with the error) or INTERRUPTED.
    With `config.resume` the run in that directory goes on. Raises `UserError` for the user's
    mistakes, `Interrupted` when it was asked to stop; anything else that is raised is ours.
    """
    if task is None and config.task not in TASKS:
        raise UserError(
            f"task={config.task} looks at what is on disk and is no run: on the command line, "
            f"sseg-nase task={config.task}."
        )
    with unbroken_output(), Interruption() as interruption:
        named = overrides_without(overrides or ())
        begun_with = overrides_without(overrides_of(config)) if overrides is None else named
        return _held(config, named, begun_with, sweep, interruption, task)


def _held(
    config: Config,
    named: Sequence[str],
    overrides: Sequence[str],
    sweep: Membership | None,
    interruption: Interruption,
    task: Callable[[Run], None] | None,
) -> Path:
    """`run` in its directory, which is given back whatever happens."""
    config = settled(config)
    registered_by("backbone.imports", config.backbone.imports)  # a checkpoint may have them, too
    asked = fingerprint(config) if sweep is None else sweep.asked
    hardware, notes = resolve(config.hardware, hardware_profiles())
    config = with_former_values(dataclasses.replace(config, hardware=hardware), overrides)
    config, fitting = fitted(config)
    notes += fitting
    check_epochs(config)
    make = RunDirectory.reopen if config.resume else RunDirectory.create
    place = make(config, overrides)
    try:
        if sweep is not None:
            sweep.began(place.path)
        if place.finished:
            print(f"{place.path} is FINISHED: there is nothing left to do")
            return place.path
        try:
            config = _tracked_where_it_was(config, place)
            sink = build_tracker(config.tracking)
        except UserError as error:
            _tell_status(place, FAILED, str(error))
            raise
        except KeyboardInterrupt:
            _tell_status(place, INTERRUPTED, f"interrupted ({interruption.requested or 'SIGINT'})")
            raise
        if (unused := unused_address(config.tracking)) is not None:
            notes.append(unused)
        name = run_name(config, named) if sweep is None else sweep.name
        _run(Run(config, place, sink, name, asked, notes, interruption, sweep), task)
    finally:
        place.release()
    return place.path


def _tracked_where_it_was(config: Config, place: RunDirectory) -> Config:
    """With the store's address made absolute: a resumed run may be started from another folder."""
    tracking = config.tracking
    if not isinstance(tracking, InStore):
        return config
    if tracking.uri is None and place.tracking_uri is not None:
        tracking = dataclasses.replace(tracking, uri=place.tracking_uri)
    place.tracking_uri = resolve_uri(tracking.uri)
    return dataclasses.replace(config, tracking=tracking)


def _run(this: Run, task: Callable[[Run], None] | None = None) -> None:
    """Do the task, the config's own unless one is given, and record how it ended."""
    try:
        with deterministic(this.config.hardware.deterministic):
            _prepare(this.config.hardware)
            write_environment(this.directory)
            (task or TASKS[this.config.task])(this)
            _end(this, FINISHED)
            if this.summary is not None:
                print_summary(*this.summary, this.sink.page)
    except KeyboardInterrupt as error:
        if this.ended == FINISHED:  # the results are there, and all that is left was said
            return
        _end(this, INTERRUPTED, f"interrupted ({this.interruption.requested or 'SIGINT'})")
        if this.config.task in RESUMED:  # another task is started again instead
            error.run_dir = this.directory  # type: ignore[attr-defined]  # what can be resumed
        raise
    except UserError as error:
        if this.place.resumed and not this.opened and not isinstance(error, StorageError):
            this.place.restore()  # it was refused: the run stays as it was
            raise
        raise _failed(this, error) from error
    except BaseException as error:
        full = storage_error(error, this.directory)
        if full is not None:
            raise _failed(this, full) from error
        remedy = explain_out_of_memory(error, this.config) or explain_refused(error, this.config)
        _end(this, FAILED, remedy or f"{type(error).__name__}: {error}", traceback.format_exc())
        if remedy is not None:
            raise UserError(remedy) from error
        error.run_dir = this.directory  # type: ignore[attr-defined]  # where the traceback is
        raise


def _failed(this: Run, error: UserError) -> UserError:
    """End the run as FAILED; return what is to be said of it, with what could not be written."""
    _end(this, FAILED, str(error))
    if not isinstance(error, StorageError):
        return error
    said = this.place.status().get("status")
    still = f"still says {said}" if said else "does not say how the run ended"
    untold = "" if said == FAILED else f" status.json could not be changed and {still}."
    resume = f" Then resume it: {command(resume=this.directory)}"
    resumable = this.config.task in RESUMED
    return UserError(f"{error}{untold}{resume if resumable else ''}")


def run_name(config: Config, overrides: Sequence[str]) -> str:
    """What was overridden, or the experiment's name when nothing was."""
    shown = [o for o in overrides if not o.lstrip("+~").startswith(UNNAMED)]
    name = " ".join(shown) or config.experiment_name
    if len(name) <= NAME_LENGTH:
        return name
    cut = name[: NAME_LENGTH - 2]
    return f"{cut.rpartition(' ')[0] or cut} …"  # half an override would say another value


def _prepare(hardware: HardwareConfig) -> None:
    if hardware.threads is not None:
        torch.set_num_threads(hardware.threads)
    enforce_memory_cap(torch.device(hardware.accelerator), hardware.max_memory_gb)


def _end(this: Run, status: str, error: str | None = None, trace: str | None = None) -> None:
    """Say how the run has ended: on disk first, then to all sinks. Only FINISHED may fail."""
    if this.interruption.requested is not None:
        this.sink.hurry()
    with this.interruption.ending():
        # It holds until the opposite is known: a process may be killed while it delivers.
        undelivered = not this.sink.delivered
        if status == FINISHED:
            this.place.write_status(status, error, trace, undelivered=undelivered)
        else:
            _tell_status(this.place, status, error, trace, undelivered=undelivered)
        this.ended = status
        try:
            this.sink.close(status, error)
        except KeyboardInterrupt:
            send = command(task="deliver", run=this.directory)
            say(f"interrupted while it delivered; {send} sends what is missing")
        except StorageError as failure:
            if status == FINISHED:
                say(f"the end of the run is not in events.jsonl: {failure}")
        if undelivered and this.sink.delivered:
            with suppress(StorageError):  # what stands there is true, but for what has arrived
                this.place.write_status(status, error, trace)


def _tell_status(
    place: RunDirectory,
    status: str,
    error: str | None,
    trace: str | None = None,
    *,
    undelivered: bool = False,
) -> None:
    """Write how a run has ended. Where that fails it is said by whoever reads it back."""
    with suppress(StorageError):
        place.write_status(status, error, trace, undelivered=undelivered)
