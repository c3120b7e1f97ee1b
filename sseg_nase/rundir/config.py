"""config.yaml and overrides.yaml: what a run was asked for, as plain data.

As the run has stored it, whatever version that was: `sseg_nase.config.compose.stored` makes a
config of this version of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sseg_nase.config.layout import misfits
from sseg_nase.files import write_text
from sseg_nase.rundir.names import CONFIG, OVERRIDES
from sseg_nase.rundir.unreadable import UnreadableError, unreadable

# The C parser is ten times as fast; libyaml is not everywhere.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_config(run: Path) -> dict[str, Any]:
    """Return what config.yaml of a run holds. Raises `UnreadableError`."""
    path = run / CONFIG
    found = _read(path)
    if not isinstance(found, dict):
        raise UnreadableError(path, "it holds no keys")
    return found


def config_of(run: Path) -> dict[str, Any] | None:
    """Return what config.yaml of a run holds; None where there is none that can be read.

    A key whose value is of another type than any run's is damage, too.
    """
    try:
        found = read_config(run)
    except UnreadableError:
        return None
    return None if any(misfits(found)) else found


def read_overrides(run: Path) -> list[str] | None:
    """Return the overrides that a run was begun with; None where they cannot be read."""
    try:
        found = _read(run / OVERRIDES)
    except UnreadableError:
        return None
    return [str(line) for line in found] if isinstance(found, list) else None


def write_config(run: Path, config: Mapping[str, Any], overrides: list[str]) -> None:
    """Write both files. Raises `StorageError`."""
    write_text(run / CONFIG, yaml.safe_dump(dict(config), sort_keys=False))
    write_text(run / OVERRIDES, yaml.safe_dump(overrides))


def _read(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)  # safe, both of them
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise unreadable(path, error) from error
