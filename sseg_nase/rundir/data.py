"""data.json: with which images a run was made. What it says is `sseg_nase.stages.identity`'s."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sseg_nase.files import read_json, write_json
from sseg_nase.rundir.names import DATA
from sseg_nase.rundir.unreadable import UnreadableError

PARTS: Mapping[str, type] = {"images": dict, "roles": dict, "files": dict}


def write_data(run: Path, data: Mapping[str, Any]) -> None:
    """Write data.json, whole or not at all. Raises `StorageError`."""
    write_json(run / DATA, data)


def read_data(run: Path) -> dict[str, Any]:
    """Return what data.json says; nothing in older runs, which have none.

    Raises `UnreadableError` where it is damaged.
    """
    path = run / DATA
    said = read_json(path)
    if said is None and not path.exists():
        return {}
    if said is None or not all(isinstance(said.get(k), t) for k, t in PARTS.items()):
        raise UnreadableError(path, "it does not say which images there were")
    return said
