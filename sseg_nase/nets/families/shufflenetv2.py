"""ShuffleNetV2 (Ma et al. 2018): half of the channels pass, and the halves are shuffled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, compress, groupby, pairwise
from typing import Annotated, Any

from sseg_nase.config.groups.backbone import Planned, stages_fit
from sseg_nase.config.options import option, register
from sseg_nase.nets.genome import Genome
from sseg_nase.nets.plan import IMAGE, Plan, halving


@register("backbone", "shufflenetv2")
@dataclass(frozen=True)
class ShuffleNetV2(Planned):
    """Stages of `depths` units with `channels`, all times `multiplier`; each stage halves its map.

    Maps of less than 8 pixels stay as large as they are. `last` channels are what is averaged.
    """

    channels: Annotated[list[int], option(least=2)]
    depths: Annotated[list[int], option(least=1, most=50)]
    stem: Annotated[int, option(least=1)]
    last: Annotated[int, option(least=1)]
    multiplier: Annotated[float, option(above=0)]

    @classmethod
    def genome(cls, image_size: int) -> Genome:
        """Channels and units of every stage, and what multiplies the channels."""
        return Genome(
            level=3,
            one={"multiplier": (0.5, 0.75, 1.0, 1.25, 1.5)},
            lists={"channels": (24, 48, 96, 116, 192, 232), "depths": (2, 3, 4, 5, 8)},
            layers=(2, 4),
            fixed={"stem": 24, "last": 256},
        )

    def wrong(self) -> Iterator[str]:
        """Every stage has its units."""
        yield from stages_fit(self.channels, self.depths, "[48,96,192] and [4,8,4]")

    def plan(self, image_size: int) -> Plan:
        """Return the stem, the stages and the last convolution."""
        plan, side = Plan(), image_size
        node = plan.add("stem", "conv", IMAGE, self.stem)
        for stage, (wide, depth) in enumerate(zip(self.channels, self.depths, strict=True)):
            half = max(1, round(wide * self.multiplier / 2))
            stride = halving(side)
            side = -(-side // stride)
            node = _stage(plan, f"stage{stage}", node, half, depth, stride)
        plan.add("last", "conv", node, self.last, kernel=1)
        return plan


def _stage(plan: Plan, stage: str, node: int, half: int, depth: int, stride: int) -> int:
    """Add units that give 2 × `half` channels; return the node of the last one.

    The channels of a branch that go on together are a piece of them, an axis. A unit takes whole
    pieces, and puts what it makes behind those that pass it: an order of the channels which nothing
    sees but the next split, and that is told which pieces to take.
    """
    pieces = _pieces(half, depth)
    inside = plan.nodes[node].channels
    left = plan.add(f"{stage}.0-left-depthwise", "depthwise", node, inside, stride)
    branches = [_made(plan, f"{stage}.0-left", left, half, pieces["left"])]
    branches.append(_right(plan, f"{stage}.0-right", node, half, stride, pieces[0]))
    node = plan.add(f"{stage}.0", "skip_connect", branches, 2 * half, join="concat")
    there = [*pieces["left"], *pieces[0]]  # (the unit that takes it, its channels), in their order
    for unit in range(1, depth):
        where = f"{stage}.{unit}"
        now = [until == unit for until, _ in there]
        taken = _take(plan, f"{where}-taken", node, there, now)
        passed = _take(plan, f"{where}-passed", node, there, [not each for each in now])
        right = _right(plan, f"{where}-right", taken, half, 1, pieces[unit])
        node = plan.add(where, "skip_connect", [passed, right], 2 * half, join="concat")
        there = [*(piece for piece in there if piece[0] != unit), *pieces[unit]]
    return node


Pieces = list[tuple[int, int]]


def _pieces(half: int, depth: int) -> dict[Any, Pieces]:
    """Of what each unit makes: the unit that takes it, and how many channels, one after the other.

    By splits and shuffles as they are: each unit but the first takes the second half, and puts what
    it makes between the channels of the first half. `depth`: what is left for the next stage.
    """
    sources: dict[Any, list[int]] = {made: [depth] * half for made in ("left", *range(depth))}
    shuffled: list[tuple[Any, int]] = [(s, at) for at in range(half) for s in ("left", 0)]
    for unit in range(1, depth):
        passed, taken = shuffled[:half], shuffled[half:]
        for source, at in taken:
            sources[source][at] = unit
        shuffled = [each for at, one in enumerate(passed) for each in (one, (unit, at))]
    return {
        source: [(unit, len(list(group))) for unit, group in groupby(until)]
        for source, until in sources.items()
    }


def _made(plan: Plan, where: str, node: int, half: int, pieces: Pieces) -> int:
    said: dict[str, Any] = (
        {"pieces": ",".join(str(wide) for _, wide in pieces)} if len(pieces) > 1 else {}
    )
    return plan.add(where, "conv", node, half, kernel=1, **said)


def _right(plan: Plan, where: str, node: int, half: int, stride: int, pieces: Pieces) -> int:
    node = plan.add(f"{where}-first", "conv", node, half, kernel=1)
    node = plan.add(f"{where}-depthwise", "depthwise", node, half, stride)
    return _made(plan, where, node, half, pieces)


def _take(plan: Plan, where: str, node: int, there: Pieces, wanted: Sequence[bool]) -> int:
    ends = list(accumulate((wide for _, wide in there), initial=0))
    ranges = list(compress(pairwise(ends), wanted))
    text = ",".join(f"{begin}-{end}" for begin, end in ranges)
    return plan.add(where, "take", node, sum(end - begin for begin, end in ranges), ranges=text)
