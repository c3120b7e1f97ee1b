from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sseg_nase.evolution.history import (
    MutationRecord,
    accepted_kinds,
    counts,
    removed_channels,
)
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.grow import grow
from sseg_nase.nets.mutations.prune import prune
from sseg_nase.nets.mutations.widen import widen

SEED = Architecture.seed([4, 6], resolution=16)
LINE = [  # of mutations.jsonl, whose names others rely on
    *("index", "epoch", "step", "kind", "target", "trigger", "before", "after"),
    *("function_delta", "loss_before", "loss_after", "fitness", "seconds", "accepted"),
    "measured",
]


def record(mutation: Mutation, *, accepted: bool = True) -> MutationRecord:
    return MutationRecord(
        index=0,
        epoch=3,
        step=120,
        kind=mutation.kind,
        target=mutation.target,
        trigger={"reason": "plateau", "gap": None},
        before=counts(mutation.before),
        after=counts(mutation.after),
        function_delta=0.0,
        loss_before=2.5,
        loss_after=2.5,
        fitness=None,
        seconds=0.1,
        accepted=accepted,
    )


@pytest.mark.parametrize("mutation", [grow(SEED), widen(SEED, 0), prune(SEED, [[0, 1], [5]])])
def test_a_record_survives_json_and_has_the_fields_others_rely_on(mutation: Mutation) -> None:
    line = record(mutation).to_dict()
    assert list(line) == LINE
    assert MutationRecord.from_dict(json.loads(json.dumps(line))) == record(mutation)


def test_counts_name_what_a_record_compares() -> None:
    assert counts(SEED) == {
        "blocks": 2,
        "channels": [4, 6],
        "params": 9 * (3 * 4 + 4 * 6) + 2 * (4 + 6),
        "macs": 9 * (3 * 4 * 16**2 + 4 * 6 * 8**2),
    }


def test_accepted_kinds_are_the_growth_that_stayed() -> None:
    history = [
        record(grow(SEED)),
        record(widen(SEED, 0), accepted=False),
        record(prune(SEED, [[0], [1]])),
        record(widen(SEED, 1)),
        replace(record(grow(SEED)), index=4),
    ]
    assert accepted_kinds(history) == ["GROW", "WIDEN", "GROW"]
    assert accepted_kinds([]) == []


def test_removed_channels_are_those_of_prunings_that_stayed() -> None:
    history = [
        record(grow(SEED)),
        record(prune(SEED, [[0], [1, 2, 3]])),  # 3 of 4 and 3 of 6 go
        record(prune(SEED, [[0], [1]]), accepted=False),
        record(prune(SEED, [[0, 1, 2, 3], [1, 2]])),
    ]
    assert removed_channels(history) == 3 + 3 + 4
    assert removed_channels(history[:1]) == 0
