"""A genetic algorithm: generations, tournament selection, elites, crossover, mutation by gene."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log2
from random import Random
from typing import Any

from sseg_nase.errors import UserError
from sseg_nase.search.log import Candidate, Log, Scored
from sseg_nase.search.strategies.ask import Ask
from sseg_nase.search.strategies.settings import at_least
from sseg_nase.spaces.choice import Point, Value
from sseg_nase.spaces.space import TRIES, Space

PROMOTED, IMMIGRANT, RANDOM = "promotion", "immigrant", "random"


@dataclass(frozen=True)
class Genetic:
    """Generations of `population`: the `elites` of all before, and children of the last one.

    A parent is the best of `tournament` random ones. A child has each gene from either of two
    parents with probability `crossover`, or is a copy of one; then each gene mutates with
    probability `mutation`; a space of its own genome says how (`Space.crossover`, `mutate`). For a
    few hundred candidates five of each are better than the usual two elites and tournaments of
    three.

    It ends after `generations` (0: never), and after `patience` of them in which the best value has
    not risen by more than `min_delta` (0: it never ends for that).

    Of the first generation every kind of network has an equal share; where there are fewer places
    than kinds, chance says which have one.

    With `level_generations` a space that has levels of complexity is walked level by level, so many
    generations each but the last. Until then every kind of network has an equal share of each
    generation and descends from its own kind: simple networks cannot crowd out those that come
    later. Of every other generation no kind has more than `most_share`, rounded up: what learns
    fast is ahead where training is short, and would crowd out the rest.

    Where the values of a generation's parents have a lower mean entropy than `least_diversity`
    (bits per gene), so many `immigrants`, which are random, are in it.

    With `fidelity` all are trained for `least` of it, and from each generation the best `promoted`
    share go on to `most`: 0.5 is the median rule, a third that of ASHA. Where the shares of kinds
    are limited, the best of the kind of which the fewest have gone on goes first: what learns fast
    is not what learns most. Parents are chosen by the values at `least`; the best that the search
    names is one at `most`.

    `proposals`: for every candidate that is born, of which a screen keeps one (`Screened`).
    """

    population: int = 20
    elites: int = 5
    tournament: int = 5
    crossover: float = 0.5
    mutation: float = 0.2
    generations: int = 0
    patience: int = 0
    min_delta: float = 0.0
    level_generations: int = 0
    most_share: float = 1.0
    least_diversity: float = 0.0
    immigrants: int = 0
    fidelity: str = ""
    least: float = 1
    most: float = 1
    promoted: float = 0.5
    proposals: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.elites < self.population:
            raise UserError(
                f"elites={self.elites} must be from 0 to less than population={self.population}."
            )
        at_least(1, self, "tournament")
        at_least(0, self, "generations", "patience", "min_delta", "level_generations", "immigrants")
        for name in ("crossover", "mutation"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} must be from 0 to 1.")
        if self.immigrants > self.population - self.elites:
            raise UserError(
                f"immigrants={self.immigrants} must be at most the children of a generation, "
                f"population − elites = {self.population - self.elites}."
            )
        if bool(self.immigrants) != (self.least_diversity > 0):
            raise UserError(
                f"least_diversity={self.least_diversity} immigrants={self.immigrants}: one says "
                "when, the other how many; give both or neither."
            )
        if self.fidelity and not 0 < self.least < self.most:
            raise UserError(
                f"least={self.least} must be above 0 and below most={self.most}: a generation is "
                f"trained for so much of {self.fidelity}, and its best for most."
            )
        for name in ("promoted", "most_share"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} must be above 0, and at most 1.")

    def check(self, space: Space) -> None:
        """Raise `UserError` for settings that have no effect in this space."""
        if self.level_generations and space.levels == 1:
            raise UserError(
                f"strategy.level_generations={self.level_generations}: space={space.name} has no "
                "levels of complexity; leave it out, or choose space=families, at level 2 or 3."
            )
        if self.most_share == 1:
            return
        kinds = space.part(space.levels).kinds
        if not kinds:
            raise UserError(
                f"strategy.most_share={self.most_share}: space={space.name} has no network types; "
                "leave it out, or choose space=families."
            )
        if self.most_share * len(kinds) < 1:
            raise UserError(
                f"strategy.most_share={self.most_share}: network types within the caps: "
                f"{len(kinds)}; with so much of a generation each they do not fill it. Give at "
                f"least {ceil(1000 / len(kinds)) / 1000:g}, or leave it out."
            )

    def __call__(self, space: Space, log: Log, count: int, seed: int) -> list[Candidate]:
        """Return the next candidates: of one generation, and of those before what is trained on."""
        ask = Ask(space, log, seed, self._rung(self.least))
        born = self.born(log)
        generation = self.generation(len(born))
        self._promote(ask, born, count)
        before = len(ask)
        while len(ask) < count:
            place = len(born) + (len(ask) - before) // self.proposals
            if self.generation(place) > generation:  # its parents are among those of this call
                break
            if self._is_over(log, born, generation) or not self._next(ask, place):
                break
        if not ask.candidates and not log.pending:  # it ends, be it within a generation
            self._promote(ask, born, count, ended=True)
        return ask.candidates

    def generation(self, place: int) -> int:
        """Return the generation of the candidate at this position of the log, the first being 0."""
        if place < self.population:
            return 0
        return 1 + (place - self.population) // (self.population - self.elites)

    def born(self, log: Log) -> list[Candidate]:
        """Return the candidates in the order in which they were born: all but promotions."""
        return [c for c in log.candidates if c.how != PROMOTED]

    def level(self, generation: int, levels: int) -> int:
        """Return the level of complexity of a generation, in a space of so many."""
        if not self.level_generations:
            return levels
        return min(levels, 1 + generation // self.level_generations)

    def _shares(self, generation: int, levels: int) -> bool:
        """Whether every kind has an equal share of a generation, in a space of so many levels.

        What takes part from the last level on has its share of the first generation there.
        """
        return self.level_generations > 0 and generation <= self.level_generations * (levels - 1)

    def _size(self, generation: int) -> int:
        """How many are born in a generation."""
        return self.population - (self.elites if generation else 0)

    def _full(self, ask: Ask, start: int, generation: int) -> set[Value]:
        """The kinds that have all of their places in a generation; `start` is its first place.

        Of several proposals for a place any may be kept, so the kinds of all count.
        """
        asked = [c for c in ask.candidates if c.how != PROMOTED]
        places = [[c] for c in self.born(ask.log)]
        for first in range(0, len(asked) - self.proposals + 1, self.proposals):
            places.append(asked[first : first + self.proposals])
        taken = Counter[Value]()
        for proposals in places[start:]:
            taken.update({ask.space.kind(one.point) for one in proposals})
        most = ceil(self.most_share * self._size(generation))
        return {kind for kind, count in taken.items() if count >= most}

    def parents(
        self, log: Log, generation: int, among: Callable[[Point], bool] = lambda point: True
    ) -> list[Scored]:
        """Return the population that a generation comes from, as far as it has results.

        `among`: the points that count, which have elites of their own.
        """
        of = {c.number: self.generation(place) for place, c in enumerate(self.born(log))}
        results = log.usable(self._rung(self.least))
        before = [
            s for s in results if of[s.candidate.number] < generation and among(s.candidate.point)
        ]
        last = [s for s in before if of[s.candidate.number] == generation - 1]
        # Elites are passed on, so they are the best of all that there ever were.
        older = [s for s in before if of[s.candidate.number] < generation - 1]
        return sorted(older, key=log.value, reverse=True)[: self.elites] + last

    def _rung(self, amount: float) -> dict[str, float]:
        return {self.fidelity: amount} if self.fidelity else {}

    def _promote(
        self, ask: Ask, born: Sequence[Candidate], count: int, *, ended: bool = False
    ) -> None:
        """Suggest the best of every generation that has all of its results, `count` at most.

        `ended`: no further ones are born, so that the last generation is whole as it is.
        """
        if not self.fidelity:
            return
        had = Counter[Value]()
        groups: dict[int, list[Candidate]] = {}
        for place, candidate in enumerate(born):
            groups.setdefault(self.generation(place), []).append(candidate)
        for generation, members in groups.items():
            size = self._size(generation)
            results = [ask.log.result(member.number) for member in members]
            if None in results or (len(members) < size and not ended):
                return
            usable = [r for r in results if r is not None and ask.log.is_usable(r)]
            share = ceil(self.promoted * len(usable))
            ranked = sorted(usable, key=ask.log.value, reverse=True)
            if self._shares(generation, ask.space.levels) or self.most_share < 1:
                ranked = _in_turn(ranked, share, ask.space, had)
            for one in ranked[:share]:
                if len(ask) == count:
                    return
                again = one.candidate
                ask.suggest(again.point, PROMOTED, [again.number], self._rung(self.most))

    def _is_over(self, log: Log, born: Sequence[Candidate], generation: int) -> bool:
        """Whether no child of `generation` is born any more."""
        if self.generations and generation >= self.generations:
            return True
        if not self.patience or generation <= self.patience:
            return False
        of = {c.number: self.generation(place) for place, c in enumerate(born)}
        best: dict[int, float] = {}
        for one in log.usable(self._rung(self.least)):
            at = of[one.candidate.number]
            best[at] = max(best.get(at, -float("inf")), log.value(one))
        latest = range(generation - self.patience, generation)
        before = [value for at, value in best.items() if at < latest[0]]
        now = [best[at] for at in latest if at in best]
        return bool(before and now) and max(now) <= max(before) + self.min_delta

    def _next(self, ask: Ask, place: int) -> bool:
        """Suggest the candidate of this position; False where there is no new one."""
        generation = self.generation(place)
        start = sum(self._size(each) for each in range(generation))
        whole, at = ask.space, place - start
        level = self.level(generation, whole.levels)
        kinds: tuple[Value, ...] | None = None
        parents = self.parents(ask.log, generation)
        if self._shares(generation, whole.levels) or generation == 0:
            # Where the caps allow nothing that is so simple, the whole space is there at once.
            level = next((n for n in range(level, whole.levels + 1) if whole.part(n).kinds), level)
            if each := list(whole.part(level).kinds):
                order = Random(f"{ask.seed} kinds")
                for _ in range(generation + 1):
                    order.shuffle(each)
                kinds = (each[at % len(each)],)
        elif self.most_share < 1 and (full := self._full(ask, start, generation)):
            # Where the caps allow too few kinds for such shares, they are not held to them.
            kinds = tuple(one for one in whole.part(level).kinds if one not in full) or None
        few = self.immigrants and at < self.immigrants and len(parents) > 1
        if few and active_diversity(whole, [p.candidate.point for p in parents]) >= (
            self.least_diversity
        ):
            few = False
        if kinds is not None:
            parents = self.parents(ask.log, generation, lambda point: whole.kind(point) in kinds)
        ask.space = whole.part(level, kinds)
        try:
            if not few and parents and self._child(ask, parents):
                return True
            if ask.suggest_any(IMMIGRANT if few else RANDOM):
                return True
        finally:
            ask.space = whole
        # A kind that has no new network leaves its place to any other.
        return kinds is not None and ask.suggest_any(RANDOM)

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


def _in_turn(
    ranked: Sequence[Scored], count: int, space: Space, had: Counter[Value]
) -> list[Scored]:
    """Return `count`, each the first of the kind that has had the fewest, and add them to `had`."""
    rest, found = list(ranked), []
    for _ in range(count):
        one = min(rest, key=lambda each: had[space.kind(each.candidate.point)])
        had[space.kind(one.candidate.point)] += 1
        rest.remove(one)
        found.append(one)
    return found


def diversity(points: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean over genes of the Shannon entropy, in bits, of their values in `points`."""
    if not points:
        return 0.0
    return sum(_entropy([point[gene] for point in points]) for gene in points[0]) / len(points[0])


def active_diversity(space: Space, points: Sequence[Point]) -> float:
    """Return the diversity of those genes alone that say something in any of the points."""
    genes = dict.fromkeys(gene for point in points for gene in space.active(point))
    return diversity([{gene: point[gene] for gene in genes} for point in points])


def _entropy(values: Sequence[Any]) -> float:
    shares = [count / len(values) for count in Counter(values).values()]
    return -sum(share * log2(share) for share in shares) + 0.0
