"""When a run began and ended, from what it wrote itself: names and file times may say otherwise.

A name is the local time of some machine, and a copy of a folder has the time of the copying.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

TAIL_BYTES = 1 << 16


def span(run: Path) -> tuple[float | None, float | None]:
    """When the run wrote its first and its last event, in seconds since 1970; None: not known."""
    times = []
    try:
        with (run / "events.jsonl").open("rb") as lines:
            first = lines.readline()
            lines.seek(max(lines.tell(), lines.seek(0, 2) - TAIL_BYTES))
            rest = lines.read().splitlines()
    except OSError:
        return None, None
    for line in (first, *rest):
        try:
            written = json.loads(line)["time"]
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(written, int | float) and math.isfinite(written):
            times.append(float(written))
    return (times[0], times[-1]) if times else (None, None)


def created(run: Path) -> float:
    """When the run began; where it was stopped before its first event, when its config was made."""
    began, _ = span(run)
    return _modified(run / "config.yaml") if began is None else began


def ended(run: Path) -> float:
    """When the run wrote its last event; without any, when its results were written."""
    _, last = span(run)
    return _modified(run / "results.json") if last is None else last


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return -math.inf
