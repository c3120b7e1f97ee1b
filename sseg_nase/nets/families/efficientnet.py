"""EfficientNet (Tan & Le 2019): inverted residuals with squeeze and excitation, scaled together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sseg_nase.config.options import option, register
from sseg_nase.nets.families.mobilenet import InvertedResiduals
from sseg_nase.nets.genome import COMMON_ACTIVATIONS, KERNELS, Genome
from sseg_nase.nets.plan import Plan


@register("backbone", "efficientnet")
@dataclass(frozen=True)
class EfficientNet(InvertedResiduals):
    """Inverted residuals with all depths times `depth` and all channels times `width`.

    The channels inside of a block are weighed by means of a `squeeze` share of those that it reads;
    at 0 they are not.
    """

    width: Annotated[float, option(above=0)]
    depth: Annotated[float, option(above=0)]
    squeeze: Annotated[float, option(least=0, most=1)]

    @classmethod
    def genome(cls, image_size: int) -> Genome:
        """What scales the stages of `conf/backbone/efficientnet.yaml`."""
        return Genome(
            level=3,
            one={
                "width": (0.5, 0.75, 1.0, 1.25, 1.5),
                "depth": (0.8, 1.0, 1.2, 1.4),
                "squeeze": (0.0, 0.125, 0.25),
                "kernel_size": KERNELS,
                "activation": (*COMMON_ACTIVATIONS, "silu"),
            },
            fixed={
                "channels": [16, 24, 40, 80],
                "depths": [1, 2, 2, 3],
                "stem": 32,
                "last": 160,
                "expansion": 6,
            },
        )

    def plan(self, image_size: int) -> Plan:
        """Return the stem, the stages and the last convolution."""
        return self.stages(image_size, self.width, self.depth, self.squeeze)
