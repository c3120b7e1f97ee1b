"""DenseNet-BC (Huang et al. 2017): every layer reads all before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from sseg_nase.config.groups.backbone import Planned
from sseg_nase.config.options import option, register
from sseg_nase.nets.genome import Genome
from sseg_nase.nets.plan import IMAGE, Plan, halving


@register("backbone", "densenet")
@dataclass(frozen=True)
class DenseNet(Planned):
    """Blocks of `depths` layers, each of which adds `growth` channels.

    Inside of a layer there are `bottleneck` times as many. Between blocks the channels become
    `compression` times as many, and the map is halved, down to 4 pixels.
    """

    depths: Annotated[list[int], option(least=1, most=50)]
    growth: Annotated[int, option(least=1)]
    bottleneck: Annotated[int, option(least=1)]
    compression: Annotated[float, option(above=0, most=1)]

    @classmethod
    def genome(cls, image_size: int) -> Genome:
        """Layers of every block, and what they all have."""
        return Genome(
            level=3,
            one={
                "growth": (12, 24, 32, 48),
                "bottleneck": (2, 4),
                "compression": (0.5, 0.7, 0.8),
            },
            lists={"depths": (2, 3, 4, 6, 8, 12)},
            layers=(2, 4),
        )

    def wrong(self) -> Iterator[str]:
        """There are blocks."""
        if not self.depths:
            yield "backbone.depths=[]: at least one block is needed, such as [4,4,4]."

    def plan(self, image_size: int) -> Plan:
        """Return the stem, the blocks and what stands between them, and the last norm."""
        plan, side, width = Plan(), image_size, 2 * self.growth
        last = plan.add("stem", "conv", IMAGE, width)
        for number, depth in enumerate(self.depths):
            for layer in range(depth):
                width += self.growth
                last = plan.add(
                    f"block{number}.{layer}", "dense_layer", last, width, bottleneck=self.bottleneck
                )
            if number < len(self.depths) - 1:
                width = max(1, int(width * self.compression))
                stride = halving(side)
                side = -(-side // stride)
                last = plan.add(f"block{number}.out", "transition", last, width, stride)
        plan.add("last", "norm_relu", last, width)
        return plan
