"""A run under way, as its tasks see it: config, folder, tracker, the images it works with."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sseg_nase.config.fingerprint import fingerprint
from sseg_nase.config.schema import Config
from sseg_nase.files import StorageError
from sseg_nase.redaction import redacted
from sseg_nase.rundir.data import write_data
from sseg_nase.rundir.directory import RunDirectory
from sseg_nase.rundir.names import CONFIG
from sseg_nase.rundir.status import RUNNING
from sseg_nase.stages import identity
from sseg_nase.stages.evaluating import Task
from sseg_nase.stages.params import params_of
from sseg_nase.tracking import Resumed, RunInfo, Sink
from sseg_nase.tracking.sweeps import ASKED_TAG
from sseg_nase.training.interruption import Interruption

KEPT = ("images", "roles", "files", "drawn", "drawing")  # of the data of earlier epochs


@dataclass(frozen=True)
class Membership:
    """The sweep that a run belongs to, and what it is called there.

    `asked` is the job's fingerprint; `began` is told the run's directory as soon as there is one.
    """

    sweep: str
    name: str
    parent_run_id: str | None
    asked: str
    began: Callable[[Path], None]


@dataclass
class Run:
    """What the tasks share. `config` is the effective one: its hardware values are concrete.

    `asked` is the fingerprint of the config before that, the same on every machine. `summary`:
    results and mutations, shown when the run has ended.
    """

    config: Config
    place: RunDirectory
    sink: Sink
    name: str
    asked: str
    notes: list[str]
    interruption: Interruption
    sweep: Membership | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    opened: bool = False
    ended: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    overlaps: list[str] = field(default_factory=list)
    summary: tuple[dict[str, Any], Sequence[Mapping[str, Any]]] | None = None

    @property
    def directory(self) -> Path:
        """Where everything of the run goes."""
        return self.place.path

    @property
    def device(self) -> torch.device:
        """Where networks and images go."""
        return torch.device(self.config.hardware.accelerator)

    def open(self, total_epochs: int = 0, resumed: Resumed | None = None) -> None:
        """Tell the tracker about the run. Done after the inputs are known to be good."""
        tags = {
            "fingerprint": fingerprint(self.config),
            ASKED_TAG: self.asked,
            "task": self.config.task,
        }
        if self.sweep is not None:
            tags["sweep"] = self.sweep.sweep
        self.sink.open(
            RunInfo(
                directory=self.directory,
                name=self.name,
                experiment=self.config.experiment_name,
                config_file=self.directory / CONFIG,
                total_epochs=total_epochs,
                params=params_of(self.config),
                tags=tags,
                resumed=resumed,
                parent_run_id=None if self.sweep is None else self.sweep.parent_run_id,
                datasets=identity.datasets(self.data),
            )
        )
        self.opened = True
        self.place.run_id = self.sink.run_id
        self.place.write_status(RUNNING)
        for note in [*self.notes, *self.place.notes]:
            self.sink.event("message", {"text": note})
        for text in self.overlaps:
            self.sink.event("warning", {"text": text})

    def tie(self, tasks: Sequence[Task], *, pretrained: bool, epochs: int = 0) -> None:
        """Record which images the run works with, and compare them with those that it began with.

        Raises `UserError` where they are others and `resume_overrides` does not say that this is
        meant. `epochs` are done with those that were.
        """
        before = self.place.data()
        now = identity.data_of(self.config, tasks, pretrained=pretrained)
        changed = identity.differences(before, now)
        if changed and not self.config.resume_overrides:
            raise identity.refuse(self.directory, changed, epochs)
        earlier = list(before.get("earlier", []))
        if changed:
            kept = {k: before[k] for k in KEPT if k in before}
            earlier.append({"until_epoch": epochs, **kept, "changed": changed})
            self.notes += [f"resumed with other data: {k}: {what}" for k, what in changed.items()]
        elif self.place.resumed and not before:
            self.notes.append(
                "an older version has recorded no checksums of this run's images: they are not "
                "compared, and recorded from here on"
            )
        self.data = {**now, **({"earlier": earlier} if earlier else {})}
        seen = identity.trained_on(self.data)
        self.overlaps = [
            *identity.overlaps(seen, self.data),
            *identity.changed_base(now["trained_before"], self.data),
            *identity.drawn_otherwise(self.data),
        ]
        write_data(self.directory, self.data)

    def know(self, tasks: Sequence[Task]) -> None:
        """Record the images that were not opened before they were evaluated."""
        known, roles = dict(self.data["images"]), {**self.data["roles"]}
        for role, key, store in (one for task in tasks for one in task.stores()):
            known[key] = identity.identity(store)
            roles[role] = list(dict.fromkeys([*roles.get(role, []), key]))
        self.data = {**self.data, "images": known, "roles": roles}
        self.overlaps = [
            *self.overlaps,
            *identity.overlaps(identity.trained_on(self.data), self.data),
        ]
        self.overlaps = list(dict.fromkeys(self.overlaps))
        write_data(self.directory, self.data)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Name and time a stage."""
        self.sink.event("stage", {"stage": name})
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 3)

    def warn(self, text: str) -> None:
        """A warning about a run that has its results: on the terminal if the disk takes none."""
        try:
            self.sink.event("warning", {"text": text})
        except StorageError:
            say(text)


def say(text: str) -> None:
    """Print a line about the run to standard error, without passwords."""
    print(f"sseg-nase: {redacted(text)}", file=sys.stderr, flush=True)
