"""Fully connected layers on flattened images: the plainest network there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from sseg_nase.config.groups.backbone import Planned
from sseg_nase.config.options import option, register
from sseg_nase.nets.genome import COMMON_ACTIVATIONS, SWITCH, UNITS, Genome
from sseg_nase.nets.plan import ACTIVATIONS, IMAGE, Plan


@register("backbone", "mlp")
@dataclass(frozen=True)
class MLP(Planned):
    """Layers of `channels` units: linear, BN, activation."""

    channels: Annotated[list[int], option(least=1)]
    activation: Annotated[str, option(choices=ACTIVATIONS)]
    batch_norm: bool

    @property
    def one_size(self) -> bool:
        """Its first layer reads every pixel."""
        return True

    @classmethod
    def genome(cls, image_size: int) -> Genome:
        """Layer by layer the units, and what they all have."""
        return Genome(
            level=1,
            one={"activation": COMMON_ACTIVATIONS, "batch_norm": SWITCH},
            lists={"channels": UNITS},
            below={
                1: {
                    "channels": UNITS[:4],
                    "activation": COMMON_ACTIVATIONS[:1],
                    "batch_norm": SWITCH[:1],
                }
            },
        )

    def wrong(self) -> Iterator[str]:
        """There are layers."""
        if not self.channels:
            yield "backbone.channels=[]: at least one layer is needed, such as [256,128]."

    def plan(self, image_size: int) -> Plan:
        """Return the layers behind the pixels."""
        plan = Plan()
        last = plan.add("pixels", "flatten", IMAGE, 1)
        for number, units in enumerate(self.channels):
            last = plan.add(
                f"layer{number}",
                "units",
                last,
                units,
                activation=self.activation,
                norm=self.batch_norm,
            )
        return plan
