"""Networks of known families, as data: residual networks and a vision transformer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from sseg_nase.hardware.complexity import count_macs, count_params
from sseg_nase.nets.description import summarize
from sseg_nase.nets.maps import IMAGES, Axis, Wires, Wiring, module, wired

if TYPE_CHECKING:
    from sseg_nase.nets.backbone import Backbone

Fixed = TypeVar("Fixed", bound="FixedArchitecture")

STEMS = ("imagenet", "small")
INPUTS = ("centred", "imagenet")
LARGEST_SMALL_IMAGE = 64  # up to here the small stem is the usual choice


@dataclass(frozen=True)
class FixedArchitecture:
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

    def with_widths(self: Fixed, widths: Mapping[str, int]) -> Fixed:
        """The same network with as many channels in the named axes."""
        wanted, usual = {**self.axes, **widths}, self.usual
        altered = tuple((axis, wanted[axis]) for axis in usual if wanted[axis] != usual[axis])
        return replace(self, altered=altered)

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
        data = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}
        altered = data.pop("altered")
        return data | ({"altered": dict(altered)} if altered else {})

    @classmethod
    def from_dict(cls: type[Fixed], data: Mapping[str, Any]) -> Fixed:
        """Rebuild what `to_dict` wrote."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        altered = values.pop("altered", {})  # most networks have none
        return cls(**values, altered=tuple((axis, wide) for axis, wide in altered.items()))


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
        return tuple(self.axes[f"blocks.{number}"] for number in range(len(self.widths)))

    @property
    def usual(self) -> dict[str, int]:
        """Of every block the channels inside, and those of the sum that it ends with."""
        return {
            f"blocks.{number}{part}": wide
            for number, wide in enumerate(self.widths)
            for part in (".conv1", ".conv2", "")
        }

    @property
    def embedding_axis(self) -> Axis:
        """The last block's sum."""
        return Axis((f"blocks.{len(self.widths) - 1}",))

    def wires(self) -> dict[str, Wires]:
        """The convolution beside the other three makes the same channels: their sum is one axis."""
        wires: dict[str, Wires] = {}
        into = IMAGES
        for number in range(len(self.widths)):
            out = f"blocks.{number}"
            first, second = f"{out}.conv1", f"{out}.conv2"
            chain = ((first, into), (second, first), (out, second))
            for place, (makes, reads) in enumerate(chain, start=1):
                wires |= module(f"{out}.conv{place}", [makes], [reads])
                wires |= module(f"{out}.norm{place}", [makes])
            wires |= module(f"{out}.shortcut_conv", [out], [into])
            wires |= module(f"{out}.shortcut_norm", [out])
            into = out
        return wires

    def network(self, generator: torch.Generator | None) -> Backbone:
        """The network itself, with weights that `generator` draws."""
        from sseg_nase.nets.resnet12 import ResNet12

        return ResNet12(self, generator=generator)


STEM_CHANNELS = 64  # of torchvision's ResNets
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
        blocks, _ = RESNETS[self.name]
        return tuple(self.axes[f"layer{s}"] for s, n in enumerate(blocks, 1) for _ in range(n))

    @property
    def bottleneck(self) -> bool:
        """Whether blocks have three convolutions, the last of them to four times the channels."""
        return RESNETS[self.name][1][0] > STEM_CHANNELS

    @property
    def usual(self) -> dict[str, int]:
        """Of every stage the channels of its sum, and of every block those inside.

        The stem's are those of the first stage's sum where that adds it as it is.
        """
        blocks, widths = RESNETS[self.name]
        inside = ("conv1", "conv2") if self.bottleneck else ("conv1",)
        found = {"conv1": STEM_CHANNELS} if self.bottleneck else {}
        for stage, (count, wide) in enumerate(zip(blocks, widths, strict=True)):
            found[f"layer{stage + 1}"] = wide
            for number in range(count):
                for conv in inside:
                    found[f"layer{stage + 1}.{number}.{conv}"] = STEM_CHANNELS * 2**stage
        return found

    @property
    def embedding_axis(self) -> Axis:
        """The last stage's sum."""
        return Axis((f"layer{len(RESNETS[self.name][0])}",))

    def wires(self) -> dict[str, Wires]:
        """All blocks of a stage add to one sum, which is one axis."""
        convs = 3 if self.bottleneck else 2
        stem = "conv1" if self.bottleneck else "layer1"
        wires = module("body.conv1", [stem], [IMAGES]) | module("body.bn1", [stem])
        before = stem
        for stage, count in enumerate(RESNETS[self.name][0], start=1):
            out = f"layer{stage}"
            for number in range(count):
                block = f"{out}.{number}"
                inside = [f"{block}.conv{place}" for place in range(1, convs)]
                chain = [before, *inside, out]
                for place, (reads, makes) in enumerate(itertools.pairwise(chain), start=1):
                    wires |= module(f"body.{block}.conv{place}", [makes], [reads])
                    wires |= module(f"body.{block}.bn{place}", [makes])
                wires |= module(f"body.{block}.downsample.0", [out], [before])
                wires |= module(f"body.{block}.downsample.1", [out])
                before = out
        return wires

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
    def usual(self) -> dict[str, int]:
        """The hidden units of every block's MLP; what blocks add to has its width for good."""
        return {f"layers.{number}.mlp": self.mlp for number in range(self.layers)}

    def wires(self) -> dict[str, Wires]:
        """The first layer of an MLP makes its hidden units, the second one reads them."""
        wires: dict[str, Wires] = {}
        for number in range(self.layers):
            units, mlp = [f"layers.{number}.mlp"], f"body.encoder.layers.encoder_layer_{number}.mlp"
            wires |= module(f"{mlp}.0", units)
            wires[f"{mlp}.0.weight"] = Wires((Axis(tuple(units)), None))
            wires[f"{mlp}.3.weight"] = Wires((None, Axis(tuple(units), reads=True)))
        return wires

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
