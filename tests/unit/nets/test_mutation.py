from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from sseg_nase.errors import UserError
from sseg_nase.nets.architecture import Architecture, Block
from sseg_nase.nets.evolvable import EvolvableCNN
from sseg_nase.nets.maps import (
    GRADIENT,
    NEW,
    SQUARED_GRADIENT,
    VALUE,
    Along,
    ChannelMap,
    TensorMap,
    Tensors,
    carry,
)
from sseg_nase.nets.mutation import Mutation, fresh_state
from sseg_nase.nets.mutations.grow import grow, grow_stages
from sseg_nase.nets.mutations.operator import rebuild
from sseg_nase.nets.mutations.prune import prune
from sseg_nase.nets.mutations.widen import widen

SEED = Architecture.seed([4, 6, 8], resolution=16)
RESIDUAL = Architecture.seed([4, 6, 8], resolution=16, residual=True)

OUT = ChannelMap((0, 1, 2, 1, 1, NEW), old=3)
INTO = ChannelMap((1, 0, 1, NEW), old=2)
BOTH = (Along(OUT), Along(INTO, reads=True))


def carried_one(tensor_map: TensorMap, old: Tensor, fresh: Tensor, like: str = VALUE) -> Tensor:
    assert tensor_map.source is not None
    one = Tensors({tensor_map.source: old}, {"w": fresh}, like)
    return carry({"w": tensor_map}, {"one": one})["one"]["w"]


def carried_all(
    mutation: Mutation, old: Mapping[str, Tensor], fresh: Mapping[str, Tensor], like: str = VALUE
) -> dict[str, Tensor]:
    return carry(mutation.maps, {"all": Tensors(old, fresh, like)})["all"]


def slowly(old: Tensor, fresh: Tensor, like: str) -> Tensor:
    """The rule for `OUT` and `INTO`, entry by entry."""
    new = torch.empty_like(fresh)
    for row, i in enumerate(OUT.index):
        for column, j in enumerate(INTO.index):
            if i == NEW:
                new[row, column] = fresh[row, column]
            elif j == NEW:
                new[row, column] = 0
            elif like == VALUE:
                new[row, column] = old[i, j] / INTO.index.count(j)
            else:
                power = 2 if like == SQUARED_GRADIENT else 1
                new[row, column] = old[i, j] / OUT.index.count(i) ** power
    return new


@pytest.mark.parametrize("shape", [(), (3, 3)])
@pytest.mark.parametrize("like", [VALUE, GRADIENT, SQUARED_GRADIENT])
def test_a_tensor_map_entry_by_entry(shape: tuple[int, ...], like: str) -> None:
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(3, 2, *shape, generator=generator)
    fresh = torch.randn(6, 4, *shape, generator=generator)
    fresh = fresh if like == VALUE else torch.zeros_like(fresh)
    kept = old.clone(), fresh.clone()
    carried = carried_one(TensorMap("v", BOTH), old, fresh, like)
    assert torch.equal(carried, slowly(old, fresh, like))
    assert torch.equal(old, kept[0])
    assert torch.equal(fresh, kept[1])


def test_silent_new_channels_are_weighed_at_once() -> None:
    silent = ChannelMap((0, 1, NEW), old=2, silent=True)
    old, fresh = torch.ones(3, 2), torch.full((3, 3), 5.0)
    carried = carried_one(TensorMap("w", (None, Along(silent, reads=True))), old, fresh)
    assert carried.tolist() == [[1, 1, 5]] * 3


def test_copies_repeats_and_sameness_of_a_channel_map() -> None:
    assert OUT.copies == (1, 3, 1, 3, 3, 1)
    assert OUT.repeats == (False, False, False, True, True, False)
    assert ChannelMap.same(4).is_same
    assert not ChannelMap((0, 2, 1), 3).is_same
    assert not ChannelMap((0, 1), 3).is_same


def test_a_flattened_axis_keeps_the_positions_of_a_channel_together() -> None:
    spread = INTO.spread(3)
    assert spread.index == (3, 4, 5, 0, 1, 2, 3, 4, 5, NEW, NEW, NEW)
    assert spread.old == 6
    maps = torch.arange(2 * 3).reshape(1, 2, 3)
    flat = maps[:, [1, 0, 1]].flatten(1)
    assert torch.equal(flat, maps.flatten(1)[:, list(spread.index[:9])])


def test_a_source_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"v .*\[4, 2\].*\[3, 2\]"):
        carried_one(TensorMap("v", BOTH), torch.ones(4, 2), torch.ones(6, 4))


def test_noise_falls_on_repeated_rows_only_and_follows_its_seed() -> None:
    old = torch.ones(3, 2)
    fresh = torch.zeros(6, 2)

    def carried(noise: float, seed: int, like: str = VALUE) -> Tensor:
        tensor_map = TensorMap("w", (Along(OUT),), noise=noise, seed=seed)
        return carried_one(tensor_map, old, fresh, like)

    plain, noisy = carried(0.0, 1), carried(0.1, 1)
    assert torch.equal(noisy, carried(0.1, 1))
    assert not torch.equal(noisy, carried(0.1, 2))
    assert torch.equal(noisy[[0, 1, 2, 5]], plain[[0, 1, 2, 5]])
    assert (noisy[[3, 4]] != plain[[3, 4]]).all()
    assert (noisy - plain).abs().max() < 0.5
    assert torch.equal(carried(0.1, 1, GRADIENT), carried(0.0, 1, GRADIENT))


def test_grow_after_the_last_block() -> None:
    mutation = grow(SEED, out_channels=12)
    assert mutation.after.channels == (4, 6, 8, 12)
    assert mutation.after.blocks[:3] == SEED.blocks
    assert mutation.after.blocks[3] == Block(12, pool=False, residual=True)
    assert mutation.origins == (0, 1, 2, None)
    assert mutation.spaces[-1].index == (*range(8), NEW, NEW, NEW, NEW)
    assert grow(SEED).after.channels == (4, 6, 8, 8)


def test_grow_in_between() -> None:
    mutation = grow(SEED, position=1, out_channels=5)
    assert mutation.after.channels == (4, 5, 6, 8)
    assert mutation.origins == (0, None, 1, 2)
    assert mutation.maps["blocks.2.conv.weight"].source == "blocks.1.conv.weight"
    assert mutation.maps["blocks.1.conv.weight"].source is None
    assert mutation.after.sides() == (16, 8, 8, 4, 2)


def test_grow_before_the_pooling_takes_it_over() -> None:
    mutation = grow(SEED, position=1, before_pool=True)
    first, second, *rest = mutation.after.blocks
    assert (first, second) == (Block(4, pool=False), Block(4, pool=True, residual=True))
    assert tuple(rest) == SEED.blocks[1:]
    assert mutation.after.sides() == (16, 16, 8, 4, 2)
    assert mutation.target["before_pool"] is True
    assert "before_pool" not in grow(SEED, position=1).target  # as it always was
    last = grow(SEED, before_pool=True, out_channels=9)
    assert last.after.sides() == (16, 8, 4, 4, 2)
    assert grow(SEED, before_pool=True, mode="fresh").after.blocks[2:] == (
        Block(8, pool=False),
        Block(8),
    )


def test_grow_in_every_stage_is_one_mutation() -> None:
    mutation = grow_stages(SEED, seed=3)
    assert mutation.kind == "GROW"
    assert mutation.after.channels == (4, 4, 6, 6, 8, 8)
    assert mutation.after.stages == ((0, 1), (2, 3), (4, 5))
    assert [block.pool for block in mutation.after.blocks] == [False, True] * 3
    assert [block.residual for block in mutation.after.blocks] == [False, True] * 3
    assert mutation.origins == (0, None, 1, None, 2, None)
    assert mutation.zeroed == tuple(f"blocks.{n}.norm.weight" for n in (1, 3, 5))
    assert mutation.target == {
        "block": None,
        "blocks": [1, 3, 5],
        "out_channels": [4, 6, 8],
        "before_pool": [True] * 3,
        "mode": "preserve",
        "seed": 3,
    }
    uneven = grow(SEED, position=2, before_pool=True).after
    assert grow_stages(uneven, most=2).after.stages == ((0, 1), (2, 3), (4, 5))
    tail = grow(SEED).after  # a fourth stage, which does not pool
    assert grow_stages(tail).after.blocks[-2:] == (Block(8, pool=False, residual=True),) * 2
    with pytest.raises(UserError, match="all of them have 2 blocks or more"):
        grow_stages(mutation.after, most=2)


def test_candidates_are_told_apart() -> None:
    made = [
        grow(SEED),
        grow(SEED, position=1),
        grow(SEED, position=2, before_pool=True),
        grow(SEED, before_pool=True),
        grow_stages(SEED),
        widen(SEED, 1),
        widen(SEED, None),
        prune(SEED, [[0], [1], [2]]),
    ]
    labels = (
        "GROW|GROW 2|GROW 3 before pooling|GROW 4 before pooling|GROW all|WIDEN|WIDEN all|PRUNE"
    )
    assert [mutation.label for mutation in made] == labels.split("|")


def test_a_fresh_block_pools_as_the_others_do() -> None:
    assert grow(SEED, mode="fresh", out_channels=5).after.blocks[-1] == Block(5)
    unpooled = Architecture.seed([4], resolution=16, pooling=False)
    assert grow(unpooled, mode="fresh").after.blocks[-1] == Block(4, pool=False)


def test_widen_repeats_every_channel_equally_often() -> None:
    mutation = widen(SEED, 1, channels=20, seed=3)
    assert mutation.after.channels == (4, 20, 8)
    assert mutation.spaces[2].index[:6] == (0, 1, 2, 3, 4, 5)
    counts = [mutation.spaces[2].index.count(c) for c in range(6)]
    assert min(counts) >= 3
    assert max(counts) <= 4
    assert widen(SEED, 1, channels=20, seed=3) == mutation
    assert widen(SEED, 1, channels=20, seed=4).spaces != mutation.spaces
    assert widen(SEED, 1).after.channels == (4, 9, 8)
    assert widen(SEED, 1, mode="zero").spaces[2].index[6:] == (NEW, NEW, NEW)


def test_new_channels_in_pairs_start_alike_and_cancel() -> None:
    mutation = widen(SEED, 1, channels=11, mode="pairs", seed=3)
    assert mutation.spaces[2].index == (*range(6), *[NEW] * 5)
    assert mutation.spaces[2].pairs == ((6, 7), (8, 9))  # 10 is left over
    assert mutation.target["index"] == [NEW] * 5
    network = EvolvableCNN(SEED, generator=torch.Generator().manual_seed(0))
    old = {name: 3 * tensor for name, tensor in network.state_dict().items()}
    new = carried_all(mutation, old, fresh_state(mutation))
    into, out = new["blocks.1.conv.weight"], new["blocks.2.conv.weight"]
    assert torch.equal(into[[6, 8]], into[[7, 9]])
    assert torch.equal(out[:, [6, 8]], -out[:, [7, 9]])
    assert into[[6, 8, 10]].any((1, 2, 3)).all()
    assert out[:, [6, 8]].any((0, 2, 3)).all()
    assert not torch.equal(into[6], into[8])
    assert not torch.equal(out[:, 6], out[:, 8])
    assert not out[:, 10].any()
    for tensor, added in ((into, into[[6, 8]]), (out, out[:, [6, 8]])):
        kept = old["blocks.1.conv.weight" if tensor is into else "blocks.2.conv.weight"]
        torch.testing.assert_close(added.square().mean(), kept.square().mean())
    assert torch.equal(into[:6], old["blocks.1.conv.weight"])
    assert torch.equal(out[:, :6], old["blocks.2.conv.weight"])
    for like in (GRADIENT, SQUARED_GRADIENT):
        zeros = {name: torch.zeros_like(tensor) for name, tensor in new.items()}
        moments = carried_all(mutation, old, zeros, like)
        assert not moments["blocks.1.conv.weight"][6:].any()
        assert not moments["blocks.2.conv.weight"][:, 6:].any()


def test_pairs_of_a_flattened_axis_are_pairs_at_every_position() -> None:
    space = ChannelMap((0, NEW, NEW), old=1, pairs=((1, 2),)).spread(2)
    assert space == ChannelMap((0, 1, NEW, NEW, NEW, NEW), old=2, pairs=((2, 4), (3, 5)))


def test_weights_of_nothing_do_not_make_pairs_of_nothing() -> None:
    """A block that starts with weights 0 is widened, or feeds one that is."""
    plain = Architecture.seed([4, 4], resolution=8, batch_norm=False)
    grown = grow(plain, position=1)
    network = EvolvableCNN(plain)
    state = carried_all(grown, network.state_dict(), fresh_state(grown))
    for block in (0, 1):
        wide = widen(grown.after, block, channels=6, mode="pairs")
        new = carried_all(wide, state, fresh_state(wide))
        assert new[f"blocks.{block}.conv.weight"][4:].any()
        assert new[f"blocks.{block + 1}.conv.weight"][:, 4:].any()


@pytest.mark.parametrize(("mode", "parted"), [("duplicate", False), ("pairs", True)])
def test_pairs_part_at_the_first_step_and_copies_never(mode: str, parted: bool) -> None:
    mutation = widen(SEED, 1, channels=12, mode=mode, seed=1)
    network = EvolvableCNN(SEED, generator=torch.Generator().manual_seed(0)).double()
    network.become(mutation)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(2)).double()
    space = mutation.spaces[2]
    twins = space.pairs or [(source, 6 + n) for n, source in enumerate(space.index[6:])]
    for _ in range(2):
        network(images).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        first, second = (
            network.blocks[1].conv.weight[list(side)] for side in zip(*twins, strict=True)
        )
        apart = (first - second).abs().flatten(1).amax(1)
        assert (apart > 1e-4).all() if parted else (apart < 1e-9).all()


def test_prune_keeps_the_order_of_channels() -> None:
    mutation = prune(SEED, [[3, 0], range(6), [7]])
    assert mutation.after.channels == (2, 6, 1)
    assert mutation.spaces[1].index == (0, 3)
    assert mutation.target == {"removed": {"0": [1, 2], "2": [0, 1, 2, 3, 4, 5, 6]}}


def test_shortcuts_are_routed_only_when_channels_moved() -> None:
    def routed(architecture: Architecture) -> list[bool]:
        return [block.routed for block in architecture.blocks]

    assert routed(widen(RESIDUAL, 1, channels=8).after) == [False, True, True]
    assert routed(widen(RESIDUAL, 1, channels=8, mode="zero").after) == [False, False, True]
    assert routed(widen(RESIDUAL, 2, channels=9, mode="zero").after) == [False] * 3
    assert routed(prune(RESIDUAL, [[0, 1], [0, 1, 2], [0, 1, 2]]).after) == [False] * 3
    assert routed(prune(RESIDUAL, [[0, 1, 2, 3], [1, 2], [1, 2]]).after) == [False, True, False]
    assert routed(grow(RESIDUAL, position=1).after) == [False] * 4
    assert routed(grow(RESIDUAL, position=1, out_channels=6).after) == [False] * 4
    assert routed(grow(RESIDUAL, position=1, out_channels=7).after) == [False, False, True, False]
    assert not any(routed(widen(SEED, 1).after))


def test_what_a_mutation_did_is_plain_data() -> None:
    for mutation in (
        grow(SEED, out_channels=12),
        widen(SEED, 1),
        widen(SEED, 1, mode="zero"),
        widen(SEED, 1, mode="pairs"),
        widen(SEED, None),
        prune(SEED, [[0], [1], [2]]),
    ):
        assert json.loads(json.dumps(mutation.target)) == mutation.target


def test_widen_all_blocks_is_one_mutation_with_a_map_per_space() -> None:
    mutation = widen(SEED, None, seed=3, noise=0.1)
    assert mutation.kind == "WIDEN"
    assert mutation.after.channels == (6, 9, 12)
    assert mutation.target == {
        "block": None,
        "channels": [6, 9, 12],
        "mode": "duplicate",
        "index": [list(space.index[space.old :]) for space in mutation.spaces[1:]],
        "noise": 0.1,
        "seed": 3,
    }
    for space, width in zip(mutation.spaces[1:], SEED.channels, strict=True):
        assert space.index[:width] == tuple(range(width))
        assert len(set(space.index[width:])) == len(space.index) - width
    assert mutation.spaces[0].is_same
    some = widen(SEED, None, channels=[4, 7, 8], mode="zero")
    assert some.after.channels == (4, 7, 8)
    assert [space.is_same for space in some.spaces] == [True, True, False, True]
    assert widen(SEED, None, channels=[4, 9, 8], seed=3).spaces == widen(SEED, 1, seed=3).spaces


def drawn(rng: random.Random, before: Architecture) -> Mutation:
    """A random mutation of a random kind."""

    def grown() -> Mutation:
        position = rng.choice([None, *range(1, len(before.blocks) + 1)])
        mode = rng.choice(["preserve", "fresh"])
        width = before.channels[-1 if position is None else position - 1]
        least = width if mode == "preserve" else 1
        out_channels = rng.choice([None, rng.randint(least, least + 9)])
        pools = before.blocks[-1 if position is None else position - 1].pool
        return grow(
            before,
            position=position,
            before_pool=pools and rng.random() < 0.5,
            out_channels=out_channels,
            mode=mode,
            seed=seed,
        )

    def deepened() -> Mutation:
        least = min(len(stage) for stage in before.stages)
        if rng.random() < 0.5:
            return grow_stages(before, drawn=True, seed=seed)
        return grow_stages(before, most=rng.choice([None, least + 1]), seed=seed)

    def widened(block: int | None) -> Mutation:
        mode, noise = rng.choice(["duplicate", "zero", "pairs"]), rng.choice([0.0, 0.013])
        return widen(before, block, ratio=rng.uniform(2, 3), mode=mode, noise=noise, seed=seed)

    def pruned() -> Mutation:
        kept = [rng.sample(range(c), rng.randint(1, c)) for c in before.channels]
        return prune(before, kept)

    seed = rng.randrange(2**62)
    block = rng.randrange(len(before.blocks))
    kinds = [grown, deepened, lambda: widened(None), lambda: widened(block), pruned]
    return rng.choice(kinds)()


@pytest.mark.parametrize("seed", range(40))
def test_kind_and_target_are_enough_to_make_a_mutation_again(seed: int) -> None:
    rng = random.Random(seed)
    architecture = Architecture(
        tuple(
            Block(rng.randint(1, 6), pool=rng.random() < 0.6, residual=rng.random() < 0.5)
            for _ in range(rng.randint(1, 5))
        ),
        resolution=16,
        batch_norm=rng.random() < 0.5,
        embedding=rng.choice(("average", "flatten")),
    )
    for _ in range(5):
        mutation = drawn(rng, architecture)
        again = rebuild(mutation.kind, json.loads(json.dumps(mutation.target)), mutation.before)
        assert again == mutation
        assert again.maps == mutation.maps
        if max(mutation.after.channels) < 200:
            architecture = mutation.after


def test_a_recorded_index_is_taken_and_not_drawn_again() -> None:
    target = widen(SEED, 1, seed=3).target
    other = [(source + 1) % 6 for source in target["index"]]
    assert rebuild("WIDEN", {**target, "index": other}, SEED).spaces[2].index[6:] == tuple(other)


GROWN, WIDENED = grow(SEED).target, widen(SEED, 1).target
DEEPER = grow_stages(SEED).target
PRUNED, ALL = prune(SEED, [[0], [1], [2]]).target, widen(SEED, None).target


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        ("GORW", GROWN, "'GORW': accepted GROW, WIDEN, PRUNE, CHOOSE. Did you mean 'GROW'"),
        ("GROW", {k: v for k, v in GROWN.items() if k != "seed"}, "'seed' is missing"),
        ("GROW", {**GROWN, "block": 9}, "position 9: accepted 1 to 3"),
        ("GROW", {**GROWN, "block": None}, "'blocks' is missing"),
        ("GROW", {**GROWN, "before_pool": 7}, "before_pool not as the rest"),
        ("GROW", {**DEEPER, "before_pool": [True]}, "GROW target: zip"),
        ("GROW", {**DEEPER, "blocks": [1, 3, 3]}, "name them from the first to the last"),
        ("GROW", {**DEEPER, "blocks": [1, 3, 6]}, "position 4: accepted 1 to 3"),
        ("GROW", {**DEEPER, "block": 1}, "GROW target: '<' not supported"),
        ("GROW", {**GROWN, "out_channels": "8"}, "GROW target: '<' not supported"),
        ("GROW", {**GROWN, "fast": 1}, "fast not as the rest"),
        ("WIDEN", {k: v for k, v in WIDENED.items() if k != "channels"}, "channels not as"),
        ("WIDEN", {**WIDENED, "index": WIDENED["index"][1:]}, "channels not as the rest"),
        ("WIDEN", {**WIDENED, "index": [0, 1, 6]}, "one of 0 to 5, or is new"),
        ("WIDEN", {**WIDENED, "index": [0, 1, -2]}, "one of 0 to 5, or is new"),
        ("WIDEN", {**WIDENED, "block": 7}, "block 7: accepted 0 to 2"),
        ("WIDEN", {**ALL, "index": ALL["index"][:2]}, "one index per block is needed, 3, not 2"),
        ("PRUNE", {"removed": {**PRUNED["removed"], "7": [1]}}, "removed not as the rest"),
        ("PRUNE", {"removed": {"0": [9]}}, "removed not as the rest"),
        ("PRUNE", {"removed": {"0": [0, 1, 2, 3]}}, "PRUNE block 0"),
        ("PRUNE", {"removed": [0, 1]}, "PRUNE target: 'list' object"),
    ],
)
def test_a_target_that_no_mutation_has_is_refused(
    kind: str, target: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        rebuild(kind, target, SEED)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: grow(SEED, position=0), "position 0: accepted 1 to 3"),
        (lambda: grow(SEED, position=4), "position 4: accepted 1 to 3"),
        (lambda: grow(SEED, out_channels=7), "use at least 8"),
        (lambda: grow(grow(SEED).after, before_pool=True), "pooling of block 3: it does not pool"),
        (lambda: grow(SEED, out_channels=0, mode="fresh"), "out_channels 0"),
        (lambda: grow(SEED, mode="fast"), "'fast': accepted preserve, fresh"),
        (lambda: widen(SEED, 3), "block 3: accepted 0 to 2"),
        (lambda: widen(SEED, 0, channels=4), "it has 4 already"),
        (lambda: widen(SEED, 0, channels=[6, 6, 8]), r"block 0 to \[6, 6, 8\].*one width"),
        (lambda: widen(SEED, None, channels=9), "one width per block, 3 in all"),
        (lambda: widen(SEED, None, channels=[9, 9]), "one width per block, 3 in all"),
        (lambda: widen(SEED, None, channels=[9, 5, 8]), r"at least \[4, 6, 8\]"),
        (lambda: widen(SEED, None, channels=[4, 6, 8]), "more in one block"),
        (lambda: widen(SEED, None, ratio=1.0), "more in one block"),
        (lambda: widen(SEED, 0, mode="copy"), "'copy': accepted duplicate, zero, pairs"),
        (lambda: prune(SEED, [[0], [], [0]]), "block 1"),
        (lambda: prune(SEED, [[0], [1], [8]]), "0 to 7"),
        (lambda: prune(SEED, [[0], [1], [-1]]), "0 to 7"),
        (lambda: prune(SEED, [[0], [1]]), "3 blocks"),
    ],
)
def test_mistakes_say_what_is_accepted(mistake: object, message: str) -> None:
    assert callable(mistake)
    with pytest.raises(UserError, match=message):
        mistake()


def test_equal_blocks_are_widened_with_noise_of_their_own() -> None:
    architecture = Architecture.seed([6, 6, 6], resolution=8)
    network = EvolvableCNN(architecture, generator=torch.Generator().manual_seed(0))

    def widened(noise: float) -> list[Tensor]:
        mutation = widen(architecture, None, channels=[9, 9, 9], noise=noise, seed=5)
        after = carried_all(mutation, network.state_dict(), fresh_state(mutation))
        return [after[f"blocks.{block}.conv.weight"] for block in (1, 2)]

    drawn = []
    for plain, noisy in zip(widened(0.0), widened(0.1), strict=True):
        copies = (plain != noisy).flatten(1).any(dim=1)
        assert copies.any()
        drawn.append(noisy[copies] / plain[copies])
    assert drawn[0].shape == drawn[1].shape
    assert not torch.allclose(drawn[0], drawn[1], atol=1e-2)
