"""EfficientNet (Tan & Le 2019): inverted residuals with squeeze and excitation, scaled together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Annotated, Any

from sseg_nase.config.groups.backbone import Planned, stages_fit
from sseg_nase.config.options import option, register
from sseg_nase.nets.plan import ACTIVATIONS, IMAGE, Plan, halving


@register("backbone", "efficientnet")
@dataclass(frozen=True)
class EfficientNet(Planned):
    """Stages of `depths` blocks, times `depth`, with `channels`, times `width`.

    The first stage does not expand its channels, and it keeps its map; each of the others expands
    `expansion` times and halves, down to maps of 4 pixels. The channels inside of a block are
    weighed by means of a `squeeze` share of those that it reads; at 0 they are not.
    """

    channels: Annotated[list[int], option(least=1)]
    depths: Annotated[list[int], option(least=1, most=50)]
    stem: Annotated[int, option(least=1)]
    last: Annotated[int, option(least=1)]
    expansion: Annotated[int, option(least=2)]
    kernel_size: Annotated[int, option(choices=(1, 3, 5, 7))]
    width: Annotated[float, option(above=0)]
    depth: Annotated[float, option(above=0)]
    squeeze: Annotated[float, option(least=0, most=1)]
    activation: Annotated[str, option(choices=ACTIVATIONS)]

    def wrong(self) -> Iterator[str]:
        """Every stage has its blocks."""
        yield from stages_fit(self.channels, self.depths, "[16,24,40,80] and [1,2,2,3]")

    def plan(self, image_size: int) -> Plan:
        """Return the stem, the stages and the last convolution."""
        plan, side = Plan(), image_size

        def scaled(width: int) -> int:
            return max(1, round(width * self.width))

        inside = scaled(self.stem)
        node = plan.add("stem", "conv", IMAGE, inside, activation=self.activation)
        for stage, (wide, depth) in enumerate(zip(self.channels, self.depths, strict=True)):
            width = scaled(wide)
            for block in range(ceil(depth * self.depth - 1e-9)):
                stride = halving(side) if stage and block == 0 else 1
                side = -(-side // stride)
                times = self.expansion if stage else 1
                wider: dict[str, Any] = {"wide": inside * times} if stage else {}
                node = plan.add(
                    f"stage{stage}.{block}",
                    "inverted_residual",
                    node,
                    width,
                    stride,
                    **wider,
                    expansion=times,
                    kernel=self.kernel_size,
                    squeeze=self.squeeze / times,  # of the wider channels, as the paper counts it
                    activation=self.activation,
                    residual=block > 0,
                )
                inside = width
        width = scaled(self.last)
        plan.add("last", "conv", node, width, kernel=1, activation=self.activation)
        return plan
