"""Scores from a function of one's own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from sseg_nase.search.log import Candidate, Scored


class Function:
    """An evaluator that calls `measure` with each candidate, which returns its scores by name.

    What it raises is the reason with which that candidate failed. Cost is left at 0: a function
    that wants to record it returns a `Scored`.
    """

    slots = 1

    def __init__(self, measure: Callable[[Candidate], Mapping[str, float] | Scored]) -> None:
        self._measure = measure
        self._queue: deque[Candidate] = deque()

    def start(self, candidate: Candidate) -> None:
        """Put a candidate in the queue."""
        self._queue.append(candidate)

    def result(self) -> Scored:
        """Measure the candidate that has waited longest."""
        candidate = self._queue.popleft()
        try:
            found = self._measure(candidate)
        except Exception as error:
            return Scored(candidate, error=f"{type(error).__name__}: {error}")
        return found if isinstance(found, Scored) else Scored(candidate, found)
