"""A network of operations, as data and built from it.

Whatever a search space describes becomes this: one description, one count and one builder for
cells, chains and families. It needs its space no more once it is written down.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sseg_nase.config.groups.backbone import Planned
from sseg_nase.errors import UserError
from sseg_nase.nets import ops, searched_axes
from sseg_nase.nets.backbone import Backbone, drawing_from
from sseg_nase.nets.evolvable import initialize
from sseg_nase.nets.family import FamilyArchitecture
from sseg_nase.nets.maps import Axis, Wires
from sseg_nase.nets.plan import IMAGE, JOINS, Node


class Shape(NamedTuple):
    """Of a square map `[channels, side, side]`."""

    channels: int
    side: int


class Count(NamedTuple):
    """Params, macs of one image, and bytes in float32: weights and the largest maps at one time."""

    params: int
    macs: int
    memory: int


@dataclass(frozen=True)
class SearchedArchitecture(FamilyArchitecture):
    """A network of operations: out of a search space, or of a family that says them in `plan`.

    Its embedding is the average over the last node's map. `space` and `point` say where it comes
    from, as text; nothing but people reads them.
    """

    nodes: tuple[Node, ...] = ()
    space: str = ""
    point: str = ""
    _cached: dict[str, Any] = field(default_factory=dict, compare=False, repr=False, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.nodes:
            raise UserError(f"A network of space {self.space!r} has no operations.")
        places = set()
        for number, node in enumerate(self.nodes):
            if node.place in places or not node.inputs or node.join not in JOINS:
                raise UserError(
                    f"Node {node.place!r} is named twice, reads nothing, or joins its inputs by "
                    f"none of {', '.join(JOINS)}."
                )
            if not all(IMAGE <= source < number for source in node.inputs):
                raise UserError(f"Node {node.place!r} reads {node.inputs}: none comes before it.")
            places.add(node.place)
        ops.check_operations(node.op for node in self.nodes)

    @classmethod
    def configured(cls, backbone: Planned, image_size: int) -> SearchedArchitecture:
        """The untrained network of a run, of a family that says its operations."""
        nodes = tuple(backbone.plan(image_size).nodes)
        return cls(backbone.name, image_size, backbone.in_channels, nodes)

    def network(self, generator: torch.Generator | None) -> SearchedNetwork:
        """The network itself, with weights that `generator` draws."""
        return SearchedNetwork(self, generator=generator)

    @property
    def usual(self) -> Mapping[str, int]:
        """Channels of every axis whose operations are known to the last channel."""
        return self._found.widths

    @property
    def embedding_axis(self) -> Axis | None:
        """The axes of the last node's map, where they may change."""
        return self._found.embedding

    def wires(self) -> Mapping[str, Wires]:
        """Those of the tensors that have named axes."""
        return self._found.wires

    def with_widths(self, widths: Mapping[str, int]) -> SearchedArchitecture:
        """The same network with as many channels in the named axes: in its nodes."""
        if all(self.axes[name] == wide for name, wide in widths.items()):
            return self
        return replace(self, nodes=searched_axes.resized(self.nodes, self._found, widths))

    @property
    def _found(self) -> searched_axes.Found:
        if "axes" not in self._cached:
            insides = []
            channels = [*(shape.channels for shape in self.shapes()), self.in_channels]
            for node in self.nodes:
                read = [channels[source] for source in node.inputs]
                insides.append(sum(read) if node.join == "concat" else read[0])
            self._cached["axes"] = searched_axes.axes_of(self.nodes, insides, IMAGE)
        return self._cached["axes"]

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of every block."""
        last = {
            node.block: shape.channels
            for node, shape in zip(self.nodes, self.shapes(), strict=True)
        }
        return tuple(last.values())

    @property
    def features(self) -> int:
        """Length of the embedding."""
        return self.shapes()[-1].channels

    @property
    def any_resolution(self) -> bool:
        """Whether the same weights take images of other sizes, too."""
        return not any(node.op in ops.ONE_SIZE for node in self.nodes)

    @property
    def params(self) -> int:
        """Trainable parameters, operation by operation."""
        return self.count().params

    def macs(self, resolution: int | None = None) -> int:
        """Multiply-accumulates of one forward at `resolution`, operation by operation."""
        at = self if resolution in (None, self.resolution) else self.at(int(resolution or 0))
        return at.count().macs

    def shapes(self) -> list[Shape]:
        """The map that each node gives."""
        return [shape for shape, _ in self._walk]

    def count(self) -> Count:
        """Params, macs and memory, without weights."""
        if "count" not in self._cached:
            costs = [cost for _, cost in self._walk]
            params = sum(cost.params for cost in costs)
            macs = sum(cost.macs for cost in costs)
            self._cached["count"] = Count(params, macs, 4 * (params + self._largest()))
        return self._cached["count"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `building.described` reads it back."""
        head = ("name", "resolution", "in_channels", "space", "point")
        return {name: getattr(self, name) for name in head} | {
            "nodes": [
                {
                    "place": node.place,
                    "op": node.op,
                    "inputs": list(node.inputs),
                    "channels": node.channels,
                    "stride": node.stride,
                    "join": node.join,
                    "options": dict(node.options),
                }
                for node in self.nodes
            ]
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SearchedArchitecture:
        """Rebuild what `to_dict` wrote."""
        nodes = tuple(
            Node(
                **{
                    **node,
                    "inputs": tuple(node["inputs"]),
                    "options": tuple(sorted(node["options"].items())),
                }
            )
            for node in data["nodes"]
        )
        return cls(**{**data, "nodes": nodes})

    def blocks(self) -> Iterator[tuple[str, list[int]]]:
        """Every block with the numbers of its nodes."""
        found: dict[str, list[int]] = {}
        for number, node in enumerate(self.nodes):
            found.setdefault(node.block, []).append(number)
        yield from found.items()

    def operations(self) -> dict[tuple[str, str], tuple[Any, ...]]:
        """Every operation with its options by block and module name, as the network has them."""
        return {
            (node.block, node.module): (node.op, node.stride, node.options) for node in self.nodes
        }

    def last_reads(self) -> list[int]:
        """Per node, the number of the last node that reads it; its own where none does."""
        last = list(range(len(self.nodes)))
        for number, node in enumerate(self.nodes):
            for source in node.inputs:
                if source != IMAGE:
                    last[source] = number
        return last

    @property
    def _walk(self) -> list[tuple[Shape, ops.Cost]]:
        if "walk" not in self._cached:
            self._cached["walk"] = self._walked()
        return self._cached["walk"]

    def _walked(self) -> list[tuple[Shape, ops.Cost]]:
        shapes = [Shape(0, 0)] * len(self.nodes)
        shapes.append(Shape(self.in_channels, self.resolution))  # IMAGE is the last
        found = []
        for number, node in enumerate(self.nodes):
            read = [shapes[source] for source in node.inputs]
            if len({shape.side for shape in read}) > 1 or (
                node.join == "sum" and len({shape.channels for shape in read}) > 1
            ):
                raise UserError(f"Node {node.place!r} joins maps that do not fit: {read}.")
            inside = sum(s.channels for s in read) if node.join == "concat" else read[0].channels
            side = read[0].side
            cost = ops.cost(node.op, inside, node.channels, node.stride, side, node.options)
            shapes[number] = Shape(cost.channels, cost.side)
            found.append((shapes[number], cost))
        return found

    def _largest(self) -> int:
        """Numbers in all maps that are alive at once, at most."""
        sizes = [shape.channels * shape.side**2 for shape in self.shapes()]
        image = self.in_channels * self.resolution**2
        image_until = max(n for n, node in enumerate(self.nodes) if IMAGE in node.inputs)
        last, largest = self.last_reads(), 0
        for now in range(len(self.nodes)):
            alive = sum(sizes[n] for n in range(now + 1) if last[n] >= now)
            largest = max(largest, alive + (image if now <= image_until else 0))
        return largest


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
