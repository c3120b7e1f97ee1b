"""The record that needs nothing but a disk: events.jsonl and mutations.jsonl, always on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sseg_nase.files import append_line, write_bytes, writing
from sseg_nase.provenance.git import origin
from sseg_nase.tracking.sink import RunInfo, Sink

MUTATION_KEYS = (
    "index",
    "epoch",
    "step",
    "kind",
    "target",
    "trigger",
    "before",
    "after",
    "function_delta",
    "loss_before",
    "loss_after",
    "fitness",
    "seconds",
    "accepted",
    "measured",
)


class JsonlSink(Sink):
    """One JSON object a line, in the run's directory, handed to the system at once.

    A line of events.jsonl is `{"time": seconds since 1970, "kind", "step" (metrics only),
    "values"}`; kinds are the events' own, `open`, `metrics`, `artifact` and `close`. It is only
    ever added to: after a resume the lines since the checkpoint stand there twice, the later ones
    count. mutations.jsonl holds each index once. NaN and infinities become null.
    """

    def __init__(self) -> None:
        self._directory = Path()
        self._events: Path | None = None
        self._mutations: Path | None = None
        self._lock = threading.Lock()

    def open(self, run: RunInfo) -> None:
        """Begin, or go on behind the last whole line where the files exist."""
        self._directory = run.directory
        with writing(run.directory):
            run.directory.mkdir(parents=True, exist_ok=True)
        self._events = run.directory / "events.jsonl"
        self._mutations = run.directory / "mutations.jsonl"
        for path in (self._events, self._mutations):
            with writing(run.directory):
                path.touch()
                _cut_torn_line(path)
        if run.resumed is not None:
            self._forget_mutations(run.resumed.mutations)
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
            },
        )

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Write one line for all figures of the step."""
        self._write("metrics", values, step)

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Write one line; a mutation goes to mutations.jsonl too."""
        self._write(kind, values)
        if kind in ("mutation", "rollback"):
            self._write_mutation(values)

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
        line: dict[str, Any] = {"time": round(time.time(), 3), "kind": kind}
        if step is not None:
            line["step"] = int(step)
        line["values"] = values
        with self._lock:
            append_line(self._events, line)

    def _write_mutation(self, values: Mapping[str, Any]) -> None:
        assert self._mutations is not None, "open() comes first"
        missing = [key for key in MUTATION_KEYS if key not in values]
        assert not missing, f"a mutation without {missing}"
        line = {key: values[key] for key in MUTATION_KEYS}
        with self._lock:
            # A resumed run repeats what came after its checkpoint, and a rollback tells its
            # mutation again: the later line replaces the earlier.
            self._forget_mutations(line["index"])
            append_line(self._mutations, line)

    def _forget_mutations(self, first: int) -> None:
        """Take out the lines from index `first` on."""
        assert self._mutations is not None
        with self._mutations.open("rb") as file:
            lines = file.readlines()
        kept = [line for place, line in enumerate(lines) if _index_of(line, place) < first]
        if len(kept) < len(lines):
            write_bytes(self._mutations, b"".join(kept))


def _index_of(line: bytes, place: int) -> int:
    """The index of a mutation; a damaged line stands for the one that belongs in its place."""
    try:
        return int(json.loads(line)["index"])
    except (ValueError, KeyError, TypeError):
        return place


def _cut_torn_line(path: Path) -> None:
    """Drop what a killed process left behind the last line end."""
    with path.open("rb+") as lines:
        content = lines.read()
        if content and not content.endswith(b"\n"):
            lines.truncate(content.rfind(b"\n") + 1)
