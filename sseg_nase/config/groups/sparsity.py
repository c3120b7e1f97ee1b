"""`sparsity`: what is pruned, and when. Done by `sseg_nase.training` and `sseg_nase.sparsity`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Optional

from sseg_nase.config.options import option


@dataclass(frozen=True)
class SparsityConfig:
    """Pruning. `start_epoch` None: when growth has ended, and not before the middle of the run."""

    enabled: bool
    ratio: Annotated[float, option(least=0, most=0.95)]
    importance: Annotated[str, option(choices=("taylor", "magnitude", "random"))]
    importance_batches: Annotated[int, option(least=1)]
    pruning_interval_epochs: Annotated[int, option(least=1)]
    start_epoch: Annotated[Optional[int], option(least=0)]
    min_channels: Annotated[int, option(least=1)]
    round_to: Annotated[int, option(least=1)]
    recalibration_batches: Annotated[int, option(least=0)]
    negative_path: bool
    probation: Annotated[str, option(choices=("control", "tolerance"))]
    rollback_tolerance: Annotated[float, option(least=-1)]
    rollback_grace_epochs: Annotated[int, option(least=0)]
