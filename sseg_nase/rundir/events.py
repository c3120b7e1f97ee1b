"""events.jsonl: all that happened in a run, one JSON object a line, only ever added to.

A line is `{"time": seconds since 1970, "kind", "step" (metrics only), "values"}`; kinds are the
events' own (`sseg_nase.tracking.sink`), `open`, `metrics`, `artifact` and `close`. After a resume
the lines since the checkpoint stand there twice. What was not finite is null.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

from sseg_nase.files import EMPTY, append_line, cut_torn_line, last_lines, read_lines, writing
from sseg_nase.finite import finite
from sseg_nase.rundir.names import EVENTS
from sseg_nase.rundir.unreadable import UnreadableError, unreadable

Values = Mapping[str, Any]


class _Event(TypedDict):
    time: float
    kind: str
    values: dict[str, Any]


class Event(_Event, total=False):
    """A line of events.jsonl."""

    step: int


class EventLog:
    """What writes events.jsonl of a run, from several threads: each line whole, and at once."""

    def __init__(self, run: Path) -> None:
        """Begin, or go on behind the last whole line. Raises `StorageError`."""
        self._path = run / EVENTS
        self._lock = threading.Lock()
        with writing(run):
            self._path.touch()
            cut_torn_line(self._path)

    def write(self, kind: str, values: Values, step: int | None = None) -> None:
        """Add a line. Raises `StorageError`."""
        line: dict[str, Any] = {"time": round(time.time(), 3), "kind": kind}
        if step is not None:
            line["step"] = int(step)
        line["values"] = values
        with self._lock:
            append_line(self._path, line)


def has_events(run: Path) -> bool:
    """Tell whether a run has told anything."""
    return (run / EVENTS).exists()


def read_events(run: Path) -> Iterator[Event]:
    """Yield the events of a run, but for a last one that a killed process left torn.

    Raises `UnreadableError` for a line that no run has written.
    """
    path = run / EVENTS
    try:
        for line in read_lines(path):
            if line.torn:
                return
            why = line.why or _lacks(line.value or {})
            if why:
                raise UnreadableError(path, f"line {line.number} {why}")
            yield line.value  # type: ignore[misc]
    except OSError as error:
        raise unreadable(path, error) from error


def salvaged_events(
    run: Path,
    fits: Callable[[Values], bool],
    lost: Callable[[int], None],
    *,
    containing: str = "",
) -> Iterator[dict[str, Any]]:
    """Yield the lines of events.jsonl that `fits` says are whole, whatever else is in it.

    `lost` is told how many others there were, if any. `containing`: only lines with this text, the
    others are not looked at. Raises `UnreadableError` where there is no file that can be read.
    """
    yield from salvaged(run / EVENTS, fits, lost, containing)


def salvaged(
    path: Path,
    fits: Callable[[Values], bool],
    lost: Callable[[int], None],
    containing: str = "",
) -> Iterator[dict[str, Any]]:
    """As `salvaged_events`, of any file of a run that has a JSON object a line."""
    damaged = 0
    try:
        for line in read_lines(path, containing=containing, errors="replace"):
            if line.value is not None and fits(line.value):
                yield line.value
            elif line.why != EMPTY:
                damaged += 1
    except OSError as error:
        raise unreadable(path, error) from error
    finally:
        if damaged:
            lost(damaged)


def is_event(line: Values) -> bool:
    """Tell whether a line has what every event has, and its step where it holds figures."""
    kind = line.get("kind")
    stepped = kind != "metrics" or isinstance(line.get("step"), int)
    return isinstance(kind, str) and isinstance(line.get("values"), dict) and stepped


def last_epoch(run: Path) -> tuple[int | None, float | None]:
    """Return the last epoch of pretraining (from 1) and its loss, from the end of events.jsonl."""
    for line in reversed(last_lines(run / EVENTS)):
        told = line.value or {}
        values = told.get("values")
        epoch = values.get("epoch") if isinstance(values, dict) else None
        if told.get("kind") == "epoch" and isinstance(epoch, int):
            return epoch + 1, told["values"].get("loss")
    return None, None


def span(run: Path) -> tuple[float | None, float | None]:
    """When the run wrote its first and its last event, in seconds since 1970; None: not known."""
    path = run / EVENTS
    try:
        first = next(read_lines(path, errors="replace"), None)
    except OSError:
        return None, None
    told = [line.value or {} for line in (first, *last_lines(path)) if line is not None]
    times = [float(line["time"]) for line in told if finite(line.get("time"))]
    return (times[0], times[-1]) if times else (None, None)


def last_written(run: Path) -> float | None:
    """Return when the run last told something, in seconds since 1970; None: it has told nothing."""
    try:
        return (run / EVENTS).stat().st_mtime
    except OSError:
        return None


def _lacks(line: Mapping[str, Any]) -> str:
    """What a line lacks that every event has, in words."""
    kinds: dict[str, Any] = {"kind": str, "time": int | float, "values": dict}
    return next(
        (f"has no {key}" for key, k in kinds.items() if not isinstance(line.get(key), k)), ""
    )
