"""The table of operations: shapes, counts, and one of one's own from a file."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sseg_nase.errors import UserError
from sseg_nase.hardware.complexity import count_macs, count_params
from sseg_nase.nets import fused, ops
from sseg_nase.nets.building import build, described
from sseg_nase.nets.fused import norm_act_pool
from sseg_nase.nets.plan import IMAGE, Plan
from sseg_nase.nets.searched import SearchedArchitecture

NORMED = ("norm", "conv", "reduction_block", "basic_block", "shuffle_unit", "units")
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


def trained(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What it gives in both modes, what it keeps, and every gradient."""
    x = x.clone(memory_format=torch.channels_last).requires_grad_()
    for weight in module.parameters():
        weight.grad = None
    y = module.train()(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    grads = [each.grad for each in (x, *module.parameters()) if each.grad is not None]
    with torch.no_grad():
        return [y.detach(), module.eval()(x), *module.buffers(), *grads]


@pytest.mark.parametrize("name", sorted({*SEARCHED, *NORMED} - {"none", "zero"}))
@pytest.mark.parametrize(("inside", "outside", "stride"), [(6, 6, 1), (6, 10, 2)])
def test_in_one_go_is_what_torch_does_one_after_the_other(
    name: str, inside: int, outside: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "norm":
        outside, stride = inside, 1
    torch.manual_seed(0)
    module = ops.build_operation(name, inside, outside, stride)
    for norm in (each for each in module.modules() if isinstance(each, nn.BatchNorm2d)):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    module.to(memory_format=torch.channels_last)
    x = torch.randn(8, inside, 7, 7)
    plain = copy.deepcopy(module)
    found = trained(module, x)
    monkeypatch.setattr(fused, "_fits", lambda *given: False)
    wanted = trained(plain, x)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max() + 1e-4


@pytest.mark.parametrize(
    ("name", "options", "calls"),
    [
        ("nor_conv_3x3", {}, []),  # a norm alone is torch's
        ("irb_e3", {}, ["relu", "relu", None]),
        ("conv", {"activation": "leaky_relu"}, ["leaky_relu"]),
        ("conv", {"activation": "silu"}, ["silu"]),
        ("conv", {"activation": "elu"}, []),
        ("basic_block", {}, ["relu", "relu"]),
        ("basic_block", {"activation": "gelu"}, [None]),
    ],
)
def test_a_norm_takes_with_it_what_follows(
    name: str, options: dict[str, str], calls: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []

    def told_of(norm: nn.Module, x: torch.Tensor, **given: Any) -> torch.Tensor:
        told.append(given)
        return norm_act_pool(norm, x, **given)

    monkeypatch.setattr(ops, "norm_act_pool", told_of)
    module = ops.build_operation(name, 6, 6, 1, options)
    x = torch.randn(4, 6, 8, 8)
    module(x)
    assert [each.get("activation") for each in told] == calls
    assert all(each.get("negative_slope", 0.1) == 0.1 for each in told)  # of this table's
    added = isinstance(module, ops.Residual)
    assert [each.get("shortcut") is not None for each in told][-1:] == [added][: len(told)]


def test_who_listens_to_an_activation_is_told() -> None:
    module = ops.build_operation("basic_block", 6, 6, 1).to(memory_format=torch.channels_last)
    heard: list[str] = []
    for place, each in module.named_modules():
        if isinstance(each, (nn.ReLU, ops.Layers)):
            each.register_forward_hook(lambda *given, place=place: heard.append(place))
    module(torch.randn(4, 6, 8, 8).contiguous(memory_format=torch.channels_last))
    assert sorted(heard) == ["activation", "body", "body.2", "shortcut"][: len(heard)]
    assert {"activation", "body", "body.2"} <= set(heard)


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
