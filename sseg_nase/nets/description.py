"""What every description of a backbone can tell, whatever kind of network it describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sseg_nase.nets.maps import Axis, Wiring


class Description(Protocol):
    """What a backbone is, as frozen data: enough to build it, to count it and to mutate it."""

    @property
    def name(self) -> str:
        """What this network, or this kind of network, is called."""

    @property
    def resolution(self) -> int:
        """Side of the images in pixels."""

    @property
    def in_channels(self) -> int:
        """Channels of the images: 1 or 3."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of every block."""

    @property
    def features(self) -> int:
        """Length of the embedding."""

    @property
    def params(self) -> int:
        """Trainable parameters."""

    @property
    def any_resolution(self) -> bool:
        """Whether the same weights take images of other sizes, too."""

    @property
    def axes(self) -> Mapping[str, int]:
        """Channels of every named axis that mutations may widen or prune, in their order."""

    @property
    def embedding_axis(self) -> Axis | None:
        """The axes that the embedding's features are the channels of; None: no mutation's."""

    def wiring(self) -> Wiring:
        """The names of the axes of every tensor in the network's state dict."""

    def with_widths(self, widths: Mapping[str, int]) -> Description:
        """The same network with as many channels in the named axes."""

    def network(self, generator: torch.Generator | None) -> nn.Module:
        """The network itself, with weights that `generator` draws."""

    def macs(self, resolution: int | None = None) -> int:
        """Multiply-accumulates of one forward at `resolution` (flops = 2 × macs)."""

    def at(self, resolution: int) -> Description:
        """The same network for images of another size."""

    def summary(self) -> dict[str, Any]:
        """Counts under the names of `results.json`: macs and flops at `resolution`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `building.described` reads it back."""


def summarize(description: Description) -> dict[str, Any]:
    """Counts under the names of `results.json`."""
    macs = description.macs()
    return {
        "blocks": len(description.channels),
        "channels": list(description.channels),
        "params": description.params,
        "macs": macs,
        "flops": 2 * macs,
        "resolution": description.resolution,
    }


class Family(Protocol):
    """What makes the descriptions of a family, as the option of `backbone` names it: a class."""

    def configured(self, backbone: Any, image_size: int) -> Description:
        """The untrained network that an option describes. Raises `UserError`."""

    def from_dict(self, data: Any) -> Description:
        """The description that `to_dict` wrote."""
