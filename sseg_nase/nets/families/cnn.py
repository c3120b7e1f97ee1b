"""A plain convolutional network, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from sseg_nase.config.groups.backbone import Planned
from sseg_nase.config.options import option, register
from sseg_nase.nets.genome import COMMON_ACTIVATIONS, FILTERS, KERNELS, SWITCH, Genome
from sseg_nase.nets.plan import ACTIVATIONS, IMAGE, Plan, halving


@register("backbone", "cnn")
@dataclass(frozen=True)
class CNN(Planned):
    """Layers of `channels`: convolution, BN, activation; every second one halves its map.

    Where `skips` says so the input of a layer is added, if it has the same shape. Maps of less than
    8 pixels stay as large as they are.
    """

    channels: Annotated[list[int], option(least=1)]
    kernel_sizes: Annotated[list[int], option(choices=(1, 3, 5, 7))]
    activations: Annotated[list[str], option(choices=ACTIVATIONS)]
    skips: list[bool]
    batch_norm: bool

    @classmethod
    def genome(cls, image_size: int) -> Genome:
        """Layer by layer, and the norms of all."""
        return Genome(
            level=1,
            one={"batch_norm": SWITCH},
            lists={
                "channels": FILTERS,
                "kernel_sizes": KERNELS,
                "activations": COMMON_ACTIVATIONS,
                "skips": SWITCH,
            },
            below={
                1: {
                    "channels": FILTERS[:4],
                    "activations": COMMON_ACTIVATIONS[:1],
                    "skips": SWITCH[:1],
                    "batch_norm": SWITCH[:1],
                }
            },
        )

    def wrong(self) -> Iterator[str]:
        """Every layer has all that it needs."""
        lists = {key: getattr(self, key) for key in ("kernel_sizes", "activations", "skips")}
        for key, values in lists.items():
            if not self.channels or len(values) != len(self.channels):
                yield (
                    f"backbone.channels={self.channels} backbone.{key}={values}: one value for "
                    "every layer is needed in each of them, such as backbone.channels=[32,64] "
                    "backbone.kernel_sizes=[3,3] backbone.activations=[relu,relu] "
                    "backbone.skips=[false,false]."
                )
                return

    def plan(self, image_size: int) -> Plan:
        """Return the layers."""
        plan, side, last, inside = Plan(), image_size, IMAGE, 0
        rows = zip(self.channels, self.kernel_sizes, self.activations, self.skips, strict=True)
        for number, (width, kernel, activation, skip) in enumerate(rows):
            stride = halving(side) if number % 2 else 1
            last = plan.add(
                f"layer{number}",
                "conv",
                last,
                width,
                stride,
                kernel=kernel,
                activation=activation,
                norm=self.batch_norm,
                residual=skip and stride == 1 and width == inside,
            )
            side, inside = -(-side // stride), width
        return plan
