"""Which mutations are possible, and how fit each one is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from sseg_nase.config.schema import EvolutionConfig
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.mutation import Mutation, grow, widen

SMALLEST_LOSS = 1e-12  # that a fall is related to: a loss may be 0


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

    def violation(self, architecture: Architecture) -> str | None:
        """What `architecture` exceeds, in words, or None. Limits on params and flops are strict."""
        flops = 2 * architecture.macs(self.resolution)
        params = architecture.params
        limits = {
            "blocks": (len(architecture.blocks), self.max_blocks, "over"),
            "channels": (max(architecture.channels), self.max_channels, "over"),
            "params": (params, self.max_params, "not under"),
            f"flops at {self.resolution} px": (flops, self.max_flops, "not under"),
        }
        for what, (value, cap, relation) in limits.items():
            if value > cap or (value == cap and relation == "not under"):
                return f"{what} {value:,} {relation} the cap of {cap:,}"
        return None


@dataclass(frozen=True)
class Options:
    """How candidates are made: see the keys of the same names under `evolution`."""

    expansion: float
    grow_mode: str
    widen_mode: str
    widen_noise: float
    grow_positions: str = "last"


def penalty(architecture: Architecture, caps: Caps) -> float:
    """FLOPs / target FLOPs + params / target params; the targets are the caps."""
    flops = 2 * architecture.macs(caps.resolution)
    return flops / caps.max_flops + architecture.params / caps.max_params


class Difference(NamedTuple):
    """A mean over pairs, and its standard error."""

    mean: float
    error: float


def paired(first: Tensor, second: Tensor) -> Difference:
    """`first` − `second` of two `[K]` that are pairs, K ≥ 2: losses on the same batches."""
    assert first.shape == second.shape
    apart = (first - second).double()
    return Difference(apart.mean().item(), (apart.std() / len(apart) ** 0.5).item())


def advantage(
    before: Tensor, stay: Tensor, mutant: Tensor, dearer: float, alpha: float
) -> Difference:
    """F(mutant) − F(stay), with F = performance − α · penalty.

    Performance is the relative fall of the held loss: `before` any step, after those of the
    unmutated network and of the mutant, `[K]` on the same batches. `dearer`: the mutant's penalty
    less that of the unmutated network. Not finite where a loss is not.
    """
    if not before.isfinite().all():
        return Difference(float("nan"), float("nan"))
    lead = paired(stay, mutant)
    scale = max(abs(before.mean().item()), SMALLEST_LOSS)
    return Difference(lead.mean / scale - alpha * dearer, lead.error / scale)


def grow_candidates(
    architecture: Architecture,
    sensitivity: Sequence[float],
    options: Options,
    caps: Caps,
    seed: int,
) -> list[Mutation]:
    """One block more, at every place that `options.grow_positions` names and the caps allow.

    After the last block it is wider by the expansion ratio as far as the caps allow; elsewhere it
    is as wide as the block before it.
    """
    found = []
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


def widen_candidates(
    architecture: Architecture,
    sensitivity: Sequence[float],
    options: Options,
    caps: Caps,
    seed: int,
) -> list[Mutation]:
    """The most sensitive block that the caps let widen, wider by the expansion ratio."""
    for block in _by_sensitivity(sensitivity):
        width = architecture.channels[block]
        channels = _expanded(width, options, caps)
        if channels <= width:
            continue
        candidate = widen(
            architecture,
            block,
            channels=channels,
            mode=options.widen_mode,
            noise=options.widen_noise,
            seed=seed,
        )
        if caps.violation(candidate.after) is None:
            return [candidate]
    return []


def widen_all_candidates(
    architecture: Architecture,
    sensitivity: Sequence[float],
    options: Options,
    caps: Caps,
    seed: int,
) -> list[Mutation]:
    """All blocks that the caps let widen, wider by the expansion ratio in one mutation.

    The most sensitive block comes first: what it takes of the caps is not left for the others.
    """
    channels = list(architecture.channels)
    found: list[Mutation] = []
    for block in _by_sensitivity(sensitivity):
        width = channels[block]
        channels[block] = _expanded(width, options, caps)
        if channels[block] <= width:
            channels[block] = width
            continue
        candidate = widen(
            architecture,
            None,
            channels=channels,
            mode=options.widen_mode,
            noise=options.widen_noise,
            seed=seed,
        )
        if caps.violation(candidate.after) is None:
            found = [candidate]
        else:
            channels[block] = width
    return found


def _by_sensitivity(sensitivity: Sequence[float]) -> list[int]:
    """Blocks, the most sensitive first."""
    return sorted(range(len(sensitivity)), key=lambda block: -sensitivity[block])


def _expanded(width: int, options: Options, caps: Caps) -> int:
    """`width` × the expansion ratio, one channel more at least, as far as the caps allow."""
    return min(max(width + 1, round(width * options.expansion)), caps.max_channels)


CANDIDATES: Mapping[str, Callable[..., list[Mutation]]] = {
    "grow": grow_candidates,
    "widen": widen_candidates,
    "widen_all": widen_all_candidates,
}


def candidates(
    architecture: Architecture,
    *,
    operators: Sequence[str],
    sensitivity: Sequence[float],
    options: Options,
    caps: Caps,
    seed: int,
    recent: Sequence[str] = (),
    max_repeats: int | None = None,
) -> list[Mutation]:
    """Every mutation within the caps. `sensitivity`: one value per block.

    `recent` lists the kinds accepted so far: a kind that the last `max_repeats` of them are stands
    back for the other, whichever operators make it, so that depth and width grow together; it is
    taken again when nothing else fits.
    """
    found = [
        candidate
        for name in operators
        for candidate in CANDIDATES[name](architecture, sensitivity, options, caps, seed)
    ]
    tail = list(recent)[-max_repeats:] if max_repeats else []
    tired = tail[0] if len(tail) == max_repeats and len(set(tail)) == 1 else None
    return [candidate for candidate in found if candidate.kind != tired] or found
