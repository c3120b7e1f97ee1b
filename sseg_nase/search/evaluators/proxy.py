"""Scores without training: a zero-cost score of the network, or what a predictor says of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from sseg_nase.errors import UserError
from sseg_nase.search.log import Candidate, Cost, Fidelity, Log, Scored
from sseg_nase.search.predictors.base import Predictor
from sseg_nase.search.proxies import check_batch, measure, named_score
from sseg_nase.spaces.networks import NetworkSpace
from sseg_nase.spaces.space import Space


class Proxy:
    """An evaluator whose scores are zero-cost scores, with params and macs as the space counts.

    One batch for all candidates: `images` `[B, C, S, S]` in [-1, 1], `labels` `[B]`. A score is the
    mean over `seeds` of freshly initialised weights.
    """

    slots = 1

    def __init__(
        self,
        space: NetworkSpace,
        names: Sequence[str],
        images: Tensor,
        labels: Tensor,
        seeds: Sequence[int] = (0,),
    ) -> None:
        for name in names:
            named_score(name)
        check_batch(images, labels)
        self.names, self.seeds = tuple(names), tuple(seeds)
        self._space, self._images, self._labels = space, images, labels
        self._queue: deque[Candidate] = deque()

    def start(self, candidate: Candidate) -> None:
        """Put a candidate in the queue."""
        self._queue.append(candidate)

    def result(self) -> Scored:
        """Measure the candidate that has waited longest."""
        return self.measure(self._queue.popleft())

    def measure(self, candidate: Candidate) -> Scored:
        """Return a candidate's scores; a failed result with the reason where it has none."""
        started = time.perf_counter()
        try:
            description = self._space.describe(candidate.point)
            found = measure(self.names, description, self._images, self._labels, self.seeds)
        except Exception as error:
            return Scored(candidate, error=f"{type(error).__name__}: {error}")
        seconds = time.perf_counter() - started
        return Scored(candidate, {**self._space.costs(candidate.point), **found}, Cost(seconds))


class Predicted:
    """An evaluator that asks a predictor, fitted once to the results of another search.

    Its score has the name of that search's first goal and, as such a search follows it, its sign.
    `fidelity`: that of the results it learns from.
    """

    slots = 1

    def __init__(
        self,
        space: Space,
        predictor: Predictor,
        known: Log,
        seed: int = 0,
        fidelity: Fidelity | None = None,
    ) -> None:
        usable = known.usable(fidelity)
        self._space, self._name = space, next(iter(known.objectives.goals))
        self._sign = 1.0 if known.objectives.goals[self._name] == "max" else -1.0
        points = [scored.candidate.point for scored in usable]
        if len(usable) < 2:
            raise UserError("A predictor needs two results at least. Search for longer first.")
        values = np.array([known.value(scored) for scored in usable])
        self._predict = predictor.fit(space, points, values, seed=seed)
        self._queue: deque[Candidate] = deque()

    def start(self, candidate: Candidate) -> None:
        """Put a candidate in the queue."""
        self._queue.append(candidate)

    def result(self) -> Scored:
        """Predict for the candidate that has waited longest."""
        candidate = self._queue.popleft()
        mean, spread = self._predict([candidate.point])
        scores = {self._name: self._sign * float(mean[0]), "spread": float(spread[0])}
        return Scored(candidate, {**self._space.costs(candidate.point), **scores})
