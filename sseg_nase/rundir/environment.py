"""environment.json: which versions, which machine and which code a run ran with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sseg_nase.files import read_json, write_json
from sseg_nase.provenance.environment import describe_environment
from sseg_nase.rundir.names import ENVIRONMENT


def write_environment(run: Path) -> None:
    """Write environment.json of a run that starts, or goes on.

    Where it goes on in another environment, the `earlier` ones stay in it, oldest first. Raises
    `StorageError`.
    """
    now = describe_environment()
    known = read_environment(run) or {}
    earlier = known.pop("earlier", [])
    if known and known != now:
        earlier = [*earlier, known]
    write_json(run / ENVIRONMENT, now | ({"earlier": earlier} if earlier else {}))


def read_environment(run: Path) -> dict[str, Any] | None:
    """Return what environment.json holds; None where there is none that can be read."""
    return read_json(run / ENVIRONMENT)
