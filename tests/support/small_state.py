"""A pretraining of a few weights where it stands still: what callbacks and interventions see."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

from sseg_nase.config.compose import load
from sseg_nase.evolution.history import MutationRecord
from sseg_nase.stages.pretraining import trainer_of
from sseg_nase.tracking.sink import Sink
from sseg_nase.training.measurements import Probe
from sseg_nase.training.networks import Networks
from sseg_nase.training.state import Pretraining, PretrainingProgress

SMALL = (
    *("debug=tiny", "hardware=cpu", "hardware.precision=32-true", "ablation=A3"),
    *("ssl.projection_hidden=16", "ssl.projection_dim=8"),
)


@cache
def _made() -> Pretraining:
    return trainer_of(load(SMALL), [], Sink(), None, lambda: False).state


def state_of(*, progress: PretrainingProgress | None = None, **more: Any) -> Pretraining:
    """One that has not begun, but for what is given."""
    return dataclasses.replace(_made(), progress=progress or PretrainingProgress(), **more)


class WithGap(Probe):
    """Has measured a gap between student and teacher."""

    def __init__(self, gap: float | None) -> None:
        self.measured = gap

    def gap(self, networks: Networks) -> float | None:
        return self.measured


def record_of(epoch: int = 0, **more: Any) -> MutationRecord:
    """A mutation after that epoch, accepted unless `more` says otherwise."""
    given = {"index": 0, "step": 0, "kind": "GROW", "seconds": 0.0, "accepted": True}
    told: dict[str, Any] = {k: {} for k in ("target", "trigger", "before", "after")}
    losses = dict.fromkeys(("function_delta", "loss_before", "loss_after", "fitness"))
    return MutationRecord(**{**given, **told, **losses, "epoch": epoch, **more})
