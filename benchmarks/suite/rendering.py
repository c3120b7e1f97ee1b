"""Curriculum images, all levels mixed evenly."""

from __future__ import annotations

import torch

from benchmarks.suite.child import Work
from benchmarks.suite.setting import BATCH, device
from sseg_nase.config.groups.curriculum import SYNTHETIC_LEVELS
from sseg_nase.data.curriculum.render import render

FEW = 8


def batched(size: int) -> Work:
    """A batch of every level at once."""
    return _levels(size, [torch.arange(BATCH)])


def one_at_a_time(size: int) -> Work:
    """The same code, image by image."""
    return _levels(size, list(torch.arange(FEW).split(1)))


def _levels(size: int, calls: list[torch.Tensor]) -> Work:
    def work() -> float:
        for level in SYNTHETIC_LEVELS:
            for indices in calls:
                render(level, indices, seed=0, image_size=size, device=device())
        return len(SYNTHETIC_LEVELS) * sum(map(len, calls))

    return work
