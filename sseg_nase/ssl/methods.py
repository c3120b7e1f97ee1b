"""Self-supervised methods: from views and the networks to a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sseg_nase.config.schema import SSLConfig
from sseg_nase.ssl.objectives import distillation, nt_xent


class Losses(NamedTuple):
    """Scalars of one batch. `distillation` is None without a teacher."""

    total: Tensor
    contrastive: Tensor
    distillation: Tensor | None


def alone(rows: Tensor) -> Tensor:
    """What one process gathers: its own rows."""
    return rows


def simclr(
    learner: nn.Module,
    teacher: nn.Module | None,
    views: Tensor,
    ssl: SSLConfig,
    gather: Callable[[Tensor], Tensor] = alone,
) -> Losses:
    """NT-Xent on two `views` plus λ · MSE(student, teacher) on the embeddings of the first.

    `views` `[2, B, 3, S, S]`: the first of every image, then the second. Both go through
    the network together, so that BN sees them as one batch. The teacher takes the first view, as
    the specification has it. `gather` brings the projections of all processes together: every image
    is then told from those of the whole batch.
    """
    features, projections = learner(views.flatten(0, 1))
    z1, z2 = projections.chunk(2)
    contrastive = nt_xent(gather(z1), gather(z2), ssl.temperature)
    if teacher is None:
        return Losses(contrastive, contrastive, None)
    with torch.no_grad():
        target = teacher(views[0])
    gap = distillation(features[: len(target)], target)
    return Losses(contrastive + ssl.distillation_weight * gap, contrastive, gap)


METHODS: Mapping[str, Callable[..., Losses]] = {"simclr": simclr}
