"""ResNet-12 of few-shot learning (Oreshkin et al. 2018, TADAM; Lee et al. 2019, MetaOptNet)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from sseg_nase.config.groups.backbone import BackboneConfig
from sseg_nase.config.options import option, register


@register("backbone", "resnet12", "resnet12_quarter")
@dataclass(frozen=True)
class ResNet12(BackboneConfig):
    """Four residual blocks of three convolutions."""

    channels: Annotated[list[int], option(least=1)]
    evolves = True
    described_by: ClassVar[str] = f"{__name__}.network:ResNet12Architecture"

    def wrong(self) -> Iterator[str]:
        """The blocks are four."""
        if not self.channels:
            yield "backbone.channels=[]: at least one block is needed, such as [16,32,64]."
        elif len(self.channels) != 4:
            yield (
                f"backbone.channels={self.channels}: backbone={self.name} has four blocks, "
                "such as [64,160,320,640]."
            )
