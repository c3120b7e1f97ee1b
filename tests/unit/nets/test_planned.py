"""Families that are made of operations: counted before weights exist, refused where unfit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision

from sseg_nase.config.compose import load
from sseg_nase.config.groups.backbone import Planned
from sseg_nase.config.options import names_with
from sseg_nase.errors import UserError
from sseg_nase.hardware.complexity import count_macs, count_params
from sseg_nase.nets.building import build, configured
from sseg_nase.nets.description import Description
from sseg_nase.nets.families.shufflenetv2 import _pieces
from sseg_nase.nets.mutation import carry_network
from sseg_nase.nets.mutations.prune import prune
from sseg_nase.nets.mutations.widen import widen
from sseg_nase.nets.plan import IMAGE, Plan
from sseg_nase.nets.searched import SearchedArchitecture

STILL = ["evolution=none", "sparsity=none"]
# Channels of every axis that a network as in conf/ has: what is held fast is not among them.
AXES = {
    "cnn": 3,
    "simple_vit": 4,
    "mlp": 2,
    "enhanced_mlp": 4,
    "mlp_mixer": 8,
    "resnet_small": 12,
    "mobilenet": 14,
    "efficientnet": 21,
    "densenet": 27,
    "shufflenetv2": 34,
}


def composed(name: str, *overrides: str) -> Description:
    config = load([f"backbone={name}", *STILL, *overrides])
    return configured(config.backbone, config.dataset.image_size)


def test_all_of_them_are_here() -> None:
    assert set(AXES) == set(names_with(Planned))


@pytest.mark.parametrize("name", AXES)
def test_counts_are_those_of_torch_and_the_axes_mutate_exactly(name: str) -> None:
    size, channels = 28, 1
    before = composed(name, f"dataset.image_size={size}", f"dataset.channels={channels}")
    assert len(before.axes) == AXES[name]
    network = build(before, generator=torch.Generator().manual_seed(0))
    assert before.params == count_params(network)
    assert before.macs() == count_macs(network, size, channels)
    images = torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(1))
    network.train()(images)  # statistics that are not the first ones
    network.eval()

    kept = [range(0, width, 2) for width in before.axes.values()]
    pruned = prune(before, kept)
    smaller = build(pruned.after)
    smaller.load_state_dict(carry_network(pruned, network.state_dict()))
    masked, found = network.masked(images, pruned.kept), smaller.eval()(images)
    torch.testing.assert_close(found, masked[:, list(pruned.features.index)], rtol=1e-5, atol=1e-5)
    assert pruned.after.params == count_params(smaller) < before.params

    wide = widen(before, None, ratio=1.5)
    larger = build(wide.after).double()
    larger.load_state_dict(carry_network(wide, network.double().state_dict()))
    found, expected = larger.eval()(images.double()), network(images.double())
    expected = expected[:, list(wide.features.index)]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert wide.after.macs() == count_macs(larger.float(), size, channels) > before.macs()


@pytest.mark.parametrize(
    ("op", "options", "inside"),
    [
        ("mlp_block", {"wide": 3}, {"norm.wide": 3}),
        ("mixer_block", {"side": 1, "mixed": 2, "wide": 3}, {"norm.mixed": 2, "norm.wide": 3}),
        ("shuffle_unit", {}, {"norm.wide": 2}),
        ("place_norm", {}, {}),
    ],
)
def test_what_mixes_channels_holds_them_fast(
    op: str, options: dict[str, int], inside: dict[str, int]
) -> None:
    """A layer norm is over all channels: those before it cannot change, nor those behind it."""
    plan = Plan()
    last = plan.add("before", "conv", IMAGE, 4, 8)
    last = plan.add("norm", op, last, 4, **options)
    plan.add("behind", "conv", last, 5)
    found = SearchedArchitecture("searched", 8, 3, nodes=tuple(plan.nodes))
    assert found.axes == {**inside, "behind": 5}


def test_shufflenetv2_has_the_parameters_of_torchvisions() -> None:
    theirs = torchvision.models.ShuffleNetV2([2, 4, 2], [24, 48, 96, 192, 256], num_classes=1)
    expected = count_params(theirs) - count_params(theirs.fc)
    assert composed("shufflenetv2").params == expected


def test_pieces_are_what_splits_and_shuffles_keep_together() -> None:
    """By chunk and shuffle of numbered channels."""
    half, depth = 6, 4
    pieces = _pieces(half, depth)
    taken: dict[int, list[int]] = {}
    x = torch.arange(2 * half).view(2, half).t().flatten()  # of the first unit, shuffled
    for unit in range(1, depth):
        passed, second = x.chunk(2)
        taken[unit] = second.tolist()
        made = torch.arange(half) + (unit + 1) * half
        x = torch.stack((passed, made)).t().flatten()
    taken[depth] = x.tolist()
    for number, source in enumerate(("left", 0, 1, 2, 3)):
        at = number * half
        for unit, wide in pieces[source]:
            assert set(range(at, at + wide)) <= set(taken[unit]), (source, unit)
            at += wide
        assert at == (number + 1) * half


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("mobilenet", ["backbone.depths=[1,2]"], "one number for every stage is needed"),
        ("resnet_small", ["backbone.channels=[]"], "one number for every stage is needed"),
        ("efficientnet", ["backbone.squeeze=2"], "backbone.squeeze"),
        ("shufflenetv2", ["backbone.channels=[1,8,8]"], "backbone.channels"),
        ("densenet", ["backbone.depths=[]"], "at least one block is needed"),
        ("densenet", ["backbone.compression=0"], "backbone.compression"),
        ("mlp", ["backbone.channels=[]"], "at least one layer is needed"),
        ("mlp", ["backbone.activation=tanh"], "backbone.activation=tanh"),
        ("cnn", ["backbone.skips=[true]"], "one value for every layer is needed"),
        ("simple_vit", ["backbone.heads=5"], "must be a multiple of 5 heads"),
        ("simple_vit", ["backbone.width=6"], "must be a multiple of 4"),
        ("simple_vit", ["backbone.patch_size=5"], "must divide dataset.image_size=32"),
        ("mlp_mixer", ["backbone.patch_size=5"], "must divide dataset.image_size=32"),
        ("mlp_mixer", ["pretrain.image_sizes=[16@0,32@0.5]"], "embeds images of one size only"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        composed(name, *overrides)


@pytest.mark.parametrize("name", sorted(set(AXES) - {"mlp_mixer", "simple_vit"}))
def test_any_size_of_images_is_described(name: str) -> None:
    config = load([f"backbone={name}", *STILL])
    for size in (8, 9, 28, 64):
        found: Any = configured(config.backbone, size)
        assert found.macs() > 0
        assert found.shapes()[-1].side in (1, *range(4, size + 1)), size  # never below 4 by halving
