"""A run of the program for a benchmark, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


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
