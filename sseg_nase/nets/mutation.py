"""A mutation is a map: where every entry of the new network's tensors comes from.

An operator (`grow`, `widen`, `prune`) computes from an architecture the new architecture and, for
every channel space (the input and each block's output), a `ChannelMap`. From these alone follows
one `TensorMap` per tensor, and `carry` takes any named tensors across: weights of the student and
of the teacher, and the optimizer's moments. Nothing is edited in place.

With k copies of a channel, its consumers divide its weights by k, so the function stays. Gradients
move the other way round: what produces a copy gets 1/k of the gradient, what consumes it gets the
whole. First moments follow the gradient, second moments its square.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sseg_nase.errors import UserError, did_you_mean
from sseg_nase.nets.architecture import Architecture, Block

NEW = -1

VALUE, GRADIENT, SQUARED_GRADIENT = "value", "gradient", "squared gradient"


@dataclass(frozen=True)
class ChannelMap:
    """Where the channels of a new space come from.

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


@dataclass(frozen=True)
class TensorMap:
    """Where a tensor's entries come from: axis 0 follows `out`, axis 1 follows `into`.

    `source` None: the tensor is new. `blank`: new entries are 0 instead of freshly initialised,
    except that silent channels join the shortcut at once, channel j in channel j mod C'.
    `noise`: relative noise on rows that repeat a source, to break their symmetry.
    """

    source: str | None
    out: ChannelMap | None = None
    into: ChannelMap | None = None
    blank: bool = False
    noise: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Mutation:
    """One change of an architecture, as data: replayable, and independent of any weights.

    `target` is plain data for JSON; with `kind` and `before` it is enough for `rebuild`.
    """

    kind: str
    target: dict[str, Any]
    before: Architecture
    after: Architecture
    origins: tuple[int | None, ...]  # per new block: the old block it continues
    spaces: tuple[ChannelMap, ...]  # per new space, the input first
    zeroed: tuple[str, ...] = ()
    noise: float = 0.0
    seed: int = 0
    features: ChannelMap = field(init=False)

    def __post_init__(self) -> None:
        # Positions differ only when a fresh, pooling block changed a flattened map: all is new.
        same = self.before.positions == self.after.positions
        features = (
            self.spaces[-1].spread(self.after.positions)
            if same
            else _all_new(self.after.features, self.before.features)
        )
        object.__setattr__(self, "features", features)

    @property
    def label(self) -> str:
        """What tells it from other candidates, in words; blocks count from 1.

        The kind alone stands for a GROW after the last block, and for a WIDEN of one block.
        """
        block = self.target.get("block", 0)
        if block is None:
            return f"{self.kind} all"
        if self.kind != "GROW" or (block == len(self.before.blocks) and not self._takes_pooling):
            return self.kind
        return f"GROW {block + 1}" + (" before pooling" if self._takes_pooling else "")

    @property
    def _takes_pooling(self) -> bool:
        return bool(self.target.get("before_pool", False))

    @cached_property
    def maps(self) -> dict[str, TensorMap]:
        """One map per tensor of the new backbone's state dict."""
        maps: dict[str, TensorMap] = {}
        for number, (origin, block) in enumerate(zip(self.origins, self.after.blocks, strict=True)):
            into, out = self.spaces[number], self.spaces[number + 1]
            parts = {"conv.weight": TensorMap(None, out, into, noise=self.noise)}
            if self.after.batch_norm:
                for part in ("weight", "bias", "running_mean", "running_var"):
                    parts[f"norm.{part}"] = TensorMap(None, out)
                parts["norm.num_batches_tracked"] = TensorMap(None)
            else:
                parts["conv.bias"] = TensorMap(None, out)
            if block.routed:
                parts["routing"] = TensorMap(None, out, into, blank=True)
            for part, tensor_map in parts.items():
                maps[f"blocks.{number}.{part}"] = replace(
                    tensor_map,
                    source=None if origin is None else f"blocks.{origin}.{part}",
                    seed=(self.seed * 1009 + number) % 2**63,
                )
        return maps

    def learner_maps(
        self, names: Sequence[str], follows: Mapping[str, ChannelMap] | None = None
    ) -> dict[str, TensorMap]:
        """Maps for the state-dict or parameter names of a backbone with a head.

        Of what stands upon the backbone, axis 1 of the tensors in `follows` follows the map there;
        the rest stays as it is. By default it is the first layer of a `Learner`'s head, which
        follows the features.
        """
        follows = {"head.fc1.weight": self.features} if follows is None else follows
        prefixed = {f"backbone.{name}": _prefix(m) for name, m in self.maps.items()}
        for name in names:
            if not name.startswith("backbone."):
                prefixed[name] = TensorMap(name, into=follows.get(name))
        return prefixed


def _all_new(width: int, old: int) -> ChannelMap:
    """No channel continues an old one, and consumers start afresh too."""
    return ChannelMap((NEW,) * width, old, silent=True)


def _prefix(tensor_map: TensorMap) -> TensorMap:
    if tensor_map.source is None:
        return tensor_map
    return replace(tensor_map, source=f"backbone.{tensor_map.source}")


def carry(
    maps: Mapping[str, TensorMap],
    old: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    *,
    like: str = VALUE,
) -> dict[str, Tensor]:
    """Take named tensors across a mutation.

    `fresh` holds every new tensor as newly initialised (zeros for moments): new entries stay as
    they are there, in the type and on the device of `old`. `like` says how the entries scale:
    VALUE for weights and statistics, GRADIENT for first moments, SQUARED_GRADIENT for second
    moments. Raises `KeyError` for a tensor without a source or a map, `ValueError` for one whose
    size is not the one its map was made for: nothing is dropped in silence.
    """
    unmapped = sorted(set(fresh) - set(maps))
    if unmapped:
        raise KeyError(f"no map for {', '.join(unmapped)}")
    reference = next((tensor for tensor in old.values() if tensor.is_floating_point()), None)
    carried = {}
    for name, target in fresh.items():
        tensor_map = maps[name]
        if reference is not None:
            dtype = reference.dtype if target.is_floating_point() else target.dtype
            target = target.to(device=reference.device, dtype=dtype)
        if tensor_map.source is None:
            carried[name] = target.clone()
        elif tensor_map.source not in old and tensor_map.blank:
            # An identity shortcut that becomes a routing: its matrix was not stored before.
            assert tensor_map.out is not None
            assert tensor_map.into is not None
            identity = torch.eye(
                tensor_map.out.old, tensor_map.into.old, dtype=target.dtype, device=target.device
            )
            carried[name] = _move(tensor_map, identity, target, like)
        else:
            source = old[tensor_map.source]
            _check_size(tensor_map, source)
            carried[name] = _move(tensor_map, source, target, like)
    return carried


def _check_size(tensor_map: TensorMap, source: Tensor) -> None:
    for axis, channel_map in enumerate((tensor_map.out, tensor_map.into)):
        if channel_map is not None and source.shape[axis] != channel_map.old:
            expected = list(source.shape)
            expected[axis] = channel_map.old
            raise ValueError(
                f"{tensor_map.source} is {list(source.shape)}, the mutation was made for {expected}"
            )


def _move(tensor_map: TensorMap, source: Tensor, target: Tensor, like: str) -> Tensor:
    out, into = tensor_map.out, tensor_map.into
    drawn = target.to(dtype=source.dtype)
    new = drawn.clone()
    if like == VALUE and into is not None and not (into.silent and not tensor_map.blank):
        kept_rows = _rows(out, new)
        columns = torch.tensor([j for j, i in enumerate(into.index) if i == NEW], dtype=torch.long)
        if len(columns):
            new[kept_rows[:, None], columns] = 0
    if like == VALUE and tensor_map.blank:
        assert into is not None
        new.zero_()
        if into.silent:
            # Past an activation that is flat at 0, a silent channel learns through the shortcut.
            added = [j for j, i in enumerate(into.index) if i == NEW]
            new[[j % new.shape[0] for j in added], added] = 1
    rows, row_from, row_copies = _axis(out, new.shape[0] if new.dim() else 0)
    values = source
    if out is not None:
        values = values.index_select(0, row_from.to(values.device))
        if like != VALUE:
            values = values / _scale(row_copies, values, 0, like)
    if into is not None:
        columns, column_from, column_copies = _axis(into, new.shape[1])
        values = values.index_select(1, column_from.to(values.device))
        if like == VALUE:
            values = values / _scale(column_copies, values, 1, like)
        new[rows[:, None], columns] = values
    elif out is not None:
        new[rows] = values
    else:
        new = values.clone()
    if like == VALUE and tensor_map.noise and out is not None and any(out.repeats):
        generator = torch.Generator().manual_seed(tensor_map.seed)
        repeated = torch.tensor([j for j, again in enumerate(out.repeats) if again])
        jitter = torch.randn(len(repeated), *new.shape[1:], generator=generator)
        jitter = jitter.to(device=new.device, dtype=new.dtype)
        new[repeated] *= 1 + tensor_map.noise * jitter
    if like == VALUE and into is not None and not tensor_map.blank:
        _pair(new, drawn, source, out, into)
    return new


def _pair(
    new: Tensor, drawn: Tensor, source: Tensor, out: ChannelMap | None, into: ChannelMap
) -> None:
    """Weights V, V into new channels in pairs, and Z, −Z out of them to what was there before.

    Both are taken from `drawn` and sized as the weights of `source` (Yuan et al. 2023).
    """
    if into.pairs:
        first, second = torch.tensor(into.pairs).unbind(1)
        kept = _rows(out, new)[:, None]
        z = _sized(drawn[kept, first], source)
        new[kept, first], new[kept, second] = z, -z
    if out is not None and out.pairs:
        first, second = torch.tensor(out.pairs).unbind(1)
        v = _sized(drawn[first], source)
        new[first], new[second] = v, v


def _sized(drawn: Tensor, like: Tensor) -> Tensor:
    """`drawn` with the root mean square of `like`, unless all of that is 0."""
    size, wanted = (tensor.square().mean().sqrt() for tensor in (drawn, like))
    return drawn * torch.where(wanted * size == 0, torch.ones_like(size), wanted / size)


def _rows(out: ChannelMap | None, new: Tensor) -> Tensor:
    if out is None:
        return torch.arange(new.shape[0])
    return torch.tensor([j for j, i in enumerate(out.index) if i != NEW], dtype=torch.long)


def _axis(channel_map: ChannelMap | None, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """New positions that have a source, their sources, and how many copies share each source."""
    if channel_map is None:
        everything = torch.arange(width)
        return everything, everything, torch.ones(width, dtype=torch.long)
    triples = [
        (j, i, k)
        for j, (i, k) in enumerate(zip(channel_map.index, channel_map.copies, strict=True))
        if i != NEW
    ]
    positions, sources, copies = torch.tensor(triples, dtype=torch.long).reshape(-1, 3).unbind(1)
    return positions, sources, copies


def _scale(copies: Tensor, values: Tensor, axis: int, like: str) -> Tensor:
    shape = [1] * values.dim()
    shape[axis] = -1
    scale = copies.to(device=values.device, dtype=values.dtype).reshape(shape)
    return scale**2 if like == SQUARED_GRADIENT else scale


def grow(
    before: Architecture,
    *,
    out_channels: int | None = None,
    position: int | None = None,
    before_pool: bool = False,
    mode: str = "preserve",
    seed: int = 0,
) -> Mutation:
    """GROW: a new block at `position` (default: after the last).

    mode `preserve`: a residual block whose last norm starts at γ = 0; the function is unchanged in
    train and eval mode. Channels beyond the input's start at 0. mode `fresh`: a plain, newly
    initialised block that pools as the others do.

    The new block works on what the one before it puts out, which pools or not, and does not pool
    itself. With `before_pool` it works on the larger map: it takes the pooling over from the block
    before it, pool(y + 0) being what was pool(y).
    """
    position = len(before.blocks) if position is None else position
    _check_position(before, position)
    if out_channels is None:
        out_channels = before.channels[position - 1]
    return _grow(before, [_Place(position, out_channels, before_pool)], mode=mode, seed=seed)


def grow_stages(
    before: Architecture, *, most: int | None = None, drawn: bool = False, seed: int = 0
) -> Mutation:
    """GROW in every stage at once: one more block at its end, before its pooling.

    The blocks are those of `grow` with mode `preserve`, as wide as their stage. A stage that has
    `most` blocks stays. `drawn`: as many blocks, but the stage of each is drawn, and `most` holds
    for the mean of all stages. Raises `UserError` where there are as many as that already.
    """
    stages = before.stages
    if drawn:
        room = len(stages) if most is None else most * len(stages) - len(before.blocks)
        count = max(0, min(room, len(stages)))
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.randint(len(stages), (count,), generator=generator)
        ends = [stages[number][-1] for number in sorted(numbers.tolist())]
    else:
        ends = [stage[-1] for stage in stages if most is None or len(stage) < most]
    if not ends:
        raise UserError(f"GROW in every stage: all of them have {most} blocks or more")
    places = [_Place(end + 1, before.channels[end], before.blocks[end].pool) for end in ends]
    return _grow(before, places, mode="preserve", seed=seed, together=True)


@dataclass(frozen=True)
class _Place:
    """Of a new block: after `position` blocks of the old network; see `grow`."""

    position: int
    out_channels: int
    before_pool: bool


def _check_position(before: Architecture, position: int) -> None:
    if not 0 < position <= len(before.blocks):
        raise UserError(
            f"GROW position {position}: accepted 1 to {len(before.blocks)} (blocks there are)"
        )


def _grow(
    before: Architecture,
    places: Sequence[_Place],
    *,
    mode: str,
    seed: int,
    together: bool = False,
) -> Mutation:
    """GROW at `places`, from the first block to the last; `together`: recorded as one of several.

    A record counts the new blocks in the new network.
    """
    modes = {"preserve": _grow_preserving, "fresh": _grow_fresh}
    if mode not in modes:
        raise UserError(f"GROW mode '{mode}': accepted {', '.join(modes)}")
    order = [place.position for place in places]
    if order != sorted(order):
        raise UserError(f"GROW positions {order}: name them from the first to the last")
    blocks, spaces = list(before.blocks), [ChannelMap.same(w) for w in before.widths]
    origins: list[int | None] = list(range(len(before.blocks)))
    zeroed: tuple[str, ...] = ()
    for earlier, place in enumerate(places):
        _check_position(before, place.position)
        width, number = before.channels[place.position - 1], place.position + earlier
        block, into_next, gates = modes[mode](before, number, width, place.out_channels)
        if place.before_pool:
            block, blocks[number - 1] = _pooling_taken_over(block, blocks[number - 1], number)
        blocks.insert(number, block)
        spaces.insert(number + 1, into_next)
        origins.insert(number, None)
        zeroed += gates
    after = _route(replace(before, blocks=tuple(blocks)), before, origins, spaces)
    numbers = [place.position + earlier for earlier, place in enumerate(places)]
    target: dict[str, Any] = {"block": None if together else numbers[0]}
    widths = [place.out_channels for place in places]
    pooling = [place.before_pool for place in places]
    if together:
        target |= {"blocks": numbers, "out_channels": widths, "before_pool": pooling}
    else:
        target["out_channels"] = widths[0]
        if pooling[0]:  # records of before it was possible say nothing of it
            target["before_pool"] = True
    target |= {"mode": mode, "seed": seed}
    return Mutation(
        "GROW", target, before, after, tuple(origins), tuple(spaces), zeroed=zeroed, seed=seed
    )


def _pooling_taken_over(block: Block, predecessor: Block, number: int) -> tuple[Block, Block]:
    """The new block `number`, which pools now, and the one before it, which no longer does."""
    if not predecessor.pool:
        raise UserError(
            f"GROW before the pooling of block {number - 1}: it does not pool; leave before_pool "
            "out, or choose another position"
        )
    return replace(block, pool=True), replace(predecessor, pool=False)


def _grow_preserving(
    before: Architecture, number: int, width: int, out_channels: int
) -> tuple[Block, ChannelMap, tuple[str, ...]]:
    _check_width(out_channels)
    if out_channels < width:
        raise UserError(
            f"GROW out_channels {out_channels}: a preserving block keeps its {width} input "
            f"channels; use at least {width}, or mode 'fresh'"
        )
    index = (*range(width), *([NEW] * (out_channels - width)))
    gate = "norm.weight" if before.batch_norm else "conv.weight"
    block = Block(out_channels, pool=False, residual=True)
    return block, ChannelMap(index, width, silent=True), (f"blocks.{number}.{gate}",)


def _grow_fresh(
    before: Architecture, number: int, width: int, out_channels: int
) -> tuple[Block, ChannelMap, tuple[str, ...]]:
    _check_width(out_channels)
    pool = before.blocks[-1].pool or before.blocks[0].pool
    # A plain block without pooling: only the first ones were meant to pool.
    pool = pool and all(block.pool or block.residual for block in before.blocks)
    # What consumes the new block has nothing to keep: its old inputs are gone.
    return Block(out_channels, pool=pool), _all_new(out_channels, width), ()


def _check_width(out_channels: int) -> None:
    if out_channels < 1:
        raise UserError(f"GROW out_channels {out_channels}: use at least 1")


def widen(
    before: Architecture,
    block: int | None,
    *,
    ratio: float = 1.5,
    channels: int | Sequence[int] | None = None,
    mode: str = "duplicate",
    noise: float = 0.0,
    seed: int = 0,
) -> Mutation:
    """WIDEN block `block` to `channels` (default: `ratio` × its channels, rounded).

    `block` None: all blocks at once; `channels` then holds one width per block, and a block may
    keep the width it has as long as another widens.
    mode `duplicate`: new channels repeat old ones, drawn at random without replacement as long as
    possible, with `noise` relative noise on the copies; consumers divide by the number of copies.
    mode `zero`: new channels are freshly initialised and their outgoing weights start at 0.
    mode `pairs`: two new channels each start alike, from weights as large as those that are there,
    and what follows weighs them with Z and −Z: their gradients differ, where those of a copy and
    its source are the same, so they part at the first step (Yuan et al. 2023). An odd one that is
    left over is as in mode `zero`.
    """
    if mode not in _NEW_CHANNELS:
        raise UserError(f"WIDEN mode '{mode}': accepted {', '.join(_NEW_CHANNELS)}")
    widths = _widths(before, block, ratio, channels)
    generator = torch.Generator().manual_seed(seed)
    added = [
        _NEW_CHANNELS[mode](width, wide - width, generator)
        for width, wide in zip(before.channels, widths, strict=True)
    ]
    return _widen(before, block, added, mode=mode, noise=noise, seed=seed)


def _widths(
    before: Architecture, block: int | None, ratio: float, channels: int | Sequence[int] | None
) -> list[int]:
    """Channels of every block after a WIDEN. Raises `UserError` where nothing widens."""
    if block is None:
        ratios = [round(width * ratio) for width in before.channels]
        widths = ratios if channels is None else channels
        if isinstance(widths, int) or len(widths) != len(before.blocks):
            raise UserError(
                f"WIDEN all blocks to {channels} channels: name one width per block, "
                f"{len(before.blocks)} in all"
            )
        less = any(wide < width for wide, width in zip(widths, before.channels, strict=True))
        if less or sum(widths) == sum(before.channels):
            raise UserError(
                f"WIDEN all blocks to {list(widths)} channels: use at least "
                f"{list(before.channels)}, and more in one block or more"
            )
        return list(widths)
    check_block(before, block, "WIDEN")
    width = before.channels[block]
    wide = round(width * ratio) if channels is None else channels
    if not isinstance(wide, int):
        raise UserError(f"WIDEN block {block} to {channels} channels: name one width")
    if wide <= width:
        raise UserError(f"WIDEN block {block} to {wide} channels: it has {width} already")
    return [wide if number == block else c for number, c in enumerate(before.channels)]


def _widen(
    before: Architecture,
    block: int | None,
    added: Sequence[Sequence[int]],
    *,
    mode: str,
    noise: float,
    seed: int,
) -> Mutation:
    """WIDEN by the sources `added[b]` of every block's new channels."""
    spaces, after = [ChannelMap.same(before.in_channels)], before
    for number, (width, sources) in enumerate(zip(before.channels, added, strict=True)):
        index = (*range(width), *sources)
        new = [j for j, source in enumerate(index) if source == NEW] if mode == "pairs" else []
        pairs = tuple(zip(new[::2], new[1::2], strict=False))
        spaces.append(ChannelMap(index, width, pairs=pairs))
        after = after.with_block(number, channels=width + len(sources))
    origins = tuple(range(len(before.blocks)))
    after = _route(after, before, origins, spaces)
    target = {
        "block": block,
        "channels": list(after.channels) if block is None else after.channels[block],
        "mode": mode,
        "index": [list(b) for b in added] if block is None else list(added[block]),
        "noise": noise,
        "seed": seed,
    }
    return Mutation("WIDEN", target, before, after, origins, tuple(spaces), noise=noise, seed=seed)


def _duplicates(width: int, extra: int, generator: torch.Generator) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < extra:
        chosen += torch.randperm(width, generator=generator).tolist()
    return chosen[:extra]


def _nothing(width: int, extra: int, generator: torch.Generator) -> list[int]:
    return [NEW] * extra


_NEW_CHANNELS: Mapping[str, Callable[[int, int, torch.Generator], list[int]]] = {
    "duplicate": _duplicates,
    "zero": _nothing,
    "pairs": _nothing,
}


def prune(before: Architecture, kept: Sequence[Sequence[int]]) -> Mutation:
    """PRUNE: keep the channels `kept[b]` of every block b (ascending) and remove all others.

    The result computes what the network with all other channels masked to 0 computes.
    """
    if len(kept) != len(before.blocks):
        raise UserError(
            f"PRUNE of {len(before.blocks)} blocks: name the channels to keep of every one, "
            f"not of {len(kept)}"
        )
    spaces = [ChannelMap.same(before.in_channels)]
    after = before
    for number, channels in enumerate(kept):
        ordered = tuple(sorted(set(channels)))
        if not ordered or ordered[0] < 0 or ordered[-1] >= before.channels[number]:
            raise UserError(
                f"PRUNE block {number}: channels to keep must be some of "
                f"0 to {before.channels[number] - 1}, not {list(channels)}"
            )
        spaces.append(ChannelMap(ordered, before.channels[number]))
        after = after.with_block(number, channels=len(ordered))
    origins = tuple(range(len(before.blocks)))
    after = _route(after, before, origins, spaces)
    removed = {
        str(number): sorted(set(range(before.channels[number])) - set(space.index))
        for number, space in enumerate(spaces[1:])
        if not space.is_same
    }
    return Mutation("PRUNE", {"removed": removed}, before, after, origins, tuple(spaces))


def rebuild(kind: str, target: Mapping[str, Any], before: Architecture) -> Mutation:
    """The very `Mutation` of `before` that a record's `kind` and `target` describe.

    Nothing is drawn again. Raises `UserError` for an unknown kind, and for a target that no
    mutation of `before` has.
    """
    if kind not in _REBUILD:
        known = ", ".join(_REBUILD)
        raise UserError(f"mutation kind '{kind}': accepted {known}.{did_you_mean(kind, _REBUILD)}")
    try:
        mutation = _REBUILD[kind](target, before)
    except KeyError as error:
        raise UserError(f"{kind} target: {error} is missing") from error
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{kind} target: {error}") from error
    made = mutation.target
    wrong = [key for key in {**made, **target} if made.get(key) != target.get(key)]
    if wrong:
        raise UserError(f"{kind} target: {', '.join(wrong)} not as the rest of it says")
    return mutation


def _grow_again(target: Mapping[str, Any], before: Architecture) -> Mutation:
    block, widths = target["block"], target["out_channels"]
    how = {"mode": target["mode"], "seed": target["seed"]}
    if block is not None:
        place = _Place(block, widths, target.get("before_pool", False))
        return _grow(before, [place], **how)
    numbered = zip(target["blocks"], widths, target["before_pool"], strict=True)
    places = [
        _Place(number - earlier, width, pooling)
        for earlier, (number, width, pooling) in enumerate(numbered)
    ]
    return _grow(before, places, **how, together=True)


def _widen_again(target: Mapping[str, Any], before: Architecture) -> Mutation:
    """From the recorded index, so that no generator need draw it alike."""
    block, added = target["block"], target["index"]
    if block is not None:
        check_block(before, block, "WIDEN")
        added = [added if number == block else [] for number in range(len(before.blocks))]
    if len(added) != len(before.blocks):
        raise UserError(f"one index per block is needed, {len(before.blocks)}, not {len(added)}")
    for width, sources in zip(before.channels, added, strict=True):
        if any(not (source == NEW or 0 <= source < width) for source in sources):
            raise UserError(f"a new channel comes from one of 0 to {width - 1}, or is new ({NEW})")
    return _widen(
        before, block, added, mode=target["mode"], noise=target["noise"], seed=target["seed"]
    )


def _prune_again(target: Mapping[str, Any], before: Architecture) -> Mutation:
    removed = {int(number): set(channels) for number, channels in target["removed"].items()}
    return prune(
        before,
        [
            [channel for channel in range(width) if channel not in removed.get(number, ())]
            for number, width in enumerate(before.channels)
        ],
    )


_REBUILD: Mapping[str, Callable[[Mapping[str, Any], Architecture], Mutation]] = {
    "GROW": _grow_again,
    "WIDEN": _widen_again,
    "PRUNE": _prune_again,
}


def check_block(architecture: Architecture, block: int, kind: str) -> None:
    """Raise `UserError` when `architecture` has no such block."""
    if not 0 <= block < len(architecture.blocks):
        raise UserError(f"{kind} block {block}: accepted 0 to {len(architecture.blocks) - 1}")


def _route(
    after: Architecture,
    before: Architecture,
    origins: Sequence[int | None],
    spaces: Sequence[ChannelMap],
) -> Architecture:
    """Mark the residual blocks whose shortcut is no longer channel i to channel i."""
    for number, origin in enumerate(origins):
        if origin is None or not before.blocks[origin].residual or before.blocks[origin].routed:
            continue
        out, into = spaces[number + 1], spaces[number]
        identity = torch.eye(out.old, into.old)
        moved = _move(
            TensorMap("", out, into, blank=True),
            identity,
            torch.zeros(len(out.index), len(into.index)),
            VALUE,
        )
        if not torch.equal(moved, torch.eye(len(out.index), len(into.index))):
            after = after.with_block(number, routed=True)
    return after
