"""BANANAS (White, Neiswanger and Savani, AAAI 2021): an ensemble of networks, Thompson sampling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sseg_nase.search.log import Candidate, Log
from sseg_nase.search.predictors.base import normal_scores
from sseg_nase.search.predictors.mlp import Ensemble
from sseg_nase.search.strategies.ask import Ask
from sseg_nase.search.strategies.model import best_of, pool
from sseg_nase.search.strategies.settings import at_least
from sseg_nase.spaces.space import Space


@dataclass(frozen=True)
class Bananas:
    """Suggest, out of `pool` mutations of the `incumbents` best, those a Thompson sample prefers.

    The first `starts` are random. For each point one number is sampled from N(mean, spread) of the
    ensemble (independent Thompson sampling). `encoding`: `paths` where the space has it, else
    `one_hot`.
    """

    starts: int = 10
    pool: int = 100
    incumbents: int = 10
    encoding: str = "paths"
    members: int = 5

    def __post_init__(self) -> None:
        at_least(2, self, "starts", "pool", "incumbents", "members")

    def __call__(self, space: Space, log: Log, count: int, seed: int) -> list[Candidate]:
        """Return the next candidates."""
        ask, scored = Ask(space, log, seed), log.usable()
        missing = self.starts - len(log.candidates)
        if missing > 0 or len(scored) < 2:
            return ask.fill(min(count, max(missing, 1)))
        choices = pool(ask, best_of(log, scored, self.incumbents), self.pool, 0)
        if choices:
            draws = np.random.default_rng(ask.rng.getrandbits(64))
            encoding = self.encoding if self.encoding in space.encodings else "one_hot"
            ensemble = Ensemble(members=self.members, encoding=encoding)
            predict = ensemble.fit(
                space,
                [s.candidate.point for s in scored],
                normal_scores([log.value(s) for s in scored]),
                seed=ask.rng.getrandbits(32),
            )
            drawn = draws.normal(*predict([choice[0] for choice in choices]))
            for at in np.argsort(-drawn, kind="stable")[:count]:
                ask.suggest(*choices[at])
        return ask.fill(count)
