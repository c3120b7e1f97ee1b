"""What the descriptions of all families have in common that are not chains of blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, TypeVar

import torch
from torch import nn

from sseg_nase.hardware.complexity import count_macs, count_params
from sseg_nase.nets.description import summarize
from sseg_nase.nets.maps import Axis, Wires, Wiring, wired

Family = TypeVar("Family", bound="FamilyArchitecture")


@dataclass(frozen=True)
class FamilyArchitecture:
    """A network by its name; params and macs are counted on a copy without weights.

    `altered`: channels of named axes that mutations have made others than the family's.
    """

    name: str
    resolution: int
    in_channels: int = 3
    altered: tuple[tuple[str, int], ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        assert self.resolution >= 1, self.resolution
        assert self.in_channels in (1, 3), self.in_channels
        for axis, wide in self.altered:
            assert axis in self.usual, f"{self.name} has no axis {axis}"
            assert wide >= 1, (axis, wide)

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of every block."""
        raise NotImplementedError

    @property
    def features(self) -> int:
        """Length of the embedding."""
        return self.channels[-1]

    @property
    def any_resolution(self) -> bool:
        """Whether the same weights take images of other sizes, too."""
        return True

    @property
    def usual(self) -> Mapping[str, int]:
        """Channels of every named axis as the family has them, in their order; here none."""
        return {}

    @property
    def axes(self) -> dict[str, int]:
        """Channels of every named axis that mutations may widen or prune."""
        return {**self.usual, **dict(self.altered)}

    @property
    def embedding_axis(self) -> Axis | None:
        """The axes that the embedding's features are the channels of; None: no mutation's."""
        return None

    def wiring(self) -> Wiring:
        """The names of the axes of every tensor in the network's state dict."""
        return _wiring(self)

    def wires(self) -> Mapping[str, Wires]:
        """Those of the tensors that have named axes."""
        return {}

    def with_widths(self: Family, widths: Mapping[str, int]) -> Family:
        """The same network with as many channels in the named axes."""
        wanted, usual = {**self.axes, **widths}, self.usual
        altered = tuple((axis, wanted[axis]) for axis in usual if wanted[axis] != usual[axis])
        return replace(self, altered=altered)

    def network(self, generator: torch.Generator | None) -> nn.Module:
        """The network itself, with weights that `generator` draws."""
        raise NotImplementedError

    @property
    def params(self) -> int:
        """Trainable parameters."""
        return _counted(self)[0]

    def macs(self, resolution: int | None = None) -> int:
        """Multiply-accumulates of one forward at `resolution` (flops = 2 × macs)."""
        return _counted(self if resolution is None else self.at(resolution))[1]

    def at(self: Family, resolution: int) -> Family:
        """The same network for images of another size."""
        return replace(self, resolution=resolution)

    def summary(self) -> dict[str, Any]:
        """Counts under the names of `results.json`: macs and flops at `resolution`."""
        return summarize(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `building.described` reads it back."""
        data = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}
        altered = data.pop("altered")
        return data | ({"altered": dict(altered)} if altered else {})

    @classmethod
    def from_dict(cls: type[Family], data: Mapping[str, Any]) -> Family:
        """Rebuild what `to_dict` wrote."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        altered = values.pop("altered", {})  # most networks have none
        return cls(**values, altered=tuple((axis, wide) for axis, wide in altered.items()))


@cache
def _wiring(architecture: FamilyArchitecture) -> Wiring:
    with torch.device("meta"):
        names = list(architecture.network(None).state_dict())
    return wired(names, architecture.wires())


@cache
def _counted(architecture: FamilyArchitecture) -> tuple[int, int]:
    """Params and macs."""
    with torch.device("meta"):
        network = architecture.network(None)
    macs = count_macs(network, architecture.resolution, architecture.in_channels)
    return count_params(network), macs
