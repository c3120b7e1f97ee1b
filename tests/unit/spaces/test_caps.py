"""Hard caps, in every space: nothing above one is asked for, and the impossible is said at once."""

from __future__ import annotations

import dataclasses
import json
import re
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest

from sseg_nase.config.compose import load
from sseg_nase.config.members import restored
from sseg_nase.config.schema import Config, SpaceConfig
from sseg_nase.errors import UserError
from sseg_nase.search import Budget, Candidate, Function, Log, Objectives, search
from sseg_nase.search.strategies import (
    GP,
    NSGA2,
    Evolution,
    Genetic,
    Grid,
    LocalSearch,
    RandomSearch,
    Reinforce,
)
from sseg_nase.searches.parts import parts_of
from sseg_nase.searches.task import check_search
from sseg_nase.spaces import SPACES, NetworkSpace, named_space
from sseg_nase.spaces.space import WALKABLE

COSTS = ("macs", "params", "memory")
STRATEGIES = (
    RandomSearch(), Grid(), LocalSearch(3, 1), Evolution(4, 2), Genetic(4, 1, 2), NSGA2(4),
    Reinforce(), GP(starts=4, pool=6),
)  # fmt: skip
ASKED = 6
SETTINGS: dict[str, dict[str, Any]] = {  # smaller ones than usual, which are counted sooner
    "darts": {"cells": 1, "steps": 2},
    "enas_micro": {"cells": 1, "steps": 2},
    "pnas": {"cells": 1, "steps": 3},
    "enas_macro": {"layers": 3},
    "mobile": {"widths": (8, 16), "depths": (2, 2), "strides": (1, 2)},
    "families": {"level": 2, "most": 3},
}


def named(name: str) -> Any:
    """A space; the one of families takes long."""
    return pytest.param(name, marks=pytest.mark.slow) if name == "families" else name


def made(name: str) -> NetworkSpace:
    return named_space(name, **{"resolution": 16, **SETTINGS.get(name, {})})


WIDTHS = {"backbone.channels": ["[8,16]", "[16,32]"]}


def costs_of(space: NetworkSpace) -> list[str]:
    return [name for name in COSTS if name in space.costs(space.sample(Random(0)))]


def smallest(space: NetworkSpace, name: str) -> int:
    """What the refusal of an impossible cap says is the least."""
    with pytest.raises(UserError) as refused:
        space.under({name: 0})
    found = re.search(rf"the smallest has {name} = ([\d,]+) \((.*)\)\. Raise", str(refused.value))
    assert found is not None
    least, said = int(found[1].replace(",", "")), json.loads(found[2])
    point = {**space.sample(Random(3)), **said}  # what is not said may be anything
    assert round(space.costs(point)[name]) == least
    assert set(said) == set(space.active(point))
    return least


@pytest.mark.parametrize("name", [named(name) for name in SPACES])
def test_an_impossible_cap_names_the_smallest_network(name: str) -> None:
    space, rng = made(name), Random(1)
    drawn = [space.costs(space.sample(rng)) for _ in range(40)]
    for cost in costs_of(space)[:2]:
        least = smallest(space, cost)
        assert least <= min(costs[cost] for costs in drawn)
        assert space.under({cost: least}).caps == {cost: least}  # it is there


@pytest.mark.parametrize("name", [named(name) for name in SPACES])
def test_no_strategy_asks_for_what_is_above_a_cap(name: str) -> None:
    """With a cap that one network in five of those drawn at random meets."""
    space, rng = made(name), Random(2)
    drawn = sorted(space.costs(space.sample(rng))["params"] for _ in range(25))
    cap = drawn[5]
    capped = space.under({"params": cap})

    def measure(candidate: Candidate) -> dict[str, float]:
        cost = space.costs(candidate.point)["params"]
        assert cost <= cap  # it comes before anything would be built
        return {"accuracy": cost}  # large networks win: all strategies go for the cap

    walkable = space.size is not None and space.size <= WALKABLE
    for strategy in (s for s in STRATEGIES if walkable or not isinstance(s, Grid)):
        log = Log(Objectives({"accuracy": "max"}))
        search(capped, strategy, Function(measure), log, Budget(candidates=ASKED))
        assert len(log.told) == ASKED
        assert [one.error for one in log.told if one.error] == []


@cache
def config() -> Config:
    return load(["task=search", "space=nb201", "tracking=jsonl"])


@pytest.mark.parametrize(
    "name",
    ["overrides", "pnas", "tiny", "mobile", "chain"]
    + [
        pytest.param(name, marks=pytest.mark.slow)  # at their usual size
        for name in SPACES
        if name not in ("pnas", "tiny", "mobile", "chain")
    ],
)
def test_a_search_with_an_impossible_cap_is_refused_before_it_begins(
    name: str, tmp_path: Path
) -> None:
    space = restored(SpaceConfig, {**dataclasses.asdict(config().space), "name": name})
    choices = WIDTHS if name == "overrides" else {}
    asked = dataclasses.replace(config().search, caps={"params": 3, "macs": 3}, choices=choices)
    given = dataclasses.replace(config(), space=space, search=asked)
    with pytest.raises(UserError, match=r"has params ≤ 3 and macs ≤ 3: the smallest has params = "):
        check_search(given, ["task=search"])
    assert list(tmp_path.iterdir()) == []


def test_what_a_strategy_of_ones_own_asks_for_above_a_cap_is_not_started() -> None:
    space = parts_of(config()).space.under({"params": 100_000})
    free = dataclasses.replace(space, caps={})

    def careless(space: object, log: Log, count: int, seed: int) -> list[Candidate]:
        return RandomSearch()(free, log, 50, seed)

    started: list[Candidate] = []
    with pytest.raises(ValueError, match="is above a cap"):
        search(space, careless, Function(started.append), Log(Objectives({"a": "max"})), Budget(50))  # type: ignore[arg-type]
    assert started == []
