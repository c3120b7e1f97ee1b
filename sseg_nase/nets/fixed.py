"""Networks that do not evolve, as data: residual networks and a vision transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from sseg_nase.hardware.complexity import count_macs, count_params
from sseg_nase.nets.description import summarize
from sseg_nase.nets.maps import Axis, Wires, Wiring, wired

if TYPE_CHECKING:
    from sseg_nase.nets.backbone import Backbone

Fixed = TypeVar("Fixed", bound="FixedArchitecture")

STEMS = ("imagenet", "small")
INPUTS = ("centred", "imagenet")
LARGEST_SMALL_IMAGE = 64  # up to here the small stem is the usual choice


@dataclass(frozen=True)
class FixedArchitecture:
    """A network by its name; params and macs are counted on a copy without weights."""

    name: str
    resolution: int
    in_channels: int = 3

    def __post_init__(self) -> None:
        assert self.resolution >= 1, self.resolution
        assert self.in_channels in (1, 3), self.in_channels

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
    def axes(self) -> Mapping[str, int]:
        """Channels of every named axis that mutations may widen or prune; here none."""
        return {}

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

    def with_widths(self: Fixed, widths: Mapping[str, int]) -> Fixed:
        """The same network with as many channels in the named axes."""
        assert not widths, widths
        return self

    def network(self, generator: torch.Generator | None) -> Backbone:
        """The network itself, with weights that `generator` draws."""
        raise NotImplementedError

    @property
    def params(self) -> int:
        """Trainable parameters."""
        return _counted(self)[0]

    def macs(self, resolution: int | None = None) -> int:
        """Multiply-accumulates of one forward at `resolution` (flops = 2 × macs)."""
        return _counted(self if resolution is None else self.at(resolution))[1]

    def at(self: Fixed, resolution: int) -> Fixed:
        """The same network for images of another size."""
        return replace(self, resolution=resolution)

    def summary(self) -> dict[str, Any]:
        """Counts under the names of `results.json`: macs and flops at `resolution`."""
        return summarize(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `building.described` reads it back."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_dict(cls: type[Fixed], data: Mapping[str, Any]) -> Fixed:
        """Rebuild what `to_dict` wrote."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        return cls(**values)


@dataclass(frozen=True)
class ResNet12Architecture(FixedArchitecture):
    """Residual blocks of three convolutions, as in TADAM and MetaOptNet; one width per block."""

    widths: tuple[int, ...] = (64, 160, 320, 640)

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.widths, "a network has at least one block"

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of every block."""
        return self.widths

    def network(self, generator: torch.Generator | None) -> Backbone:
        """The network itself, with weights that `generator` draws."""
        from sseg_nase.nets.resnet12 import ResNet12

        return ResNet12(self, generator=generator)


# Residual blocks per stage, and channels of the stages' outputs.
RESNETS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "resnet18": ((2, 2, 2, 2), (64, 128, 256, 512)),
    "resnet34": ((3, 4, 6, 3), (64, 128, 256, 512)),
    "resnet50": ((3, 4, 6, 3), (256, 512, 1024, 2048)),
}


@dataclass(frozen=True)
class ResNetArchitecture(FixedArchitecture):
    """torchvision's ResNet without its classifier.

    `stem`: imagenet (7×7, stride 2, max-pooling) or small (3×3). `inputs`: how the weights expect
    images, `centred` in [-1, 1] as all networks here get them, or `imagenet`: the network then
    first brings those to the mean and deviation of ImageNet's colours.
    """

    stem: str = "imagenet"
    inputs: str = "centred"

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.name in RESNETS, self.name
        assert self.stem in STEMS, self.stem
        assert self.inputs in INPUTS, self.inputs

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of every block."""
        blocks, widths = RESNETS[self.name]
        return tuple(wide for wide, n in zip(widths, blocks, strict=True) for _ in range(n))

    def network(self, generator: torch.Generator | None) -> Backbone:
        """The network itself, with weights that `generator` draws."""
        from sseg_nase.nets.vision import ResNet

        return ResNet(self, generator=generator)


@dataclass(frozen=True)
class ViTArchitecture(FixedArchitecture):
    """ViT-S by torchvision's VisionTransformer; `inputs` as in `ResNetArchitecture`."""

    patch_size: int = 16
    inputs: str = "centred"
    hidden: int = 384
    layers: int = 12
    heads: int = 6
    mlp: int = 1536

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.resolution % self.patch_size == 0, (self.resolution, self.patch_size)
        assert self.inputs in INPUTS, self.inputs

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of every block."""
        return (self.hidden,) * self.layers

    @property
    def any_resolution(self) -> bool:
        """There is one position embedding per patch."""
        return False

    def network(self, generator: torch.Generator | None) -> Backbone:
        """The network itself, with weights that `generator` draws."""
        from sseg_nase.nets.vision import VisionTransformer

        return VisionTransformer(self, generator=generator)


FIXED: Mapping[str, type[FixedArchitecture]] = {
    "resnet12": ResNet12Architecture,
    "resnet12_quarter": ResNet12Architecture,
    **dict.fromkeys(RESNETS, ResNetArchitecture),
    "vit_small": ViTArchitecture,
}


@cache
def _wiring(architecture: FixedArchitecture) -> Wiring:
    with torch.device("meta"):
        names = list(architecture.network(None).state_dict())
    return wired(names, architecture.wires())


@cache
def _counted(architecture: FixedArchitecture) -> tuple[int, int]:
    """Params and macs."""
    with torch.device("meta"):
        network = architecture.network(None)
    macs = count_macs(network, architecture.resolution, architecture.in_channels)
    return count_params(network), macs
