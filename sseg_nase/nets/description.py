"""What every description of a backbone can tell, whatever kind of network it describes."""

from __future__ import annotations

from typing import Any, Protocol


class Description(Protocol):
    """What a backbone is, as frozen data: enough to build it (`building.build`) and to count it."""

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
