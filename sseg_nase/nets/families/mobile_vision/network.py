"""torchvision's networks for phones up to their last map; only what builds one imports this."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.ops.misc import Conv2dNormActivation

from sseg_nase.nets.backbone import Backbone, drawing_from
from sseg_nase.nets.convolutions import for_cpu
from sseg_nase.nets.families.mobile_vision import MobileVision
from sseg_nase.nets.family import FamilyArchitecture
from sseg_nase.nets.ops import Layers
from sseg_nase.nets.plan import SMALLEST

# Of EfficientNet-B0: expansion, kernel, stride, channels in and out, blocks (Tan and Le 2019).
B0 = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)


def _v2(width: float) -> nn.Sequential:
    return models.mobilenet_v2(weights=None, width_mult=width).features


def _v3(width: float) -> nn.Sequential:
    return models.mobilenet_v3_small(weights=None).features


def _b0(width: float) -> nn.Sequential:
    settings = [MBConvConfig(*stage, width_mult=width) for stage in B0]
    # Depth is not drawn at random: no network here draws random numbers in its forward pass.
    return EfficientNet(settings, dropout=0.0, stochastic_depth_prob=0.0).features


# MobileNetV3's 0.01 is for a million steps: after a few hundred, what is evaluated would still be
# normalised as at the start, and its answers would be chance.
MOMENTUM = 0.1

FEATURES: Mapping[str, Callable[[float], nn.Sequential]] = {
    "mobilenet_v2_035": _v2,
    "mobilenet_v3_small": _v3,
    "efficientnet_b0_narrow": _b0,
}


@dataclass(frozen=True)
class MobileArchitecture(FamilyArchitecture):
    """One of `FEATURES`; of its five halvings the last `halvings` are there."""

    width: float = 1.0
    halvings: int = 5

    @classmethod
    def configured(cls, backbone: MobileVision, image_size: int) -> MobileArchitecture:
        """The untrained network of a run: small images are halved later, down to 4 pixels."""
        halvings = min(cls.halvings, max(0, int(math.log2(image_size / SMALLEST))))
        width = getattr(backbone, "width", 1.0)
        return cls(backbone.name, image_size, backbone.in_channels, width, halvings)

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of every block."""
        return _channels(self)

    def network(self, generator: torch.Generator | None) -> nn.Module:
        """The network itself, with weights that `generator` draws."""
        return MobileNetwork(self, generator=generator)


class MobileNetwork(Backbone):
    """The blocks of torchvision's network, and the average over the last map."""

    architecture: MobileArchitecture
    features: nn.Sequential

    def __init__(
        self, architecture: MobileArchitecture, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.architecture = architecture
        with drawing_from(generator):
            self.features = FEATURES[architecture.name](architecture.width)
            if architecture.in_channels != 3:
                stem = self.features[0]
                assert isinstance(stem, nn.Sequential), stem
                old = stem[0]
                assert isinstance(old, nn.Conv2d), old
                new = nn.Conv2d(architecture.in_channels, old.out_channels, 3, 2, 1, bias=False)
                nn.init.kaiming_normal_(new.weight, mode="fan_out")
                stem[0] = new
        for norm in self.features.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = MOMENTUM
        halving = [m for m in self.features.modules() if getattr(m, "stride", 1) == (2, 2)]
        for conv in halving[: len(halving) - architecture.halvings]:
            assert isinstance(conv, nn.Conv2d), conv
            conv.stride = (1, 1)
        for_cpu(self.features)
        for layers in self.features.modules():
            if type(layers) is Conv2dNormActivation:
                layers.__class__ = Layers

    def stages(self) -> list[nn.Module]:
        """The blocks in order."""
        return list(self.features)

    def forward(self, x: Tensor) -> Tensor:
        """Embed `[B, C, H, W]` as `[B, features]`."""
        for block in self.features:
            x = self.run(block, x)
        return x.mean(dim=(2, 3))


@cache
def _channels(architecture: MobileArchitecture) -> tuple[int, ...]:
    """What every block gives, of one image on a device without numbers."""
    with torch.device("meta"):
        network = MobileNetwork(architecture).eval()
        side = architecture.resolution
        x = torch.empty(1, architecture.in_channels, side, side)
        found = []
        for block in network.features:
            x = block(x)
            found.append(x.shape[1])
    return tuple(found)
