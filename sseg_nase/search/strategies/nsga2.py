"""NSGA-II: several goals at once (Deb et al., IEEE TEC 2002)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sseg_nase.errors import UserError
from sseg_nase.search.log import Candidate, Log, Scored
from sseg_nase.search.objectives import crowding, non_dominated_sort
from sseg_nase.search.strategies.ask import Ask
from sseg_nase.search.strategies.settings import at_least
from sseg_nase.spaces.space import TRIES, Space


@dataclass(frozen=True)
class NSGA2:
    """Generations of `population`, of which the best by rank and crowding are the next parents.

    Uniform crossover with probability `crossover`, then each gene mutates with probability
    `mutation`, by default one on average of those that say anything. What exceeds a measured cap
    ranks below all that does not.

    `proposals`: for every candidate that is born, of which a screen keeps one (`Screened`).
    """

    population: int = 20
    crossover: float = 0.9
    mutation: float | None = None
    proposals: int = 1

    def __post_init__(self) -> None:
        at_least(2, self, "population")
        for name, value in (("crossover", self.crossover), ("mutation", self.mutation)):
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name}={value} must be from 0 to 1.")

    def __call__(self, space: Space, log: Log, count: int, seed: int) -> list[Candidate]:
        """Return the next candidates, of one generation."""
        ask = Ask(space, log, seed)
        generation = ask.next_number // self.population
        parents = self.parents(log, generation)
        places = (generation + 1) * self.population - ask.next_number
        for _ in range(min(count, places * self.proposals)):  # the next one's parents are these
            if not (parents and self._child(ask, parents)) and not ask.suggest_any():
                break
        return ask.candidates

    def parents(self, log: Log, generation: int) -> list[tuple[Scored, tuple[float, float]]]:
        """Return the population that a generation comes from, each with (rank, −crowding)."""
        chosen: list[tuple[Scored, tuple[float, float]]] = []
        for earlier in range(generation):
            first = earlier * self.population
            asked = log.candidates[first : first + self.population]
            results = [log.result(candidate.number) for candidate in asked]
            new = [r for r in results if r is not None and r.error is None]
            chosen = self._survivors(log, [member for member, _ in chosen] + new)
        return chosen

    def _survivors(
        self, log: Log, members: list[Scored]
    ) -> list[tuple[Scored, tuple[float, float]]]:
        if not members:
            return []
        losses = np.array([log.objectives.losses(member.scores) for member in members])
        violations = np.array([log.objectives.violation(member.scores) for member in members])
        ranks = non_dominated_sort(losses, violations)
        gaps = np.zeros(len(members))
        for rank in np.unique(ranks):
            rows = np.flatnonzero(ranks == rank)
            gaps[rows] = crowding(losses[rows])
        order = np.lexsort((-gaps, ranks))[: self.population]
        return [(members[at], (float(ranks[at]), -float(gaps[at]))) for at in order]

    def _child(self, ask: Ask, parents: list[tuple[Scored, tuple[float, float]]]) -> bool:
        space, rng = ask.space, ask.rng
        for _ in range(TRIES):
            one, other = (
                min(rng.choice(parents), rng.choice(parents), key=lambda each: each[1])[0].candidate
                for _ in range(2)
            )
            child, how, numbers = one.point, "clone", [one.number]
            if rng.random() < self.crossover:
                child = space.crossover(one.point, other.point, rng)
                how, numbers = "crossover", [one.number, other.number]
            rate = 1 / len(space.active(child)) if self.mutation is None else self.mutation
            if ask.suggest(space.mutate(child, rng, rate), how, numbers):
                return True
        return False
