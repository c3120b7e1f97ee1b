"""Operations in the order in which they run, and what each of them reads: a network as data.

It imports no torch, so that the option of a family may say its operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

JOINS = ("sum", "concat")
IMAGE = -1  # as an input: the images
ACTIVATIONS = ("relu", "leaky_relu", "elu", "selu", "gelu", "silu")
SMALLEST = 4  # pixels: maps are halved down to these


@dataclass(frozen=True)
class Node:
    """One operation. `inputs` are the numbers of earlier nodes, `IMAGE` the images.

    `place` names it, unlike any other: `cell3.0-2`. What stands before the first point is its
    block, and nodes of one block follow each other. Several inputs are summed or concatenated
    before the operation; their shapes must fit.
    """

    place: str
    op: str
    inputs: tuple[int, ...]
    channels: int
    stride: int = 1
    join: str = "sum"
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def block(self) -> str:
        """The block that it belongs to."""
        return self.place.partition(".")[0]

    @property
    def module(self) -> str:
        """The name of its module within the block: no points in it."""
        return self.place.partition(".")[2].replace(".", "_") or "op"


class Plan:
    """Nodes under construction; `add` returns the number by which later nodes read one."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def add(
        self,
        place: str,
        op: str,
        inputs: int | Sequence[int],
        channels: int,
        stride: int = 1,
        *,
        join: str = "sum",
        **options: Any,
    ) -> int:
        """Append a node."""
        read = (inputs,) if isinstance(inputs, int) else tuple(inputs)
        options |= getattr(op, "options", {})  # several at once bring some: `mixed.Mixture`
        given = tuple(sorted(options.items()))
        self.nodes.append(Node(place, str(op), read, channels, stride, join, given))
        return len(self.nodes) - 1


def halving(side: int) -> int:
    """The stride that halves a map of `side` pixels, 1 where it would become too small."""
    return 2 if side >= 2 * SMALLEST else 1
