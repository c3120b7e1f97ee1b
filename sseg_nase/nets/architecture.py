"""What a backbone is, as data: enough to build it, to count it and to replay how it came to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sseg_nase import counting
from sseg_nase.counting import pools
from sseg_nase.nets.description import summarize
from sseg_nase.nets.maps import IMAGES, Axis, Wires, layer

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sseg_nase.config.groups.backbone import Chain

__all__ = ["Architecture", "Block", "pools"]

NETWORK = "sseg_nase.nets.evolvable"  # by name: it has operators for use by hand, which know this


@dataclass(frozen=True)
class Block:
    """One ConvBlock. `routed`: the shortcut is a fixed channel routing, not the identity."""

    channels: int
    pool: bool = True
    residual: bool = False
    routed: bool = False

    def __post_init__(self) -> None:
        assert self.channels >= 1, self
        assert self.residual or not self.routed, self


@dataclass(frozen=True)
class Architecture:
    """A chain of ConvBlocks and how its last map becomes an embedding."""

    blocks: tuple[Block, ...]
    resolution: int
    in_channels: int = 3
    kernel_size: int = 3
    activation: str = "relu"
    batch_norm: bool = True
    embedding: str = "average"

    def __post_init__(self) -> None:
        assert self.blocks, "an architecture has at least one block"
        assert self.resolution >= 1, self.resolution

    @classmethod
    def seed(
        cls,
        channels: list[int] | tuple[int, ...] = (16, 32, 64),
        *,
        resolution: int,
        in_channels: int = 3,
        kernel_size: int = 3,
        activation: str = "relu",
        batch_norm: bool = True,
        pooling: bool = True,
        blocks_per_stage: int = 1,
        pooled_blocks: int | None = None,
        residual: bool = False,
        embedding: str = "average",
    ) -> Architecture:
        """The starting network: blocks of `channels`, all alike.

        With `blocks_per_stage` each is a stage of so many: the first as it would be alone, residual
        ones behind it, and the last of them pools. That is what `grow_stages` leads to. With
        `pooled_blocks` only the first so many, or those of the first so many stages, pool.
        """
        listed = counting.blocks(
            channels, per_stage=blocks_per_stage, pooling=pooling, pooled=pooled_blocks
        )
        blocks = tuple(
            Block(c, pool=pool, residual=residual or number % blocks_per_stage > 0)
            for number, (c, pool) in enumerate(listed)
        )
        return cls(
            blocks,
            resolution=resolution,
            in_channels=in_channels,
            kernel_size=kernel_size,
            activation=activation,
            batch_norm=batch_norm,
            embedding=embedding,
        )

    @classmethod
    def configured(cls, backbone: Chain, image_size: int) -> Architecture:
        """The untrained network of a run."""
        return cls.seed(
            backbone.channels,
            resolution=image_size,
            in_channels=backbone.in_channels,
            kernel_size=backbone.kernel_size,
            activation=backbone.activation,
            batch_norm=backbone.batch_norm,
            pooling=backbone.pooling,
            blocks_per_stage=backbone.blocks_per_stage,
            pooled_blocks=backbone.pooled_blocks,
            residual=backbone.residual,
            embedding=backbone.embedding,
        )

    @property
    def name(self) -> str:
        """What this kind of network is called."""
        return "evolvable"

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of every block."""
        return tuple(block.channels for block in self.blocks)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every space: the input first, then each block's output."""
        return (self.in_channels, *self.channels)

    def sides(self, resolution: int | None = None) -> tuple[int, ...]:
        """Side of the square map in every space: the input first, then each block's output."""
        return counting.sides(resolution or self.resolution, [block.pool for block in self.blocks])

    @property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the blocks, from 0, that compute on maps of one size, from large to small."""
        return counting.stages(self.sides())

    @property
    def positions(self) -> int:
        """Entries of the embedding per channel of the last block."""
        return 1 if self.embedding == "average" else self.sides()[-1] ** 2

    @property
    def features(self) -> int:
        """Length of the embedding."""
        return self.channels[-1] * self.positions

    @property
    def axes(self) -> dict[str, int]:
        """Channels of every named axis: the output of each block."""
        return {f"blocks.{number}": wide for number, wide in enumerate(self.channels)}

    @property
    def embedding_axis(self) -> Axis:
        """The channels of the last block, each with its positions."""
        return Axis((f"blocks.{len(self.blocks) - 1}",), positions=self.positions)

    def wiring(self) -> dict[str, Wires]:
        """The names of the axes of every tensor in the network's state dict."""
        wiring: dict[str, Wires] = {}
        into = IMAGES
        for out, block in zip(self.axes, self.blocks, strict=True):
            wiring[f"{out}.conv.weight"] = layer(4, [out], [into])
            if self.batch_norm:
                for part in ("weight", "bias", "running_mean", "running_var"):
                    wiring[f"{out}.norm.{part}"] = layer(1, [out])
                wiring[f"{out}.norm.num_batches_tracked"] = Wires()
            else:
                wiring[f"{out}.conv.bias"] = layer(1, [out])
            if block.routed:
                wiring[f"{out}.routing"] = replace(layer(2, [out], [into]), routes=True)
            into = out
        return wiring

    def with_widths(self, widths: Mapping[str, int]) -> Architecture:
        """The same network with as many channels in the named axes."""
        found = {**self.axes, **widths}.values()
        return replace(
            self,
            blocks=tuple(
                replace(block, channels=wide)
                for block, wide in zip(self.blocks, found, strict=True)
            ),
        )

    def network(self, generator: torch.Generator | None) -> nn.Module:
        """The network itself, with weights that `generator` draws."""
        network: nn.Module = import_module(NETWORK).EvolvableCNN(self, generator=generator)
        return network

    @property
    def params(self) -> int:
        """Trainable parameters, by formula."""
        return counting.params(
            self.widths, kernel_size=self.kernel_size, batch_norm=self.batch_norm
        )

    def macs(self, resolution: int | None = None) -> int:
        """Multiply-accumulates of one forward at `resolution`, by formula (flops = 2 × macs)."""
        taps = [self.kernel_size**2 + (1 if block.routed else 0) for block in self.blocks]
        return counting.macs(self.widths, self.sides(resolution), taps)

    @property
    def any_resolution(self) -> bool:
        """Whether the same weights take images of other sizes, too."""
        return self.embedding == "average"

    def at(self, resolution: int) -> Architecture:
        """The same network for images of another size."""
        return replace(self, resolution=resolution)

    def with_block(self, index: int, **changes: Any) -> Architecture:
        """The same architecture with one block changed."""
        blocks = list(self.blocks)
        blocks[index] = replace(blocks[index], **changes)
        return replace(self, blocks=tuple(blocks))

    def summary(self) -> dict[str, Any]:
        """Counts under the names of `results.json`: macs and flops at `resolution`."""
        return summarize(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        return {**asdict(self), "blocks": [asdict(block) for block in self.blocks]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Architecture:
        """Rebuild what `to_dict` wrote."""
        return cls(**{**data, "blocks": tuple(Block(**block) for block in data["blocks"])})
