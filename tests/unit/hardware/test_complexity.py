from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sseg_nase.hardware.complexity import count_macs, count_params
from sseg_nase.nets.architecture import Architecture, Block
from sseg_nase.nets.evolvable import EvolvableCNN


def conv_block(c: int, d: int, **options: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c, d, 3, padding=1, **options), nn.BatchNorm2d(d), nn.ReLU(), nn.MaxPool2d(2)
    )


def seed_network() -> nn.Module:
    return nn.Sequential(
        conv_block(3, 16),
        conv_block(16, 32),
        conv_block(32, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def conv4() -> nn.Module:
    return nn.Sequential(conv_block(3, 64), *(conv_block(64, 64) for _ in range(3)), nn.Flatten())


def mixed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 5, stride=2, padding=1, bias=False),
        nn.Conv2d(12, 24, 3, groups=4),
        nn.Conv2d(24, 24, 3, groups=24, dilation=2, padding=2),
        nn.Conv2d(24, 8, (1, 3)),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
        nn.Linear(10, 5, bias=False),
    )


def resnet18() -> nn.Module:
    return torchvision.models.resnet18()


def evolved() -> nn.Module:
    blocks = (Block(16), Block(24, residual=True), Block(40), Block(40, pool=False, residual=True))
    return EvolvableCNN(Architecture(blocks, resolution=32, activation="gelu"))


def macs_by_layer(module: nn.Module, images: Tensor) -> int:
    """The textbook formula of every Conv2d and Linear, from their shapes alone."""
    total = 0

    def add(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            height, width = layer.kernel_size
            per_output = layer.in_channels // layer.groups * height * width
        else:
            assert isinstance(layer, nn.Linear)
            per_output = layer.in_features
        total += output.numel() * per_output

    layers = [part for part in module.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    module.eval()
    with torch.no_grad():
        module(images)
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("resolution", [32, 84])
@pytest.mark.parametrize("build", [seed_network, conv4, mixed, resnet18, evolved])
def test_macs_equal_the_formula_of_every_layer_and_torch(
    build: Callable[[], nn.Module], resolution: int
) -> None:
    module = build()
    macs = count_macs(module, resolution)
    images = torch.rand(1, 3, resolution, resolution)
    assert macs == macs_by_layer(module, images)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(images)
    assert 2 * macs == counter.get_total_flops()


def test_known_sizes() -> None:
    assert count_params(conv4()) == 113_088
    assert count_macs(conv4(), 84) == pytest.approx(97e6, rel=0.01)
    assert count_params(resnet18()) == 11_689_512
    assert count_macs(resnet18(), 224) == pytest.approx(1.82e9, rel=0.01)


def test_functional_calls_count_like_layers() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.zeros(8, 1, 3, 3))
            self.register_buffer("routing", torch.eye(4, 8))
            self.weight = nn.Parameter(torch.zeros(5, 4))

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(x, self.kernel, padding=1)
            x = F.conv2d(x, self.routing[:, :, None, None])
            return F.linear(x.mean((2, 3)), self.weight)

    assert count_macs(Functional(), 10, in_channels=1) == 100 * 8 * 9 + 100 * 4 * 8 + 5 * 4


def test_attention_counts_in_eval_mode() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.flatten(2).repeat(1, 8, 1).transpose(1, 2))

    tokens = 16
    projections, attention, feedforward = 4 * tokens * 8 * 8, 2 * tokens**2 * 8, 2 * tokens * 8 * 16
    macs = count_macs(Attention(), 4, in_channels=1)
    assert macs == projections + attention + feedforward
    assert torch.backends.mha.get_fastpath_enabled()


def test_params_are_the_trainable_ones_and_shared_ones_count_once() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))
    assert count_params(module) == 12 + 4 + 8 + 8
    module[0].requires_grad_(False)
    assert count_params(module) == 16
    shared = nn.Linear(5, 5, bias=False)
    assert count_params(nn.Sequential(shared, shared)) == 25


def test_counting_leaves_no_trace() -> None:
    module = seed_network().train()
    module[1].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    random = torch.get_rng_state()
    count_macs(module, 32)
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
