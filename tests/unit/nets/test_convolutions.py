"""Convolutions of our own: their gradients, and which convolutions become such."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sseg_nase.config.compose import load
from sseg_nase.nets import convolutions, ops
from sseg_nase.nets.convolutions import AT_ONCE, PointwiseConv2d, for_cpu
from sseg_nase.stages import seed_backbone


@pytest.mark.parametrize("inside", [1, 3, 6, 15, 16, 40])
@pytest.mark.parametrize(("outside", "groups"), [(5, 1), (16, 1), (0, 0)])
@pytest.mark.parametrize(("side", "stride"), [(8, 2), (7, 2), (9, 3)])
def test_gradients_are_those_of_the_formula(
    inside: int, outside: int, groups: int, side: int, stride: int
) -> None:
    outside, groups = outside or inside, groups or inside
    torch.manual_seed(0)
    conv = for_cpu(nn.Conv2d(inside, outside, 1, stride, groups=groups))
    conv.to(memory_format=torch.channels_last)
    x = torch.randn(4, inside, side, side).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    y = conv(x)
    g = torch.randn_like(y)
    y.backward(g)
    with torch.no_grad():
        weight = torch.zeros(outside, inside)
        share, per = inside // groups, outside // groups
        for out in range(outside):
            begin = out // per * share
            weight[out, begin : begin + share] = conv.weight[out, :, 0, 0]  # type: ignore[index]
        read = x[:, :, ::stride, ::stride]
        wanted = torch.zeros_like(x)
        wanted[:, :, ::stride, ::stride] = torch.einsum("bohw,oi->bihw", g, weight)
        full = torch.einsum("bohw,bihw->oi", g, read)
        mine = torch.stack(
            [full[o, o // per * share : o // per * share + share] for o in range(outside)]
        )
        assert x.grad is not None
        torch.testing.assert_close(x.grad, wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(conv.weight.grad[:, :, 0, 0], mine, rtol=1e-4, atol=1e-4)  # type: ignore[index]
        torch.testing.assert_close(conv(x), y, rtol=1e-5, atol=1e-5)


def test_what_is_skipped_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, ...]] = []
    conv2d = convolutions.F.conv2d

    def told(x: torch.Tensor, *given: object, **more: object) -> torch.Tensor:
        read.append(tuple(x.shape))
        return conv2d(x, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(convolutions.F, "conv2d", told)
    few, many = (ops.build_operation("skip_connect", n, n, 2) for n in (AT_ONCE - 1, AT_ONCE))
    for module, channels in ((few, AT_ONCE - 1), (many, AT_ONCE)):
        module(torch.randn(2, channels, 8, 8, requires_grad=True))
    with torch.no_grad():
        few(torch.randn(2, AT_ONCE - 1, 8, 8))
    skipped, whole = (2, AT_ONCE - 1, 4, 4), (2, AT_ONCE - 1, 8, 8)
    assert read == [skipped] * 2 + [(2, AT_ONCE, 8, 8)] * 2 + [whole] * 2


def test_all_such_convolutions_are_replaced() -> None:
    residual = ops.build_operation("basic_block", 6, 10, 2)
    resnet = seed_backbone(load(["backbone=resnet18", "evolution=none", "sparsity=none"]))
    for network in (residual, resnet):
        strided = [
            each
            for each in network.modules()
            if isinstance(each, nn.Conv2d) and each.kernel_size == (1, 1) != each.stride
        ]
        assert strided
        assert all(isinstance(each, PointwiseConv2d) for each in strided)
    padded = nn.Conv2d(3, 3, 1, 2, padding=1)
    assert type(for_cpu(padded)) is nn.Conv2d
