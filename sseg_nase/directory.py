"""A run's directory: made once, gone back to by `resume`, held by one process at a time."""

from __future__ import annotations

import dataclasses
import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from sseg_nase.config.fingerprint import decisive, flatten
from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError
from sseg_nase.files import read_json, write_json, write_text
from sseg_nase.tracking.sink import FINISHED

RUNNING = "RUNNING"
# Whoever asks whether a run is going on takes its lock for an instant.
SECONDS_FOR_LOCK = 1.0


class RunDirectory:
    """`path`, with config.yaml, overrides.yaml and status.json in it, locked until `release`.

    `resumed`: it was there before. `changes`: what the config then differs in, key to (old, new).
    `run_id` and `tracking_uri`: where the tracker knows the run, and as what.
    """

    def __init__(self, path: Path, *, resumed: bool = False) -> None:
        self.path, self.resumed = path, resumed
        self.changes: dict[str, tuple[Any, Any]] = {}
        self.run_id: str | None = None
        self.tracking_uri: str | None = None
        self._lock = FileLock(path / ".lock")

    @classmethod
    def create(cls, config: Config, overrides: Sequence[str]) -> RunDirectory:
        """A new directory under `paths.output_dir`. Raises `UserError` where none can be made."""
        base = Path(config.paths.output_dir).expanduser().absolute() / config.experiment_name
        this = cls(base / f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}")
        try:
            this.path.mkdir(parents=True)
            this._lock.acquire(timeout=0)
            this._describe(config, overrides)
        except OSError as error:
            raise UserError(
                f"paths.output_dir={config.paths.output_dir}: cannot be written "
                f"({error.strerror}: {error.filename}). Set paths.output_dir to a folder of yours."
            ) from error
        return this

    @classmethod
    def reopen(cls, config: Config, overrides: Sequence[str]) -> RunDirectory:
        """The directory `config.resume`, to go on with.

        Raises `UserError` when it is not a run's, when the run is still going on, or when `config`
        differs from the run's in what decides the result and `resume_overrides` does not say that
        this is meant.
        """
        assert config.resume is not None
        this = cls(Path(config.resume).expanduser().absolute(), resumed=True)
        stored = this._stored_config()
        try:
            this._lock.acquire(timeout=SECONDS_FOR_LOCK)
        except Timeout as error:
            raise UserError(
                f"resume={config.resume}: this run is still going on in another process."
            ) from error
        except OSError as error:
            raise UserError(
                f"resume={config.resume}: cannot be written ({error.strerror})."
            ) from error
        before, now = decisive(flatten(stored)), decisive(flatten(dataclasses.asdict(config)))
        this.changes = {
            key: (before.get(key), now.get(key))
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        }
        if this.changes and not config.resume_overrides:
            this.release()
            listed = "\n  ".join(f"{k}: {old} -> {new}" for k, (old, new) in this.changes.items())
            raise UserError(
                f"resume={config.resume}: the config differs from the run's:\n  {listed}\n"
                "  Leave these overrides out, or add resume_overrides=true to go on with the new "
                "values."
            )
        status = this.status()
        this.run_id, this.tracking_uri = status.get("tracker_run_id"), status.get("tracking_uri")
        if not this.finished:
            this._describe(config, overrides)
        return this

    @property
    def finished(self) -> bool:
        """Whether the run has ended well and nothing about it is to be changed."""
        return self.resumed and not self.changes and self.status().get("status") == FINISHED

    @property
    def last_checkpoint(self) -> Path:
        """Where training goes on from, if the file is there."""
        return self.path / "checkpoints" / "last.pt"

    def status(self) -> Mapping[str, Any]:
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

        `undelivered`: the tracker lacks something that is in the directory.
        """
        value = {"status": status, "error": error}
        known = {
            "traceback": trace,
            "process": {"host": socket.gethostname(), "pid": os.getpid()},
            "tracker_run_id": self.run_id,
            "tracking_uri": self.tracking_uri,
            "undelivered": undelivered,
        }
        write_json(self.path / "status.json", value | {k: v for k, v in known.items() if v})

    def release(self) -> None:
        """Let other processes have it."""
        self._lock.release()

    def _describe(self, config: Config, overrides: Sequence[str]) -> None:
        if not self.resumed or self.changes:
            values = dataclasses.asdict(config) | {"resume": None, "resume_overrides": False}
            kept = [text for text in overrides if not text.lstrip("+~").startswith("resume")]
            write_text(self.path / "config.yaml", yaml.safe_dump(values, sort_keys=False))
            write_text(self.path / "overrides.yaml", yaml.safe_dump(kept))
        self.write_status(RUNNING)

    def _stored_config(self) -> dict[str, Any]:
        path = self.path / "config.yaml"
        try:
            stored = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError):
            stored = None
        if not isinstance(stored, dict):
            raise UserError(
                f"resume={self.path}: not the directory of a run (no readable config.yaml there). "
                "Name one like runs/<experiment>/<time>-<id>."
            )
        return stored


def status_of(path: Path) -> Mapping[str, Any]:
    """Return what status.json in a run's directory says; nothing when it is not there."""
    return read_json(path / "status.json") or {}


def locked(path: Path) -> bool:
    """Tell whether a living process holds the directory."""
    if not (path / ".lock").exists():
        return False
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a run's directory that is there. Raises filelock's `Timeout` where another does."""
    with FileLock(path / ".lock", timeout=SECONDS_FOR_LOCK):
        yield


def end_dead(path: Path, status: str, error: str) -> Mapping[str, Any] | None:
    """Write how a run ended whose process died without a word; return what status.json said.

    None, and nothing is written, where the run has said how it ended or is still going on.
    """
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=SECONDS_FOR_LOCK)
    except (Timeout, OSError):
        return None
    try:
        said = status_of(path)
        if said.get("status") != RUNNING:
            return None
        ended = {**said, "status": status, "error": error}
        # What it told in its last seconds may not have arrived.
        unsure = {"undelivered": True} if said.get("tracking_uri") else {}
        write_json(path / "status.json", ended | unsure)
        return said
    finally:
        lock.release()
