"""MLP-Mixer (Tolstikhin et al. 2021): MLPs over places and channels in turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from sseg_nase.config.groups.backbone import Planned, patches_fit
from sseg_nase.config.options import option, register
from sseg_nase.nets.genome import Genome, patch_sizes
from sseg_nase.nets.plan import IMAGE, Plan


@register("backbone", "mlp_mixer")
@dataclass(frozen=True)
class MLPMixer(Planned):
    """`depth` layers of `width` channels; `hidden` units over channels, `mixed` over places."""

    patch_size: Annotated[int, option(least=1)]
    width: Annotated[int, option(least=1)]
    depth: Annotated[int, option(least=1, most=50)]
    hidden: Annotated[int, option(least=1)]
    mixed: Annotated[int, option(least=1)]

    @property
    def one_size(self) -> bool:
        """It mixes so many places."""
        return True

    @classmethod
    def genome(cls, image_size: int) -> Genome | None:
        """All keys; None where no patches fit the images."""
        if not (patches := patch_sizes(image_size)):
            return None
        return Genome(
            level=3,
            one={
                "patch_size": patches,
                "width": (32, 64, 128, 256),
                "depth": range(2, 51),
                "hidden": (64, 128, 256, 512),
                "mixed": (16, 32, 64, 128),
            },
        )

    def unfit(self, image_size: int) -> Iterator[str]:
        """Patches fill the images."""
        yield from patches_fit(self.patch_size, image_size)

    def plan(self, image_size: int) -> Plan:
        """Return patches, layers, and a last norm."""
        plan, side = Plan(), image_size // self.patch_size
        last = plan.add("stem", "patches", IMAGE, self.width, self.patch_size)
        for number in range(self.depth):
            last = plan.add(
                f"layer{number}",
                "mixer_block",
                last,
                self.width,
                side=side,
                mixed=self.mixed,
                wide=self.hidden,
            )
        plan.add("norm", "place_norm", last, self.width)
        return plan
