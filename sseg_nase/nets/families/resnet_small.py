"""Residual networks of two convolutions per block (He et al. 2016), for small images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from sseg_nase.config.groups.backbone import Planned, stages_fit
from sseg_nase.config.options import option, register
from sseg_nase.nets.genome import COMMON_ACTIVATIONS, FILTERS, KERNELS, SWITCH, Genome
from sseg_nase.nets.plan import ACTIVATIONS, IMAGE, Plan, halving


@register("backbone", "resnet_small")
@dataclass(frozen=True)
class SmallResNet(Planned):
    """Stages of `depths` blocks with `channels`; each but the first halves its map.

    Maps of less than 8 pixels stay as large as they are.
    """

    channels: Annotated[list[int], option(least=1)]
    depths: Annotated[list[int], option(least=1, most=50)]
    kernel_size: Annotated[int, option(choices=(1, 3, 5, 7))]
    activation: Annotated[str, option(choices=ACTIVATIONS)]
    batch_norm: bool

    @classmethod
    def genome(cls, image_size: int) -> Genome:
        """Channels and blocks of every stage, and what they all have."""
        return Genome(
            level=2,
            one={
                "kernel_size": KERNELS,
                "activation": COMMON_ACTIVATIONS,
                "batch_norm": SWITCH,
            },
            lists={"channels": FILTERS, "depths": (1, 2, 3, 4, 6)},
            layers=(2, 4),
            below={2: {"depths": (1,)}},
        )

    def wrong(self) -> Iterator[str]:
        """Every stage has its blocks."""
        yield from stages_fit(self.channels, self.depths, "[16,32,64] and [3,3,3]")

    def plan(self, image_size: int) -> Plan:
        """Return the stem and the stages."""
        plan, side = Plan(), image_size
        given: dict[str, Any] = {"activation": self.activation, "norm": self.batch_norm}
        last = plan.add("stem", "conv", IMAGE, self.channels[0], **given)
        for stage, (width, depth) in enumerate(zip(self.channels, self.depths, strict=True)):
            for block in range(depth):
                begins = stage > 0 and block == 0
                stride = halving(side) if begins else 1
                side = -(-side // stride)
                last = plan.add(
                    f"stage{stage}.{block}",
                    "basic_block",
                    last,
                    width,
                    stride,
                    kernel=self.kernel_size,
                    project=begins,
                    **given,
                )
        return plan
