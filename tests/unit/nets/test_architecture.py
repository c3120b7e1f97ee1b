from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from sseg_nase.hardware.complexity import count_macs, count_params
from sseg_nase.nets.architecture import Architecture, Block, pools
from sseg_nase.nets.evolvable import EvolvableCNN
from sseg_nase.nets.mutations.grow import grow_stages

MIXED = Architecture(
    (
        Block(5),
        Block(7, pool=False, residual=True),
        Block(4, residual=True, routed=True),
        Block(6, pool=False),
    ),
    resolution=20,
    kernel_size=3,
    activation="gelu",
    batch_norm=False,
    embedding="flatten",
)


def test_the_seed_network_by_hand() -> None:
    seed = Architecture.seed(resolution=32)
    assert seed.channels == (16, 32, 64)
    assert seed.widths == (3, 16, 32, 64)
    assert seed.sides() == (32, 16, 8, 4)
    convolutions = 9 * 3 * 16, 9 * 16 * 32, 9 * 32 * 64
    assert seed.params == sum(convolutions) + 2 * (16 + 32 + 64) == 23_696
    assert seed.macs() == convolutions[0] * 32**2 + convolutions[1] * 16**2 + convolutions[2] * 8**2
    assert seed.summary() == {
        "blocks": 3,
        "channels": [16, 32, 64],
        "params": 23_696,
        "macs": 2_801_664,
        "flops": 5_603_328,
        "resolution": 32,
    }


def test_a_wide_seed_network_grows_into_stages_of_three() -> None:
    """16-40-80-160, one convolution each, and two more in every stage: both as counted by hand."""
    widths, sides = (16, 40, 80, 160), (32, 16, 8, 4)
    seed = Architecture.seed(widths, resolution=32, activation="leaky_relu")
    convolutions = [9 * a * b for a, b in itertools.pairwise((3, *widths))]
    norms = 2 * sum(widths)
    assert seed.params == sum(convolutions) + norms == 150_784
    macs = sum(c * side**2 for c, side in zip(convolutions, sides, strict=True))
    assert seed.macs() == macs == 5_603_328
    added = [9 * w**2 for w in widths]
    grown = seed
    for blocks in (2, 3):
        grown = grow_stages(grown, most=3).after
        more = blocks - 1
        assert [len(stage) for stage in grown.stages] == [blocks] * 4
        assert grown.params == 150_784 + more * (sum(added) + norms)
        assert grown.macs() == 5_603_328 + more * sum(
            c * side**2 for c, side in zip(added, sides, strict=True)
        )
        again = Architecture.seed(
            widths, resolution=32, activation="leaky_relu", blocks_per_stage=blocks
        )
        assert again == grown  # from scratch it is the same network
    assert (grown.params, grown.macs()) == (761_376, 32_440_320)
    for architecture in (seed, grown):
        network = EvolvableCNN(architecture)
        assert count_params(network) == architecture.params
        assert count_macs(network, 32) == architecture.macs()


def test_stages_end_with_their_pooling() -> None:
    def shape(**options: Any) -> list[tuple[bool, bool]]:
        seed = Architecture.seed([4, 5], resolution=16, blocks_per_stage=2, **options)
        assert seed.channels == (4, 4, 5, 5)
        return [(block.pool, block.residual) for block in seed.blocks]

    assert shape() == [(False, False), (True, True)] * 2
    assert shape(residual=True) == [(False, True), (True, True)] * 2
    assert shape(pooled_blocks=1) == [(False, False), (True, True), (False, False), (False, True)]
    assert shape(pooling=False) == [(False, False), (False, True)] * 2
    assert Architecture.seed([4, 4], resolution=8, pooling=False).stages == ((0, 1),)


@pytest.mark.parametrize(
    ("resolution", "sides"),
    [
        (84, (84, 42, 21, 10, 5, 2, 2, 2)),
        (32, (32, 16, 8, 4, 2, 2, 2, 2)),
        (3, (3,) * 8),
        (1, (1,) * 8),
    ],
)
def test_pooling_stops_on_small_maps(resolution: int, sides: tuple[int, ...]) -> None:
    assert Architecture.seed([4] * 7, resolution=resolution).sides() == sides
    assert Architecture.seed([4] * 7, resolution=resolution, pooling=False).sides()[-1] == (
        resolution
    )


def test_a_map_is_pooled_only_if_two_pixels_remain() -> None:
    assert [pools(side) for side in range(1, 6)] == [False, False, False, True, True]


def test_embedding_length() -> None:
    average = Architecture.seed([4, 6], resolution=32)
    flat = Architecture.seed([4, 6], resolution=32, embedding="flatten")
    assert (average.positions, average.features) == (1, 6)
    assert (flat.positions, flat.features) == (64, 6 * 64)


@pytest.mark.parametrize("resolution", [12, 20, 33])
def test_counts_hold_at_any_resolution(resolution: int) -> None:
    network = EvolvableCNN(MIXED)
    assert MIXED.params == count_params(network)
    assert MIXED.macs(resolution) == count_macs(network, resolution)


def test_json_rebuilds_the_same_network() -> None:
    again = Architecture.from_dict(json.loads(json.dumps(MIXED.to_dict())))
    assert again == MIXED
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in EvolvableCNN(a).state_dict().items()}
        for a in (MIXED, again)
    ]
    assert shapes[0] == shapes[1]


def test_with_block_changes_one_block_of_a_copy() -> None:
    changed = MIXED.with_block(1, channels=9)
    assert changed.channels == (5, 9, 4, 6)
    assert changed.blocks[1].residual
    assert MIXED.channels == (5, 7, 4, 6)


def test_impossible_descriptions_are_not_built() -> None:
    with pytest.raises(AssertionError):
        Block(0)
    with pytest.raises(AssertionError):
        Block(4, routed=True)
    with pytest.raises(AssertionError):
        Architecture((), resolution=32)
