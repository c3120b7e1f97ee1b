"""The genetic search whole: levels with quotas, immigrants, fidelities, its end, a screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from sseg_nase.errors import UserError
from sseg_nase.search import Budget, Candidate, Function, Log, Scored, search
from sseg_nase.search.predictors import Ridge
from sseg_nase.search.strategies import Genetic, Screened
from sseg_nase.search.strategies.genetic import IMMIGRANT, PROMOTED, active_diversity
from sseg_nase.search.strategies.screened import ScreenedByPredictor
from sseg_nase.spaces import Families
from tests.support.synthetic import SPACE, measure, new_log

SMALL = Families(edition=2, most=3)


def prefers_mlps(candidate: Candidate) -> dict[str, float]:
    """What makes a progressive search keep fully connected networks: they are ahead at first."""
    point = candidate.point
    worth = {"mlp": 60.0, "cnn": 50.0, "densenet": 80.0}.get(str(point["type"]), 55.0)
    return {"accuracy": worth + candidate.number / 1000}


def run(
    strategy: Genetic | Screened, space: Any = SMALL, measured: Any = prefers_mlps, **more: Any
) -> Log:
    return search(space, strategy, Function(measured), new_log(), Budget(), **more)


def by_generation(strategy: Genetic, log: Log) -> list[list[Candidate]]:
    found: dict[int, list[Candidate]] = {}
    for place, candidate in enumerate(strategy.born(log)):
        found.setdefault(strategy.generation(place), []).append(candidate)
    return list(found.values())


def test_every_type_has_its_share_until_all_levels_were_there() -> None:
    strategy = Genetic(12, 2, 3, level_generations=1, generations=4)
    generations = by_generation(strategy, run(strategy))
    counts = [Counter(str(c.point["type"]) for c in each) for each in generations]
    assert counts[0] == {"cnn": 6, "mlp": 6}
    assert len(counts) == 4
    assert {*counts[1]} == {*SMALL.part(2).kinds}
    assert {*counts[1].values()} == {2}
    assert {*counts[2]} == {*SMALL.kinds}  # what is new at the last level, too
    for level, each in enumerate(generations[:2], start=1):
        assert all(SMALL.part(level).check(c.point) for c in each)
    for child in generations[1]:  # descends from its own type
        assert all(generations[0][n].point["type"] == child.point["type"] for n in child.parents)
    assert counts[3]["mlp"] < 6  # no quota any more, and no surplus either
    free = replace(strategy, level_generations=0)
    assert len({c.point["type"] for c in by_generation(free, run(free))[0]}) > 4


def test_types_that_the_caps_allow_no_network_of_have_no_share() -> None:
    """The pixels alone cost a fully connected network more than the cap."""
    strategy = Genetic(4, 2, 2, level_generations=1, generations=2)
    capped = replace(SMALL, caps={"params": 40_000})
    assert capped.part(1).kinds == ("cnn",)
    first, second = by_generation(strategy, run(strategy, capped))
    assert {c.point["type"] for c in first} == {"cnn"}
    assert "mlp" not in {c.point["type"] for c in second}
    assert all(capped.allows(c.point) for c in (*first, *second))


def test_a_generation_that_is_alike_gets_immigrants() -> None:
    strategy = Genetic(6, 2, 2, mutation=0.05, least_diversity=9.0, immigrants=2, generations=3)
    first, *later = by_generation(strategy, run(strategy, SPACE, measure))
    assert not [c for c in first if c.how == IMMIGRANT]
    for each in later:
        assert [c.how for c in each].count(IMMIGRANT) == 2
        assert not each[0].parents
    different = replace(strategy, least_diversity=0.01)
    assert not [c for c in run(different, SPACE, measure).candidates if c.how == IMMIGRANT]


def test_diversity_counts_the_genes_that_say_something() -> None:
    space = Families(edition=2, types=("mlp",), most=8)
    start = space.canonical({c.name: c.few(2)[0] for c in space.choices})
    points = [start | {"mlp.0.channels": wide} for wide in (64, 128)]
    names = ("type", "layers", "0.channels", "1.channels", "activation", "batch_norm")
    assert active_diversity(space, points) == pytest.approx(1 / len(names))


@pytest.mark.parametrize(("share", "going_on"), [(0.5, (3, 2)), (0.34, (3, 2)), (0.1, (1, 1))])
def test_only_the_best_of_a_generation_are_trained_on(
    share: float, going_on: tuple[int, int]
) -> None:
    strategy = Genetic(6, 2, 2, fidelity="epochs", least=1, most=9, promoted=share, generations=2)

    def learning(candidate: Candidate) -> dict[str, float]:
        return {"accuracy": measure(candidate)["accuracy"] + candidate.fidelity["epochs"]}

    log = run(strategy, SPACE, learning)
    promoted = [c for c in log.candidates if c.how == PROMOTED]
    groups = by_generation(strategy, log)
    assert [len(each) for each in groups] == [6, 4]
    for members, count in zip(groups, going_on, strict=True):
        ranked = sorted(members, key=lambda c: log.value(log.result(c.number)), reverse=True)
        on = [c.number for c in ranked if any(p.parents == (c.number,) for p in promoted)]
        assert on == [c.number for c in ranked[:count]]
    assert {c.fidelity["epochs"] for c in promoted} == {9}
    fast = {c.number for c in strategy.born(log)}
    assert all({*c.parents} <= fast for c in strategy.born(log))  # compared at one fidelity
    # What a killed search has asked for is what the whole one asks for next.
    half = new_log()
    half.ask(log.candidates[:6])
    for scored in log.told[:6]:
        half.tell(scored)
    assert strategy(SPACE, half, 1, 0) == log.candidates[6:7]


def test_the_best_of_every_type_are_trained_on_while_types_have_equal_shares() -> None:
    strategy = Genetic(
        12, 2, 3, level_generations=1, generations=4,
        fidelity="epochs", least=1, most=3, promoted=0.34,
    )  # fmt: skip
    log = run(strategy)
    going_on = {c.parents[0] for c in log.candidates if c.how == PROMOTED}
    groups = [
        sorted(each, key=lambda c: log.value(log.result(c.number)), reverse=True)
        for each in by_generation(strategy, log)
    ]
    types = [Counter(str(c.point["type"]) for c in each if c.number in going_on) for each in groups]
    assert types[0] == {"mlp": 3, "cnn": 2}  # though every mlp is ahead of every cnn
    others = {*SMALL.part(2).kinds} - {"cnn", "mlp"}  # none of which has gone on
    assert {*types[1]} == others
    assert sorted(types[1].values()) == [1, 1, 2]
    assert {*types[2]} < {*SMALL.kinds} - {*SMALL.part(2).kinds}  # which are five
    assert sorted(types[2].values()) == [1, 1, 1, 1]
    assert {c.number for c in groups[3] if c.number in going_on} == {
        c.number for c in groups[3][:4]
    }
    best = [c.number for c in groups[0] if c.point["type"] == "cnn"][:2]
    assert {*best} <= going_on


def mlps_first(candidate: Candidate) -> dict[str, float]:
    """Of networks that learn for a short while the fully connected ones are far ahead."""
    return {"accuracy": (candidate.point["type"] == "mlp") * 50 + candidate.number % 7}


def test_no_type_has_more_than_its_share_of_a_generation() -> None:
    strategy = Genetic(12, 2, 5, level_generations=1, generations=6, most_share=0.25)
    free = by_generation(
        replace(strategy, most_share=1.0),
        run(replace(strategy, most_share=1.0), SMALL, mlps_first),
    )
    assert Counter(str(c.point["type"]) for c in free[5])["mlp"] > 5
    each = by_generation(strategy, run(strategy, SMALL, mlps_first))
    assert [len(one) for one in each] == [12, *[10] * 5]
    assert each[:3] == free[:3]  # there types have equal shares
    for one in each[3:]:
        counts = Counter(str(c.point["type"]) for c in one)
        assert max(counts.values()) == 3 == counts["mlp"]  # a quarter of ten, rounded up
    # Children of those that may be there, be it by a mutation of their type.
    assert {c.how for one in each[3:] for c in one} <= {"crossover", "clone", "random"}
    assert sum(c.how == "random" for one in each[3:] for c in one) < 10


@pytest.mark.parametrize("seed", range(5))
def test_of_several_proposals_for_a_place_any_may_be_kept(seed: int) -> None:
    strategy = Genetic(12, 2, 5, generations=2, most_share=0.25, proposals=2)
    log = run(replace(strategy, proposals=1, generations=1), SMALL, mlps_first)
    types = [str(c.point["type"]) for c in strategy(SMALL, log, 20, seed)]
    places = [{*types[n : n + 2]} for n in range(0, 20, 2)]
    assert max(Counter(name for place in places for name in place).values()) == 3


def test_what_goes_on_has_no_part_in_the_shares_of_the_next_generation() -> None:
    strategy = Genetic(
        12, 2, 5, generations=2, most_share=0.25, fidelity="epochs", least=1, most=3, promoted=0.2
    )
    log = search(SMALL, strategy, Function(mlps_first), new_log(), Budget(candidates=12), seed=1)
    ask = strategy(SMALL, log, 13, 1)
    assert [c.how == PROMOTED for c in ask] == [True] * 3 + [False] * 10
    assert Counter(str(c.point["type"]) for c in ask[3:])["mlp"] == 3


def test_the_best_of_each_type_go_on_where_shares_are_limited() -> None:
    strategy = Genetic(
        12, 2, 3, generations=2, most_share=0.5, fidelity="epochs", least=1, most=3, promoted=0.34
    )
    log = run(strategy, SMALL, mlps_first)
    going_on = [c.parents[0] for c in log.candidates if c.how == PROMOTED]
    had = Counter[str]()
    for one in by_generation(strategy, log):
        ranked = sorted(one, key=lambda c: log.value(log.result(c.number)), reverse=True)
        kinds = [str(c.point["type"]) for c in ranked]
        wanted = []
        while len(wanted) < 4 + (one[0].number == 0):
            at = min(range(len(ranked)), key=lambda at: (at in wanted, had[kinds[at]], at))
            wanted.append(at)
            had[kinds[at]] += 1
        assert [n for n in going_on if n in {c.number for c in one}] == [
            ranked[at].number for at in wanted
        ]
    assert max(had.values()) - min(had.values()) == 1 < len(had) - 3


def test_a_generation_waits_for_those_before_before_it_is_trained_on() -> None:
    """Which of it go on follows from which have: a late result must not change that."""
    strategy = Genetic(
        12, 2, 3, generations=3, most_share=0.5, fidelity="epochs", least=1, most=3, promoted=0.34
    )
    log, late = new_log(), 5

    def tell(candidates: Iterable[Candidate]) -> None:
        log.ask(list(candidates))
        for one in log.pending:
            if one.number != late:
                log.tell(Scored(one, mlps_first(one)))

    for _ in range(2):
        tell(strategy(SMALL, log, 100, 0))
    assert [c.how == PROMOTED for c in log.candidates] == [False] * 22
    assert PROMOTED not in {c.how for c in strategy(SMALL, log, 100, 0)}
    log.tell(Scored(log.candidates[late], mlps_first(log.candidates[late])))
    tell(one := strategy(SMALL, log, 100, 0))
    assert [c.how for c in one].count(PROMOTED) == 5 + 4


@pytest.mark.parametrize("population", [6, 25])
def test_every_type_has_an_equal_share_of_the_first_generation(population: int) -> None:
    """Of too few places each has one at most; which have none depends on seed and generation."""
    drawn = set()
    for seed in range(3):
        log = run(Genetic(population, 2, generations=1), seed=seed)
        counts = Counter(str(c.point["type"]) for c in log.candidates)
        assert {counts[str(kind)] for kind in SMALL.kinds} == {
            population // 10,
            population // 10 + 1,
        }
        drawn.add(frozenset(kind for kind, count in counts.items() if count > population // 10))
    assert len(drawn) == 3


def test_the_first_edition_which_has_no_levels_to_walk_is_searched_whole() -> None:
    log = run(Genetic(6, 2, generations=2), Families(edition=1, most=3))
    assert len({str(c.point["type"]) for c in log.candidates}) > 4


def test_types_without_a_place_in_one_generation_are_not_always_the_same() -> None:
    """Five types have two places in each generation of the second level."""
    strategy = Genetic(4, 2, level_generations=8, generations=15)
    generations = by_generation(strategy, run(strategy))
    assert {c.point["type"] for each in generations[8:15] for c in each} == {*SMALL.part(2).kinds}


def test_a_type_that_has_too_few_networks_leaves_its_places_to_others() -> None:
    """Of the mlp there are two under this cap."""
    space = Families(
        edition=2, resolution=8, types=("mlp", "cnn"), most=2, level=1, caps={"params": 13_000},
        in_channels=1,
    )  # fmt: skip
    log = run(Genetic(8, 2, generations=2), space)
    counts = Counter(str(c.point["type"]) for c in log.candidates[:8])
    assert counts == {"mlp": 2, "cnn": 6}
    assert len(log.candidates) == 8 + 6


def test_types_that_are_too_few_for_such_shares_are_not_held_to_them() -> None:
    """The caps leave one type."""
    strategy = Genetic(4, 2, 2, generations=3, most_share=0.5)
    tight = replace(SMALL, types=("cnn", "mlp"), caps={"params": 40_000}, choices=())
    assert tight.kinds == ("cnn",)
    log = run(strategy, tight)
    assert len(log.candidates) == 8


def test_an_unfinished_generation_is_trained_on_where_the_space_ends() -> None:
    space = Families(edition=2, types=("enhanced_mlp",), most=2)
    (width,) = (c for c in space.choices if c.name == "enhanced_mlp.width")
    few = replace(space, choices=tuple(c for c in space.choices if c.size == 1 or c is width))
    start = {c.name: c.few(2)[0] for c in space.choices}
    few = replace(
        space,
        choices=tuple(
            c
            if c is width
            else type(c)(c.name, *((start[c.name],) * 2))  # type: ignore[call-arg]
            if not hasattr(c, "values")
            else replace(c, values=(start[c.name],))  # type: ignore[type-var]
            for c in space.choices
        ),
    )
    strategy = Genetic(20, 2, fidelity="epochs", least=1, most=3, promoted=0.2)
    log = run(strategy, few, lambda c: {"accuracy": c.point["enhanced_mlp.width"]})
    assert [c.how for c in log.candidates] == ["random"] * 5 + [PROMOTED]
    assert log.candidates[-1].point["enhanced_mlp.width"] == 1024


@pytest.mark.parametrize("way", ["max", "min"])
def test_it_stops_once_nothing_gets_better_in_the_goals_direction(way: str) -> None:
    from sseg_nase.search import Objectives

    sign = 1 if way == "max" else -1

    def flat(candidate: Candidate) -> dict[str, float]:
        """Better with every candidate of the first two generations, and never again."""
        return {"score": sign * float(min(candidate.number, 9))}

    def ended(**settings: Any) -> int:
        log = Log(Objectives({"score": way}))
        strategy = Genetic(6, 2, 2, patience=2, **settings)
        search(SPACE, strategy, Function(flat), log, Budget(candidates=60))
        return len(log.candidates)

    assert ended() == 6 + 3 * 4  # the generation in which 9 was reached, and two more
    assert ended(min_delta=20.0) == 6 + 2 * 4  # what is so little better counts for nothing


def test_a_screen_chooses_among_proposals_for_one_place() -> None:
    params = lambda point: SPACE.costs(point)["params"]  # noqa: E731
    strategy = Screened(Genetic(6, 2, 2, generations=2), params, 5)
    log = search(SPACE, strategy, Function(measure), new_log(), Budget())
    assert len(log.candidates) == 10  # two generations, all places filled
    plain = search(SPACE, Genetic(6, 2, 2, generations=2), Function(measure), new_log(), Budget())
    mean = [sum(params(c.point) for c in each.candidates) / 10 for each in (log, plain)]
    assert mean[0] > mean[1]


@pytest.mark.parametrize("screen", [False, True])
def test_a_generation_is_born_when_all_of_the_last_one_are_known(screen: bool) -> None:
    """However many are asked for together; with a screen, too, whose best is of its place."""
    strategy: Any = Genetic(
        12, 2, 3, level_generations=1, generations=4, fidelity="epochs", least=1, most=3,
        promoted=0.3,
    )  # fmt: skip
    asks = Screened(strategy, lambda point: len(str(point)), 3) if screen else strategy
    log = run(asks, at_once=1000)
    generations = by_generation(strategy, log)
    assert [len(each) for each in generations] == [12, 10, 10, 10]
    before = 0
    for members in generations:
        assert {c.after for c in members} == {before}
        before = members[-1].number + 1
    counts = [Counter(str(c.point["type"]) for c in each) for each in generations]
    assert [{*each.values()} for each in counts[:2]] == [{6}, {2}]
    assert len(counts[2]) == 10
    of_first = search(SMALL, asks, Function(prefers_mlps), new_log(), Budget(candidates=12))
    assert [c.how for c in asks(SMALL, of_first, 3, 0)] == [PROMOTED] * 3  # before any child
    promoted = [c for c in log.candidates if c.how == PROMOTED]
    assert [c.after for c in promoted] == [12] * 4 + [26] * 3 + [39] * 3 + [52] * 3


def test_before_a_predictor_has_learnt_each_place_has_a_candidate_of_its_own() -> None:
    strategy = Genetic(12, 2, 3, level_generations=1, generations=2)
    asks: Any = ScreenedByPredictor(strategy, Ridge(), 3, starts=13)
    for count in (4, 1000):
        first = [str(c.point["type"]) for c in asks(SMALL, new_log(), count, 0)]
        assert len(first) == min(count, 12)
        assert Counter(first) == dict.fromkeys(("cnn", "mlp"), len(first) // 2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"immigrants": 16}, "at most the children of a generation"),
        ({"immigrants": 1}, "give both or neither"),
        ({"fidelity": "epochs", "least": 3, "most": 3}, "below most=3"),
        ({"promoted": 0.0}, "promoted=0.0 must be above 0"),
        ({"most_share": 1.5}, "most_share=1.5 must be above 0, and at most 1"),
        ({"patience": -1}, "patience=-1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Genetic(**settings)


def test_levels_need_a_space_that_has_them() -> None:
    with pytest.raises(UserError, match=r"space=nb201 has no levels of complexity"):
        Genetic(level_generations=2).check(SPACE)
    Genetic(level_generations=2).check(SMALL)


def test_shares_need_types_and_enough_of_them() -> None:
    three = replace(SMALL, types=("cnn", "mlp", "resnet_small"), choices=())
    with pytest.raises(UserError, match=r"space=nb201 has no network types"):
        Genetic(most_share=0.5).check(SPACE)
    with pytest.raises(UserError, match=r"within the caps: 3; .* at least 0\.334,"):
        Genetic(most_share=0.33).check(three)
    Genetic(most_share=0.334).check(three)
    Genetic().check(SPACE)
