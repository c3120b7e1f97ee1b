"""ResNet-12 of few-shot learning (Oreshkin et al. 2018, TADAM; Lee et al. 2019, MetaOptNet)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from sseg_nase.nets.architecture import pools
from sseg_nase.nets.backbone import Backbone, drawing_from
from sseg_nase.nets.fixed import ResNet12Architecture
from sseg_nase.nets.fused import LEAKY_SLOPE, norm_act_pool


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
