"""From what a run tells to the rows that a store keeps: one place for live and late delivery."""

from __future__ import annotations

import math
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sseg_nase.errors import UserError
from sseg_nase.kinds import kind_of
from sseg_nase.rundir.events import read_events
from sseg_nase.rundir.names import EVENTS
from sseg_nase.rundir.results import (
    LAST,
    ClassResult,
    EpisodeResult,
    class_results,
    episode_results,
    read_results,
)
from sseg_nase.rundir.unreadable import UnreadableError
from sseg_nase.tracking.sink import Resumed

LONGEST_KEY = 250  # of MLflow
# MLflow's own tag for the text that its UI shows at the top of a run.
NOTE_TAG = "mlflow.note.content"

Row = tuple[str, float, int, int]  # key, value, timestamp in ms, step


class Steps:
    """A set of steps, eight bytes each: a long run has many."""

    def __init__(self, steps: Iterable[int] = ()) -> None:
        self._sorted = array("q", sorted(set(steps)))

    def add(self, step: int) -> bool:
        """Add a step; `False` when it was there."""
        if not self._sorted or step > self._sorted[-1]:
            self._sorted.append(step)
            return True
        place = bisect_left(self._sorted, step)
        if self._sorted[place] == step:
            return False
        self._sorted.insert(place, step)
        return True

    @property
    def last(self) -> int:
        """The highest one, -1 without any."""
        return self._sorted[-1] if self._sorted else -1


class Rows:
    """Turns what is told into rows, leaving out each (name, step) that there was already.

    `stored`: the steps that the store has already, by name.
    """

    def __init__(self, stored: Mapping[str, Iterable[int]] | None = None) -> None:
        self._told = {key: Steps(steps) for key, steps in (stored or {}).items()}
        self._last_mutation = -1

    def metrics(self, values: Mapping[str, float], step: int, milliseconds: int) -> list[Row]:
        """Return the rows of figures told at `step`: those that are new."""
        rows: list[Row] = []
        for name, value in values.items():
            key = clean_key(name)
            if self._told.setdefault(key, Steps()).add(int(step)):
                rows.append((key, float(value), milliseconds, int(step)))
        return rows

    def mutation(self, values: Mapping[str, Any], milliseconds: int) -> list[Row]:
        """Return a mutation, told as one line of mutations.jsonl, as `mutation/*` rows.

        `mutation/kind` is the code of its kind (`kinds.Kind`). A second mutation at one step
        stands at the next step, because a metric has one value per step.
        """
        figures = {
            "mutation/index": values["index"],
            "mutation/kind": kind_of(values["kind"]).code,
            "mutation/function_delta": values["function_delta"],
            "mutation/loss_before": values["loss_before"],
            "mutation/loss_after": values["loss_after"],
        }
        step = self._last_mutation = max(int(values["step"]), self._last_mutation + 1)
        known = {key: value for key, value in figures.items() if value is not None}
        return self.metrics(known, step, milliseconds)


def damaged(error: UnreadableError) -> UserError:
    """Return the error for an events.jsonl that is not as it was written."""
    return UserError(
        f"{error.path} is damaged ({error.reason}): what the run has told cannot be sent from it. "
        "Bring it back from a copy."
    )


def recorded_rows(run: Path, rows: Rows, until: Resumed | None = None) -> Iterator[list[Row]]:
    """Yield, line by line, what events.jsonl of a run holds and `rows` has not seen, up to `until`.

    Their times are those at which they were told. A resumed run tells some of it twice: the first
    time counts. What was not finite stands there as null, and comes back as NaN.
    """
    mutations, end = 0, math.inf if until is None else until.mutations
    try:
        for line in read_events(run):
            kind, values, milliseconds = line["kind"], line["values"], round(1000 * line["time"])
            new: list[Row] = []
            try:
                if kind == "metrics" and (until is None or line["step"] <= until.step):
                    figures = {key: math.nan if v is None else v for key, v in values.items()}
                    new = rows.metrics(figures, line["step"], milliseconds)
                elif kind == "mutation" and mutations <= values["index"] < end:
                    mutations = values["index"] + 1
                    new = rows.mutation(values, milliseconds)
            except (KeyError, TypeError) as error:
                why = f"a line of kind {kind}: {error!r}"
                raise UnreadableError(run / EVENTS, why) from error
            if new:
                yield new
    except UnreadableError as error:
        raise damaged(error) from error


def result_tags(directory: Path) -> dict[str, str]:
    """Return what a table of runs is sorted by, and the text of a run's page, from results.json.

    `accuracy_5w1s` (percent, of the first data set), `dataset`, `params`, and MLflow's note;
    nothing where there are no results.
    """
    results = read_results(directory) or {}
    tags, lines = dict[str, str](), list[str]()
    first = None
    evaluated: list[EpisodeResult | ClassResult] = [*episode_results(results, (LAST,))]
    for one in [*evaluated, *class_results(results, (LAST,))]:
        dataset, _, protocol = one.key.rpartition("/")
        first = first or dataset
        figure = f"{one.accuracy:.2f}"
        if dataset == first:
            tags["dataset"], tags[f"accuracy_{protocol}"] = dataset.partition("/")[0], figure
        interval = "?" if one.ci95 is None else f"{one.ci95:.2f}"
        lines.append(f"**{one.key}**: {figure} ± {interval} % ({one.method})")
    if not tags:
        return {}
    size = results.get("architecture") or {}
    if "params" in size:
        tags["params"] = str(size["params"])
        lines.append(f"{size['params']:,} params, {size.get('macs', 0):,} MACs")
    return tags | {NOTE_TAG: "\n\n".join(lines)}


@cache
def clean_key(name: str) -> str:
    """Return `name` as MLflow accepts it for a param or metric: other characters become `_`."""
    segments = re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII).split("/")
    key = "/".join(segment for segment in segments if segment.strip(". "))
    return key[:LONGEST_KEY] or "_"
