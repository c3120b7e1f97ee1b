from __future__ import annotations

import dataclasses
from collections import Counter
from random import Random
from typing import Any

import numpy as np
import pytest

from sseg_nase.errors import UserError
from sseg_nase.search import Budget, Candidate, Function, Log, Objectives, Scored, search
from sseg_nase.search.objectives import hypervolume, non_dominated_sort
from sseg_nase.search.predictors.kernels import LENGTHS, hamming, weisfeiler_lehman, wl_histograms
from sseg_nase.search.strategies import (
    GP,
    NSGA2,
    Bananas,
    Evolution,
    Genetic,
    Grid,
    LocalSearch,
    RandomSearch,
    Reinforce,
    Screened,
    diversity,
)
from sseg_nase.search.strategies.gp import expected_improvement
from sseg_nase.spaces import Families, Graph, Integers, Options, Space, choices_space
from sseg_nase.spaces.choice import Point, Value
from tests.support.synthetic import ACCURACY, SMALL, SPACE, accuracy, measure, new_log


def by_number(candidate: Candidate) -> dict[str, float]:
    return {"accuracy": float(candidate.number)}


STRATEGIES = [
    RandomSearch(),
    Grid(),
    LocalSearch(),
    LocalSearch(4, 1),
    Evolution(),
    Genetic(population=10, elites=2),
    Reinforce(),
    GP(pool=40),
    GP(pool=40, kernel="wl"),
    Bananas(pool=20, members=2),
    NSGA2(10),
]
# Those that fit a model at each ask take seconds to exhaust a space.
MARKED = [
    pytest.param(s, marks=[pytest.mark.slow] if isinstance(s, GP | Bananas) else [])
    for s in STRATEGIES
]
NAMES = [f"{type(s).__name__}{i}" for i, s in enumerate(STRATEGIES)]
MIXED = choices_space(
    {"lr": "loguniform(1e-4, 1e-1)", "depth": "int(1, 9)", "act": ["relu", "elu"]}
)


def tuned(candidate) -> dict[str, float]:
    point = candidate.point
    off = abs(np.log10(point["lr"]) + 2) + abs(point["depth"] - 6) / 4
    return {"accuracy": 90.0 - 10 * off - 3 * (point["act"] == "elu")}


@pytest.mark.parametrize("strategy", MARKED, ids=NAMES)
def test_a_finite_space_is_exhausted_without_a_duplicate(strategy) -> None:
    """Every function of the 729 cells of three operations, once, ten or fewer at a time."""
    every = {SMALL.key(point) for point in SMALL.points()}
    assert SMALL.size == 3**6
    log = search(SMALL, strategy, Function(measure), new_log(), Budget(), at_once=9)
    keys = [candidate.key for candidate in log.candidates]
    assert len(keys) == len(set(keys)) == len(every)
    assert set(keys) == every
    assert strategy(SMALL, log, 5, 0) == []


@pytest.mark.parametrize("strategy", STRATEGIES, ids=NAMES)
def test_parallel_asks_never_give_the_same_and_the_same_log_gives_the_same(strategy) -> None:
    log = search(SPACE, strategy, Function(measure), new_log(), Budget(candidates=16), seed=5)
    if isinstance(strategy, LocalSearch):  # it may wait for what is pending
        strategy = dataclasses.replace(strategy, starts=60)
    for count in (1, 3, 1):  # nothing of it has a result yet
        asked = strategy(SPACE, log, count, 5)
        assert asked == strategy(SPACE, log, count, 5)
        assert 0 < len(asked) <= count
        log.ask(asked)  # raises for a duplicate
    keys = [candidate.key for candidate in log.candidates]
    assert len(set(keys)) == len(keys)
    if not isinstance(strategy, Grid):
        assert strategy(SPACE, log, 1, 5)[0].point != strategy(SPACE, log, 1, 6)[0].point


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if not isinstance(s, Grid)], ids=repr)
def test_order_of_results_does_not_matter(strategy) -> None:
    """The same set of results in another order gives the same suggestion."""
    first = search(SPACE, strategy, Function(measure), new_log(), Budget(candidates=20), seed=1)
    other = new_log()
    for candidate in first.candidates:
        other.ask([candidate])
    for candidate in reversed(first.candidates):
        other.tell(Scored(candidate, measure(candidate)))
    assert strategy(SPACE, first, 4, 1) == strategy(SPACE, other, 4, 1)


@pytest.mark.parametrize(
    "strategy",
    [
        LocalSearch(),
        Evolution(),
        Genetic(population=10, elites=2),
        Reinforce(),
        GP(pool=40),
        pytest.param(GP(pool=40, kernel="wl"), marks=pytest.mark.slow),
        pytest.param(Bananas(pool=20), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_strategies_beat_random_search_on_the_synthetic_table(strategy) -> None:
    def mean_best(each) -> float:
        found = []
        for seed in range(4):
            log = new_log()
            budget = Budget(candidates=70)
            search(SPACE, each, Function(measure), log, budget, seed=seed, at_once=5)
            found.append(log.value(log.best()))
        return float(np.mean(found))

    assert mean_best(strategy) > mean_best(RandomSearch()) + 1.0


@pytest.mark.parametrize(
    "strategy",
    [Evolution(5, 2), Genetic(8, 2), LocalSearch(4, 1), GP(6, 40), Bananas(6, 20), Reinforce()],
    ids=repr,
)
def test_strategies_take_spaces_of_every_kind_of_choice(strategy) -> None:
    log = search(MIXED, strategy, Function(tuned), new_log(), Budget(candidates=40), at_once=4)
    assert len(log.told) == 40
    assert all(MIXED.check(candidate.point) for candidate in log.candidates)
    start = max(log.value(s) for s in log.usable() if s.candidate.number < 4)
    assert log.value(log.best()) > start


def test_a_graph_kernel_needs_graphs() -> None:
    with pytest.raises(UserError, match="has no graphs"):
        search(MIXED, GP(2, 4, kernel="wl"), Function(tuned), new_log(), Budget(candidates=4))


def test_random_search_draws_the_points_evenly() -> None:
    space = choices_space({"a": [1, 2], "b": [1, 2]})
    firsts = Counter(
        tuple(RandomSearch()(space, new_log(), 1, seed)[0].point.values()) for seed in range(400)
    )
    assert len(firsts) == 4
    assert min(firsts.values()) > 70


def test_the_grid_goes_in_order_and_cuts_a_continuum_into_steps() -> None:
    space = choices_space({"a": [3, 1], "b": "int(1, 2)"})
    log = search(space, Grid(), Function(lambda c: {"accuracy": 1}), new_log(), Budget())
    assert [tuple(c.point.values()) for c in log.candidates] == [(3, 1), (3, 2), (1, 1), (1, 2)]
    space = choices_space({"lr": "loguniform(1e-4, 1e-2)", "k": [1, 2]})
    budget = Budget(candidates=99)
    log = search(space, Grid(3), Function(lambda c: {"accuracy": 1}), new_log(), budget)
    found = [c.point["lr"] for c in log.candidates if c.point["k"] == 1]
    assert found == pytest.approx([1e-4, 1e-3, 1e-2])
    assert len(log.candidates) == 6


def test_local_search_moves_to_the_first_better_neighbour_and_starts_anew_at_the_top() -> None:
    log = search(SPACE, LocalSearch(4, 2), Function(measure), new_log(), Budget(candidates=200))
    walks = [c for c in log.candidates if c.how == "start"]
    assert len(walks) > 4
    assert (len(walks) - 4) % 2 == 0
    top = max(log.told[:4], key=log.value).candidate.number
    assert log.candidates[4].parents == (top,)
    for candidate in log.candidates:
        if candidate.how == "neighbour":
            parent = log.candidates[candidate.parents[0]].point
            assert sum(parent[n] != candidate.point[n] for n in parent) == 1
    # Where a walk ended, nothing next to it is better.
    last = log.candidates[walks[4].number - 1].parents[0]
    here = log.candidates[last]
    assert all(
        accuracy(log.find(SPACE.key(p)).point) <= accuracy(here.point)
        for p in SPACE.neighbours(here.point)
        if log.find(SPACE.key(p)).number < walks[4].number
    )


def test_aging_evolution_draws_its_parents_from_the_last_ones() -> None:
    log = search(SPACE, Evolution(6, 3), Function(measure), new_log(), Budget(candidates=80))
    assert all(c.how == "random" for c in log.candidates[:6])
    children = [c for c in log.candidates if c.how == "mutation"]
    assert len(children) > 60
    assert all(c.number - 6 <= c.parents[0] < c.number for c in children)


def test_generations_follow_from_numbers_and_pass_their_elites_on() -> None:
    genetic = Genetic(population=6, elites=2, tournament=2)
    assert [genetic.generation(n) for n in (0, 5, 6, 9, 10, 13, 14)] == [0, 0, 1, 1, 2, 2, 3]
    log = search(SPACE, genetic, Function(measure), new_log(), Budget(candidates=14))
    parents = {s.candidate.number for s in genetic.parents(log, 3)}
    best = sorted(log.told[:10], key=log.value, reverse=True)[:2]
    assert parents == {10, 11, 12, 13, *(s.candidate.number for s in best)}
    for child in log.candidates[6:]:
        group = genetic.parents(log, genetic.generation(child.number))
        assert {*child.parents} <= {s.candidate.number for s in group}


def test_diversity_is_the_mean_entropy_of_the_genes() -> None:
    points = [{"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 3, "b": 1}, {"a": 4, "b": 1}]
    assert diversity(points) == pytest.approx(1.0)  # 2 bits and 0 bits
    assert diversity(points[:1]) == 0.0
    assert diversity([]) == 0.0


def test_the_policy_learns_what_pays() -> None:
    log = search(SPACE, Reinforce(), Function(measure), new_log(), Budget(candidates=120))
    policy = Reinforce().policy(SPACE, log)
    assert policy.sum(1) == pytest.approx(np.ones(6))
    assert policy[3, 3] + policy[3, 1] > 0.6  # a 3×3 convolution, or the shortcut, from 0 to 3
    assert np.allclose(Reinforce().policy(SPACE, new_log()), 0.2)


def test_the_policys_gradient_is_that_of_the_log_probability() -> None:
    """One step of Adam goes by the rate in the sign of (one-hot − p) · (reward − baseline)."""
    space = Space("two", (Options("a", (1, 2)), Options("b", (1, 2, 3))))
    log = new_log()
    candidates = RandomSearch()(space, log, 2, 0)
    log.ask(candidates)
    log.tell(Scored(candidates[0], {"accuracy": 1.0}))
    log.tell(Scored(candidates[1], {"accuracy": 3.0}))  # the first is the baseline
    policy = Reinforce(learning_rate=0.1).policy(space, log)
    assert policy[0, 2] == 0.0  # a has two values
    for row, choice in enumerate(space.choices):
        at = choice.values.index(candidates[1].point[choice.name])
        assert policy[row].argmax() == at


def test_expected_improvement_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    for mean, spread, best in [(0.0, 1.0, 0.5), (2.0, 0.5, 1.0), (-1.0, 2.0, 1.0)]:
        drawn = np.maximum(0, rng.normal(mean, spread, 400_000) - best).mean()
        found = expected_improvement(np.array([mean]), np.array([spread]), best)[0]
        assert found == pytest.approx(drawn, abs=0.01)


def test_kernels_are_those_of_the_definition() -> None:
    one, other = SPACE.sample(Random(0)), SPACE.sample(Random(1))
    differ = sum(one[name] != other[name] for name in one)
    for length, kernel in zip(LENGTHS, hamming(SPACE, [one], [one, other]), strict=True):
        assert kernel[0].tolist() == pytest.approx([1.0, np.exp(-differ / length)])
    space = Space("range", (Integers("n", 0, 10), Options("o", (1, 2))))
    far = hamming(space, [{"n": 0, "o": 1}], [{"n": 5, "o": 2}])[1][0, 0]
    assert far == pytest.approx(np.exp(-1.5))
    # a → b → c against a → c: labels, and labels with what is read
    chain = Graph(("a", "b", "c"), ((0, 1), (1, 2)))
    assert wl_histograms(chain, 1)[1] == {"a()": 1, "b(a)": 1, "c(b)": 1}
    kernels = weisfeiler_lehman(SPACE, [one, other], [one, other])
    for kernel in kernels:
        assert np.allclose(np.diag(kernel), 1.0)
        assert np.linalg.eigvalsh(kernel).min() > -1e-9
        assert kernel[0, 1] == kernel[1, 0] < 1


FRONT = Objectives({"accuracy": "max", "macs": "min"})


def test_a_policy_learns_nothing_of_genes_that_said_nothing() -> None:
    space, log = Families(edition=2, most=3), new_log()
    mlps = space.part(space.level, ["mlp"])
    search(mlps, RandomSearch(), Function(by_number), log, Budget(candidates=20))
    policy = Reinforce().policy(space, log)
    for choice, shares in zip(space.choices, policy, strict=True):
        even = np.ptp(shares[: len(choice.grid(10))]) < 1e-12
        assert even == (choice.name != "type" and not choice.name.startswith("mlp.")), choice.name


def test_a_policy_draws_types_as_often_as_it_says_whatever_the_caps_leave_of_them() -> None:
    """Of random points within this cap one in thirty is a residual network."""
    space = Families(
        edition=2, resolution=16, in_channels=1, types=("mlp", "resnet_small"), most=3,
        caps={"macs": 9e6},
    )  # fmt: skip
    drawn = Reinforce()(space, new_log(), 24, 0)
    counts = Counter(space.kind(c.point) for c in drawn)
    assert min(counts["mlp"], counts["resnet_small"]) >= 6
    assert {c.how for c in drawn} == {"policy"}


def test_of_the_genes_that_say_anything_nsga2_changes_one_on_average() -> None:
    """Of a hundred choices of space=families a point says a dozen."""
    shares: list[float] = []

    class Asked(Families):
        def mutate(self, point: Point, rng: Random, rate: float | None = None) -> dict[str, Value]:
            if rate is not None:  # None: that of a crossover of two types
                shares.append(rate * len(self.active(point)))
            return super().mutate(point, rng, rate)

    search(Asked(edition=2), NSGA2(6), Function(by_number), new_log(), Budget(candidates=12))
    assert shares
    assert shares == pytest.approx([1.0] * len(shares))


def test_nsga2_finds_more_of_the_front_than_random_search() -> None:
    def volume(strategy) -> float:
        found = []
        for seed in range(3):
            log = Log(FRONT)
            search(SPACE, strategy, Function(measure), log, Budget(candidates=120), seed=seed)
            losses = np.array([FRONT.losses(s.scores) for s in log.usable()])
            found.append(hypervolume(losses, [0.0, 250e6]))
        return float(np.mean(found))

    assert volume(NSGA2()) > 1.02 * volume(RandomSearch())


@pytest.mark.parametrize("factor", [1, 3])
def test_a_generation_of_nsga2_is_born_when_all_of_the_last_one_are_known(factor: int) -> None:
    strategy: Any = NSGA2(8)
    if factor > 1:
        strategy = Screened(strategy, lambda point: SPACE.costs(point)["params"], factor)
    log = Log(FRONT)
    budget = Budget(candidates=20)
    search(SPACE, strategy, Function(measure), log, budget, at_once=100)
    assert [c.after for c in log.candidates] == [0] * 8 + [8] * 8 + [16] * 4


def test_nsga2_keeps_the_best_by_rank_and_prefers_what_meets_a_cap() -> None:
    wanted = Objectives(FRONT.goals, {"macs": 90e6})
    log = Log(wanted)
    strategy = NSGA2(8)
    search(SPACE, strategy, Function(measure), log, Budget(candidates=64))
    chosen = [member for member, _ in strategy.parents(log, 8)]
    assert len(chosen) == 8
    losses = np.array([wanted.losses(s.scores) for s in log.told])
    violations = np.array([wanted.violation(s.scores) for s in log.told])
    ranks = non_dominated_sort(losses, violations)
    first = {s.candidate.number for s, rank in zip(log.told, ranks, strict=True) if rank == 0}
    numbers = {s.candidate.number for s in chosen}
    assert numbers <= first if len(first) >= 8 else first <= numbers
    assert wanted.violation(chosen[0].scores) == 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Evolution(5, 6), "sample=6 must be from 1 to population=5"),
        (lambda: Genetic(5, 5), "elites=5 must be from 0 to less than population=5"),
        (lambda: Genetic(mutation=1.5), "mutation=1.5 must be from 0 to 1"),
        (lambda: Genetic(tournament=0), "tournament=0"),
        (lambda: LocalSearch(0), "starts=0 must be at least 1"),
        (lambda: Grid(0), "steps=0"),
        (lambda: Reinforce(0), "learning_rate=0 must be above 0"),
        (lambda: Reinforce(baseline_decay=1), "baseline_decay=1"),
        (lambda: GP(kernel="rbf"), "kernel='rbf' is none of hamming, wl"),
        (lambda: GP(starts=1), "starts=1 must be at least 2"),
        (lambda: Bananas(pool=0), "pool=0"),
        (lambda: NSGA2(1), "population=1 must be at least 2"),
        (lambda: NSGA2(crossover=2), "crossover=2"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()


def test_nothing_usable_leaves_random_points() -> None:
    """All fail: every strategy still goes on to the end."""

    def broken(candidate):
        raise RuntimeError(f"not {candidate.number}")  # one reason for all would end the search

    for strategy in STRATEGIES:
        log = search(SPACE, strategy, Function(broken), Log(ACCURACY), Budget(candidates=40))
        assert len(log.candidates) == 40
