"""Which classes were taken for which, over all episodes of a list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


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
