"""GROW: more blocks, that leave the function as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from sseg_nase.errors import UserError
from sseg_nase.kinds import register
from sseg_nase.nets.architecture import Architecture, Block
from sseg_nase.nets.description import Description
from sseg_nase.nets.maps import NEW, ChannelMap
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.operator import Caps, Operator, Options, routed_anew

KIND = "GROW"


def grow(
    before: Description,
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
    chained = _chain(before)
    position = len(chained.blocks) if position is None else position
    _check_position(chained, position)
    if out_channels is None:
        out_channels = chained.channels[position - 1]
    return _grow(chained, [_Place(position, out_channels, before_pool)], mode=mode, seed=seed)


def grow_stages(
    before: Description, *, most: int | None = None, drawn: bool = False, seed: int = 0
) -> Mutation:
    """GROW in every stage at once: one more block at its end, before its pooling.

    The blocks are those of `grow` with mode `preserve`, as wide as their stage. A stage that has
    `most` blocks stays. `drawn`: as many blocks, but the stage of each is random, and `most` holds
    for the mean of all stages. Raises `UserError` where there are as many as that already.
    """
    before = _chain(before)
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
    after = routed_anew(replace(before, blocks=tuple(blocks)), before, origins, spaces)
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
        KIND,
        target,
        before,
        after,
        tuple(origins),
        tuple(spaces),
        zeroed=zeroed,
        seed=seed,
        label=_label(target, before),
    )


def _label(target: Mapping[str, Any], before: Architecture) -> str:
    """The kind alone stands for a block after the last one; blocks count from 1."""
    block, pooling = target["block"], target.get("before_pool", False)
    if block is None:
        return f"{KIND} all"
    if block == len(before.blocks) and not pooling:
        return KIND
    return f"{KIND} {block + 1}" + (" before pooling" if pooling else "")


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
    return Block(out_channels, pool=pool), ChannelMap.all_new(out_channels, width), ()


def _check_width(out_channels: int) -> None:
    if out_channels < 1:
        raise UserError(f"GROW out_channels {out_channels}: use at least 1")


def _again(target: Mapping[str, Any], before: Architecture) -> Mutation:
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


def grow_candidates(
    description: Description,
    sensitivity: Sequence[float],
    options: Options,
    caps: Caps,
    seed: int,
) -> list[Mutation]:
    """One block more, at every place that `options.grow_positions` names and the caps allow.

    After the last block it is wider by the expansion ratio as far as the caps allow; elsewhere it
    is as wide as the block before it.
    """
    architecture, found = _chain(description), []
    for position, before_pool in _places(architecture, options.grow_positions):
        width = architecture.channels[position - 1]
        widths = [width]
        if position == len(architecture.blocks) and not before_pool:
            widths.insert(0, max(width, min(round(width * options.expansion), caps.max_channels)))
        for out_channels in dict.fromkeys(widths):
            candidate = grow(
                architecture,
                position=position,
                before_pool=before_pool,
                out_channels=out_channels,
                mode=options.grow_mode,
                seed=seed,
            )
            if caps.violation(candidate.after) is None:
                found.append(candidate)
                break
    return found


def _places(architecture: Architecture, where: str) -> Iterator[tuple[int, bool]]:
    """Where a block may be added, by position and whether it takes over the pooling before it.

    `last`: after the last block. `stages`: at the end of every stage, before its pooling; a last
    block that pools has a further stage behind it. `all`: after every block, before and after its
    pooling.
    """
    end, sides = len(architecture.blocks), architecture.sides()
    if where == "last":
        yield end, False
        return
    for number, block in enumerate(architecture.blocks):
        smaller = sides[number + 1] < sides[number]
        if where == "all" or smaller or number + 1 == end:
            yield number + 1, block.pool
        if smaller and (where == "all" or number + 1 == end):
            yield number + 1, False


def _refusal(before: Description) -> str | None:
    if isinstance(before, Architecture):
        return None
    can = (
        "it can be widened (evolution.operators=[widen]) and pruned (sparsity=nase)"
        if before.axes
        else "it does not tell the axes of its tensors, so it can be neither widened nor pruned"
    )
    return f"{KIND}: there is no rule for more blocks in {before.name}; {can}"


def _chain(before: Description) -> Architecture:
    """`before` where it is a chain of ConvBlocks. Raises `UserError` with what can be done."""
    if (why := _refusal(before)) is not None:
        raise UserError(why)
    assert isinstance(before, Architecture)
    return before


class Grow(Operator):
    """Depth: the place of a new block, by its number in the network that it makes."""

    name, code = KIND, 1
    colour, marker = "blue", "^"
    proposals: ClassVar = {"grow": grow_candidates}

    def refuses(self, before: Description) -> str | None:
        """Only chains of ConvBlocks have a rule for where a block may stand."""
        return _refusal(before)

    def rebuild(self, target: Mapping[str, Any], before: Description) -> Mutation:
        """From the places that the record names."""
        return _again(target, _chain(before))

    def describe(self, target: Mapping[str, Any]) -> str:
        """Where a block was added, and with how many channels."""
        block, channels = target.get("block"), target.get("out_channels")
        how = f" ({target['mode']})" if "mode" in target else ""
        if isinstance(target.get("blocks"), list) and isinstance(channels, list):
            together = zip(target["blocks"], channels, strict=False)
            return "; ".join(f"a block of {c} channels at place {b + 1}" for b, c in together) + how
        if not isinstance(block, int) or channels is None:
            return super().describe(target)
        if target.get("before_pool") is True:
            how = f", before pooling{how}"
        return f"a block of {channels} channels at place {block + 1}{how}"


register(Grow())
