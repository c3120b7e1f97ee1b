"""When things happen in training, and who may listen."""

from __future__ import annotations

from enum import Enum
from typing import Any

from sseg_nase.training.state import Pretraining


class Event(Enum):
    """The loop, in pseudocode.

    fit_start
    for epoch in epochs:
        epoch_start
        for batch in epoch:
            batch_start
            losses of two views → after_loss    # of the whole step with hardware.accumulate=exact
            backward → after_backward
            every accumulated batch: optimizer, teacher → after_step    # unless the scaler skips it
                asked to stop → interrupt, close
        epoch_end
        a mutation on probation: it stays, or → mutation (rolled back)
        for intervention in interventions:      # between epochs, never inside accumulation
            propose, check the caps, apply, verify, accept or not → mutation
    fit_end
    close                                       # also when something raised
    """

    FIT_START = "fit_start"
    EPOCH_START = "epoch_start"
    BATCH_START = "batch_start"
    AFTER_LOSS = "after_loss"
    AFTER_BACKWARD = "after_backward"
    AFTER_STEP = "after_step"
    INTERRUPT = "interrupt"
    EPOCH_END = "epoch_end"
    MUTATION = "mutation"
    FIT_END = "fit_end"
    CLOSE = "close"


class Callback:
    """Listens to events. `on` is called for every one of them; the base class ignores all."""

    def on(self, event: Event, state: Pretraining) -> None:
        """Called after `event` happened in the training."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, for the checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
