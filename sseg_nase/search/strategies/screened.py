"""A cheap score orders what a strategy suggests, and only the first of it is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from sseg_nase.errors import UserError
from sseg_nase.search.log import Candidate, Log
from sseg_nase.search.loop import Strategy
from sseg_nase.search.strategies.settings import at_least
from sseg_nase.spaces.choice import Value
from sseg_nase.spaces.space import Space


@dataclass(frozen=True)
class Screened:
    """Ask `strategy` for `factor` times as many, and keep those with the highest `score`.

    `score` is a function of a point that always gives the same for it, such as a zero-cost score or
    its params; what is left out may be suggested again later. A candidate with a fidelity is
    refused: strategies over fidelities promote, and what they promote must not be left out.
    """

    strategy: Strategy
    score: Callable[[dict[str, Value]], float]
    factor: int = 10
    _known: dict[str, float] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        at_least(1, self, "factor")

    def __call__(self, space: Space, log: Log, count: int, seed: int) -> list[Candidate]:
        """Return the next candidates."""
        asked = self.strategy(space, log, count * self.factor, seed)
        if any(candidate.fidelity for candidate in asked):
            raise UserError("A screen leaves candidates out: use a strategy without fidelities.")
        kept = sorted(asked, key=lambda each: -self._scored(each))[:count]
        kept.sort(key=lambda each: each.number)
        first = len(log.candidates)
        return [replace(each, number=first + at) for at, each in enumerate(kept)]

    def _scored(self, candidate: Candidate) -> float:
        if candidate.key not in self._known:
            self._known[candidate.key] = self.score(dict(candidate.point))
        return self._known[candidate.key]
