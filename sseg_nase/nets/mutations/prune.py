"""PRUNE: channels of the named axes of a network go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sseg_nase.errors import UserError
from sseg_nase.kinds import register
from sseg_nase.nets.description import Description
from sseg_nase.nets.maps import ChannelMap
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.operator import Operator, numbered, resized

KIND = "PRUNE"


def prune(before: Description, kept: Sequence[Sequence[int]]) -> Mutation:
    """PRUNE: keep the channels `kept[a]` of every axis a (ascending) and remove all others.

    The axes are those of `before.axes`, in their order; of a chain one per block. The result
    computes what the network with all other channels masked to 0 computes.
    """
    what, several = ("block", "blocks") if numbered(before) else ("axis", "axes")
    if len(kept) != len(before.axes):
        raise UserError(
            f"{KIND} of {len(before.axes)} {several}: name the channels to keep of every one, "
            f"not of {len(kept)}"
        )
    spaces = {}
    for number, (axis, width) in enumerate(before.axes.items()):
        ordered = tuple(sorted(set(kept[number])))
        if not ordered or ordered[0] < 0 or ordered[-1] >= width:
            called = number if numbered(before) else axis
            raise UserError(
                f"{KIND} {what} {called}: channels to keep must be some of "
                f"0 to {width - 1}, not {list(kept[number])}"
            )
        spaces[axis] = ChannelMap(ordered, width)
    removed = {
        str(number) if numbered(before) else axis: sorted(set(range(space.old)) - set(space.index))
        for number, (axis, space) in enumerate(spaces.items())
        if not space.is_same
    }
    return resized(KIND, {"removed": removed}, before, spaces)


class Prune(Operator):
    """What is least important goes, and what is left computes what it did."""

    name, code = KIND, 3
    colour, marker = "green", "v"
    removes = True

    def rebuild(self, target: Mapping[str, Any], before: Description) -> Mutation:
        """From the removed channels that the record names."""
        gone = target["removed"]
        names = [str(n) if numbered(before) else axis for n, axis in enumerate(before.axes)]
        left = {name: set(channels) for name, channels in gone.items()}
        return prune(
            before,
            [
                [channel for channel in range(width) if channel not in left.get(name, ())]
                for name, width in zip(names, before.axes.values(), strict=True)
            ],
        )

    def describe(self, target: Mapping[str, Any]) -> str:
        """How many channels every block or axis has lost."""
        removed = target.get("removed")
        if not isinstance(removed, Mapping):
            return super().describe(target)
        return ", ".join(
            f"{_called(name)}: {len(channels)} channels removed"
            for name, channels in removed.items()
            if isinstance(channels, list)
        )

    def removed(self, target: Mapping[str, Any]) -> int:
        """How many channels are gone."""
        return sum(len(channels) for channels in target["removed"].values())


def _called(name: str) -> str:
    return f"block {int(name) + 1}" if name.isdigit() else name


register(Prune())
