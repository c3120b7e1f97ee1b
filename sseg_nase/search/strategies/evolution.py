"""Regularised (aging) evolution: Real et al., AAAI 2019."""

from __future__ import annotations

from dataclasses import dataclass

from sseg_nase.errors import UserError
from sseg_nase.search.log import Candidate, Log, Scored
from sseg_nase.search.strategies.ask import Ask
from sseg_nase.spaces.space import Space

DRAWS = 20  # of a parent, before a random point is taken


@dataclass(frozen=True)
class Evolution:
    """Mutate the best of `sample` out of the last `population` candidates; the oldest falls out.

    The first `population` are random. The paper has 100 and 25; small budgets want 10 to 30.
    """

    population: int = 10
    sample: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.sample <= self.population:
            raise UserError(f"sample={self.sample} must be from 1 to population={self.population}.")

    def __call__(self, space: Space, log: Log, count: int, seed: int) -> list[Candidate]:
        """Return the next candidates."""
        ask = Ask(space, log, seed)
        living = log.usable()[-self.population :]
        while len(ask) < count:
            grown = bool(living) and ask.next_number >= self.population
            if not (grown and self._child(ask, living)) and not ask.suggest_any():
                break
        return ask.candidates

    def _child(self, ask: Ask, living: list[Scored]) -> bool:
        for _ in range(DRAWS):
            drawn = ask.rng.sample(living, min(self.sample, len(living)))
            parent = max(drawn, key=ask.log.value).candidate
            for _ in range(DRAWS):
                child = ask.space.mutate(parent.point, ask.rng)
                if ask.suggest(child, "mutation", [parent.number]):
                    return True
        return False
