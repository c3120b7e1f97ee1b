"""The table of operations: shapes, counts, and one of one's own from a file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from sseg_nase.errors import UserError
from sseg_nase.hardware.complexity import count_macs, count_params
from sseg_nase.nets import ops
from sseg_nase.nets.building import build, described
from sseg_nase.nets.plan import IMAGE, Plan
from sseg_nase.nets.searched import SearchedArchitecture

SEARCHED = {*ops.NB201, *ops.DARTS, *ops.ENAS_MACRO, *ops.PNAS, *ops.MOBILE, *ops.TINY}


@pytest.mark.parametrize("name", sorted(SEARCHED))
@pytest.mark.parametrize(("inside", "outside", "stride"), [(6, 6, 1), (5, 8, 1), (6, 10, 2)])
def test_every_operation_takes_every_shape(
    name: str, inside: int, outside: int, stride: int
) -> None:
    module = ops.build_operation(name, inside, outside, stride)
    for side in (8, 7):
        shape = module(torch.randn(2, inside, side, side)).shape
        assert shape == (2, outside, -(-side // stride), -(-side // stride))
        counted = ops.cost(name, inside, outside, stride, side)
        assert counted.params == count_params(module)
        assert (counted.channels, counted.side) == (outside, shape[-1])
        assert counted.macs == count_macs(module, side, inside)


def test_known_costs() -> None:
    assert ops.cost("nor_conv_3x3", 16, 16, 1, 32).macs == 16 * 16 * 9 * 32**2
    assert ops.cost("sep_conv_3x3", 8, 8, 1, 8).params == 2 * (8 * 9 + 8 * 8 + 16)
    assert ops.cost("avg_pool_3x3", 8, 8, 1, 8).params == 0
    assert ops.cost("mb6_5", 8, 8, 1, 8).params == 8 * 48 * 2 + 48 * 25 + 2 * (48 + 48 + 8)


def test_squeezing_keeps_four_channels() -> None:
    assert ops.SqueezeExcite(5).down.out_channels == 4


def test_a_skip_of_the_same_shape_is_the_input() -> None:
    x = torch.randn(2, 4, 6, 6)
    assert ops.build_operation("skip_connect", 4, 4)(x) is x
    pooled = ops.build_operation("avg_pool_3x3", 1, 1)(torch.ones(1, 1, 4, 4))
    assert torch.equal(pooled, torch.ones(1, 1, 4, 4))  # of real pixels only


def test_an_operation_of_ones_own_is_one_entry(tmp_path: Path) -> None:
    file = tmp_path / "gates.py"
    file.write_text(
        "from torch import nn\n"
        "from sseg_nase.nets.ops import register\n\n"
        "@register('gated_1x1')\n"
        "def gated(inside, outside, stride):\n"
        "    return nn.Sequential(nn.Conv2d(inside, 2 * outside, 1, stride), nn.GLU(1))\n"
    )
    spec = importlib.util.spec_from_file_location("gates", file)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    try:
        plan = Plan()
        plan.add("stem", "gated_1x1", IMAGE, 4, 2)
        description = SearchedArchitecture("searched", 8, 3, tuple(plan.nodes))
        assert description.params == 3 * 8 + 8
        assert build(described(description.to_dict()))(torch.randn(2, 3, 8, 8)).shape == (2, 4)
        with pytest.raises(UserError, match="registered already"):
            ops.register("gated_1x1", ops.conv)
    finally:
        del ops.OPERATIONS["gated_1x1"]
    with pytest.raises(UserError, match="is registered by importing its file"):
        described(description.to_dict())
