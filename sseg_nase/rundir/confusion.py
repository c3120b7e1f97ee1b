"""confusion.npz and per_class.csv: which classes were taken for which, beside results.json.

Arrays are named as in episodes.npz, `digits/val/5w1s` and `best:digits/val/5w1s`: int64 `[C, C]`,
queries by true class and class that they were taken for; `classes:digits/val` are their names. A
line of per_class.csv is one class of one list and network, its accuracy in percent.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sseg_nase.files import write_text
from sseg_nase.rundir.arrays import write_arrays
from sseg_nase.rundir.episodes import PREFIXES
from sseg_nase.rundir.names import CONFUSION, PER_CLASS

NAMES = "classes:"


class ClassRow(NamedTuple):
    """One class under test: accuracy in percent of its queries, all against N − 1 others.

    `taken_for` is the class that most of its errors went to; empty where there are none.
    """

    name: str
    queries: int
    correct: int
    accuracy: float
    taken_for: str


@dataclass(frozen=True)
class Confusion:
    """Counts `[C, C]` int64 of queries by true class (row) and class that they were taken for."""

    counts: np.ndarray
    names: Sequence[str]

    def rows(self) -> list[ClassRow]:
        """The classes that had queries, in their order."""
        queries, correct = self.counts.sum(axis=1), np.diagonal(self.counts)
        errors = self.counts - np.diag(correct)
        return [
            ClassRow(
                name=self.names[int(c)],
                queries=int(queries[c]),
                correct=int(correct[c]),
                accuracy=100 * float(correct[c] / queries[c]),
                taken_for=self.names[int(errors[c].argmax())] if errors[c].any() else "",
            )
            for c in np.flatnonzero(queries)
        ]

    def extremes(self) -> dict[str, Any]:
        """The classes of lowest and highest accuracy (the first of equal ones), for results."""
        rows = self.rows()
        found = {
            "worst_class": min(rows, key=lambda row: row.accuracy),
            "best_class": max(rows, key=lambda row: row.accuracy),
        }
        return {key: {"name": r.name, "accuracy": r.accuracy} for key, r in found.items()}


def write_confusions(run: Path, confusions: Mapping[str, Mapping[str, Confusion]]) -> None:
    """Write `confusions`, by network and key, each file atomically. Raises `StorageError`."""
    arrays: dict[str, np.ndarray] = {}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("key", "network", *ClassRow._fields))
    for network, evaluated in confusions.items():
        for key, confusion in evaluated.items():
            arrays[PREFIXES[network] + key] = confusion.counts
            arrays[NAMES + key.rpartition("/")[0]] = np.array(confusion.names, dtype=np.str_)
            table.writerows((key, network, *row) for row in confusion.rows())
    write_arrays(run / CONFUSION, arrays)
    write_text(run / PER_CLASS, text.getvalue())
