"""torchvision's ResNets without their classifiers. Only what builds one imports this module."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import resnet

from sseg_nase.nets.backbone import drawing_from
from sseg_nase.nets.convolutions import for_cpu
from sseg_nase.nets.families.resnet import ResNet as ResNetConfig
from sseg_nase.nets.family import FamilyArchitecture
from sseg_nase.nets.fused import norm_act_pool
from sseg_nase.nets.maps import IMAGES, Axis, Wires, module
from sseg_nase.nets.vision import INPUTS, VisionBackbone

STEMS = ("imagenet", "small")
LARGEST_SMALL_IMAGE = 64  # up to here the small stem is the usual choice
STEM_CHANNELS = 64  # of torchvision's ResNets
# Residual blocks per stage, and channels of the stages' outputs.
RESNETS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "resnet18": ((2, 2, 2, 2), (64, 128, 256, 512)),
    "resnet34": ((3, 4, 6, 3), (64, 128, 256, 512)),
    "resnet50": ((3, 4, 6, 3), (256, 512, 1024, 2048)),
}


@dataclass(frozen=True)
class ResNetArchitecture(FamilyArchitecture):
    """torchvision's ResNet without its classifier.

    `stem`: imagenet (7×7, stride 2, max-pooling) or small (3×3). `inputs` as in `VisionBackbone`.
    """

    stem: str = "imagenet"
    inputs: str = "centred"

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.name in RESNETS, self.name
        assert self.stem in STEMS, self.stem
        assert self.inputs in INPUTS, self.inputs

    @classmethod
    def configured(cls, backbone: ResNetConfig, image_size: int) -> ResNetArchitecture:
        """The untrained network of a run."""
        stem = backbone.stem
        if stem == "auto":
            small = image_size <= LARGEST_SMALL_IMAGE and not backbone.weights
            stem = "small" if small else "imagenet"
        inputs = "imagenet" if backbone.weights else "centred"
        return cls(backbone.name, image_size, backbone.in_channels, stem, inputs)

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

    def network(self, generator: torch.Generator | None) -> nn.Module:
        """The network itself, with weights that `generator` draws."""
        return ResNet(self, generator=generator)


class BasicBlock(resnet.BasicBlock):
    """torchvision's, with its norms, shortcut and activations each in one go."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C', H', W']`."""
        y = norm_act_pool(self.bn1, self.conv1(x), activation="relu")
        shortcut = _shortcut(self, x)
        return norm_act_pool(self.bn2, self.conv2(y), shortcut=shortcut, activation="relu")


class Bottleneck(resnet.Bottleneck):
    """torchvision's, as `BasicBlock`."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C', H', W']`."""
        y = norm_act_pool(self.bn1, self.conv1(x), activation="relu")
        y = norm_act_pool(self.bn2, self.conv2(y), activation="relu")
        shortcut = _shortcut(self, x)
        return norm_act_pool(self.bn3, self.conv3(y), shortcut=shortcut, activation="relu")


BLOCKS: Mapping[type[nn.Module], type[nn.Module]] = {
    resnet.BasicBlock: BasicBlock,
    resnet.Bottleneck: Bottleneck,
}


def _shortcut(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    if block.downsample is None:
        return x
    conv, norm = block.downsample
    return norm_act_pool(norm, conv(x))


class ResNet(VisionBackbone):
    """torchvision's ResNet up to the average over the last map."""

    architecture: ResNetArchitecture
    classifier = "fc."
    stem = "conv1.weight"
    body: models.ResNet

    def __init__(
        self, architecture: ResNetArchitecture, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(architecture, architecture.inputs)
        with drawing_from(generator):
            # Every layer of one that has been altered is built again: these need no weights.
            drawn = torch.device("meta") if architecture.altered else nullcontext()
            with drawn:
                self.body = models.get_model(architecture.name, weights=None)
            small = architecture.stem == "small"
            if small or architecture.in_channels != 3:
                side, stride = (3, 1) if small else (7, 2)
                self.body.conv1 = nn.Conv2d(
                    architecture.in_channels, 64, side, stride, padding=side // 2, bias=False
                )
                nn.init.kaiming_normal_(self.body.conv1.weight, mode="fan_out")
            self._resize(everything=True)
        for part in self.body.modules():
            part.__class__ = BLOCKS.get(type(part), type(part))
        if small:
            self.body.maxpool = nn.Identity()
        self.body.fc = nn.Identity()
        for_cpu(self.body)

    def stages(self) -> list[nn.Module]:
        """The four stages in order, the first one with the stem."""
        body = self.body
        first = nn.ModuleList((body.conv1, body.bn1, body.layer1))
        return [first, body.layer2, body.layer3, body.layer4]

    def forward(self, x: Tensor) -> Tensor:
        """Embed `[B, C, H, W]` as `[B, features]`."""
        body = self.body
        x = norm_act_pool(body.bn1, body.conv1(self.prepared(x)), activation="relu")
        x = body.maxpool(x)
        for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
            for block in stage:
                x = self.run(block, x)
        return x.mean(dim=(2, 3))
