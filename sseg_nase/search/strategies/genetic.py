"""A genetic algorithm: generations, tournament selection, elites, crossover, mutation by gene."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

from sseg_nase.errors import UserError
from sseg_nase.search.log import Candidate, Log, Scored
from sseg_nase.search.strategies.ask import Ask
from sseg_nase.search.strategies.settings import at_least
from sseg_nase.spaces.choice import Value
from sseg_nase.spaces.space import TRIES, Space


@dataclass(frozen=True)
class Genetic:
    """Generations of `population`: the `elites` of all before, and children of the last one.

    A parent is the best of `tournament` that are drawn. A child has each gene from either of two
    parents with probability `crossover`, or is a copy of one; then each gene mutates with
    probability `mutation`. For a few hundred candidates five of each are better than the usual two
    elites and tournaments of three.
    """

    population: int = 20
    elites: int = 5
    tournament: int = 5
    crossover: float = 0.5
    mutation: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.elites < self.population:
            raise UserError(
                f"elites={self.elites} must be from 0 to less than population={self.population}."
            )
        at_least(1, self, "tournament")
        for name in ("crossover", "mutation"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} must be from 0 to 1.")

    def __call__(self, space: Space, log: Log, count: int, seed: int) -> list[Candidate]:
        """Return the next candidates, of two generations where the border is between them."""
        ask = Ask(space, log, seed)
        while len(ask) < count:
            parents = self.parents(log, self.generation(ask.next_number))
            if not (parents and self._child(ask, parents)) and not ask.suggest_any():
                break
        return ask.candidates

    def generation(self, number: int) -> int:
        """Return the generation that a candidate belongs to; its number says it."""
        if number < self.population:
            return 0
        return 1 + (number - self.population) // (self.population - self.elites)

    def parents(self, log: Log, generation: int) -> list[Scored]:
        """Return the population that a generation comes from, as far as it has results."""
        before = [s for s in log.usable() if self.generation(s.candidate.number) < generation]
        last = [s for s in before if self.generation(s.candidate.number) == generation - 1]
        # Elites are passed on, so they are the best of all that there ever were.
        older = [s for s in before if self.generation(s.candidate.number) < generation - 1]
        return sorted(older, key=log.value, reverse=True)[: self.elites] + last

    def _child(self, ask: Ask, parents: list[Scored]) -> bool:
        for _ in range(TRIES):
            one = self._selected(ask, parents)
            child: Mapping[str, Value] = one.point
            how, numbers = "clone", [one.number]
            if ask.rng.random() < self.crossover:
                other = self._selected(ask, parents)
                child = ask.space.crossover(one.point, other.point, ask.rng)
                how, numbers = "crossover", [one.number, other.number]
            child = ask.space.mutate(child, ask.rng, self.mutation)
            if ask.suggest(child, how, numbers):
                return True
        return False

    def _selected(self, ask: Ask, parents: list[Scored]) -> Candidate:
        drawn = [ask.rng.choice(parents) for _ in range(self.tournament)]
        return max(drawn, key=ask.log.value).candidate


def diversity(points: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean over genes of the Shannon entropy, in bits, of their values in `points`."""
    if not points:
        return 0.0
    return sum(_entropy([point[gene] for point in points]) for gene in points[0]) / len(points[0])


def _entropy(values: Sequence[Any]) -> float:
    shares = [count / len(values) for count in Counter(values).values()]
    return -sum(share * log2(share) for share in shares) + 0.0
