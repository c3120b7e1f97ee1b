"""What one network can take over from another one that no mutation has led to.

Tensors correspond that stand at the same place in the same operation: by block, that is by stage
and position, and by module. Of each the channels of named axes are matched axis by axis, so that
one of other widths is pruned or widened (new channels begin with no weight in what reads them), and
whatever has no counterpart is initialised. Where the networks differ in widths alone this is PRUNE
and WIDEN of all axes at once, and as exact as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

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
    carry,
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
    widths, wanted = (
        {IMAGES: each.in_channels, FEATURES: each.features, **each.axes} for each in (before, after)
    )
    kept = {
        name: _kept(name, widths[name], wide, before, state)
        for name, wide in wanted.items()
        if name in widths
    }
    maps = {}
    for name, shape in new.items():
        source = name if name in old and same(name) and len(old[name]) == len(shape) else None
        along: list[Along | None] = []
        for dim in range(len(shape) if source else 0):
            ours, theirs = (
                axes[dim] if dim < len(axes := of[name].axes) else None
                for of in (wires, wired_before)
            )
            found = _channels(ours, theirs, wanted, widths, kept)
            if found is None and shape[dim] != old[name][dim]:
                source = None
                break
            along.append(None if found is None or ours is None else Along(found, ours.reads))
        maps[name] = TensorMap(source, tuple(along)) if source else TensorMap(None)
    return maps


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


def _channels(
    ours: Axis | None,
    theirs: Axis | None,
    widths: Mapping[str, int],
    before: Mapping[str, int],
    kept: Mapping[str, Sequence[int]],
) -> ChannelMap | None:
    """Where the channels of a dimension come from; None: they stay, if there are as many."""
    if ours is None or theirs is None or ours.positions != theirs.positions:
        return None
    begins, end = {}, 0
    for name in theirs.names:
        begins[name] = end
        end += before[name]
    if not {*ours.names} & {*begins}:
        return None
    index: list[int] = []
    for name in ours.names:
        chosen = [begins[name] + i for i in kept[name]] if name in begins else []
        index += chosen + [NEW] * (widths[name] - len(chosen))
    return ChannelMap(tuple(index), end).spread(ours.positions)


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
