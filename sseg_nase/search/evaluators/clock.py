"""Simulated time: candidates run side by side and finish in the order of their durations."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from sseg_nase.search.log import Candidate, Log, Scored


class Clock:
    """An evaluator with `slots` workers whose time passes only in thought.

    `look_up` gives a candidate's result, whose `cost.seconds` is how long it takes. When a
    candidate began follows from the log alone, so a search that was killed goes on at the same
    simulated time.
    """

    def __init__(self, look_up: Callable[[Candidate], Scored], log: Log, slots: int) -> None:
        self.slots = slots
        self._look_up, self._log = look_up, log
        self._running: list[tuple[float, int, Scored]] = []
        self._ends: list[float] = []  # per result in the log, when it came

    @property
    def now(self) -> float:
        """The simulated time of the last result, in seconds."""
        self._catch_up()
        return self._ends[-1] if self._ends else 0.0

    def start(self, candidate: Candidate) -> None:
        """Let a free worker begin with it."""
        self._catch_up()
        scored = self._look_up(candidate)
        end = self._begin(candidate) + scored.cost.seconds
        heappush(self._running, (end, candidate.number, scored))

    def result(self) -> Scored:
        """Return the result that comes first."""
        return heappop(self._running)[2]

    def _begin(self, candidate: Candidate) -> float:
        """It began with the result that let it be asked for, or that made a worker free for it."""
        results = max(candidate.after, candidate.number + 1 - self.slots)
        return self._ends[results - 1] if results > 0 else 0.0

    def _catch_up(self) -> None:
        for scored in self._log.told[len(self._ends) :]:
            took = 0.0 if scored.cached else scored.cost.seconds
            self._ends.append(self._begin(scored.candidate) + took)
