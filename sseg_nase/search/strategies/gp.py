"""Bayesian optimisation: a Gaussian process and the expected improvement over the best.

With the Weisfeiler–Lehman kernel it is NAS-BOWL (Ru et al., ICLR 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from sseg_nase.search.log import Candidate, Log
from sseg_nase.search.predictors.base import normal_scores
from sseg_nase.search.predictors.gp import GaussianProcess
from sseg_nase.search.strategies.ask import Ask
from sseg_nase.search.strategies.model import best_of, pool
from sseg_nase.search.strategies.settings import at_least
from sseg_nase.spaces.space import Space


@dataclass(frozen=True)
class GP:
    """Suggest the points with the largest expected improvement out of `pool` new ones.

    The first `starts` are random. Half of the pool are mutations of the `incumbents` best. Pending
    candidates count as if they had come out as predicted.
    """

    starts: int = 10
    pool: int = 200
    incumbents: int = 10
    kernel: str = "hamming"

    def __post_init__(self) -> None:
        GaussianProcess(self.kernel)
        at_least(2, self, "starts", "pool", "incumbents")

    def __call__(self, space: Space, log: Log, count: int, seed: int) -> list[Candidate]:
        """Return the next candidates."""
        ask, scored = Ask(space, log, seed), log.usable()
        missing = self.starts - len(log.candidates)
        if missing > 0 or len(scored) < 2:
            return ask.fill(min(count, max(missing, 1)))
        best = best_of(log, scored, self.incumbents)
        choices = pool(ask, best, self.pool // 2, self.pool - self.pool // 2)
        if choices:
            points = [s.candidate.point for s in scored]
            targets = normal_scores([log.value(s) for s in scored])
            gp = GaussianProcess(self.kernel)
            predict = gp.fit(space, points, targets)
            pending = [candidate.point for candidate in log.pending]
            if pending:
                believed = np.append(targets, predict(pending)[0])
                predict = gp.fit(space, [*points, *pending], believed)
            gains = expected_improvement(*predict([c[0] for c in choices]), targets.max())
            for at in np.argsort(-gains, kind="stable")[:count]:
                ask.suggest(*choices[at])
        return ask.fill(count)


def expected_improvement(mean: np.ndarray, spread: np.ndarray, best: float) -> np.ndarray:
    """Return E[max(0, f − best)] `[n]` of normal f, for a spread above 0."""
    z = (mean - best) / spread
    gain: np.ndarray = spread * (z * ndtr(z) + np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi))
    return gain
