"""Runs of the program for a benchmark, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sseg_nase.files import read_json
from sseg_nase.rundir.status import FINISHED


def start_or_resume(folder: Path, lines: Sequence[str], kind: str = "*") -> Path:
    """Run the program with the overrides `lines`, or resume what was begun in `folder`.

    `kind`: the name of the folder below, such as `searches`. Returns the file of what it printed;
    how it ended is in its directory.
    """
    begun = sorted(path.parent for path in folder.glob(f"{kind}/*/status.json"))
    command = [f"resume='{begun[-1]}'"] if begun else lines
    folder.mkdir(parents=True, exist_ok=True)
    printed = folder / "output.txt"
    with printed.open("a") as output:
        subprocess.run(
            [sys.executable, "-m", "sseg_nase", *command], stdout=output, stderr=subprocess.STDOUT
        )
    return printed


def perform(folder: Path, lines: Sequence[str], kind: str = "*") -> Path:
    """Run or resume the program until it has finished; return its directory below `folder`."""
    if (done := finished(folder, kind)) is not None:
        return done
    printed = start_or_resume(folder, lines, kind)
    if (done := finished(folder, kind)) is None:
        raise SystemExit(f"{printed}: this has not finished; it says why.")
    print(f"{folder.name}: done", flush=True)
    return done


def finished(folder: Path, kind: str = "*") -> Path | None:
    """The run that has finished there."""
    for path in folder.glob(f"{kind}/*/status.json"):
        if (read_json(path) or {}).get("status") == FINISHED:
            return path.parent
    return None
