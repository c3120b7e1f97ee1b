"""ShuffleNetV2 (Ma et al. 2018): half of the channels pass, and the halves are shuffled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from sseg_nase.config.groups.backbone import Planned, stages_fit
from sseg_nase.config.options import option, register
from sseg_nase.nets.plan import IMAGE, Plan, halving


@register("backbone", "shufflenetv2")
@dataclass(frozen=True)
class ShuffleNetV2(Planned):
    """Stages of `depths` units with `channels`, all times `multiplier`; each stage halves its map.

    Maps of less than 8 pixels stay as large as they are. `last` channels are what is averaged.
    """

    channels: Annotated[list[int], option(least=2)]
    depths: Annotated[list[int], option(least=1, most=50)]
    stem: Annotated[int, option(least=1)]
    last: Annotated[int, option(least=1)]
    multiplier: Annotated[float, option(above=0)]

    def wrong(self) -> Iterator[str]:
        """Every stage has its units."""
        yield from stages_fit(self.channels, self.depths, "[48,96,192] and [4,8,4]")

    def plan(self, image_size: int) -> Plan:
        """Return the stem, the stages and the last convolution."""
        plan, side = Plan(), image_size
        node = plan.add("stem", "conv", IMAGE, self.stem)
        for stage, (wide, depth) in enumerate(zip(self.channels, self.depths, strict=True)):
            width = 2 * max(1, round(wide * self.multiplier / 2))  # in two halves
            for unit in range(depth):
                stride = halving(side) if unit == 0 else 1
                side = -(-side // stride)
                node = plan.add(f"stage{stage}.{unit}", "shuffle_unit", node, width, stride)
        plan.add("last", "conv", node, self.last, kernel=1)
        return plan
