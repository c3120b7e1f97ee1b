"""MobileNetV2 (Sandler et al. 2018): inverted residuals, for small images by default."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Annotated, Any

from sseg_nase.config.groups.backbone import Planned, stages_fit
from sseg_nase.config.options import option, register
from sseg_nase.nets.genome import COMMON_ACTIVATIONS, FILTERS, KERNELS, Genome
from sseg_nase.nets.plan import ACTIVATIONS, IMAGE, Plan, halving


@dataclass(frozen=True)
class InvertedResiduals(Planned):
    """Stages of `depths` blocks with `channels`.

    The first stage does not expand its channels, and it keeps its map; each of the others expands
    `expansion` times and halves, down to maps of 4 pixels. `last` channels are what is averaged.
    """

    channels: Annotated[list[int], option(least=1)]
    depths: Annotated[list[int], option(least=1, most=50)]
    stem: Annotated[int, option(least=1)]
    last: Annotated[int, option(least=1)]
    expansion: Annotated[int, option(least=2)]
    kernel_size: Annotated[int, option(choices=(1, 3, 5, 7))]
    activation: Annotated[str, option(choices=ACTIVATIONS)]

    def wrong(self) -> Iterator[str]:
        """Every stage has its blocks."""
        yield from stages_fit(self.channels, self.depths, "[16,24,40] and [1,2,3]")

    def stages(
        self, image_size: int, wider: float, deeper: float = 1.0, squeeze: float | None = None
    ) -> Plan:
        """Return the stem, the stages and the last convolution.

        All channels times `wider`, all depths times `deeper`; inside of a block they are weighed by
        means of a `squeeze` share of those that it reads.
        """
        plan, side = Plan(), image_size

        def scaled(width: int) -> int:
            return max(1, round(width * wider))

        inside = scaled(self.stem)
        node = plan.add("stem", "conv", IMAGE, inside, activation=self.activation)
        for stage, (wide, depth) in enumerate(zip(self.channels, self.depths, strict=True)):
            times = self.expansion if stage else 1
            given: dict[str, Any] = {
                "expansion": times,
                "kernel": self.kernel_size,
                "activation": self.activation,
            }
            if squeeze is not None:
                given["squeeze"] = squeeze / times  # of the wider channels, as the paper counts it
            for block in range(ceil(depth * deeper - 1e-9)):
                stride = halving(side) if stage and block == 0 else 1
                side = -(-side // stride)
                grown: dict[str, Any] = {"wide": inside * times} if stage else {}
                inside = scaled(wide)
                node = plan.add(
                    f"stage{stage}.{block}",
                    "inverted_residual",
                    node,
                    inside,
                    stride,
                    **grown,
                    **given,
                    residual=block > 0,
                )
        width = scaled(self.last)
        plan.add("last", "conv", node, width, kernel=1, activation=self.activation)
        return plan


@register("backbone", "mobilenet")
@dataclass(frozen=True)
class MobileNet(InvertedResiduals):
    """Inverted residuals with all channels times `multiplier`."""

    multiplier: Annotated[float, option(above=0)]

    @classmethod
    def genome(cls, image_size: int) -> Genome:
        """Channels and blocks of every stage, and what they all have."""
        return Genome(
            level=2,
            one={
                "multiplier": (0.5, 0.75, 1.0, 1.25),
                "expansion": (3, 6),
                "kernel_size": KERNELS,
                "activation": COMMON_ACTIVATIONS,
            },
            lists={"channels": FILTERS, "depths": (1, 2, 3, 4, 6)},
            layers=(2, 4),
            fixed={"stem": 16, "last": 128},
            below={2: {"depths": (1,)}},
        )

    def plan(self, image_size: int) -> Plan:
        """Return the stem, the stages and the last convolution."""
        return self.stages(image_size, self.multiplier)
