from __future__ import annotations

import json

import pytest

from sseg_nase.hardware.complexity import count_macs, count_params
from sseg_nase.nets.architecture import Architecture, Block, pools
from sseg_nase.nets.evolvable import EvolvableCNN

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
