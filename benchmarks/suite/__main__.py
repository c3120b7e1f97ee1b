"""`python -m benchmarks.suite`: measure the chosen rows and keep what came out."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.suite import results
from benchmarks.suite.machine import ROOT, look
from benchmarks.suite.rows import Row, all_rows
from benchmarks.suite.runner import ROUNDS, SideError, measure

BUSY = 0.5  # load per core


def main(
    arguments: Sequence[str], rows: Sequence[Row] | None = None, folder: Path = ROOT / "bench"
) -> int:
    """Do what the command line says; 1 when a row failed. Results go to `folder`."""
    given = _parser().parse_args(arguments)
    if given.profile:
        return subprocess.call([sys.executable, "-m", "benchmarks.suite.profiling"], cwd=ROOT)
    chosen = [row for row in rows or all_rows() if any(part in row.name for part in given.only)]
    if not chosen:
        print(f"No row's name holds {' or '.join(given.only)}; --list shows them.")
        return 2
    if given.list:
        print("\n".join(row.name for row in chosen))
        return 0
    return _measure(chosen, given.rounds, folder)


def _measure(rows: Sequence[Row], rounds: int, folder: Path) -> int:
    """Measure row by row; what is done is kept even when a later one fails."""
    skipped = [row for row in rows if not row.installed]
    machine, failed = look(), 0
    if (load := os.getloadavg()[0]) > BUSY * machine["cores"]:
        print(f"Other programs are busy here (load {load:.1f}): the figures will not be true.")
    for row in rows:
        if row in skipped:
            print(results.skipping(row))
            continue
        print(f"{row.name} ...", end=" ", flush=True)
        found: list[dict[str, Any]] = []
        try:
            found.append(measure(row, rounds, machine))
        except SideError as failure:
            failed += 1
            print(f"failed:\n{failure}")
            continue
        _, ours, peer, ratio, asked, *_ = results.cells(found[0])
        print(f"{ours}, peer {peer}: {ratio}" + (f" (asked: {asked})" if asked else ""))
        results.keep(folder, found, skipped)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="PART", help="rows whose name holds a PART"
    )
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help=f"of which the median is taken ({ROUNDS})"
    )
    parser.add_argument("--list", action="store_true", help="print the rows' names")
    parser.add_argument(
        "--profile", action="store_true", help="name the largest costs of a training step"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
