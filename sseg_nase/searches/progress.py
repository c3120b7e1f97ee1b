"""How a search goes, result by result: best so far, hypervolume, diversity."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from sseg_nase.search import Objectives, Scored
from sseg_nase.search.objectives import hypervolume
from sseg_nase.search.strategies import active_diversity, diversity
from sseg_nase.spaces import NetworkSpace, Point, Space

RECENT = 20  # candidates whose diversity is told
FIRST = 10  # usable results, the worst of whose goals bound the hypervolume


class Progress:
    """What is known after each result that was `add`ed, in the order in which they came.

    With its space, diversity is that of the choices that say anything.
    """

    def __init__(self, objectives: Objectives, space: Space | None = None) -> None:
        self.told: list[Scored] = []
        self.best: Scored | None = None
        self._objectives = objectives
        self._diversity = diversity if space is None else partial(active_diversity, space)
        self._usable: list[Scored] = []

    def add(self, result: Scored) -> dict[str, float]:
        """Return the figures after this result, by the names that the tracker gets."""
        self.told.append(result)
        value = self._objectives.value
        if result.error is None and self._objectives.violation(result.scores) == 0:
            self._usable.append(result)
            if self.best is None or value(result.scores) > value(self.best.scores):
                self.best = result
        figures = {
            "search/results": float(len(self.told)),
            "search/failed": float(sum(one.error is not None for one in self.told)),
            "search/diversity": self._diversity(
                [one.candidate.point for one in self.told[-RECENT:]]
            ),
        }
        if self.best is not None:
            leading = next(iter(self._objectives.goals))
            figures[f"search/best/{leading}"] = self.best.scores[leading]
        volume = self.hypervolume()
        return figures if volume is None else {**figures, "search/hypervolume": volume}

    def hypervolume(self) -> float | None:
        """The share of the box between the worst of the first results and the best of each goal.

        None with one goal, more than three, or before `FIRST` usable results.
        """
        goals = len(self._objectives.goals)
        if not 2 <= goals <= 3 or len(self._usable) < FIRST:
            return None
        losses = np.array([self._objectives.losses(one.scores) for one in self._usable])
        first = losses[:FIRST]
        low, high = first.min(0), first.max(0)
        scale = np.where(high > low, high - low, 1.0)
        return hypervolume((losses - low) / scale, [1.0 + 1e-9] * goals)


def said_of(
    result: Scored, objectives: Objectives, best: Scored | None, space: Space | None = None
) -> str:
    """Return one line on a result: its scores, or why it failed, its point, and the best so far."""
    candidate = result.candidate
    point = " ".join(said_of_point(candidate.point, space))
    fidelity = "".join(f" at {name}={value:g}" for name, value in candidate.fidelity.items())
    if result.error is not None:
        return f"candidate {candidate.number}{fidelity}  FAILED  {point}  {result.error}"
    scores = " ".join(f"{name} {short(result.scores[name])}" for name in objectives.goals)
    over = "" if objectives.violation(result.scores) == 0 else "  above a cap"
    leading = next(iter(objectives.goals))
    so_far = "" if best is None else f"  (best {short(best.scores[leading])})"
    return f"candidate {candidate.number}{fidelity}  {scores}{over}{so_far}  {point}"


def said_of_point(point: Point, space: Space | None = None) -> list[str]:
    """Return `name=value` of every choice, with `space` of those that say anything about it."""
    names = space.active(point) if isinstance(space, NetworkSpace) else list(point)
    return [f"{name}={short(point[name])}" for name in names]


def short(value: Any) -> str:
    """Return a value for people: four digits that count, thousands apart."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or (abs(value) >= 1000 and value == round(value)):
        return f"{round(value):,}"
    return f"{value:.4g}"
