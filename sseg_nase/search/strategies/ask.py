"""One ask: candidates that are new to the log, pending ones included, and new to each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from sseg_nase.search.log import Candidate, Fidelity, Log, fidelity_key
from sseg_nase.spaces.choice import Point
from sseg_nase.spaces.space import TRIES, WALKABLE, Space


class Ask:
    """What a strategy is about to suggest. Its random numbers follow from (seed, log) alone."""

    def __init__(self, space: Space, log: Log, seed: int, fidelity: Fidelity | None = None) -> None:
        self.space, self.log, self.seed, self.fidelity = space, log, seed, fidelity or {}
        self.rng = Random(f"{seed} {len(log.candidates)} {len(log.told)}")
        self.candidates: list[Candidate] = []
        self._asked: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self.candidates)

    @property
    def next_number(self) -> int:
        """The number of the candidate that is suggested next."""
        return len(self.log.candidates) + len(self.candidates)

    def is_new(self, point: Point) -> bool:
        """Whether nothing with the function of this point was asked for at this fidelity."""
        return self._new(self.space.key(point), self.fidelity)

    def suggest(
        self,
        point: Point,
        how: str,
        parents: Sequence[int] = (),
        fidelity: Fidelity | None = None,
    ) -> bool:
        """Take a point, and return True, where it is new."""
        key, fidelity = self.space.key(point), fidelity or self.fidelity
        if not self._new(key, fidelity):
            return False
        candidate = Candidate(
            number=self.next_number,
            point=dict(point),
            key=key,
            fidelity=dict(fidelity),
            parents=tuple(parents),
            how=how,
            after=len(self.log.told),
        )
        self._asked.add(candidate.asks)
        self.candidates.append(candidate)
        return True

    def try_often(self, make: Callable[[], Point], how: str, parents: Sequence[int] = ()) -> bool:
        """Suggest what `make` makes, as soon as that is new; False after many tries."""
        return any(self.suggest(make(), how, parents) for _ in range(TRIES))

    def suggest_any(self, how: str = "random") -> bool:
        """Suggest a random point; False where all points of the space were asked for."""
        if self.try_often(lambda: self.space.sample(self.rng), how):
            return True
        if self.space.size is None or self.space.size > WALKABLE:
            return False
        rest = [point for point in self.space.points() if self.is_new(point)]
        return bool(rest) and self.suggest(self.rng.choice(rest), how)

    def fill(self, count: int, how: str = "random") -> list[Candidate]:
        """Suggest random points up to `count` in all, as far as there are any; return all."""
        while len(self) < count and self.suggest_any(how):
            pass
        return self.candidates

    def _new(self, key: str, fidelity: Fidelity) -> bool:
        asked = key, fidelity_key(fidelity)
        return asked not in self._asked and self.log.find(key, fidelity) is None
