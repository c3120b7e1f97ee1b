"""Maps between named axes: where every entry of a changed network's tensors comes from.

A description tells its *wiring*: for every tensor of its network the names of its axes. Channels
that belong together carry one name: a residual sum joins the axes of what it adds, a depthwise
weight has one axis, a concatenation has several names in one dimension, one after the other. From
one `ChannelMap` per name follows one `TensorMap` per tensor, and `carry` takes any named tensors
across: weights of student, teacher and heads, and the optimizer's moments. Nothing is edited in
place.

With k copies of a channel, what reads it divides its weights by k, so the function stays. Gradients
move the other way round: what makes a copy gets 1/k of the gradient, what reads it gets the whole.
First moments follow the gradient, second moments its square.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

NEW = -1
IMAGES, FEATURES = "images", "features"  # axes of every network: what comes in, the embedding

VALUE, GRADIENT, SQUARED_GRADIENT = "value", "gradient", "squared gradient"


@dataclass(frozen=True)
class ChannelMap:
    """Where the channels of a named axis come from.

    `index[j]` is the old channel behind new channel j, or `NEW`. `silent`: new channels start at
    the constant 0, so that consumers may weigh them at once; otherwise their weights start at 0.
    `pairs` of new channels start alike, and consumers weigh them with Z and −Z.
    """

    index: tuple[int, ...]
    old: int
    silent: bool = False
    pairs: tuple[tuple[int, int], ...] = ()

    @classmethod
    def same(cls, width: int) -> ChannelMap:
        """Every channel stays where it is."""
        return cls(tuple(range(width)), width)

    @classmethod
    def all_new(cls, width: int, old: int) -> ChannelMap:
        """No channel continues an old one, and consumers start afresh, too."""
        return cls((NEW,) * width, old, silent=True)

    @cached_property
    def copies(self) -> tuple[int, ...]:
        """How many new channels share each new channel's source (1 for new ones)."""
        count = Counter(self.index)
        return tuple(1 if i == NEW else count[i] for i in self.index)

    @cached_property
    def repeats(self) -> tuple[bool, ...]:
        """True for every copy after the first of its source."""
        seen: set[int] = set()
        flags = []
        for i in self.index:
            flags.append(i != NEW and i in seen)
            seen.add(i)
        return tuple(flags)

    @property
    def is_same(self) -> bool:
        """Whether nothing moved."""
        return self.index == tuple(range(self.old))

    @property
    def kept(self) -> Tensor:
        """Boolean `[old]`: the old channels that a new one continues."""
        return torch.isin(torch.arange(self.old), torch.tensor(self.index, dtype=torch.long))

    def spread(self, positions: int) -> ChannelMap:
        """The map of a flattened `[C × positions]` axis, channel-major."""
        if positions == 1:
            return self
        index = tuple(
            NEW if i == NEW else i * positions + p for i in self.index for p in range(positions)
        )
        pairs = tuple(
            (a * positions + p, b * positions + p) for a, b in self.pairs for p in range(positions)
        )
        return ChannelMap(index, self.old * positions, self.silent, pairs)

    @classmethod
    def joined(cls, maps: Sequence[ChannelMap]) -> ChannelMap:
        """The map of a concatenation: each follows those before it, in the old axis and the new."""
        if len(maps) == 1:
            return maps[0]
        assert not any(part.silent for part in maps), "channels that begin at 0 stand alone"
        index: list[int] = []
        pairs: list[tuple[int, int]] = []
        old = 0
        for part in maps:
            begins = len(index)
            pairs += [(begins + a, begins + b) for a, b in part.pairs]
            index += [NEW if i == NEW else old + i for i in part.index]
            old += part.old
        return cls(tuple(index), old, pairs=tuple(pairs))


@dataclass(frozen=True)
class Axis:
    """A dimension of a tensor that follows channels.

    `names`: of the axes whose channels it holds, one after the other. `reads`: the tensor weighs
    these channels; otherwise it makes them, or acts on each alone. `positions`: entries per
    channel, channel-major, as in a flattened map.
    """

    names: tuple[str, ...]
    reads: bool = False
    positions: int = 1


@dataclass(frozen=True)
class Wires:
    """Of one tensor: its dimensions; None is one that no mutation changes, as are those not named.

    `routes`: it is a fixed `[C', C]` matrix that leads a shortcut's channels to where they belong.
    """

    axes: tuple[Axis | None, ...] = ()
    routes: bool = False


Wiring = Mapping[str, Wires]  # by the name of a tensor in the state dict


def wired(names: Iterable[str], wires: Mapping[str, Wires]) -> dict[str, Wires]:
    """The wiring of all tensors in `names`, of which those in `wires` have named axes."""
    return {name: wires.get(name, Wires()) for name in names}


@runtime_checkable
class ReadsEmbedding(Protocol):
    """A head: it stands on a backbone and reads its embedding."""

    def wiring(self, embedding: Axis | None) -> Mapping[str, Wires]:
        """The tensors that have named axes: `FEATURES`, or those that `embedding` is made of."""


def wires_of_head(head: nn.Module, embedding: Axis | None) -> dict[str, Wires]:
    """The wiring of a head on a backbone; of one that is not `ReadsEmbedding` no axis is named."""
    named = head.wiring(embedding) if isinstance(head, ReadsEmbedding) else {}
    return wired(head.state_dict().keys(), named)


def wires_of_heads(parts: Mapping[str, nn.Module], embedding: Axis | None) -> dict[str, Wires]:
    """The wiring of the heads on a backbone, one after another.

    The first one that has tensors reads the embedding, if it is `ReadsEmbedding`; each of the
    others reads what the one before it puts out, which no mutation changes.
    """
    wiring: dict[str, Wires] = {}
    for called, part in parts.items():
        found = wired(part.state_dict(), {}) if wiring else wires_of_head(part, embedding)
        wiring |= {f"{called}.{name}": wires for name, wires in found.items()}
    return wiring


READS_FEATURES = Wires((None, Axis((FEATURES,), reads=True)))  # a linear layer's weight


def layer(dims: int, makes: Sequence[str] = (), reads: Sequence[str] = ()) -> Wires:
    """Of a layer's tensor with so many dimensions: what it makes is the first, what it reads the
    second one.

    A depthwise weight reads nothing: it has one axis.
    """
    first = Axis(tuple(makes)) if makes and dims else None
    second = Axis(tuple(reads), reads=True) if reads and dims > 1 else None
    return Wires((first, second) if second else (first,) if first else ())


def module(name: str, makes: Sequence[str], reads: Sequence[str] = ()) -> dict[str, Wires]:
    """Of a convolution, a linear layer or a norm: its weight, and what else has an entry per
    channel.

    A depthwise convolution and a norm read nothing: they act on each channel alone.
    """
    others = ("bias", "running_mean", "running_var")
    found = {f"{name}.{part}": layer(1, makes) for part in others}
    return {f"{name}.weight": layer(2, makes, reads), **found}


@dataclass(frozen=True)
class Along:
    """A dimension of a tensor with the map of its channels; `reads` as in `Axis`."""

    channels: ChannelMap
    reads: bool = False


@dataclass(frozen=True)
class TensorMap:
    """Where a tensor's entries come from, dimension by dimension; None: they stay where they are.

    `source` None: the tensor is new. `blank`: a routing, whose new entries are 0 instead of freshly
    initialised, except that silent channels join the shortcut at once, channel j in channel j mod
    C'. `noise`: relative noise on channels it makes that repeat a source, to break their symmetry.
    """

    source: str | None
    axes: tuple[Along | None, ...] = ()
    blank: bool = False
    noise: float = 0.0
    seed: int = 0

    def prefixed(self, prefix: str) -> TensorMap:
        """The map of the same tensor in a larger module."""
        return self if self.source is None else replace(self, source=f"{prefix}{self.source}")

    def _along(self, reads: bool) -> list[tuple[int, ChannelMap]]:
        return [
            (dim, along.channels)
            for dim, along in enumerate(self.axes)
            if along is not None and along.reads is reads
        ]

    @property
    def made(self) -> list[tuple[int, ChannelMap]]:
        """Dimensions of channels that the tensor makes."""
        return self._along(reads=False)

    @property
    def read(self) -> list[tuple[int, ChannelMap]]:
        """Dimensions of channels that it reads."""
        return self._along(reads=True)


@dataclass(frozen=True)
class Tensors:
    """Named tensors that go across a mutation together.

    `fresh` holds every new tensor as newly initialised (zeros for moments), by its new name: new
    entries stay as they are there. `like` says how the entries scale: VALUE for weights and
    statistics, GRADIENT for first moments, SQUARED_GRADIENT for second moments.
    """

    old: Mapping[str, Tensor]
    fresh: Mapping[str, Tensor]
    like: str = VALUE


def carry(
    maps: Mapping[str, TensorMap], bundle: Mapping[str, Tensors]
) -> dict[str, dict[str, Tensor]]:
    """Take a bundle of named tensors across a mutation: student, teacher, heads, moments.

    What is new is in the type and on the device of the `old` tensors beside it. Raises `KeyError`
    for a tensor without a source or a map, `ValueError` for one whose size is not the one its map
    was made for: nothing is dropped in silence.
    """
    known = {tensor_map.source for tensor_map in maps.values()}
    for whose, tensors in bundle.items():
        if unknown := sorted(set(tensors.old) - known):
            raise KeyError(f"the mutation does not know the {whose}'s {', '.join(unknown)}")
        if unmapped := sorted(set(tensors.fresh) - set(maps)):
            raise KeyError(f"no map for {', '.join(unmapped)}")
    return {whose: _carried(maps, tensors) for whose, tensors in bundle.items()}


def _carried(maps: Mapping[str, TensorMap], tensors: Tensors) -> dict[str, Tensor]:
    old, like = tensors.old, tensors.like
    reference = next((tensor for tensor in old.values() if tensor.is_floating_point()), None)
    carried = {}
    for name, target in tensors.fresh.items():
        tensor_map = maps[name]
        if reference is not None:
            dtype = reference.dtype if target.is_floating_point() else target.dtype
            target = target.to(device=reference.device, dtype=dtype)
        if tensor_map.source is None:
            carried[name] = target.clone()
        elif tensor_map.source not in old and tensor_map.blank:
            # An identity shortcut that becomes a routing: its matrix was not stored before.
            carried[name] = _move(tensor_map, _identity(tensor_map, target), target, like)
        else:
            source = old[tensor_map.source]
            _check_size(tensor_map, source)
            carried[name] = _move(tensor_map, source, target, like)
    return carried


def routed(out: ChannelMap, into: ChannelMap) -> Tensor | None:
    """The matrix `[C', C]` of a shortcut that led channel i to channel i before a mutation.

    None where it still does.
    """
    tensor_map = TensorMap("", (Along(out), Along(into, reads=True)), blank=True)
    target = torch.zeros(len(out.index), len(into.index))
    moved = _move(tensor_map, _identity(tensor_map, target), target, VALUE)
    return None if torch.equal(moved, torch.eye(*moved.shape)) else moved


def _identity(tensor_map: TensorMap, like: Tensor) -> Tensor:
    (_, out), (_, into) = *tensor_map.made, *tensor_map.read
    return torch.eye(out.old, into.old, dtype=like.dtype, device=like.device)


def _check_size(tensor_map: TensorMap, source: Tensor) -> None:
    for dim, channels in (*tensor_map.made, *tensor_map.read):
        if source.shape[dim] != channels.old:
            expected = list(source.shape)
            expected[dim] = channels.old
            raise ValueError(
                f"{tensor_map.source} is {list(source.shape)}, the mutation was made for {expected}"
            )


def _move(tensor_map: TensorMap, source: Tensor, target: Tensor, like: str) -> Tensor:
    made, read = tensor_map.made, tensor_map.read
    drawn = target.to(dtype=source.dtype)
    new = drawn.clone()
    if like == VALUE and tensor_map.blank:
        new.zero_()
        for dim, into in read:
            if into.silent:
                # Past an activation that is flat at 0, a silent channel learns by the shortcut.
                assert dim == 1
                added = [j for j, i in enumerate(into.index) if i == NEW]
                new[[j % new.shape[0] for j in added], added] = 1
    elif like == VALUE:
        for dim, into in read:
            if not into.silent:
                _write(new, made, 0, {dim: _positions(into, new=True)})
    values = source
    for dim, along in enumerate(tensor_map.axes):
        if along is None:
            continue
        sources, copies = _sources(along.channels)
        values = values.index_select(dim, sources.to(values.device))
        if along.reads is (like == VALUE):
            values = values / _scale(copies, values, dim, like)
    if made or read:
        _write(new, [*made, *read], values)
    else:
        new = values.clone()
    if like == VALUE and tensor_map.noise and any(any(out.repeats) for _, out in made):
        generator = torch.Generator().manual_seed(tensor_map.seed)
        for dim, out in made:
            repeated = torch.tensor([j for j, again in enumerate(out.repeats) if again])
            rows = new.movedim(dim, 0)
            jitter = torch.randn(len(repeated), *rows.shape[1:], generator=generator)
            rows[repeated] *= 1 + tensor_map.noise * jitter.to(device=new.device, dtype=new.dtype)
    if like == VALUE and not tensor_map.blank:
        _pair(new, drawn, source, tensor_map)
    return new


def _pair(new: Tensor, drawn: Tensor, source: Tensor, tensor_map: TensorMap) -> None:
    """Weights V, V into new channels in pairs, and Z, −Z out of them to what was there before.

    Both are taken from `drawn` and sized as the weights of `source` (Yuan et al. 2023).
    """
    for dim, into in tensor_map.read:
        if into.pairs:
            first, second = torch.tensor(into.pairs).unbind(1)
            z = _sized(_read(drawn, tensor_map.made, {dim: first}), source)
            _write(new, tensor_map.made, z, {dim: first})
            _write(new, tensor_map.made, -z, {dim: second})
    for dim, out in tensor_map.made:
        if out.pairs:
            first, second = torch.tensor(out.pairs).unbind(1)
            rows, v = new.movedim(dim, 0), drawn.movedim(dim, 0)[first]
            v = _sized(v, source) if new.dim() > 1 else v  # of norms and biases as they begin
            rows[first], rows[second] = v, v


def _sized(drawn: Tensor, like: Tensor) -> Tensor:
    """`drawn` with the root mean square of `like`, unless all of that is 0."""
    size, wanted = (tensor.square().mean().sqrt() for tensor in (drawn, like))
    return drawn * torch.where(wanted * size == 0, torch.ones_like(size), wanted / size)


def _write(
    new: Tensor,
    kept: Sequence[tuple[int, ChannelMap]],
    values: Tensor | float,
    at: Mapping[int, Tensor] | None = None,
) -> None:
    """Put `values` where every dimension in `kept` has a source, and `at` positions of others."""
    new[_grid(new, kept, at or {})] = values


def _read(
    drawn: Tensor, kept: Sequence[tuple[int, ChannelMap]], at: Mapping[int, Tensor]
) -> Tensor:
    return drawn[_grid(drawn, kept, at)]


def _grid(
    tensor: Tensor, kept: Sequence[tuple[int, ChannelMap]], at: Mapping[int, Tensor]
) -> tuple[Tensor, ...]:
    """Indices of a block of `tensor` that broadcast against each other, up to the last dimension
    that is named."""
    chosen = {dim: _positions(channels) for dim, channels in kept} | dict(at)
    count = 1 + max(chosen, default=-1)
    whole = (torch.arange(size) for size in tensor.shape)
    return tuple(
        chosen.get(dim, every).reshape(-1, *[1] * (count - 1 - dim)).to(tensor.device)
        for dim, every in zip(range(count), whole, strict=False)
    )


def settled(moment: Tensor, tensor_map: TensorMap) -> Tensor:
    """A carried second moment, whose new entries are the mean of those beside them that survive.

    At 0 they would lack the correction of Adam's first steps, which the old step count takes for
    done, and those steps were 3 to 6 times too long. Without survivors it stays as it is.
    """
    kept = torch.zeros(moment.shape, dtype=torch.bool, device=moment.device)
    _write(kept, [*tensor_map.made, *tensor_map.read], 1)
    if kept.all() or not kept.any():
        return moment
    return moment.masked_fill(~kept, moment[kept].double().mean().item())


def _positions(channels: ChannelMap, *, new: bool = False) -> Tensor:
    """New channels that have a source, or (`new`) that have none."""
    return torch.tensor(
        [j for j, i in enumerate(channels.index) if (i == NEW) is new], dtype=torch.long
    )


def _sources(channels: ChannelMap) -> tuple[Tensor, Tensor]:
    """What the new channels with a source continue, and how many copies share each source."""
    pairs = [(i, k) for i, k in zip(channels.index, channels.copies, strict=True) if i != NEW]
    sources, copies = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
    return sources, copies


def _scale(copies: Tensor, values: Tensor, axis: int, like: str) -> Tensor:
    shape = [1] * values.dim()
    shape[axis] = -1
    scale = copies.to(device=values.device, dtype=values.dtype).reshape(shape)
    return scale**2 if like == SQUARED_GRADIENT else scale
