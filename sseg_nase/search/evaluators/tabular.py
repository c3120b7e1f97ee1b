"""Scores from a table that was measured before, such as a benchmark of every cell."""

from __future__ import annotations

import csv
import lzma
import re
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sseg_nase.errors import UserError, did_you_mean, shown
from sseg_nase.search.log import Candidate, Cost, Fidelity, Scored
from sseg_nase.spaces.choice import Value
from sseg_nase.spaces.space import Space

# Columns that hold test accuracy under another name, and what to say when they are asked for.
DISGUISED = {"c10_half200": "accuracy on the 10,000 CIFAR-10 test images, often called validation"}
TEST = re.compile(r"(^|[^a-z])test", re.IGNORECASE)
PROTOCOLS = ("validation", "compare_strategies")


class Table:
    """A csv, plain or .xz, with one row per cell and its columns by name.

    `id_column` holds each row's cell, which `parse` turns into a point of `space`.
    """

    def __init__(
        self,
        path: Path,
        space: Space,
        id_column: str,
        parse: Callable[[str], Mapping[str, Value]],
    ) -> None:
        try:
            with lzma.open(path, "rt") if path.suffix == ".xz" else path.open() as file:
                rows = csv.DictReader(file)
                self.columns = list(rows.fieldnames or [])
                self._need(path, id_column)
                self.rows = {space.to_json(parse(row[id_column])): row for row in rows}
        except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{shown(path)} cannot be read as a table: {error}.") from error
        self.path, self.space = path, space

    def column(self, name: str) -> dict[str, float]:
        """Return a column as numbers by the JSON of the point; empty fields are left out."""
        self._need(self.path, name)
        try:
            return {point: float(row[name]) for point, row in self.rows.items() if row[name]}
        except ValueError as error:
            raise UserError(f"Column {name} of {shown(self.path)}: {error}.") from error

    def _need(self, path: Path, name: str) -> None:
        if name not in self.columns:
            near = did_you_mean(name, self.columns)
            raise UserError(
                f"{shown(path)} has no column {name!r}.{near} It has {', '.join(self.columns)}."
            )


class Tabular:
    """An evaluator that looks up the columns of a table.

    `scores` maps names of scores to columns, or to `{fidelity value: column}` where the candidate's
    fidelity, `fidelity_name`, picks one. `seconds` is a column or a function of the candidate.

    Columns with test accuracy are refused. `protocol="compare_strategies"` allows those that are
    listed in `DISGUISED`, for regret between strategies only: no figure of it is an accuracy to
    report.
    """

    def __init__(
        self,
        table: Table,
        scores: Mapping[str, str | Mapping[float, str]],
        *,
        fidelity_name: str = "epochs",
        seconds: str | Callable[[Candidate], float] | None = None,
        protocol: str = "validation",
        slots: int = 1,
    ) -> None:
        if protocol not in PROTOCOLS:
            raise UserError(f"protocol={protocol!r} is none of {', '.join(PROTOCOLS)}.")
        self.slots, self.fidelity_name = slots, fidelity_name
        self._space = table.space
        self._scores: dict[str, dict[float | None, dict[str, float]]] = {}
        for name, given in scores.items():
            columns = {None: given} if isinstance(given, str) else dict(given)
            for column in columns.values():
                refuse_test(column, protocol)
            self._scores[name] = {at: table.column(column) for at, column in columns.items()}
        if isinstance(seconds, str):
            refuse_test(seconds, protocol)
        self._seconds = table.column(seconds) if isinstance(seconds, str) else seconds
        self._queue: deque[Candidate] = deque()

    def start(self, candidate: Candidate) -> None:
        """Put a candidate in the queue."""
        self._queue.append(candidate)

    def result(self) -> Scored:
        """Return the scores of the candidate that has waited longest."""
        return self.look_up(self._queue.popleft())

    def look_up(self, candidate: Candidate) -> Scored:
        """Return a candidate's scores; a failed result where the table does not have them."""
        row = self._space.to_json(candidate.point)
        cost = Cost(seconds=self._time(candidate, row))
        scores = {}
        for name, columns in self._scores.items():
            column, missing = self._at(columns, candidate.fidelity)
            if column is None or row not in column:
                error = missing or f"the table has no {name} for {row}"
                return Scored(candidate, cost=cost, error=error)
            scores[name] = column[row]
        return Scored(candidate, scores, cost)

    def _at(self, columns: dict[Any, dict[str, float]], fidelity: Fidelity) -> tuple[Any, str]:
        if None in columns:
            return columns[None], ""
        wanted = fidelity.get(self.fidelity_name)
        known = ", ".join(str(at) for at in columns)
        return columns.get(wanted), (
            "" if wanted in columns else f"the table has {self.fidelity_name} {known}, not {wanted}"
        )

    def _time(self, candidate: Candidate, row: str) -> float:
        if self._seconds is None:
            return 0.0
        if isinstance(self._seconds, dict):
            return self._seconds.get(row, 0.0)
        return self._seconds(candidate)


def refuse_test(column: str, protocol: str) -> None:
    """Raise `UserError` for a column that a search must not see under this protocol."""
    if column in DISGUISED and protocol != "compare_strategies":
        raise UserError(
            f"Column {column} is {DISGUISED[column]}: a search must not see it. Use a validation "
            "column, or protocol=compare_strategies to compare strategies by regret alone."
        )
    if TEST.search(column):
        raise UserError(f"Column {column} is test accuracy: a search must not see it.")
