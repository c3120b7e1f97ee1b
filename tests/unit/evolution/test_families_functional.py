"""Networks that are no chains of blocks, widened, masked and pruned without a training loop."""

from __future__ import annotations

import copy
from random import Random

import pytest
import torch
from torch import Tensor, nn

from sseg_nase.errors import UserError
from sseg_nase.evolution.functional import grow, prune, widen
from sseg_nase.evolution.replay import replay
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.families.resnet12.network import ResNet12Architecture
from sseg_nase.nets.families.vit.network import ViTArchitecture
from sseg_nase.nets.family import FamilyArchitecture
from sseg_nase.spaces import Tiny
from sseg_nase.sparsity.importance import channel_importance, makers
from sseg_nase.sparsity.router import SparseRouter

RESNET = ResNet12Architecture("resnet12_quarter", 8, 3, (4, 6))
VIT = ViTArchitecture("vit_small", 8, 3, 4, hidden=8, layers=2, heads=2, mlp=6)


def network(architecture: FamilyArchitecture) -> Backbone:
    built = architecture.network(torch.Generator().manual_seed(1)).double()
    for part in built.modules():
        if isinstance(part, nn.BatchNorm2d):  # as a trained network could have them
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.running_mean, -0.5, 0.5)
    return built.eval()


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(2)).double()


def losses(net: Backbone, count: int = 2) -> list[Tensor]:
    return [net(images() + number).square().mean() for number in range(count)]


@pytest.mark.parametrize("axis", ["blocks.0", "blocks.1.conv2", 4])
def test_one_axis_is_widened_with_all_that_goes_along(axis: str | int) -> None:
    net = network(RESNET)
    teacher, optimizer = copy.deepcopy(net), torch.optim.Adam(net.parameters(), lr=1e-3)
    losses(net)[0].backward()
    optimizer.step()
    wide = widen(net, axis, channels=9, optimizer=optimizer, teacher=teacher, images=images())
    name = axis if isinstance(axis, str) else list(RESNET.axes)[axis]
    assert wide.network.architecture == RESNET.with_widths({name: 9})
    assert wide.record.target["axis"] == name
    assert wide.record.function_delta == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(wide.network(images()), net(images()))
    assert wide.teacher is not None
    torch.testing.assert_close(wide.teacher(images()), teacher(images()))
    assert wide.optimizer is not None
    moments = {id(p): s["exp_avg"].shape for p, s in wide.optimizer.state.items()}
    assert all(moments[id(p)] == p.shape for p in wide.network.parameters())
    kept = [[0, 1] for _ in wide.network.architecture.axes]
    small = prune(wide.network, kept)
    assert set(small.network.architecture.axes.values()) == {2}
    records = [each.record.to_dict() for each in (wide, small)]
    assert replay(RESNET, records)[-1] == small.network.architecture


@pytest.mark.parametrize("architecture", [RESNET, VIT], ids=lambda a: a.name)
def test_what_is_masked_is_what_is_pruned(architecture: FamilyArchitecture) -> None:
    net = network(architecture)
    router = SparseRouter(0.4, min_channels=1)
    masks = router.update_masks(net, losses(net))
    assert [len(mask) for mask in masks.positive] == list(architecture.axes.values())
    masked = router.apply_sparse_forward(net, images())
    before = router.get_statistics()
    mutation = router.prune_permanently(net)
    assert net.architecture == mutation.after
    assert before.params_after == sum(p.numel() for p in net.parameters())
    columns = list(mutation.features.index)
    torch.testing.assert_close(net(images()), masked[:, columns])
    assert not torch.equal(masked, network(architecture)(images()))


def test_importance_is_summed_over_all_that_makes_an_axis() -> None:
    net = network(RESNET)
    (loss,) = losses(net, 1)
    scores = dict(zip(RESNET.axes, channel_importance(net, [loss]), strict=True))
    parameters = dict(net.named_parameters())
    parts = ("conv3.weight", "norm3.weight", "norm3.bias", "shortcut_conv.weight",
             "shortcut_norm.weight", "shortcut_norm.bias")  # fmt: skip
    expected = torch.zeros(4)
    for part, gradient in zip(
        parts,
        torch.autograd.grad(losses(net, 1)[0], [parameters[f"blocks.0.{p}"] for p in parts]),
        strict=True,
    ):
        taken = (parameters[f"blocks.0.{part}"] * gradient).abs().detach().float()
        expected += taken.flatten(1).sum(1) if taken.dim() > 1 else taken
    torch.testing.assert_close(scores["blocks.0"], expected)
    assert {id(p) for p in makers(net)} == {id(p) for p in net.parameters()}


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (lambda net: grow(net), "no rule for more blocks in resnet12_quarter; it can be widened"),
        (
            lambda net: widen(net, "blocks.0.conv9"),
            "'blocks.0.conv9': accepted blocks.0.conv1",
        ),
        (lambda net: widen(net, 6), "block 6: accepted 0 to 5"),
        (lambda net: widen(net, "blocks.0", channels=4), "axis blocks.0 to 4 channels: it has 4"),
        (lambda net: widen(net, None, channels=[4]), "all axes .* one width per axis, 6 in all"),
        (lambda net: prune(net, [[0]]), "PRUNE of 6 axes: name the channels to keep"),
        (lambda net: prune(net, [[0], [0], [4], [0], [0], [0]]), "PRUNE axis blocks.0: .* 0 to 3"),
    ],
)
def test_mistakes_name_the_axis(mistake: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        mistake(network(RESNET))  # type: ignore[operator]


@pytest.mark.parametrize("seed", [0, 3])
def test_a_network_of_cells_is_widened_as_a_whole(seed: int) -> None:
    space = Tiny(cells=3, width=5, resolution=8)
    net = network(space.describe(space.sample(Random(seed))))
    wide = widen(net, None, ratio=1.5, images=images())
    assert wide.record.function_delta == pytest.approx(0, abs=1e-12)
    before, after = net.architecture.axes, wide.network.architecture.axes
    assert after == {name: max(width + 1, round(1.5 * width)) for name, width in before.items()}
    assert wide.network.architecture.params > net.architecture.params
