"""A search in a process of its own, to be killed: LOG STRATEGY SLOTS AT_ONCE CANDIDATES."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from sseg_nase.search import Budget, Candidate, Clock, Cost, Log, Scored, search
from sseg_nase.search.strategies import ASHA, GP, NSGA2, Evolution, LocalSearch
from sseg_nase.search.strategies.halving import Rungs
from tests.support.synthetic import ACCURACY, SPACE, measure

STRATEGIES = {
    "evolution": Evolution(6, 3),
    "local": LocalSearch(4, 1),
    "gp": GP(starts=6, pool=20),
    "nsga2": NSGA2(6),
    "asha": ASHA(Rungs("epochs", 1, 9, 3)),
}


def timed(candidate: Candidate) -> Scored:
    time.sleep(0.002)  # so that a kill can fall into an evaluation
    seconds = candidate.fidelity.get("epochs", 1) * (1 + candidate.number % 3)
    return Scored(candidate, measure(candidate), Cost(seconds=seconds))


def run(path: Path, strategy: str, slots: int, at_once: int, candidates: int) -> None:
    with Log.open(path, ACCURACY, {"strategy": strategy}) as log:
        evaluator = Clock(timed, log, slots)
        budget = Budget(candidates=candidates)
        search(SPACE, STRATEGIES[strategy], evaluator, log, budget, seed=11, at_once=at_once)


if __name__ == "__main__":
    print("begins", flush=True)
    run(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
    print("done", flush=True)
