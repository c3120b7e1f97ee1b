"""Parameters and multiply-accumulates of a chain of ConvBlocks, by formula: numbers, no torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

BACKWARD = 2  # forward passes that a backward pass costs: a gradient of maps and one of weights
SMALLEST_MAP = 2  # a block pools only while the pooled map keeps at least this side


def pools(side: int) -> bool:
    """Whether a map of this side is still pooled: deep networks keep their last small map."""
    return side // 2 >= SMALLEST_MAP


def blocks(
    channels: Sequence[int], *, per_stage: int = 1, pooling: bool = True, pooled: int | None = None
) -> list[tuple[int, bool]]:
    """Of every block of a network to start from its channels and whether it pools.

    `channels`: of every stage, which has `per_stage` blocks, the last of which pools; with `pooled`
    those of the first so many stages alone.
    """
    pooled = len(channels) if pooled is None else pooled
    return [
        (width, pooling and stage < pooled and block == per_stage)
        for stage, width in enumerate(channels)
        for block in range(1, per_stage + 1)
    ]


def sides(resolution: int, pooling: Sequence[bool]) -> tuple[int, ...]:
    """Side of the square map in every space: the input first, then each block's output."""
    found = [resolution]
    for pool in pooling:
        found.append(found[-1] // 2 if pool and pools(found[-1]) else found[-1])
    return tuple(found)


def stages(sides: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Numbers of the blocks that compute on maps of one size; `sides`: as `sides` returns them."""
    grouped = itertools.groupby(range(len(sides) - 1), key=lambda number: sides[number])
    return tuple(tuple(numbers) for _, numbers in grouped)


def params(widths: Sequence[int], *, kernel_size: int, batch_norm: bool) -> int:
    """Trainable parameters; `widths`: channels of the input, then of every block."""
    per_channel = 2 if batch_norm else 1  # γ and β, or a bias
    return sum(
        kernel_size**2 * wide_in * wide_out + per_channel * wide_out
        for wide_in, wide_out in itertools.pairwise(widths)
    )


def macs(widths: Sequence[int], sides: Sequence[int], taps: Sequence[int]) -> int:
    """Multiply-accumulates of one forward (flops = 2 × macs).

    `sides`: of every space, as `widths`; `taps` of a block: the weights from one channel to one.
    """
    total = 0
    for index, weights in enumerate(taps):
        total += weights * widths[index] * widths[index + 1] * sides[index] ** 2
    return total
