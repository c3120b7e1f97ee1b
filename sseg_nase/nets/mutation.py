"""A mutation: one change of a network's description, as data, and what follows from it.

An operator (`sseg_nase.nets.mutations`) computes from a description the new one and, for every
named axis, where its channels come from. The description's wiring says which tensors these are the
channels of; `maps.carry` then takes weights and moments across.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sseg_nase.nets.description import Description
from sseg_nase.nets.maps import (
    FEATURES,
    IMAGES,
    Along,
    Axis,
    ChannelMap,
    TensorMap,
    Tensors,
    Wires,
    Wiring,
    carry,
)


@dataclass(frozen=True)
class Mutation:
    """One change of an architecture, as data: replayable, and independent of any weights.

    `target` is plain data for JSON; with `kind` and `before` it is enough for `rebuild`. `label`
    tells it from other candidates, in words.
    """

    kind: str
    target: dict[str, Any]
    before: Description
    after: Description
    origins: tuple[int | None, ...]  # per new block: the old block it continues
    spaces: tuple[ChannelMap, ...]  # the images first, then per named axis of `after`, in order
    zeroed: tuple[str, ...] = ()
    noise: float = 0.0
    seed: int = 0
    label: str = ""
    features: ChannelMap = field(init=False)

    def __post_init__(self) -> None:
        after, before = self.after.embedding_axis, self.before.embedding_axis
        if after is None or before is None:
            features = ChannelMap.same(self.after.features)
        elif after.positions != before.positions:
            # A fresh, pooling block changed a flattened map: all is new.
            features = ChannelMap.all_new(self.after.features, self.before.features)
        else:
            features = self._along(after)
        object.__setattr__(self, "features", features)
        object.__setattr__(self, "label", self.label or self.kind)

    @cached_property
    def channels(self) -> dict[str, ChannelMap]:
        """Where the channels of every named axis of `after` come from; `IMAGES` are one, too."""
        return dict(zip((IMAGES, *self.after.axes), self.spaces, strict=True))

    @cached_property
    def maps(self) -> dict[str, TensorMap]:
        """One map per tensor of the new backbone's state dict."""
        maps: dict[str, TensorMap] = {}
        weights = 0  # that make channels of others: each gets noise
        for name, wires in self.after.wiring().items():
            maps[name] = self._map(self._source(name), wires)
            if len(wires.axes) > 1 and not wires.routes:
                seed = (self.seed * 1009 + weights) % 2**63
                maps[name] = replace(maps[name], noise=self.noise, seed=seed)
                weights += 1
        return maps

    def learner_maps(self, heads: Wiring) -> dict[str, TensorMap]:
        """Maps of a backbone with the heads on it, whose wiring is `heads`."""
        maps = {f"backbone.{name}": m.prefixed("backbone.") for name, m in self.maps.items()}
        return maps | {name: self._map(name, wires) for name, wires in heads.items()}

    @property
    def kept(self) -> tuple[Tensor, ...]:
        """Boolean `[old channels]` per named axis: those that are continued.

        Of a mutation that adds no block, so that every axis has the name that it had.
        """
        return tuple(space.kept for space in self.spaces[1:])

    def _source(self, name: str) -> str | None:
        """The tensor that `name` continues: of a chain, that of the block it was before."""
        if self.origins == tuple(range(len(self.origins))):
            return name
        room, number, part = name.split(".", 2)
        origin = self.origins[int(number)]
        return None if origin is None else f"{room}.{origin}.{part}"

    def _map(self, source: str | None, wires: Wires) -> TensorMap:
        axes = tuple(
            None if axis is None else Along(self._along(axis), axis.reads) for axis in wires.axes
        )
        return TensorMap(source, axes, blank=wires.routes)

    def _along(self, axis: Axis) -> ChannelMap:
        if axis.names == (FEATURES,):
            return self.features
        joined = ChannelMap.joined([self.channels[name] for name in axis.names])
        return joined.spread(axis.positions)


def fresh_state(change: Mutation) -> dict[str, Tensor]:
    """Weights of a newly initialised `change.after`: what its new entries start from.

    Drawn from `change.seed`, so student, teacher and every process get the same.
    """
    generator = torch.Generator().manual_seed(change.seed)
    with torch.random.fork_rng(devices=[]):  # layers draw from the global generator, too
        state = change.after.network(generator).state_dict()
    for name in change.zeroed:
        state[name].zero_()
    return state


def carry_network(change: Mutation, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the network after `change`: of a network alone, with nothing beside it."""
    return carry(change.maps, {"network": Tensors(state, fresh_state(change))})["network"]
