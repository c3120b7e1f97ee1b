"""Complementary channel masks, and how sparse to be when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sseg_nase.errors import UserError
from sseg_nase.finite import not_finite
from sseg_nase.sparsity.importance import Importance, normalized

UNDECIDED_ERRORS = 2  # standard errors by which channels must differ to be told apart


@dataclass(frozen=True)
class ComplementaryMasks:
    """`positive` keeps, `negative` is what it leaves out: boolean `[C]` per block."""

    positive: tuple[Tensor, ...]
    negative: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        for keep, drop in zip(self.positive, self.negative, strict=True):
            assert not (keep & drop).any(), "masks must be disjoint"
            assert (keep | drop).all(), "masks must cover every channel"

    @property
    def complement(self) -> tuple[Tensor, ...]:
        """The negative path: what is left out, and all of a block that loses nothing.

        With no channel of such a block the path would be cut off, and all images equal.
        """
        return tuple(mask if mask.any() else torch.ones_like(mask) for mask in self.negative)

    @property
    def kept(self) -> list[list[int]]:
        """Indices of the kept channels per block."""
        return _indices(self.positive)

    @property
    def complement_kept(self) -> list[list[int]]:
        """Indices of the channels of the negative path per block: what it alone would keep."""
        return _indices(self.complement)

    @property
    def removed(self) -> int:
        """Number of channels left out."""
        return sum(int(mask.sum()) for mask in self.negative)


def _indices(masks: Sequence[Tensor]) -> list[list[int]]:
    return [mask.nonzero().flatten().tolist() for mask in masks]


def complementary_masks(
    importance: Sequence[Tensor], remove: int, *, min_channels: int = 1, round_to: int = 1
) -> ComplementaryMasks:
    """Leave out up to `remove` of the least important channels, over all blocks together.

    Every block keeps at least `min_channels` and a multiple of `round_to` channels, or stays whole.
    Of all such choices this is one that leaves out the most channels, never more than `remove`,
    and among those the one that loses the least importance, summed after `normalized`; of equals
    the first go. Within a block the least important channels go. Raises `UserError` where a score
    is not finite.
    """
    assert min_channels >= 1
    assert round_to >= 1
    if names := not_finite({str(b): s for b, s in enumerate(importance)}):
        blocks = ", ".join(f"{int(name) + 1}" for name in names)
        raise UserError(
            f"importance: it is not finite in block {blocks}. The losses that it is taken from "
            "must be finite: give other images, or another network."
        )
    orders = [scores.argsort(stable=True) for scores in importance]
    costs = [
        np.concatenate(([0.0], np.cumsum(scores[order].double().numpy())))
        for scores, order in zip(normalized(importance), orders, strict=True)
    ]
    limits = [_removable(len(order), min_channels, round_to) for order in orders]
    negative = []
    for order, count in zip(orders, _shares(costs, limits, max(remove, 0)), strict=True):
        mask = torch.zeros(len(order), dtype=torch.bool)
        mask[order[:count]] = True
        negative.append(mask)
    return ComplementaryMasks(tuple(~mask for mask in negative), tuple(negative))


def undecided(importance: Importance, masks: ComplementaryMasks) -> int:
    """How many channels are left out that might as well have been others of their block.

    Those whose score does not lie below that of the block's least important kept channel by
    `UNDECIDED_ERRORS` standard errors of the difference; none where the errors are not known.
    """
    count = 0
    for scores, errors, keep in zip(*importance, masks.positive, strict=True):
        least = scores.masked_fill(~keep, float("inf")).argmin()
        error = (errors.square() + errors[least].square()).sqrt()
        close = scores[least] - scores <= UNDECIDED_ERRORS * error
        count += int((close & ~keep).sum())
    return count


def _removable(width: int, min_channels: int, round_to: int) -> list[int]:
    """How many of `width` channels may go, ascending from 0."""
    least = -(-min_channels // round_to) * round_to
    largest = width // round_to * round_to
    counts = [width - keep for keep in range(largest, least - 1, -round_to)]
    return counts if counts[:1] == [0] else [0, *counts]


def _shares(costs: Sequence[np.ndarray], limits: Sequence[Sequence[int]], remove: int) -> list[int]:
    """How many channels every block loses: most in all, up to `remove`, then at the least cost.

    A knapsack: `cheapest[n]` is the least cost of taking exactly n channels from the blocks so
    far, `taken[b][n]` what block b gives to it.
    """
    remove = min(remove, sum(counts[-1] for counts in limits))
    cheapest = np.full(remove + 1, np.inf)
    cheapest[0] = 0
    taken = []
    for cost, counts in zip(costs, limits, strict=True):
        choices = np.full((len(counts), remove + 1), np.inf)
        for row, count in zip(choices, counts, strict=True):
            if count <= remove:
                row[count:] = cheapest[: remove + 1 - count] + cost[count]
        chosen = choices.argmin(axis=0)  # of equals the smallest count: earlier blocks lose first
        cheapest = choices[chosen, np.arange(remove + 1)]
        taken.append(np.array(counts)[chosen])
    left = int(np.flatnonzero(np.isfinite(cheapest))[-1])
    shares = []
    for choice in reversed(taken):
        shares.append(int(choice[left]))
        left -= shares[-1]
    return shares[::-1]


def target_sparsity(ratio: float, progress: float) -> float:
    """Cubic schedule: ratio · (1 − (1 − progress)³), progress in [0, 1] (Zhu & Gupta 2017)."""
    return ratio * (1 - (1 - min(max(progress, 0.0), 1.0)) ** 3)


def channels_to_remove(width: int, removed_before: int, sparsity: float) -> int:
    """Channels to remove now so that, of all ever made, the share `sparsity` is gone."""
    return max(0, round(sparsity * (width + removed_before)) - removed_before)
