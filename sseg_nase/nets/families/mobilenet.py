"""MobileNetV2 (Sandler et al. 2018): inverted residuals, for small images by default."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from sseg_nase.config.groups.backbone import Planned, stages_fit
from sseg_nase.config.options import option, register
from sseg_nase.nets.plan import ACTIVATIONS, IMAGE, Plan, halving


@register("backbone", "mobilenet")
@dataclass(frozen=True)
class MobileNet(Planned):
    """Stages of `depths` blocks with `channels`, all of them times `multiplier`.

    The first stage does not expand its channels, and it keeps its map; each of the others expands
    `expansion` times and halves, down to maps of 4 pixels. `last` channels are what is averaged.
    """

    channels: Annotated[list[int], option(least=1)]
    depths: Annotated[list[int], option(least=1, most=50)]
    stem: Annotated[int, option(least=1)]
    last: Annotated[int, option(least=1)]
    expansion: Annotated[int, option(least=2)]
    kernel_size: Annotated[int, option(choices=(1, 3, 5, 7))]
    multiplier: Annotated[float, option(above=0)]
    activation: Annotated[str, option(choices=ACTIVATIONS)]

    def wrong(self) -> Iterator[str]:
        """Every stage has its blocks."""
        yield from stages_fit(self.channels, self.depths, "[16,24,40] and [1,2,3]")

    def plan(self, image_size: int) -> Plan:
        """Return the stem, the stages and the last convolution."""
        plan, side = Plan(), image_size

        def scaled(width: int) -> int:
            return max(1, round(width * self.multiplier))

        inside = scaled(self.stem)
        node = plan.add("stem", "conv", IMAGE, inside, activation=self.activation)
        for stage, (wide, depth) in enumerate(zip(self.channels, self.depths, strict=True)):
            width = scaled(wide)
            for block in range(depth):
                stride = halving(side) if stage and block == 0 else 1
                side = -(-side // stride)
                wider: dict[str, Any] = {"wide": inside * self.expansion} if stage else {}
                node = plan.add(
                    f"stage{stage}.{block}",
                    "inverted_residual",
                    node,
                    width,
                    stride,
                    **wider,
                    expansion=self.expansion if stage else 1,
                    kernel=self.kernel_size,
                    activation=self.activation,
                    residual=block > 0,
                )
                inside = width
        width = scaled(self.last)
        plan.add("last", "conv", node, width, kernel=1, activation=self.activation)
        return plan
