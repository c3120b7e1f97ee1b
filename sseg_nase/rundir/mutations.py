"""mutations.jsonl: every mutation of a run, one JSON object a line, each index once."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sseg_nase.files import append_line, cut_torn_line, read_lines, write_bytes, writing
from sseg_nase.rundir.names import MUTATIONS
from sseg_nase.rundir.unreadable import UnreadableError, unreadable

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

Mutation = Mapping[str, Any]  # with MUTATION_KEYS


class MutationLog:
    """What writes mutations.jsonl of a run."""

    def __init__(self, run: Path) -> None:
        """Begin, or append behind the last whole line. Raises `StorageError`."""
        self._path = run / MUTATIONS
        self._lock = threading.Lock()
        with writing(run):
            self._path.touch()
            cut_torn_line(self._path)

    def write(self, values: Mutation) -> None:
        """Add a mutation, or put it in the place of the one with its index and all behind that.

        A resumed run repeats what came after its checkpoint, and a rollback tells its mutation
        again: the later line replaces the earlier. Raises `StorageError`.
        """
        missing = [key for key in MUTATION_KEYS if key not in values]
        assert not missing, f"a mutation without {missing}"
        line = {key: values[key] for key in MUTATION_KEYS}
        with self._lock:
            self.forget(line["index"])
            append_line(self._path, line)

    def forget(self, first: int) -> None:
        """Take out the lines from index `first` on. Raises `StorageError`."""
        with self._path.open("rb") as file:
            lines = file.readlines()
        kept = [line for place, line in enumerate(lines) if _index_of(line, place) < first]
        if len(kept) < len(lines):
            write_bytes(self._path, b"".join(kept))


def read_mutations(run: Path) -> list[dict[str, Any]]:
    """Return the lines of mutations.jsonl. Raises `UnreadableError` for any that is damaged.

    A torn last line is damage, too: without it the log would seem to be whole.
    """
    path = run / MUTATIONS
    found: list[dict[str, Any]] = []
    try:
        for line in read_lines(path):
            why = line.why or ("" if "index" in (line.value or {}) else "has no index")
            if line.value is None or why:
                where = f", mutation {line.number - 1}"
                raise UnreadableError(path, f"the line {why}", where=where)
            found.append(line.value)
    except OSError as error:
        raise unreadable(path, error) from error
    return found


def _index_of(line: bytes, place: int) -> int:
    """The index of a mutation; a damaged line stands for the one that belongs in its place."""
    try:
        return int(json.loads(line)["index"])
    except (ValueError, KeyError, TypeError):
        return place
