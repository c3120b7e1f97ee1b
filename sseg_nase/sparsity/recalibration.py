"""BN statistics that fit a network again after it has changed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def recalibrate(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Recompute the running statistics of every BN in `module`, in place, from `batches`.

    Every batch is an input of `module`, on its device. The statistics become the plain average
    over the batches of what BN sees in train mode (variances unbiased), and num_batches_tracked
    their number. Parameters, momentum and every part's mode stay. Raises ValueError, with nothing
    changed, when there is no batch.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    modes = [(part, part.training) for part in module.modules()]
    count = 0
    try:
        for count, batch in enumerate(batches, start=1):
            if count == 1:
                module.train()
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None  # makes the moving average a plain one
            module(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for part, training in modes:
            part.training = training
    if not count:
        raise ValueError("recalibration needs at least one batch")
