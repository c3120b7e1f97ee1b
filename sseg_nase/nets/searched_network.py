"""The network of a `SearchedArchitecture`: its operations, run in order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sseg_nase.nets import ops
from sseg_nase.nets.backbone import Backbone, drawing_from
from sseg_nase.nets.evolvable import initialize
from sseg_nase.nets.searched import IMAGE, SearchedArchitecture


class SearchedNetwork(Backbone):
    """Embeds images `[B, C, S, S]` as `[B, features]`; a module per node, named by its place."""

    architecture: SearchedArchitecture

    def __init__(
        self, architecture: SearchedArchitecture, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.architecture = architecture
        shapes = [*architecture.shapes(), (architecture.in_channels, architecture.resolution)]
        self.blocks = nn.ModuleDict()
        with drawing_from(generator):
            for block, numbers in architecture.blocks():
                parts = nn.ModuleDict()
                for number in numbers:
                    node = architecture.nodes[number]
                    read = [shapes[source][0] for source in node.inputs]
                    inside = sum(read) if node.join == "concat" else read[0]
                    parts[node.module] = ops.build_operation(
                        node.op, inside, node.channels, node.stride, dict(node.options)
                    )
                self.blocks[block] = parts
        initialize(self, generator)

    def operation(self, number: int) -> nn.Module:
        """The module of a node."""
        node = self.architecture.nodes[number]
        return self.blocks[node.block][node.module]  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        """Embed `[B, C, H, W]` as `[B, features]`."""
        return self.last_map(x).mean(dim=(2, 3))

    def last_map(self, x: Tensor) -> Tensor:
        """The map `[B, features, H', W']` that is averaged."""
        maps: list[Tensor | None] = []
        last = self.architecture.last_reads()
        for number, node in enumerate(self.architecture.nodes):
            read: list[Tensor] = []
            for source in node.inputs:
                given = x if source == IMAGE else maps[source]
                assert given is not None
                read.append(given)
            joined = torch.cat(read, 1) if node.join == "concat" else read[0]
            if node.join == "sum":
                for other in read[1:]:
                    joined = joined + other
            maps.append(self.run(self.operation(number), joined))
            for source in node.inputs:  # what nothing reads any more
                if source != IMAGE and last[source] == number:
                    maps[source] = None
        found = maps[-1]
        assert found is not None
        return found

    def stages(self) -> list[nn.Module]:
        """The blocks in order."""
        return list(self.blocks.values())
