"""Every point in order; a continuum is cut into steps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from sseg_nase.search.log import Candidate, Log
from sseg_nase.search.strategies.ask import Ask
from sseg_nase.search.strategies.settings import at_least
from sseg_nase.spaces.space import Space


@dataclass(frozen=True)
class Grid:
    """The points of the space in order, the last choice running fastest.

    `steps`: how many values of a continuum are taken, from end to end.
    """

    steps: int = 4

    def __post_init__(self) -> None:
        at_least(1, self, "steps")

    def __call__(self, space: Space, log: Log, count: int, seed: int) -> list[Candidate]:
        """Return the next candidates; fewer at the end."""
        ask = Ask(space, log, seed)
        if space.size is not None:
            last = log.candidates[-1].point if log.candidates else None
            points = space.points(0 if last is None else space.index(last) + 1)
        else:
            names = [choice.name for choice in space.choices]
            values = product(*(choice.grid(self.steps) for choice in space.choices))
            points = (dict(zip(names, value, strict=True)) for value in values)
        for point in points:
            if len(ask) == count:
                break
            if space.allows(point):
                ask.suggest(point, "grid")
        return ask.candidates
