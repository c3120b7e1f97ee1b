"""ASHA: successive halving without waiting (Li et al., MLSys 2020)."""

from __future__ import annotations

from dataclasses import dataclass, field

from sseg_nase.search.log import Candidate, Log
from sseg_nase.search.strategies.ask import Ask
from sseg_nase.search.strategies.halving import Rungs, best
from sseg_nase.spaces.space import Space


@dataclass(frozen=True)
class ASHA:
    """Promote what is among the best 1/η of the results of its rung; else try a new candidate."""

    rungs: Rungs = field(default_factory=Rungs)

    def __call__(self, space: Space, log: Log, count: int, seed: int) -> list[Candidate]:
        """Return the next candidates: promotions from the highest rung down, then new ones."""
        ask = Ask(space, log, seed, self.rungs.fidelity(0))
        for rung in reversed(range(len(self.rungs.values) - 1)):
            results = log.usable(self.rungs.fidelity(rung))
            further = self.rungs.fidelity(rung + 1)
            members = [result.candidate for result in results]
            for member in best(log, members, len(members) // self.rungs.eta):
                if len(ask) < count:
                    ask.suggest(member.point, "promotion", [member.number], further)
        return ask.fill(count, "new")
