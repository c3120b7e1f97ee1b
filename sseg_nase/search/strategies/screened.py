"""A cheap score orders what a strategy suggests, and only the first of it is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, cast

import numpy as np

from sseg_nase.errors import UserError
from sseg_nase.search.log import Candidate, Log
from sseg_nase.search.loop import Strategy
from sseg_nase.search.predictors.base import Predictor, normal_scores
from sseg_nase.search.strategies.settings import at_least
from sseg_nase.spaces.choice import Value
from sseg_nase.spaces.space import Space


@dataclass(frozen=True)
class Screened:
    """Ask `strategy` for `factor` times as many, and keep those with the highest `score`.

    `score` is a function of a point that always gives the same for it, such as a zero-cost score or
    its params; what is left out may be suggested again later. A promotion, which asks for what the
    log has at another fidelity, comes first: it is never left out for a new candidate.

    A strategy of generations (`proposals`) makes `factor` proposals for each place, of which the
    best is kept.
    """

    strategy: Strategy
    score: Callable[[dict[str, Value]], float]
    factor: int = 10
    _known: dict[str, float] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        at_least(1, self, "factor")
        _ask_for_places(self)

    def __call__(self, space: Space, log: Log, count: int, seed: int) -> list[Candidate]:
        """Return the next candidates."""
        asked = self.strategy(space, log, count * self.factor, seed)
        return _first(self, [self._scored(each) for each in asked], asked, count, log)

    def _scored(self, candidate: Candidate) -> float:
        if candidate.key not in self._known:
            self._known[candidate.key] = self.score(dict(candidate.point))
        return self._known[candidate.key]


@dataclass(frozen=True)
class ScreenedByPredictor:
    """The same with what a `predictor` says that has learnt the usable results in the log.

    Below `starts` of them there is nothing to learn from: the strategy is asked for no more than
    are wanted. A candidate with a fidelity is refused: results at several do not compare.
    """

    strategy: Strategy
    predictor: Predictor
    factor: int = 10
    starts: int = 10

    def __post_init__(self) -> None:
        at_least(1, self, "factor")
        at_least(2, self, "starts")
        _ask_for_places(self)

    def __call__(self, space: Space, log: Log, count: int, seed: int) -> list[Candidate]:
        """Return the next candidates."""
        usable = log.usable()
        known = len(usable) >= self.starts
        of_places = known or _has_places(self.strategy)
        asked = self.strategy(space, log, count * self.factor if of_places else count, seed)
        if any(candidate.fidelity for candidate in asked):
            raise UserError(
                "A predictor learns from results of one fidelity: use a strategy without "
                "fidelities, or another screen."
            )
        if not known or not asked:
            return _first(self, [0.0] * len(asked), asked, count, log)
        values = normal_scores([log.value(result) for result in usable])
        points = [result.candidate.point for result in usable]
        predict = self.predictor.fit(space, points, values, seed=seed)
        mean, _ = predict([candidate.point for candidate in asked])
        return _first(self, mean, asked, count, log)


def _has_places(strategy: Strategy) -> bool:
    return is_dataclass(strategy) and hasattr(strategy, "proposals")


def _ask_for_places(screen: Screened | ScreenedByPredictor) -> None:
    if _has_places(screen.strategy):
        strategy = replace(cast(Any, screen.strategy), proposals=screen.factor)
        object.__setattr__(screen, "strategy", strategy)


def _first(
    screen: Screened | ScreenedByPredictor,
    scores: Sequence[float] | np.ndarray,
    asked: Sequence[Candidate],
    count: int,
    log: Log,
) -> list[Candidate]:
    """Return promotions, then those with the highest scores; in the order they were asked for."""
    promoted = [at for at, each in enumerate(asked) if _promoted(each, log)]
    new = [at for at, each in enumerate(asked) if not _promoted(each, log)]
    if _has_places(screen.strategy):  # the best for each place
        places = [new[at : at + screen.factor] for at in range(0, len(new), screen.factor)]
        new = [max(place, key=lambda at: scores[at]) for place in places]
    else:
        new.sort(key=lambda at: -scores[at])
    first = len(log.candidates)
    kept = sorted([*promoted, *new][:count])
    return [replace(asked[at], number=first + n) for n, at in enumerate(kept)]


def _promoted(candidate: Candidate, log: Log) -> bool:
    return any(log.candidates[number].key == candidate.key for number in candidate.parents)
