"""What one network can take over from another one that no mutation has led to.

Tensors correspond that stand at the same place in the same operation: by block, that is by stage
and position, and by module. Of each the channels of named axes are matched axis by axis, so that
one of other widths is pruned or widened (new channels begin with no weight in what reads them), and
whatever has no counterpart is initialised. Where the networks differ in widths alone this is PRUNE
and WIDEN of all axes at once, and as exact as they are. So it is with a head that reads the
embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from sseg_nase.nets.description import Description
from sseg_nase.nets.maps import (
    FEATURES,
    IMAGES,
    NEW,
    Along,
    Axis,
    ChannelMap,
    TensorMap,
    Tensors,
    Wires,
    carry,
    wires_of_head,
)
from sseg_nase.nets.searched import SearchedArchitecture
from sseg_nase.nets.searched_axes import INNER

Shapes = Mapping[str, tuple[int, ...]]
# Options that say widths, what widths follow from that are said, or what has no weights.
_ASIDE = {*INNER, "pieces", "ranges", "expansion", "bottleneck", "activation"}


def correspondence(
    before: Description, after: Description, state: Mapping[str, Tensor] | None = None
) -> dict[str, TensorMap]:
    """Return one map per tensor of `after`; without a source where it is newly initialised.

    Of an axis that is narrower the channels with the largest weights in `state` stay, without it
    the first ones.
    """
    old, new = shapes_of(before), shapes_of(after)
    wires, wired_before = after.wiring(), before.wiring()
    same = _same_operations(before, after)
    axes = _Axes(before, after, state)
    return {
        name: axes.map(name, (old[name], shape), (wired_before[name], wires[name]))
        if name in old and same(name)
        else TensorMap(None)
        for name, shape in new.items()
    }


def head_correspondence(
    before: Description,
    after: Description,
    state: Mapping[str, Tensor],
    head: nn.Module,
    head_before: Mapping[str, Tensor],
) -> dict[str, TensorMap]:
    """Return one map per tensor of `head`, which stands on `after`, as `correspondence` does.

    `head_before` are the tensors of such a head on `before`, whose own are `state`. What reads the
    embedding is newly initialised where no channel of it has a counterpart.
    """
    axes = _Axes(before, after, state)
    wires, wired_before = (_on_embedding(head, each.embedding_axis) for each in (after, before))
    maps = {}
    for name, tensor in head.state_dict().items():
        maps[name] = TensorMap(None)
        if name in head_before:
            shapes = tuple(head_before[name].shape), tuple(tensor.shape)
            wired = wired_before[name], wires[name]
            maps[name] = axes.map(name, shapes, wired, matched=True)
    return maps


def _on_embedding(head: nn.Module, embedding: Axis | None) -> dict[str, Wires]:
    """The wiring of a head, by the names of the axes that the embedding consists of."""

    def named(axis: Axis | None) -> Axis | None:
        if axis is None or axis.names != (FEATURES,):
            return axis
        return None if embedding is None else replace(embedding, reads=axis.reads)

    found = wires_of_head(head, embedding)
    return {name: Wires(tuple(map(named, wires.axes))) for name, wires in found.items()}


class _Axes:
    """Which channels of the named axes of one network go on in another one."""

    def __init__(
        self, before: Description, after: Description, state: Mapping[str, Tensor] | None
    ) -> None:
        self.widths, self.wanted = (
            {IMAGES: each.in_channels, **each.axes} for each in (before, after)
        )
        self.kept = {
            name: _kept(name, self.widths[name], wide, before, state)
            for name, wide in self.wanted.items()
            if name in self.widths
        }

    def map(
        self,
        source: str,
        shapes: tuple[tuple[int, ...], tuple[int, ...]],
        wires: tuple[Wires, Wires],
        *,
        matched: bool = False,
    ) -> TensorMap:
        """Where a tensor comes from, by its shapes and wirings before and after.

        From nowhere where a dimension without a counterpart has another size; with `matched` also
        where a named one has none.
        """
        old, new = shapes
        if len(old) != len(new):
            return TensorMap(None)
        along: list[Along | None] = []
        for dim in range(len(new)):
            theirs, ours = (each.axes[dim] if dim < len(each.axes) else None for each in wires)
            found = self._channels(ours, theirs)
            if found is None or ours is None:
                if old[dim] != new[dim] or (matched and (ours or theirs)):
                    return TensorMap(None)
                along.append(None)
            else:
                along.append(Along(found, ours.reads))
        return TensorMap(source, tuple(along))

    def _channels(self, ours: Axis | None, theirs: Axis | None) -> ChannelMap | None:
        """Where the channels of a dimension come from; None: they have no counterparts."""
        if ours is None or theirs is None or ours.positions != theirs.positions:
            return None
        begins, end = {}, 0
        for name in theirs.names:
            begins[name] = end
            end += self.widths[name]
        if not {*ours.names} & {*begins}:
            return None
        index: list[int] = []
        for name in ours.names:
            chosen = [begins[name] + i for i in self.kept[name]] if name in begins else []
            index += chosen + [NEW] * (self.wanted[name] - len(chosen))
        return ChannelMap(tuple(index), end).spread(ours.positions)


def share(before: Description, after: Description) -> float:
    """Return the share of the parameters of `after` that continue some of `before`, 0 to 1.

    Counted from the descriptions: no weight is needed.
    """
    if type(before) is not type(after) or before.name != after.name:
        return 0.0
    return taken(correspondence(before, after), after) / after.params


def taken(maps: Mapping[str, TensorMap], after: Description) -> int:
    """Return how many parameters of `after` come from elsewhere by these maps."""
    shapes = _trained(after)
    found = 0.0
    for name, shape in shapes.items():
        if maps[name].source is not None:
            parts = [
                sum(i != NEW for i in each.channels.index) / len(each.channels.index)
                for each in maps[name].axes
                if each is not None
            ]
            found += prod(shape) * prod(parts)
    return round(found)


def carried(
    maps: Mapping[str, TensorMap], state: Mapping[str, Tensor], fresh: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the state of the new network: `state` taken across, the rest as in `fresh`."""
    sources = {each.source for each in maps.values()}
    old = {name: tensor for name, tensor in state.items() if name in sources}
    return carry(maps, {"network": Tensors(old, fresh)})["network"]


def shapes_of(description: Description) -> Shapes:
    """Return the shape of every tensor in the network's state dict."""
    with torch.device("meta"):
        state = description.network(None).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _trained(description: Description) -> Shapes:
    with torch.device("meta"):
        named = dict(description.network(None).named_parameters())
    return {name: tuple(weight.shape) for name, weight in named.items()}


def _kept(
    name: str, have: int, want: int, before: Description, state: Mapping[str, Tensor] | None
) -> list[int]:
    """The channels of an axis that stay, `want` at most: those that are made by most weight."""
    if want >= have or state is None:
        return list(range(min(have, want)))
    size = torch.zeros(have)
    for tensor, wires in before.wiring().items():
        first = wires.axes[0] if wires.axes else None
        if first is None or first.reads or name not in first.names or state[tensor].dim() < 2:
            continue
        begin = sum(before.axes[other] for other in first.names[: first.names.index(name)])
        rows = state[tensor].detach().float().cpu().flatten(1).norm(dim=1)
        size += rows[begin : begin + have]
    return sorted(size.argsort(descending=True, stable=True)[:want].tolist())


def _same_operations(before: Description, after: Description) -> Callable[[str], bool]:
    """Whether a tensor, by its name, belongs to the same operation in both networks."""
    if not isinstance(before, SearchedArchitecture) or not isinstance(after, SearchedArchitecture):
        return lambda name: True
    first, second = (_operations(each) for each in (before, after))
    same = {place for place, op in second.items() if first.get(place) == op}
    # A tensor is called blocks.BLOCK.PLACE.REST, as the network names its modules.
    return lambda name: tuple(name.split(".")[1:3]) in same


def _operations(architecture: SearchedArchitecture) -> dict[tuple[str, str], Any]:
    """Every operation by its place, whatever widths and activation it has."""
    return {
        place: (op, stride, [(k, v) for k, v in options if k not in _ASIDE])
        for place, (op, stride, options) in architecture.operations().items()
    }
