"""Random search without replacement: the baseline of every table."""

from __future__ import annotations

from dataclasses import dataclass

from sseg_nase.search.log import Candidate, Log
from sseg_nase.search.strategies.ask import Ask
from sseg_nase.spaces.space import Space


@dataclass(frozen=True)
class RandomSearch:
    """Any point that was not asked for, until the space is exhausted."""

    def __call__(self, space: Space, log: Log, count: int, seed: int) -> list[Candidate]:
        """Return the next candidates."""
        return Ask(space, log, seed).fill(count)
