"""The record that needs nothing but a disk: events.jsonl and mutations.jsonl, always on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sseg_nase.files import writing
from sseg_nase.provenance.git import origin
from sseg_nase.rundir.events import EventLog
from sseg_nase.rundir.mutations import MutationLog
from sseg_nase.tracking.sink import RunInfo, Sink


class JsonlSink(Sink):
    """Writes all that is told to the run's directory, handed to the system at once."""

    def __init__(self) -> None:
        self._directory = Path()
        self._events: EventLog | None = None
        self._mutations: MutationLog | None = None

    def open(self, run: RunInfo) -> None:
        """Begin, or append behind the last whole line where the files exist."""
        self._directory = run.directory
        with writing(run.directory):
            run.directory.mkdir(parents=True, exist_ok=True)
        self._events, self._mutations = EventLog(run.directory), MutationLog(run.directory)
        if run.resumed is not None:
            self._mutations.forget(run.resumed.mutations)
        self._write(
            "open",
            {
                "name": run.name,
                "experiment": run.experiment,
                "params": run.params,
                "tags": origin() | run.tags,
                "total_epochs": run.total_epochs,
                "resumed": None if run.resumed is None else asdict(run.resumed),
                "parent_run_id": run.parent_run_id,
                "datasets": [asdict(one) for one in run.datasets],
            },
        )

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Write one line for all figures of the step."""
        self._write("metrics", values, step)

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Write one line; a mutation goes to mutations.jsonl too."""
        self._write(kind, values)
        if kind in ("mutation", "rollback"):
            assert self._mutations is not None
            self._mutations.write(values)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Write which file belongs to the run, so that it can be delivered later.

        Relative to the run's folder, which may be moved.
        """
        if path.is_relative_to(self._directory):
            path = path.relative_to(self._directory)
        self._write("artifact", {"path": str(path), "folder": folder})

    def close(self, status: str, error: str | None = None) -> None:
        """Write how it ended."""
        self._write("close", {"status": status, "error": error})

    def _write(self, kind: str, values: Mapping[str, Any], step: int | None = None) -> None:
        assert self._events is not None, "open() comes first"
        self._events.write(kind, values, step)
