"""Networks that do not evolve: counted as published, equal to their references."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from sseg_nase.config.compose import load
from sseg_nase.config.groups.backbone import BackboneConfig, Chain
from sseg_nase.config.options import names_with, options_of
from sseg_nase.errors import UserError
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.building import build, configured, described, family_of
from sseg_nase.nets.description import Description
from sseg_nase.nets.families.resnet.network import ResNetArchitecture
from sseg_nase.nets.families.resnet12.network import ResNet12Architecture
from sseg_nase.nets.families.vit.network import ViTArchitecture
from sseg_nase.nets.family import FamilyArchitecture
from sseg_nase.nets.mutations.grow import grow
from sseg_nase.nets.searched import SearchedArchitecture
from sseg_nase.spaces import Tiny

QUARTER = (16, 40, 80, 160)
STILL = ["evolution=none", "sparsity=none"]


def searched() -> SearchedArchitecture:
    """Of AutoSSL-Tiny's operations, all but `zero`."""
    space = Tiny(cells=2, resolution=16)
    operations = iter([*space.operations[:-1], "ds_conv", "irb_e3"])
    point = {
        c.name: c.values[-1] if "inputs" in c.name else next(operations) for c in space.choices
    }
    description = space.describe(point)
    assert isinstance(description, SearchedArchitecture)
    return description


SMALL: list[FamilyArchitecture] = [
    ResNet12Architecture("resnet12_quarter", 16, 3, (4, 5, 6, 7)),
    ResNetArchitecture("resnet18", 16, 1, "small"),
    ViTArchitecture("vit_small", 16, 3, patch_size=8, hidden=12, layers=2, heads=3, mlp=16),
    searched(),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(description: Description, count: int = 4) -> Tensor:
    shape = (count, description.in_channels, description.resolution, description.resolution)
    return torch.randn(shape, generator=generator(1))


def composed(name: str, *overrides: str) -> Description:
    """What `backbone=name` describes."""
    needed = STILL if name not in names_with(Chain) else ["evolution.max_channels=512"]
    config = load([f"backbone={name}", *needed, *overrides])
    return configured(config.backbone, config.dataset.image_size)


@pytest.mark.parametrize(
    ("name", "size", "params", "macs"),
    [
        ("seed_wide", 32, 0.1508e6, 5.60e6),
        ("conv4", 32, 0.113e6, 14e6),
        ("conv4", 84, 0.113e6, 97e6),
        ("conv4_wide", 32, 0.740e6, 42e6),
        ("conv4_wide", 84, 0.740e6, 284e6),
        ("resnet12", 84, 12.4e6, 3.5e9),
        ("resnet12_quarter", 32, 0.779e6, 33e6),
        ("resnet12_quarter", 84, 0.779e6, 222e6),
        # torchvision's documentation, less the classifier (1000 classes: 0.513 M and 2.049 M).
        ("resnet18", 224, 11.690e6 - 0.513e6, 1.814e9 - 0.0005e9),
        ("resnet34", 224, 21.798e6 - 0.513e6, 3.664e9 - 0.0005e9),
        ("resnet50", 224, 25.557e6 - 2.049e6, 4.089e9 - 0.002e9),
        ("vit_small", 224, 22.05e6 - 0.385e6, 4.6e9),
    ],
)
def test_params_and_macs_are_the_published_ones(
    name: str, size: int, params: float, macs: float
) -> None:
    description = composed(name, f"dataset.image_size={size}")
    assert description.params == pytest.approx(params, rel=5e-3)
    assert description.macs() == pytest.approx(macs, rel=2e-2)


@pytest.mark.parametrize(
    ("channels", "size"),
    [
        (3, 32),
        (1, 28),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in [(3, 84), (1, 84), (3, 28)]),
    ],
)
@pytest.mark.parametrize("name", names_with(BackboneConfig))
def test_images_become_embeddings(name: str, size: int, channels: int) -> None:
    more = ["backbone.patch_size=4"] if name == "vit_small" else []
    sizes = [f"dataset.image_size={size}", f"dataset.channels={channels}"]
    if name == "sketch_cnn":
        more = ["evolution=none"]  # it has more parameters than may be grown to
    description = composed(name, *sizes, *more)
    network = build(description, generator=generator())
    assert sum(p.numel() for p in network.parameters()) == description.params
    with torch.no_grad():
        assert network.eval()(images(description, 2)).shape == (2, description.features)
    assert description.summary()["blocks"] == len(description.channels)


@pytest.mark.parametrize("name", names_with(BackboneConfig))
def test_statistics_of_batch_norms_follow_a_short_training(name: str) -> None:
    """After a hundred steps at 0.01, as MobileNetV3 has it, a third of them is of the start."""
    network = build(composed(name, *(["evolution=none"] if name == "sketch_cnn" else [])))
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} <= {0.1}


@pytest.mark.parametrize("description", [*SMALL, Architecture.seed((4, 6), resolution=16)])
def test_a_description_survives_json(description: Description) -> None:
    assert described(json.loads(json.dumps(description.to_dict()))) == description


def test_what_old_files_say_is_a_chain_of_blocks() -> None:
    block = {"channels": 4, "pool": True, "residual": False, "routed": False}
    old = {"blocks": [block], "resolution": 16, "in_channels": 3, "kernel_size": 3}
    expected = Architecture.seed((4,), resolution=16)
    assert described({**old, "activation": "relu", "batch_norm": True}) == expected


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(UserError, match=r"'resnet_12' is not known.*Did you mean 'resnet12'"):
        described({"name": "resnet_12", "resolution": 32})


@pytest.mark.parametrize("name", names_with(BackboneConfig))
def test_every_option_names_what_describes_it(name: str) -> None:
    family = family_of(options_of(BackboneConfig)[name])
    assert callable(family.configured)
    assert callable(family.from_dict)


@pytest.mark.parametrize("description", SMALL, ids=lambda d: d.name)
def test_weights_are_drawn_from_the_generator_alone(description: FamilyArchitecture) -> None:
    before = torch.random.get_rng_state()
    first, second, other = (build(description, generator=generator(s)) for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    x = images(description)
    assert torch.equal(first.eval()(x), second.eval()(x))
    assert not torch.allclose(first(x), other.eval()(x))


def test_counting_leaves_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    assert ResNet12Architecture("resnet12", 20, 3, (3, 4, 5, 6)).params > 0
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("description", SMALL, ids=lambda d: d.name)
def test_the_copy_for_inference_computes_the_same(description: FamilyArchitecture) -> None:
    network = build(description, generator=generator()).train()
    network(images(description, 8))  # statistics of BN that are not the first ones
    copied, x = network.for_inference(), images(description)
    assert network.training
    torch.testing.assert_close(copied(x), copy.deepcopy(network).eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("description", SMALL, ids=lambda d: d.name)
def test_gradient_checkpointing_changes_nothing(description: FamilyArchitecture) -> None:
    plain = build(description, generator=generator()).train()
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing = True
    for network in (plain, saving):
        network(images(description)).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), b in zip(plain.state_dict().items(), saving.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def torchvision_resnet18() -> nn.Module:
    return torchvision.models.resnet18(weights=None)


def torchvision_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(
        16, patch_size=8, num_layers=2, num_heads=3, hidden_dim=12, mlp_dim=16
    )


@pytest.mark.parametrize(
    ("description", "theirs", "head"),
    [
        (ResNetArchitecture("resnet18", 64, 3, "imagenet"), torchvision_resnet18, "fc"),
        (SMALL[2], torchvision_vit, "heads"),
    ],
    ids=["resnet18", "vit"],
)
@pytest.mark.parametrize("training", [False, True])
def test_torchvisions_network_gives_the_same(
    description: Description, theirs: Callable[[], nn.Module], head: str, training: bool
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = theirs()
    setattr(reference, head, nn.Identity())
    network = build(description, generator=generator())
    assert hasattr(network, "body")
    network.body.load_state_dict(reference.state_dict())
    x = images(description)
    found, expected = network.train(training)(x), reference.train(training)(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def slow_resnet12(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """MetaOptNet's `resnet12.py` in eval mode, DropBlock aside, straight from the tensors."""

    def normed(x: Tensor, conv: str, norm: str) -> Tensor:
        kernel = state[f"{conv}.weight"]
        y = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
        parts = [state[f"{norm}.{p}"] for p in ("running_mean", "running_var", "weight", "bias")]
        mean, var, weight, bias = (part[:, None, None] for part in parts)
        return (y - mean) / (var + 1e-5).sqrt() * weight + bias

    for b in range(4):
        y = x
        for number in (1, 2, 3):
            y = normed(y, f"blocks.{b}.conv{number}", f"blocks.{b}.norm{number}")
            if number < 3:
                y = F.leaky_relu(y, 0.1)
        y = y + normed(x, f"blocks.{b}.shortcut_conv", f"blocks.{b}.shortcut_norm")
        x = F.max_pool2d(F.leaky_relu(y, 0.1), 2)
    return x.mean((2, 3))


def test_resnet12_is_the_one_of_the_papers() -> None:
    description = ResNet12Architecture("resnet12", 84, 3, (4, 5, 6, 7))
    network = build(description, generator=generator()).train()
    network(images(description, 8))
    x = images(description, 3)
    with torch.no_grad():
        expected = slow_resnet12(network.state_dict(), x)
        torch.testing.assert_close(network.eval()(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "overrides", "stem"),
    [
        (64, [], "small"),
        (65, [], "imagenet"),
        (32, ["backbone.stem=imagenet"], "imagenet"),
        (84, ["backbone.stem=small"], "small"),
        (32, ["backbone.weights=some.pth"], "imagenet"),
    ],
)
def test_the_stem_goes_by_the_image_size(size: int, overrides: list[str], stem: str) -> None:
    description = composed("resnet18", f"dataset.image_size={size}", *overrides)
    assert isinstance(description, ResNetArchitecture)
    assert description.stem == stem


def test_only_the_first_blocks_pool() -> None:
    description = composed("conv4", "dataset.image_size=84", "backbone.pooled_blocks=2")
    assert isinstance(description, Architecture)
    assert description.sides() == (84, 42, 21, 21, 21)
    grown = grow(description, position=4, out_channels=64, mode="fresh").after
    assert grown.sides()[-1] == 21
    assert composed("conv4", "dataset.image_size=84").channels == description.channels
