"""architecture.json: the description of a run's last network, as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sseg_nase.files import write_json
from sseg_nase.rundir.names import ARCHITECTURE
from sseg_nase.rundir.unreadable import UnreadableError, unreadable


def write_architecture(run: Path, architecture: Mapping[str, Any]) -> None:
    """Write architecture.json, whole or not at all. Raises `StorageError`."""
    write_json(run / ARCHITECTURE, architecture)


def read_architecture(run: Path) -> dict[str, Any]:
    """Return what architecture.json holds. Raises `UnreadableError`."""
    path = run / ARCHITECTURE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error
    if not isinstance(found, dict):
        raise UnreadableError(path, "it holds no keys")
    return found
