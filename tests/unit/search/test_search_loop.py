from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from random import Random

import pytest

from sseg_nase.errors import UserError
from sseg_nase.search import (
    Budget,
    Candidate,
    Clock,
    Cost,
    Function,
    Log,
    Objectives,
    Scored,
    known_scores,
    search,
)
from sseg_nase.search.strategies import Evolution, RandomSearch
from sseg_nase.spaces import choices_space
from tests.support.synthetic import SPACE, measure, new_log


def timed(candidate: Candidate) -> Scored:
    seconds = 1.0 + candidate.number % 3
    return Scored(candidate, measure(candidate), Cost(seconds, images=100, training_macs=1e6))


class Slots(Function):
    """Two at a time; the evaluator counts what it was given."""

    slots = 2

    def __init__(self) -> None:
        super().__init__(timed)
        self.started: list[int] = []

    def start(self, candidate: Candidate) -> None:
        self.started.append(candidate.number)
        super().start(candidate)


@pytest.mark.parametrize(
    ("budget", "candidates"),
    [
        (Budget(candidates=10), 10),
        (Budget(seconds=6), 3),
        (Budget(images=401), 5),
        (Budget(training_macs=4e6), 4),
        (Budget(candidates=10, images=401), 5),
        (Budget(candidates=3, images=401), 3),
        (Budget(images=201, training_macs=4e6), 3),
    ],
)
def test_the_first_limit_that_is_reached_ends_the_search(budget: Budget, candidates: int) -> None:
    log = search(SPACE, RandomSearch(), Function(timed), new_log(), budget)
    assert len(log.told) == len(log.candidates) == candidates
    search(SPACE, RandomSearch(), Function(timed), log, budget)
    assert len(log.candidates) == candidates  # what is spent stays spent
    assert budget.left(log, 1) == Budget(candidates=1).left(log, 1) == 0


@pytest.mark.parametrize("slots", [1, 2])
def test_together_no_more_are_asked_for_than_the_budget_is_enough_for(slots: int) -> None:
    """At the mean cost so far, and no more than were evaluated; at first one for each slot."""

    def cheaper(candidate: Candidate) -> Scored:
        return replace(timed(candidate), cost=Cost(images=300 if candidate.number < 4 else 100))

    log = new_log()
    clock = Clock(cheaper, log, slots)
    search(SPACE, RandomSearch(), clock, log, Budget(images=2000), at_once=100)
    asked = Counter(c.after for c in log.candidates)
    assert (
        asked
        == {1: {0: 1, 1: 1, 2: 2, 4: 3, 7: 3, 10: 2}, 2: {0: 2, 2: 2, 4: 3, 7: 3, 10: 2}}[slots]
    )
    assert log.spent.images == 2000


def test_a_first_few_that_are_cheap_do_not_have_the_budget_overspent() -> None:
    """At the mean cost of the first two the budget would be enough for 38 more."""

    def dearer(candidate: Candidate) -> Scored:
        return replace(timed(candidate), cost=Cost(images=100 if candidate.number < 2 else 400))

    log = new_log()
    search(SPACE, RandomSearch(), Clock(dearer, log, 2), log, Budget(images=4000), at_once=100)
    asked = Counter(c.after for c in log.candidates)
    assert asked == {0: 2, 2: 2, 4: 4, 8: 5}
    assert log.spent.images == 4600


def test_a_limit_must_be_above_zero_and_a_continuum_needs_one() -> None:
    with pytest.raises(UserError, match=r"budget.seconds=0 must be above 0"):
        Budget(seconds=0)
    endless = choices_space({"lr": "uniform(0, 1)"})
    with pytest.raises(UserError, match=r"never ends\. Give a budget"):
        search(endless, RandomSearch(), Function(measure), new_log(), Budget())


@pytest.mark.parametrize(("at_once", "known"), [(1, 4), (5, 5)])
def test_free_slots_are_filled_and_generations_wait(at_once: int, known: int) -> None:
    evaluator = Slots()
    log = search(SPACE, Evolution(), evaluator, new_log(), Budget(candidates=20), at_once=at_once)
    assert evaluator.started == list(range(20))
    assert log.candidates[5].after == known  # one is still in work, or none


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_stopped_anywhere_it_goes_on_as_if_it_had_not_been(slots: int, at_once: int) -> None:
    """The evaluator breaks after k results: the file then resumes to the same candidates."""

    def run(log: Log, results: int) -> None:
        left = [results]

        def look_up(candidate: Candidate) -> Scored:
            return timed(candidate)

        clock = Clock(look_up, log, slots)
        give = clock.result

        def breaking() -> Scored:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return give()

        clock.result = breaking  # type: ignore[method-assign]
        search(SPACE, Evolution(5, 2), clock, log, Budget(candidates=24), seed=7, at_once=at_once)

    whole = new_log()
    run(whole, 1000)
    for results in (0, 1, 5, 9, 16, 23):
        log = new_log()
        with pytest.raises(KeyboardInterrupt):
            run(log, results)
        run(log, 1000)
        assert log.lines() == whole.lines()
        assert [s.candidate.number for s in log.told] == [s.candidate.number for s in whole.told]


def test_the_clock_runs_side_by_side() -> None:
    """Durations 1, 2, 3, 1, 2, 3 on two workers: 0–1, 0–2, 1–4, 2–3, 3–5, 4–7."""
    log = new_log()
    clock = Clock(timed, log, slots=2)
    search(SPACE, RandomSearch(), clock, log, Budget(candidates=6))
    assert clock.now == 7.0
    assert [s.candidate.number for s in log.told] == [0, 1, 3, 2, 4, 5]
    assert log.spent.seconds == 12.0


def test_a_failure_is_recorded_and_the_search_goes_on() -> None:
    def fragile(candidate: Candidate) -> Mapping[str, float]:
        if candidate.number % 2:
            raise RuntimeError("CUDA out of memory")
        return measure(candidate)

    log = search(SPACE, Evolution(4, 2), Function(fragile), new_log(), Budget(candidates=20))
    assert len(log.told) == 20
    assert {s.error for s in log.told} == {None, "RuntimeError: CUDA out of memory"}
    assert all(c.parents[0] % 2 == 0 for c in log.candidates if c.parents)


def test_what_always_fails_ends_also_where_no_budget_does() -> None:
    """Nothing is spent on what fails, so a budget of training macs would never end the search."""

    def broken(candidate: Candidate) -> Mapping[str, float]:
        raise RuntimeError("CUDA out of memory")

    def differently(candidate: Candidate) -> Mapping[str, float]:
        raise RuntimeError(f"candidate {candidate.number} is not to be had")

    for fails, count, said in (
        (broken, 10, "10 candidates in a row have failed for one reason: .*: RuntimeError: CUDA"),
        (differently, 100, "100 candidates in a row have failed: .*: candidate 99 is not"),
    ):
        log = new_log()
        with pytest.raises(UserError, match=said):
            search(SPACE, RandomSearch(), Function(fails), log, Budget(training_macs=1))
        assert len(log.told) == count


def test_one_that_succeeds_shows_that_not_all_fail() -> None:
    def fragile(candidate: Candidate) -> Mapping[str, float]:
        if candidate.number % 10:
            raise RuntimeError("CUDA out of memory")
        return measure(candidate)

    log = search(SPACE, RandomSearch(), Function(fragile), new_log(), Budget(candidates=40))
    assert len(log.told) == 40


def test_scores_that_are_known_are_not_measured_again() -> None:
    first = Log(Objectives({"accuracy": "max"}), {"recipe": "a"})
    search(SPACE, RandomSearch(), Function(timed), first, Budget(candidates=8))
    evaluator = Slots()
    second = search(
        SPACE,
        RandomSearch(),
        evaluator,
        new_log(),
        Budget(candidates=10),
        cache=known_scores([first], "a"),
    )
    known = [s.candidate.number for s in second.told if s.cached]
    assert sorted(known + evaluator.started) == list(range(10))
    assert 0 in known  # the first suggestion of a seed is the same
    for number in known:
        assert second.result(number).cost.images == 100  # what it cost the first time
    assert known_scores([first], "b") == {}
    failed = Log(Objectives({"other": "max"}), {"recipe": "a"})
    search(SPACE, RandomSearch(), Function(timed), failed, Budget(candidates=2))
    assert known_scores([failed], "a") == {}


def test_no_strategy_gets_a_candidate_above_a_cap_evaluated() -> None:
    capped = SPACE.under({"params": 100_000})
    big = dict.fromkeys(SPACE.sample(Random(0)), "nor_conv_3x3")

    def careless(space, log, count, seed):
        return [Candidate(len(log.candidates), big, space.key(big))]

    measured: list[Candidate] = []
    with pytest.raises(ValueError, match="above a cap"):
        search(capped, careless, Function(measured.append), new_log(), Budget(candidates=1))
    assert measured == []


def test_a_generation_larger_than_the_slots_waits_for_them() -> None:
    """Durations 1, 2, 3, 1, asked for at once, on two workers: 0–1, 0–2, 1–4, 2–3."""
    log = new_log()
    clock = Clock(timed, log, slots=2)
    search(SPACE, RandomSearch(), clock, log, Budget(candidates=4), at_once=4)
    assert clock.now == 4.0
