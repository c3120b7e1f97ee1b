"""torchvision's networks for phones: MobileNetV2, MobileNetV3-Small, EfficientNet-B0, narrowed.

Sandler et al. 2018; Howard et al. 2019; Tan and Le 2019. With random weights and as they are: the
baselines of small networks that are searched for. What is to be widened and pruned is
`backbone=mobilenet` and `backbone=efficientnet`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from sseg_nase.config.groups.backbone import BackboneConfig
from sseg_nase.config.options import option, register


@register("backbone", "mobilenet_v3_small")
@dataclass(frozen=True)
class MobileVision(BackboneConfig):
    """One of torchvision's, without its classifier."""

    once_null = False
    described_by: ClassVar[str] = f"{__name__}.network:MobileArchitecture"


@register("backbone", "mobilenet_v2_035", "efficientnet_b0_narrow")
@dataclass(frozen=True)
class Scaled(MobileVision):
    """Those whose channels are scaled: `width` times as many, in multiples of 8."""

    width: Annotated[float, option(above=0, most=4)]
