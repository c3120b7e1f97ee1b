"""Local search: move to the first better neighbour, start again at a local optimum.

White, Nolen and Savani, Exploring the loss landscape in neural architecture search (UAI 2021).
Taking the first better neighbour instead of the best of all is better for small budgets.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from sseg_nase.search.log import Candidate, Log, Scored
from sseg_nase.search.strategies.ask import Ask
from sseg_nase.search.strategies.settings import at_least
from sseg_nase.spaces.choice import Value
from sseg_nase.spaces.space import Space

START, NEAR = "start", "neighbour"


@dataclass(frozen=True)
class LocalSearch:
    """Walks that go up from the best of some random points.

    `starts`: points before the first walk; `restarts`: before each walk after it.
    """

    starts: int = 10
    restarts: int = 5

    def __post_init__(self) -> None:
        at_least(1, self, "starts", "restarts")

    def __call__(self, space: Space, log: Log, count: int, seed: int) -> list[Candidate]:
        """Return unseen neighbours of where the walk stands, or new starts at an optimum."""
        ask = Ask(space, log, seed)
        starts, missing = self._last_group(log)
        if missing:
            return ask.fill(min(count, missing), START)
        here = _climb(space, log, starts, seed)
        if here is not None:
            for point in _around(space, here, seed):
                if len(ask) < count:
                    ask.suggest(point, NEAR, [here.candidate.number])
        if ask.candidates or log.pending:  # what is pending may be the next step
            return ask.candidates
        return ask.fill(min(count, self.restarts), START)

    def _last_group(self, log: Log) -> tuple[list[Candidate], int]:
        """Return the starts of the walk that is going on, and how many it still lacks."""
        starts = [candidate for candidate in log.candidates if candidate.how == START]
        later = len(starts) - self.starts
        if later <= 0:
            return starts, -later
        size = (later - 1) % self.restarts + 1
        return starts[-size:], self.restarts - size


def _climb(space: Space, log: Log, starts: list[Candidate], seed: int) -> Scored | None:
    """Return where the walk stands: it goes from the best start up through all that is known."""
    known = [result for start in starts if (result := _usable(log, start)) is not None]
    here = max(known, key=log.value, default=None)
    while here is not None:
        level = log.value(here)
        for point in _around(space, here, seed):
            seen = log.find(space.key(point))
            result = _usable(log, seen) if seen is not None else None
            if result is not None and log.value(result) > level:
                here = result
                break
        else:
            return here
    return None


def _around(space: Space, here: Scored, seed: int) -> list[dict[str, Value]]:
    """Return the neighbours, in an order that stays the same during a search."""
    near = space.neighbours(here.candidate.point)
    Random(f"{seed} around {here.candidate.number}").shuffle(near)
    return near


def _usable(log: Log, candidate: Candidate) -> Scored | None:
    result = log.result(candidate.number)
    return result if result is not None and log.is_usable(result) else None
