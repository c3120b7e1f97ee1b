"""WIDEN: more channels in the named axes of a network, that leave the function as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch

from sseg_nase.errors import UserError, did_you_mean
from sseg_nase.kinds import register
from sseg_nase.nets.description import Description
from sseg_nase.nets.maps import NEW, ChannelMap
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.operator import (
    Caps,
    Operator,
    Options,
    check_block,
    numbered,
    resized,
)

KIND = "WIDEN"


def widen(
    before: Description,
    block: int | str | None,
    *,
    ratio: float = 1.5,
    channels: int | Sequence[int] | None = None,
    mode: str = "duplicate",
    noise: float = 0.0,
    seed: int = 0,
) -> Mutation:
    """WIDEN axis `block` to `channels` (default: `ratio` × its channels, rounded).

    `block`: the name of an axis, as `before.axes` has them, or its number in them: of a chain that
    is the number of a block. None: all axes at once; `channels` then holds one width per axis, and
    an axis may keep the width it has as long as another widens.
    mode `duplicate`: new channels repeat old ones, sampled without replacement as long as
    possible, with `noise` relative noise on the copies; consumers divide by the number of copies.
    mode `zero`: new channels are freshly initialised and their outgoing weights start at 0.
    mode `pairs`: two new channels each start alike, from weights as large as those that are there,
    and what follows weighs them with Z and −Z: their gradients differ, where those of a copy and
    its source are the same, so they part at the first step (Yuan et al. 2023). An odd one that is
    left over is as in mode `zero`.
    """
    if mode not in _NEW_CHANNELS:
        raise UserError(f"{KIND} mode '{mode}': accepted {', '.join(_NEW_CHANNELS)}")
    name = None if block is None else _axis(before, block)
    widths = _widths(before, name, ratio, channels)
    generator = torch.Generator().manual_seed(seed)
    added = {
        axis: _NEW_CHANNELS[mode](width, widths[axis] - width, generator)
        for axis, width in before.axes.items()
    }
    return _widen(before, name, added, mode=mode, noise=noise, seed=seed)


def _axis(before: Description, block: int | str) -> str:
    """The name of an axis. Raises `UserError` where there is none."""
    names = tuple(before.axes)
    if isinstance(block, str):
        if block not in names:
            known = ", ".join(names) if names else "none; nothing of this network can be widened"
            raise UserError(f"{KIND} axis '{block}': accepted {known}.{did_you_mean(block, names)}")
        return block
    check_block(before, block, KIND)
    return names[block]


def _widths(
    before: Description, name: str | None, ratio: float, channels: int | Sequence[int] | None
) -> dict[str, int]:
    """Channels of every axis after a WIDEN. Raises `UserError` where nothing widens."""
    have = before.axes
    what = "block" if numbered(before) else "axis"
    if name is None:
        widths = [round(width * ratio) for width in have.values()] if channels is None else channels
        if isinstance(widths, int) or len(widths) != len(have):
            several = "blocks" if numbered(before) else "axes"
            raise UserError(
                f"{KIND} all {several} to {channels} channels: name one width per {what}, "
                f"{len(have)} in all"
            )
        less = any(wide < width for wide, width in zip(widths, have.values(), strict=True))
        if less or sum(widths) == sum(have.values()):
            several = "blocks" if numbered(before) else "axes"
            raise UserError(
                f"{KIND} all {several} to {list(widths)} channels: use at least "
                f"{list(have.values())}, and more in one {what} or more"
            )
        return dict(zip(have, widths, strict=True))
    wide = round(have[name] * ratio) if channels is None else channels
    called = f"block {list(have).index(name)}" if numbered(before) else f"axis {name}"
    if not isinstance(wide, int):
        raise UserError(f"{KIND} {called} to {wide} channels: name one width")
    if wide <= have[name]:
        raise UserError(f"{KIND} {called} to {wide} channels: it has {have[name]} already")
    return {**have, name: wide}


def _widen(
    before: Description,
    name: str | None,
    added: Mapping[str, Sequence[int]],
    *,
    mode: str,
    noise: float,
    seed: int,
) -> Mutation:
    """WIDEN by the sources `added` of the new channels of every axis."""
    spaces = {}
    for axis, width in before.axes.items():
        index = (*range(width), *added[axis])
        new = [j for j, source in enumerate(index) if source == NEW] if mode == "pairs" else []
        pairs = tuple(zip(new[::2], new[1::2], strict=False))
        spaces[axis] = ChannelMap(index, width, pairs=pairs)
    which, index = _recorded(before, name, spaces)
    target = {**which, "mode": mode, "index": index, "noise": noise, "seed": seed}
    label = f"{KIND} all" if name is None else KIND
    return resized(KIND, target, before, spaces, noise=noise, seed=seed, label=label)


def _recorded(
    before: Description, name: str | None, spaces: Mapping[str, ChannelMap]
) -> tuple[dict[str, Any], Any]:
    """What a record holds of the axes, of a chain by number, of another network by name.

    Which they are with their widths, and the sources of their new channels.
    """
    index = {axis: list(space.index[space.old :]) for axis, space in spaces.items()}
    widths = {axis: len(space.index) for axis, space in spaces.items()}
    key = "block" if numbered(before) else "axis"
    if name is not None:
        called = list(spaces).index(name) if numbered(before) else name
        return {key: called, "channels": widths[name]}, index[name]
    if numbered(before):
        return {key: None, "channels": [*widths.values()]}, [*index.values()]
    return {key: None, "channels": widths}, index


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


def _again(target: Mapping[str, Any], before: Description) -> Mutation:
    """From the recorded index, so that nothing depends on a random generator."""
    chosen, index = target["block" if numbered(before) else "axis"], target["index"]
    name = None if chosen is None else _axis(before, chosen)
    if name is not None:
        added = {axis: index if axis == name else [] for axis in before.axes}
    elif len(index) != len(before.axes):
        what = "block" if numbered(before) else "axis"
        raise UserError(f"one index per {what} is needed, {len(before.axes)}, not {len(index)}")
    else:
        added = dict(zip(before.axes, index, strict=True)) if numbered(before) else dict(index)
    for axis, width in before.axes.items():
        if any(not (source == NEW or 0 <= source < width) for source in added[axis]):
            raise UserError(f"a new channel comes from one of 0 to {width - 1}, or is new ({NEW})")
    return _widen(
        before, name, added, mode=target["mode"], noise=target["noise"], seed=target["seed"]
    )


def widen_candidates(
    architecture: Description,
    sensitivity: Sequence[float],
    options: Options,
    caps: Caps,
    seed: int,
) -> list[Mutation]:
    """The most sensitive axis that the caps let widen, wider by the expansion ratio."""
    widths = list(architecture.axes.values())
    for block in _by_sensitivity(sensitivity):
        width = widths[block]
        channels = _expanded(width, options, caps)
        if channels <= width:
            continue
        candidate = _proposed(architecture, block, channels, options, seed)
        if caps.violation(candidate.after) is None:
            return [candidate]
    return []


def widen_all_candidates(
    architecture: Description,
    sensitivity: Sequence[float],
    options: Options,
    caps: Caps,
    seed: int,
) -> list[Mutation]:
    """All axes that the caps let widen, wider by the expansion ratio in one mutation.

    The most sensitive axis comes first: what it takes of the caps is not left for the others.
    """
    channels = list(architecture.axes.values())
    found: list[Mutation] = []
    for block in _by_sensitivity(sensitivity):
        width = channels[block]
        channels[block] = _expanded(width, options, caps)
        if channels[block] <= width:
            channels[block] = width
            continue
        candidate = _proposed(architecture, None, channels, options, seed)
        if caps.violation(candidate.after) is None:
            found = [candidate]
        else:
            channels[block] = width
    return found


def _proposed(
    architecture: Description,
    block: int | None,
    channels: int | Sequence[int],
    options: Options,
    seed: int,
) -> Mutation:
    mode, noise = options.widen_mode, options.widen_noise
    return widen(architecture, block, channels=channels, mode=mode, noise=noise, seed=seed)


def _by_sensitivity(sensitivity: Sequence[float]) -> list[int]:
    """Numbers of axes, the most sensitive first."""
    return sorted(range(len(sensitivity)), key=lambda block: -sensitivity[block])


def _expanded(width: int, options: Options, caps: Caps) -> int:
    """`width` × the expansion ratio, one channel more at least, as far as the caps allow."""
    return min(max(width + 1, round(width * options.expansion)), caps.max_channels)


class Widen(Operator):
    """Width: more channels in one axis, or in all of them."""

    name, code = KIND, 2
    colour, marker = "vermillion", "D"
    proposals: ClassVar = {"widen": widen_candidates, "widen_all": widen_all_candidates}

    def rebuild(self, target: Mapping[str, Any], before: Description) -> Mutation:
        """From the sources that the record names for every new channel."""
        return _again(target, before)

    def describe(self, target: Mapping[str, Any]) -> str:
        """How many channels a block or an axis has then."""
        channels = target.get("channels")
        how = f" ({target['mode']})" if "mode" in target else ""
        if isinstance(target.get("axis"), str):
            return f"{target['axis']} has {channels} channels{how}"
        block = target.get("block")
        if not isinstance(block, int) or channels is None:
            return super().describe(target)
        return f"block {block + 1} has {channels} channels{how}"


register(Widen())
