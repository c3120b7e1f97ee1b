"""ResNet-12 of few-shot learning (Oreshkin et al. 2018, TADAM; Lee et al. 2019, MetaOptNet)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sseg_nase.nets.architecture import pools
from sseg_nase.nets.backbone import Backbone, drawing_from
from sseg_nase.nets.families.resnet12 import ResNet12 as ResNet12Config
from sseg_nase.nets.family import FamilyArchitecture
from sseg_nase.nets.fused import LEAKY_SLOPE, norm_act_pool
from sseg_nase.nets.maps import IMAGES, Axis, Wires, module


@dataclass(frozen=True)
class ResNet12Architecture(FamilyArchitecture):
    """Residual blocks of three convolutions, as in TADAM and MetaOptNet; one width per block."""

    widths: tuple[int, ...] = (64, 160, 320, 640)

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.widths, "a network has at least one block"

    @classmethod
    def configured(cls, backbone: ResNet12Config, image_size: int) -> ResNet12Architecture:
        """The untrained network of a run."""
        widths = tuple(backbone.channels)
        return cls(backbone.name, image_size, backbone.in_channels, widths)

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of every block."""
        return tuple(self.axes[f"blocks.{number}"] for number in range(len(self.widths)))

    @property
    def usual(self) -> dict[str, int]:
        """Of every block the channels inside, and those of the sum that it ends with."""
        return {
            f"blocks.{number}{part}": wide
            for number, wide in enumerate(self.widths)
            for part in (".conv1", ".conv2", "")
        }

    @property
    def embedding_axis(self) -> Axis:
        """The last block's sum."""
        return Axis((f"blocks.{len(self.widths) - 1}",))

    def wires(self) -> dict[str, Wires]:
        """The convolution beside the other three makes the same channels: their sum is one axis."""
        wires: dict[str, Wires] = {}
        into = IMAGES
        for number in range(len(self.widths)):
            out = f"blocks.{number}"
            first, second = f"{out}.conv1", f"{out}.conv2"
            chain = ((first, into), (second, first), (out, second))
            for place, (makes, reads) in enumerate(chain, start=1):
                wires |= module(f"{out}.conv{place}", [makes], [reads])
                wires |= module(f"{out}.norm{place}", [makes])
            wires |= module(f"{out}.shortcut_conv", [out], [into])
            wires |= module(f"{out}.shortcut_norm", [out])
            into = out
        return wires

    def network(self, generator: torch.Generator | None) -> nn.Module:
        """The network itself, with weights that `generator` draws."""
        return ResNet12(self, generator=generator)


class ResidualBlock(nn.Module):
    """Three 3×3 convolutions beside a 1×1 one, LeakyReLU, 2×2 max-pool.

    `[B, C, H, W]` → `[B, C', H // 2, W // 2]`; a map that would become a single pixel stays.
    """

    def __init__(self, in_channels: int, inside: tuple[int, int], out_channels: int) -> None:
        super().__init__()
        first, second = inside
        self.conv1 = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(second)
        self.conv3 = nn.Conv2d(second, out_channels, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.shortcut_conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.shortcut_norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C', H', W']`."""
        activated = partial(norm_act_pool, activation="leaky_relu", negative_slope=LEAKY_SLOPE)
        y = activated(self.norm1, self.conv1(x))
        y = activated(self.norm2, self.conv2(y))
        shortcut = norm_act_pool(self.shortcut_norm, self.shortcut_conv(x))
        pool = pools(min(y.shape[-2:]))
        return activated(self.norm3, self.conv3(y), shortcut=shortcut, pool=pool)


class ResNet12(Backbone):
    """A chain of `ResidualBlock`s and the average over the last map."""

    architecture: ResNet12Architecture

    def __init__(
        self, architecture: ResNet12Architecture, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.architecture = architecture
        axes, into = architecture.axes, architecture.in_channels
        with drawing_from(generator):
            self.blocks = nn.Sequential()
            for number, out in enumerate(architecture.channels):
                inside = axes[f"blocks.{number}.conv1"], axes[f"blocks.{number}.conv2"]
                self.blocks.append(ResidualBlock(into, inside, out))
                into = out
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(
                    part.weight, LEAKY_SLOPE, "fan_out", "leaky_relu", generator=generator
                )

    def stages(self) -> list[nn.Module]:
        """The blocks in order."""
        return list(self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Embed `[B, C, H, W]` as `[B, features]`."""
        for block in self.blocks:
            x = self.run(block, x)
        return x.mean(dim=(2, 3))
