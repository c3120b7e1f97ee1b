"""What every operator can do, and how it is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sseg_nase.config.schema import EvolutionConfig
from sseg_nase.errors import UserError, did_you_mean
from sseg_nase.kinds import Kind, kind_of, kinds
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.description import Description
from sseg_nase.nets.maps import ChannelMap, routed
from sseg_nase.nets.mutation import Mutation


@dataclass(frozen=True)
class Caps:
    """Hard limits that no architecture may exceed; flops at `resolution`."""

    max_blocks: int
    max_channels: int
    max_params: int
    max_flops: int
    resolution: int

    @classmethod
    def of(cls, evolution: EvolutionConfig) -> Caps:
        """Those that the config sets."""
        e = evolution
        return cls(e.max_blocks, e.max_channels, e.max_params, e.max_flops, e.cap_resolution)

    def exceeded(self, architecture: Description) -> tuple[str, str, str] | None:
        """The name of a limit that is exceeded, what of `architecture` it holds for, in words, and
        by how it is; None where all is within.

        Limits on params and flops are strict.
        """
        at = self.at(architecture)
        flops, widest = 2 * architecture.macs(at), [*architecture.channels]
        widest += architecture.axes.values()
        figures = {
            "max_blocks": ("blocks", len(architecture.channels), "over"),
            "max_channels": ("channels", max(widest), "over"),
            "max_params": ("params", architecture.params, "not under"),
            "max_flops": (f"flops at {at} px", flops, "not under"),
        }
        for limit, (what, value, relation) in figures.items():
            cap = getattr(self, limit)
            if value > cap or (value == cap and relation == "not under"):
                return limit, f"{what} {value:,}", relation
        return None

    def violation(self, architecture: Description) -> str | None:
        """What `architecture` exceeds, in words, or None."""
        if (found := self.exceeded(architecture)) is None:
            return None
        limit, figure, relation = found
        return f"{figure} {relation} the cap of {getattr(self, limit):,}"

    def at(self, architecture: Description) -> int:
        """The image size at which flops are counted: one that the network takes.

        A chain is counted by formula, whatever size it takes.
        """
        counted = isinstance(architecture, Architecture) or architecture.any_resolution
        return self.resolution if counted else architecture.resolution


@dataclass(frozen=True)
class Options:
    """How candidates are made: see the keys of the same names under `evolution`."""

    expansion: float
    grow_mode: str
    widen_mode: str
    widen_noise: float
    grow_positions: str = "last"


# (architecture, sensitivity of every axis, options, caps, seed) -> candidates within the caps.
Propose = Callable[[Description, Sequence[float], Options, Caps, int], list[Mutation]]


class Operator(Kind):
    """A kind of mutation that can be made; an instance is given to `kinds.register`.

    `proposals`: how candidates of it are found, by name in `evolution.operators`.
    """

    proposals: ClassVar[Mapping[str, Propose]] = {}

    def refuses(self, before: Description) -> str | None:
        """Why there is no rule for such a network, and what can be done to it; None: there is."""
        if before.axes:
            return None
        return f"{self.name}: {before.name} does not tell the axes of its tensors"

    def rebuild(self, target: Mapping[str, Any], before: Description) -> Mutation:
        """The very mutation of `before` that a record's `target` describes; nothing is random.

        What `target` lacks or cannot mean may raise any of `KeyError`, `AttributeError`,
        `IndexError`, `TypeError`, `ValueError` and `UserError`.
        """
        raise NotImplementedError


def rebuild(kind: str, target: Mapping[str, Any], before: Description) -> Mutation:
    """The very `Mutation` of `before` that a record's `kind` and `target` describe.

    Nothing is random. Raises `UserError` for an unknown kind, and for a target that no
    mutation of `before` has.
    """
    operator = kind_of(kind)
    assert isinstance(operator, Operator), operator
    try:
        mutation = operator.rebuild(target, before)
    except KeyError as error:
        raise UserError(f"{kind} target: {error} is missing") from error
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{kind} target: {error}") from error
    made = mutation.target
    wrong = [key for key in {**made, **target} if made.get(key) != target.get(key)]
    if wrong:
        raise UserError(f"{kind} target: {', '.join(wrong)} not as the rest of it says")
    return mutation


def proposing(name: str) -> tuple[Operator, Propose]:
    """The operator with the way to find candidates that `evolution.operators` calls `name`.

    Raises `UserError`.
    """
    known = {
        called: (operator, propose)
        for operator in kinds().values()
        if isinstance(operator, Operator)
        for called, propose in operator.proposals.items()
    }
    if name not in known:
        raise UserError(
            f"evolution.operators: '{name}' is none; accepted {', '.join(known)}."
            f"{did_you_mean(name, known)}"
        )
    return known[name]


def routed_anew(
    after: Architecture,
    before: Architecture,
    origins: Sequence[int | None],
    spaces: Sequence[ChannelMap],
) -> Architecture:
    """Mark the residual blocks whose shortcut is no longer channel i to channel i."""
    for number, origin in enumerate(origins):
        if origin is None or not before.blocks[origin].residual or before.blocks[origin].routed:
            continue
        if routed(spaces[number + 1], spaces[number]) is not None:
            after = after.with_block(number, routed=True)
    return after


def resized(
    kind: str,
    target: dict[str, Any],
    before: Description,
    channels: Mapping[str, ChannelMap],
    **how: Any,
) -> Mutation:
    """The mutation that changes the `channels` of named axes, and no block; others stay."""
    spaces = [ChannelMap.same(before.in_channels)]
    spaces += [channels.get(name, ChannelMap.same(wide)) for name, wide in before.axes.items()]
    widths = dict(zip(before.axes, (len(space.index) for space in spaces[1:]), strict=True))
    after = before.with_widths(widths)
    origins: tuple[int | None, ...] = ()
    if isinstance(before, Architecture):
        origins = tuple(range(len(before.blocks)))
        assert isinstance(after, Architecture)
        after = routed_anew(after, before, origins, spaces)
    return Mutation(kind, target, before, after, origins, tuple(spaces), **how)


def numbered(description: Description) -> bool:
    """Whether records call the axes by the numbers of blocks: those of a chain, one per block."""
    return isinstance(description, Architecture)


def check_block(architecture: Description, block: int, kind: str) -> None:
    """Raise `UserError` when `architecture` has no such block."""
    count = len(architecture.axes)
    if not 0 <= block < count:
        raise UserError(f"{kind} block {block}: accepted 0 to {count - 1}")
