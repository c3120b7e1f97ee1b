"""torchvision's ResNets (He et al. 2016)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from sseg_nase.config.groups.backbone import Pretrained
from sseg_nase.config.options import option, register


@register("backbone", "resnet18", "resnet34", "resnet50")
@dataclass(frozen=True)
class ResNet(Pretrained):
    """torchvision's."""

    stem: Annotated[str, option(choices=("auto", "imagenet", "small"))]
    evolves = True
    described_by: ClassVar[str] = f"{__name__}.network:ResNetArchitecture"

    def wrong(self) -> Iterator[str]:
        """ImageNet's weights fit one stem."""
        if self.weights == "imagenet" and self.stem == "small":
            yield (
                "backbone.stem=small: backbone.weights=imagenet fits backbone.stem=imagenet only; "
                "leave one of them out."
            )
