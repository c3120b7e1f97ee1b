"""`backbone`: the network. Described in `sseg_nase.nets.building`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Optional

from sseg_nase.config.options import Option, group, names_with, option, register


@group("backbone")
@dataclass(frozen=True)
class BackboneConfig(Option):
    """What all backbones have.

    `evolves`: mutations and pruning know how to change its widths; `grows`: and its blocks.
    """

    in_channels: Annotated[int, option(choices=(1, 3))]
    imports: Annotated[Optional[str], option(path="a file that registers operations of your own")]
    evolves: ClassVar[bool] = False
    grows: ClassVar[bool] = False

    @property
    def one_size(self) -> bool:
        """Whether it embeds images of one size only."""
        return False


@register("backbone", "evolvable", "seed_wide", "conv4", "conv4_wide", "sketch_cnn")
@dataclass(frozen=True)
class Chain(BackboneConfig):
    """A chain of ConvBlocks. `pooled_blocks` None: all of them pool."""

    channels: Annotated[list[int], option(least=1)]
    kernel_size: Annotated[int, option(choices=(1, 3, 5, 7))]
    activation: Annotated[str, option(choices=("relu", "leaky_relu", "gelu"))]
    batch_norm: bool
    pooling: bool
    blocks_per_stage: Annotated[int, option(least=1)]
    pooled_blocks: Annotated[Optional[int], option(least=0)]
    residual: bool
    embedding: Annotated[str, option(choices=("average", "flatten"))]
    evolves = grows = True

    @property
    def one_size(self) -> bool:
        """Where the last map is flattened."""
        return self.embedding == "flatten"

    def wrong(self) -> Iterator[str]:
        """There are blocks, and those that pool are among them."""
        pooled = self.pooled_blocks
        if not self.channels:
            yield "backbone.channels=[]: at least one block is needed, such as [16,32,64]."
        if pooled is None:
            return
        if not self.pooling:
            yield (
                f"backbone.pooled_blocks={pooled}: it has no effect with pooling=false; "
                "leave it out."
            )
        elif self.channels and pooled > len(self.channels):
            yield (
                f"backbone.pooled_blocks={pooled}: backbone.channels={self.channels} has only "
                f"{len(self.channels)} blocks."
            )


@register("backbone", "resnet12", "resnet12_quarter")
@dataclass(frozen=True)
class ResNet12(BackboneConfig):
    """Four residual blocks of three convolutions."""

    channels: Annotated[list[int], option(least=1)]
    evolves = True

    def wrong(self) -> Iterator[str]:
        """The blocks are four."""
        if not self.channels:
            yield "backbone.channels=[]: at least one block is needed, such as [16,32,64]."
        elif len(self.channels) != 4:
            yield (
                f"backbone.channels={self.channels}: backbone={self.name} has four blocks, "
                "such as [64,160,320,640]."
            )


@dataclass(frozen=True)
class Pretrained(BackboneConfig):
    """Backbones that may begin with weights from outside. `weights` None: with drawn ones."""

    weights: Annotated[Optional[str], option(path="a file of weights, or imagenet,")]


@register("backbone", "resnet18", "resnet34", "resnet50")
@dataclass(frozen=True)
class ResNet(Pretrained):
    """torchvision's."""

    stem: Annotated[str, option(choices=("auto", "imagenet", "small"))]
    evolves = True

    def wrong(self) -> Iterator[str]:
        """ImageNet's weights fit one stem."""
        if self.weights == "imagenet" and self.stem == "small":
            yield (
                "backbone.stem=small: backbone.weights=imagenet fits backbone.stem=imagenet only; "
                "leave one of them out."
            )


@register("backbone", "vit_small")
@dataclass(frozen=True)
class ViT(Pretrained):
    """torchvision's VisionTransformer in its small size."""

    patch_size: Annotated[int, option(least=1)]
    evolves = True

    @property
    def one_size(self) -> bool:
        """Its positions are those of one size."""
        return True

    def wrong(self) -> Iterator[str]:
        """There are no weights of ImageNet for it."""
        if self.weights == "imagenet":
            yield (
                f"backbone.weights=imagenet: torchvision has none for backbone={self.name}; "
                f"choose one of {', '.join(names_with(ResNet))}, or set backbone.weights=FILE."
            )


@register("backbone", "searched")
@dataclass(frozen=True)
class Searched(BackboneConfig):
    """A point of a search space."""

    space: str
    point: str
