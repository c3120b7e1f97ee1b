"""A run's directory: made once, gone back to by `resume`, held by one process at a time."""

from __future__ import annotations

import dataclasses
import secrets
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import Timeout

from sseg_nase.config.fingerprint import decisive, flatten
from sseg_nase.config.options import filled
from sseg_nase.config.places import PLACES, keys_given, place_of, settled_overrides
from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError
from sseg_nase.files import StorageError, make_own, write_bytes
from sseg_nase.redaction import overrides_without
from sseg_nase.rundir.config import read_config, write_config
from sseg_nase.rundir.data import read_data
from sseg_nase.rundir.lock import SECONDS_FOR_LOCK, lock_of
from sseg_nase.rundir.names import CONFIG, DATA, OVERRIDES, SEARCHES, STATUS, checkpoint_of
from sseg_nase.rundir.status import (
    FINISHED,
    INTERRUPTED,
    RUNNING,
    Status,
    own_run_id,
    status_of,
    this_process,
    write_status,
)
from sseg_nase.rundir.unreadable import UnreadableError

DESCRIBED = (CONFIG, OVERRIDES, STATUS)
# What older versions did that had no key for it, where it is not what the configuration now says.
FORMERLY = {"hardware.accumulate": "plain", "space.settings.edition": 1}


class RunDirectory:
    """`path`, with config.yaml, overrides.yaml and status.json in it, locked until `release`.

    `resumed`: it was there before. `changes`: what the config then differs in, key to (old, new).
    `notes`: what else is to be said of a resumed run, such as that it was moved. `run_id` and
    `tracking_uri`: where the tracker knows the run, and as what.
    """

    def __init__(self, path: Path, *, resumed: bool = False) -> None:
        self.path, self.resumed = path, resumed
        self.changes: dict[str, tuple[Any, Any]] = {}
        self.notes: list[str] = []
        self._before: dict[Path, bytes] = {}
        self.run_id: str | None = None
        self.tracking_uri: str | None = None
        self._lock = lock_of(path)

    @classmethod
    def create(cls, config: Config, overrides: Sequence[str]) -> RunDirectory:
        """A new directory under `paths.output_dir`. Raises `UserError` where none can be made."""
        output_dir = Path(config.paths.output_dir).expanduser().absolute()
        base = output_dir / (SEARCHES if config.task == "search" else config.experiment_name)
        make_own(output_dir, base)
        this = cls(base / f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}")
        try:
            this.path.mkdir(parents=True)
            this._lock.acquire(timeout=0)
            this._describe(config, overrides)
        except StorageError as error:
            this.release()
            raise UserError(f"paths.output_dir={config.paths.output_dir}: {error}") from error
        except OSError as error:
            this.release()
            raise UserError(
                f"paths.output_dir={config.paths.output_dir}: cannot be written "
                f"({error.strerror}: {error.filename}). Set paths.output_dir to a folder of yours."
            ) from error
        except BaseException:  # asked to stop
            with suppress(OSError, UserError):
                this.write_status(INTERRUPTED, "interrupted before it began")
            this.release()
            raise
        return this

    @classmethod
    def reopen(cls, config: Config, overrides: Sequence[str]) -> RunDirectory:
        """The directory `config.resume`, to resume.

        Raises `UserError` when it is not a run's, when the run is still going on, or when `config`
        differs from the run's in what decides the result and `resume_overrides` does not say that
        this is meant.
        """
        resumed = Path(filled(config.resume, "resume"))
        this = cls(resumed.expanduser().absolute(), resumed=True)
        stored = this._stored_config()
        this.data()  # refused before anything is touched
        try:
            this._lock.acquire(timeout=SECONDS_FOR_LOCK)
        except Timeout as error:
            raise UserError(
                f"resume={config.resume}: this run is still going on in another process."
            ) from error
        except OSError as error:
            raise UserError(
                f"resume={config.resume}: cannot be written ({error.strerror}). An archived run is "
                "resumed from a copy of its folder where you may write."
            ) from error
        before, now = decisive(flatten(stored)), decisive(flatten(dataclasses.asdict(config)))
        given = keys_given(overrides)
        this.changes = {
            key: (before.get(key), now.get(key))
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
            and not (_is_new(key, stored) and key not in given)
            and not this._moved(key, stored, config)
        }
        if this.changes and not config.resume_overrides:
            this.release()
            listed = "\n  ".join(f"{k}: {old} -> {new}" for k, (old, new) in this.changes.items())
            raise UserError(
                f"resume={config.resume}: the config differs from the run's:\n  {listed}\n"
                "  Leave these overrides out, or add resume_overrides=true to resume with the new "
                "values."
            )
        data = "paths.data_dir"
        was, now_is = place_of(stored, data), place_of(config, data)
        if was is not None and Path(was).is_absolute() and was != now_is:
            this.notes.append(f"{data} is {now_is} now; it was {was}")
        status = this.status()
        this.tracking_uri = status.get("tracking_uri")
        this.run_id, note = own_run_id(this.path, status)
        if note:
            this.notes.append(note)
        process = status.get("process", {})
        if status.get("status") == RUNNING:
            here = process.get("host") == socket.gethostname()
            dead = "its process was killed, or the machine went down"
            elsewhere = "that process is taken for dead. If it is not, stop one of the two now"
            this.notes.append(
                f"status.json said RUNNING, on {process.get('host')}, and nothing held the folder: "
                f"{dead if here else elsewhere}."
            )
        if not this.finished:
            for name in DESCRIBED:
                with suppress(OSError):
                    this._before[this.path / name] = (this.path / name).read_bytes()
            try:
                this._describe(config, overrides)
            except BaseException:
                this.release()
                raise
        return this

    @property
    def finished(self) -> bool:
        """Whether the run has ended well and nothing about it is to be changed."""
        return self.resumed and not self.changes and self.status().get("status") == FINISHED

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint that training resumes from, if the file is there."""
        return checkpoint_of(self.path, "last")

    def status(self) -> Status:
        """What status.json says; nothing when it is not there."""
        return status_of(self.path)

    def write_status(
        self,
        status: str,
        error: str | None = None,
        trace: str | None = None,
        *,
        undelivered: bool = False,
    ) -> None:
        """Write status.json; the tracker's run id is kept in it for a later `resume`.

        `undelivered`: the tracker lacks something that is in the directory. An end that is not
        FINISHED is written even where no new file fits. Raises `StorageError`.
        """
        said: Status = {"status": status, "error": error}
        if trace:
            said["traceback"] = trace
        said |= {"process": this_process(), "directory": str(self.path)}
        if self.run_id:
            said["tracker_run_id"] = self.run_id
        if self.tracking_uri:
            said["tracking_uri"] = self.tracking_uri
        if undelivered:
            said["undelivered"] = True
        write_status(self.path, said)

    def restore(self) -> None:
        """Leave a run that was resumed in vain as it was found: what it is and how it ended."""
        for path, content in self._before.items():
            write_bytes(path, content)

    def data(self) -> Mapping[str, Any]:
        """What data.json says of the images that the run was made with; nothing in older runs.

        Raises `UserError` where it is damaged: nobody could tell whether they are the same.
        """
        try:
            return read_data(self.path)
        except UnreadableError as error:
            raise UserError(
                f"resume={self.path}: {DATA} there is damaged, which says with which images the "
                "run was begun. Bring it back from a copy; without it (remove it) the run is "
                "resumed on the images that are there now, and nothing is compared."
            ) from error

    def release(self) -> None:
        """Let other processes have it."""
        self._lock.release()

    def _describe(self, config: Config, overrides: Sequence[str]) -> None:
        if not self.resumed or self.changes:
            values = dataclasses.asdict(config) | {"resume": None, "resume_overrides": False}
            kept = [text for text in overrides if not text.lstrip("+~").startswith("resume")]
            kept = overrides_without(settled_overrides(kept, config))
            write_config(self.path, values, kept)
        self.write_status(RUNNING)

    def _moved(self, key: str, stored: Mapping[str, Any], config: Config) -> bool:
        """Whether a key that differs names the same thing in another place.

        What lies there is compared by its checksum; older runs have none, and relative paths.
        """
        if key not in PLACES:
            return False
        old, new = place_of(stored, key), place_of(config, key)
        if old is None or new is None:
            return False
        if not self.data():
            parts = Path(old).parts
            return Path(new).parts[-len(parts) :] == parts
        self.notes.append(f"{key} is {new} now; it was {old}")
        return True

    def _stored_config(self) -> dict[str, Any]:
        try:
            stored = read_config(self.path)
        except UnreadableError:
            stored = {}
        if "experiment_name" not in stored:
            raise UserError(
                f"resume={self.path}: not the directory of a run (no readable config.yaml there). "
                "Name one like runs/<experiment>/<time>-<id>."
            )
        return stored


def with_former_values(config: Config, overrides: Sequence[str]) -> Config:
    """`config`, with what an older version did where it began the run that `config` resumes.

    Only of keys that it did not have, and that `overrides` do not give.
    """
    given = keys_given(overrides)
    if not config.resume:
        return config
    try:
        stored = read_config(Path(config.resume).expanduser())
    except UnreadableError:
        return config  # `reopen` says what is wrong with it
    for key, value in FORMERLY.items():
        if _is_new(key, stored) and key not in given:
            config = _with(config, key.split("."), value)
    return config


def _with(tree: Any, path: Sequence[str], value: Any) -> Any:
    """`tree` with another value at the end of a path; as it is where it has no such key."""
    if not path:
        return value
    name, *rest = path
    if isinstance(tree, Mapping):
        return {**tree, name: _with(tree[name], rest, value)} if name in tree else tree
    if not hasattr(tree, name):
        return tree
    return dataclasses.replace(tree, **{name: _with(getattr(tree, name), rest, value)})


def _is_new(key: str, stored: Mapping[str, Any]) -> bool:
    """Whether an older version has stored a config without this key, so that it had no choice."""
    value: Any = stored
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return value is not None
        value = value[part]
    return False
