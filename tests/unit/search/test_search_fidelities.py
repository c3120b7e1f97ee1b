from __future__ import annotations

from collections import Counter

import pytest

from sseg_nase.errors import UserError
from sseg_nase.search import Budget, Candidate, Clock, Cost, Function, Log, Scored, search
from sseg_nase.search.strategies import ASHA, Hyperband, SuccessiveHalving
from sseg_nase.search.strategies.halving import Rungs
from tests.support.synthetic import SMALL, SPACE, accuracy, new_log

RUNGS = Rungs("epochs", 1, 9, 3)


def trained(candidate: Candidate) -> Scored:
    """Longer is better, and takes longer."""
    epochs = candidate.fidelity["epochs"]
    value = accuracy(candidate.point) - 9 / epochs
    return Scored(candidate, {"accuracy": value}, Cost(seconds=epochs))


def rungs_of(log: Log) -> Counter[float]:
    return Counter(candidate.fidelity["epochs"] for candidate in log.candidates)


def test_rungs_rise_by_eta_to_the_most() -> None:
    assert RUNGS.values == [1, 3, 9]
    assert Rungs("epochs", 2, 27, 3).values == [3, 9, 27]
    assert Rungs("images", 100, 1000, 4).values == [250, 1000]
    assert all(isinstance(value, int) for value in RUNGS.values)
    for wrong, said in [
        ({"least": 0}, "least=0 must be above 0"),
        ({"least": 30}, "at most most=27"),
        ({"eta": 1}, "eta=1 must be at least 2"),
    ]:
        with pytest.raises(UserError, match=said):
            Rungs(**wrong)


@pytest.mark.parametrize("at_once", [1, 4, 50])
def test_successive_halving_promotes_the_best_third_of_each_rung(at_once: int) -> None:
    log = search(
        SPACE,
        SuccessiveHalving(RUNGS, 9),
        Function(trained),
        new_log(),
        Budget(candidates=26),
        at_once=at_once,
    )
    assert rungs_of(log) == {1: 18, 3: 6, 9: 2}  # two rounds
    for first in (0, 13):
        members = log.told[first : first + 9]
        best = sorted(members, key=log.value, reverse=True)[:3]
        promoted = log.candidates[first + 9 : first + 12]
        assert {c.parents[0] for c in promoted} == {s.candidate.number for s in best}
        assert all(log.candidates[c.parents[0]].key == c.key for c in promoted)


def test_hyperband_has_brackets_from_many_and_short_to_few_and_long() -> None:
    log = search(SPACE, Hyperband(RUNGS), Function(trained), new_log(), Budget(candidates=22))
    brackets = {}
    for candidate in log.candidates:
        brackets.setdefault(candidate.how, Counter())[candidate.fidelity["epochs"]] += 1
    assert brackets == {
        "bracket 0": {1: 9, 3: 3, 9: 1},
        "bracket 1": {3: 5, 9: 1},
        "bracket 2": {9: 3},
    }


def test_asha_promotes_without_waiting_and_finishes_sooner() -> None:
    ends = {}
    for strategy in (ASHA(RUNGS), SuccessiveHalving(RUNGS, 27)):
        log = new_log()
        clock = Clock(trained, log, slots=4)
        search(SPACE, strategy, clock, log, Budget(candidates=40))
        ends[type(strategy)] = clock.now / len(log.usable({"epochs": 9}))
        for candidate in log.candidates:
            if candidate.parents:
                parent = log.candidates[candidate.parents[0]]
                assert parent.key == candidate.key
                assert candidate.fidelity["epochs"] == 3 * parent.fidelity["epochs"]
    counts = rungs_of(log)
    assert counts[1] >= 3 * counts[3] >= 9 * counts[9] > 0
    assert ends[ASHA] < ends[SuccessiveHalving]


def test_asha_promotes_only_the_best_third_of_what_is_done() -> None:
    log = new_log()
    strategy = ASHA(RUNGS)
    log.ask(strategy(SPACE, log, 3, 0))
    for candidate in log.candidates[:2]:
        log.tell(trained(candidate))
    assert strategy(SPACE, log, 1, 0)[0].how == "new"  # a third of two is none
    log.tell(trained(log.candidates[2]))
    first, second = strategy(SPACE, log, 2, 0)
    assert (first.how, first.key) == ("promotion", log.best({"epochs": 1}).candidate.key)
    assert second.how == "new"
    log.ask([first])
    assert strategy(SPACE, log, 1, 0)[0].how == "new"  # it is pending above


@pytest.mark.parametrize("strategy", [SuccessiveHalving(RUNGS, 9), Hyperband(RUNGS), ASHA(RUNGS)])
def test_a_finite_space_ends(strategy) -> None:
    space = SMALL.under({"params": 73_306 + 243_040})  # at most one convolution
    log = search(space, strategy, Function(trained), new_log(), Budget(), at_once=5)
    asks = [candidate.asks for candidate in log.candidates]
    assert len(asks) == len(set(asks))
    keys = {space.key(point) for point in space.points()}
    first = {c.key for c in log.candidates if c.fidelity["epochs"] == 1}
    assert first == keys or isinstance(strategy, Hyperband)
    assert strategy(space, log, 3, 0) == []


@pytest.mark.parametrize("strategy", [SuccessiveHalving(RUNGS, 9), ASHA(RUNGS)])
def test_what_failed_is_not_promoted(strategy) -> None:
    def fragile(candidate: Candidate) -> Scored:
        if candidate.number % 2:
            return Scored(candidate, error="out of memory")
        return trained(candidate)

    log = search(SPACE, strategy, Function(fragile), new_log(), Budget(candidates=30))
    assert len(log.candidates) == 30
    assert all(c.parents[0] % 2 == 0 for c in log.candidates if c.parents)
