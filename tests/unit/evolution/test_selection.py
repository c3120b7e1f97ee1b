from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from sseg_nase.evolution.selection import advantage, candidates, paired, penalty, refusals
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.families.resnet12.network import ResNet12Architecture
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.operator import Caps, Options
from sseg_nase.nets.mutations.widen import widen

SEED = Architecture.seed([8, 12, 16], resolution=32)
WIDE = Caps(12, 256, 1_000_000, 1_000_000_000, 84)
OPTIONS = Options(expansion=1.5, grow_mode="preserve", widen_mode="duplicate", widen_noise=0.01)


def proposed(
    architecture: Architecture = SEED, caps: Caps = WIDE, **changes: Any
) -> dict[str, Mutation]:
    arguments: dict[str, Any] = {
        "operators": ["grow", "widen"],
        "sensitivity": [1.0] * len(architecture.blocks),
        "options": OPTIONS,
        "seed": 0,
        **changes,
    }
    found = candidates(architecture, caps=caps, **arguments)
    assert len({mutation.label for mutation in found}) == len(found)
    return {mutation.kind: mutation for mutation in found}


def places(architecture: Architecture, where: str, caps: Caps = WIDE) -> dict[str, Architecture]:
    """What every GROW that is proposed leads to."""
    found = candidates(
        architecture,
        operators=["grow"],
        sensitivity=[1.0] * len(architecture.blocks),
        options=replace(OPTIONS, grow_positions=where),
        caps=caps,
        seed=0,
    )
    return {mutation.label: mutation.after for mutation in found}


def test_a_block_may_be_added_in_every_stage_or_everywhere() -> None:
    last = {"GROW": ((8, 12, 16, 24), (32, 16, 8, 4, 4))}
    inside = {
        "GROW 2 before pooling": ((8, 8, 12, 16), (32, 32, 16, 8, 4)),
        "GROW 3 before pooling": ((8, 12, 12, 16), (32, 16, 16, 8, 4)),
        "GROW 4 before pooling": ((8, 12, 16, 16), (32, 16, 8, 8, 4)),
    }
    behind = {
        "GROW 2": ((8, 8, 12, 16), (32, 16, 16, 8, 4)),
        "GROW 3": ((8, 12, 12, 16), (32, 16, 8, 8, 4)),
    }
    for where, expected in (
        ("last", last),
        ("stages", inside | last),
        ("all", inside | behind | last),
    ):
        found = places(SEED, where)
        assert {label: (a.channels, a.sides()) for label, a in found.items()} == expected
    # Deeper ones: of a stage the end, of a stage that does not pool its end as well.
    deep = Architecture.seed([8, 8, 8, 8], resolution=16, pooled_blocks=2)
    assert list(places(deep, "stages")) == [
        "GROW 2 before pooling",
        "GROW 3 before pooling",
        "GROW",
    ]
    assert list(places(deep, "all")) == [
        "GROW 2 before pooling", "GROW 2", "GROW 3 before pooling", "GROW 3", "GROW 4", "GROW",
    ]  # fmt: skip
    tiny = Architecture.seed([8, 8], resolution=4)  # the second one's map is too small to be pooled
    assert list(places(tiny, "stages")) == ["GROW 2 before pooling", "GROW 3 before pooling"]


def test_an_operator_without_a_rule_for_a_network_makes_no_candidate() -> None:
    network = ResNet12Architecture("resnet12", 8, 3, (4, 5))
    given: dict[str, Any] = {
        "sensitivity": [1.0] * len(network.axes), "options": OPTIONS, "caps": WIDE, "seed": 0,
    }  # fmt: skip
    assert candidates(network, operators=["grow"], **given) == []
    found = candidates(network, operators=["grow", "widen"], **given)
    assert [mutation.kind for mutation in found] == ["WIDEN"]
    (why,) = refusals(network, ["grow", "widen"])
    assert "resnet12" in why
    assert refusals(SEED, ["grow", "widen"]) == []


def test_places_that_the_caps_exclude_are_left_out() -> None:
    flops = {label: 2 * after.macs(84) for label, after in places(SEED, "all").items()}
    cap = sorted(flops.values())[2]
    found = places(SEED, "all", replace(WIDE, max_flops=cap))
    assert set(found) == {label for label, figure in flops.items() if figure < cap}
    assert 0 < len(found) < len(flops)
    assert places(SEED, "all", replace(WIDE, max_blocks=3)) == {}


def test_caps_at_the_edge() -> None:
    flops = 2 * SEED.macs(84)
    exact = Caps(3, 16, SEED.params + 1, flops + 1, 84)
    assert exact.violation(SEED) is None
    refused = {
        "max_blocks": (2, "blocks 3 over the cap of 2"),
        "max_channels": (15, "channels 16 over the cap of 15"),
        "max_params": (SEED.params, f"params {SEED.params:,} not under the cap of {SEED.params:,}"),
        "max_flops": (flops, f"flops at 84 px {flops:,} not under the cap of {flops:,}"),
    }
    for key, (value, words) in refused.items():
        assert replace(exact, **{key: value}).violation(SEED) == words


def test_flops_count_at_the_resolution_of_the_caps() -> None:
    flops = {side: 2 * SEED.macs(side) for side in (32, 84)}
    assert flops[84] > 5 * flops[32]
    between = (flops[32] + flops[84]) // 2
    assert Caps(9, 99, 10**6, between, 32).violation(SEED) is None
    assert Caps(9, 99, 10**6, between, 84).violation(SEED) is not None


def test_fitness_and_penalty_are_the_formula() -> None:
    caps = Caps(12, 256, 50_000, 40_000_000, 84)
    expected = 2 * SEED.macs(84) / 40_000_000 + SEED.params / 50_000
    assert penalty(SEED, caps) == pytest.approx(expected, rel=1e-12)
    before, stay, mutant = (torch.tensor(each) for each in ([3.0, 5.0], [2.5, 4.5], [2.0, 3.0]))
    grown = proposed()["GROW"].after
    dearer = penalty(grown, caps) - penalty(SEED, caps)
    assert dearer > 0
    found = advantage(before, stay, mutant, dearer, 0.1)
    fitness = [
        (before - after).mean().item() / 4 - 0.1 * penalty(network, caps)
        for after, network in ((mutant, grown), (stay, SEED))
    ]
    assert found.mean == pytest.approx(fitness[0] - fitness[1], rel=1e-6)
    assert found.error == pytest.approx(0.5 / 4)  # leads of 0.5 and 1.5: 0.5 is their error
    assert advantage(before, mutant, stay, -dearer, 0.1).mean == pytest.approx(-found.mean)


def test_a_difference_is_that_of_pairs() -> None:
    """Batches differ by far more than networks do."""
    first, second = torch.tensor([1.0, 9.0, 5.0]), torch.tensor([0.5, 8.4, 4.6])
    assert paired(first, second).mean == pytest.approx(0.5)
    assert paired(first, second).error == pytest.approx(0.1 / 3**0.5, rel=1e-5)
    assert paired(first, first) == (0, 0)


def test_candidates_expand_by_the_ratio() -> None:
    found = proposed()
    assert found["GROW"].after.channels == (8, 12, 16, 24)
    assert found["WIDEN"].noise == 0.01
    assert sum(found["WIDEN"].after.channels) - sum(SEED.channels) == 4  # block 0: 8 to 12


@pytest.mark.parametrize("block", [0, 1, 2])
def test_the_most_sensitive_block_widens(block: int) -> None:
    sensitivity = [0.2, 0.1, 0.3]
    sensitivity[block] = 0.9
    widened = proposed(sensitivity=sensitivity)["WIDEN"].after.channels
    expected = list(SEED.channels)
    expected[block] = round(1.5 * expected[block])
    assert list(widened) == expected


def test_a_block_that_the_caps_hold_back_gives_way_to_the_next() -> None:
    caps = replace(WIDE, max_channels=16)
    assert proposed(caps=caps, sensitivity=[0.1, 0.2, 0.9])["WIDEN"].target["block"] == 1
    nearly = replace(WIDE, max_channels=17)
    found = proposed(caps=nearly, sensitivity=[0.1, 0.2, 0.9])
    assert found["WIDEN"].after.channels == (8, 12, 17)
    assert found["GROW"].after.channels == (8, 12, 16, 17)


def test_a_block_of_one_channel_widens_by_one_at_least() -> None:
    narrow = Architecture.seed([1, 2], resolution=16)
    options = replace(OPTIONS, expansion=1.1)
    assert proposed(narrow, options=options, sensitivity=[1, 0])["WIDEN"].after.channels == (2, 2)


def test_a_growth_too_wide_for_the_caps_is_as_wide_as_its_input() -> None:
    wide = proposed()["GROW"].after
    caps = replace(WIDE, max_params=wide.params)
    assert proposed(caps=caps)["GROW"].after.channels == (8, 12, 16, 16)


@pytest.mark.parametrize(
    ("key", "value", "left"),
    [
        ("max_blocks", 3, {"WIDEN"}),
        ("max_params", SEED.params + 2, set()),
        ("max_flops", 2 * SEED.macs(84) + 2, set()),
        ("max_channels", 16, {"GROW", "WIDEN"}),
        ("max_channels", 8, set()),
    ],
)
def test_caps_exclude_candidates(key: str, value: int, left: set[str]) -> None:
    assert set(proposed(caps=replace(WIDE, **{key: value}))) == left


def test_no_random_caps_are_ever_exceeded() -> None:
    rng = random.Random(0)
    seen = 0
    for trial in range(200):
        caps = Caps(
            rng.randint(1, 6),
            rng.randint(4, 40),
            rng.randint(1_000, 40_000),
            rng.randint(10**6, 3 * 10**7),
            rng.choice((32, 84)),
        )
        architecture = Architecture.seed([4, 4], resolution=32, residual=rng.random() < 0.5)
        options = replace(OPTIONS, widen_mode=rng.choice(("duplicate", "zero", "pairs")))
        operators = ["grow", rng.choice(("widen", "widen_all"))]
        for step in range(6):
            found = proposed(
                architecture,
                caps,
                operators=operators,
                sensitivity=[rng.random() for _ in architecture.blocks],
                options=replace(options, expansion=rng.uniform(1.01, 3)),
                seed=trial * 10 + step,
            )
            if not found:
                break
            seen += len(found)
            for mutation in found.values():
                assert caps.violation(mutation.after) is None
                assert mutation.after.params > architecture.params
            architecture = rng.choice(list(found.values())).after
    assert seen > 200


@pytest.mark.parametrize(
    ("recent", "kinds"),
    [
        ([], {"GROW", "WIDEN"}),
        (["GROW"], {"GROW", "WIDEN"}),
        (["GROW", "GROW"], {"WIDEN"}),
        (["WIDEN", "WIDEN"], {"GROW"}),
        (["GROW", "WIDEN", "WIDEN", "WIDEN"], {"GROW"}),
        (["GROW", "GROW", "WIDEN"], {"GROW", "WIDEN"}),
    ],
)
def test_operators_of_one_kind_take_turns_as_one(recent: list[str], kinds: set[str]) -> None:
    """WIDEN is tired whichever of its operators made it; so are both of them."""
    found = candidates(
        SEED,
        operators=["grow", "widen", "widen_all"],
        sensitivity=[1.0] * 3,
        options=OPTIONS,
        caps=WIDE,
        seed=0,
        recent=recent,
        max_repeats=2,
    )
    expected = [kind for kind in ("GROW", "WIDEN", "WIDEN") if kind in kinds]
    assert [mutation.kind for mutation in found] == expected
    assert set(proposed(operators=["grow", "widen_all"], recent=recent, max_repeats=2)) == kinds


@pytest.mark.parametrize(
    ("channels", "caps", "sensitivity", "expected"),
    [
        ([8, 12, 16], WIDE, [1, 1, 1], [12, 18, 24]),
        ([8, 12, 16], replace(WIDE, max_channels=17), [1, 1, 1], [12, 17, 17]),
        ([8, 12, 16], replace(WIDE, max_channels=16), [1, 1, 1], [12, 16, 16]),
        ([1, 2, 3], WIDE, [1, 1, 1], [2, 3, 4]),
        ([8, 12, 16], replace(WIDE, max_channels=12), [1, 1, 1], None),
        ([8, 12, 12], replace(WIDE, max_channels=12), [1, 1, 1], [12, 12, 12]),
    ],
)
def test_widen_all_widens_every_block_that_the_caps_let(
    channels: list[int], caps: Caps, sensitivity: list[float], expected: list[int] | None
) -> None:
    seed = Architecture.seed(channels, resolution=32)
    found = proposed(seed, caps, operators=["widen_all"], sensitivity=sensitivity, seed=5)
    if expected is None:
        assert not found
    else:
        made = widen(seed, None, channels=expected, noise=OPTIONS.widen_noise, seed=5)
        assert found["WIDEN"] == made


@pytest.mark.parametrize("most", [0, 1, 2])
def test_what_the_caps_leave_goes_to_the_most_sensitive_blocks(most: int) -> None:
    sensitivity = [0.5, 0.5, 0.5]
    sensitivity[most] = 0.9
    alone = [round(1.5 * c) if b == most else c for b, c in enumerate(SEED.channels)]
    params = Architecture.seed(alone, resolution=32).params
    caps = replace(WIDE, max_params=params + 1)
    found = proposed(caps=caps, operators=["widen_all"], sensitivity=sensitivity)
    widened = found["WIDEN"].after.channels
    assert widened[most] == alone[most]
    for block, width in enumerate(widened):  # and no other would still fit
        wider = list(widened)
        wider[block] = round(1.5 * SEED.channels[block])
        fits = Architecture.seed(wider, resolution=32).params <= params
        assert fits == (width > SEED.channels[block])


@pytest.mark.parametrize(
    ("recent", "kinds"),
    [
        ([], {"GROW", "WIDEN"}),
        (["GROW"], {"GROW", "WIDEN"}),
        (["GROW", "GROW"], {"WIDEN"}),
        (["WIDEN", "WIDEN"], {"GROW"}),
        (["GROW", "WIDEN", "WIDEN", "WIDEN"], {"GROW"}),
        (["GROW", "GROW", "WIDEN"], {"GROW", "WIDEN"}),
    ],
)
def test_an_operator_stands_back_after_its_turns(recent: list[str], kinds: set[str]) -> None:
    assert set(proposed(recent=recent, max_repeats=2)) == kinds
    assert set(proposed(recent=recent)) == {"GROW", "WIDEN"}


def test_a_tired_operator_is_taken_when_nothing_else_fits() -> None:
    repeated = ["WIDEN"] * 3
    full = replace(WIDE, max_blocks=3)
    assert set(proposed(caps=full, recent=repeated, max_repeats=2)) == {"WIDEN"}
    only = proposed(operators=["widen"], recent=repeated, max_repeats=1)
    assert set(only) == {"WIDEN"}


def test_candidates_follow_their_seed() -> None:
    assert proposed(seed=3) == proposed(seed=3)
    assert proposed(seed=3)["WIDEN"].spaces != proposed(seed=4)["WIDEN"].spaces


def test_the_modes_of_the_options_are_used() -> None:
    options = replace(OPTIONS, grow_mode="fresh", widen_mode="zero")
    found = proposed(options=options)
    assert not found["GROW"].after.blocks[-1].residual
    assert found["WIDEN"].target["mode"] == "zero"


def test_a_block_that_does_not_fit_leaves_the_caps_to_the_others() -> None:
    """The more sensitive a block, the dearer it is here: only the first one fits."""
    wide = Architecture.seed([8, 8, 64], resolution=32)
    first, *dearer = (widen(wide, block, channels=c).after for block, c in enumerate((12, 12, 96)))
    assert all(first.params < other.params for other in dearer)
    caps = replace(WIDE, max_params=first.params + 1)
    (mutation,) = candidates(
        wide,
        operators=["widen_all"],
        sensitivity=[1.0, 2.0, 3.0],
        options=OPTIONS,
        caps=caps,
        seed=0,
    )
    assert mutation.after.channels == (12, 8, 64)


def test_the_most_sensitive_block_is_widened() -> None:
    for order in ([3.0, 1.0, 2.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0]):
        found = proposed(sensitivity=order)["WIDEN"]
        assert found.target["block"] == order.index(3.0)
