"""When a run began and ended, from what it wrote itself: names and file times may say otherwise.

A name is the local time of some machine, and a copy of a folder has the time of the copying.
"""

from __future__ import annotations

import math
from pathlib import Path

from sseg_nase.rundir.events import span
from sseg_nase.rundir.names import CONFIG, RESULTS


def created(run: Path) -> float:
    """When the run began; where it was stopped before its first event, when its config was made."""
    began, _ = span(run)
    return _modified(run / CONFIG) if began is None else began


def ended(run: Path) -> float:
    """When the run wrote its last event; without any, when its results were written."""
    _, last = span(run)
    return _modified(run / RESULTS) if last is None else last


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return -math.inf
