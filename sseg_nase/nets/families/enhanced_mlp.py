"""Fully connected residual blocks, each behind a layer norm, on flattened images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sseg_nase.config.groups.backbone import Planned
from sseg_nase.config.options import option, register
from sseg_nase.nets.genome import COMMON_ACTIVATIONS, UNITS, Genome
from sseg_nase.nets.plan import ACTIVATIONS, IMAGE, Plan


@register("backbone", "enhanced_mlp")
@dataclass(frozen=True)
class EnhancedMLP(Planned):
    """`depth` blocks `x + W₂ act(W₁ norm(x))` of `width` units, `hidden` inside."""

    width: Annotated[int, option(least=1)]
    hidden: Annotated[int, option(least=1)]
    depth: Annotated[int, option(least=1, most=50)]
    activation: Annotated[str, option(choices=ACTIVATIONS)]

    @property
    def one_size(self) -> bool:
        """Its first layer reads every pixel."""
        return True

    @classmethod
    def genome(cls, image_size: int) -> Genome:
        """All keys."""
        return Genome(
            level=2,
            one={
                "width": UNITS,
                "hidden": UNITS,
                "depth": range(2, 51),
                "activation": COMMON_ACTIVATIONS,
            },
        )

    def plan(self, image_size: int) -> Plan:
        """Return a linear layer of the pixels, the blocks, and a last norm."""
        plan = Plan()
        last = plan.add("stem.pixels", "flatten", IMAGE, 1)
        last = plan.add("stem.linear", "units", last, self.width, activation="none", norm=False)
        for number in range(self.depth):
            last = plan.add(
                f"block{number}",
                "mlp_block",
                last,
                self.width,
                wide=self.hidden,
                activation=self.activation,
            )
        plan.add("norm", "place_norm", last, self.width)
        return plan
