"""torchvision's VisionTransformer in its small size (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from sseg_nase.config.groups.backbone import Pretrained, patches_fit
from sseg_nase.config.options import names_with, option, register
from sseg_nase.nets.families.resnet import ResNet


@register("backbone", "vit_small")
@dataclass(frozen=True)
class ViT(Pretrained):
    """torchvision's VisionTransformer in its small size."""

    patch_size: Annotated[int, option(least=1)]
    evolves = True
    described_by: ClassVar[str] = f"{__name__}.network:ViTArchitecture"

    @property
    def one_size(self) -> bool:
        """Its positions are those of one size."""
        return True

    def wrong(self) -> Iterator[str]:
        """There are no weights of ImageNet for it."""
        if self.weights == "imagenet":
            yield (
                f"backbone.weights=imagenet: torchvision has none for backbone={self.name}; "
                f"choose one of {', '.join(names_with(ResNet))}, or set backbone.weights=FILE."
            )

    def unfit(self, image_size: int) -> Iterator[str]:
        """Patches fill the images."""
        yield from patches_fit(self.patch_size, image_size)
