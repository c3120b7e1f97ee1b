"""Complementary channel masks, and how sparse to be when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sseg_nase.sparsity.importance import normalized


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
    def kept(self) -> list[list[int]]:
        """Indices of the kept channels per block."""
        return [mask.nonzero().flatten().tolist() for mask in self.positive]

    @property
    def removed(self) -> int:
        """Number of channels left out."""
        return sum(int(mask.sum()) for mask in self.negative)


def complementary_masks(
    importance: Sequence[Tensor], remove: int, *, min_channels: int = 1, round_to: int = 1
) -> ComplementaryMasks:
    """Leave out up to `remove` of the least important channels, over all blocks together.

    Scores are compared after `normalized`. Every block keeps at least `min_channels` and a
    multiple of `round_to` channels (a block that is smaller than that stays whole); widths are
    rounded up, so never more than `remove` channels go.
    """
    ranked = sorted(
        (score, block, channel)
        for block, scores in enumerate(normalized(importance))
        for channel, score in enumerate(scores.tolist())
    )
    drop: list[list[int]] = [[] for _ in importance]
    for _, block, channel in ranked[: max(remove, 0)]:
        drop[block].append(channel)  # least important first
    negative = []
    for scores, channels in zip(importance, drop, strict=True):
        width = len(scores)
        keep = max(width - len(channels), min_channels)
        keep = min(width, -(-keep // round_to) * round_to)
        mask = torch.zeros(width, dtype=torch.bool)
        mask[channels[: width - keep]] = True
        negative.append(mask)
    return ComplementaryMasks(tuple(~mask for mask in negative), tuple(negative))


def target_sparsity(ratio: float, progress: float) -> float:
    """Cubic schedule: ratio · (1 − (1 − progress)³), progress in [0, 1] (Zhu & Gupta 2017)."""
    return ratio * (1 - (1 - min(max(progress, 0.0), 1.0)) ** 3)


def channels_to_remove(width: int, removed_before: int, sparsity: float) -> int:
    """Channels to remove now so that, of all ever made, the share `sparsity` is gone."""
    return max(0, round(sparsity * (width + removed_before)) - removed_before)
