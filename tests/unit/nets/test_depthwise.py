"""Depthwise convolutions: their gradients, and where the kernel is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sseg_nase.config.compose import load
from sseg_nase.nets import depthwise, ops
from sseg_nase.nets.convolutions import for_cpu
from sseg_nase.nets.depthwise import DepthwiseConv2d
from sseg_nase.nets.fused import one_after_the_other
from sseg_nase.stages import seed_backbone
from tests.support.graphs import nodes

OWN = "_DepthwiseBackward"


def numbers(*shape: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return drawn.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else drawn


def conv_of(channels: int, side: Any, *given: Any, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, channels, side, *given, groups=channels, bias=False, **more)
    return for_cpu(conv)


def slowly(x: Tensor, g: Tensor, conv: nn.Conv2d) -> Tensor:
    """∂w, as a sum over all places that a weight is laid on."""
    (high, wide), (down, right) = conv.kernel_size, conv.dilation
    top, left = (int(one) for one in conv.padding)
    padded = F.pad(x.double(), (left, left, top, top))
    found = torch.zeros(x.shape[1], 1, high, wide, dtype=torch.float64)
    P, Q = g.shape[2:]
    for i in range(high):
        for j in range(wide):
            rows = torch.arange(P) * conv.stride[0] + i * down
            columns = torch.arange(Q) * conv.stride[1] + j * right
            found[:, 0, i, j] = (padded[:, :, rows][:, :, :, columns] * g).sum(dim=(0, 2, 3))
    return found


# Channels, images, height, width, sides, stride, padding, dilation: fewer channels than lanes, as
# many, and some that blocks do not divide; maps smaller than their kernels, and of several parts.
CASES = [
    (16, 3, 7, 9, 3, 1, 1, 1),
    (20, 70, 8, 9, 3, 1, 1, 1),
    (3, 2, 1, 1, 3, 1, 1, 1),
    (33, 4, 2, 1, 3, 1, 1, 1),
    (7, 3, 6, 5, 3, 1, 0, 1),
    (20, 5, 8, 8, 5, 1, 2, 1),
    (3, 2, 1, 1, 5, 1, 2, 1),
    (40, 9, 2, 3, 5, 2, 2, 1),
    (33, 70, 9, 8, 3, 2, 1, 1),
    (17, 4, 11, 13, 5, 1, 4, 2),
    (6, 4, 10, 10, 3, 2, 2, 2),
    (2, 300, 6, 5, 3, 3, 0, 1),
    (18, 3, 12, 5, (1, 7), (2, 1), (0, 3), 1),
    (5, 2, 9, 9, (5, 2), (1, 3), (1, 4), (2, 1)),
    (5, 2, 9, 8, (3, 2), 1, (1, 4), (2, 3)),
    (4, 2, 6, 7, 3, 1, 5, 2),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_the_formula(case: tuple[Any, ...]) -> None:
    channels, images, height, width, *how = case
    conv = conv_of(channels, *how)
    assert isinstance(conv, DepthwiseConv2d)
    x = numbers(images, channels, height, width, seed=1).requires_grad_()
    out = conv(x)
    assert out.grad_fn is not None
    assert out.grad_fn.name() == OWN
    g = numbers(*out.shape, seed=2)
    out.backward(g)
    wanted = slowly(x.detach(), g, conv)
    assert conv.weight.grad is not None
    assert x.grad is not None
    size = wanted.norm() + 1e-3
    assert (conv.weight.grad.double() - wanted).norm() <= 1e-6 * size
    exact = nn.Conv2d.forward(conv.double(), x.detach().double().requires_grad_())
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
    given = x.detach().double().requires_grad_()
    nn.Conv2d.forward(conv.double(), given).backward(g.double())
    torch.testing.assert_close(x.grad.double(), given.grad, rtol=1e-5, atol=1e-5)


def test_the_gradients_gradient_is_torchs() -> None:
    conv = conv_of(5, 3, 2, 1)
    found = []
    for forward in (type(conv).forward, nn.Conv2d.forward):
        x = numbers(3, 5, 7, 7, seed=1).requires_grad_()
        out = forward(conv, x)
        upstream = numbers(*out.shape, seed=2).requires_grad_()
        first = torch.autograd.grad(out, (x, conv.weight), upstream, create_graph=True)
        total = torch.stack([one.square().sum() for one in first]).sum()
        found.append([*first, *torch.autograd.grad(total, (x, conv.weight, upstream))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_threads_change_nothing() -> None:
    conv = conv_of(36, 5, 1, 2)
    x = numbers(50, 36, 12, 12, seed=1)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            out = conv(x)
            found.append(torch.autograd.grad(out, conv.weight, numbers(*out.shape, seed=2))[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_only_what_is_asked_for_gets_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = conv_of(4, 3, 1, 1)
    asked: list[str] = []
    own, of_torch = depthwise.weight_gradient, torch.ops.aten.convolution_backward

    def told(*given: Any) -> Any:
        asked.append("w")
        return own(*given)

    def told_of_torch(*given: Any) -> Any:
        asked.append("x")
        return of_torch(*given)

    monkeypatch.setattr(depthwise, "weight_gradient", told)
    monkeypatch.setattr(torch.ops.aten, "convolution_backward", told_of_torch)
    leaf, scale = numbers(2, 4, 5, 5), torch.ones((), requires_grad=True)
    x, weight = leaf.clone().requires_grad_(), conv.weight
    wanted = [
        (lambda: conv(leaf).sum().backward(), "w"),
        (lambda: conv(x).sum().backward(), "wx"),
        (lambda: conv(x).sum().backward(inputs=[weight]), "w"),
        (lambda: conv(x).sum().backward(inputs=[x]), "x"),
        (lambda: torch.autograd.grad(conv(x).sum(), weight), "w"),
        (lambda: torch.autograd.grad(conv(scale * leaf).sum(), scale), "x"),
        (lambda: torch.autograd.grad(conv(scale * leaf).sum(), (scale, weight)), "wx"),
        (lambda: torch.autograd.grad((scale * conv(x)).sum(), scale), ""),
    ]
    for differentiate, of in wanted:
        asked.clear()
        differentiate()
        assert "".join(sorted(asked)) == of


def own(conv: nn.Module, x: Tensor) -> bool:
    out = conv(x)
    return out.grad_fn is not None and out.grad_fn.name() == OWN


def test_what_is_not_written_here_is_torchs() -> None:
    x = numbers(2, 4, 6, 6)
    assert own(conv_of(4, 3), x)
    assert not own(conv_of(4, 3), x.contiguous())
    assert not own(conv_of(4, 3).double(), x.double())
    assert not own(conv_of(4, 3).requires_grad_(False), x.clone().requires_grad_())
    assert not own(conv_of(4, 3, padding="same"), x)
    assert not own(conv_of(4, 3, padding=1, padding_mode="reflect"), x)
    with torch.no_grad():
        assert not own(conv_of(4, 3), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not own(conv_of(4, 3), x)
        conv_of(4, 3)(x).sum().backward()
    with one_after_the_other():
        assert not own(conv_of(4, 3), x)
    conv = conv_of(4, 3)
    slopes = torch.func.grad(
        lambda weight: torch.func.functional_call(conv, {"weight": weight}, x).square().sum()
    )(conv.weight.detach())
    assert slopes.shape == conv.weight.shape
    for other in (
        nn.Conv2d(4, 4, 3, groups=2, bias=False),
        nn.Conv2d(4, 8, 3, groups=4, bias=False),
        nn.Conv2d(4, 4, 1, groups=4, bias=False),
        nn.Conv2d(1, 1, 3, bias=False),
    ):
        assert type(for_cpu(other)) is nn.Conv2d
    biased = for_cpu(nn.Conv2d(4, 4, 3, groups=4))
    assert type(biased) is DepthwiseConv2d
    assert not own(biased, x)


@pytest.mark.parametrize(
    "name", ["mobilenet_v2_035", "mobilenet_v3_small", "efficientnet_b0_narrow"]
)
def test_networks_for_phones_have_them_and_norms_with_their_activations(name: str) -> None:
    config = load([f"backbone={name}", "evolution=none", "sparsity=none"])
    network = seed_backbone(config).to(memory_format=torch.channels_last)
    channels, side = config.backbone.in_channels, config.dataset.image_size
    names = nodes(network(numbers(2, channels, side, side)))
    convs = [each for each in network.modules() if isinstance(each, nn.Conv2d)]
    grouped = [each for each in convs if each.groups > 1]
    assert names.count(OWN) == len(grouped) > 10
    assert names.count("_FusedBackward") > len(grouped)
    of_torch = {"SiluBackward0": 0, "HardswishBackward0": 0, "HardtanhBackward0": 0}
    if name == "efficientnet_b0_narrow":  # inside of squeeze and excitation, where there is no norm
        of_torch["SiluBackward0"] = len(grouped)
    assert {each: names.count(each) for each in of_torch} == of_torch


def test_operations_of_searches_have_them() -> None:
    module = ops.build_operation("dil_conv_5x5", 8, 8)
    assert any(isinstance(each, DepthwiseConv2d) for each in module.modules())
