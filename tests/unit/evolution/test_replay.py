from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sseg_nase.evolution.history import MutationRecord, counts
from sseg_nase.evolution.replay import ReplayError, replay
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.grow import grow, grow_stages
from sseg_nase.nets.mutations.prune import prune
from sseg_nase.nets.mutations.widen import widen

SEED = Architecture.seed([4, 6], resolution=16)


def record(mutation: Mutation, index: int, *, accepted: bool = True) -> MutationRecord:
    return MutationRecord(
        index=index,
        epoch=index,
        step=10 * index,
        kind=mutation.kind,
        target=mutation.target,
        trigger={"reason": "plateau"},
        before=counts(mutation.before),
        after=counts(mutation.after),
        function_delta=0.0,
        loss_before=2.5,
        loss_after=None,
        fitness=None,
        seconds=0.1,
        accepted=accepted,
    )


def drawn(rng: random.Random, before: Architecture, seed: int) -> Mutation:
    block = rng.randrange(len(before.blocks))
    kept = [rng.sample(range(c), max(1, c - 2)) for c in before.channels]
    kinds: list[Callable[[], Mutation]] = [
        lambda: grow(before, mode=rng.choice(("preserve", "fresh")), seed=seed),
        lambda: grow(before, position=block + 1, seed=seed),
        lambda: grow(before, position=1, before_pool=before.blocks[0].pool, seed=seed),
        lambda: grow_stages(before, seed=seed),
        lambda: widen(before, block, ratio=2, noise=0.01, seed=seed),
        lambda: widen(before, None, ratio=2, mode="zero", seed=seed),
        lambda: prune(before, kept),
    ]
    return rng.choice(kinds)()


def history(
    seed: int, seed_network: Architecture
) -> tuple[list[MutationRecord], list[Architecture]]:
    """Random mutations, some rolled back, and the architectures they truly led to."""
    rng = random.Random(seed)
    architectures, records = [seed_network], []
    for index in range(7):
        mutation = drawn(rng, architectures[-1], index)
        records.append(record(mutation, index, accepted=rng.random() < 0.7))
        if records[-1].accepted:
            architectures.append(mutation.after)
    return records, architectures


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_the_log_alone_gives_every_architecture(seed: int, residual: bool) -> None:
    start = Architecture.seed([4, 6, 6], resolution=32, residual=residual, embedding="flatten")
    records, architectures = history(seed, start)
    assert replay(start, records) == architectures
    lines = [json.loads(json.dumps(r.to_dict())) for r in records]
    assert replay(start, iter(lines)) == architectures


def test_nothing_happened() -> None:
    assert replay(SEED, []) == [SEED]


def lines(*accepted: bool) -> list[dict[str, Any]]:
    found, present = [], SEED
    for index, kept in enumerate(accepted):
        mutation = grow(present, seed=index) if index % 2 else widen(present, 0, seed=index)
        found.append(record(mutation, index, accepted=kept).to_dict())
        present = mutation.after if kept else present
    return json.loads(json.dumps(found))


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("figure", ["blocks", "channels", "params", "macs"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_figure_that_is_not_the_rebuilt_one_is_named(
    index: int, when: str, figure: str, accepted: bool
) -> None:
    log = lines(accepted, accepted, accepted)
    true = log[index][when][figure]
    log[index][when][figure] = false = [*true, 1] if figure == "channels" else true + 1
    with pytest.raises(ReplayError) as caught:
        replay(SEED, log)
    assert caught.value.index == index
    said = f"mutation {index}: {when}.{figure} is {false} in the record, rebuilt it is {true}"
    assert str(caught.value) == said


def test_whether_a_mutation_was_accepted_decides() -> None:
    for index in (0, 1):
        log = lines(True, True, True)
        log[index]["accepted"] = False
        with pytest.raises(ReplayError, match=rf"mutation {index + 1}: before\."):
            replay(SEED, log)


def test_another_seed_network_is_found_out() -> None:
    other = Architecture.seed([4, 6], resolution=16, kernel_size=5)
    with pytest.raises(ReplayError, match=r"mutation 0: before\.params"):
        replay(other, lines(True))
    larger = replace(SEED, resolution=32)
    with pytest.raises(ReplayError, match=r"mutation 0: before\.macs"):
        replay(larger, lines(True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "SHRINK"}, "mutation 1: mutation kind 'SHRINK': accepted GROW, WIDEN, PRUNE"),
        ({"kind": None}, "mutation 1: kind is None, not a str"),
        ({"target": [1]}, r"mutation 1: target is \[1\], not a Mapping"),
        ({"target": {}}, "mutation 1: GROW target: 'block' is missing"),
        ({"accepted": "no"}, "mutation 1: accepted is 'no', not a bool"),
        ({"before": {}}, r"mutation 1: before\.blocks is None in the record, rebuilt it is 2"),
        ({"after": None}, "mutation 1: after is None, not a Mapping"),
        ({"colour": 1}, "mutation 1: not a record .*colour"),
    ],
)
def test_a_damaged_record_is_named(changes: dict[str, Any], message: str) -> None:
    log = lines(True, True)
    log[1] |= changes
    with pytest.raises(ReplayError, match=message):
        replay(SEED, log)
