"""A vision transformer without a class token (Beyer et al. 2022), of any width and depth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from sseg_nase.config.groups.backbone import Planned, patches_fit
from sseg_nase.config.options import option, register
from sseg_nase.nets.genome import Genome, patch_sizes
from sseg_nase.nets.plan import IMAGE, Plan


@register("backbone", "simple_vit")
@dataclass(frozen=True)
class SimpleViT(Planned):
    """`depth` blocks of `width` channels with `heads` of attention, `hidden` units in their MLPs.

    Places are told by fixed sines and cosines, and the embedding is the mean over the patches.
    """

    patch_size: Annotated[int, option(least=1)]
    width: Annotated[int, option(least=4)]
    depth: Annotated[int, option(least=1, most=50)]
    heads: Annotated[int, option(least=1)]
    hidden: Annotated[int, option(least=1)]

    @classmethod
    def genome(cls, image_size: int) -> Genome | None:
        """All keys; None where no patches fit the images."""
        if not (patches := patch_sizes(image_size)):
            return None
        return Genome(
            level=3,
            one={
                "patch_size": patches,
                "width": (48, 96, 192),
                "depth": range(2, 51),
                "heads": (2, 3, 4, 6),
                "hidden": (96, 192, 384, 768),
            },
        )

    def wrong(self) -> Iterator[str]:
        """Heads and the four waves of a place divide the channels."""
        for key, by in (("heads", self.heads), ("width", 4)):
            if self.width % by:
                yield (
                    f"backbone.width={self.width} backbone.heads={self.heads}: backbone.width must "
                    f"be a multiple of {by}{' heads' if key == 'heads' else ''}, such as "
                    f"{4 * self.heads * max(1, self.width // (4 * self.heads))}."
                )
                return

    def unfit(self, image_size: int) -> Iterator[str]:
        """Patches fill the images."""
        yield from patches_fit(self.patch_size, image_size)

    def plan(self, image_size: int) -> Plan:
        """Return patches with their places, blocks, and a last norm."""
        plan = Plan()
        last = plan.add("stem", "patches", IMAGE, self.width, self.patch_size)
        last = plan.add("places", "places", last, self.width)
        for number in range(self.depth):
            last = plan.add(
                f"block{number}",
                "transformer_block",
                last,
                self.width,
                heads=self.heads,
                wide=self.hidden,
            )
        plan.add("norm", "place_norm", last, self.width)
        return plan
