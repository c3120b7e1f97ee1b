"""`backbone`: the network. Its other options stand in `sseg_nase.nets.families`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, ClassVar, Optional

from sseg_nase.config.options import Option, group, option, register


@group("backbone")
@dataclass(frozen=True)
class BackboneConfig(Option):
    """What all backbones have.

    `evolves`: mutations and pruning know how to change its widths; `grows`: and its blocks.
    `described_by`: MODULE:CLASS of its descriptions (`nets.description.Family`), imported where one
    is wanted. `exact`: of a checkpoint that is to hold it, the whole network must be this one, not
    the name alone. `takes_imports`: it may have operations of the user's own.
    """

    in_channels: Annotated[int, option(choices=(1, 3))]
    imports: Annotated[Optional[str], option(path="a file that registers operations of your own")]
    evolves: ClassVar[bool] = False
    grows: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    takes_imports: ClassVar[bool] = False
    described_by: ClassVar[str]

    @property
    def one_size(self) -> bool:
        """Whether it embeds images of one size only."""
        return False

    def unfit(self, image_size: int) -> Iterator[str]:
        """Yield a sentence for everything that is wrong with images of that size."""
        return iter(())


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
    described_by: ClassVar[str] = "sseg_nase.nets.architecture:Architecture"

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


@dataclass(frozen=True)
class Planned(BackboneConfig):
    """Backbones that are made of operations, which `plan` says; the rest follows from these."""

    evolves, once_null = True, False
    described_by: ClassVar[str] = "sseg_nase.nets.searched:SearchedArchitecture"

    @classmethod
    def genome(cls, image_size: int) -> Any:
        """Return what `space=families` chooses of it, a `sseg_nase.nets.genome.Genome`, or None."""
        return None

    def plan(self, image_size: int) -> Any:
        """Return the operations for such images, a `sseg_nase.nets.plan.Plan`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Pretrained(BackboneConfig):
    """Backbones that may begin with weights from outside. `weights` None: random ones."""

    weights: Annotated[Optional[str], option(path="a file of weights, or imagenet,")]


def stages_fit(channels: Sequence[int], depths: Sequence[int], such: str) -> Iterator[str]:
    """Every stage has its channels and its number of blocks; `such`: some that are accepted."""
    if not channels or len(channels) != len(depths):
        yield (
            f"backbone.channels={list(channels)} backbone.depths={list(depths)}: one number for "
            f"every stage is needed in each of them, such as {such}."
        )


def patches_fit(patch_size: int, image_size: int) -> Iterator[str]:
    """Square patches fill the images."""
    if image_size % patch_size:
        fitting = [n for n in range(4, 33) if image_size % n == 0]
        yield (
            f"backbone.patch_size={patch_size}: it must divide dataset.image_size={image_size}; "
            f"set one of {fitting}, or another dataset.image_size."
        )


# By name, as they stand above; each of them registers its option, and imports no torch.
import_module("sseg_nase.nets.families")
