"""Let the two sides of a row take turns, each in its own process, and compare the medians.

A process of its own each, because allocator and thread settings and peak memory belong to a
process. What is ours is set up as the program sets itself up; a library finds what its user has.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.suite.machine import ROOT
from benchmarks.suite.rows import OWN, Row, Side

ROUNDS = 5
WORDS_OF_FAILURE = 15  # last lines of what a failed side said


@dataclass(frozen=True)
class Round:
    """What one side did in one turn."""

    amount: float
    seconds: float


# From a round to a figure. Units that are not here are rates: amount per second.
UNITS: Mapping[str, Callable[[Round], float]] = {
    "s": lambda round: round.seconds,
    "MB": lambda round: float("nan"),  # the process's peak memory, known at the end
    "% of a step": lambda round: round.amount,
}
LESS_IS_BETTER = frozenset(UNITS)


class SideError(Exception):
    """A side ended early; holds the last lines it said."""


@dataclass
class Found:
    """All figures of one side."""

    rounds: list[Round] = field(default_factory=list)
    peak_mb: float = 0.0
    gpu_peak_mb: float | None = None

    def figures(self, unit: str) -> list[float]:
        """One per round."""
        if unit == "MB":
            return [self.peak_mb]
        figure = UNITS.get(unit, lambda round: round.amount / round.seconds)
        return [figure(round) for round in self.rounds]


class Child(AbstractContextManager["Child"]):
    """The process of one side. It works only between `turn` and its answer."""

    def __init__(self, side: Side, *, as_program: bool) -> None:
        # What it and its libraries say, shown when it fails.
        self.said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        argument = json.dumps({**asdict(side), "as_program": as_program})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.suite.child", argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )
        self.found = Found()

    def ready(self) -> None:
        """Wait until it has prepared and warmed up."""
        self._answer()

    def turn(self) -> None:
        """One round."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.found.rounds.append(Round(**self._answer()))

    def end(self) -> Found:
        """All that it found, with its peak memory."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        last = self._answer()
        self.found.peak_mb, self.found.gpu_peak_mb = last["peak_mb"], last["gpu_peak_mb"]
        return self.found

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.said.seek(0)
            raise SideError("".join(self.said.readlines()[-WORDS_OF_FAILURE:]).rstrip())
        return json.loads(line)

    def __exit__(self, *error: object) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.said.close()


def measure(row: Row, rounds: int, machine: dict[str, Any]) -> dict[str, Any]:
    """Return the row's entry of `results.json`. Raises `SideError`."""
    rounds = row.rounds or rounds
    with Child(row.ours, as_program=True) as ours:
        ours.ready()
        with Child(row.theirs, as_program=row.package == OWN) as theirs:
            theirs.ready()
            for _ in range(rounds):
                ours.turn()
                theirs.turn()
            found = ours.end(), theirs.end()
    return entry(row, *found, machine)


def entry(row: Row, ours: Found, theirs: Found, machine: dict[str, Any]) -> dict[str, Any]:
    """Medians, their ratio (above 1: we are better) and what they belong to."""
    figures = [side.figures(row.unit) for side in (ours, theirs)]
    mine, peers = (statistics.median(side) for side in figures)
    better, worse = (peers, mine) if row.unit in LESS_IS_BETTER else (mine, peers)
    found: dict[str, Any] = {
        "name": row.name + ("@cuda" if machine["accelerator"] == "cuda" else ""),
        "ours": _short(mine),
        "peer": _short(peers),
        "unit": row.unit,
        "ratio": _short(better / worse) if worse > 0 else None,
        "peer_version": row.peer_version,
        "peer_name": row.peer,
        "ratio_asked": row.ratio,
        "limit": row.limit,
        "rounds": len(figures[0]),
        "ours_rounds": [_short(figure) for figure in figures[0]],
        "peer_rounds": [_short(figure) for figure in figures[1]],
        "ours_peak_mb": round(ours.peak_mb),
        "peer_peak_mb": round(theirs.peak_mb),
        "machine": machine,
    }
    if ours.gpu_peak_mb is not None:
        found |= {"ours_gpu_peak_mb": round(ours.gpu_peak_mb)}
    if theirs.gpu_peak_mb is not None:
        found |= {"peer_gpu_peak_mb": round(theirs.gpu_peak_mb)}
    return found


def _short(figure: float) -> float:
    """Four significant digits: more would only be noise."""
    return float(f"{figure:.4g}")
